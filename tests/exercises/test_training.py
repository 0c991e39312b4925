from dataclasses import replace

import pytest
import torch

from cosmos3_lab.exercises import check
from cosmos3_lab.pico.scenes import COLOURS, Scene, Thing


def beside(sigma, x0):
    return sigma.view(-1, *[1] * (x0.ndim - 1))


def make_pair(x0, noise, sigma):
    s = beside(sigma, x0)
    return (1 - s) * x0 + s * noise, noise - x0


def only_video(x0, noise, sigma):
    s = sigma.view(-1, 1, 1, 1, 1)
    return (1 - s) * x0 + s * noise, noise - x0


def test_the_training_pair_passes():
    assert check("12.1", make_pair).passed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x0, noise, s: make_pair(x0, noise, 1 - s), "at sigma = 0 the sample should be x0"),
        (lambda x0, noise, s: (x0 + beside(s, x0) * noise, noise - x0), "at sigma = 1 the sample should be the noise"),
        (lambda x0, noise, s: make_pair(x0, noise, s**2), "at sigma = 1/2"),
        (lambda x0, noise, s: (make_pair(x0, noise, s)[0], x0 - noise), "points to the clip"),
        (lambda x0, noise, s: (make_pair(x0, noise, s)[0], noise), "is not x0 again"),
        (lambda x0, noise, s: make_pair(x0, noise, s)[0], "expected the pair"),
        (lambda x0, noise, s: ((1 - s[:, None]) * x0[:, 0, 0, 0], noise), "the sample has shape"),
        (only_video, "for sound of shape [4, 4]"),
    ],
)
def test_other_pairs_are_told_what_is_wrong(answer, says):
    verdict = check("12.1", answer)
    assert not verdict.passed
    assert says in verdict.message


def blind_loss(x0):
    return 1 + x0.var(dim=0, correction=0).mean()


def measured(x0):
    x0 = x0[torch.arange(4096) % len(x0)]
    target = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)) - x0
    return (target - target.mean(0)).square().mean()


@pytest.mark.parametrize("answer", [blind_loss, measured])
def test_the_blind_loss_passes_worked_out_or_measured(answer):
    assert check("12.2", answer).passed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda x0: x0.var(dim=0).mean(), "only the noise is left"),
        (lambda x0: 1 + x0.square().mean(), "x0 is 2 everywhere"),
        (lambda x0: 1 + x0.var(), "place by place"),
        (lambda x0: 1.0, "variance 4"),
        (lambda x0: 1 + x0.std(dim=0).mean(), "variance 4"),
    ],
)
def test_other_blind_losses_are_told_what_is_wrong(answer, says):
    verdict = check("12.2", answer)
    assert not verdict.passed
    assert says in verdict.message


def a_scene(*, background="white", sound="knock", **changes):
    move = {"x": 0.5, "y": 0.79, "reach": 0.4, "period": 0.9, "phase": 0.3, "rgb": COLOURS["green"]}
    thing = replace(Thing("square", "green", "large", 0.21, "bounce", **move), **changes)
    return Scene((thing,), background, COLOURS[background], sound)


def test_the_scene_passes():
    verdict = check("12.3", a_scene())
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (a_scene(background="blue"), "sees the background as blue"),
        (a_scene(rgb=COLOURS["white"]), "the judge sees 0 things"),
        (a_scene(rgb=COLOURS["red"]), "sees the colour as red, expected green"),
        (a_scene(shape="circle"), "sees the shape as circle"),
        (a_scene(radius=0.16), "sees the size as medium"),
        (a_scene(size="small"), "the record says small"),
        (a_scene(motion="still"), "sees the motion as still"),
        (a_scene(sound="thud"), "hears thud"),
        (replace(a_scene(), things=a_scene().things * 2), "got 2 things"),
        ("a large green square", "got str, expected a Scene"),
    ],
)
def test_other_scenes_are_told_what_is_wrong(answer, says):
    verdict = check("12.3", answer)
    assert not verdict.passed
    assert says in verdict.message


@pytest.mark.parametrize("name", ["12.1", "12.2", "12.3"])
def test_no_answer_is_no_mistake(name):
    assert "nothing was given yet" in check(name, None).message
