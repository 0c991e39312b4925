"""Leave the straight road: fork a run, save it, load it.

The whole state of a run is a handful of tensors that are never written in place, so a fork shares them with its parent
and a saved state continues bit for bit.

Read next: `generate.py`.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import DenoiseInputs, DenoiseState, encode_prompts, needs_negative, solver_dtype
from cosmos3_lab.files import replacing
from cosmos3_lab.guidance_scale import Guidance, GuidanceScale, carry_guidance, guidance_settings, resolve_guidance
from cosmos3_lab.latents import Latents
from cosmos3_lab.presets import Preset, get_preset, with_solver
from cosmos3_lab.prompt import Cosmos3TokenizedPrompt
from cosmos3_lab.schedule import Schedule
from cosmos3_lab.solvers import Solver, SolverName
from cosmos3_lab.unipc import UniPCState, unipc_restart

FORMAT = "cosmos3_lab.denoise_state/1"


def fork(
    models: Cosmos3Models,
    inputs: DenoiseInputs,
    state: DenoiseState,
    *,
    prompt: Cosmos3TokenizedPrompt | None = None,
    negative_prompt: Cosmos3TokenizedPrompt | None = None,
    guidance_scale: GuidanceScale | Guidance | None = None,
    schedule: Schedule | None = None,
    preset: str | Preset | None = None,
    solver: SolverName | Solver | None = None,
    latents: Latents | None = None,
    restart: bool | None = None,
) -> tuple[DenoiseInputs, DenoiseState]:
    """Change something half-way and continue from there; the parent run stays as it is.

    Any change makes the solver forget its history: the remembered x0 belong to another velocity field, and the corrector
    would rebuild an edited sample from the unedited one. `restart=False` keeps the history of an edit, to see just that.

    Args:
        models: from `load_cosmos3`.
        inputs, state: the parent's, at any step.
        prompt, negative_prompt: from `Cosmos3Processor`; the text is encoded anew.
        guidance_scale: a new w, as in `Cosmos3T2VRequest`, in place of all that the parent has about guidance; a list has one
            number for each step that is left, and of the steps that are done the parent's numbers are kept.
        schedule: must contain the state's sigma; its number of steps may differ. The parent's guidance goes over to it by sigma.
        preset: for precisions, solver and the rule when guidance is skipped; the prompt's tokens and the schedule stay.
        solver: see `prepare_denoise`.
        latents: the edited sample, at the state's sigma.
        restart: True or False for edited latents, guidance or solver; None means "if anything changes".

    Returns:
        `(inputs, state)` of the fork.

    Raises:
        ValueError: shapes differ, the schedule lacks the current sigma, guidance cannot work, or `restart=False` with a new
            prompt, schedule or preset.
    """
    must_restart = not (prompt is None and negative_prompt is None and schedule is None and preset is None)
    if restart is False and must_restart:
        raise ValueError("got restart=False with a new prompt, schedule or preset, whose history does not fit; leave restart out")
    request, step_index = inputs.request, state.step_index
    if schedule is not None:
        step_index = _index_of_sigma(schedule, float(inputs.schedule.sigmas[step_index]))
    tokens = {}
    if prompt is not None:
        tokens |= {"text_ids": prompt.text_ids, "text_mask": prompt.text_mask}
    if negative_prompt is not None:
        tokens |= {"neg_text_ids": negative_prompt.text_ids, "neg_text_mask": negative_prompt.text_mask}
    new_schedule, new_preset = schedule or inputs.schedule, with_solver(get_preset(preset or inputs.preset), solver)
    request = replace(
        request,
        num_inference_steps=new_schedule.num_steps,
        guidance_scale=_forked_guidance(inputs, new_schedule, step_index, guidance_scale),
        **tokens,
    )
    needed = needs_negative(request, new_preset, first_step=step_index)
    cond, uncond = inputs.cond, inputs.uncond if needed else None
    if tokens or (needed and uncond is None):
        cond, uncond = encode_prompts(models, request, new_preset, first_step=step_index)
    if restart is None:
        restart = must_restart or not (latents is None and guidance_scale is None and solver is None)
    edited = state.latents if latents is None else _checked_edit(latents, state.latents)
    if preset is not None:
        edited = edited.to(solver_dtype(models, new_preset))
    forked = replace(inputs, request=request, schedule=new_schedule, cond=cond, uncond=uncond, preset=new_preset)
    return forked, _forked_state(state, edited, step_index, restart=restart)


def _forked_guidance(
    inputs: DenoiseInputs, schedule: Schedule, step_index: int, asked: GuidanceScale | Guidance | None
) -> GuidanceScale | Guidance:
    """What was asked for the steps that are left, and the parent's for those that are done; a mere number stays one."""
    if isinstance(asked, (int, float)):
        return asked
    if asked is None and isinstance(inputs.request.guidance_scale, (int, float)):
        return inputs.request.guidance_scale
    sigmas = schedule.sigmas[:-1].tolist()
    before = carry_guidance(inputs.guidance, inputs.schedule.sigmas[:-1].tolist(), sigmas)
    if asked is None:
        return before
    with_sound = inputs.request.sound_frames is not None
    left = resolve_guidance(asked, sigmas[step_index:], with_sound=with_sound, first_step=step_index)
    sound = None
    if before.sound_scale or left.sound_scale:
        sound = (before.sound_scale or before.scale)[:step_index] + (left.sound_scale or left.scale)
    return replace(left, scale=before.scale[:step_index] + left.scale, sound_scale=sound)


def _forked_state(state: DenoiseState, latents: Latents, step_index: int, *, restart: bool) -> DenoiseState:
    def one(solver: UniPCState, sample: Tensor) -> UniPCState:
        edited = replace(solver, sample=sample, step_index=step_index)
        return unipc_restart(edited) if restart else edited

    return DenoiseState(one(state.video, latents.video), state.sound and one(state.sound, latents.sound))


def _index_of_sigma(schedule: Schedule, sigma: float) -> int:
    distance = (schedule.sigmas - sigma).abs()
    index = int(distance.argmin())
    if distance[index] > 1e-6:
        raise ValueError(
            f"the fork is at sigma {sigma:.6f}, which the new schedule does not contain (its nearest is "
            f"{float(schedule.sigmas[index]):.6f}); make a Schedule whose sigmas include it"
        )
    return index


def _checked_edit(latents: Latents, current: Latents) -> Latents:
    shapes = [[None if x is None else tuple(x.shape) for x in (one.video, one.sound)] for one in (latents, current)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"got edited latents of shapes (video, sound) {shapes[0]}, expected {shapes[1]}")
    return latents.to(current.video.device, current.video.dtype)


def without_history(state: DenoiseState) -> DenoiseState:
    """The same samples, with nothing that a solver remembers: smaller to save, and all that counts at the end of a run.

    Args:
        state: left as it is.
    """
    return DenoiseState(unipc_restart(state.video), state.sound and unipc_restart(state.sound))


def save_state(path: str | Path, inputs: DenoiseInputs, state: DenoiseState) -> Path:
    """Write a paused run to one safetensors file, complete or not at all.

    Args:
        path: ending in `.safetensors`.
        inputs: of the run; the file keeps a fingerprint of them, so that it cannot be resumed as another run.
        state: to save.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for name, solver in (("video", state.video), ("sound", state.sound)):
        if solver is not None:
            tensors[f"{name}.sample"] = solver.sample
            if solver.last_sample is not None:
                tensors[f"{name}.last_sample"] = solver.last_sample
            tensors |= {f"{name}.x0_history.{k}": x0 for k, x0 in enumerate(solver.x0_history)}
    # Clones, because safetensors refuses tensors that share memory.
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "step_index": str(state.step_index)}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors, metadata | _fingerprint(inputs)))
    return Path(path)


def load_state(path: str | Path, inputs: DenoiseInputs) -> DenoiseState:
    """Read a state that `save_state` wrote, to continue the run that `inputs` describes.

    Args:
        path: the file.
        inputs: prepared as for the first time (same checkpoint, request and preset).

    Raises:
        ValueError: not such a file, or it belongs to a run with other inputs; names what differs.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable state file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by save_state (format {metadata.get('format')!r})")
    differing = [key for key, value in _fingerprint(inputs).items() if metadata.get(key) != value]
    if differing:
        raise ValueError(f"{path} belongs to another run: {', '.join(differing)} differ; prepare the same request and preset")
    index, device = int(metadata["step_index"]), inputs.cond.cached_kv[0].k.device
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    video = _read_solver("video", tensors, index)
    return DenoiseState(video, _read_solver("sound", tensors, index) if "sound.sample" in tensors else None)


def _read_solver(name: str, tensors: dict[str, Tensor], step_index: int) -> UniPCState:
    history = sorted(key for key in tensors if key.startswith(f"{name}.x0_history."))
    last_sample = tensors.get(f"{name}.last_sample")
    return UniPCState(step_index, tensors[f"{name}.sample"], last_sample, tuple(tensors[key] for key in history))


def _fingerprint(inputs: DenoiseInputs) -> dict[str, str]:
    """What must be equal for a state to be continued, as short strings."""
    r = inputs.request
    return {
        "latent shape": f"{r.video_shape}, sound {r.sound_frames}",
        "schedule": _digest(inputs.schedule.sigmas, inputs.schedule.timesteps),
        "prompt": _digest(r.text_ids, r.text_mask),
        "negative prompt": _digest(r.neg_text_ids, r.neg_text_mask) if inputs.uncond is not None else "unused",
        "fps": f"{float(r.fps)!r}, sound latents {r.sound_latent_fps}",
        "seed or noise": str(r.seed) if r.noise is None else _digest(*filter(torch.is_tensor, (r.noise.video, r.noise.sound))),
        "guidance_scale": repr(guidance_settings(inputs.guidance)),
        "the checkpoint's weights": inputs.checkpoint,
        "dtype": str(inputs.cond.cached_kv[0].k.dtype),
        "preset": repr(inputs.preset),
    }


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
