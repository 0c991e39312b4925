"""The whole story in one call: prompt to mp4, with a progress bar, an early stop and the time of every phase.

`generate` is `prepare_request` -> `run_request`; `run_request` (PhyAI's `engine.step`) is
`prepare_denoise` -> `denoise` -> `decode_latents`. Whoever wants to change something calls those instead.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm.auto import tqdm

from cosmos3_lab.captions import resolve_negative_prompt
from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.configs import check_choice
from cosmos3_lab.denoise import DenoiseInputs, DenoiseState, Keep, StepRecord, denoise, prepare_denoise
from cosmos3_lab.files import check_writable
from cosmos3_lab.guidance_scale import Guidance, GuidanceScale, guidance_settings
from cosmos3_lab.latents import Latents
from cosmos3_lab.media import Cosmos3GenerationOutput, open_mp4, to_uint8_frames
from cosmos3_lab.prepare import prepare_request
from cosmos3_lab.presets import Preset, UseKarras, get_preset
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.schedule import Schedule, ScheduleName
from cosmos3_lab.showing import Shown
from cosmos3_lab.sizes import latent_to_pixel_shape
from cosmos3_lab.solvers import Solver, SolverName
from cosmos3_lab.sound_avae import decode_sound
from cosmos3_lab.timing import PhaseTimer
from cosmos3_lab.video_vae import iter_decode_video

# Choices of a preset that were made when the request was, in case it is then run with another preset.
PROMPT_CHOICES = (
    "system_prompt",
    "system_prompt_image",
    "metadata",
    "negative_metadata",
    "negative_default",
    "sound_rounding",
)
PHASES = ("model_load", "preprocess", "inference", "to_cpu", "encode")
INFERENCE_PARTS = ("condition", "denoise", "decode")


@dataclass(frozen=True, eq=False)
class Generation(Shown):
    """What a run gave.

    Attributes:
        output: frames and waveform; None where the run was stopped early.
        latents: the last ones, clean unless the run was stopped early.
        records: one per step, with what `keep` asked for.
        timings: seconds of PhyAI's phases `model_load, preprocess, inference, to_cpu, encode` (phases that did not happen are
            0; model_load is that of the models, also in their later runs; encode is what the mp4 takes after the last frame), and
            of `condition` (encoding the prompts), `denoise` and `decode` within inference.
        inputs, state: to look at, continue (`denoise`) or fork.
        manifest: the effective settings, as plain values.
        path: of the mp4, None where none was written.
    """

    output: Cosmos3GenerationOutput | None
    latents: Latents
    records: tuple[StepRecord, ...]
    timings: dict[str, float]
    inputs: DenoiseInputs
    state: DenoiseState
    manifest: dict[str, Any]
    path: Path | None = None

    @property
    def stopped(self) -> bool:
        """Whether the run was stopped before the schedule's end."""
        return self.state.step_index < self.inputs.schedule.num_steps

    def __repr__(self) -> str:
        result = f"stopped before step {self.state.step_index}" if self.stopped else repr(self.output)
        return f"Generation({result}, {sum(self.timings[p] for p in PHASES[1:]):.1f} s, path={self.path})"


def generate(
    models: Cosmos3Models,
    prompt: str,
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
        out: folder for the mp4; None writes none.
        name: of the mp4.

    Raises:
        ValueError: an argument cannot work; says what was given, what is allowed and what to try.
        OSError: the mp4 cannot be written.
        FloatingPointError: the latents became infinite or not a number.
    """
    timer = PhaseTimer()
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
    result = run_request(
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
    )
    manifest = {**prompt_manifest(models, result.inputs, prompt, negative_prompt), **result.manifest}
    return replace(result, manifest=manifest, timings={**result.timings, **timer.seconds})


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
) -> Generation:
    """A request to a finished clip: PhyAI's `engine.step(request)`.

    Arguments and errors as in `generate`; the prompt is already in the request.
    """
    check_choice("keep", keep, Keep)
    if Path(name).suffix != ".mp4" or Path(name).name != name:
        raise ValueError(f"got name {name!r}, expected a file name that ends in .mp4, without a folder")
    if out is not None:
        check_writable(out)  # before the hours of work, not after
    timer = start_timer(models)
    with timer("inference"):
        with timer("condition"):
            inputs, state = prepare_denoise(
                models,
                request,
                preset=preset,
                schedule=schedule,
                flow_shift=flow_shift,
                use_karras_sigmas=use_karras_sigmas,
                solver=solver,
            )
        with timer("denoise"):
            state, records = _run_steps(models, inputs, state, should_stop, keep, progress)
    output, path = None, None
    if state.step_index == inputs.schedule.num_steps:  # else `should_stop` ended the run: keep the latents, decode nothing
        path = None if out is None else Path(out) / name
        output = decode_latents(models, state.latents, fps=request.fps, mp4=path, timer=timer)
    return Generation(output, state.latents, records, timer.seconds, inputs, state, run_manifest(models, inputs), path)


def start_timer(models: Cosmos3Models) -> PhaseTimer:
    """A timer of a run's phases and parts, all of them at 0 but the loading of the models.

    Args:
        models: from `load_cosmos3`.
    """
    zero = dict.fromkeys((*PHASES, *INFERENCE_PARTS), 0.0)
    return PhaseTimer(models.device, seconds=zero | {"model_load": models.load_seconds})


def decode_latents(
    models: Cosmos3Models,
    latents: Latents,
    *,
    fps: float,
    mp4: str | Path | None = None,
    on_chunk: Callable[[int], None] | None = None,
    timer: PhaseTimer | None = None,
) -> Cosmos3GenerationOutput:
    """Clean latents to frames and waveform on the CPU, chunk by chunk.

    Args:
        models: from `load_cosmos3`; in split placement both towers leave the device first.
        latents: the result of denoising, or any x0 on the way.
        fps: frames a second.
        mp4: a file to write as well, while later frames are still being decoded; None writes none.
        on_chunk: called with the number of frames decoded so far; what it raises ends the decoding.
        timer: counts "inference" with "decode" in it, "to_cpu", and as "encode" what the mp4 takes after the last frame.

    Raises:
        ValueError: the models were closed, or loaded without sound; a name that is not an mp4's.
        OSError: the mp4 cannot be written.
        FloatingPointError: pixels or samples are infinite or not numbers.
    """
    if latents.sound is not None and models.avae is None:
        raise ValueError("got latents with sound, but the models were loaded without it; load with load_sound=True")
    timer = timer or PhaseTimer(models.device)
    media, sound = models.media, {"waveform": None, "sample_rate": None}
    shape = latent_to_pixel_shape(tuple(latents.video.shape[2:]), temporal=media.temporal, spatial=media.spatial)
    with timer("inference"), timer("decode"):
        models.place("decode")
        if latents.sound is not None:
            waveform = decode_sound(models.avae, latents.sound)[0]
            _check_finite(waveform, "sound")
            sound = {"waveform": np.asarray(waveform.cpu()), "sample_rate": media.sampling_rate}
    frames, done = np.empty((*shape, 3), np.uint8), 0
    with ExitStack() as file:
        write = None if mp4 is None else file.enter_context(open_mp4(mp4, shape, fps=fps, **sound))
        for levels in _iter_frames(models, latents, timer):
            piece = frames[done : done + len(levels)]
            with timer("to_cpu"):
                torch.from_numpy(piece).copy_(levels)
            done += len(piece)
            if write is not None:
                write(piece)
            if on_chunk is not None:
                on_chunk(done)
        if mp4 is not None:
            with timer("encode"):
                file.close()
    return Cosmos3GenerationOutput(frames, fps, **sound)


def _iter_frames(models: Cosmos3Models, latents: Latents, timer: PhaseTimer) -> Iterator[UInt8[Tensor, "n height width 3"]]:
    """Chunks of 8-bit frames on the device; only making them is counted."""
    chunks = iter_decode_video(models.vae, latents.video)
    while True:
        with timer("inference"), timer("decode"):
            pixels = next(chunks, None)
            if pixels is None:
                return
            _check_finite(pixels, "video")
            levels = to_uint8_frames(pixels)
        yield levels


def _run_steps(
    models: Cosmos3Models,
    inputs: DenoiseInputs,
    state: DenoiseState,
    should_stop: Callable[[StepRecord], bool] | None,
    keep: Keep,
    progress: bool,
) -> tuple[DenoiseState, tuple[StepRecord, ...]]:
    records = []
    frames, height, width = _pixel_shape(models, inputs.request)
    size = f"{frames} frames {height}x{width}"
    with tqdm(total=inputs.schedule.num_steps, desc=size, unit="step", disable=not progress) as bar:
        for after, record in denoise(models.transformer, inputs, state):
            state = after
            if keep != "none":
                records.append(record.keep(keep))
            bar.set_postfix(sigma=f"{record.sigma:.3f}")
            bar.update()
            if should_stop is not None and should_stop(record):
                break
    return state, tuple(records)


def _check_finite(values: Tensor, kind: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise FloatingPointError(f"the decoded {kind} is not finite; the weights are damaged, or the numbers outgrew the dtype")


def prompt_manifest(
    models: Cosmos3Models, inputs: DenoiseInputs, prompt: str, negative_prompt: str | None
) -> dict[str, str | None]:
    """The texts of a run; the negative prompt is None where guidance needed none.

    Args:
        models, inputs: of the run.
        prompt, negative_prompt: as given to `generate`.
    """
    texts = {"prompt": prompt, "negative_prompt": None, "negative_prompt_source": None}
    if inputs.uncond is not None:
        negative = resolve_negative_prompt(negative_prompt, inputs.preset.negative_default, models.folder)
        texts |= {"negative_prompt": negative.text, "negative_prompt_source": negative.source}
    return texts


def run_manifest(models: Cosmos3Models, inputs: DenoiseInputs) -> dict[str, Any]:
    """The effective settings of a run as plain values, without its texts.

    Args:
        models, inputs: of the run.
    """
    request = inputs.request
    frames, height, width = _pixel_shape(models, request)
    return {
        "checkpoint": models.defaults.name,
        "fingerprint": models.fingerprint,
        "num_frames": frames,
        "height": height,
        "width": width,
        "fps": request.fps,
        "sound_frames": request.sound_frames,
        "text_tokens": request.text_ids.shape[1],
        "negative_text_tokens": request.neg_text_ids.shape[1] if inputs.uncond is not None else None,
        "num_inference_steps": inputs.schedule.num_steps,
        **guidance_settings(inputs.guidance),
        "schedule": inputs.schedule.name,
        "flow_shift": inputs.schedule.flow_shift,
        "preset": inputs.preset.name,
        "choices": asdict(inputs.preset) | {name: getattr(request.preset or inputs.preset, name) for name in PROMPT_CHOICES},
        "seed": request.seed if request.noise is None else None,
        "dtype": str(models.transformer.dtype).removeprefix("torch."),
        "device": str(models.device),
        "placement": models.placement,
        "quantized": models.quantized,
    }


def _pixel_shape(models: Cosmos3Models, request: Cosmos3T2VRequest) -> tuple[int, int, int]:
    media = models.media
    return latent_to_pixel_shape(request.video_shape, temporal=media.temporal, spatial=media.spatial)
