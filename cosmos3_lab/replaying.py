"""The GEN layers as a CUDA graph: for small clips a GPU is done before Python has asked for its next kernel.

A layer is some twenty kernels, whatever the size of the clip. Recorded once and replayed as a whole, a step over 447 tokens
(192x320x25) takes a third of the time; from about 1,000 tokens on the GPU is the slower of the two and nothing is gained
(`benchmarks/cuda_graphs.py`). The kernels are the same, and so are the bits.

A graph reads and writes fixed places in memory. So it belongs to one run: `denoise` makes a `Replay` for its steps, and nothing
outlives it. Where somebody watches the layers (`probe.py`), or their weights have moved, they are called one by one again.
Some of that memory is its own, up to 0.2 GiB at Nano's width. No plan counts it: where there is no room, a run goes on without.

Read next: `denoise.py`.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos3_lab.fusing import can_fuse, is_watched
from cosmos3_lab.towers import Cosmos3Transformer
from cosmos3_lab.transformer import Cosmos3Condition, run_gen_layers

MOST_TOKENS = 1000  # of video and sound
ROOM = 2**29  # bytes, three times what a graph takes at Nano's width: PyTorch 2.11 does not survive to run out of memory in one


@dataclass(frozen=True, eq=False)
class Recorded:
    """A function of no arguments as a CUDA graph: `graph.replay()` does it again, on what is in its inputs then.

    Attributes:
        graph: to replay.
        out: what the function returned; every replay writes there.
    """

    graph: torch.cuda.CUDAGraph
    out: Tensor


class Recorder:
    """Records graphs on the current GPU, on one stream and in one pool of memory: what they use beside their inputs, they share.

    So no two of them may be replayed at the same time.
    """

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> Recorded:
        """Record what a function does, without doing it.

        Args:
            run: has been called before, so that its kernels are compiled; there must be room for its memory.
        """
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        # Not `torch.cuda.graph`, which collects garbage and hands all spare memory back first. Other threads may go on meanwhile.
        with torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                out = run()
            except BaseException:
                with suppress(RuntimeError):  # that the recording is no good: what happened says more
                    graph.capture_end()
                raise
            else:
                graph.capture_end()
            finally:
                # cuBLAS keeps memory of its own for each stream: here a piece of the pool, which could not be given back.
                torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.current_stream().wait_stream(self._stream)
        return Recorded(graph, out)


class Replay:
    """`run_gen_layers` for the steps of one run: called as such at first, replayed from then on where that pays."""

    def __init__(self) -> None:
        self._runs: dict[Cosmos3Condition, _Run] = {}
        self._recorder: Recorder | None = None

    def __call__(
        self, transformer: Cosmos3Transformer, tokens: Float[Tensor, "s_gen d_model"], cond: Cosmos3Condition
    ) -> Float[Tensor, "s_gen d_model"]:
        """The residual stream after all GEN layers.

        Args:
            transformer, tokens, cond: see `run_gen_layers`.
        """
        if len(tokens) > MOST_TOKENS or not can_fuse(tokens) or is_watched(transformer.gen):
            return run_gen_layers(transformer, tokens, cond)
        run, weights = self._runs.get(cond), _places(transformer)
        if run is None or run.weights != weights:
            self._runs[cond] = _Run(weights, torch.empty_like(tokens))
            return run_gen_layers(transformer, tokens, cond)  # which compiles what is not compiled yet
        with torch.cuda.device_of(tokens):
            if run.recorded is None:
                if not is_room():
                    return run_gen_layers(transformer, tokens, cond)
                self._recorder = self._recorder or Recorder()
                run.recorded = self._recorder.record(lambda: run_gen_layers(transformer, run.tokens, cond))
            run.tokens.copy_(tokens)
            run.recorded.graph.replay()
        return run.recorded.out.clone()  # the next replay writes there


@dataclass(eq=False)
class _Run:
    """Of one condition.

    Attributes:
        weights: where they lay when it was recorded.
        tokens: its input.
        recorded: None after its first call.
    """

    weights: tuple[int, ...]
    tokens: Tensor
    recorded: Recorded | None = None


def _places(transformer: Cosmos3Transformer) -> tuple[int, ...]:
    """Where the weights of the layers lie; in split placement they come and go."""
    layers = transformer.gen.layers
    return tuple(tensor.data_ptr() for tensors in (layers.parameters(), layers.buffers()) for tensor in tensors)


def is_room() -> bool:
    """Whether the current GPU has room for a graph, if need be when it got back what PyTorch keeps for nobody."""

    def room() -> int:
        free, total = torch.cuda.mem_get_info()
        allowed = int(torch.cuda.get_per_process_memory_fraction() * total)
        return min(free, allowed - torch.cuda.memory_reserved())

    if room() < ROOM:
        torch.cuda.empty_cache()
    return room() >= ROOM
