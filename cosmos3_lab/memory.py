"""Which weights are on the GPU, and when.

*Resident* keeps both towers there. *Split* keeps at most one: UND while prompts are encoded, GEN while denoising, neither
while decoding; the idle ones stay in host memory, mapped to the checkpoint's files where the dtype allows. Results are the
same bit for bit.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Placement = Literal["resident", "split"]

GIB = 2**30
# Room for activations of a small request (192x320, a few frames). Larger requests need more; this only decides placement.
WORKING_BYTES = 2 * GIB


@dataclass(frozen=True)
class WeightSizes:
    """Bytes of weights on the device, in the dtype that they are loaded as."""

    und: int
    gen: int
    decoders: int

    def needed(self, placement: Placement) -> int:
        """Most bytes that are on the device at once, working room included."""
        towers = self.und + self.gen if placement == "resident" else max(self.und, self.gen)
        return towers + self.decoders + WORKING_BYTES


def choose_placement(placement: Literal["auto", "resident", "split"], sizes: WeightSizes, device: torch.device) -> Placement:
    """The placement that was asked for, or under "auto" the fastest that fits the device's free memory.

    Raises:
        ValueError: no such placement.
        MemoryError: it does not fit; names the numbers.
    """
    if placement not in ("auto", "resident", "split"):
        raise ValueError(f"got placement {placement!r}, expected 'auto', 'resident' or 'split'")
    if device.type != "cuda":
        return "resident" if placement == "auto" else placement
    free = torch.cuda.mem_get_info(device)[0]
    candidates: tuple[Placement, ...] = ("resident", "split") if placement == "auto" else (placement,)
    for candidate in candidates:
        if sizes.needed(candidate) <= free:
            return candidate
    wanted = ", ".join(f"{sizes.needed(p) / GIB:.1f} GiB {p}" for p in candidates)
    raise MemoryError(
        f"{device} has {free / GIB:.1f} GiB free, but the weights need {wanted} (UND {sizes.und / GIB:.1f}, GEN "
        f"{sizes.gen / GIB:.1f}, decoders {sizes.decoders / GIB:.1f}, working room {WORKING_BYTES / GIB:.0f}); close "
        "other programs that use the GPU, try placement='split', or use device='cpu'"
    )


class Movable:
    """A module whose weights can visit a device and come home again without a copy being kept in step.

    Args:
        module: with its weights where they live when idle.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.home: dict[str, Tensor] = {name: p.data for name, p in module.named_parameters()}

    def visit(self, device: torch.device) -> None:
        """Copy the weights to `device`."""
        for name, parameter in self.module.named_parameters():
            parameter.data = self.home[name].to(device, non_blocking=True)

    def go_home(self) -> None:
        """Drop the copies."""
        for name, parameter in self.module.named_parameters():
            parameter.data = self.home[name]
