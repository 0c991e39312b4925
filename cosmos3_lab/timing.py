"""How long things take.

Read next: `generate.py`, which times its phases.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch


class PhaseTimer:
    """Adds up wall-clock seconds by the name of a phase; waits for the GPU at both ends of each.

        timer = PhaseTimer(models.device)
        with timer("inference"), timer("denoise"):
            ...
        timer.seconds["denoise"]

    A phase that ends in an error, or that is entered again, counts too.

    Attributes:
        device: whose work is waited for where it is a GPU; None waits for nothing.
        seconds: so far, by phase.
    """

    def __init__(self, device: torch.device | None = None, *, seconds: Mapping[str, float] | None = None) -> None:
        """A timer that has counted nothing yet.

        Args:
            device: see above.
            seconds: to start from.
        """
        self.device, self.seconds = device, dict(seconds or {})

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the seconds of the block to this phase."""
        self._wait()
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._wait()
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device is not None and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
