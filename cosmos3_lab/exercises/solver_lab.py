"""The exercises of notebook 13: a scale that fades, Heun's step.

Read next: `solver_lab.py` of the package, which measures the errors.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cosmos3_lab.exercises.framework import call, exercise, expect
from cosmos3_lab.schedule import schedule_from_sigmas
from cosmos3_lab.solver_lab import GaussianFlow, walk
from cosmos3_lab.solvers import Solver

FADE = ((1.0, 1.0), (0.9, 1.0), (0.725, 3.5), (0.55, 6.0), (0.375, 3.5), (0.2, 1.0), (0.05, 1.0))  # sigma and w


@exercise(
    "13.1",
    hint="How far is sigma from the middle, 0.55? There w is 6, and 0.35 away from it, on either side, w is 1. `max(1.0, ...)` "
    "keeps it there.",
)
def fading_scale(scale: Callable[[int, float], float]) -> None:
    """Guidance comes and goes without a jump, and above 0.9 and below 0.2 the second pass is skipped."""
    for sigma, want in FADE:
        found = [float(call(scale, step, sigma)) for step in (0, 7)]
        expect(found[0] == found[1], f"at sigma {sigma:g} it depends on the step: {found[0]:g} and {found[1]:g}.")
        expect(found[0] >= 0, f"at sigma {sigma:g} it gives {found[0]:g}, expected no number below 0.")
        expect(abs(found[0] - want) < 1e-6, f"at sigma {sigma:g} it gives {found[0]:g}, expected {want:g}.")
    exact = all(float(scale(0, sigma)) == 1 for sigma in (0.95, 0.15))
    expect(exact, "outside of 0.2 to 0.9 it is nearly 1, expected exactly 1: else the second pass is not skipped.")


@exercise(
    "13.2",
    hint="First take Euler's step. Ask for the velocity there, at sigma_next, and take the step once more from the start with "
    "the mean of the two velocities. Where sigma_next is 0, Euler's step is all.",
)
def heun(heun_step: Callable[[Callable[[Tensor, float], Tensor], Tensor, float, float], Tensor]) -> None:
    """Two evaluations a step, one in the last: the end is that of the package's Heun."""
    flow = GaussianFlow(torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
    schedule = schedule_from_sigmas([0.9, 0.6, 0.25])
    sigmas, asked = schedule.sigmas.tolist(), []

    def velocity(sample: Tensor, sigma: float) -> Tensor:
        asked.append(float(sigma))
        return flow.velocity(sample, sigma)

    sample = flow.path(sigmas[0])
    for stop, (sigma, sigma_next) in enumerate(zip(sigmas, sigmas[1:], strict=False), 1):
        asked.clear()
        before, kept = sample, sample.clone()
        sample = call(heun_step, velocity, before, sigma, sigma_next)
        expect(torch.equal(before, kept), "the given sample was changed in place, expected it as it was.")
        expect(0.0 not in asked, "it asks for the velocity at sigma = 0, where the network was not trained.")
        wanted = 2 if sigma_next > 0 else 1
        expect(len(asked) == wanted, f"from sigma {sigma:g} to {sigma_next:g} it asks {len(asked)} times, expected {wanted}.")
        right, _ = walk(flow.velocity, flow.path(sigmas[0]), schedule, Solver("heun"), stop=stop)
        away = float((sample - right).abs().max())
        expect(away < 1e-6, f"from sigma {sigma:g} to {sigma_next:g} it ends {away:.2g} away from Heun's step.")
