"""The whole story in one call: prompt to mp4, with a progress bar, an early stop and the time of every phase.

`generate` is `prepare_request` -> `run_request`; `run_request` (PhyAI's `engine.step`) is
`prepare_denoise` -> `denoise` -> `decode_latents`, with a folder that the run can be continued and repeated from (`run.py`).
Whoever wants to change something calls those instead.

Read next: `replay.py`.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from cosmos3_lab.branch import load_state
from cosmos3_lab.bundle import Bundle, check_video_name, read_noise
from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.configs import check_choice
from cosmos3_lab.denoise import Keep, StepRecord, prepare_denoise, resolve_run
from cosmos3_lab.files import check_writable
from cosmos3_lab.guidance_scale import Guidance, GuidanceScale
from cosmos3_lab.latents import Latents
from cosmos3_lab.manifest import read_inputs, run_manifest
from cosmos3_lab.out_of_memory import freeing_memory
from cosmos3_lab.prepare import prepare_request
from cosmos3_lab.presets import Preset, UseKarras, get_preset
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.run import TEXTS, Generation, Run, begin_run, start_timer
from cosmos3_lab.schedule import Schedule, ScheduleName
from cosmos3_lab.solvers import Solver, SolverName
from cosmos3_lab.timing import PhaseTimer


def generate(
    models: Cosmos3Models,
    prompt: str | None = None,
    *,
    negative_prompt: str | None = None,
    with_sound: bool = False,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: GuidanceScale | Guidance | None = None,
    seed: int = 42,
    noise: Latents | None = None,
    preset: str | Preset | None = None,
    schedule: Schedule | ScheduleName | None = None,
    flow_shift: float | None = None,
    use_karras_sigmas: UseKarras = "preset",
    solver: SolverName | Solver | None = None,
    should_stop: Callable[[StepRecord], bool] | None = None,
    keep: Keep = "summary",
    progress: bool = True,
    out: str | Path | None = None,
    name: str = "video.mp4",
    save_every: int | None = None,
    private: bool = False,
    resume: str | Path | None = None,
) -> Generation:
    """Prompt to video, or to video with sound.

    Args:
        models: from `load_cosmos3`.
        prompt: what to show (and, with sound, what to hear); plain text or a JSON object.
        negative_prompt: None for the preset's default, "" for an empty one.
        with_sound: True for T2AV.
        num_frames, height, width, fps, num_inference_steps, guidance_scale: None for the checkpoint's defaults; guidance may also
            be a list, a function of (step, sigma), a `GuidanceInterval` or a `Guidance`.
        seed: of the noise.
        noise: initial noise to use instead of the seed's.
        preset, schedule, flow_shift, use_karras_sigmas, solver: see `prepare_denoise`.
        should_stop: called with every step's full record; True ends the run there, with the latents kept and nothing decoded.
        keep: what the records hold: "none", "summary" (numbers), "x0" or "full" (every tensor of every step, on the CPU).
        progress: whether to show a tqdm bar.
        out: folder in which the run gets a folder of its own, `run_001`, `run_002`, ...: the mp4, the latents, a contact sheet,
            and a manifest to go on from and to repeat it by (`bundle.py`). None writes nothing.
        name: of the mp4.
        save_every: steps between two saves of the state; None as often as costs a hundredth of the run. A run that is interrupted
            is saved in any case.
        private: leaves texts, token ids and the machine out of the manifest, and tags out of the mp4. The ids are there until
            the run is finished, so that it can go on; then it cannot be repeated from its folder.
        resume: folder of a run that did not end: it goes on with its own settings, bit for bit as if nothing had happened.

    Raises:
        ValueError: an argument cannot work; says what was given, what is allowed and what to try.
        OSError: a file cannot be written.
        FloatingPointError: the latents became infinite or not a number.
        MemoryError: it did not fit; says what was needed and what would fit.
    """
    given = dict(locals())
    if resume is not None:
        other = [key for key, default in DEFAULTS.items() if key not in HOW and given[key] != default]
        if other:
            raise ValueError(f"got {other[0]} together with resume; the run goes on with its own settings, leave it out")
        return resume_run(models, resume, should_stop=should_stop, keep=keep, progress=progress, save_every=save_every)
    if prompt is None:
        raise ValueError("got no prompt; describe the video, or name a run to go on with (resume=)")
    timer = start_timer(models)
    preset = get_preset(models.defaults.preset if preset is None else preset)
    if isinstance(schedule, Schedule) and num_inference_steps is None:
        num_inference_steps = schedule.num_steps
    with timer("preprocess"):
        request = prepare_request(
            models,
            prompt,
            negative_prompt=negative_prompt,
            with_sound=with_sound,
            num_frames=num_frames,
            height=height,
            width=width,
            fps=fps,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            seed=seed,
            noise=noise,
            preset=preset,
        )
    return run_request(
        models,
        request,
        preset=preset,
        schedule=schedule,
        flow_shift=flow_shift,
        use_karras_sigmas=use_karras_sigmas,
        solver=solver,
        should_stop=should_stop,
        keep=keep,
        progress=progress,
        out=out,
        name=name,
        save_every=save_every,
        private=private,
        requested={key: given[key] for key in RUN_SETTINGS},
        timer=timer,
    )


# Settings of a run, in the order of `generate`, and how it is to be done, which may change when it goes on.
DEFAULTS = {name: parameter.default for name, parameter in signature(generate).parameters.items()}
HOW = ("models", "should_stop", "keep", "progress", "save_every", "resume")
RUN_SETTINGS = tuple(name for name in DEFAULTS if name not in (*HOW, "out", "name", "private"))


def run_request(
    models: Cosmos3Models,
    request: Cosmos3T2VRequest,
    *,
    preset: str | Preset | None = None,
    schedule: Schedule | ScheduleName | None = None,
    flow_shift: float | None = None,
    use_karras_sigmas: UseKarras = "preset",
    solver: SolverName | Solver | None = None,
    should_stop: Callable[[StepRecord], bool] | None = None,
    keep: Keep = "summary",
    progress: bool = True,
    out: str | Path | None = None,
    name: str = "video.mp4",
    save_every: int | None = None,
    private: bool = False,
    requested: Mapping[str, Any] | None = None,
    timer: PhaseTimer | None = None,
) -> Generation:
    """A request to a finished clip: PhyAI's `engine.step(request)`. Errors as in `generate`.

    Args:
        models: from `load_cosmos3`.
        request: from `prepare_request`, or written by hand; the prompt is already in it.
        preset, schedule, flow_shift, use_karras_sigmas, solver: see `prepare_denoise`.
        should_stop, keep, progress, out, name, save_every, private: see `generate`.
        requested: for the manifest, the settings as they were asked for, with "prompt" and "negative_prompt".
        timer: goes on counting; None begins to.
    """
    check_video_name(name)
    check_choice("keep", keep, Keep)
    _check_save_every(save_every)
    if out is not None:
        check_writable(out)  # before the hours of work, not after
    timer = timer or start_timer(models)
    request, schedule, preset = resolve_run(
        models.configs,
        request,
        preset=preset,
        schedule=schedule,
        flow_shift=flow_shift,
        use_karras_sigmas=use_karras_sigmas,
        solver=solver,
    )

    def whole_run() -> Generation:  # its tensors are not in the frame that an error goes out through
        run = begin_run(
            models,
            request,
            schedule=schedule,
            preset=preset,
            timer=timer,
            keep=keep,
            save_every=save_every,
            requested=requested,
            out=out,
            name=name,
            private=private,
        )
        return _drive(run, should_stop, progress)

    with freeing_memory(models, request, preset):
        return whole_run()


def resume_run(
    models: Cosmos3Models,
    folder: str | Path,
    *,
    should_stop: Callable[[StepRecord], bool] | None = None,
    keep: Keep = "summary",
    progress: bool = True,
    save_every: int | None = None,
) -> Generation:
    """Go on with a run that did not end. Stages that were done are not done again, but for encoding the prompts.

    Args:
        models: of the same checkpoint, dtype and quantization; device and placement may be others.
        folder: of the run.
        should_stop, keep, progress, save_every: see `generate`.

    Raises:
        ValueError: it is finished, another process works on it, or the models are not those that it began with.
    """
    check_choice("keep", keep, Keep)
    _check_save_every(save_every)
    bundle, timer = Bundle(Path(folder)), start_timer(models)
    record = bundle.read_manifest()
    if record["status"] == "finished":
        raise ValueError(f"{bundle.path} is finished: its clip is {bundle.path / record['video']}; replay repeats a run")
    request, schedule, preset = bundle_inputs(bundle, record, models)
    timer.seconds |= {phase: record["timings"].get(phase, 0.0) for phase in timer.seconds if phase != "model_load"}

    def rest_of_run() -> Generation:
        with timer("inference"), timer("condition"):
            inputs, state = prepare_denoise(models, request, preset=preset, schedule=schedule)
        file, saved = bundle.latents if bundle.latents.exists() else bundle.state, None
        if record["status"] != "denoising" or file.exists():  # a crash may have come before the first save
            state = load_state(file, inputs)
            saved = state.step_index
        manifest = {key: record["texts"][key] for key in TEXTS if key in record["texts"]} | run_manifest(models, inputs)
        run = Run(
            models,
            inputs,
            state,
            manifest=manifest,
            timer=timer,
            keep=keep,
            save_every=save_every,
            bundle=bundle,
            record=record,
            saved=saved,
        )
        return _drive(run, should_stop, progress)

    with freeing_memory(models, request, preset):
        return rest_of_run()


def bundle_inputs(bundle: Bundle, record: Mapping[str, Any], models: Cosmos3Models) -> tuple[Cosmos3T2VRequest, Schedule, Preset]:
    """The request, schedule and recipe of a run's folder, resolved, for `prepare_denoise`.

    Args:
        bundle: of the run.
        record: its manifest.
        models: that are to do it.

    Raises:
        ValueError: the folder does not say enough, or its token ids are not of this checkpoint.
    """
    if record.get("texts") is None:
        raise ValueError(f"{bundle.path} is private: it does not have the token ids that the run could be repeated with")
    try:
        request, schedule, preset = read_inputs(record, read_noise(bundle.noise))
    except ValueError as error:
        raise ValueError(f"{bundle.path}: {error}") from error
    least, most = torch.cat([request.text_ids, request.neg_text_ids], 1).aminmax()
    if least < 0 or most >= models.config.vocab_size:
        raise ValueError(f"{bundle.path} has token ids that {models.defaults.name} does not know; load the run's own checkpoint")
    return resolve_run(models.configs, request, schedule=schedule, preset=preset)


def _drive(run: Run, should_stop: Callable[[StepRecord], bool] | None, progress: bool) -> Generation:
    """Take the run's steps to the end, or to where `should_stop` ends it: then keep the latents, and decode nothing."""
    state, settings = run.result.state, run.result.manifest
    size = f"{settings['num_frames']} frames {settings['height']}x{settings['width']}"
    steps = settings["num_inference_steps"]
    with run.kept():
        with tqdm(total=steps, initial=state.step_index, desc=size, unit="step", disable=not progress) as bar:
            for record in run.steps():
                bar.set_postfix(sigma=f"{record.sigma:.3f}")
                bar.update()
                if should_stop is not None and should_stop(record):
                    break
        if run.result.stopped:
            run.pause()
            return run.result
        return run.finish()


def _check_save_every(save_every: int | None) -> None:
    if save_every is not None and save_every < 1:
        raise ValueError(f"got save_every {save_every}, expected at least 1, or None")
