"""The GEN layers as a CUDA graph: for small clips a GPU is done before Python has asked for its next kernel.

A layer is some twenty kernels, whatever the size of the clip. Recorded once and replayed as a whole, a step over 447 tokens
(192x320x25) takes two thirds of the time, over 126 (192x320x5) a third; from about 1,000 tokens on the GPU is the slower of the
two and nothing is gained (`benchmarks/cuda_graphs.py`). The kernels are the same, and so are the bits.

A graph reads and writes fixed places in memory. So it belongs to one run: `denoise` makes a `LayerGraphs` for its steps, and
nothing outlives it. Where somebody watches the layers (`probe.py`) they are called one by one, and for the rest of the run where
their weights have moved, or there is no room: some of the memory is the graphs' own, up to 0.2 GiB at Nano's width, which no plan
counts.

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
ROOM = 2**29  # bytes, more than twice what Nano's graphs take: PyTorch 2.11 does not survive to run out of memory in one


@dataclass(frozen=True, eq=False)
class Recorded:
    """A function of no arguments as a CUDA graph.

    Attributes:
        replay: does it again, on what is in its inputs then.
        out: what the function returned; every replay writes there.
        run: the function, which keeps its inputs alive.
    """

    replay: Callable[[], None]
    out: Tensor
    run: Callable[[], Tensor]


class Recorder:
    """Records graphs on the current GPU, on one stream and in one pool of memory: what they use beside their inputs, they share.

    So no two of them may be replayed at the same time.
    """

    def __init__(self) -> None:
        self._stream, self._pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Tensor]) -> Recorded:
        """Record what a function does, without doing it.

        Args:
            run: has been called before, so that its kernels are compiled; there must be room for its memory (`is_room`).

        Raises:
            Exception: whatever `run` raises; the GPU can be used as before.
        """
        graph = torch.cuda.CUDAGraph()
        self._stream.wait_stream(torch.cuda.current_stream())
        # Not `torch.cuda.graph`, which collects garbage and hands all spare memory back first. Other threads may start kernels.
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
        return Recorded(graph.replay, out, run)


class LayerGraphs:
    """`run_gen_layers` for the steps of one run: called as such at first, replayed from then on where that pays."""

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        self._weights: tuple[int, ...] | None = None  # where they lie
        self._branches: dict[Cosmos3Condition, _Branch | None] = {}  # None: has been called once
        self._off = False

    def __call__(
        self, transformer: Cosmos3Transformer, tokens: Float[Tensor, "s_gen d_model"], cond: Cosmos3Condition
    ) -> Float[Tensor, "s_gen d_model"]:
        """The residual stream after all GEN layers.

        Args:
            transformer, tokens, cond: see `run_gen_layers`.
        """
        branch = self._branch(transformer, tokens, cond)
        if branch is None:
            return run_gen_layers(transformer, tokens, cond)
        branch.tokens.copy_(tokens)
        with torch.cuda.device_of(tokens):
            branch.recorded.replay()
        return branch.recorded.out.clone()  # the next replay writes there

    def _branch(self, transformer: Cosmos3Transformer, tokens: Tensor, cond: Cosmos3Condition) -> "_Branch | None":
        """What to replay for this condition; None where the layers are to be called."""
        if self._off or len(tokens) > MOST_TOKENS or not can_fuse(tokens) or is_watched(transformer.gen):
            return None
        weights = _places(transformer)
        self._weights = self._weights or weights
        if weights != self._weights:
            return self._give_up()
        if cond not in self._branches:
            self._branches[cond] = None  # this call compiles what is not compiled yet
        elif self._branches[cond] is None:
            with torch.cuda.device_of(tokens):
                if not is_room():
                    return self._give_up()
                self._recorder = self._recorder or Recorder()
                with torch.inference_mode(False):  # later steps may write there outside of it
                    place = torch.empty_like(tokens)
                recorded = self._recorder.record(lambda: run_gen_layers(transformer, place, cond))
                self._branches[cond] = _Branch(place, recorded)
        return self._branches[cond]

    def _give_up(self) -> None:
        self._off = True
        self._branches.clear()


@dataclass(frozen=True, eq=False)
class _Branch:
    """The layers for one condition.

    Attributes:
        tokens: where they are read.
        recorded: all of them.
    """

    tokens: Tensor
    recorded: Recorded


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
