import math

import pytest
import torch

from cosmos3_lab import Latents
from cosmos3_lab.edits import denoise_keeping, paste, renoise, restart_at, select_sound, select_video
from cosmos3_lab.exercises import check
from cosmos3_lab.walks import slerp


def top(latents):
    return select_video(latents, rows=(0, latents.video.shape[3] // 2))


def right(latents, clean, sigma):
    return paste(latents, renoise(clean, sigma, seed=5), top(latents))


def in_place(latents, clean, sigma):
    latents.video[..., :6, :] = renoise(clean, sigma, seed=5).video[..., :6, :]
    return latents


def test_an_edit_as_noisy_as_the_rest_passes():
    assert check("10.1", right, strict=True).passed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda latents, clean, sigma: None, "returns nothing yet"),
        (lambda latents, clean, sigma: latents.video, "got Tensor, expected Latents"),
        (lambda latents, clean, sigma: paste(latents, clean, top(latents)), "the upper half is clean"),
        (lambda latents, clean, sigma: renoise(clean, sigma, seed=5), "the sound is another one"),
        (
            lambda latents, clean, sigma: paste(latents, renoise(clean, sigma, seed=5), select_video(latents)),
            "lower half changed",
        ),
        (lambda latents, clean, sigma: right(latents, clean, 1 - sigma), "standard deviation"),
        (lambda latents, clean, sigma: right(latents, clean.map(torch.zeros_like), sigma), "resembles the clean latents"),
        (in_place, "changed in place"),
    ],
)
def test_wrong_edits_are_told_what_is_wrong(answer, says):
    verdict = check("10.1", answer)
    assert not verdict.passed
    assert says in verdict.message


def naive(a, b, t):
    angle = torch.acos((a @ b / a.norm() / b.norm()).clamp(-1, 1))
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def rescaled_line(a, b, t):
    line = torch.lerp(a, b, t)
    return line * a.norm() / line.norm()


def test_an_arc_passes():
    assert check("10.2", slerp, strict=True).passed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (torch.lerp, "that is a straight line"),
        (rescaled_line, "of the angle, expected 0.25 and 0.75"),
        (lambda a, b, t: slerp(b, a, t), "t = 0 should give a"),
        (lambda a, b, t: math.sqrt(1 - t) * a + math.sqrt(t) * b, "expected 1"),
        (lambda a, b, t: naive(a, b, t) if not torch.equal(a, b) else a / 0 * 0, "not finite"),
    ],
)
def test_other_ways_are_told_what_is_wrong(answer, says):
    verdict = check("10.2", answer)
    assert not verdict.passed
    assert says in verdict.message


def keep(models, inputs, clean, seed, *, region=select_sound, steps=None):
    state = restart_at(inputs, clean, 0, seed=seed)
    states = [state for state, _ in denoise_keeping(models.transformer, inputs, state, clean, region(clean))]
    return states[:steps][-1].latents


def test_a_new_picture_for_a_sound_passes():
    assert check("10.3", keep, strict=True).passed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda *a: keep(*a, region=select_video), "of its length away"),
        (lambda *a: keep(*a, steps=1), "of its length away"),
        (lambda models, inputs, clean, seed: clean, "the video was kept"),
        (lambda models, inputs, clean, seed: keep(models, inputs, clean, 1), "is seed used"),
        (lambda m, i, clean, seed: Latents(torch.randn(clean.video.shape), clean.sound), "still noise"),
        (lambda m, i, clean, seed: keep, "expected the Latents"),
    ],
)
def test_wrong_pictures_are_told_what_is_wrong(answer, says):
    verdict = check("10.3", answer)
    assert not verdict.passed
    assert says in verdict.message
