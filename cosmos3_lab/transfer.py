"""Host memory to a GPU at the speed of the bus.

A plain copy of weights that are mapped to a file moves 1 to 3 GB/s: one thread, page after page, through a buffer of the
driver's. Here several threads fill buffers of their own in page-locked memory, from which the GPU fetches by itself.

Own code because safetensors still copies straight from the mapping (its issue 729), and fastsafetensors calls itself a
research prototype.

Read next: `weights.py`, `memory.py`, which call it.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

PIECE = 16 * 2**20  # bytes that a thread copies at a time: long enough for the bus, short enough to share out one layer
THREADS = 8  # one thread reads the page cache at 2 to 9 GB/s


def to_device(
    sources: Sequence[Tensor], device: torch.device, *, on_bytes: Callable[[int], object] | None = None
) -> Sequence[Tensor]:
    """The tensors on a device; those that are on the CPU and are to stay there come back as they are.

    Args:
        sources: on the CPU, maybe mapped to a file.
        device: where to.
        on_bytes: see `copy_tensors`.
    """
    if device.type == "cpu":
        return sources
    targets = [torch.empty_like(source, device=device) for source in sources]
    copy_tensors(sources, targets, on_bytes=on_bytes)
    return targets


def copy_tensors(
    sources: Sequence[Tensor], targets: Sequence[Tensor], *, on_bytes: Callable[[int], object] | None = None
) -> None:
    """Fill tensors on a device from tensors on the CPU; done when it returns.

    Args:
        sources: on the CPU, without gaps in memory, in whatever order of axes.
        targets: all on one device, with the same dtypes, shapes and strides (`torch.empty_like(source, device=device)`).
        on_bytes: called with the size of each piece that has arrived, on a GPU from several threads.
    """
    pieces = list(_pieces(sources, targets))
    device = targets[0].device if targets else torch.device("cpu")
    if device.type != "cuda":
        for source, target in pieces:
            target.copy_(source)
            _tell(on_bytes, source)
        return
    shared = iter(pieces)  # each thread takes the next one
    # What was queued before may still use the memory that the targets lie in, so the copies wait for it.
    before = torch.cuda.current_stream(device).record_event()
    threads = min(THREADS, len(pieces))
    with ThreadPoolExecutor(threads, thread_name_prefix="copy_tensors") as pool:
        for done in [pool.submit(_carry, shared, device, before, on_bytes) for _ in range(threads)]:
            done.result()


def _carry(
    pieces: Iterator[tuple[Tensor, Tensor]],
    device: torch.device,
    before: torch.cuda.Event,
    on_bytes: Callable[[int], object] | None,
) -> None:
    """What one thread does: piece after piece through its own page-locked buffer, on its own stream.

    PyTorch keeps such buffers for the next call (128 MiB in all), so that only the first pays for locking them.
    """
    stream = torch.cuda.Stream(device)
    # Targets may be inference tensors, and a thread begins outside of that mode and on GPU 0.
    with torch.inference_mode(), torch.cuda.device(device), torch.cuda.stream(stream):
        stream.wait_event(before)
        buffer = torch.empty(PIECE, dtype=torch.uint8, pin_memory=True)
        for source, target in pieces:
            staged = buffer[: len(source)]
            np.copyto(staged.numpy(), source.numpy())  # not Tensor.copy_, which would start a pool of threads in each thread
            target.copy_(staged, non_blocking=True)
            stream.synchronize()  # the buffer is filled again next
            _tell(on_bytes, source)


def _pieces(sources: Sequence[Tensor], targets: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of at most `PIECE` bytes each."""
    for source, target in zip(sources, targets, strict=True):
        yield from zip(_bytes(source).split(PIECE), _bytes(target).split(PIECE), strict=True)


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's memory, in the order in which it lies there."""
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def _tell(on_bytes: Callable[[int], object] | None, piece: Tensor) -> None:
    if on_bytes is not None:
        on_bytes(len(piece))
