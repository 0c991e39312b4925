"""The exercises of notebook 06: right answers pass, and typical mistakes are named."""

from dataclasses import replace

import pytest

from cosmos3_lab import unipc_restart
from cosmos3_lab.exercises import check
from cosmos3_lab.exercises.solver import euler_error, unipc_error


def euler_step(sample, velocity, sigma, sigma_next):
    return sample + (sigma_next - sigma) * velocity


def edited(state, change):
    return unipc_restart(replace(state, sample=state.sample + change))


def in_place(state, change):
    state.sample.add_(change)
    return unipc_restart(state)


def fewest(error):
    return next(n for n in range(2, 500) if error(n) < 0.01)


RIGHT = {"06.1": euler_step, "06.2": (fewest(euler_error), fewest(unipc_error)), "06.3": edited}


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    assert check(name, RIGHT[name], strict=True).passed


def test_unipc_needs_far_fewer_steps():
    euler, unipc = RIGHT["06.2"]
    assert unipc * 4 < euler


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("06.1", lambda x, v, a, b: x + (a - b) * v, "towards the noise"),
        ("06.1", lambda x, v, a, b: x - a * v, "should leave the sample"),
        ("06.1", lambda x, v, a, b: x + (b - a) * v / a, "sample - sigma * velocity"),
        ("06.1", lambda x, v, a, b: x + (b - a) * v * (1 + b), "predictor of order 1"),
        ("06.1", lambda *given: None, "returns nothing"),
        ("06.2", (5, 5), "has an error of"),
        ("06.2", (200, 12), "needs fewer"),
        ("06.2", (100,), "expected two"),
        ("06.3", lambda state, change: replace(state, sample=state.sample + change), "history is still there"),
        ("06.3", lambda state, change: unipc_restart(state), "not the old one plus the change"),
        ("06.3", in_place, "changed in place"),
        ("06.3", lambda state, change: state.sample + change, "expected a UniPCState"),
    ],
)
def test_wrong_answers_hear_why(name, answer, words):
    verdict = check(name, answer)
    assert not verdict.passed
    assert words in verdict.message


@pytest.mark.parametrize("name", RIGHT)
def test_no_answer_yet(name):
    assert "nothing was given yet" in check(name, None).message
