"""The exercises of notebook 06: Euler's step, the steps that each solver needs, an edit that survives.

Read next: `decoding.py`, the exercises of notebook 07.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cosmos3_lab.exercises.framework import call, exercise, expect
from cosmos3_lab.schedule import flow_schedule, velocity_to_x0
from cosmos3_lab.solver_lab import GaussianFlow, walk
from cosmos3_lab.solvers import Solver
from cosmos3_lab.unipc import UniPCState, unipc_init, unipc_predict, unipc_step

FLOW = GaussianFlow(torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64))  # the notebook's


@exercise(
    "06.1",
    hint="The velocity is d sample / d sigma. On a straight line, the sample at sigma_next is the sample now plus the velocity "
    "times the change in sigma, and that change is negative.",
)
def euler(euler_step: Callable[[Tensor, Tensor, float, float], Tensor]) -> None:
    """UniPC's predictor of order 1 is exactly this step."""
    generator = torch.Generator().manual_seed(0)
    sample, velocity = torch.randn(2, 4, 3, generator=generator).unbind()
    stays = call(euler_step, sample, velocity, 0.4, 0.4)
    expect(torch.allclose(stays, sample, atol=1e-5), "a step from sigma 0.4 to sigma 0.4 should leave the sample where it is.")
    at_end, x0 = euler_step(sample, velocity, 0.4, 0.0), velocity_to_x0(sample, velocity, torch.tensor(0.4))
    away = float((at_end - x0).abs().max())
    backwards = torch.allclose(at_end, sample + 0.4 * velocity, atol=1e-4)
    expect(not backwards, "the step goes towards the noise: sigma falls, so the sample moves against the velocity.")
    expect(away < 1e-4, f"a step to sigma 0 should end at x0 = sample - sigma * velocity, found {away:.2g} away from it.")
    schedule = flow_schedule(5, flow_shift=3.0)
    high, low = schedule.sigmas[1:3].tolist()
    at = unipc_init(sample, step_index=1)
    first = unipc_predict(at, velocity_to_x0(sample, velocity, schedule.sigmas[1]), schedule, solver_order=1).sample
    away = float((euler_step(sample, velocity, high, low) - first).abs().max())
    expect(away < 1e-4, f"from sigma {high:.3f} to {low:.3f} UniPC's predictor of order 1 is {away:.2g} away, expected 0.")


@exercise(
    "06.2",
    hint="Loop n upwards from 2 and stop at the first n whose error is below 0.01; do it once with euler_error and once with "
    "unipc_error.",
)
def steps_needed(answer: Sequence[int]) -> None:
    """Remembering one earlier x0 and correcting saves most of the network's calls for the same error."""
    expect(len(answer) == 2, f"there are {len(answer)} numbers, expected two: steps of Euler, steps of UniPC.")
    for name, given, error in zip(("Euler", "UniPC"), (int(n) for n in answer), (euler_error, unipc_error), strict=True):
        expect(given >= 2, f"{name} with {given} steps: expected at least 2.")
        expect(error(given) < 0.01, f"{name} with {given} steps has an error of {error(given):.4f}, expected less than 0.01.")
        fewer = next((n for n in range(2, given) if error(n) < 0.01), None)
        expect(fewer is None, f"{name} needs fewer than {given} steps: {fewer} are enough for an error below 0.01.")


def unipc_error(n: int) -> float:
    """Rms error of UniPC of order 2 on that flow, over a straight schedule of n steps."""
    return _end_error(Solver(), n)


def euler_error(n: int) -> float:
    """The same of Euler's method."""
    return _end_error(Solver("euler"), n)


def _end_error(solver: Solver, n: int) -> float:
    schedule = flow_schedule(n, flow_shift=1.0)
    end, _ = walk(FLOW.velocity, FLOW.path(schedule.sigmas[0].double()), schedule, solver)
    return float((end - FLOW.std).square().mean().sqrt())


@exercise(
    "06.3",
    hint="dataclasses.replace(state, sample=...) changes the sample in a copy; unipc_restart gives a state that has forgotten "
    "last_sample and x0_history.",
)
def edit_and_restart(edited: Callable[[UniPCState, Tensor], UniPCState]) -> None:
    """The edit is still there after the next step, because the corrector has nothing left to undo it with."""
    schedule = flow_schedule(6, flow_shift=1.0)
    state = unipc_init(torch.ones(4, dtype=torch.float64))
    for sigma in schedule.sigmas[:3]:
        state = unipc_step(state, FLOW.velocity(state.sample, sigma.double()), schedule).state
    before, change = state.sample.clone(), torch.tensor([0.0, 0.5, -1.0, 0.25], dtype=torch.float64)
    after = call(edited, state, change)
    expect(isinstance(after, UniPCState), f"it gives {type(after).__name__}, expected a UniPCState.")
    expect(torch.equal(state.sample, before), "the given state was changed in place, expected it as it was.")
    expect(torch.allclose(after.sample, before + change), "the sample is not the old one plus the change.")
    expect(after.step_index == state.step_index, f"the step is {after.step_index}, expected {state.step_index} as before.")
    corrected = unipc_step(after, FLOW.velocity(after.sample, schedule.sigmas[3].double()), schedule).corrected
    survives = float((corrected - before)[1] / change[1])
    expect(
        abs(survives - 1) < 1e-6,
        f"the history is still there, so that only {survives:.0%} of the edit survives the next corrector.",
    )
