"""Count what code would compute and hold, without data and without a GPU: the layers themselves run on the meta device.

On the meta device a tensor has a shape, a dtype and a lifetime, but no numbers. `Meter` watches every operation there: matrix
products, attention and convolutions add to the FLOPs, and every tensor that is born or dies is an event, from which
`CachingAllocator` finds the bytes that PyTorch's CUDA allocator would hold. So a plan follows the code by itself: whoever
changes a layer changes its plan. It is the plain layers that run here; their fused forms hold about the same.

Read next: `costs.py`, which runs the stages of a clip under a meter.
"""

import weakref
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

MIB = 2**20


@dataclass(frozen=True)
class Flops:
    """Floating-point operations by kind; a multiply-add is 2, and causal attention counts the lower triangle alone."""

    linear: float = 0.0
    attention: float = 0.0
    convolution: float = 0.0

    @property
    def total(self) -> float:
        """All kinds together."""
        return self.linear + self.attention + self.convolution

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Flops)))

    def __sub__(self, other: "Flops") -> "Flops":
        return self + other * -1.0

    def __mul__(self, times: int | float) -> "Flops":
        return Flops(*(getattr(self, f.name) * times for f in fields(Flops)))


# ------------------------------------------------------------------------------------------------------------ memory


@dataclass(eq=False)
class Block:
    """Part of a segment. `left` and `right` are its neighbours there."""

    address: int
    size: int
    small: bool
    free: bool = False
    left: "Block | None" = None
    right: "Block | None" = None


class CachingAllocator:
    """The bytes of PyTorch's CUDA allocator: segments are asked of the driver and kept, blocks are cut from them and joined.

    The rules are those of c10/cuda/CUDACachingAllocator.cpp with default settings: up to 1 MiB from segments of 2 MiB, up to
    10 MiB from segments of 20 MiB, larger ones from segments of their own in whole 2 MiB; the smallest free block that is
    large enough is taken, and its rest is cut off where it is worth it.

    Attributes:
        allocated, reserved: bytes now: in tensors, and in segments.
        peak_allocated, peak_reserved: the most so far.
    """

    def __init__(self) -> None:
        self.allocated = self.reserved = self.peak_allocated = self.peak_reserved = 0
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}  # by size, then address
        self._next_address = 0

    def allocate(self, nbytes: int) -> Block:
        """A block for a tensor of so many bytes."""
        size = max(512, -(-nbytes // 512) * 512)
        block = self._take(size, small=size <= MIB)
        rest = block.size - size
        if rest >= 512 if block.small else rest > MIB:
            self._cut(block, size)
        block.free = False
        self.allocated += block.size
        self.peak_allocated = max(self.peak_allocated, self.allocated)
        return block

    def release(self, block: Block) -> None:
        """Give a block back; it joins its free neighbours."""
        self.allocated -= block.size
        for other in (block.left, block.right):
            if other is not None and other.free:
                self._forget(other)
                first, second = (other, block) if other is block.left else (block, other)
                second.left, second.right, first.right = first, second.right, second.right
                first.size += second.size
                if first.right is not None:
                    first.right.left = first
                block = first
        self._keep(block)

    def replay(self, events: Iterable[int]) -> None:
        """Do what a `Meter` saw: a number from 0 up allocates so many bytes, -1 - k releases the k-th allocation."""
        blocks: list[Block] = []
        for event in events:
            if event >= 0:
                blocks.append(self.allocate(event))
            else:
                self.release(blocks[-1 - event])

    def empty_cache(self) -> None:
        """Give segments back that hold nothing, as `torch.cuda.empty_cache` does."""
        for small in (True, False):
            for _, _, block in [entry for entry in self._free[small] if entry[2].left is entry[2].right is None]:
                self._forget(block)
                self.reserved -= block.size

    def _take(self, size: int, *, small: bool) -> Block:
        for found_size, _, block in self._free[small]:
            if found_size >= size:
                self._forget(block)
                return block
        segment = 2 * MIB if small else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
        self.reserved += segment
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        self._next_address += segment
        return Block(self._next_address - segment, segment, small)

    def _cut(self, block: Block, size: int) -> None:
        rest = Block(block.address + size, block.size - size, block.small, left=block, right=block.right)
        if rest.right is not None:
            rest.right.left = rest
        block.size, block.right = size, rest
        self._keep(rest)

    def _keep(self, block: Block) -> None:
        block.free = True
        insort(self._free[block.small], (block.size, block.address, block))

    def _forget(self, block: Block) -> None:
        self._free[block.small].remove((block.size, block.address, block))


# ------------------------------------------------------------------------------------------------------------- meter


@dataclass
class Meter:
    """What was counted so far. Use `with meter.watching():` around code that works on meta tensors.

        meter = Meter()
        with meter.watching():
            predict_velocity(transformer_on_meta, latents_on_meta, 500, condition_on_meta)
        meter.flops.total, peak_bytes(meter.events)

    Attributes:
        flops: of every operation that was watched.
        events: how the tensors that were born there come and go, for `CachingAllocator.replay`. Tensors from before, such as
            weights, are not among them.
        workspace: what a convolution borrows while it runs, in parts of its input and output together.
    """

    flops: Flops = field(default_factory=Flops)
    events: list[int] = field(default_factory=list)
    workspace: float = 0.0
    _count: int = 0

    @contextmanager
    def watching(self) -> Iterator["Meter"]:
        """Count what happens in this block; tensors that outlive it are still followed to their end."""
        with torch.no_grad(), _Operations(self), _FusedFunctions(self):
            yield self

    def born(self, storage: torch.UntypedStorage) -> None:
        """Follow the memory of a new tensor until nothing refers to it."""
        weakref.finalize(storage, self.events.append, -1 - self._allocate(storage.nbytes()))

    def borrow(self, nbytes: int) -> None:
        """Count memory that is taken and given back at once."""
        if nbytes:
            self.events.append(-1 - self._allocate(nbytes))

    def _allocate(self, nbytes: int) -> int:
        self.events.append(nbytes)
        self._count += 1
        return self._count - 1


def peak_bytes(events: Iterable[int]) -> int:
    """The most bytes that tensors take at once, without the allocator's gaps."""
    memory = CachingAllocator()
    memory.replay(events)
    return memory.peak_allocated


class _FusedFunctions(TorchFunctionMode):
    """Functions that are one kernel on a GPU, and which the meta device would take apart into many."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.meter.flops += Flops(attention=_attention(*args[:3], causal=kwargs.get("is_causal", False)))
            return torch.empty_like(args[0])
        if func is F.rms_norm:
            return torch.empty_like(args[0])
        return func(*args, **kwargs)


class _Operations(TorchDispatchMode):
    """Every single operation, after composite ones were taken apart."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:  # noqa: ANN401
        meter, out = self.meter, func(*args, **(kwargs or {}))
        old = {tensor.untyped_storage()._cdata for tensor in _tensors(args)}
        for tensor in _tensors((out,)):
            if tensor.untyped_storage()._cdata not in old:  # neither a view nor in place
                meter.born(tensor.untyped_storage())
        if func in FORMULAS:
            meter.flops += FORMULAS[func](out, *args)
        if func is aten.convolution.default:
            meter.borrow(int(meter.workspace * (args[0].nbytes + out.nbytes)))
        return out


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among the arguments of an operation, or in one of its lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> float:
    queries, keys = q.shape[-2], k.shape[-2]
    pairs = queries * (queries + 1) // 2 if causal else queries * keys
    return 2.0 * pairs * (q.shape[-1] + v.shape[-1]) * prod(q.shape[:-2])


def _product(out: Tensor, a: Tensor, b: Tensor) -> Flops:
    return Flops(linear=2.0 * out.numel() * a.shape[-1])


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *settings: Any) -> Flops:  # noqa: ANN401
    transposed = settings[4]  # bias, stride, padding, dilation, transposed, ...
    each = x if transposed else out
    return Flops(convolution=2.0 * each.numel() * weight[0].numel())


aten = torch.ops.aten
FORMULAS: dict[Callable, Callable[..., Flops]] = {
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: lambda out, bias, a, b, *_: _product(out, a, b),
    aten.convolution.default: _convolution,
}
