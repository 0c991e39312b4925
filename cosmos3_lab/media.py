"""The last arrow: pixels and waveform become frames, an mp4, and something to play in a notebook.

Source of the encoding settings (h264, yuv420p, crf 18, AAC): PhyAI's `Cosmos3GenerationPostProcessor`.
"""

import wave
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from cosmos3_lab.files import replacing
from cosmos3_lab.showing import Shown
from cosmos3_lab.sizes import check_fps

AAC_SAMPLE_RATES = (7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)

if TYPE_CHECKING:
    from IPython.display import Video


@dataclass(frozen=True, eq=False)
class Cosmos3GenerationOutput(Shown):
    """A finished clip, on the CPU.

    Attributes:
        frames: `[frames, height, width, 3]` uint8 RGB.
        fps: frames a second.
        waveform: `[channels, samples]` float32 in [-1, 1], None for a silent clip.
        sample_rate: of the waveform in Hz, None for a silent clip.
    """

    frames: UInt8[np.ndarray, "frames height width 3"]
    fps: float
    waveform: Float32[np.ndarray, "channels samples"] | None = None
    sample_rate: int | None = None

    def __repr__(self) -> str:
        n, height, width, _ = self.frames.shape
        sound = "silent"
        if self.waveform is not None:
            channels, samples = self.waveform.shape
            sound = f"{samples / self.sample_rate:.3f} s of sound, {channels} x {self.sample_rate} Hz"
        return f"Cosmos3GenerationOutput({n} frames {height}x{width} at {self.fps:g} fps ({n / self.fps:.3f} s), {sound})"


def to_uint8_frames(pixels: Float[Tensor, "1 3 frames height width"]) -> UInt8[Tensor, "frames height width 3"]:
    """Pixels in [0, 1] to 8-bit RGB frames, on the same device.

    Args:
        pixels: from `decode_video`; values outside [0, 1] are clipped.
    """
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return rearrange(levels, "1 c t h w -> t h w c").contiguous()


def save_mp4(output: Cosmos3GenerationOutput, path: str | Path, *, crf: int = 18) -> Path:
    """Write an mp4: h264 (yuv420p), and AAC where there is sound. Complete or not at all.

    Args:
        output: frames with even height and width.
        path: ending in `.mp4`.
        crf: constant rate factor of x264, 0 (lossless) to 51.

    Returns:
        `path`.

    Raises:
        ValueError: a clip that h264 and AAC cannot hold, or a name that is not an mp4's.
        OSError: the file cannot be written (folder, permissions, disk full).
    """
    shape, sound = output.frames.shape[:3], (output.waveform, output.sample_rate)
    with open_mp4(path, shape, fps=output.fps, waveform=sound[0], sample_rate=sound[1], crf=crf) as write:
        write(output.frames)
    return Path(path)


@contextmanager
def open_mp4(
    path: str | Path,
    shape: tuple[int, int, int],
    *,
    fps: float,
    waveform: Float32[np.ndarray, "channels samples"] | None = None,
    sample_rate: int | None = None,
    crf: int = 18,
    tags: Mapping[str, str] | None = None,
) -> Iterator[Callable[[UInt8[np.ndarray, "frames height width 3"]], None]]:
    """An mp4 whose frames come piece by piece, and are encoded in a thread while the next ones are made.

        with open_mp4("clip.mp4", (189, 720, 1280), fps=24) as write:
            write(frames)

    The file is there after the block, and only if that ended without an error. `write` returns at once; what goes wrong in the
    encoder is raised at the end of the block.

    Args:
        path: ending in `.mp4`.
        shape: frames (all of them), height, width.
        fps: frames a second.
        waveform, sample_rate: the sound, None for a silent clip.
        crf: see `save_mp4`.
        tags: metadata for players to show, such as "title" and "comment"; None writes none.

    Raises:
        ValueError, OSError: see `save_mp4`; also where fewer or more frames came than `shape` says.
    """
    import av

    path, (count, height, width) = Path(path), shape
    if path.suffix != ".mp4":
        raise ValueError(f"got {path.name}, expected a file name that ends in .mp4")
    _check_encodable(shape, fps, waveform, sample_rate)
    written, pieces = 0, []
    with replacing(path) as temporary, av.open(str(temporary), "w") as container:
        rate = Fraction(fps).limit_denominator(10000)
        container.metadata.update(tags or {})
        video = container.add_stream("h264", rate=rate)
        video.width, video.height, video.pix_fmt, video.options = width, height, "yuv420p", {"crf": str(crf)}
        if waveform is not None:
            layout = "stereo" if waveform.shape[0] >= 2 else "mono"
            audio = container.add_stream("aac", rate=sample_rate, layout=layout)
        encoder = ThreadPoolExecutor(1, thread_name_prefix="open_mp4")  # one, so that pieces stay in order

        def encode(frames: np.ndarray, first: int) -> None:
            for index, image in enumerate(frames, start=first):
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = index, 1 / rate
                container.mux(video.encode(frame))

        def write(frames: np.ndarray) -> None:
            nonlocal written
            pieces.append(encoder.submit(encode, frames, written))
            written += len(frames)

        try:
            yield write
            for piece in pieces:
                piece.result()
        finally:
            encoder.shutdown(cancel_futures=True)
        if written != count:
            raise ValueError(f"got {written} frames for {path.name}, expected {count}")
        container.mux(video.encode(None))
        if waveform is not None:
            container.mux(audio.encode(_audio_frame(waveform, sample_rate)))
            container.mux(audio.encode(None))


def read_mp4(path: str | Path) -> Cosmos3GenerationOutput:
    """Read an mp4 back (frames as decoded; AAC pads the sound by up to 1024 samples at either end).

    Args:
        path: of a file with one video stream and at most one audio stream.
    """
    import av

    with av.open(str(path)) as container:
        fps = float(container.streams.video[0].average_rate)
        frames = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
        if not container.streams.audio:
            return Cosmos3GenerationOutput(frames, fps)
        rate = container.streams.audio[0].rate
        container.seek(0)
        planes = [f.to_ndarray() for f in container.decode(audio=0)]
    return Cosmos3GenerationOutput(frames, fps, np.concatenate(planes, axis=1).astype(np.float32), rate)


def wav_bytes(array: np.ndarray, sample_rate: int) -> bytes:
    """A WAV file in memory, 16 bits.

    Args:
        array: `[channels, samples]` in [-1, 1].
        sample_rate: in Hz.
    """
    buffer = BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(array.shape[0])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((array.clip(-1, 1) * 32767).round().astype("<i2").T.tobytes())
    return buffer.getvalue()


def show_video(source: Cosmos3GenerationOutput | str | Path, *, width: int = 320) -> "Video":
    """A player for a notebook, with the video inside the page.

    Args:
        source: a finished clip, or an mp4 on disk.
        width: of the player in CSS pixels.
    """
    from tempfile import TemporaryDirectory

    from IPython.display import Video

    if isinstance(source, Cosmos3GenerationOutput):
        with TemporaryDirectory() as folder:
            return show_video(save_mp4(source, Path(folder) / "clip.mp4"), width=width)
    attributes = "controls loop playsinline"
    return Video(data=Path(source).read_bytes(), mimetype="video/mp4", embed=True, width=width, html_attributes=attributes)


def _check_encodable(shape: tuple[int, int, int], fps: float, waveform: np.ndarray | None, sample_rate: int | None) -> None:
    count, height, width = shape
    if count == 0 or height % 2 or width % 2:
        raise ValueError(f"got {count} frames of {height}x{width} pixels, expected at least 1 and even sizes (yuv420p)")
    check_fps(fps)
    if waveform is None:
        return
    if waveform.shape[1] == 0 or not np.isfinite(waveform).all():
        raise ValueError(f"got {waveform.shape[1]} samples of sound, expected at least 1 and only finite numbers")
    if sample_rate not in AAC_SAMPLE_RATES:
        raise ValueError(f"got a sample_rate of {sample_rate}, expected one that AAC has: {AAC_SAMPLE_RATES}")


def _audio_frame(waveform: np.ndarray, sample_rate: int) -> Any:  # noqa: ANN401  (av.AudioFrame; av is imported late)
    import av

    layout = "stereo" if waveform.shape[0] >= 2 else "mono"
    channels = 2 if layout == "stereo" else 1
    samples = np.ascontiguousarray(waveform[:channels].clip(-1, 1), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate, frame.pts = sample_rate, 0
    return frame
