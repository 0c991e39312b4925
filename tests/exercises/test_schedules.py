import numpy as np
import pytest
import torch

from cosmos3_lab import Schedule, flow_schedule, karras_schedule, log_snr
from cosmos3_lab.exercises import check


def shift(s, x):
    return s * x / (1 + (s - 1) * x)


def sigma_of(value):
    return torch.sigmoid(-value / 2)


def schedule(*, steps=6, first=0.999, last=0.1, told=np.trunc):
    ends = log_snr(torch.tensor([first, last], dtype=torch.float64))
    sigmas = sigma_of(torch.linspace(float(ends[0]), float(ends[1]), steps, dtype=torch.float64))
    timesteps = torch.from_numpy(told(1000 * sigmas.numpy() + 1e-6).astype(np.int64))
    return Schedule(torch.cat([sigmas, torch.zeros(1)]).float(), timesteps)


@pytest.mark.parametrize(("name", "answer"), [("03.1", shift), ("03.2", sigma_of), ("03.3", schedule())])
def test_the_right_answers_pass(name, answer):
    assert check(name, answer).passed


def test_timesteps_of_a_float32_sigma_pass():
    right = schedule()
    cut = (1000 * right.sigmas[:-1]).long()  # as a learner would do it, without thinking of float32
    assert check("03.3", Schedule(right.sigmas, cut)).passed


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("03.1", lambda s, x: s * x, "ends 0 and 1 became"),
        ("03.1", lambda s, x: shift(1 / s, x), "expected more noise"),
        ("03.1", lambda s, x: shift(s + 1, x), "s = 1 moved 0.3"),
        ("03.1", lambda s, x: x ** (1 / s), "expected 10/11"),
        ("03.1", lambda s, x: None, "returns nothing yet"),
        ("03.2", lambda value: torch.sigmoid(-value), "is a ratio of powers"),
        ("03.2", lambda value: torch.sigmoid(value / 2), "it rises"),
        ("03.2", lambda value: torch.exp(-value / 2), "between 0 and 1"),
        ("03.2", lambda value: torch.sigmoid(-value / 2 + 1), "expected 0.5"),
        ("03.2", lambda value: 0.5, "got shape []"),
        ("03.3", schedule(steps=7), "got 7 steps"),
        ("03.3", schedule(first=0.99), "the first is 0.9900"),
        ("03.3", schedule(last=0.2), "the last sigma above 0 is 0.2000"),
        ("03.3", flow_schedule(6, flow_shift=1.0), "the last sigma above 0"),
        ("03.3", karras_schedule(6, sigma_min=1 / 9, sigma_max=999.0), "expected the same each time"),
        ("03.3", schedule(told=np.ceil), "expected int(1000 * sigma)"),
        ("03.3", schedule().sigmas, "got Tensor"),
        ("03.3", None, "nothing was given yet"),
    ],
)
def test_other_answers_are_told_what_is_wrong(name, answer, says):
    verdict = check(name, answer)
    assert not verdict.passed
    assert says in verdict.message
