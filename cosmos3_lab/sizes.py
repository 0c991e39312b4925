"""Seconds and pixels on one side, latent frames, rows and columns on the other.

The video VAE keeps the first frame alone and then packs 4 frames into one latent frame, and 16 x 16 pixels into one latent
pixel (Nano; small checkpoints may pack 8 x 8); the sound AVAE packs 1920 audio samples into one latent, 25 a second.

Read next: `prompt.py`, whose metadata sentences state the same sizes to the model in words.
"""

import math
from dataclasses import dataclass
from typing import Literal

from cosmos3_lab.configs import check_choice, real_number, shown, whole_number

MAX_FRAMES = 100_000  # more than an hour at 24 frames a second


@dataclass(frozen=True)
class MediaSpec:
    """How a checkpoint measures media. The defaults are Cosmos3-Nano's.

    Attributes:
        temporal: video frames per latent frame (`vae/config.json: scale_factor_temporal`).
        spatial: pixels per latent row and column (`scale_factor_spatial`).
        channels: video latent channels (`transformer/config.json: latent_channel`).
        sampling_rate: audio samples a second (`sound_tokenizer/config.json: sampling_rate`).
        hop_size: audio samples per sound latent (`hop_size`).
        sound_dim: width of a sound latent (`transformer/config.json: sound_dim`), None without sound.
        sound_latent_fps: sound latents a second on the position axis (`sound_latent_fps`).
    """

    temporal: int = 4
    spatial: int = 16
    channels: int = 48
    sampling_rate: int = 48000
    hop_size: int = 1920
    sound_dim: int | None = 64
    sound_latent_fps: float = 25.0


NANO = MediaSpec()


def effective_num_frames(num_frames: int, *, temporal: int = 4) -> int:
    """The largest `temporal * k + 1` that is not above `num_frames` (100 -> 97): what the VAE can decode to.

    Raises:
        ValueError: not a whole number, or fewer than one frame.
    """
    return (whole_number("num_frames", num_frames, 1, MAX_FRAMES) - 1) // temporal * temporal + 1


def pixel_to_latent_shape(
    num_frames: int, height: int, width: int, *, temporal: int = 4, spatial: int = 16
) -> tuple[int, int, int]:
    """Latent grid `(t, h, w)` of a clip of `num_frames` x `height` x `width` pixels.

    Args:
        num_frames: rounded down to `temporal * k + 1`.
        height, width: in pixels, multiples of `spatial`.
        temporal, spatial: the VAE's factors (Nano 4 and 16).

    Raises:
        ValueError: a size that is not a positive multiple of `spatial`; names the two nearest.
    """
    for name, size in (("height", height), ("width", width)):
        size = whole_number(name, size, low=None)
        if size < spatial or size % spatial:
            below, above = size // spatial * spatial, max(size // spatial + 1, 1) * spatial
            nearest = f"{above}" if below < spatial else f"{below} or {above}"
            raise ValueError(f"got {name} {size}, expected a multiple of {spatial} pixels, try {nearest}")
    t = (effective_num_frames(num_frames, temporal=temporal) - 1) // temporal + 1
    return t, int(height) // spatial, int(width) // spatial


def latent_to_pixel_shape(video_shape: tuple[int, int, int], *, temporal: int = 4, spatial: int = 16) -> tuple[int, int, int]:
    """`(num_frames, height, width)` that a latent grid `(t, h, w)` decodes to, the inverse of `pixel_to_latent_shape`."""
    t, h, w = video_shape
    return (t - 1) * temporal + 1, h * spatial, w * spatial


def sound_latent_frames(
    num_frames: int,
    fps: float,
    *,
    sampling_rate: int = 48000,
    hop_size: int = 1920,
    rounding: Literal["integer", "float"] = "integer",
) -> int:
    """Number of sound latents that cover a clip, rounded up (189 frames at 24 fps: 197).

    Args:
        num_frames: video frames.
        fps: frames a second.
        sampling_rate, hop_size: the AVAE's (Nano 48000 Hz and 1920 samples).
        rounding: "integer" counts whole audio samples first (NVIDIA, diffusers); "float" is PhyAI's
            `ceil(seconds * 25.0)`, one more where the product lands a hair above an integer.

    Raises:
        ValueError: no such rounding, no frames, or no such frame rate.
    """
    check_choice("rounding", rounding, Literal["integer", "float"])
    num_frames = whole_number("num_frames", num_frames, 1, MAX_FRAMES)
    check_fps(fps)
    if rounding == "float":
        return math.ceil(num_frames / fps * (sampling_rate / hop_size))
    return -(-int(num_frames / fps * sampling_rate) // hop_size)


def check_fps(fps: float) -> None:
    """Refuse frame rates that no video has.

    Raises:
        ValueError: not a finite number from 1 to 240.
    """
    wanted = "a number from 1 to 240 (24 is what Nano was trained on)"
    if not 1 <= real_number("fps", fps, wanted) <= 240:
        raise ValueError(f"got fps {shown(fps)}, expected {wanted}")
