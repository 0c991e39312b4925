"""Video latents to pixels and back: the Wan 2.2 VAE, a few latent frames at a time.

Every convolution over time is causal: it sees two frames of the past and none of the future. So a clip is decoded in
chunks, each layer remembering the last two frames it saw (`CausalMemory`), with memory that does not grow with the length
of the clip. The first latent frame becomes one frame, every later one becomes four.

    latent * std + mean -> post_quant_conv -> decoder (mid block, then blocks that double time and space) -> unpatchify

Latents here are normalised (mean 0, std 1 per channel); the statistics are in `vae/config.json`.

Read next: `sound_avae.py`, `media.py`. Source: AutoencoderKLWan of diffusers 0.42.1; Wan team 2025, arXiv:2503.20314.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos3_lab.configs import read_fields
from cosmos3_lab.vae_blocks import CausalConv3d, CausalMemory, ChannelNorm, DownBlock, MidBlock, UpBlock, fuses


@dataclass(frozen=True)
class VideoVAEConfig:
    """The keys of `vae/config.json` that matter here, with Nano's values (the file spells "temperal")."""

    base_dim: int = 160
    decoder_base_dim: int = 256
    z_dim: int = 48
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    in_channels: int = 12
    out_channels: int = 12
    patch_size: int = 2
    scale_factor_temporal: int = 4
    scale_factor_spatial: int = 16
    latents_mean: tuple[float, ...] = (0.0,) * 48
    latents_std: tuple[float, ...] = (1.0,) * 48

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "VideoVAEConfig":
        """Read `vae/config.json`.

        Raises:
            ValueError: another VAE than Wan 2.2's, or a file that contradicts itself.
        """
        if not config.get("is_residual", False) or config.get("attn_scales"):
            raise ValueError("vae/config.json is not a Wan 2.2 VAE (expected is_residual true and attn_scales empty)")
        known = read_fields(cls, config, file="vae/config.json", signed=("latents_mean",), required=VAE_KEYS)
        built = cls(**{"decoder_base_dim": known.get("base_dim", cls.base_dim), **known})
        built._check()
        return built

    def _check(self) -> None:
        if len(self.latents_mean) != self.z_dim or len(self.latents_std) != self.z_dim:
            raise ValueError(f"vae/config.json: expected {self.z_dim} numbers in latents_mean and latents_std")
        if len(self.temperal_downsample) != len(self.dim_mult) - 1:
            raise ValueError("vae/config.json: expected one temperal_downsample fewer than dim_mult")
        if not self.in_channels == self.out_channels == 3 * self.patch_size**2:
            raise ValueError(f"vae/config.json: expected in_channels and out_channels of {3 * self.patch_size**2}")
        spatial = self.patch_size * 2 ** len(self.temperal_downsample)
        temporal = 2 ** sum(self.temperal_downsample)
        if (spatial, temporal) != (self.scale_factor_spatial, self.scale_factor_temporal):
            raise ValueError(
                f"vae/config.json: the layers compress {spatial}x in space and {temporal}x in time, but the file says "
                f"{self.scale_factor_spatial}x and {self.scale_factor_temporal}x"
            )


# Without these the file would load and decode wrongly; the others are checked against the weights' shapes.
VAE_KEYS = ("z_dim", "base_dim", "dim_mult", "num_res_blocks", "temperal_downsample", "latents_mean", "latents_std")


class VideoDecoder(nn.Module):
    """Latent chunk to VAE-patched pixels (checkpoint keys `decoder.*`)."""

    def __init__(self, c: VideoVAEConfig) -> None:
        super().__init__()
        mults, times = c.dim_mult[::-1], c.temperal_downsample[::-1]
        widths = [c.decoder_base_dim * m for m in (mults[0], *mults)]
        self.conv_in = CausalConv3d(c.z_dim, widths[0])
        self.mid_block = MidBlock(widths[0])
        self.up_blocks = nn.ModuleList(
            UpBlock(a, b, blocks=c.num_res_blocks + 1, upsample=i < len(times), time=i < len(times) and times[i])
            for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], c.out_channels)

    def forward(self, z: Float[Tensor, "b c t h w"], memory: CausalMemory) -> Float[Tensor, "b d t2 h2 w2"]:
        x = self.mid_block(self.conv_in(z, memory), memory)
        *blocks, last = self.up_blocks
        for block in blocks:
            x = block(x, memory)
        # The last block has the most pixels and does not change their number, so it can take large frames two by two.
        at_once = max(2, PIXELS_AT_ONCE // (x.shape[-2] * x.shape[-1]))
        return torch.cat([self._finish(last(part, memory), memory) for part in x.split(at_once, dim=2)], dim=2)

    def _finish(self, x: Float[Tensor, "b c t h w"], memory: CausalMemory) -> Float[Tensor, "b d t h w"]:
        if fuses(self, x):
            from cosmos3_lab.fused_vae import normed_conv  # imports Triton

            with torch.cuda.device_of(x):  # Triton starts kernels on the current GPU
                return normed_conv(self.norm_out, self.conv_out, x, memory, add_own_bias=True)
        return self.conv_out(F.silu(self.norm_out(x)), memory)


class VideoEncoder(nn.Module):
    """VAE-patched pixels to mean and log-variance (checkpoint keys `encoder.*`)."""

    def __init__(self, c: VideoVAEConfig) -> None:
        super().__init__()
        widths, times = [c.base_dim * m for m in (1, *c.dim_mult)], c.temperal_downsample
        self.conv_in = CausalConv3d(c.in_channels, widths[0])
        self.down_blocks = nn.ModuleList(
            DownBlock(a, b, blocks=c.num_res_blocks, downsample=i < len(times), time=i < len(times) and times[i])
            for i, (a, b) in enumerate(zip(widths, widths[1:], strict=False))
        )
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], 2 * c.z_dim)

    def forward(self, x: Float[Tensor, "b c t h w"], memory: CausalMemory) -> Float[Tensor, "b d t2 h2 w2"]:
        x = self.conv_in(x, memory)
        for block in self.down_blocks:
            x = block(x, memory)
        x = self.mid_block(x, memory)
        return self.conv_out(F.silu(self.norm_out(x)), memory)


class VideoVAE(nn.Module):
    """Weights of the Wan 2.2 VAE.

    Args:
        config: shapes and latent statistics.
        with_encoder: False leaves the encoder out (its weights are then not read); generation only decodes.
    """

    def __init__(self, config: VideoVAEConfig, *, with_encoder: bool = True) -> None:
        super().__init__()
        self.config = config
        self.decoder = VideoDecoder(config)
        self.post_quant_conv = nn.Conv3d(config.z_dim, config.z_dim, 1)
        if with_encoder:
            self.encoder = VideoEncoder(config)
            self.quant_conv = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)


# --------------------------------------------------------------------------------------------------------- functions

# Frames x rows x columns that the decoder's last block takes at once: two frames of 720x1280, all four of 480x832.
PIXELS_AT_ONCE = 500_000
# Latent pixels that are worth a chunk: four of pico's latent frames, so that two CPU cores decode its clip in half the time.
BUSY = 600


def use_channels_last(vae: nn.Module) -> None:
    """Lay the weights of the convolutions out with the channels innermost: the activations follow, and it is faster so.

    Args:
        vae: the VAE or a part of it, with its weights; changed in place.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def iter_decode_video(
    vae: VideoVAE, video: Float[Tensor, "b c t h w"], *, latents_at_once: int | None = None
) -> Iterator[Float[Tensor, "b 3 frames height width"]]:
    """Decode chunk by chunk: yields 1 frame, then 4 for every latent frame of a chunk, float32 pixels in [0, 1].

    Args:
        vae: on whatever device; the latents are brought there.
        video: normalised latents `[b, C, t, h, w]` as they come out of denoising.
        latents_at_once: latent frames in a chunk (the first is always alone); None is 1, and more for small frames, whose
            layers alone would not keep the device busy. Pixels differ by rounding alone.

    Raises:
        ValueError: fewer than one latent frame at once.
    """
    at_once = max(1, BUSY // (video.shape[-2] * video.shape[-1])) if latents_at_once is None else latents_at_once
    if at_once < 1:
        raise ValueError(f"got latents_at_once={latents_at_once}, expected at least 1, or None")
    weight, patch = vae.post_quant_conv.weight, vae.config.patch_size
    z = denormalize(vae.config, video.float()).to(weight.device, weight.dtype, memory_format=torch.channels_last_3d)
    z, memory = vae.post_quant_conv(z), CausalMemory()
    for chunk in [z] if z.shape[2] == 1 else [z[:, :, :1], *z[:, :, 1:].split(at_once, dim=2)]:
        patched = vae.decoder(chunk, memory)
        memory.first = False
        # Channel order of the VAE's own patches: colour, column, row (the transformer's patches go row, column).
        pixels = rearrange(patched, "b (c q p) t h w -> b c t (h p) (w q)", p=patch, q=patch)
        yield ((pixels.float() + 1) / 2).clamp(0, 1)


def decode_video(vae: VideoVAE, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 frames height width"]:
    """Latents to pixels, the whole clip at once; see `iter_decode_video` for the memory-saving form.

    Args:
        vae: on whatever device; the latents are brought there.
        video: normalised latents `[b, C, t, h, w]`.

    Returns:
        float32 in [0, 1], `[b, 3, 4 (t - 1) + 1, spatial * h, spatial * w]`.
    """
    return torch.cat(list(iter_decode_video(vae, video)), dim=2)


@torch.no_grad()
def encode_video(vae: VideoVAE, pixels: Float[Tensor, "b 3 frames height width"]) -> Float[Tensor, "b c t h w"]:
    """Pixels to normalised latents (the posterior's mean). Frames beyond 4k + 1 are dropped.

    Args:
        vae: with its encoder, on whatever device; the pixels are brought there.
        pixels: in [0, 1]; height and width multiples of the VAE's factor (16 on Nano).

    Raises:
        ValueError: the VAE was loaded without its encoder, or the size does not fit.
    """
    c = vae.config
    if not hasattr(vae, "encoder"):
        raise ValueError("got a VAE without its encoder, load it with load_cosmos3(..., load_encoder=True)")
    if pixels.shape[-2] % c.scale_factor_spatial or pixels.shape[-1] % c.scale_factor_spatial:
        raise ValueError(f"got {tuple(pixels.shape[-2:])} pixels, expected multiples of {c.scale_factor_spatial}")
    weight = vae.quant_conv.weight
    x = (pixels * 2 - 1).to(weight.device, weight.dtype)
    x = rearrange(x, "b c t (h p) (w q) -> b (c q p) t h w", p=c.patch_size, q=c.patch_size)
    chunks, memory = [1] + [c.scale_factor_temporal] * ((x.shape[2] - 1) // c.scale_factor_temporal), CausalMemory()
    moments = []
    for chunk in x[:, :, : sum(chunks)].split(chunks, dim=2):
        moments.append(vae.encoder(chunk, memory))
        memory.first = False
    mean = vae.quant_conv(torch.cat(moments, dim=2))[:, : c.z_dim]
    return normalize(c, mean.float())


def denormalize(config: VideoVAEConfig, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
    """`latent * std + mean` per channel: from the transformer's latents to the VAE's. Never apply it twice."""
    mean, std = _statistics(config, video)
    return video * std + mean


def normalize(config: VideoVAEConfig, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
    """`(latent - mean) / std` per channel, the inverse of `denormalize`."""
    mean, std = _statistics(config, video)
    return (video - mean) / std


def _statistics(config: VideoVAEConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    def channels(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)

    return channels(config.latents_mean), channels(config.latents_std)
