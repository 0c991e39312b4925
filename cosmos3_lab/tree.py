"""A tree of runs: leave a run at a step that was kept, change something, and go on beside it.

    tree = plant(models, *prepare_denoise(models, request))                         # one run, named "root"
    tree = branch_off(models, tree, "green", step=12, prompt="a green circle ...")   # another, from its step 12 on
    tree["green"].result, tree["root"].at(12).latents

Trees are frozen: what adds a branch returns a new tree, and the branches that were there are the same objects in both. The
states that are kept lie on the CPU, so that a tree costs no GPU memory: about four times the latents for each of them, of
which neighbours share half.

Read next: `tree_files.py` (to disk and back), `explore_figures.py` (as a picture).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from cosmos3_lab.branch import fork
from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import DenoiseInputs, DenoiseState, StepRecord, denoise
from cosmos3_lab.latents import Latents
from cosmos3_lab.out_of_memory import freeing_memory
from cosmos3_lab.plain import in_words
from cosmos3_lab.prepare import make_processor
from cosmos3_lab.prompt import Cosmos3TokenizedPrompt
from cosmos3_lab.sizes import latent_to_pixel_shape
from cosmos3_lab.unipc import UniPCState

ROOT = "root"
NOTE_LENGTH = 60  # of a text in a note


@dataclass(frozen=True, eq=False)
class Branch:
    """One run of a tree.

    Attributes:
        name: of the branch.
        parent: the branch that it left, None for the root.
        note: what was changed there, in words.
        inputs: its prompts, schedule and recipe.
        states: those that were kept, on the CPU, in order; the first is where it begins, the last how far it got.
        records: one for each step, numbers only.
    """

    name: str
    parent: str | None
    note: str
    inputs: DenoiseInputs
    states: tuple[DenoiseState, ...]
    records: tuple[StepRecord, ...] = ()

    @property
    def kept(self) -> tuple[int, ...]:
        """Steps at which a state was kept; a fork can leave at each of them."""
        return tuple(state.step_index for state in self.states)

    @property
    def finished(self) -> bool:
        """Whether the run got to the end of its schedule."""
        return self.kept[-1] == self.inputs.schedule.num_steps

    @property
    def result(self) -> Latents:
        """The last latents, clean where the run is finished."""
        return self.states[-1].latents

    def at(self, step: int) -> DenoiseState:
        """The state before a step.

        Args:
            step: one of `kept`.

        Raises:
            ValueError: it was not kept.
        """
        if step not in self.kept:
            raise ValueError(f"got step {step} of {self.name!r}, expected one that was kept: {', '.join(map(str, self.kept))}")
        return self.states[self.kept.index(step)]

    def sigma(self, step: int) -> float:
        """Noise level before a step."""
        return float(self.inputs.schedule.sigmas[step])

    def __repr__(self) -> str:
        origin = f" from {self.parent!r} at step {self.kept[0]}" if self.parent else ""
        end = "finished" if self.finished else f"stopped before step {self.kept[-1]}"
        return f"Branch({self.name!r}{origin}, {self.note or 'nothing changed'}, {end} of {self.inputs.schedule.num_steps})"


@dataclass(frozen=True, eq=False)
class RunTree:
    """Runs that share their beginnings.

    Attributes:
        branches: parents before their children, the root first.
    """

    branches: tuple[Branch, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Of all branches."""
        return tuple(branch.name for branch in self.branches)

    def __getitem__(self, name: str) -> Branch:
        if name not in self.names:
            raise ValueError(f"got branch {name!r}, expected one of {', '.join(map(repr, self.names))}")
        return self.branches[self.names.index(name)]

    def children(self, name: str) -> tuple[Branch, ...]:
        """Branches that left this one.

        Args:
            name: of the branch.
        """
        return tuple(branch for branch in self.branches if branch.parent == name)

    def __repr__(self) -> str:
        lines = []

        def add(branch: Branch, depth: int) -> None:
            lines.append(f"{'  ' * depth}{branch!r}")
            for child in self.children(branch.name):
                add(child, depth + 1)

        add(self.branches[0], 0)
        return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------- grow


def plant(
    models: Cosmos3Models,
    inputs: DenoiseInputs,
    state: DenoiseState,
    *,
    name: str = ROOT,
    stop: int | None = None,
    every: int = 1,
) -> RunTree:
    """A tree of one run, from a state to the end of its schedule.

    Args:
        models: from `load_cosmos3`.
        inputs, state: from `prepare_denoise`, or of any run that was paused.
        name: of the run.
        stop: the step before which to pause; `resume` goes on.
        every: keep every n-th state; the first and the last are always kept.

    Raises:
        MemoryError: it did not fit; says what was needed and what would fit. So do `branch_off`, `resume` and `iter_resume`.
    """
    with freeing_memory(models, inputs.request, inputs.preset):
        return _finish(models, RunTree((Branch(name, None, "", inputs, (move_state(state, "cpu"),)),)), name, stop, every)


def branch_off(
    models: Cosmos3Models,
    tree: RunTree,
    name: str,
    *,
    step: int,
    parent: str | None = None,
    note: str | None = None,
    stop: int | None = None,
    every: int = 1,
    **changes: Any,  # noqa: ANN401  (whatever `fork` takes)
) -> RunTree:
    """A new tree with one more branch: `fork` from a kept state, and on to the end.

    Args:
        models: from `load_cosmos3`.
        tree: stays as it is.
        name: of the new branch.
        step: at which it leaves its parent, one of the parent's `kept`.
        parent: name of the branch that it leaves, None for the root.
        note: what changes, in words; None for words made from `changes`.
        stop, every: see `plant`.
        changes: of `fork`, such as prompt, negative_prompt, guidance_scale, schedule or latents; prompts may be plain text.

    Raises:
        ValueError: there is a branch of this name, the step was not kept, or `fork` cannot do this.
    """
    if name in tree.names:
        raise ValueError(f"got name {name!r}, which is taken; expected one other than {', '.join(map(repr, tree.names))}")
    origin = tree[parent or tree.names[0]]
    given = {key: _tokenized(models, origin.inputs, key, value) for key, value in changes.items()}
    words = _describe(changes) if note is None else note

    def grown() -> RunTree:  # its tensors are not in the frame that an error goes out through
        inputs, state = fork(models, origin.inputs, move_state(origin.at(step), models.device), **given)
        branch = Branch(name, origin.name, words, inputs, (move_state(state, "cpu"),))
        return _finish(models, RunTree((*tree.branches, branch)), name, stop, every)

    with freeing_memory(models, origin.inputs.request, origin.inputs.preset):
        return grown()


def resume(models: Cosmos3Models, tree: RunTree, name: str, *, stop: int | None = None, every: int = 1) -> RunTree:
    """A new tree in which a paused branch went on, bit for bit as if it had never paused.

    Args:
        models: from `load_cosmos3`.
        tree: stays as it is.
        name: of the branch.
        stop, every: see `plant`.
    """
    with freeing_memory(models, tree[name].inputs.request, tree[name].inputs.preset):
        return _finish(models, tree, name, stop, every)


def iter_resume(models: Cosmos3Models, tree: RunTree, name: str, *, stop: int | None = None, every: int = 1) -> Iterator[RunTree]:
    """`resume` step by step: the tree after each state that is kept, to be shown or saved while the run goes on.

    Args:
        models, tree, name, stop, every: see `resume`.
    """
    with freeing_memory(models, tree[name].inputs.request, tree[name].inputs.preset):
        yield from _grow(models, tree, name, stop, every)


def _grow(models: Cosmos3Models, tree: RunTree, name: str, stop: int | None, every: int) -> Iterator[RunTree]:
    branch = tree[name]
    models.place("gen")
    last = branch.inputs.schedule.num_steps if stop is None else min(stop, branch.inputs.schedule.num_steps)
    for state, record in denoise(models.transformer, branch.inputs, move_state(branch.states[-1], models.device), stop=last):
        branch = replace(branch, records=(*branch.records, record.keep("summary")))
        if (state.step_index - branch.kept[0]) % every == 0 or state.step_index == last:
            branch = replace(branch, states=(*branch.states, move_state(state, "cpu")))
            yield RunTree(tuple(branch if old.name == name else old for old in tree.branches))


def prune(tree: RunTree, name: str) -> RunTree:
    """A new tree without a branch and all that left it.

    Args:
        tree: stays as it is.
        name: of a branch other than the root.

    Raises:
        ValueError: it is the root.
    """
    if tree[name].parent is None:
        raise ValueError(f"got {name!r}, the root; expected one of {', '.join(map(repr, tree.names[1:]))}")
    gone = {name}
    for branch in tree.branches:
        if branch.parent in gone:
            gone.add(branch.name)
    return RunTree(tuple(branch for branch in tree.branches if branch.name not in gone))


def x0_of(state: DenoiseState) -> Latents | None:
    """The clean latents that the step before this state predicted, None where the solver has forgotten them.

    Args:
        state: of any branch.
    """
    solvers = [state.video] if state.sound is None else [state.video, state.sound]
    if not all(solver.x0_history for solver in solvers):
        return None
    return Latents(*(solver.x0_history[0] for solver in solvers))


def move_state(state: DenoiseState, device: torch.device | str) -> DenoiseState:
    """The same state on another device, bit for bit.

    Args:
        state: of any run.
        device: to go to.
    """

    def one(solver: UniPCState) -> UniPCState:
        last = None if solver.last_sample is None else solver.last_sample.to(device)
        history = tuple(x0.to(device) for x0 in solver.x0_history)
        return replace(solver, sample=solver.sample.to(device), last_sample=last, x0_history=history)

    return DenoiseState(one(state.video), state.sound and one(state.sound))


def _finish(models: Cosmos3Models, tree: RunTree, name: str, stop: int | None, every: int) -> RunTree:
    if every < 1:
        raise ValueError(f"got every={every}, expected at least 1")
    grown = tree
    for grown in _grow(models, tree, name, stop, every):  # noqa: B007  (the last one is the longest)
        pass
    return grown


def _tokenized(models: Cosmos3Models, inputs: DenoiseInputs, key: str, value: Any) -> Any:  # noqa: ANN401
    """Prompts in plain text become tokens, with the rules and the size of the run; all else stays."""
    if key not in ("prompt", "negative_prompt") or isinstance(value, Cosmos3TokenizedPrompt):
        return value
    media, request = models.media, inputs.request
    frames, height, width = latent_to_pixel_shape(request.video_shape, temporal=media.temporal, spatial=media.spatial)
    size = {"num_frames": frames, "height": height, "width": width, "fps": request.fps}
    processor = make_processor(models, preset=request.preset or inputs.preset, **size)
    cond, uncond = processor.tokenize_pair(value if key == "prompt" else "-", value if key == "negative_prompt" else None)
    return cond if key == "prompt" else uncond


def _describe(changes: dict[str, Any]) -> str:
    def words(key: str, value: Any) -> str:  # noqa: ANN401
        if isinstance(value, Latents):
            return f"{key} edited"
        text = " ".join((value.text if isinstance(value, Cosmos3TokenizedPrompt) else in_words(value)).split())
        return f"{key}: {text if len(text) <= NOTE_LENGTH else text[: NOTE_LENGTH - 1] + '…'}"

    return ", ".join(words(key, value) for key, value in changes.items())
