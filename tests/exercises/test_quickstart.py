from dataclasses import replace

import numpy as np
import pytest

from cosmos3_lab import Cosmos3GenerationOutput, generate
from cosmos3_lab.exercises import check
from cosmos3_lab.pico.scenes import Scene, Thing
from cosmos3_lab.pico.world import FPS, SAMPLE_RATE, draw, play

GREEN, BLUE, BLACK = (0.13, 0.67, 0.20), (0.10, 0.25, 0.92), (0.05, 0.05, 0.06)


@pytest.fixture(scope="module")
def run(tiny):
    size = {"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 3}
    return generate(tiny, "a red ball", with_sound=True, progress=False, **size)


def told(run, **manifest):
    """The run with other settings, and other frames so that it is another clip."""
    output = replace(run.output, frames=run.output.frames ^ 1)
    return replace(run, output=output, manifest=run.manifest | manifest)


def of_pico(run, colour):
    """The run with a drawn triangle in it, as if pico had made it."""
    thing = Thing("triangle", "green", "large", 0.2, "still", rgb=colour)
    scene = Scene((thing,), "black", BLACK, "hum")
    frames = (draw([scene], frames=17)[0].permute(1, 2, 3, 0).numpy() * 255).round().astype(np.uint8)
    waveform = play([scene], samples=17 * 1000)[0].numpy()
    output = Cosmos3GenerationOutput(frames, FPS, waveform, SAMPLE_RATE)
    return replace(run, output=output, manifest=run.manifest | {"prompt": "a green triangle", "checkpoint": "pico"})


def says(name, answer):
    verdict = check(name, answer)
    assert not verdict.passed
    return verdict.message


def test_a_green_triangle_with_sound_passes(run):
    assert check("00.1", told(run, prompt="A green triangle rises")).passed
    assert check("00.1", of_pico(run, GREEN)).passed


def test_other_first_clips_are_told_what_is_wrong(run):
    assert "nothing was given" in says("00.1", None)
    assert "got str" in says("00.1", "a green triangle")
    assert "'a red ball'" in says("00.1", run)
    green = told(run, prompt="a green triangle", checkpoint="pico")
    assert "is silent" in says("00.1", replace(green, output=replace(green.output, waveform=None, sample_rate=None)))
    assert "blue triangle" in says("00.1", of_pico(run, BLUE))


def test_a_run_that_was_stopped_is_no_clip(run):
    stopped = replace(run, state=replace(run.state, video=replace(run.state.video, step_index=1)))
    assert "stopped before step 1" in says("00.1", stopped)


def test_a_third_of_the_steps_passes(run):
    assert check("00.2", (run, told(run, num_inference_steps=1))).passed


def test_other_pairs_for_fewer_steps_are_told_what_is_wrong(run):
    assert "not given yet" in says("00.2", (run, None))
    assert "expected two clips" in says("00.2", run)
    assert "took 2 steps and the first 3" in says("00.2", (run, told(run, num_inference_steps=2)))
    assert "negative_prompt is" in says("00.2", (run, told(run, num_inference_steps=1, negative_prompt="rain")))
    assert "seed is 7" in says("00.2", (run, told(run, num_inference_steps=1, seed=7)))
    assert "sound_frames is None" in says("00.2", (run, told(run, num_inference_steps=1, sound_frames=None)))


@pytest.mark.parametrize("knob", [{"seed": 7}, {"guidance_scale": 1.0}])
def test_one_knob_passes(run, knob):
    assert check("00.3", (run, told(run, **knob))).passed


def test_other_knobs_are_told_what_is_wrong(run):
    assert "nothing differs" in says("00.3", (run, run))
    assert "seed, guidance_scale differs" in says("00.3", (run, told(run, seed=7, guidance_scale=1.0)))
    assert "prompt differs" in says("00.3", (run, told(run, prompt="a ball")))
    same_frames = replace(told(run, seed=7), output=run.output)
    assert "frames are the same" in says("00.3", (run, same_frames))
