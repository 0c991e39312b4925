"""The exercises of notebook 05: the formula, guidance in the first half only, a guided velocity of the network's length.

Read next: `solver.py`, the exercises of notebook 06.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cosmos3_lab.denoise import StepRecord
from cosmos3_lab.exercises.framework import call, exercise, expect


@exercise("05.1", hint="Start at v_uncond and go w times the way from there to v_cond. It is one line.")
def formula(guide: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """With w = 0 it is the negative prompt, with w = 1 the prompt, and beyond that the line goes on."""
    v_cond, v_uncond = _branches()
    for w, want, name in (
        (0.0, v_uncond, "v_uncond"),
        (1.0, v_cond, "v_cond"),
        (6.0, 6 * v_cond - 5 * v_uncond, "6 v_cond - 5 v_uncond"),
    ):
        given = _branches()
        away = _distance(call(guide, *given, w), want)
        kept = torch.equal(given[0], v_cond) and torch.equal(given[1], v_uncond)
        expect(kept, "the given velocities were changed in place, expected them as they were.")
        expect(away < 1e-4, f"w = {w:g} should give {name}, found something up to {away:.2g} away from it.")


@exercise(
    "05.2",
    hint="dataclasses.replace(inputs, uncond=None) gives inputs whose steps skip the negative prompt. Run denoise(..., stop=half)"
    " with the one and go on from its last state with the other, collecting the records of both.",
)
def half_guided(records: Sequence[StepRecord]) -> None:
    """The second half of the steps took one pass of the network instead of two, and the run still ends in a clip."""
    indices = [record.index for record in records]
    expect(len(indices) >= 4, f"there are {len(indices)} records, expected those of a whole run, at least 4.")
    wanted = list(range(len(indices)))
    expect(indices == wanted, f"the steps are {indices}, expected {wanted}: go on with the state that the first half ended in.")
    end = records[-1].order == 1  # as only the first step and the last one of a schedule have
    expect(end, f"the last record is at sigma {records[-1].sigma:.3f}, expected the end of the schedule; leave stop out.")
    guided = ["video.guidance" in record.rms for record in records]
    expect(any(guided), "no step was guided, expected the first half to be.")
    expect(not all(guided), "every step was guided, expected no negative prompt in the second half (uncond=None).")
    half = len(records) // 2
    expect(guided == [i < half for i in wanted], f"guided are steps {_where(guided)}, expected steps 0 to {half - 1}.")


@exercise(
    "05.3",
    hint="Compute the guided velocity, then multiply it with one number: rms of v_cond over rms of the guided velocity. "
    "The rms of x is x.square().mean().sqrt().",
)
def rescaled_guidance(rescaled: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """The direction that guidance asks for, at the length that the network is used to."""
    v_cond, v_uncond = _branches()
    for w in (1.0, 3.0, 8.0):
        found, guided = call(rescaled, v_cond, v_uncond, w), v_uncond + w * (v_cond - v_uncond)
        expect(found.shape == v_cond.shape, f"the shape is {list(found.shape)}, expected {list(v_cond.shape)}.")
        cosine = float(torch.cosine_similarity(found.flatten(), guided.flatten(), dim=0))
        expect(cosine > 0.9999, f"the direction is not that of the guided velocity: at w = {w:g} the cosine is {cosine:.4f}.")
        got, want = (float(x.square().mean().sqrt()) for x in (found, v_cond))
        expect(abs(got / want - 1) < 1e-3, f"at w = {w:g} the rms is {got:.4f}, expected {want:.4f}, that of v_cond.")


def _branches() -> tuple[Tensor, Tensor]:
    """Two velocities that differ, with a mean, so that a standard deviation is no rms."""
    generator = torch.Generator().manual_seed(0)
    v_cond = torch.randn(1, 4, 2, 3, 3, generator=generator) + 0.7
    return v_cond, v_cond + 0.3 * torch.randn(v_cond.shape, generator=generator) - 0.1


def _distance(found: Tensor, want: Tensor) -> float:
    expect(isinstance(found, Tensor), f"it gives {type(found).__name__}, expected a tensor.")
    expect(found.shape == want.shape, f"the shape is {list(found.shape)}, expected {list(want.shape)}.")
    return float((found - want).abs().max())


def _where(flags: Sequence[bool]) -> str:
    return ", ".join(str(i) for i, flag in enumerate(flags) if flag)
