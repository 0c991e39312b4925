"""The loop: from noise to clean latents, one public step at a time.

    prepare_denoise(models, request)  ->  DenoiseInputs (what stays), DenoiseState (what changes)
    denoise_step(transformer, inputs, state)  ->  next DenoiseState, StepRecord (everything that the step saw and did)

One step asks the GEN tower for the velocity of both branches, guides, and hands the result to UniPC, for video and sound
together. `denoise` is a generator over steps: to pause is to stop iterating; to resume is to call it again with the state,
bit for bit the same.

Read next: `branch.py` (change something half-way, save and load a state), `video_vae.py` and `sound_avae.py` (latents to
pixels and waveform), `generate.py` (all of it in one call).
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.guidance import GuidedVelocity, classifier_free_guidance, needs_uncond
from cosmos3_lab.latents import Latents, init_latents
from cosmos3_lab.presets import Precision, Preset, UseKarras, get_preset, resolve_schedule
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.schedule import Schedule, ScheduleName
from cosmos3_lab.showing import Shown
from cosmos3_lab.towers import Cosmos3Transformer
from cosmos3_lab.transformer import Cosmos3Condition, encode_conditions, predict_velocity
from cosmos3_lab.unipc import UniPCState, UniPCStep, unipc_init, unipc_step


@dataclass(frozen=True, eq=False)
class DenoiseInputs(Shown):
    """What stays the same from step to step.

    Attributes:
        request: what was asked for.
        schedule: sigmas and timesteps.
        cond: the prompt, encoded.
        uncond: the negative prompt, encoded; None where guidance needs no second pass.
        preset: the recipe; its precisions rule the step.
        checkpoint: fingerprint of the weights, so that a saved state is not continued with others.
    """

    request: Cosmos3T2VRequest
    schedule: Schedule
    cond: Cosmos3Condition
    uncond: Cosmos3Condition | None
    preset: Preset
    checkpoint: str = ""

    @property
    def guidance_scale(self) -> float:
        """The request's w."""
        return self.request.guidance_scale


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
Keep = Literal["none", "summary", "x0", "full"]


@dataclass(frozen=True, eq=False)
class StepRecord(Shown):
    """What one step saw and did.

    Attributes:
        index: of the step, from 0.
        order: of the predictor.
        corrector_order: of the corrector, 0 where there was nothing to correct.
        sigma, timestep: noise level, and what the network was told.
        seconds: wall-clock time of the step.
        rms: root mean square of every tensor of the step, such as `rms["video.x0"]`; always kept.
        velocity: conditional, unconditional and guided; None where `keep` dropped it.
        x0: this step's prediction of the clean latents; None where dropped.
        corrector_move: corrected sample minus sample; None where dropped or where there was nothing to correct.
        predictor_move: next sample minus corrected sample; None where dropped.
    """

    index: int
    order: int
    corrector_order: int
    sigma: float
    timestep: int
    seconds: float
    rms: Mapping[str, float]
    velocity: GuidedVelocity | None = None
    x0: Latents | None = None
    corrector_move: Latents | None = None
    predictor_move: Latents | None = None

    def keep(self, what: Keep) -> "StepRecord":
        """A copy that holds only what was asked for, on the CPU: "summary" numbers, "x0" too, or the "full" record."""
        if what == "full":
            v = self.velocity
            moved = GuidedVelocity(_cpu(v.guided), _cpu(v.cond), _cpu(v.uncond)) if v else None
            moves = {"corrector_move": _cpu(self.corrector_move), "predictor_move": _cpu(self.predictor_move)}
            return replace(self, velocity=moved, x0=_cpu(self.x0), **moves)
        x0 = _cpu(self.x0) if what == "x0" else None
        return replace(self, velocity=None, x0=x0, corrector_move=None, predictor_move=None)

    def __repr__(self) -> str:
        held = [n for n in ("velocity", "x0", "corrector_move", "predictor_move") if getattr(self, n) is not None]
        return (
            f"StepRecord(index={self.index}, order={self.order}, sigma={self.sigma:.5f}, timestep={self.timestep}, "
            f"{self.seconds:.2f} s, holds {', '.join(held) or 'numbers only'})"
        )


# ---------------------------------------------------------------------------------------------------------- prepare


def prepare_denoise(
    models: Cosmos3Models,
    request: Cosmos3T2VRequest,
    *,
    preset: str | Preset | None = None,
    schedule: Schedule | ScheduleName | None = None,
    flow_shift: float | None = None,
    use_karras_sigmas: UseKarras = "preset",
    encode: Encode | None = None,
) -> tuple[DenoiseInputs, DenoiseState]:
    """Encode both prompts with the UND tower, lay out the schedule, draw the noise.

    Args:
        models: from `load_cosmos3`.
        request: from `make_request`, or written by hand.
        preset: recipe; None means the request's, else the checkpoint's ("native" unless its `cosmos3_lab.json` says otherwise).
        schedule: a `Schedule`, or a name: "native-flow", "phyai-flow", "diffusers-flow", "karras", "auto" (the checkpoint's
            scheduler file); None leaves the choice to `use_karras_sigmas`, then to the preset.
        flow_shift: of flow schedules; None means the checkpoint's default, else the preset's (under "auto" the file's).
        use_karras_sigmas: PhyAI's switch: True for Karras, False for a flow schedule, None for the checkpoint's file.
        encode: used instead of `encode_prompts`, such as `reuse.encode_once()` for runs that share their texts.

    Raises:
        ValueError: two choices contradict each other, or the request does not fit the checkpoint.
    """
    preset = get_preset(preset or request.preset or models.defaults.preset)
    _check_fits(models, request)
    made = resolve_schedule(
        request.num_inference_steps,
        preset=preset,
        schedule=schedule,
        flow_shift=flow_shift,
        use_karras_sigmas=use_karras_sigmas,
        scheduler_config=models.configs.scheduler,
        default_flow_shift=models.defaults.flow_shift,
    )
    cond, uncond = (encode or encode_prompts)(models, request, preset)
    noise = (request.noise or _draw(models, request, preset)).to(
        models.device, _pick(preset.solver_precision, models.transformer.dtype)
    )
    inputs = DenoiseInputs(request, made, cond, uncond, preset, models.fingerprint)
    return inputs, _initial_state(noise, step_index=0)


def encode_prompts(
    models: Cosmos3Models, request: Cosmos3T2VRequest, preset: Preset
) -> tuple[Cosmos3Condition, Cosmos3Condition | None]:
    """Both prompts through the UND tower together: in split placement each of its layers visits the device once, for both.

    Args:
        models, request: see `prepare_denoise`.
        preset: says from which guidance scale on the negative prompt is needed.

    Returns:
        `(cond, uncond)`; `uncond` is None where guidance skips the second pass.
    """
    prompts = [(request.text_ids, request.text_mask)]
    if needs_uncond(request.guidance_scale, preset.skip_guidance):
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
def denoise_step(transformer: Cosmos3Transformer, inputs: DenoiseInputs, state: DenoiseState) -> tuple[DenoiseState, StepRecord]:
    """One step: velocity of both branches, guidance, UniPC for video and sound.

    Args:
        transformer: its GEN tower must be on the latents' device; UND is not touched.
        inputs: from `prepare_denoise` or `fork`.
        state: before the step; left as it is.

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

    def velocity(cond: Cosmos3Condition) -> Latents:
        predicted = predict_velocity(transformer, latents, int(schedule.timesteps[i]), cond, timestep_dtype=timestep_dtype)
        return predicted.to(_pick(preset.guidance_precision, model_dtype))

    v_uncond = None if inputs.uncond is None else velocity(inputs.uncond)
    guided = classifier_free_guidance(velocity(inputs.cond), v_uncond, inputs.guidance_scale)
    v = guided.guided.to(latents.video.dtype)
    order = preset.solver_order
    video = unipc_step(state.video, v.video, schedule, solver_order=order)
    sound = None if state.sound is None else unipc_step(state.sound, v.sound, schedule, solver_order=order)
    after = DenoiseState(video.state, None if sound is None else sound.state)
    return after, _record(i, schedule, guided, latents, video, sound, begin)


def denoise(
    transformer: Cosmos3Transformer, inputs: DenoiseInputs, state: DenoiseState, *, stop: int | None = None
) -> Iterator[tuple[DenoiseState, StepRecord]]:
    """Do steps until the schedule's end, yielding the state and record after each.

    Args:
        transformer, inputs, state: see `denoise_step`.
        stop: the step before which to stop; None runs to the end.
    """
    stop = inputs.schedule.num_steps if stop is None else min(stop, inputs.schedule.num_steps)
    while state.step_index < stop:
        state, record = denoise_step(transformer, inputs, state)
        yield state, record


def _record(
    index: int,
    schedule: Schedule,
    velocity: GuidedVelocity,
    before: Latents,
    video: UniPCStep,
    sound: UniPCStep | None,
    begin: float,
) -> StepRecord:
    x0 = Latents(video.x0, None if sound is None else sound.x0)
    corrected = Latents(video.corrected, None if sound is None else sound.corrected)
    after = Latents(video.state.sample, None if sound is None else sound.state.sample)
    corrector_move = corrected.map(torch.sub, before) if video.corrector_order else None
    predictor_move = after.map(torch.sub, corrected)
    rms = _rms(
        sample=before,
        velocity=velocity.guided,
        velocity_cond=velocity.cond,
        velocity_uncond=velocity.uncond,
        guidance=None if velocity.uncond is None else velocity.cond.map(torch.sub, velocity.uncond),
        x0=x0,
        corrector_move=corrector_move,
        predictor_move=predictor_move,
    )
    broken = [name for name, value in rms.items() if not math.isfinite(value)]
    if broken:
        raise FloatingPointError(
            f"step {index}: {broken[0]} is not finite; the weights are damaged, or the numbers outgrew the dtype (try float32)"
        )
    return StepRecord(
        index=index,
        order=video.predictor_order,
        corrector_order=video.corrector_order,
        sigma=float(schedule.sigmas[index]),
        timestep=int(schedule.timesteps[index]),
        seconds=time.perf_counter() - begin,  # after the numbers above have waited for the device
        rms=rms,
        velocity=velocity,
        x0=x0,
        corrector_move=corrector_move,
        predictor_move=predictor_move,
    )


def _rms(**tensors: Latents | None) -> dict[str, float]:
    """`{"video.x0": ..., "sound.x0": ..., ...}`, brought to the CPU in one transfer."""
    values: dict[str, Tensor] = {}
    for name, latents in tensors.items():
        if latents is not None:
            values[f"video.{name}"] = latents.video.float().square().mean().sqrt()
            if latents.sound is not None:
                values[f"sound.{name}"] = latents.sound.float().square().mean().sqrt()
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


def _pick(precision: Precision, model_dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if precision == "float32" else model_dtype


def _cpu(latents: Latents | None) -> Latents | None:
    return None if latents is None else latents.to("cpu")
