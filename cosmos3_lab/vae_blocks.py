"""What the video VAE is built from: convolutions that remember the past, residual blocks, samplers up and down.

Every layer takes a chunk of frames and the clip's `CausalMemory`, and gives the frames that follow from it. Tensors are
`[batch, channels, time, height, width]` in the order of their axes, and lie in memory with the channels innermost
(`torch.channels_last_3d`) where the weights do: convolutions are faster so, on a CPU and on a GPU.

Read next: `video_vae.py`. Source: AutoencoderKLWan of diffusers 0.42.1; Wan team 2025, arXiv:2503.20314.
"""

from dataclasses import dataclass, field

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos3_lab.fusing import can_fuse, is_watched


@dataclass
class CausalMemory:
    """What the layers remember of earlier chunks of one clip; make a new one for every clip.

    Attributes:
        frames: last frames that each layer received.
        first: whether the next chunk is the clip's first, which is treated differently all over this VAE.
    """

    frames: dict[nn.Module, Tensor] = field(default_factory=dict)
    first: bool = True

    def keep(self, layer: nn.Module, frames: Float[Tensor, "b c t h w"]) -> None:
        """Remember copies of these frames, in the place of the layer's earlier ones.

        Always in the same place: new tensors in every chunk would leave gaps all over the memory of a GPU. (And copies, as
        slices would keep the whole chunk alive.)
        """
        if layer in self.frames:
            self.frames[layer].copy_(frames)
        else:
            self.frames[layer] = frames.clone()


def fuses(block: nn.Module, x: Tensor) -> bool:
    """Whether the blocks of `fused_vae.py` stand for those here: for one clip on a GPU, where nobody looks inside."""
    return len(x) == 1 and can_fuse(x) and not is_watched(block)


class CausalConv3d(nn.Conv3d):
    """Convolution over time, rows and columns that sees two past frames (zeros before the clip)."""

    def __init__(self, channels_in: int, channels_out: int, *, spatial: int = 3) -> None:
        super().__init__(channels_in, channels_out, (3, spatial, spatial), padding=(0, spatial // 2, spatial // 2))

    def forward(
        self, x: Float[Tensor, "b c t h w"], memory: CausalMemory, *, with_bias: bool = True
    ) -> Float[Tensor, "b d t h w"]:
        seen = self.room(x, memory)
        seen[:, :, 2:] = x
        return self.look(seen, memory, with_bias=with_bias)

    def room(self, x: Float[Tensor, "b c t h w"], memory: CausalMemory) -> Float[Tensor, "b c t_and_2 h w"]:
        """The two past frames, and room for those of `x` behind them; channels innermost, whatever `x` was."""
        b, c, t, h, w = x.shape
        seen = x.new_empty(b, t + 2, h, w, c).movedim(-1, 1)
        seen[:, :, :2] = memory.frames.get(self, 0)
        return seen

    def look(
        self, seen: Float[Tensor, "b c t_and_2 h w"], memory: CausalMemory, *, with_bias: bool = True
    ) -> Float[Tensor, "b d t h w"]:
        """The convolution of what `room` gave and the caller filled; remembers its last frames."""
        memory.keep(self, seen[:, :, -2:])
        return self._conv_forward(seen, self.weight, self.bias if with_bias else None)


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
        if fuses(self, x):
            from cosmos3_lab.fused_vae import residual_block  # imports Triton

            with torch.cuda.device_of(x):  # Triton starts kernels on the current GPU
                return residual_block(self, x, memory)
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
        out = self.proj(rearrange(seen, "n 1 (h w) c -> n c h w", h=x.shape[-2]))
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
        b = len(x)
        if hasattr(self, "time_conv") and not memory.first:
            # The two halves of the channels become two consecutive frames. The first chunk is not remembered.
            x = rearrange(self.time_conv(x, memory), "b (two c) t h w -> b (t two) h w c", two=2).movedim(-1, 1)
        frames = F.interpolate(rearrange(x, "b c t h w -> (b t) c h w"), scale_factor=2.0, mode="nearest-exact")
        return rearrange(self.resample[1](frames), "(b t) c h w -> b c t h w", b=b)


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
        if fuses(self, x):
            from cosmos3_lab.fused_vae import upsample

            with torch.cuda.device_of(x):
                return upsample(self, x, before, memory)
        return self.upsampler(x, memory) + self._shortcut(before, memory)

    def _shortcut(self, x: Tensor, memory: CausalMemory) -> Tensor:
        """Deal the channels out over the new frames, rows and columns, repeated as often as needed."""
        factor = 2 if self.time else 1
        copies = self.channels_out * factor * 4 // x.shape[1]
        x = repeat(x, "b c t h w -> b (c copies) t h w", copies=copies)
        x = rearrange(x, "b (d a p q) t h w -> b (t a) (h p) (w q) d", a=factor, p=2, q=2).movedim(-1, 1)
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
        seen = None if past is None else torch.cat([past, x], dim=2)
        memory.keep(self, x[:, :, -1:])
        return x if seen is None else self.time_conv(seen)


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
