"""One training step recorded as a CUDA graph: a small model on a fast GPU otherwise waits for Python to launch its kernels.

Read next: `train_vae.py`, which uses it.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Numbers = dict[str, Tensor]


class LossStep:
    """Loss and gradients of a module for inputs of one shape; replayed from a graph on a GPU, plainly run elsewhere.

    Args:
        module: whose parameters get gradients.
        loss: takes tensors, returns the loss and numbers to report; must not move a tensor between host and GPU.
        beside: another step, which this one shares memory with. Its gradients must be used before this one is called.
    """

    def __init__(self, module: nn.Module, loss: Callable[..., tuple[Tensor, Numbers]], beside: "LossStep | None" = None) -> None:
        self.module, self.loss, self.beside = module, loss, beside
        self.inputs: list[Tensor] = []
        self.grads: list[Tensor | None] = []
        self.graph: torch.cuda.CUDAGraph | None = None
        self.numbers: Numbers = {}

    def __call__(self, *inputs: Tensor) -> Numbers:
        """Leave gradients in the parameters and return the numbers.

        Args:
            inputs: of the loss; of the same shapes and dtypes at every call.
        """
        if not inputs[0].is_cuda:
            return self._run(inputs)
        if self.graph is None:
            self._record(inputs)
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        for p, grad in zip(self.module.parameters(), self.grads, strict=True):
            p.grad = grad
        return {name: value.clone() for name, value in self.numbers.items()}

    def _run(self, inputs: tuple[Tensor, ...] | list[Tensor]) -> Numbers:
        loss, numbers = self.loss(*inputs)
        loss.backward()
        return numbers

    def _record(self, inputs: tuple[Tensor, ...]) -> None:
        """Run a few times on the side (what compiles or allocates has done so then), and record the next run."""
        self.inputs = [x.clone() for x in inputs]
        self.stream = torch.cuda.Stream() if self.beside is None else self.beside.stream
        self.stream.wait_stream(torch.cuda.current_stream())
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):
            for _ in range(3 if self.beside is None else 1):
                self._run(self.inputs)
                self.module.zero_grad(set_to_none=True)
            # Not `torch.cuda.graph`, which hands all spare memory back first: too slow for a graph for every length of text.
            # Other threads (data, processes' watchdog) may go on meanwhile.
            pool = () if self.beside is None else (self.beside.graph.pool(),)
            self.stream.synchronize()
            self.graph.capture_begin(*pool, capture_error_mode="thread_local")
            self.numbers = self._run(self.inputs)
            self.graph.capture_end()
        torch.cuda.current_stream().wait_stream(self.stream)
        self.grads = [p.grad for p in self.module.parameters()]
