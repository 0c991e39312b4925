"""The loop: from noise to clean latents, one public step at a time.

    prepare_denoise(models, request)  ->  DenoiseInputs (what stays), DenoiseState (what changes)
    denoise_step(transformer, inputs, state)  ->  next DenoiseState, StepRecord (everything that the step saw and did)

One step asks the GEN tower for the velocity of both branches, guides, and hands the result to the solver, for video and sound
together. `denoise` is a generator over steps: to pause is to stop iterating; to resume is to call it again with the state,
bit for bit the same.

Read next: `branch.py` (change something half-way, save and load a state), `video_vae.py` and `sound_avae.py` (latents to
pixels and waveform), `generate.py` (all of it in one call).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.guidance import GuidedVelocity, guide
from cosmos3_lab.guidance_scale import Guidance, needs_uncond, resolve_guidance, simplest
from cosmos3_lab.latents import Latents, init_latents
from cosmos3_lab.layer_graphs import LayerGraphs
from cosmos3_lab.presets import Precision, Preset, UseKarras, get_preset, make_solver, resolve_schedule, with_solver
from cosmos3_lab.records import Keep, StepRecord, record_step  # noqa: F401  (Keep: whoever takes steps finds it here)
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.schedule import Schedule, ScheduleName
from cosmos3_lab.settings import CheckpointConfigs
from cosmos3_lab.showing import Shown
from cosmos3_lab.solvers import Solver, SolverName, solver_step
from cosmos3_lab.towers import Cosmos3Transformer
from cosmos3_lab.transformer import Cosmos3Condition, RunLayers, encode_conditions, predict_velocity, run_gen_layers
from cosmos3_lab.unipc import UniPCState, UniPCStep, unipc_init


@dataclass(frozen=True, eq=False)
class DenoiseInputs(Shown):
    """What stays the same from step to step.

    Attributes:
        request: what was asked for, with guidance in plain numbers.
        schedule: sigmas and timesteps.
        cond: the prompt, encoded.
        uncond: the negative prompt, encoded; None where no step needs the second pass.
        preset: the recipe; its precisions and its solver rule the step.
        checkpoint: fingerprint of the weights, so that a saved state is not continued with others.
    """

    request: Cosmos3T2VRequest
    schedule: Schedule
    cond: Cosmos3Condition
    uncond: Cosmos3Condition | None
    preset: Preset
    checkpoint: str = ""

    @property
    def guidance(self) -> Guidance:
        """The request's guidance, with a number for each step."""
        with_sound = self.request.sound_frames is not None
        return resolve_guidance(self.request.guidance_scale, self.schedule.sigmas[:-1].tolist(), with_sound=with_sound)

    @property
    def guidance_scale(self) -> float | tuple[float, ...]:
        """w of the video: one number where it is the same at every step, else one for each."""
        return simplest(self.guidance.scale)


@dataclass(frozen=True, eq=False)
class DenoiseState(Shown):
    """What changes from step to step: one solver state per modality.

    Attributes:
        video: of the video latent `[1, C, t, h, w]`.
        sound: of the sound latent `[1, n_sound, d_sound]`, None in T2V.
    """

    video: UniPCState
    sound: UniPCState | None = None

    @property
    def latents(self) -> Latents:
        """The noisy sample at this sigma; at the end of the schedule, the result."""
        return Latents(self.video.sample, None if self.sound is None else self.sound.sample)

    @property
    def step_index(self) -> int:
        """The step to do next."""
        return self.video.step_index

    def __repr__(self) -> str:
        return f"DenoiseState(step_index={self.step_index}, {self.latents})"


Encode = Callable[[Cosmos3Models, Cosmos3T2VRequest, Preset], tuple[Cosmos3Condition, Cosmos3Condition | None]]


# ---------------------------------------------------------------------------------------------------------- prepare


def prepare_denoise(
    models: Cosmos3Models,
    request: Cosmos3T2VRequest,
    *,
    preset: str | Preset | None = None,
    schedule: Schedule | ScheduleName | None = None,
    flow_shift: float | None = None,
    use_karras_sigmas: UseKarras = "preset",
    solver: SolverName | Solver | None = None,
    encode: Encode | None = None,
) -> tuple[DenoiseInputs, DenoiseState]:
    """Encode both prompts with the UND tower, lay out the schedule, turn guidance into numbers, draw the noise.

    Args:
        models: from `load_cosmos3`.
        request: from `make_request`, or written by hand.
        preset: recipe; None means the request's, else the checkpoint's ("native" unless its `cosmos3_lab.json` says otherwise).
        schedule: a `Schedule`, or a name: "native-flow", "phyai-flow", "diffusers-flow", "karras", "auto" (the checkpoint's
            scheduler file); None leaves the choice to `use_karras_sigmas`, then to the preset.
        flow_shift: of flow schedules; None means the checkpoint's default, else the preset's (under "auto" the file's).
        use_karras_sigmas: PhyAI's switch: True for Karras, False for a flow schedule, None for the checkpoint's file.
        solver: "unipc", "euler" or "heun", or a `Solver` with all settings; None means the preset's.
        encode: used instead of `encode_prompts`, such as `reuse.encode_once()` for runs that share their texts.

    Raises:
        ValueError: two choices contradict each other, or the request does not fit the checkpoint.
    """
    _check_fits(models, request)
    request, made, preset = resolve_run(
        models.configs,
        request,
        preset=preset,
        schedule=schedule,
        flow_shift=flow_shift,
        use_karras_sigmas=use_karras_sigmas,
        solver=solver,
    )
    cond, uncond = (encode or encode_prompts)(models, request, preset)
    noise = (request.noise or _draw(models, request, preset)).to(models.device, solver_dtype(models, preset))
    inputs = DenoiseInputs(request, made, cond, uncond, preset, models.fingerprint)
    return inputs, _initial_state(noise, step_index=0)


def resolve_run(
    configs: CheckpointConfigs,
    request: Cosmos3T2VRequest,
    *,
    preset: str | Preset | None = None,
    schedule: Schedule | ScheduleName | None = None,
    flow_shift: float | None = None,
    use_karras_sigmas: UseKarras = "preset",
    solver: SolverName | Solver | None = None,
) -> tuple[Cosmos3T2VRequest, Schedule, Preset]:
    """What a run really uses: guidance in plain numbers, the sigmas, the recipe. Resolved once more they stay as they are.

    Args:
        configs: of the checkpoint; no weights are needed.
        request: see `prepare_denoise`.
        preset, schedule, flow_shift, use_karras_sigmas, solver: see `prepare_denoise`.

    Raises:
        ValueError: two choices contradict each other.
    """
    preset = with_solver(get_preset(preset or request.preset or configs.defaults.preset), solver)
    made = resolve_schedule(
        request.num_inference_steps,
        preset=preset,
        schedule=schedule,
        flow_shift=flow_shift,
        use_karras_sigmas=use_karras_sigmas,
        scheduler_config=configs.scheduler,
        default_flow_shift=configs.defaults.flow_shift,
    )
    if not isinstance(request.guidance_scale, (int, float)):
        sigmas, with_sound = made.sigmas[:-1].tolist(), request.sound_frames is not None
        request = replace(request, guidance_scale=resolve_guidance(request.guidance_scale, sigmas, with_sound=with_sound))
    return request, made, preset


def needs_negative(request: Cosmos3T2VRequest, preset: Preset, *, first_step: int = 0) -> bool:
    """Whether any step needs the negative prompt.

    Args:
        request: its guidance a number, or resolved.
        preset: says from which guidance scale on it is needed.
        first_step: the first one that counts.
    """
    if isinstance(request.guidance_scale, (int, float)):
        return needs_uncond(request.guidance_scale, preset.skip_guidance)
    return request.guidance_scale.needs_negative(preset.skip_guidance, first_step=first_step)


def encode_prompts(
    models: Cosmos3Models, request: Cosmos3T2VRequest, preset: Preset, *, first_step: int = 0
) -> tuple[Cosmos3Condition, Cosmos3Condition | None]:
    """Both prompts through the UND tower together: in split placement each of its layers visits the device once, for both.

    Args:
        models: see `prepare_denoise`.
        request, preset, first_step: see `needs_negative`.

    Returns:
        `(cond, uncond)`; `uncond` is None where no step needs it.
    """
    prompts = [(request.text_ids, request.text_mask)]
    if needs_negative(request, preset, first_step=first_step):
        prompts.append((request.neg_text_ids, request.neg_text_mask))
    cond, *uncond = encode_conditions(
        models.transformer,
        [(ids.to(models.device), mask.to(models.device)) for ids, mask in prompts],
        request.video_shape,
        request.fps,
        sound_len=request.sound_frames,
        sound_fps=request.sound_latent_fps,
        layers=models.und_layers(),
    )
    models.place("gen")
    return cond, uncond[0] if uncond else None


def _draw(models: Cosmos3Models, request: Cosmos3T2VRequest, preset: Preset) -> Latents:
    return init_latents(
        request.video_shape,
        channels=models.media.channels,
        sound_frames=request.sound_frames,
        sound_dim=models.media.sound_dim or 0,
        seed=request.seed,
        noise_source=preset.noise_source,
    )


def _check_fits(models: Cosmos3Models, request: Cosmos3T2VRequest) -> None:
    media = models.media
    if request.sound_frames is not None and not models.transformer.with_sound:
        raise ValueError(
            "got a request with sound, but this checkpoint has none, or was loaded with load_sound=False; ask for "
            "sound_frames=None or load it with sound"
        )
    if request.sound_frames is not None and request.sound_dim not in (None, media.sound_dim):
        raise ValueError(f"got sound_dim {request.sound_dim}, expected the checkpoint's {media.sound_dim}, or None")
    if request.noise is not None:
        want_sound = None if request.sound_frames is None else (1, request.sound_frames, media.sound_dim)
        want = ((1, media.channels, *request.video_shape), want_sound)
        got = (tuple(request.noise.video.shape), None if request.noise.sound is None else tuple(request.noise.sound.shape))
        if got != want:
            raise ValueError(f"got noise of shapes (video, sound) {got}, expected {want}")


def _initial_state(latents: Latents, *, step_index: int) -> DenoiseState:
    sound = None if latents.sound is None else unipc_init(latents.sound, step_index=step_index)
    return DenoiseState(unipc_init(latents.video, step_index=step_index), sound)


# ------------------------------------------------------------------------------------------------------------- step


@torch.no_grad()
def denoise_step(
    transformer: Cosmos3Transformer, inputs: DenoiseInputs, state: DenoiseState, *, run_layers: RunLayers = run_gen_layers
) -> tuple[DenoiseState, StepRecord]:
    """One step: velocity of both branches, guidance, and the solver for video and sound.

    Args:
        transformer: its GEN tower must be on the latents' device; UND is not touched.
        inputs: from `prepare_denoise` or `fork`.
        state: before the step; left as it is.
        run_layers: see `predict_velocity`.

    Returns:
        The state after the step, and a record with the step's full tensors (`record.keep("summary")` drops them).

    Raises:
        ValueError: the schedule is at its end.
        FloatingPointError: a velocity or sample is infinite or not a number.
        ValueError: the GEN tower is not on the latents' device.
    """
    begin, i, schedule = time.perf_counter(), state.step_index, inputs.schedule
    if not 0 <= i < schedule.num_steps:
        raise ValueError(f"got a state at step {i} of {schedule.num_steps}: there is no step left to do")
    latents = state.latents
    gen_device = transformer.gen.proj_in.weight.device
    if gen_device != latents.video.device:
        raise ValueError(
            f"the GEN tower is on {gen_device} and the latents are on {latents.video.device}; with split placement call "
            "models.place('gen') first (closed models are on 'meta': load them again)"
        )
    preset, model_dtype = inputs.preset, transformer.dtype
    timestep_dtype = _pick(preset.timestep_precision, model_dtype)

    def predict(cond: Cosmos3Condition, latents: Latents, step: int) -> Latents:
        timestep = int(schedule.timesteps[step])
        predicted = predict_velocity(transformer, latents, timestep, cond, timestep_dtype=timestep_dtype, run_layers=run_layers)
        return predicted.to(_pick(preset.guidance_precision, model_dtype))

    after, steps, velocities = guided_step(predict, inputs.cond, inputs.uncond, inputs.guidance, preset, schedule, state)
    return after, record_step(i, schedule, velocities, latents, steps, begin)


def guided_step(
    predict: Callable[[Cosmos3Condition, Latents, int], Latents],
    cond: Cosmos3Condition,
    uncond: Cosmos3Condition | None,
    guidance: Guidance,
    preset: Preset,
    schedule: Schedule,
    state: DenoiseState,
) -> tuple[DenoiseState, list[UniPCStep], list[GuidedVelocity]]:
    """Guidance and solver of one step, whoever predicts the velocities.

    Args:
        predict: called with `(cond or uncond, latents, step)`, gives a velocity in the dtype in which to guide.
        cond, uncond: the prompt and the negative prompt; without the latter there is no guidance.
        guidance: with a number for each step.
        preset: its solver, and its rule for skipping guidance.
        schedule: of the run.
        state: before the step.

    Returns:
        The state after the step, what the solver did for each modality, and every velocity that it asked for.
    """
    i, velocities = state.step_index, []
    second_pass = uncond is not None and guidance.needs_uncond(i, preset.skip_guidance)

    def velocity(samples: Sequence[Tensor], step: int) -> list[Tensor]:
        latents = Latents(*samples)
        v_uncond = predict(uncond, latents, step) if second_pass else None
        v = guide(predict(cond, latents, step), v_uncond, guidance, i, skip_guidance=preset.skip_guidance)
        velocities.append(v)
        return v.guided.to(latents.video.dtype).tensors()

    solvers = [state.video] if state.sound is None else [state.video, state.sound]
    steps = solver_step(make_solver(preset), solvers, velocity, schedule)
    after = [step.state for step in steps]
    if i < guidance.zero_steps:  # such a step has told the solver nothing about x0, so that it must not be remembered
        after = [unipc_init(before.sample, step_index=i + 1) for before in solvers]
    return DenoiseState(*after), steps, velocities


def denoise(
    transformer: Cosmos3Transformer, inputs: DenoiseInputs, state: DenoiseState, *, stop: int | None = None
) -> Iterator[tuple[DenoiseState, StepRecord]]:
    """Do steps until the schedule's end, yielding the state and record after each.

    Args:
        transformer, inputs, state: see `denoise_step`.
        stop: the step before which to stop; None runs to the end.

    On a GPU the layers of a small clip are replayed as graphs (`layer_graphs.py`), which hold up to 0.2 GiB until the iterator is
    exhausted or dropped.
    """
    stop = inputs.schedule.num_steps if stop is None else min(stop, inputs.schedule.num_steps)
    graphs = LayerGraphs()
    while state.step_index < stop:
        state, record = denoise_step(transformer, inputs, state, run_layers=graphs)
        yield state, record


def solver_dtype(models: Cosmos3Models, preset: Preset) -> torch.dtype:
    """What the solver's state is kept in."""
    return _pick(preset.solver_precision, models.transformer.dtype)


def _pick(precision: Precision, model_dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if precision == "float32" else model_dtype
