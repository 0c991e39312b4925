"""The exercises of notebook 00: another prompt, fewer steps, one change at a time.

Read next: `tokens.py`, the exercises of notebook 01.
"""

import numpy as np

from cosmos3_lab.exercises.framework import exercise, expect
from cosmos3_lab.run import Generation

CLIP = (
    "prompt",
    "negative_prompt",
    "seed",
    "guidance_scale",
    "num_frames",
    "height",
    "width",
    "fps",
    "sound_frames",
    "flow_shift",
    "schedule",
    "preset",
)
JUDGED = "pico"  # the checkpoint whose world the judge knows
KNOBS = ("seed", "guidance_scale")
FEWER = 3  # times fewer steps


def _expect_finished(run: object) -> None:
    expect(isinstance(run, Generation), f"got {type(run).__name__}, expected what generate(...) returns.")
    expect(not run.stopped, f"the run was stopped before step {run.state.step_index}, expected a finished clip.")


def _pair(answer: object) -> tuple[Generation, Generation]:
    is_pair = isinstance(answer, tuple) and len(answer) == 2
    expect(is_pair, "expected two clips, (result, other), where `result` is the one from the top of the notebook.")
    expect(answer[1] is not None, "the second clip was not given yet; the hint helps to begin.")
    for run in answer:
        _expect_finished(run)
    return answer


@exercise("00.1", hint='Copy the cell with generate(...), keep **size, and write another prompt: "a green triangle ...".')
def green_triangle(answer: object) -> None:
    """A clip from a prompt of your own."""
    _expect_finished(answer)
    prompt = str(answer.manifest["prompt"]).lower()
    expect("green" in prompt and "triangle" in prompt, f"the prompt is {prompt!r}, expected one that asks for a green triangle.")
    if answer.manifest["checkpoint"] == JUDGED:
        expect(answer.output.waveform is not None, "the clip is silent, expected one with sound (with_sound=True).")
        seen = _look(answer)
        expect("green triangle" in seen, f"the judge says: {seen!r}; expected a green triangle, try another seed or wording.")


def _look(run: Generation) -> str:
    from cosmos3_lab.pico.judge import read_clip

    output = run.output
    pixels = np.moveaxis(output.frames / 255, -1, 0)
    return read_clip(pixels, output.waveform, fps=output.fps, sample_rate=output.sample_rate).sentence()


def _differs(one: Generation, other: Generation, name: str) -> bool:
    a, b = one.manifest[name], other.manifest[name]
    if name == "negative_prompt" and None in (a, b):  # a run without guidance has none
        return False
    return a != b


@exercise("00.2", hint="generate(...) takes num_inference_steps=...; leave everything else as it was, then look at the times.")
def fewer_steps(answer: object) -> None:
    """The same clip from fewer steps: the time of `denoise` goes down with the steps, that of decoding stays."""
    result, fewer = _pair(answer)
    for name in CLIP:
        a, b = result.manifest[name], fewer.manifest[name]
        expect(
            not _differs(result, fewer, name),
            f"{name} is {b!r} in the second clip and {a!r} in the first, expected only the number of steps to differ.",
        )
    many, few = (run.manifest["num_inference_steps"] for run in (result, fewer))
    expect(few * FEWER <= many, f"the second clip took {few} steps and the first {many}, expected at most a third as many.")


@exercise("00.3", hint="generate(...) takes seed=... and guidance_scale=...; result.manifest shows what a run was made with.")
def one_knob(answer: object) -> None:
    """One knob turned and all others left alone: what differs between the clips is due to it."""
    result, other = _pair(answer)
    changed = [n for n in (*CLIP, "num_inference_steps") if _differs(result, other, n)]
    found = ", ".join(changed) or "nothing"
    expect(len(changed) == 1 and changed[0] in KNOBS, f"{found} differs, expected exactly one of {' or '.join(KNOBS)}.")
    same = np.array_equal(result.output.frames, other.output.frames)
    expect(not same, f"{found} differs but the frames are the same, expected another clip.")
