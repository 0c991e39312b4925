from dataclasses import replace

import pytest
import torch

from cosmos3_lab import Cosmos3T2VRequest, denoise_step
from cosmos3_lab.exercises import check


def guided_until(transformer, inputs, state, until, *, steps=None):
    while state.step_index < (steps or inputs.schedule.num_steps):
        guides = inputs.schedule.sigmas[state.step_index] >= until
        state, _ = denoise_step(transformer, inputs if guides else replace(inputs, uncond=None), state)
    return state


def always_guided(transformer, inputs, state, until):
    return guided_until(transformer, inputs, state, 0.0)


def never_guided(transformer, inputs, state, until):
    return guided_until(transformer, inputs, state, 2.0)


def guided_at_the_end(transformer, inputs, state, until):
    while state.step_index < inputs.schedule.num_steps:
        guides = inputs.schedule.sigmas[state.step_index] < until or until == 0
        guides = guides and until != 2
        state, _ = denoise_step(transformer, inputs if guides else replace(inputs, uncond=None), state)
    return state


def guided_above(transformer, inputs, state, until):
    return guided_until(transformer, inputs, state, until + 1e-6)


def stops_early(transformer, inputs, state, until):
    return guided_until(transformer, inputs, state, until, steps=3)


def test_a_loop_that_guides_until_a_sigma_passes():
    assert check("08.1", guided_until).passed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (stops_early, "at step 3 of 4"),
        (never_guided, "until = 0 should guide every step"),
        (always_guided, "until = 2 should guide no step"),
        (guided_at_the_end, "between the second and the third sigma"),
        (guided_above, "exactly until should be guided"),
        (lambda *_: torch.zeros(1), "got Tensor, expected the final DenoiseState"),
        (lambda *_: None, "returns nothing yet"),
    ],
)
def test_other_loops_are_told_what_is_wrong(answer, says):
    verdict = check("08.1", answer)
    assert not verdict.passed
    assert says in verdict.message


def tokens(num_frames, height, width, *, up=True, first=True, patch=32):
    rows, columns = (-(-n // patch) if up else n // patch for n in (height, width))
    return ((num_frames - 1) // 4 + 1 if first else num_frames // 4 or 1) * rows * columns


def test_the_number_of_tokens_passes():
    assert check("08.2", tokens).passed


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"patch": 16}, "expected one token"),
        ({"first": False}, "the first is alone"),
        ({"up": False}, "the second row of patches"),
    ],
)
def test_other_numbers_of_tokens_are_told_what_is_wrong(knobs, says):
    verdict = check("08.2", lambda *clip: tokens(*clip, **knobs))
    assert not verdict.passed
    assert says in verdict.message


def still(**changes):
    ids = torch.ones(1, 5, dtype=torch.int64)
    texts = {"text_ids": ids, "text_mask": ids, "neg_text_ids": ids, "neg_text_mask": ids}
    values = {"video_shape": (1, 8, 12), "num_inference_steps": 8, "guidance_scale": 1.0, "seed": 7}
    return Cosmos3T2VRequest(**texts | values | changes)


def test_the_request_of_a_still_image_passes():
    assert check("08.3", still()).passed


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"video_shape": (2, 8, 12)}, "got 2 latent frames"),
        ({"video_shape": (1, 12, 8)}, "is height before width"),
        ({"video_shape": (1, 64, 96)}, "latent grid of 64x96"),
        ({"video_shape": (1, 4, 6)}, "this VAE packs 8x8 pixels"),
        ({"num_inference_steps": 35}, "got 35 steps"),
        ({"guidance_scale": 6.0}, "got guidance_scale 6"),
        ({"guidance_scale": 0.0}, "got guidance_scale 0, expected 1"),
        ({"seed": 42}, "got seed 42"),
        ({"sound_frames": 3}, "got 3 sound latents"),
    ],
)
def test_other_requests_are_told_what_is_wrong(changes, says):
    verdict = check("08.3", still(**changes))
    assert not verdict.passed
    assert says in verdict.message


def test_something_else_is_no_request():
    assert "got str, expected a Cosmos3T2VRequest" in check("08.3", "a still image").message


@pytest.mark.parametrize("name", ["08.1", "08.2", "08.3"])
def test_no_answer_is_no_mistake(name):
    assert "nothing was given yet" in check(name, None).message
