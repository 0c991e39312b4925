"""Video latents to pixels and back: the Wan 2.2 VAE, one latent frame at a time.

Every convolution over time is causal: it sees two frames of the past and none of the future. So a clip is decoded in
chunks of one latent frame, each layer remembering the last two frames it saw (`CausalMemory`), with memory that does not
grow with the length of the clip. The first latent frame becomes one frame, every later one becomes four.

    latent * std + mean -> post_quant_conv -> decoder (mid block, then blocks that double time and space) -> unpatchify

Latents here are normalised (mean 0, std 1 per channel); the statistics are in `vae/config.json`.

Read next: `sound_avae.py`, `media.py`. Source: AutoencoderKLWan of diffusers 0.42.1; Wan team 2025, arXiv:2503.20314.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos3_lab.configs import read_fields


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


@dataclass
class CausalMemory:
    """What the layers remember of earlier chunks of one clip; make a new one for every clip.

    Attributes:
        frames: last frames that each layer received.
        first: whether the next chunk is the clip's first, which is treated differently all over this VAE.
    """

    frames: dict[nn.Module, Tensor] = field(default_factory=dict)
    first: bool = True


# ------------------------------------------------------------------------------------------------------------ blocks


class CausalConv3d(nn.Conv3d):
    """Convolution over time, rows and columns that sees two past frames (zeros before the clip)."""

    def __init__(self, channels_in: int, channels_out: int, *, spatial: int = 3) -> None:
        super().__init__(channels_in, channels_out, (3, spatial, spatial), padding=(0, spatial // 2, spatial // 2))

    def forward(self, x: Float[Tensor, "b c t h w"], memory: CausalMemory) -> Float[Tensor, "b d t h w"]:
        past = memory.frames.get(self)
        seen = F.pad(x, (0, 0, 0, 0, 2, 0)) if past is None else torch.cat([past, x], dim=2)
        memory.frames[self] = seen[:, :, -2:].clone()  # a clone, or the slice would keep the whole chunk alive
        return super().forward(seen)


class ChannelNorm(nn.Module):
    """`x / ||x|| * sqrt(C) * gamma`, the norm taken over the channels of each pixel."""

    def __init__(self, channels: int, *, axes: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * axes))

    def forward(self, x: Float[Tensor, "b c ..."]) -> Float[Tensor, "b c ..."]:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min(1e-12)
        return x * (x.shape[1] ** 0.5 / length).to(x.dtype) * self.gamma


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input (through a 1x1x1 convolution where the width changes)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels_in)
        self.conv1 = CausalConv3d(channels_in, channels_out)
        self.norm2 = ChannelNorm(channels_out)
        self.conv2 = CausalConv3d(channels_out, channels_out)
        if channels_in != channels_out:
            self.conv_shortcut = nn.Conv3d(channels_in, channels_out, 1)

    def forward(self, x: Float[Tensor, "b c t h w"], memory: CausalMemory) -> Float[Tensor, "b d t h w"]:
        shortcut = self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        x = self.conv1(F.silu(self.norm1(x)), memory)
        return shortcut + self.conv2(F.silu(self.norm2(x)), memory)


class FrameAttention(nn.Module):
    """Every pixel of a frame attends to every pixel of the same frame; one head as wide as the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, axes=2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b c t h w"]:
        frames = rearrange(x, "b c t h w -> (b t) c h w")
        q, k, v = rearrange(self.to_qkv(self.norm(frames)), "n (three c) h w -> three n 1 (h w) c", three=3)
        seen = F.scaled_dot_product_attention(q, k, v)
        out = self.proj(rearrange(seen, "n 1 (h w) c -> n c h w", h=x.shape[-2]).contiguous())
        return x + rearrange(out, "(b t) c h w -> b c t h w", b=len(x))


class MidBlock(nn.Module):
    """Residual block, attention within frames, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList([FrameAttention(channels)])

    def forward(self, x: Float[Tensor, "b c t h w"], memory: CausalMemory) -> Float[Tensor, "b c t h w"]:
        x = self.attentions[0](self.resnets[0](x, memory))
        return self.resnets[1](x, memory)


class Upsampler(nn.Module):
    """Twice the rows and columns; with `time`, twice the frames too, except for the clip's first."""

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        # Index 1 in the checkpoint's names; index 0 is the nearest-neighbour doubling, which has no weights.
        self.resample = nn.ModuleList([nn.Identity(), nn.Conv2d(channels, channels, 3, padding=1)])
        if time:
            self.time_conv = CausalConv3d(channels, 2 * channels, spatial=1)

    def forward(self, x: Float[Tensor, "b c t h w"], memory: CausalMemory) -> Float[Tensor, "b c t2 h2 w2"]:
        if hasattr(self, "time_conv") and not memory.first:
            # The two halves of the channels become two consecutive frames. The first chunk is not remembered.
            x = rearrange(self.time_conv(x, memory), "b (two c) t h w -> b c (t two) h w", two=2)
        frames = F.interpolate(rearrange(x, "b c t h w -> (b t) c h w"), scale_factor=2.0, mode="nearest-exact")
        return rearrange(self.resample[1](frames), "(b t) c h w -> b c t h w", b=len(x))


class UpBlock(nn.Module):
    """Residual blocks and an upsampler, beside a shortcut that only copies."""

    def __init__(self, channels_in: int, channels_out: int, *, blocks: int, upsample: bool, time: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.channels_out, self.time = channels_out, time
        if upsample:
            self.upsampler = Upsampler(channels_out, time=time)

    def forward(self, x: Float[Tensor, "b c t h w"], memory: CausalMemory) -> Float[Tensor, "b d t2 h2 w2"]:
        before = x
        for resnet in self.resnets:
            x = resnet(x, memory)
        if not hasattr(self, "upsampler"):
            return x
        return self.upsampler(x, memory) + self._shortcut(before, memory)

    def _shortcut(self, x: Tensor, memory: CausalMemory) -> Tensor:
        """Deal the channels out over the new frames, rows and columns, repeated as often as needed."""
        factor = 2 if self.time else 1
        copies = self.channels_out * factor * 4 // x.shape[1]
        x = repeat(x, "b c t h w -> b (c copies) t h w", copies=copies)
        x = rearrange(x, "b (d a p q) t h w -> b d (t a) (h p) (w q)", a=factor, p=2, q=2)
        return x[:, :, factor - 1 :] if memory.first else x


class Downsampler(nn.Module):
    """Half the rows and columns; with `time`, half the frames too, except for the clip's first."""

    def __init__(self, channels: int, *, time: bool) -> None:
        super().__init__()
        self.resample = nn.ModuleList([nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2)])
        if time:
            self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1))

    def forward(self, x: Float[Tensor, "b c t h w"], memory: CausalMemory) -> Float[Tensor, "b c t2 h2 w2"]:
        frames = self.resample[1](self.resample[0](rearrange(x, "b c t h w -> (b t) c h w")))
        x = rearrange(frames, "(b t) c h w -> b c t h w", b=len(x))
        if not hasattr(self, "time_conv"):
            return x
        past = memory.frames.get(self)
        memory.frames[self] = x[:, :, -1:].clone()
        return x if past is None else self.time_conv(torch.cat([past, x], dim=2))


class DownBlock(nn.Module):
    """Residual blocks and a downsampler, beside a shortcut that only averages."""

    def __init__(self, channels_in: int, channels_out: int, *, blocks: int, downsample: bool, time: bool) -> None:
        super().__init__()
        widths = [channels_in] + [channels_out] * blocks
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.channels_out, self.time = channels_out, time
        if downsample:
            self.downsampler = Downsampler(channels_out, time=time)

    def forward(self, x: Float[Tensor, "b c t h w"], memory: CausalMemory) -> Float[Tensor, "b d t2 h2 w2"]:
        shortcut = self._shortcut(x)
        for resnet in self.resnets:
            x = resnet(x, memory)
        return (self.downsampler(x, memory) if hasattr(self, "downsampler") else x) + shortcut

    def _shortcut(self, x: Tensor) -> Tensor:
        """Fold frames, rows and columns into channels and average neighbours; missing first frames are zeros."""
        time, space = (2 if self.time else 1), (2 if hasattr(self, "downsampler") else 1)
        x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0))
        x = rearrange(x, "b c (t a) (h p) (w q) -> b (c a p q) t h w", a=time, p=space, q=space)
        return rearrange(x, "b (d group) t h w -> b d group t h w", d=self.channels_out).mean(dim=2)


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
        for block in self.up_blocks:
            x = block(x, memory)
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


@torch.no_grad()
def iter_decode_video(vae: VideoVAE, video: Float[Tensor, "b c t h w"]) -> Iterator[Float[Tensor, "b 3 frames height width"]]:
    """Decode one latent frame at a time: yields 1 frame, then 4 at a time, float32 pixels in [0, 1].

    Args:
        vae: on the latents' device.
        video: normalised latents `[b, C, t, h, w]` as they come out of denoising.
    """
    weight, patch = vae.post_quant_conv.weight, vae.config.patch_size
    z = denormalize(vae.config, video.float()).to(weight.dtype)
    z, memory = vae.post_quant_conv(z), CausalMemory()
    for chunk in z.split(1, dim=2):
        patched = vae.decoder(chunk, memory)
        memory.first = False
        # Channel order of the VAE's own patches: colour, column, row (the transformer's patches go row, column).
        pixels = rearrange(patched, "b (c q p) t h w -> b c t (h p) (w q)", p=patch, q=patch)
        yield ((pixels.float() + 1) / 2).clamp(0, 1)


def decode_video(vae: VideoVAE, video: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 frames height width"]:
    """Latents to pixels, the whole clip at once; see `iter_decode_video` for the memory-saving form.

    Args:
        vae: on the latents' device.
        video: normalised latents `[b, C, t, h, w]`.

    Returns:
        float32 in [0, 1], `[b, 3, 4 (t - 1) + 1, spatial * h, spatial * w]`.
    """
    return torch.cat(list(iter_decode_video(vae, video)), dim=2)


@torch.no_grad()
def encode_video(vae: VideoVAE, pixels: Float[Tensor, "b 3 frames height width"]) -> Float[Tensor, "b c t h w"]:
    """Pixels to normalised latents (the posterior's mean). Frames beyond 4k + 1 are dropped.

    Args:
        vae: with its encoder, on the pixels' device.
        pixels: in [0, 1]; height and width multiples of the VAE's factor (16 on Nano).

    Raises:
        ValueError: the VAE was loaded without its encoder, or the size does not fit.
    """
    c = vae.config
    if not hasattr(vae, "encoder"):
        raise ValueError("got a VAE without its encoder, load it with load_cosmos3(..., load_encoder=True)")
    if pixels.shape[-2] % c.scale_factor_spatial or pixels.shape[-1] % c.scale_factor_spatial:
        raise ValueError(f"got {tuple(pixels.shape[-2:])} pixels, expected multiples of {c.scale_factor_spatial}")
    x = (pixels * 2 - 1).to(vae.quant_conv.weight.dtype)
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
