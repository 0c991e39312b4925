"""Host memory to a GPU at the speed of the bus.

A plain copy of weights that are mapped to a file goes through one thread, page after page, and through a buffer of the driver's.
Here several threads fill buffers of their own in page-locked memory, from which the GPU fetches by itself.
`benchmarks/split_memory.py` measures it, with more threads and fewer.

Own code because safetensors still copies straight from the mapping (its issue 729), and fastsafetensors calls itself a
research prototype.

Read next: `weights.py`, `memory.py`, which call it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

PIECE = 16 * 2**20  # bytes that a thread copies at a time: long enough for the bus, short enough to share out one layer
Piece = tuple[Tensor, Tensor]  # bytes on the CPU and their place on the device
THREADS = 8  # 1, 4, 8, 16 give 4, 11, 13, 13 GB/s from the page cache to an H100 (benchmarks/results/split_memory.json)


def transfer_bar(name: str, device: torch.device, nbytes: int) -> tqdm:
    """A progress bar in bytes, which shows itself only if the transfer takes more than a second.

    Args:
        name: of what is on its way.
        device: where to; nothing takes long that stays on the CPU.
        nbytes: in all.
    """
    quiet = device.type == "cpu"
    return tqdm(total=nbytes, desc=f"{name} to {device}", unit="B", unit_scale=True, delay=1, leave=False, disable=quiet)


def to_device(
    sources: Sequence[Tensor], device: torch.device, *, on_bytes: Callable[[int], object] = lambda nbytes: None
) -> Sequence[Tensor]:
    """The tensors on a device; where they are there already, as they are.

    Args:
        sources: on the device, or on the CPU and maybe mapped to a file.
        device: where to.
        on_bytes: see `copy_tensors`.
    """
    device = torch.empty(0, device=device).device  # "cuda" means the current GPU, which its tensors call "cuda:0"
    if all(source.device == device for source in sources):
        return sources
    targets = [torch.empty_like(source, device=device) for source in sources]
    copy_tensors(sources, targets, on_bytes=on_bytes)
    return targets


def copy_tensors(
    sources: Sequence[Tensor], targets: Sequence[Tensor], *, on_bytes: Callable[[int], object] = lambda nbytes: None
) -> None:
    """Fill tensors on a device from tensors on the CPU; done when it returns.

    Args:
        sources: on the CPU, without gaps in memory, in whatever order of axes.
        targets: all on one device, with the same dtypes, shapes and strides (`torch.empty_like(source, device=device)`).
        on_bytes: called with the size of each piece that has arrived.
    """
    pieces = list(_pieces(sources, targets))
    device = targets[0].device if targets else torch.device("cpu")
    arriving = _through_pinned_buffers(pieces, device) if device.type == "cuda" else map(_copy, pieces)
    for nbytes in arriving:
        on_bytes(nbytes)


def _through_pinned_buffers(pieces: Sequence[Piece], device: torch.device) -> Iterator[int]:
    """Copy the pieces, several at a time; yields the size of each, in their order."""
    # What was queued before may still use the memory that the targets lie in, so the copies wait for it.
    before = torch.cuda.current_stream(device).record_event()
    threads = min(THREADS, len(pieces))
    idle: SimpleQueue[_Lane] = SimpleQueue()
    for _ in range(threads):
        idle.put(_Lane(torch.empty(PIECE, dtype=torch.uint8, pin_memory=True), torch.cuda.Stream(device), before))

    def carry(piece: Piece) -> int:
        lane = idle.get()
        try:
            return lane.copy(piece)
        finally:
            idle.put(lane)

    with ThreadPoolExecutor(threads, thread_name_prefix="copy_tensors") as pool:
        yield from pool.map(carry, pieces)


@dataclass(frozen=True)
class _Lane:
    """One way to the GPU.

    Attributes:
        buffer: page-locked. PyTorch keeps such memory for the next call (128 MiB in all), so that only the first pays for it.
        stream: of its own, so that neither other lanes nor the model's work are waited for.
        before: what has to be done first.
    """

    buffer: Tensor
    stream: torch.cuda.Stream
    before: torch.cuda.Event

    def copy(self, piece: Piece) -> int:
        """Copy one piece; gives its size once it has arrived."""
        source, target = piece
        staged = self.buffer[: len(source)]
        np.copyto(staged.numpy(), source.numpy())  # not Tensor.copy_, which would start a pool of threads in each thread
        # The target may be an inference tensor, and a thread begins outside of that mode.
        with torch.inference_mode(), torch.cuda.stream(self.stream):
            self.stream.wait_event(self.before)
            target.copy_(staged, non_blocking=True)
            self.stream.synchronize()  # the buffer is filled again next
        return len(source)


def _copy(piece: Piece) -> int:
    source, target = piece
    target.copy_(source)
    return len(source)


def _pieces(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> Iterator[Piece]:
    """Pairs of at most `PIECE` bytes each."""
    for source, target in zip(sources, targets, strict=True):
        yield from zip(_bytes(source).split(PIECE), _bytes(target).split(PIECE), strict=True)


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's memory, in the order in which it lies there."""
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
