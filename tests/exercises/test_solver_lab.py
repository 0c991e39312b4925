"""The exercises of notebook 10 about guidance and solvers: right answers pass, and typical mistakes are named."""

import pytest

from cosmos3_lab.exercises import check


def fade(step, sigma):
    return max(1.0, 6 - 5 * abs(sigma - 0.55) / 0.35)


def heun_step(velocity, sample, sigma, sigma_next):
    first = velocity(sample, sigma)
    there = sample + (sigma_next - sigma) * first
    if sigma_next == 0:
        return there
    return sample + (sigma_next - sigma) * (first + velocity(there, sigma_next)) / 2


def euler_step(velocity, sample, sigma, sigma_next):
    return sample + (sigma_next - sigma) * velocity(sample, sigma)


def to_the_end(velocity, sample, sigma, sigma_next):
    first = velocity(sample, sigma)
    return sample + (sigma_next - sigma) * (first + velocity(sample + (sigma_next - sigma) * first, sigma_next)) / 2


def at_the_old_sigma(velocity, sample, sigma, sigma_next):
    there = euler_step(velocity, sample, sigma, sigma_next)
    return there if sigma_next == 0 else sample + (sigma_next - sigma) * (velocity(sample, sigma) + velocity(there, sigma)) / 2


def from_the_wrong_place(velocity, sample, sigma, sigma_next):
    there = euler_step(velocity, sample, sigma, sigma_next)
    return there if sigma_next == 0 else there + (sigma_next - sigma) * velocity(there, sigma_next)


def in_place(velocity, sample, sigma, sigma_next):
    return sample.copy_(heun_step(velocity, sample, sigma, sigma_next))


RIGHT = {"13.1": fade, "13.2": heun_step}


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    assert check(name, RIGHT[name], strict=True).passed


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("13.1", lambda step, sigma: 6.0 if 0.2 < sigma < 0.9 else 1.0, "at sigma 0.725 it gives 6, expected 3.5"),
        ("13.1", lambda step, sigma: 6 - 5 * abs(sigma - 0.55) / 0.35, "expected no number below 0"),
        ("13.1", lambda step, sigma: fade(step, sigma) + step, "depends on the step"),
        ("13.1", lambda step, sigma: max(1 + 1e-9, fade(step, sigma)), "expected exactly 1"),
        ("13.1", lambda step, sigma: None, "returns nothing"),
        ("13.2", euler_step, "it asks 1 times, expected 2"),
        ("13.2", to_the_end, "at sigma = 0"),
        ("13.2", at_the_old_sigma, "it asks 3 times"),
        ("13.2", from_the_wrong_place, "away from Heun's step"),
        ("13.2", in_place, "changed in place"),
    ],
)
def test_wrong_answers_hear_why(name, answer, words):
    verdict = check(name, answer)
    assert not verdict.passed
    assert words in verdict.message


@pytest.mark.parametrize("name", RIGHT)
def test_no_answer_yet(name):
    assert "nothing was given yet" in check(name, None).message
