"""Which solver comes nearest to the end of the flow for the same number of evaluations? Errors, on a flow and on the model.

    flow_errors(GaussianFlow(std), solvers, steps)                    the end is known in closed form
    model_errors(models, request, solvers, evaluations, reference)    the end is that of a run of many steps
    convergence_order(errors)                                         p, where the error falls as n^-p

The reference for pico is a file beside the checkpoint; `benchmarks/solver_errors.py` made it.

Read next: `lesson_figures.py`, which draws the errors.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import denoise, prepare_denoise
from cosmos3_lab.latents import Latents
from cosmos3_lab.prepare import prepare_request
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.schedule import Schedule, flow_schedule
from cosmos3_lab.solvers import Solver, solver_step
from cosmos3_lab.unipc import unipc_init

# Plain comparisons, then UniPC with and without its corrector.
ALL_SOLVERS = (
    Solver("euler"),
    Solver("heun"),
    *(Solver("unipc", order, corrector) for order in (1, 2, 3) for corrector in (False, True)),
)
REFERENCE_STEPS, REFERENCE_FRAMES = 500, 17
REFERENCE_FILE = Path(__file__).parent / "pico" / "solver_reference.safetensors"
REFERENCE_PROMPT = "a red circle bounces on a blue background; low thuds"


@dataclass(frozen=True)
class SolverError:
    """How far from the end of the flow a walk ended.

    Attributes:
        solver: that walked.
        steps: that it took.
        evaluations: how often it asked for a velocity.
        error: root mean square of what is wrong, divided by that of the right end; of the video, on a model.
        sound_error: the same of the sound, None where there is none.
    """

    solver: Solver
    steps: int
    evaluations: int
    error: float
    sound_error: float | None = None


@dataclass(frozen=True, eq=False)
class GaussianFlow:
    """The flow whose data are normal, each number with a standard deviation of its own: velocity and path are formulas.

    Attributes:
        std: `[d]`, of the data.
    """

    std: Float[Tensor, " d"]

    def path(self, sigma: float | Tensor) -> Float[Tensor, " d"]:
        """Standard deviation of the sample at a noise level; a sample keeps its ratio to it.

        Args:
            sigma: noise level, 0-dim if a tensor.
        """
        return ((1 - sigma) ** 2 * self.std**2 + sigma**2).sqrt()

    def velocity(self, sample: Float[Tensor, " d"], sigma: float | Tensor) -> Float[Tensor, " d"]:
        """Exact velocity of a sample.

        Args:
            sample: at this noise level.
            sigma: noise level, 0-dim if a tensor.
        """
        return (sigma - (1 - sigma) * self.std**2) / self.path(sigma) ** 2 * sample


def walk(
    velocity: Callable[[Tensor, Tensor], Tensor],
    sample: Float[Tensor, "..."],
    schedule: Schedule,
    solver: Solver,
    *,
    stop: int | None = None,
) -> tuple[Float[Tensor, "..."], int]:
    """A solver on any velocity field.

    Args:
        velocity: called with `(sample, sigma)`, sigma 0-dim in the sample's dtype.
        sample: at the schedule's first sigma.
        schedule: of the walk.
        solver: which.
        stop: the step before which to stop; None walks to the end.

    Returns:
        The sample at the end, and the number of evaluations.
    """
    state, evaluations = unipc_init(sample), 0

    def asked(samples: Sequence[Tensor], step: int) -> list[Tensor]:
        nonlocal evaluations
        evaluations += 1
        return [velocity(samples[0], schedule.sigmas[step].to(sample.dtype))]

    while state.step_index < (schedule.num_steps if stop is None else stop):
        state = solver_step(solver, [state], asked, schedule)[0].state
    return state.sample, evaluations


def flow_errors(
    flow: GaussianFlow,
    solvers: Sequence[Solver],
    steps: Sequence[int],
    *,
    make_schedule: Callable[[int], Schedule] = lambda n: flow_schedule(n, flow_shift=1.0),
    share: float = 1.0,
) -> list[SolverError]:
    """Errors of walks along a flow whose path is known, from one standard deviation away from the middle.

    Args:
        flow: of Gaussian data.
        solvers: to compare.
        steps: numbers of steps, for each of them.
        make_schedule: a schedule of n steps.
        share: which part of the steps to take, 0 to 1. The last step of every schedule goes to sigma = 0 with order 1, so that
            the order of a solver shows only where the walk stops earlier.
    """
    errors = []
    for solver in solvers:
        for n in steps:
            schedule, stop = make_schedule(n), round(share * n)
            first, last = schedule.sigmas[0].double(), schedule.sigmas[stop].double()
            end, evaluations = walk(flow.velocity, flow.path(first), schedule, solver, stop=stop)
            errors.append(SolverError(solver, stop, evaluations, relative_error(end, flow.path(last))))
    return errors


def model_errors(
    models: Cosmos3Models,
    request: Cosmos3T2VRequest,
    solvers: Sequence[Solver],
    evaluations: Sequence[int],
    reference: Latents,
) -> Iterator[SolverError]:
    """Errors of whole runs of the model, one after the other.

    Args:
        models: from `load_cosmos3`.
        request: what `reference` is the end of; its number of steps does not matter.
        solvers: to compare.
        evaluations: how many each of them may have; one for each step, but for Heun, which takes half as many steps.
        reference: clean latents, the end of a run of many steps.
    """
    for solver in solvers:
        for n in evaluations:
            taken = (n + 1) // 2 if solver.name == "heun" else n
            inputs, state = prepare_denoise(models, replace(request, num_inference_steps=taken), solver=solver)
            asked = 0
            for after, record in denoise(models.transformer, inputs, state):
                state, asked = after, asked + record.evaluations
            end = state.latents.to("cpu")
            sound = None if end.sound is None else relative_error(end.sound, reference.sound)
            yield SolverError(solver, taken, asked, relative_error(end.video, reference.video), sound)


def relative_error(value: Float[Tensor, "..."], right: Float[Tensor, "..."]) -> float:
    """Root mean square of the difference, divided by that of the right value.

    Args:
        value, right: of one shape.
    """
    return float((value.double() - right.double()).square().mean().sqrt() / right.double().square().mean().sqrt())


def convergence_order(errors: Sequence[SolverError]) -> float:
    """p in `error = c * steps^-p`, fitted to the logarithms.

    Args:
        errors: of one solver, at two numbers of steps or more.

    Raises:
        ValueError: fewer than two, or an error of zero.
    """
    if len({e.steps for e in errors}) < 2 or min(e.error for e in errors) <= 0:
        raise ValueError(f"got {len(errors)} errors, expected those of two numbers of steps or more, all above 0")
    return -float(np.polyfit([math.log(e.steps) for e in errors], [math.log(e.error) for e in errors], 1)[0])


def reference_request(models: Cosmos3Models, *, num_inference_steps: int = REFERENCE_STEPS) -> Cosmos3T2VRequest:
    """The clip whose end is in the file: pico's shorter one, with sound.

    Args:
        models: pico.
        num_inference_steps: solver steps.
    """
    options = {"with_sound": True, "num_frames": REFERENCE_FRAMES, "num_inference_steps": num_inference_steps}
    return prepare_request(models, REFERENCE_PROMPT, **options)


def load_reference(models: Cosmos3Models) -> Latents:
    """The end of `reference_request` after 500 steps of UniPC, as it was when the file was made.

    Args:
        models: pico, whose fingerprint must be the file's.

    Raises:
        ValueError: the file was made with other weights.
    """
    from safetensors import safe_open

    with safe_open(str(REFERENCE_FILE), framework="pt") as file:
        made_with = (file.metadata() or {}).get("fingerprint")
        latents = Latents(file.get_tensor("video"), file.get_tensor("sound"))
    if made_with != models.fingerprint:
        raise ValueError(
            f"{REFERENCE_FILE.name} belongs to weights {made_with}, and these are {models.fingerprint}; "
            "benchmarks/solver_errors.py --reference makes a new one"
        )
    return latents
