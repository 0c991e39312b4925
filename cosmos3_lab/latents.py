"""Noise in the model's own space: the record that every denoising step reads and writes.

Symbols: `video` is the latent `[1, C, t, h, w]` of the Wan 2.2 VAE (4x fewer frames, 16x fewer rows and columns on
Nano); `sound` is the latent `[1, n_sound, d_sound]` of the AVAE (25 a second), token-major. At sigma = 1 both are
standard normal noise; nothing is scaled. `patchify` turns the video latent into the tokens that the GEN tower reads.

Read next: `schedule.py` (how noise level goes down), `transformer.py` (who reads the tokens).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cosmos3_lab.configs import check_choice, whole_number
from cosmos3_lab.showing import Shown


@dataclass(frozen=True, eq=False)
class Latents(Shown):
    """Video latent and, in T2AV, sound latent of one sample. Also the layout of velocities and of x0.

    Attributes:
        video: `[1, C, t, h, w]`, float. (Only `pico`, which trains and scores on batches, has more than one sample.)
        sound: `[1, n_sound, d_sound]`, float, or None for a silent video.
    """

    video: Float[Tensor, "b c t h w"]
    sound: Float[Tensor, "b n_sound d_sound"] | None = None

    def map(self, fn: Callable[..., Tensor], *others: "Latents") -> "Latents":
        """Apply `fn` to the video tensors, and to the sound tensors where there is sound.

        Args:
            fn: takes one tensor of this record and one of each of `others`, returns a tensor.
            others: records with the same modalities.
        """
        video = fn(self.video, *(o.video for o in others))
        if self.sound is None:
            return Latents(video)
        return Latents(video, fn(self.sound, *(o.sound for o in others)))

    def tensors(self) -> list[Float[Tensor, "..."]]:
        """The video tensor and, where there is sound, the sound tensor."""
        return [self.video] if self.sound is None else [self.video, self.sound]

    def to(self, *args: torch.device | torch.dtype | str) -> "Latents":
        """`Tensor.to` on both modalities."""
        return self.map(lambda x: x.to(*args))

    def __repr__(self) -> str:
        sound = "" if self.sound is None else f", sound={list(self.sound.shape)}"
        return f"Latents(video={list(self.video.shape)}{sound}, {self.video.dtype}, {self.video.device})"


NoiseSource = Literal["numpy", "torch"]
LARGEST_SEED = 2**32 - 1  # NumPy's


def init_latents(
    video_shape: tuple[int, int, int],
    *,
    channels: int = 48,
    sound_frames: int | None = None,
    sound_dim: int = 64,
    seed: int = 42,
    noise_source: NoiseSource = "numpy",
    device: torch.device | str = "cpu",
) -> Latents:
    """Draw the initial noise, float32, always on the CPU (so that a seed means the same noise on every device).

    Args:
        video_shape: latent grid `(t, h, w)`, see `pixel_to_latent_shape`.
        channels: video latent channels C (48 on Nano).
        sound_frames: number of sound latents, None for a silent video.
        sound_dim: width of a sound latent (64 on Nano).
        seed: integer in [0, 2**32 - 1].
        noise_source: "numpy" (PhyAI and NVIDIA's framework: one fresh `RandomState(seed)` per modality, so the sound
            noise repeats the first numbers of the video noise) or "torch" (diffusers: one generator, video then sound).
        device: where the noise goes after it was drawn.

    Returns:
        `Latents` with `video` `[1, channels, t, h, w]` and `sound` `[1, sound_frames, sound_dim]` or None.

    Raises:
        ValueError: the seed is out of range, or there is no such source.
    """
    seed = whole_number("seed", seed, 0, LARGEST_SEED)
    check_choice("noise_source", noise_source, NoiseSource)
    draw = _numpy_draw(seed) if noise_source == "numpy" else _torch_draw(seed)
    video = draw((1, channels, *video_shape))
    sound = None if sound_frames is None else draw((sound_dim, sound_frames))  # channel-major, as the references draw it
    sound_tokens = None if sound is None else rearrange(sound, "d n -> 1 n d").contiguous().to(device)
    return Latents(video.to(device), sound_tokens)


def _numpy_draw(seed: int) -> Callable[[tuple[int, ...]], Tensor]:
    """A fresh stream for every call, from the same seed."""
    return lambda shape: torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype(np.float32))


def _torch_draw(seed: int) -> Callable[[tuple[int, ...]], Tensor]:
    """One stream for all calls."""
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


def patchify(video: Float[Tensor, "1 c t h w"], patch: int = 2) -> Float[Tensor, "n_video d_patch"]:
    """Cut the video latent into tokens of `patch` x `patch` latent pixels.

    Odd heights and widths are padded with zeros at the bottom and right. Token order is frame, row, column; inside a
    token the order is row, column, channel with the channel fastest (`proj_in.weight` expects exactly this).

    Args:
        video: `[1, C, t, h, w]`.
        patch: side of a patch in latent pixels.

    Returns:
        `[t * ceil(h / patch) * ceil(w / patch), patch * patch * C]`.
    """
    height, width = video.shape[-2:]
    padded = F.pad(video, (0, -width % patch, 0, -height % patch))
    return rearrange(padded, "1 c t (h p) (w q) -> (t h w) (p q c)", p=patch, q=patch)


def unpatchify(
    tokens: Float[Tensor, "n_video d_patch"], video_shape: tuple[int, int, int], patch: int = 2
) -> Float[Tensor, "1 c t h w"]:
    """Inverse of `patchify`: reassemble the latent and crop the padding.

    Args:
        tokens: `[t * ceil(h / patch) * ceil(w / patch), patch * patch * C]`.
        video_shape: `(t, h, w)` of the latent.
        patch: side of a patch in latent pixels.
    """
    t, height, width = video_shape
    grid = {"t": t, "h": -(-height // patch), "w": -(-width // patch)}
    video = rearrange(tokens, "(t h w) (p q c) -> 1 c t (h p) (w q)", p=patch, q=patch, **grid)
    return video[..., :height, :width]
