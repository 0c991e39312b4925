"""What stands between two convolutions of a decoder, each as one pass over memory (Triton, for NVIDIA GPUs).

Video lies with its channels innermost, so that one row of memory is one pixel; sound with its samples innermost. Computed in
float32, rounded once.
Imported only where there is a GPU and Triton. Read next: `fused_vae.py`, which puts them together.
"""

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from cosmos3_lab.kernels import jit

NUMBERS = 4096  # of a block of pixels, whatever their number of channels


def norm_silu(
    x: Float[Tensor, "1 c t h w"],
    gamma: Float[Tensor, "c ..."],
    out: Float[Tensor, "1 c t h w"],
    *,
    bias: Float[Tensor, " c"] | None = None,
) -> None:
    """`silu(norm(x + bias))`, where the norm is `ChannelNorm`.

    Args:
        x: channels innermost, without gaps.
        gamma: gain of each channel.
        out: where to write; as `x`.
        bias: of the convolution that `x` comes from.
    """
    channels, pixels = x.shape[1], x.numel() // x.shape[1]
    block, rows = _block_of(channels)
    _norm_silu[(triton.cdiv(pixels, rows),)](
        x, gamma, x if bias is None else bias, out, pixels, channels, block, rows, bias is not None, num_warps=4
    )


def add_bias(x: Float[Tensor, "1 c t h w"], bias: Float[Tensor, " c"], other: Float[Tensor, "1 c t h w"]) -> None:
    """`x += bias + other`.

    Args:
        x, other: channels innermost, without gaps.
        bias: of the convolution that `x` comes from.
    """
    channels = x.shape[1]
    _add_bias[(triton.cdiv(x.numel(), NUMBERS),)](x, bias, other, x.numel(), channels, NUMBERS, num_warps=4)


def double(
    x: Float[Tensor, "1 times_c t h w"], *, times: int, bias: Float[Tensor, " times_c"] | None = None
) -> Float[Tensor, "t2 c h2 w2"]:
    """`x + bias`, every pixel four times; the parts of the channels become frames, one after the other.

    Args:
        x: channels innermost, without gaps.
        times: parts, 1 or 2.
        bias: of the convolution that `x` comes from, where it is still to be added.
    """
    _, both, frames, height, width = x.shape
    channels = both // times
    out = x.new_empty(frames * times, 2 * height, 2 * width, channels)
    block, rows = _block_of(channels)
    grid = (triton.cdiv(width, rows), height, frames * times)
    _double[grid](x, x if bias is None else bias, out, height, width, channels, times, block, rows, bias is not None, num_warps=4)
    return out.permute(0, 3, 1, 2)


def add_upsampled(
    x: Float[Tensor, "1 c t h w"], bias: Float[Tensor, " c"], small: Float[Tensor, "1 d t2 h2 w2"], *, skip: int
) -> None:
    """`x += bias + s`, where s deals the channels of `small` out over frames, rows and columns (`UpBlock`'s shortcut).

    Args:
        x: channels innermost, without gaps.
        bias: of the convolution that `x` comes from.
        small: half the rows and columns, and as many or half the frames (and one more or less).
        skip: frames to leave out at the start, 1 in the first chunk of a block that doubles time.
    """
    _, channels, frames, height, width = x.shape
    times = 2 if frames + skip > small.shape[2] else 1
    copies = channels * times * 4 // small.shape[1]
    block, rows = _block_of(channels)
    grid = (triton.cdiv(width, rows), height, frames)
    shape = height, width, channels, small.shape[1]
    _add_upsampled[grid](x, bias, small, skip, *shape, times, copies, block, rows, num_warps=4)


def snake(x: Float[Tensor, "b c n"], alpha: Float[Tensor, "1 c 1"], beta: Float[Tensor, "1 c 1"]) -> Float[Tensor, "b c n"]:
    """`sound_avae.Snake`.

    Args:
        x: contiguous.
        alpha, beta: on a log scale.
    """
    out, samples = torch.empty_like(x), x.shape[2]
    grid = (x.shape[0] * x.shape[1], triton.cdiv(samples, NUMBERS))
    _snake[grid](x, alpha, beta, out, samples, x.shape[1], NUMBERS, num_warps=4)
    return out


def _block_of(channels: int) -> tuple[int, int]:
    """Room for the channels of one pixel, a power of two as Triton wants it, and pixels of a block."""
    room = triton.next_power_of_2(channels)
    return room, max(1, NUMBERS // room)


@jit
def _snake(x, alpha, beta, out, samples, channels, block: tl.constexpr):
    row, sample = tl.program_id(0), tl.program_id(1) * block + tl.arange(0, block)
    at = row.to(tl.int64) * samples + sample
    speed = tl.exp(tl.load(alpha + row % channels).to(tl.float32))
    size = tl.exp(tl.load(beta + row % channels).to(tl.float32))
    values = tl.load(x + at, sample < samples, 0.0).to(tl.float32)
    wave = tl.sin(speed * values)
    tl.store(out + at, (values + wave * wave / (size + 1e-9)).to(out.dtype.element_ty), sample < samples)


@jit
def _norm_silu(
    x, gamma, bias, out, pixels, channels: tl.constexpr, block: tl.constexpr, rows: tl.constexpr, biased: tl.constexpr
):
    row = (tl.program_id(0).to(tl.int64) * rows + tl.arange(0, rows))[:, None]
    channel = tl.arange(0, block)[None, :]
    inside = (row < pixels) & (channel < channels)
    at = row * channels + channel
    values = tl.load(x + at, inside, 0.0).to(tl.float32)
    if biased:
        values += tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(tl.sum(values * values, 1)), 1e-12)[:, None]
    root: tl.constexpr = channels**0.5
    values *= root / length * tl.load(gamma + channel, channel < channels, 0.0).to(tl.float32)
    tl.store(out + at, (values * tl.sigmoid(values)).to(out.dtype.element_ty), inside)


@jit
def _add_bias(x, bias, other, count, channels: tl.constexpr, block: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < count
    values = tl.load(x + at, inside, 0.0).to(tl.float32) + tl.load(bias + at % channels, inside, 0.0).to(tl.float32)
    values += tl.load(other + at, inside, 0.0).to(tl.float32)
    tl.store(x + at, values.to(x.dtype.element_ty), inside)


@jit
def _double(
    x,
    bias,
    out,
    height,
    width,
    channels: tl.constexpr,
    times: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
    biased: tl.constexpr,
):
    column = (tl.program_id(0) * rows + tl.arange(0, rows))[:, None]
    row, frame = tl.program_id(1), tl.program_id(2)
    channel = tl.arange(0, block)[None, :]
    inside = (column < width) & (channel < channels)
    pixel = ((frame // times).to(tl.int64) * height + row) * width + column
    read = frame % times * channels + channel
    values = tl.load(x + pixel * (times * channels) + read, inside, 0.0).to(tl.float32)
    if biased:
        values += tl.load(bias + read, channel < channels, 0.0).to(tl.float32)
    values = values.to(out.dtype.element_ty)
    corner = ((frame.to(tl.int64) * 2 * height + 2 * row) * 2 * width + 2 * column) * channels + channel
    for below in tl.static_range(2):
        for right in tl.static_range(2):
            tl.store(out + corner + (below * 2 * width + right) * channels, values, inside)


@jit
def _add_upsampled(
    x,
    bias,
    small,
    skip,
    height,
    width,
    channels: tl.constexpr,
    small_channels: tl.constexpr,
    times: tl.constexpr,
    copies: tl.constexpr,
    block: tl.constexpr,
    rows: tl.constexpr,
):
    column = (tl.program_id(0) * rows + tl.arange(0, rows))[:, None]
    row, frame = tl.program_id(1), tl.program_id(2)
    channel = tl.arange(0, block)[None, :]
    inside = (column < width) & (channel < channels)
    at = ((frame.to(tl.int64) * height + row) * width + column) * channels + channel
    late = frame + skip
    # Among the copies of small's channels, this output's comes after the channel, the frame, the row and the column.
    dealt = ((channel * times + late % times) * 2 + row % 2) * 2 + column % 2
    pixel = ((late // times).to(tl.int64) * (height // 2) + row // 2) * (width // 2) + column // 2
    values = tl.load(x + at, inside, 0.0).to(tl.float32) + tl.load(bias + channel, channel < channels, 0.0).to(tl.float32)
    values += tl.load(small + pixel * small_channels + dealt // copies, inside, 0.0).to(tl.float32)
    tl.store(x + at, values.to(x.dtype.element_ty), inside)
