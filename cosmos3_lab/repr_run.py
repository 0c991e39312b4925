"""Pages of the records that a run makes: velocities, solver state, step, clip, generation.

Read next: `repr_html.py`, `repr_pictures.py`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from cosmos3_lab.denoise import DenoiseInputs, DenoiseState, StepRecord
from cosmos3_lab.guidance import GuidedVelocity
from cosmos3_lab.guidance_scale import scale_words
from cosmos3_lab.latents import Latents
from cosmos3_lab.media import Cosmos3GenerationOutput
from cosmos3_lab.presets import make_solver
from cosmos3_lab.records import guidance_saving
from cosmos3_lab.repr_html import Plain, TensorRow, field_table, image, number_table, page, tensor_table, text_block, unfold
from cosmos3_lab.repr_pictures import clip_picture, latents_picture, schedule_picture
from cosmos3_lab.repr_start import latents_rows
from cosmos3_lab.run import INFERENCE_PARTS, PHASES, Generation
from cosmos3_lab.unipc import UniPCState

if TYPE_CHECKING:
    from cosmos3_lab.figure_canvas import LabFigure

SOME_VALUES = 4_000_000  # of a clip's frames, for their statistics
QUANTITIES = {
    "sample": "noisy latents before the step",
    "velocity": "guided: what the solver used",
    "velocity_cond": "with the prompt",
    "velocity_uncond": "with the negative prompt",
    "guidance": "velocity_cond \u2212 velocity_uncond",
    "x0": "clean latents, as predicted here",
    "corrector_move": "corrected sample \u2212 sample",
    "predictor_move": "next sample \u2212 corrected sample",
}


def velocity_page(velocity: GuidedVelocity) -> str:
    """Statistics of the branches, and some frames."""
    meanings = {"guided": "what the solver uses", "cond": "with the prompt", "uncond": "with the negative prompt"}
    held = {name: getattr(velocity, name) for name in meanings if getattr(velocity, name) is not None}
    parts = [tensor_table([row for name, latents in held.items() for row in latents_rows(name, latents, meanings[name])])]
    if velocity.uncond is None:
        parts.append(field_table([("uncond", None, "guidance was skipped: guided is cond")]))
    parts.append(image(latents_picture(held)))
    return page("GuidedVelocity", "noise \u2212 x0, as predicted", parts)


def solver_page(state: UniPCState) -> str:
    """What the solver remembers."""
    fields = [
        ("step_index", state.step_index, "the step to do next"),
        ("x0_history", Plain(f"{len(state.x0_history)} tensors"), "latest predictions of x0, newest first"),
    ]
    if state.last_sample is None:
        fields.append(("last_sample", None, "nothing remembered: at the start, or after a restart"))
    tensors = [("sample", state.sample, "predicted sample at this sigma")]
    if state.last_sample is not None:
        tensors.append(("last_sample", state.last_sample, "corrected sample of the step before"))
    tensors += [
        (f"x0_history[{i}]", x0, f"x0 predicted {i + 1} step{'s' if i else ''} ago") for i, x0 in enumerate(state.x0_history)
    ]
    return page("UniPCState", f"before step {state.step_index}", [field_table(fields), tensor_table(tensors)])


def inputs_page(inputs: DenoiseInputs) -> str:
    """What was prepared, and the schedule's curve."""
    fields = [
        ("request", inputs.request, "what was asked for"),
        ("schedule", inputs.schedule, "sigmas and timesteps"),
        ("cond", inputs.cond, "the prompt, encoded"),
        ("uncond", inputs.uncond, "the negative prompt, encoded; None where no step needs it"),
        ("preset", Plain(inputs.preset.name), "recipe; its precisions and its solver rule the step"),
        ("checkpoint", Plain(inputs.checkpoint or "unknown"), "fingerprint of the weights"),
        ("guidance", Plain(repr(inputs.guidance)), "the request's, with a number for each step"),
        ("guidance_scale", Plain(scale_words(inputs.guidance_scale)), "w of the video"),
    ]
    solver = make_solver(inputs.preset)
    summary = f"{inputs.schedule.num_steps} steps of {solver}, guidance {scale_words(inputs.guidance_scale)}"
    return page("DenoiseInputs", summary, [field_table(fields), image(schedule_picture(inputs.schedule))])


def state_page(state: DenoiseState) -> str:
    """The sample, and the latest x0."""
    fields = [
        ("step_index", state.step_index, "the step to do next"),
        ("video", state.video, "the solver's memory of the video"),
        ("sound", state.sound, "the solver's memory of the sound, None for a silent video"),
    ]
    shown = {"sample": state.latents}
    tensors = latents_rows("latents", state.latents, "sample at this sigma, clean after the last step")
    if state.video.x0_history:
        shown["latest x0"] = _latest_x0(state)
        tensors += [
            (f"{name}.x0_history[0]", solver.x0_history[0], "clean latents, as predicted last")
            for name, solver in (("video", state.video), ("sound", state.sound))
            if solver is not None
        ]
    parts = [field_table(fields), tensor_table(tensors), image(latents_picture(shown))]
    return page("DenoiseState", f"before step {state.step_index}", parts)


def _latest_x0(state: DenoiseState) -> Latents:
    return Latents(state.video.x0_history[0], None if state.sound is None else state.sound.x0_history[0])


def step_page(record: StepRecord) -> str:
    """Numbers, tensors where they were kept, and the picture that the network aimed at."""
    first = "nothing was corrected" if record.corrector_order == 0 else "of the corrector"
    fields = [
        ("index", record.index, "of the step, from 0"),
        ("order", record.order, "of the predictor"),
        ("corrector_order", record.corrector_order, first),
        ("sigma", Plain(f"{record.sigma:.5f}"), "noise level"),
        ("timestep", record.timestep, "what the network was told"),
        ("seconds", Plain(f"{record.seconds:.3f}"), "wall-clock time"),
        ("evaluations", record.evaluations, "how often the solver asked for a velocity"),
        ("passes", record.passes, "through the GEN tower"),
        ("second_pass", record.second_pass, "whether the negative prompt's ran"),
    ]
    dropped = [n for n in ("velocity", "x0", "corrector_move", "predictor_move") if getattr(record, n) is None]
    parts = [field_table(fields), _rms_table(record.rms)]
    tensors = _held_rows(record)
    if tensors:
        parts.append(unfold(f"{len(tensors)} tensors that it holds", tensor_table(tensors)))
    if dropped:
        why = "; generate(..., keep='full') keeps them" if len(dropped) > 1 else ""
        parts.append(f'<div style="margin: 0.4em 0; opacity: 0.75">None here: {", ".join(dropped)}{why}</div>')
    if record.x0 is not None:
        parts.append(image(latents_picture(_sample(record) | {"x0": record.x0})))
    return page("StepRecord", f"step {record.index}, sigma {record.sigma:.5f}", parts)


def _rms_table(rms: Mapping[str, float]) -> str:
    modalities = [m for m in ("video", "sound") if any(name.startswith(f"{m}.") for name in rms)]
    names = dict.fromkeys(name.split(".", 1)[1] for name in rms)
    rows = {name: [rms.get(f"{m}.{name}") for m in modalities] for name in names}
    return number_table("rms", modalities, rows, QUANTITIES)


def _held_rows(record: StepRecord) -> list[TensorRow]:
    v = record.velocity
    named = {
        "velocity.guided": (v and v.guided, QUANTITIES["velocity"]),
        "velocity.cond": (v and v.cond, QUANTITIES["velocity_cond"]),
        "velocity.uncond": (v and v.uncond, QUANTITIES["velocity_uncond"]),
        **{name: (getattr(record, name), QUANTITIES[name]) for name in ("x0", "corrector_move", "predictor_move")},
    }
    return [row for name, (latents, meaning) in named.items() for row in latents_rows(name, latents, meaning)]


def _sample(record: StepRecord) -> dict[str, Latents]:
    """The noisy latents that the step began with, `x0 + sigma * velocity`; they are not kept."""
    if record.velocity is None:
        return {}
    return {"sample": record.x0.map(lambda x0, v: x0 + record.sigma * v.to(x0.dtype), record.velocity.guided)}


def output_page(output: Cosmos3GenerationOutput) -> str:
    """Statistics of frames and waveform, and a picture of both."""
    return page("Cosmos3GenerationOutput", _length(output), [_output_table(output), image(clip_picture(output))])


def _length(output: Cosmos3GenerationOutput) -> str:
    count = len(output.frames)
    frames = "1 frame" if count == 1 else f"{count} frames, {count / output.fps:.2f} s"
    return f"{frames}, {'silent' if output.waveform is None else 'with sound'}"


def _output_table(output: Cosmos3GenerationOutput) -> str:
    fields = [("fps", output.fps, "frames a second"), ("sample_rate", output.sample_rate, "of the waveform in Hz")]
    if output.waveform is None:
        fields.append(("waveform", None, "a silent clip"))
    some = _some_frames(output.frames)
    word = "" if len(some) == len(output.frames) else f" (statistics of {len(some)} frames)"
    tensors: list[TensorRow] = [("frames", output.frames, f"RGB: frames, rows, columns, colours{word}")]
    if output.waveform is not None:
        tensors.append(("waveform", output.waveform, "channels, samples; \u22121 to 1"))
    return tensor_table(tensors, samples={"frames": some}) + field_table(fields)


def _some_frames(frames: np.ndarray) -> np.ndarray:
    return frames[:: max(1, -(-frames.size // SOME_VALUES))]


def generation_page(generation: Generation) -> str:
    """The clip (or how far it came), and what there is to look at."""
    steps, output = generation.inputs.schedule.num_steps, generation.output
    stopped = f"stopped before step {generation.state.step_index} of {steps}"
    fields = [
        ("output", output, "the clip; None where the run was stopped"),
        ("latents", generation.latents, "the last ones" + ("" if generation.stopped else ", clean")),
        ("records", Plain(_records(generation)), "one per step, with what keep= asked for"),
        ("timings", Plain(_timings(generation.timings)), "seconds; those in brackets are within inference"),
        ("inputs", Plain(f"DenoiseInputs, {steps} steps"), "what stayed the same from step to step"),
        ("state", generation.state, "to continue or fork"),
        ("manifest", Plain(f"{len(generation.manifest)} settings"), "as they took effect; unfold below"),
        ("path", generation.path and Plain(str(generation.path)), "of the mp4"),
        ("bundle", generation.bundle and Plain(str(generation.bundle)), "folder of the run, to go on from or to repeat it by"),
        ("stopped", generation.stopped, "before the schedule's end"),
    ]
    parts = [text_block(str(generation.manifest["prompt"]), name="prompt")] if generation.manifest.get("prompt") else []
    parts.append(image(_generation_picture(generation)))
    parts.append(field_table(fields))
    manifest = [(name, Plain(value) if isinstance(value, str) else value, "") for name, value in generation.manifest.items()]
    parts.append(unfold("manifest", field_table(manifest)))
    return page("Generation", stopped if output is None else _length(output), parts)


def _records(generation: Generation) -> str:
    saving = guidance_saving(generation.records)
    skipped = f"; {saving}" if 0 < saving.skipped < saving.evaluations else ""
    return f"{len(generation.records)} StepRecord{skipped}"


def _generation_picture(generation: Generation) -> "LabFigure":
    if generation.output is not None:
        return clip_picture(generation.output)
    state = generation.state
    return latents_picture({"sample": state.latents} | ({"latest x0": _latest_x0(state)} if state.video.x0_history else {}))


def _timings(timings: Mapping[str, float]) -> str:
    inside = ", ".join(f"{name} {timings[name]:.2f}" for name in INFERENCE_PARTS if name in timings)
    phases = [
        f"{name} {timings[name]:.2f}" + (f" ({inside})" if name == "inference" and inside else "")
        for name in PHASES
        if name in timings
    ]
    return ", ".join(phases)
