"""Matrices of the layers in 8 bits: half the bytes of bfloat16, and results that are not those of the checkpoint any more.

    "int8"   weights alone are rounded, to 255 levels per row; products are computed in the model's dtype. Runs everywhere.
    "fp8"    weights per row and activations per token are rounded to float8 e4m3 (3 bits after the point), and multiplied as
             such on GPUs that can (Hopper, Ada and later); elsewhere the same rounding, multiplied in the model's dtype.

A matrix W becomes `weight * scale` with one scale for each row, so that the row's largest number is the largest that 8 bits
hold. All else stays as it is: norms, embeddings, and the ways into and out of the towers.

Read next: `checkpoint.py`, whose `load_cosmos3(quantize=...)` asks for it. Source: Dettmers et al. 2022, arXiv:2208.07339 (a
scale per row); Micikevicius et al. 2022, arXiv:2209.05433 (fp8).
"""

from typing import Literal

import torch
from jaxtyping import Float, Float32, Num
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos3_lab.transfer import to_device

Weights = Literal["int8", "fp8"]
EIGHT_BITS: dict[Weights, tuple[torch.dtype, float]] = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}


class QuantizedLinear(nn.Module):
    """`x W^T` with W in 8 bits.

    Args:
        weight: W, `[d_out, d_in]`, on the device where it is to be rounded.
        kind: "int8" or "fp8".
    """

    def __init__(self, weight: Float[Tensor, "d_out d_in"], kind: Weights) -> None:
        super().__init__()
        rounded, scale = round_rows(weight, kind)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)

    def forward(self, x: Float[Tensor, "*b d_in"]) -> Float[Tensor, "*b d_out"]:
        if self.weight.dtype == torch.int8:
            return F.linear(x, self.weight.to(x.dtype)) * self.scale.T.to(x.dtype)
        return self.multiply(*round_rows(x.flatten(0, -2), "fp8"), dtype=x.dtype).view(*x.shape[:-1], -1)

    def multiply(
        self, rows: Float[Tensor, "s d_in"], scale: Float32[Tensor, "s 1"], *, dtype: torch.dtype
    ) -> Float[Tensor, "s d_out"]:
        """The product with tokens that are in fp8 already.

        Args:
            rows, scale: from `round_rows`.
            dtype: of the result.
        """
        if multiplies_fp8(rows.device, dtype):
            return torch._scaled_mm(rows, self.weight.T, scale, self.scale.T, out_dtype=dtype, use_fast_accum=True)
        return F.linear(rows.to(dtype), self.weight.to(dtype)) * (scale * self.scale.T).to(dtype)


def multiplies_fp8(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a product of fp8 matrices with a scale per row there; it gives bfloat16 alone.

    Args:
        device: of the weights.
        dtype: of the result.
    """
    return device.type == "cuda" and dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= (8, 9)


def round_rows(x: Float[Tensor, "rows columns"], kind: Weights) -> tuple[Num[Tensor, "rows columns"], Float32[Tensor, "rows 1"]]:
    """8-bit numbers and a scale for each row, whose product is `x` rounded.

    Args:
        x: a matrix; a row of zeros has the scale of a very small number.
        kind: "int8" or "fp8".
    """
    dtype, largest = EIGHT_BITS[kind]
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp_min(1e-12) / largest
    scaled = (x / scale).clamp(-largest, largest)
    return (scaled.round() if kind == "int8" else scaled).to(dtype), scale


def quantize_tower(tower: nn.Module, kind: Weights, *, device: torch.device, home: torch.device) -> None:
    """Round the matrices of all layers, in place; they need room on the device for those of one layer at a time.

    Args:
        tower: UND or GEN, with its weights on the CPU.
        kind: "int8" or "fp8".
        device: where to round, so that the numbers are the same wherever they are kept.
        home: where all of the tower is to be afterwards.
    """
    for layer in tower.layers:
        found = [(parent, *named) for parent in layer.modules() for named in parent.named_children()]
        linears = [(parent, name, child) for parent, name, child in found if isinstance(child, nn.Linear)]
        weights = to_device([child.weight.data for _, _, child in linears], device)
        for (parent, name, _), weight in zip(linears, weights, strict=True):
            setattr(parent, name, QuantizedLinear(weight, kind).to(home))
    tower.to(home)
