"""What hooks have seen, and in which pass of the media tower: the step, the branch, the timestep.

Read next: `probe.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from cosmos3_lab.denoise import DenoiseInputs
from cosmos3_lab.towers import Cosmos3Transformer, LayerKV

Branch = Literal["cond", "uncond"]
BEFORE_LAYERS = ("gen.proj_in", "gen.audio_proj_in", "gen.time_embedder")


@dataclass(frozen=True)
class Pass:
    """Which pass of GEN a value belongs to. What is not known is None: all of it for UND, step and branch without inputs.

    Attributes:
        step: of the schedule.
        branch: "cond" or "uncond".
        timestep: what the network was told.
    """

    step: int | None = None
    branch: Branch | None = None
    timestep: int | None = None


@dataclass(frozen=True, eq=False)
class Activation:
    """What one call of one module gave, reduced.

    Attributes:
        name: of the module.
        at: the pass that it belongs to. (The projections inside an MLP see a long sequence in parts, one call for each.)
        value: `[...]` on the CPU, as the reduction made it.
    """

    name: str
    at: Pass
    value: Any

    def __repr__(self) -> str:
        value = f"{list(self.value.shape)}" if isinstance(self.value, Tensor) else repr(self.value)
        return f"Activation({self.name}, step {self.at.step}, {self.at.branch}, value={value})"


class Recording:
    """What was recorded so far: activations in the order of the calls."""

    def __init__(self) -> None:
        self.activations: list[Activation] = []

    def select(self, name: str = "*", *, branch: Branch | None = None, step: int | None = None) -> list[Activation]:
        """Those of some modules, of one branch, of one step.

        Args:
            name: of a module, or a pattern as in `record`.
            branch, step: None for all.
        """
        return [
            a
            for a in self.activations
            if (name == "*" or matches(a.name, name)) and branch in (None, a.at.branch) and step in (None, a.at.step)
        ]

    def stack(self, name: str, *, branch: Branch | None = None) -> Shaped[Tensor, "..."]:
        """The values of one module over the passes, `[passes, ...]`.

        Args:
            name: of the module.
            branch: None for all passes.

        Raises:
            ValueError: nothing of it was recorded, or the values have different shapes.
        """
        found = [a.value for a in self.select(name, branch=branch)]
        shapes = sorted({tuple(value.shape) for value in found})
        if len(shapes) != 1:
            what = f"values of shapes {shapes}" if shapes else "no values"
            raise ValueError(f"got {what} for {name!r} ({branch or 'both branches'}), expected some of one shape; see select()")
        return torch.stack(found)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors kept."""
        return sum(a.value.nbytes for a in self.activations if hasattr(a.value, "nbytes"))

    def __len__(self) -> int:
        return len(self.activations)

    def __repr__(self) -> str:
        names = {a.name for a in self.activations}
        return f"Recording({len(self)} values of {len(names)} modules, {self.nbytes:,} bytes)"


def matches(name: str, pattern: str) -> bool:
    """Whether a path is what a pattern means; a star stands for one part of it, or for some of its letters.

    Args:
        name: of a module, such as "gen.layers.3.mlp_moe_gen".
        pattern: such as "gen.layers.*.mlp_moe_gen".
    """
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


# ----------------------------------------------------------------------------------------------------------------- watch


class Watcher:
    """Knows which pass of GEN is running, and brings what its hooks kept to the CPU when the next one begins.

    Args:
        inputs: of the run, or None.
        branch, steps: of which passes things are wanted; None for all.
    """

    def __init__(self, inputs: DenoiseInputs | None, branch: Branch | None, steps: Sequence[int] | None) -> None:
        self.inputs, self.branch, self.steps = inputs, branch, steps
        self.hooks, self.recording = ExitStack(), Recording()
        self._at, self._told, self._pending = Pass(), [], []

    def begin(self, timestep: int) -> None:
        """A pass begins; its branch shows at the first layer.

        Args:
            timestep: what the network is told.
        """
        self.flush()
        self._at = Pass(self._step(timestep), None, timestep)
        self._told.append(timestep)

    def _step(self, timestep: int) -> int | None:
        """The nearest of the schedule, for one preset rounds timesteps; of equal ones each gets its share of the passes."""
        if self.inputs is None:
            return None
        away = (self.inputs.schedule.timesteps.cpu() - timestep).abs()
        equal = (away == away.min()).nonzero().flatten().tolist()
        passes = 1 if self.inputs.uncond is None else 2
        return equal[min(self._told.count(timestep) // passes, len(equal) - 1)]

    def enter_layer(self, layer: int, text: LayerKV) -> None:
        """GEN layer `layer` is about to read this text, which says which branch this is."""
        if self.inputs is not None:
            conditions = {"cond": self.inputs.cond, "uncond": self.inputs.uncond}
            found = [name for name, cond in conditions.items() if cond is not None and cond.cached_kv[layer] is text]
            self._at = replace(self._at, branch=next(iter(found), None))

    def wanted(self) -> bool:
        """Whether this pass is one of those asked for."""
        return self.branch in (None, self._at.branch) and (self.steps is None or self._at.step in self.steps)

    def keep(self, name: str, value: Any) -> None:  # noqa: ANN401
        """Keep a reduced value; of a tensor a copy, for a view would keep all of what it was taken from."""
        at = Pass() if name.startswith("und.") else self._at
        self._pending.append((name, at, value.clone() if isinstance(value, Tensor) else value))

    def flush(self) -> None:
        """Bring what is pending to the CPU. What came before the first layer gets its branch here."""
        for name, at, value in self._pending:
            at = self._at if _before_layers(name) else at
            self.recording.activations.append(Activation(name, at, value.to("cpu") if hasattr(value, "to") else value))
        self._pending.clear()


@contextmanager
def watch(
    transformer: Cosmos3Transformer,
    inputs: DenoiseInputs | None,
    *,
    names: Sequence[str] = (),
    branch: Branch | None = None,
    steps: Sequence[int] | None = None,
) -> Iterator[Watcher]:
    """A `Watcher` on the GEN tower; when the block is left, all hooks come off, its own and those in `watcher.hooks`.

    Args:
        transformer, inputs, branch, steps: see `record`.
        names: of the modules that will be hooked.

    Raises:
        ValueError: `branch` or `steps` without `inputs`, or for modules that run before they are known.
    """
    if (branch is not None or steps is not None) and inputs is None:
        raise ValueError("got branch or steps without inputs, which say what a pass is; give inputs=")
    early = [name for name in names if name.startswith("und.") or (branch is not None and _before_layers(name))]
    if early and (branch is not None or steps is not None):
        raise ValueError(
            f"got a branch or steps for {early[0]}, which runs before they are known: a step with GEN's timestep, a branch at "
            "its first layer; leave them out"
        )
    watcher, gen = Watcher(inputs, branch, steps), transformer.gen

    def begin(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        watcher.begin(round(float(args[0]) / transformer.config.timestep_scale))

    with watcher.hooks:
        watcher.hooks.callback(gen.time_embedder.register_forward_pre_hook(begin).remove)
        for i, layer in enumerate(gen.layers):
            hook = layer.register_forward_pre_hook(lambda m, args, i=i: watcher.enter_layer(i, args[1]))
            watcher.hooks.callback(hook.remove)
        try:
            yield watcher
        finally:
            watcher.flush()


def _before_layers(name: str) -> bool:
    return name.startswith(BEFORE_LAYERS)
