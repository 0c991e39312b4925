"""Which solver walks down the sigmas: UniPC, or Euler and Heun as plain comparisons. This is the one place that knows them all.

    x' = x + (sigma' - sigma) * v(x, sigma)                                Euler: order 1, one evaluation a step
    x' = x + (sigma' - sigma) * (v(x, sigma) + v(x_euler, sigma')) / 2     Heun: order 2, two evaluations a step

All three keep their state in a `UniPCState`. Euler and Heun use only `step_index` and `sample`; their last x0 stands in the
history to be looked at, and for UniPC, should a fork go on with it.
Heun's last step is Euler's, because the network was not trained for sigma = 0. Source of both: Karras et al. 2022,
arXiv:2206.00364, algorithm 1, in the flow form of FlowMatchEulerDiscreteScheduler and FlowMatchHeunDiscreteScheduler of
diffusers 0.42.1.

Read next: `presets.py` (who chooses), `denoise.py` (who asks the network), `solver_lab.py` (which one is best).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from cosmos3_lab.configs import check_choice
from cosmos3_lab.schedule import Schedule, velocity_to_x0
from cosmos3_lab.unipc import SOLVER_ORDER, UniPCState, UniPCStep, check_order, check_step, unipc_step

SolverName = Literal["unipc", "euler", "heun"]
SOLVERS: tuple[SolverName, ...] = get_args(SolverName)
# Velocity of every modality at samples that stand at the sigma of a step of the schedule.
Velocity = Callable[[Sequence[Tensor], int], Sequence[Tensor]]


@dataclass(frozen=True)
class Solver:
    """A solver and its settings.

    Attributes:
        name: "unipc", "euler" or "heun".
        order: of UniPC, 1 to 3; the others have their own.
        corrector: whether UniPC corrects the last step with what the network has seen since.

    Raises:
        ValueError: no such name or order.
    """

    name: SolverName = "unipc"
    order: int = SOLVER_ORDER
    corrector: bool = True

    def __post_init__(self) -> None:
        check_choice("solver", self.name, SolverName)
        check_order(self.order)

    def __str__(self) -> str:
        if self.name != "unipc":
            return self.name.capitalize()
        return f"UniPC {self.order}" + ("" if self.corrector else ", no corrector")


def solver_step(solver: Solver, states: Sequence[UniPCState], velocity: Velocity, schedule: Schedule) -> list[UniPCStep]:
    """One step of all modalities together.

    Args:
        solver: which.
        states: one for each modality, all before the same step.
        velocity: called with `(samples, step)`, once or (Heun) twice; gives a velocity for each, shaped as its sample.
        schedule: of the run.

    Raises:
        ValueError: the schedule is already at its end.
    """
    i = states[0].step_index
    check_step(i, schedule)
    velocities = velocity([state.sample for state in states], i)
    if solver.name == "unipc":
        options = {"solver_order": solver.order, "corrector": solver.corrector}
        return [unipc_step(state, v, schedule, **options) for state, v in zip(states, velocities, strict=True)]
    steps = [euler_step(state, v, schedule) for state, v in zip(states, velocities, strict=True)]
    if solver.name == "euler" or i + 1 == schedule.num_steps:
        return steps
    ahead = velocity([step.state.sample for step in steps], i + 1)
    means = [(here + there) / 2 for here, there in zip(velocities, ahead, strict=True)]
    samples = [euler_step(state, mean, schedule).state.sample for state, mean in zip(states, means, strict=True)]
    return [
        replace(step, state=replace(step.state, sample=sample), predictor_order=2)
        for step, sample in zip(steps, samples, strict=True)
    ]


def euler_step(state: UniPCState, velocity: Float[Tensor, "..."], schedule: Schedule) -> UniPCStep:
    """Straight ahead: `sample + (sigma' - sigma) * velocity`.

    Args:
        state: before this step.
        velocity: shaped as `state.sample` and in its dtype.
        schedule: of the run.

    Raises:
        ValueError: the schedule is already at its end.
    """
    i = state.step_index
    check_step(i, schedule)
    sigma, sigma_next = schedule.sigmas[i : i + 2].tolist()  # plain floats, so that a bfloat16 sample does not round them
    x0 = velocity_to_x0(state.sample, velocity, schedule.sigmas[i])
    after = UniPCState(i + 1, state.sample + (sigma_next - sigma) * velocity, x0_history=(x0,))
    return UniPCStep(after, x0, state.sample, 1, 0)
