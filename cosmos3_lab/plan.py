"""What a run would need before it starts: tokens, FLOPs, bytes of every stage, seconds, and what to ask for if it does not fit.

    from cosmos3_lab.plan import plan_run
    from cosmos3_lab.costs import nano_configs

    plan = plan_run(nano_configs(), [(480, 832, 49), (720, 1280, 189)], gpu_memory=16)
    plan.clips[0].chosen, plan.clips[0].split.peak, plan.clips[1].alternatives

No weights are read and no GPU is needed: the stages run on tensors without data (`meter.py`). The same on the command line:
`cosmos3-lab plan --checkpoint nano --gpu-memory 16 480x832x49 720x1280x189`.

Read next: `plan_table.py`, which prints it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from cosmos3_lab.costs import (
    CUBLAS_WORKSPACE,
    NANO_TEXT_TOKENS,
    Clip,
    Cost,
    MetaModels,
    decode_cost,
    denoise_cost,
    encode_cost,
    make_clip,
    meta_models,
    parameter_bytes,
)
from cosmos3_lab.guidance import needs_uncond
from cosmos3_lab.memory import GIB, Placement
from cosmos3_lab.meter import CachingAllocator, Flops
from cosmos3_lab.prepare import prepare_request
from cosmos3_lab.presets import get_preset
from cosmos3_lab.settings import CheckpointConfigs
from cosmos3_lab.speed import H100, Rates, measure_rates

CONTEXT_ROOM = 0.75 * GIB  # of a card's memory: CUDA itself and the code of its kernels, which no tensor ever sees
# Parts of the sides and of the frames that are tried where a size does not fit.
SIDES, LENGTHS = (1.0, 0.75, 2 / 3, 0.5, 1 / 3), tuple(eighths / 8 for eighths in range(8, 0, -1))
ALTERNATIVES = 3


@dataclass(frozen=True)
class Machine:
    """Where the run is to happen.

    Attributes:
        name: in words.
        kind: "cuda" or "cpu".
        free: bytes that may be used; None for no limit.
        device: to measure on; None where it is not here.
    """

    name: str
    kind: str
    free: int | None
    device: torch.device | None

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, as `load_cosmos3(dtype="auto")` chooses it."""
        return torch.bfloat16 if self.kind == "cuda" else torch.float32


def find_machine(gpu_memory: int | float | None = None) -> Machine:
    """The GPU of this machine, or its CPU where there is none; or a GPU of so many GB, here or elsewhere.

    Args:
        gpu_memory: as it is sold (a "16 GB" card has 16 GiB); None for what is free here.

    Raises:
        ValueError: not above zero.
    """
    here = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    if gpu_memory is not None:
        if not 0 < gpu_memory < 2**20:
            raise ValueError(f"got {gpu_memory:g} GB of GPU memory, expected a number above 0, try 16")
        return Machine(f"a GPU of {gpu_memory:g} GB", "cuda", max(0, int(gpu_memory * GIB - CONTEXT_ROOM)), here)
    if here is None:
        return Machine("the CPU", "cpu", None, torch.device("cpu"))
    return Machine(torch.cuda.get_device_name(here), "cuda", torch.cuda.mem_get_info(here)[0], here)


@dataclass(frozen=True)
class Phase:
    """One stage of a run in one placement.

    Attributes:
        stage: "encode" (the prompts), "denoise" (all steps) or "decode".
        flops: of the stage.
        weights: bytes of the weights on the device.
        kept: bytes of what is there all the time: text K/V and latents.
        working: bytes of the activations at their most.
        peak: bytes that PyTorch reserves at the most, the allocator's gaps included: `torch.cuda.max_memory_reserved`.
        moved: bytes of weights that are brought to the device first.
        seconds: estimated.
    """

    stage: str
    flops: Flops
    weights: int
    kept: int
    working: int
    peak: int
    moved: int
    seconds: float


@dataclass(frozen=True)
class Option:
    """A run in one placement.

    Attributes:
        placement: "resident" or "split".
        phases: in order.
    """

    placement: Placement
    phases: tuple[Phase, ...]

    @property
    def peak(self) -> int:
        """The most bytes of any phase."""
        return max(phase.peak for phase in self.phases)

    @property
    def seconds(self) -> float:
        """From token ids to frames and waveform, without loading and without mp4."""
        return sum(phase.seconds for phase in self.phases)


@dataclass(frozen=True)
class ClipPlan:
    """One size.

    Attributes:
        clip: pixels and tokens.
        step_flops: of one step, all branches.
        step_seconds: estimated.
        options: resident first; on a CPU nothing else.
        chosen: the first option that fits; None where none does.
        alternatives: sizes that fit where this one does not, the most similar first.
    """

    clip: Clip
    step_flops: Flops
    step_seconds: float
    options: tuple[Option, ...]
    chosen: Option | None
    alternatives: tuple["ClipPlan", ...] = ()

    @property
    def resident(self) -> Option:
        """All weights on the device all the time."""
        return self.options[0]

    @property
    def split(self) -> Option:
        """Only the weights in use on the device; on a CPU as resident."""
        return self.options[-1]


@dataclass(frozen=True)
class RunPlan:
    """What was asked, and the plan of every size.

    Attributes:
        checkpoint: its name.
        machine: where.
        with_sound: T2AV or T2V.
        num_inference_steps: solver steps.
        text_tokens: of the prompt and, where guidance needs it, of the negative prompt.
        rates: what the seconds come from.
        clips: one per size.
    """

    checkpoint: str
    machine: Machine
    with_sound: bool
    num_inference_steps: int
    text_tokens: tuple[int, ...]
    rates: Rates
    clips: tuple[ClipPlan, ...]

    @property
    def fits(self) -> bool:
        """Whether every size does."""
        return all(clip.chosen is not None for clip in self.clips)


# -------------------------------------------------------------------------------------------------------------- plan


def plan_run(
    configs: CheckpointConfigs,
    sizes: Sequence[tuple[int, int, int]] = (),
    *,
    with_sound: bool | None = None,
    num_inference_steps: int | None = None,
    text_tokens: tuple[int, ...] = NANO_TEXT_TOKENS,
    gpu_memory: int | float | None = None,
    rates: Rates | None = None,
) -> RunPlan:
    """Plan clips of these sizes with this checkpoint.

    Args:
        configs: from `read_configs`, or `nano_configs()`.
        sizes: `(height, width, num_frames)` of each; none for the checkpoint's default.
        with_sound: None for what the checkpoint can.
        num_inference_steps: None for the checkpoint's default.
        text_tokens: of the prompt and, where guidance needs it, of the negative prompt; see `count_text_tokens`.
        gpu_memory: plan for a GPU of so many GB instead of what is free here.
        rates: of the device; None measures them here in a second or two, or takes an H100's where the GPU is not here.

    Raises:
        ValueError: a size that the checkpoint cannot make, sound that it does not have, or no tokens.
    """
    d, machine = configs.defaults, find_machine(gpu_memory)
    with_sound = configs.has_sound if with_sound is None else with_sound
    if with_sound and not configs.has_sound:
        raise ValueError(f"got a run with sound, but {d.name} has none; plan it without")
    steps = d.num_inference_steps if num_inference_steps is None else num_inference_steps
    if steps < 1 or not text_tokens or min(text_tokens) < 1:
        raise ValueError(f"got {steps} steps and {text_tokens} text tokens, expected at least one of each")
    models = meta_models(configs, with_sound=with_sound, dtype=machine.dtype)
    clips = [make_clip(configs, *size, with_sound=with_sound) for size in sizes or [(d.height, d.width, d.num_frames)]]
    if rates is None and machine.device is None:
        rates = H100
    elif rates is None:
        rates = measure_rates(models, max(clips, key=lambda clip: clip.pixels), text_tokens, machine.device)
    planner = _Planner(configs, models, machine, with_sound, steps, text_tokens, rates, encode_cost(models, text_tokens))
    plans = tuple(planner.with_alternatives(planner.plan(clip)) for clip in clips)
    return RunPlan(d.name, machine, with_sound, steps, text_tokens, rates, plans)


def count_text_tokens(configs: CheckpointConfigs) -> tuple[int, ...]:
    """Tokens of the checkpoint's first example prompt and, where its default guidance needs it, of its negative prompt.

    Args:
        configs: of a folder, whose tokenizer is read.
    """
    d = configs.defaults
    request = prepare_request(configs, d.example_prompts[0] if d.example_prompts else "a", with_sound=configs.has_sound)
    guided = needs_uncond(d.guidance_scale, get_preset(d.preset).skip_guidance)
    return tuple(ids.shape[1] for ids in ((request.text_ids, request.neg_text_ids) if guided else (request.text_ids,)))


@dataclass(frozen=True, eq=False)
class _Planner:
    """What is the same for all sizes."""

    configs: CheckpointConfigs
    models: MetaModels
    machine: Machine
    with_sound: bool
    steps: int
    text_tokens: tuple[int, ...]
    rates: Rates
    encode: Cost

    def plan(self, clip: Clip) -> ClipPlan:
        models, text = self.models, self.text_tokens
        step = denoise_cost(models, clip, text)
        denoise = replace(step, flops=step.flops * self.steps, layers=step.layers * self.steps)
        costs = {"encode": self.encode, "denoise": denoise, "decode": decode_cost(models, clip, text)}
        options = [self._resident(costs)] + ([self._split(costs)] if self.machine.kind == "cuda" else [])
        chosen = next((option for option in options if self._fits(option)), None)
        return ClipPlan(clip, step.flops, self.rates.seconds(step.flops, layers=step.layers), tuple(options), chosen)

    def with_alternatives(self, plan: ClipPlan) -> ClipPlan:
        """The same plan and, where it does not fit, smaller ones that do."""
        found: dict[int, ClipPlan] = {}  # the longest clip of each height
        for clip in () if plan.chosen is not None else self._smaller(plan.clip):
            if len(found) == ALTERNATIVES:
                break
            if clip.height not in found and self._may_fit(clip, plan) and (smaller := self.plan(clip)).chosen is not None:
                found[clip.height] = smaller
        return replace(plan, alternatives=tuple(found.values()))

    def _smaller(self, clip: Clip) -> Iterator[Clip]:
        """Shorter and smaller clips, the one that keeps most pixels first."""
        step = self.configs.media.spatial * self.configs.transformer.latent_patch_size
        made = {}
        for side in SIDES:
            height, width = (max(step, round(n * side / step) * step) if side < 1 else n for n in (clip.height, clip.width))
            for length in LENGTHS:
                smaller = make_clip(
                    self.configs, height, width, max(1, int(clip.num_frames * length)), with_sound=self.with_sound
                )
                made[smaller.name] = smaller
        yield from sorted((c for c in made.values() if c.pixels < clip.pixels), key=lambda c: -c.pixels)

    def _may_fit(self, clip: Clip, larger: ClipPlan) -> bool:
        """A first look that spares most plans: activations grow with the tokens, those of decoding with the frame."""
        tokens = clip.layout.s_gen / larger.clip.layout.s_gen
        frame = clip.height * clip.width / (larger.clip.height * larger.clip.width)
        shares = {"encode": 1.0, "denoise": tokens, "decode": frame}
        return all(
            phase.weights + phase.kept + (phase.peak - phase.weights - phase.kept) * shares[phase.stage] <= self.machine.free
            for phase in larger.split.phases
        )

    def _fits(self, option: Option) -> bool:
        return self.machine.free is None or option.peak <= self.machine.free

    def _resident(self, costs: dict[str, Cost]) -> Option:
        """All weights stay, and so does what PyTorch has reserved for an earlier stage."""
        weights, memory = [self.models.transformer, *self.models.decoders], self._memory()
        memory.replay(parameter_bytes(weights))
        return Option("resident", tuple(self._phase(name, cost, memory, moved=0) for name, cost in costs.items()))

    def _split(self, costs: dict[str, Cost]) -> Option:
        """Each stage with its own weights alone, memory given back in between (see `memory.py`)."""
        towers, phases = self.models.transformer, []
        on_device: dict[str, list[nn.Module]] = {
            "encode": [towers.und.layers[0]],  # one after the other; the embedding table stays at home
            "denoise": [towers.gen],
            "decode": self.models.decoders,
        }
        for stage, cost in costs.items():
            memory, nbytes = self._memory(), parameter_bytes(on_device[stage])
            memory.replay(nbytes)
            moved = sum(nbytes) * (len(towers.und.layers) if stage == "encode" else 1)
            phases.append(self._phase(stage, cost, memory, moved=moved))
        return Option("split", tuple(phases))

    def _memory(self) -> CachingAllocator:
        memory = CachingAllocator()
        if self.machine.kind == "cuda":
            memory.allocate(CUBLAS_WORKSPACE)
        return memory

    def _phase(self, stage: str, cost: Cost, memory: CachingAllocator, *, moved: int) -> Phase:
        weights = memory.allocated
        memory.peak_allocated = weights
        memory.replay(cost.events)
        working = memory.peak_allocated - weights - cost.kept
        peak = memory.peak_reserved if self.machine.kind == "cuda" else memory.peak_allocated
        seconds = self.rates.seconds(cost.flops, layers=cost.layers) + moved / self.rates.transfer
        return Phase(stage, cost.flops, weights, cost.kept, working, peak, moved, seconds)
