"""Frames, mp4 files read back, and files that are complete or not there."""

import base64
import errno
import threading
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from cosmos3_lab import Cosmos3GenerationOutput, media, read_mp4, save_mp4, show_video, to_uint8_frames
from cosmos3_lab.files import check_writable, replacing
from cosmos3_lab.media import open_mp4

RATE = 48000


def greys(count, height=32, width=48):
    """Frame k is all of one grey, 20 + 10 k."""
    levels = np.arange(20, 20 + 10 * count, 10, dtype=np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def sines(*hertz, seconds=1.0, rate=RATE):
    t = np.arange(int(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * f * t) for f in hertz]).astype(np.float32)


def clip(count=5, *, fps=24.0, hertz=(440, 1000), rate=RATE):
    return Cosmos3GenerationOutput(greys(count), fps, sines(*hertz, seconds=count / fps, rate=rate), rate)


def silent(count=5, *, fps=24.0, height=32, width=48):
    return Cosmos3GenerationOutput(greys(count, height, width), fps)


def loudest(samples, rate):
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return spectrum.argmax() * rate / len(samples)


# ----------------------------------------------------------------------------------------------------------- frames


def test_pixels_are_rounded_and_clipped():
    values = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 127.4 / 255, 127.6 / 255, 254.6 / 255, 1.0, 2.0])
    frames = to_uint8_frames(values.expand(1, 3, 1, 1, 9).clone())
    assert frames.dtype == torch.uint8
    assert frames[0, 0, :, 0].tolist() == [0, 0, 0, 1, 127, 128, 255, 255, 255]


def test_frames_are_time_height_width_colour():
    pixels = torch.rand(1, 3, 2, 4, 6)
    frames = to_uint8_frames(pixels)
    assert frames.shape == (2, 4, 6, 3)
    assert frames.is_contiguous()
    assert torch.equal(frames[1, 3, 5], (pixels[0, :, 1, 3, 5] * 255).round().to(torch.uint8))


# -------------------------------------------------------------------------------------------------------------- mp4


@pytest.mark.parametrize("fps", [24.0, 16.0, 23.976, 30.0])
@pytest.mark.parametrize("count", [1, 9])
def test_frames_survive_the_file(tmp_path, count, fps):
    back = read_mp4(save_mp4(silent(count, fps=fps), tmp_path / "clip.mp4"))
    assert back.frames.shape == (count, 32, 48, 3)
    assert back.fps == pytest.approx(fps, abs=1e-4)
    assert np.abs(back.frames.astype(int) - greys(count)).max() <= 3  # lossy, and yuv has fewer levels
    assert (back.waveform, back.sample_rate) == (None, None)


@pytest.mark.parametrize(("height", "width"), [(32, 48), (48, 80), (18, 34), (192, 320)])
def test_sizes_survive_the_file(tmp_path, height, width):
    back = read_mp4(save_mp4(silent(2, height=height, width=width), tmp_path / "clip.mp4"))
    assert back.frames.shape == (2, height, width, 3)


@pytest.mark.parametrize(("hertz", "layout"), [((440,), "mono"), ((440, 1000), "stereo"), ((440, 1000, 3000), "stereo")])
@pytest.mark.parametrize("rate", [48000, 16000])
def test_streams_of_the_file(tmp_path, hertz, layout, rate):
    path = save_mp4(clip(hertz=hertz, rate=rate), tmp_path / "clip.mp4")
    with av.open(str(path)) as container:
        [video], [audio] = container.streams.video, container.streams.audio
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (video.width, video.height, video.frames) == (48, 32, 5)
        assert float(video.duration * video.time_base) == pytest.approx(5 / 24, abs=1e-3)
        assert (audio.codec_context.name, audio.codec_context.layout.name, audio.rate) == ("aac", layout, rate)


def test_a_silent_clip_has_no_audio_stream(tmp_path):
    with av.open(str(save_mp4(silent(), tmp_path / "clip.mp4"))) as container:
        assert not container.streams.audio


@pytest.mark.parametrize("hertz", [(440,), (440, 1000)])
@pytest.mark.parametrize("rate", [48000, 16000])
def test_sine_waves_survive_the_file(tmp_path, hertz, rate):
    output = clip(24, hertz=hertz, rate=rate)
    back = read_mp4(save_mp4(output, tmp_path / "clip.mp4"))
    samples = output.waveform.shape[1]
    assert back.sample_rate == rate
    assert back.waveform.dtype == np.float32
    assert back.waveform.shape[0] == len(hertz)
    assert samples <= back.waveform.shape[1] <= samples + 2048
    for channel, frequency in zip(back.waveform, hertz, strict=True):
        assert loudest(channel, rate) == pytest.approx(frequency, abs=3)
        assert channel[rate // 10 : -rate // 10].std() == pytest.approx(0.5 / np.sqrt(2), rel=0.05)


def test_loud_sound_is_clipped_instead_of_wrapped(tmp_path):
    output = Cosmos3GenerationOutput(greys(24), 24.0, 20 * sines(440), RATE)
    back = read_mp4(save_mp4(output, tmp_path / "clip.mp4"))
    assert np.abs(back.waveform).max() < 1.5  # AAC rings a little over a clipped edge


def test_a_smaller_crf_is_closer(tmp_path):
    frames = np.random.RandomState(0).randint(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    errors = []
    for crf in (1, 40):
        back = read_mp4(save_mp4(Cosmos3GenerationOutput(frames, 24.0), tmp_path / "clip.mp4", crf=crf))
        errors.append(np.abs(back.frames.astype(int) - frames).mean())
    assert errors[0] < errors[1] - 5


@pytest.mark.parametrize(("height", "width"), [(31, 48), (32, 47)])
def test_odd_sizes_are_refused(tmp_path, height, width):
    with pytest.raises(ValueError, match=f"got 5 frames of {height}x{width} pixels, expected at least 1 and even sizes"):
        save_mp4(silent(height=height, width=width), tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["clip", "clip.avi", "clip.mp4.txt", ".mp4"])
def test_other_suffixes_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="expected a file name that ends in .mp4"):
        save_mp4(silent(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_missing_folders_are_made_and_text_paths_work(tmp_path):
    path = save_mp4(silent(), str(tmp_path / "a" / "b" / "clip.mp4"))
    assert path == tmp_path / "a" / "b" / "clip.mp4"
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(OSError, match="missing.mp4"):
        read_mp4(tmp_path / "missing.mp4")


def test_repr_of_a_clip():
    assert repr(silent()) == "Cosmos3GenerationOutput(5 frames 32x48 at 24 fps (0.208 s), silent)"
    assert repr(clip(24)).endswith("1.000 s of sound, 2 x 48000 Hz)")


# -------------------------------------------------------------------------------------------------- complete or not


@pytest.mark.parametrize(
    "failure", [RuntimeError("encoder"), OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr
)
@pytest.mark.parametrize("existing", [None, b"an older clip"])
def test_a_failure_halfway_leaves_no_trace(tmp_path, monkeypatch, failure, existing):
    def fail(*_):
        assert any(p.name != "clip.mp4" for p in tmp_path.iterdir())  # half of the file is there
        raise failure

    path = tmp_path / "clip.mp4"
    if existing is not None:
        path.write_bytes(existing)
    monkeypatch.setattr(media, "_audio_frame", fail)  # called when the video has been encoded
    with pytest.raises(type(failure)):
        save_mp4(clip(), path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([] if existing is None else [existing])


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(media, "_audio_frame", fail)
    with pytest.raises(OSError, match="could not write .*clip.mp4: No space left") as error:
        save_mp4(clip(), tmp_path / "clip.mp4")
    assert error.value.errno == errno.ENOSPC


def test_a_folder_that_may_not_be_made_is_named(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match="could not write .*clip.mp4: Permission denied"):
        save_mp4(silent(), tmp_path / "new" / "clip.mp4")
    with pytest.raises(PermissionError, match="cannot write in .*new"):
        check_writable(tmp_path / "new")


def test_an_older_clip_is_replaced(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"an older clip")
    assert len(read_mp4(save_mp4(silent(3), path)).frames) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_renames_at_the_end(tmp_path):
    path = tmp_path / "state.bin"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        assert (temporary.parent, temporary.suffix) == (path.parent, ".bin")
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_replacing_keeps_the_old_file_on_an_error(tmp_path):
    def break_off(path):
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise ZeroDivisionError

    path = tmp_path / "state.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        break_off(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_check_writable_makes_the_folder_and_leaves_it_empty(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert not list((tmp_path / "a" / "b").iterdir())


def test_check_writable_leaves_files_alone(tmp_path):
    (tmp_path / "write-test").write_text("mine")
    check_writable(tmp_path)
    assert (tmp_path / "write-test").read_text() == "mine"


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"could not write .*clip\.mp4"):
        save_mp4(silent(), tmp_path / "file" / "clip.mp4")
    with pytest.raises(OSError, match="cannot write in .*file"):
        check_writable(tmp_path / "file")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"frames": np.zeros((0, 32, 48, 3), np.uint8)}, "0 frames"),
        ({"fps": 0.0}, "fps"),
        ({"waveform": np.zeros((2, 0), np.float32), "sample_rate": 48000}, "0 samples"),
        ({"waveform": np.full((2, 9), np.nan, np.float32), "sample_rate": 48000}, "finite"),
        ({"waveform": np.zeros((2, 9), np.float32)}, "sample_rate of None"),
        ({"waveform": np.zeros((2, 9), np.float32), "sample_rate": 12345}, "sample_rate of 12345"),
    ],
)
def test_clips_that_cannot_be_encoded_are_refused(tmp_path, broken, message):
    with pytest.raises(ValueError, match=message):
        save_mp4(Cosmos3GenerationOutput(**{"frames": greys(3), "fps": 24.0, **broken}), tmp_path / "clip.mp4")
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------- notebook


def test_show_video_embeds_the_file(tmp_path):
    from IPython.display import Video

    path = save_mp4(clip(), tmp_path / "clip.mp4")
    player = show_video(path, width=400)
    html = player._repr_html_()
    assert isinstance(player, Video)
    assert base64.b64encode(path.read_bytes()).decode() in html
    assert 'width="400"' in html
    assert "controls" in html
    assert str(tmp_path) not in html


def test_show_video_of_a_clip_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    html = show_video(silent(3))._repr_html_()
    data = base64.b64decode(html.split("base64,")[1].split('"')[0])
    (tmp_path / "shown.mp4").write_bytes(data)
    assert len(read_mp4("shown.mp4").frames) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["shown.mp4"]


# ------------------------------------------------------------------------------------------------------- piece by piece


def test_pieces_give_the_same_clip_as_the_whole(tmp_path):
    """Not the same bytes: x264 looks at memory that nobody has written, and chooses now and then another way."""
    whole, frames = clip(7), greys(7)
    with open_mp4(tmp_path / "b.mp4", frames.shape[:3], fps=24.0, waveform=whole.waveform, sample_rate=RATE) as write:
        for piece in (frames[:1], frames[1:5], frames[5:]):
            write(piece)
    a, b = read_mp4(save_mp4(whole, tmp_path / "a.mp4")), read_mp4(tmp_path / "b.mp4")
    assert np.abs(b.frames.astype(int) - frames).max() <= 3
    assert (b.fps, b.sample_rate) == (a.fps, a.sample_rate)
    np.testing.assert_allclose(b.waveform, a.waveform, atol=1e-3)


def test_frames_are_encoded_while_the_next_ones_are_made(tmp_path, monkeypatch):
    encoded, from_ndarray = threading.Event(), av.VideoFrame.from_ndarray

    def noted(*args, **options):
        encoded.set()
        return from_ndarray(*args, **options)

    monkeypatch.setattr(av, "VideoFrame", SimpleNamespace(from_ndarray=noted))
    with open_mp4(tmp_path / "clip.mp4", (2, 32, 48), fps=24.0) as write:
        write(greys(1))
        assert encoded.wait(10)  # before the block has ended
        write(greys(1))


def write_pieces(path, count, pieces):
    """Write them all; a piece that is an error is raised in its turn."""
    with open_mp4(path, (count, 32, 48), fps=24.0) as write:
        for piece in pieces:
            if isinstance(piece, Exception):
                raise piece
            write(piece)


def test_an_error_between_pieces_leaves_no_trace(tmp_path):
    with pytest.raises(FloatingPointError):
        write_pieces(tmp_path / "clip.mp4", 5, [greys(2), FloatingPointError()])
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_encoder_is_raised_at_the_end(tmp_path):
    with pytest.raises(ValueError, match="array"):  # PyAV's words
        write_pieces(tmp_path / "clip.mp4", 2, [greys(1), greys(1).astype(np.float64)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_frames_than_announced_is_an_error(tmp_path, count):
    with pytest.raises(ValueError, match=f"got {count} frames for clip.mp4, expected 2"):
        write_pieces(tmp_path / "clip.mp4", 2, [greys(count)])
    assert not list(tmp_path.iterdir())
