"""What stands between two matrix products of a GEN layer, each as one pass over memory (Triton, for NVIDIA GPUs).

PyTorch alone goes over the tensors several times: the rotation of one head is four products, two sums and a copy. Every kernel
here reads its input once, computes in float32, and writes its result once. Where the next matrix product is one of 8-bit
numbers, it writes those and their scales (`Rows8`) instead.

Imported only where there is a GPU and Triton. Read next: `fused.py`, which puts them together.
"""

from collections.abc import Callable
from inspect import unwrap
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Float32
from torch import Tensor

from cosmos3_lab.quantized import EIGHT_BITS

FP8, FP8_MAX = EIGHT_BITS["fp8"]
QUERIES = 64  # of a tile of attention


def jit(function: Callable[..., None]) -> Any:  # noqa: ANN401  (a JITFunction, or the interpreter of one)
    """The function as a kernel; as it is written, also where a type checker has wrapped it.

    Args:
        function: in Triton's language.
    """
    return triton.jit(unwrap(function))


class Rows8(NamedTuple):
    """A matrix in fp8 with a scale for each row, as `quantized.round_rows` makes it."""

    values: Float[Tensor, "rows columns"]
    scale: Float32[Tensor, "rows 1"]


def rms_norm(
    x: Float[Tensor, "s d"], weight: Float[Tensor, " d"], eps: float, *, fp8: bool = False
) -> Float[Tensor, "s d"] | Rows8:
    """`x / sqrt(mean(x^2) + eps) * weight` for each row.

    Args:
        x: contiguous.
        weight: gain of each column.
        eps: beside the mean square.
        fp8: whether to round the result to fp8.
    """
    out, scale = _room(x, fp8)
    width = x.shape[1]
    _rms_norm[(len(x),)](x, weight, out, scale, eps, width, triton.next_power_of_2(width), fp8, FP8_MAX, num_warps=8)
    return Rows8(out, scale) if fp8 else out


def silu_times(gate: Float[Tensor, "s d"], up: Float[Tensor, "s d"], *, fp8: bool = False) -> Float[Tensor, "s d"] | Rows8:
    """`silu(gate) * up`.

    Args:
        gate, up: contiguous.
        fp8: whether to round the result to fp8.
    """
    out, scale = _room(gate, fp8)
    width = gate.shape[1]
    block = triton.next_power_of_2(width) if fp8 else min(2048, triton.next_power_of_2(width))  # a scale needs the whole row
    grid = (len(gate), triton.cdiv(width, block))
    _silu_times[grid](gate, up, out, scale, width, block, fp8, FP8_MAX, num_warps=8)
    return Rows8(out, scale) if fp8 else out


def round_to_fp8(x: Float[Tensor, "s d"]) -> Rows8:
    """`quantized.round_rows(x, "fp8")`.

    Args:
        x: contiguous.
    """
    out, scale = _room(x, True)
    width = x.shape[1]
    _round_to_fp8[(len(x),)](x, out, scale, width, triton.next_power_of_2(width), FP8_MAX, num_warps=8)
    return Rows8(out, scale)


def norm_and_rotate(
    x: Float[Tensor, "s heads d_head"],
    weight: Float[Tensor, " d_head"],
    eps: float,
    cos: Float[Tensor, "s half"],
    sin: Float[Tensor, "s half"],
    out: Float[Tensor, "s heads d_head"],
) -> None:
    """RMS norm of every head, then the rotation of its pairs (x[k], x[k + d_head / 2]).

    Args:
        x: projected tokens; heads and d_head are powers of two.
        weight, eps: of the norm.
        cos, sin: of each token.
        out: where to write; may be `x` itself.
    """
    s, heads, d_head = x.shape
    strides = x.stride(0), out.stride(0), *cos.stride(), *sin.stride()
    _norm_and_rotate[(s,)](x, weight, cos, sin, out, eps, *strides, heads, d_head // 2, num_warps=4)


def see_more(
    q: Float[Tensor, "s_q heads d_head"],
    k: Float[Tensor, "s_k kv_heads d_head"],
    v: Float[Tensor, "s_k kv_heads d_head"],
    seen: Float[Tensor, "s_q heads d_head"],
    lse: Float32[Tensor, "heads s_q"],
) -> None:
    """Attention that has seen some keys sees a few more: a softmax in two parts is their mean, weighted by their sums.

    Args:
        q: contiguous.
        k, v: up to 128 of them, in rows without gaps.
        seen: what attention over the other keys gave; contiguous, written to.
        lse: `log(sum(exp(q k^T / sqrt(d_head))))` over the other keys; contiguous.
    """
    (queries, heads, d_head), kv_heads = q.shape, k.shape[1]
    grid = heads, triton.cdiv(queries, QUERIES)  # in the order in which they lie in memory
    most = max(16, triton.next_power_of_2(len(k)))
    _see_more[grid](q, k, v, seen, lse, queries, len(k), d_head**-0.5, heads, kv_heads, d_head, QUERIES, most, num_warps=4)


def _room(x: Tensor, fp8: bool) -> tuple[Tensor, Tensor]:
    """For the result, and for the scales (where there are none, any pointer will do)."""
    if not fp8:
        return torch.empty_like(x), x
    return torch.empty_like(x, dtype=FP8), torch.empty(len(x), 1, dtype=torch.float32, device=x.device)


@jit
def _rms_norm(x, weight, out, scale, eps, width: tl.constexpr, block: tl.constexpr, fp8: tl.constexpr, most: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    inside = at < width
    values = tl.load(x + row * width + at, inside, 0.0).to(tl.float32)
    values *= tl.rsqrt(tl.sum(values * values) / width + eps)
    values *= tl.load(weight + at, inside, 0.0).to(tl.float32)
    _write(values.to(x.dtype.element_ty), out, scale, row, at, inside, width, fp8, most)


@jit
def _silu_times(gate, up, out, scale, width: tl.constexpr, block: tl.constexpr, fp8: tl.constexpr, most: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
    inside = at < width
    g = tl.load(gate + row * width + at, inside, 0.0).to(tl.float32)
    values = g * tl.sigmoid(g) * tl.load(up + row * width + at, inside, 0.0).to(tl.float32)
    _write(values.to(gate.dtype.element_ty), out, scale, row, at, inside, width, fp8, most)


@jit
def _round_to_fp8(x, out, scale, width: tl.constexpr, block: tl.constexpr, most: tl.constexpr):
    row, at = tl.program_id(0).to(tl.int64), tl.arange(0, block)
    inside = at < width
    _write(tl.load(x + row * width + at, inside, 0.0), out, scale, row, at, inside, width, True, most)


@jit
def _write(values, out, scale, row, at, inside, width: tl.constexpr, fp8: tl.constexpr, most: tl.constexpr):
    """A part of a row as it is, or a whole one in fp8: divided by a scale by which its largest number becomes `most`."""
    if fp8:
        values = values.to(tl.float32)
        # Triton's max passes over NaN, which must spoil its row here as it does in a matrix product.
        one = tl.maximum(tl.max(tl.abs(values)), 1e-12) / most + tl.sum(values * 0.0)
        tl.store(scale + row, one)
        values = tl.minimum(tl.maximum(values / one, -most), most)
    tl.store(out + row * width + at, values.to(out.dtype.element_ty), inside)


@jit
def _norm_and_rotate(
    x,
    weight,
    cos,
    sin,
    out,
    eps,
    x_row,
    out_row,
    cos_row,
    cos_column,
    sin_row,
    sin_column,
    heads: tl.constexpr,
    half: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    pair = tl.arange(0, half)[None, :]
    first_at = tl.arange(0, heads)[:, None] * (2 * half) + pair
    first = tl.load(x + token * x_row + first_at).to(tl.float32)
    second = tl.load(x + token * x_row + first_at + half).to(tl.float32)
    mean = (tl.sum(first * first, 1) + tl.sum(second * second, 1)) / (2 * half)
    gain = tl.rsqrt(mean + eps)[:, None]
    first *= gain * tl.load(weight + pair).to(tl.float32)
    second *= gain * tl.load(weight + half + pair).to(tl.float32)
    c = tl.load(cos + token * cos_row + pair * cos_column).to(tl.float32)
    s = tl.load(sin + token * sin_row + pair * sin_column).to(tl.float32)
    tl.store(out + token * out_row + first_at, (first * c - second * s).to(out.dtype.element_ty))
    tl.store(out + token * out_row + first_at + half, (second * c + first * s).to(out.dtype.element_ty))


@jit
def _see_more(
    q,
    k,
    v,
    seen,
    lse,
    queries,
    keys,
    scale,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    width: tl.constexpr,
    rows: tl.constexpr,
    most: tl.constexpr,
):
    head, row = tl.program_id(0), tl.program_id(1) * rows + tl.arange(0, rows)
    key, channel = tl.arange(0, most), tl.arange(0, width)[None, :]
    at = (row[:, None].to(tl.int64) * heads + head) * width + channel
    kv_at = (key[:, None] * kv_heads + head // (heads // kv_heads)) * width + channel
    asks, has = (row < queries)[:, None], (key < keys)[:, None]
    logits = tl.dot(tl.load(q + at, asks, 0.0), tl.trans(tl.load(k + kv_at, has, 0.0)), input_precision="ieee") * scale
    logits = tl.where((key < keys)[None, :], logits, float("-inf"))
    before = tl.load(lse + head * queries + row, row < queries, 0.0)
    top = tl.maximum(before, tl.max(logits, 1))
    kept, weights = tl.exp(before - top), tl.exp(logits - top[:, None])
    values = tl.load(v + kv_at, has, 0.0)
    mixed = tl.dot(weights.to(values.dtype), values, input_precision="ieee")
    mixed += kept[:, None] * tl.load(seen + at, asks, 0.0).to(tl.float32)
    mixed /= (kept + tl.sum(weights, 1))[:, None]
    tl.store(seen + at, mixed.to(seen.dtype.element_ty), asks)
