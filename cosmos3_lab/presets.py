"""Three recipes for one model: what NVIDIA's framework, PhyAI and diffusers each do between prompt and latents.

They agree on the network and disagree on the schedule, the precision of the solver, the prompt's metadata, the negative
prompt, the noise and the moment when guidance is skipped. Each preset is one frozen record of those choices; any of them
can be replaced (`dataclasses.replace(PRESETS["native"], system_prompt="...")`). `compare()` prints them side by side.

Read next: `schedule.py`, `denoise.py` (who obeys the record).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_origin

from cosmos3_lab.captions import Metadata, NegativeDefault, NegativeMetadata
from cosmos3_lab.configs import check_choice, real_number, shown
from cosmos3_lab.latents import NoiseSource
from cosmos3_lab.schedule import (
    FLOW_VARIANTS,
    Schedule,
    ScheduleName,
    flow_schedule,
    karras_schedule,
    schedule_from_config,
)
from cosmos3_lab.solvers import Solver, SolverName

# "model" is the dtype of the transformer's weights: bfloat16 on a GPU, so that sigmas and timesteps get rounded too.
Precision = Literal["float32", "model"]

# What `use_karras_sigmas` (PhyAI's switch) may be; "preset" means that the caller did not say.
UseKarras = bool | None | Literal["preset"]


@dataclass(frozen=True)
class Preset:
    """Every choice in which the reference implementations differ.

    Attributes:
        name: of the recipe.
        schedule: see `schedule.py`; "auto" reads the checkpoint's scheduler file.
        flow_shift: of the flow schedules, where neither the caller nor the checkpoint names one.
        system_prompt, system_prompt_image: system message for a clip and for a single frame, None for none.
        metadata, negative_metadata, negative_default: see `Cosmos3Processor`.
        noise_source: see `init_latents`.
        sound_rounding: see `sound_latent_frames`.
        skip_guidance: the second pass is left out when the scale is "at 1" exactly or "up to 1".
        solver_precision: dtype of latents between steps, of sigma in x0 and of the corrector's weights.
        guidance_precision: dtype in which two velocities are combined.
        timestep_precision: dtype of the timestep and of the time embedding's MLP.
        solver, solver_order, corrector: see `Solver`; UniPC of order 2 with its corrector in all references.

    Raises:
        ValueError: a choice that does not exist.
    """

    name: str
    schedule: ScheduleName = "native-flow"
    flow_shift: float = 10.0
    system_prompt: str | None = None
    system_prompt_image: str | None = None
    metadata: Metadata = "inject"
    negative_metadata: NegativeMetadata = "same"
    negative_default: NegativeDefault = "structured"
    noise_source: NoiseSource = "numpy"
    sound_rounding: Literal["integer", "float"] = "integer"
    skip_guidance: Literal["at 1", "up to 1"] = "at 1"
    solver_precision: Precision = "float32"
    guidance_precision: Precision = "float32"
    timestep_precision: Precision = "float32"
    solver: SolverName = "unipc"
    solver_order: int = 2
    corrector: bool = True

    def __post_init__(self) -> None:
        for f in fields(self):
            if get_origin(f.type) is Literal:
                check_choice(f.name, getattr(self, f.name), f.type)
        make_solver(self)


def make_solver(preset: Preset) -> Solver:
    """The preset's solver."""
    return Solver(preset.solver, preset.solver_order, preset.corrector)


PRESETS: dict[str, Preset] = {
    # The model authors' recipe, with solver, guidance and timestep in float32: the lab's default.
    "native": Preset("native"),
    "phyai": Preset(
        "phyai",
        schedule="phyai-flow",
        negative_metadata="none",
        sound_rounding="float",
        skip_guidance="up to 1",
        solver_precision="model",
        guidance_precision="model",
        timestep_precision="model",
    ),
    "diffusers": Preset(
        "diffusers",
        schedule="auto",
        # "give prompt" is what the model side was trained with; correcting it would change the token ids.
        system_prompt="You are a helpful assistant who will generate videos from a give prompt.",
        system_prompt_image="You are a helpful assistant who will generate images from a give prompt.",
        metadata="sentences",
        negative_metadata="inverse",
        negative_default="empty",
        noise_source="torch",
    ),
}


def get_preset(preset: str | Preset) -> Preset:
    """The preset of that name; a `Preset` is returned as it is.

    Raises:
        ValueError: no such name.
    """
    if isinstance(preset, Preset):
        return preset
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"got preset {shown(preset)}, expected one of {', '.join(PRESETS)}")
    return PRESETS[preset]


def with_solver(preset: Preset, solver: SolverName | Solver | None) -> Preset:
    """The preset with another solver.

    Args:
        preset: is not changed.
        solver: a name keeps the preset's order and corrector; None keeps the preset.
    """
    if solver is None:
        return preset
    if isinstance(solver, Solver):
        return replace(preset, solver=solver.name, solver_order=solver.order, corrector=solver.corrector)
    return replace(preset, solver=solver)


def comparison_rows() -> list[tuple[str, ...]]:
    """`(field, native, phyai, diffusers)` for every field of `Preset`, as text."""
    names = [f.name for f in fields(Preset) if f.name != "name"]
    return [(name, *(str(getattr(p, name)) for p in PRESETS.values())) for name in names]


def compare() -> None:
    """Print the presets side by side; rows in which they differ are marked with a star."""
    from rich import print as rich_print
    from rich.table import Table

    table = Table("", "choice", *PRESETS, title="What the reference implementations do (* where they differ)")
    for name, *values in comparison_rows():
        table.add_row("*" if len(set(values)) > 1 else "", name, *values)
    rich_print(table)


def resolve_schedule(
    num_steps: int,
    *,
    preset: Preset,
    schedule: Schedule | ScheduleName | None = None,
    flow_shift: float | None = None,
    use_karras_sigmas: UseKarras = "preset",
    scheduler_config: Mapping[str, Any] | None = None,
    default_flow_shift: float | None = None,
) -> Schedule:
    """Turn the ways to ask for a schedule into one `Schedule`. Arguments as in `prepare_denoise`.

    Args:
        num_steps: n.
        preset, schedule, flow_shift, use_karras_sigmas: see `prepare_denoise`.
        scheduler_config: the checkpoint's scheduler file, for "auto".
        default_flow_shift: the checkpoint's own default.

    Raises:
        ValueError: two choices contradict each other, or "auto" has no file to read.
    """
    flow_shift = None if flow_shift is None else real_number("flow_shift", flow_shift)
    if isinstance(schedule, Schedule):
        if flow_shift is not None or use_karras_sigmas != "preset":
            raise ValueError("got a finished Schedule and also flow_shift or use_karras_sigmas, expected one of the two")
        if schedule.num_steps != num_steps:
            raise ValueError(f"got a Schedule of {schedule.num_steps} steps and num_inference_steps={num_steps}, make them equal")
        return schedule
    name = _schedule_name(preset, schedule, use_karras_sigmas)
    if name == "karras":
        if flow_shift is not None:
            raise ValueError(f"got flow_shift {flow_shift:g} with Karras sigmas, which have no shift; leave one of them out")
        return karras_schedule(num_steps)
    if name == "auto":
        if scheduler_config is None:
            raise ValueError(
                "schedule 'auto' reads scheduler/scheduler_config.json, which this checkpoint lacks; name a schedule"
            )
        return schedule_from_config(scheduler_config, num_steps, flow_shift=flow_shift)
    shifts = (flow_shift, default_flow_shift, preset.flow_shift)
    return flow_schedule(num_steps, flow_shift=next(s for s in shifts if s is not None), variant=name)


def _schedule_name(preset: Preset, schedule: ScheduleName | None, use_karras_sigmas: UseKarras) -> ScheduleName:
    asked: ScheduleName | None = None
    if use_karras_sigmas is True:
        asked = "karras"
    elif use_karras_sigmas is None:
        asked = "auto"
    elif use_karras_sigmas is False:
        # The preset's own flow; a preset that would read the file gets the flow of the library that it stands for.
        asked = preset.schedule if preset.schedule in FLOW_VARIANTS else "diffusers-flow"
        if schedule in FLOW_VARIANTS:
            asked = schedule
    if schedule is not None and asked not in (None, schedule):
        raise ValueError(f"got schedule {schedule!r} and use_karras_sigmas={use_karras_sigmas}, which disagree; leave one out")
    name = schedule or asked or preset.schedule
    if name not in (*FLOW_VARIANTS, "karras", "auto"):
        raise ValueError(f"got schedule {name!r}, expected one of {', '.join(FLOW_VARIANTS)}, karras, auto")
    return name
