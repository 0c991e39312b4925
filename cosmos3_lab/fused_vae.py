"""Blocks of the video decoder for a GPU: the same blocks as in `vae_blocks.py`, with fewer passes over memory.

A norm with its SiLU is written straight into the room of the next convolution, behind the frames that it remembers; a
convolution's bias waits for whatever reads its result next; frames are doubled in every direction at once; the upsampler's
shortcut is added without being laid out.
Pixels differ from the plain blocks' by rounding alone. `vae_blocks.py` chooses.

Read next: `vae_kernels.py`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos3_lab.vae_kernels import add_bias, add_upsampled, double, norm_silu


def residual_block(block: nn.Module, x: Float[Tensor, "1 c t h w"], memory: Any) -> Float[Tensor, "1 d t h w"]:  # noqa: ANN401
    """What `ResidualBlock` computes.

    Args:
        block: with its weights.
        x: channels innermost.
        memory: of the clip.
    """
    x = innermost(x)
    y = normed_conv(block.norm1, block.conv1, x, memory)
    y = normed_conv(block.norm2, block.conv2, y, memory, bias=block.conv1.bias)
    shortcut = innermost(block.conv_shortcut(x)) if hasattr(block, "conv_shortcut") else x  # last: the most memory is gone
    add_bias(y, block.conv2.bias, shortcut)
    return y


def normed_conv(
    norm: nn.Module,
    conv: nn.Module,
    x: Float[Tensor, "1 c t h w"],
    memory: Any,  # noqa: ANN401
    *,
    bias: Float[Tensor, " c"] | None = None,
    add_own_bias: bool = False,
) -> Float[Tensor, "1 d t h w"]:
    """`conv(silu(norm(x + bias)))`.

    Args:
        norm, conv: with their weights.
        x: channels innermost.
        memory: of the clip.
        bias: of the convolution that `x` comes from, where it is still to be added.
        add_own_bias: False leaves the convolution's own bias to whoever reads the result.
    """
    seen = conv.room(x, memory)
    norm_silu(innermost(x), norm.gamma, seen[:, :, 2:], bias=bias)
    return innermost(conv.look(seen, memory, with_bias=add_own_bias))


def upsample(block: nn.Module, x: Float[Tensor, "1 c t h w"], before: Tensor, memory: Any) -> Float[Tensor, "1 c t2 h2 w2"]:  # noqa: ANN401
    """What the end of `UpBlock` computes: the upsampler, plus the shortcut from before the residual blocks.

    Args:
        block: with its upsampler.
        x: after the residual blocks.
        before: the block's input.
        memory: of the clip.
    """
    upsampler, conv = block.upsampler, block.upsampler.resample[1]
    if block.time and not memory.first:  # as in `Upsampler`
        both = upsampler.time_conv(x, memory, with_bias=False)
        frames = double(innermost(both), times=2, bias=upsampler.time_conv.bias)
    else:
        frames = double(innermost(x), times=1)
    y = innermost(F.conv2d(frames, conv.weight, padding=1).unflatten(0, (1, -1)).transpose(1, 2))
    add_upsampled(y, conv.bias, innermost(before), skip=1 if block.time and memory.first else 0)
    return y


def innermost(x: Float[Tensor, "1 c t h w"]) -> Float[Tensor, "1 c t h w"]:
    """The same with its channels innermost, as the kernels take it; cuDNN's convolutions give it so."""
    return x.contiguous(memory_format=torch.channels_last_3d)
