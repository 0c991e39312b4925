"""The last arrow: pixels and waveform become frames, an mp4, and something to play in a notebook.

Source of the encoding settings (h264, yuv420p, crf 18, AAC): PhyAI's `Cosmos3GenerationPostProcessor`.
"""

from dataclasses import dataclass
from fractions import Fraction
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
    import av

    path, (_, height, width, _) = Path(path), output.frames.shape
    if path.suffix != ".mp4":
        raise ValueError(f"got {path.name}, expected a file name that ends in .mp4")
    _check_encodable(output)
    with replacing(path) as temporary, av.open(str(temporary), "w") as container:
        rate = Fraction(output.fps).limit_denominator(10000)
        video = container.add_stream("h264", rate=rate)
        video.width, video.height, video.pix_fmt, video.options = width, height, "yuv420p", {"crf": str(crf)}
        audio = None
        if output.waveform is not None:
            layout = "stereo" if output.waveform.shape[0] >= 2 else "mono"
            audio = container.add_stream("aac", rate=output.sample_rate, layout=layout)
        for index, image in enumerate(output.frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            container.mux(audio.encode(_audio_frame(output.waveform, output.sample_rate)))
            container.mux(audio.encode(None))
    return path


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


def _check_encodable(output: Cosmos3GenerationOutput) -> None:
    count, height, width, _ = output.frames.shape
    if count == 0 or height % 2 or width % 2:
        raise ValueError(f"got {count} frames of {height}x{width} pixels, expected at least 1 and even sizes (yuv420p)")
    check_fps(output.fps)
    if output.waveform is None:
        return
    if output.waveform.shape[1] == 0 or not np.isfinite(output.waveform).all():
        raise ValueError(f"got {output.waveform.shape[1]} samples of sound, expected at least 1 and only finite numbers")
    if output.sample_rate not in AAC_SAMPLE_RATES:
        raise ValueError(f"got a sample_rate of {output.sample_rate}, expected one that AAC has: {AAC_SAMPLE_RATES}")


def _audio_frame(waveform: np.ndarray, sample_rate: int) -> Any:  # noqa: ANN401  (av.AudioFrame; av is imported late)
    import av

    layout = "stereo" if waveform.shape[0] >= 2 else "mono"
    channels = 2 if layout == "stereo" else 1
    samples = np.ascontiguousarray(waveform[:channels].clip(-1, 1), dtype=np.float32)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate, frame.pts = sample_rate, 0
    return frame
