"""UniPC: a multistep solver that predicts the next sample and corrects the last prediction, at no extra network call.

Symbols: `x` sample, `m_0, m_1, ...` this and earlier predictions of x0, `alpha = 1 - sigma`,
`lambda = log(alpha / sigma)`, `h` its step. With B(h) = exp(-h) - 1 ("bh2", for x0 prediction):

    x' = sigma'/sigma * x - alpha' * B * (m_0 + sum_k rho_k * D_k),   D_k = (m_k - m_0) / r_k,   r_k = (lambda_k - lambda) / h

The predictor steps from the current sigma to the next. One step later the network has seen the new sample, so the
corrector redoes that same step with the new x0 as one more point (r = 1). The whole solver state is four fields; orders
are derived: they start at 1, and fall to 1 for the last step, where sigma' = 0 makes lambda infinite and x' = m_0.

Source: Zhao et al. 2023, arXiv:2302.04867, and UniPCMultistepScheduler of diffusers 0.42.1 (order 2 is Nano's).
Read next: `solvers.py`, which has two plain solvers beside it.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from cosmos3_lab.schedule import Schedule, half_log_snr, velocity_to_x0
from cosmos3_lab.showing import Shown

SOLVER_ORDER = 2  # scheduler_config.json: solver_order


@dataclass(frozen=True, eq=False)
class UniPCState(Shown):
    """Everything the solver remembers of one modality. Tensors are never written in place, so states share them freely.

    Attributes:
        step_index: the step to do next; `sample` is at `sigmas[step_index]`.
        sample: `[...]`, the predicted sample at this sigma.
        last_sample: the corrected sample of the step before, None at the start and after a restart.
        x0_history: the latest predictions of x0, newest first, at most `solver_order`.
    """

    step_index: int
    sample: Float[Tensor, "..."]
    last_sample: Float[Tensor, "..."] | None = None
    x0_history: tuple[Float[Tensor, "..."], ...] = ()

    def __repr__(self) -> str:
        return (
            f"UniPCState(step_index={self.step_index}, sample={list(self.sample.shape)}, "
            f"last_sample={'kept' if self.last_sample is not None else None}, {len(self.x0_history)} x0 in history)"
        )


@dataclass(frozen=True, eq=False)
class UniPCStep:
    """One step taken apart.

    Attributes:
        state: after the step.
        x0: this step's prediction, from the uncorrected sample.
        corrected: the sample at this sigma after the corrector.
        predictor_order, corrector_order: orders used; corrector 0 means that there was nothing to correct.
    """

    state: UniPCState
    x0: Float[Tensor, "..."]
    corrected: Float[Tensor, "..."]
    predictor_order: int
    corrector_order: int


def unipc_init(sample: Float[Tensor, "..."], *, step_index: int = 0) -> UniPCState:
    """The state before the first step, or at `step_index` of a schedule, with nothing remembered."""
    return UniPCState(step_index, sample)


def unipc_restart(state: UniPCState) -> UniPCState:
    """The same sample at the same sigma with the history forgotten; needed after the sample was edited."""
    return unipc_init(state.sample, step_index=state.step_index)


def predictor_order(state: UniPCState, schedule: Schedule, *, solver_order: int = SOLVER_ORDER) -> int:
    """Order of the next prediction: what the history allows, and never more than the steps that are left."""
    return min(solver_order, schedule.num_steps - state.step_index, len(state.x0_history) + 1)


def corrector_order(state: UniPCState, schedule: Schedule, *, solver_order: int = SOLVER_ORDER) -> int:
    """Order of the last prediction, which the corrector repeats; 0 where there is none."""
    if state.last_sample is None:
        return 0
    return min(solver_order, schedule.num_steps - state.step_index + 1, len(state.x0_history))


def unipc_correct(
    state: UniPCState, x0: Float[Tensor, "..."], schedule: Schedule, *, solver_order: int = SOLVER_ORDER
) -> UniPCState:
    """Redo the step that led here, now that x0 at its end is known. Returns the state with the corrected sample.

    Args:
        state: before this step; returned unchanged where there is nothing to correct.
        x0: this step's prediction, shaped as `state.sample`.
        schedule: of the run.
        solver_order: 1 to 3.
    """
    order, i = corrector_order(state, schedule, solver_order=solver_order), state.step_index
    if order == 0:
        return state
    before, *older = state.x0_history[:order]
    # The earlier x0 as the predictor had them, plus the new one at the end of the step (r = 1).
    coefficients = _bh2(schedule.sigmas, start=i - 1, order=order, corrector=True)
    sample = _step(state.last_sample, before, [*older, x0], coefficients)
    return replace(state, sample=sample)


def unipc_predict(
    state: UniPCState, x0: Float[Tensor, "..."], schedule: Schedule, *, solver_order: int = SOLVER_ORDER
) -> UniPCState:
    """Step to the next sigma. Returns the state there, with `x0` and the present sample remembered.

    Args:
        state: at this sigma, already corrected.
        x0: this step's prediction, shaped as `state.sample`.
        schedule: of the run.
        solver_order: 1 to 3.
    """
    order, i = predictor_order(state, schedule, solver_order=solver_order), state.step_index
    older = list(state.x0_history[: order - 1])
    coefficients = _bh2(schedule.sigmas, start=i, order=order, corrector=False)
    sample = _step(state.sample, x0, older, coefficients)
    return UniPCState(i + 1, sample, state.sample, (x0, *state.x0_history)[:solver_order])


def unipc_step(
    state: UniPCState,
    velocity: Float[Tensor, "..."],
    schedule: Schedule,
    *,
    solver_order: int = SOLVER_ORDER,
    corrector: bool = True,
) -> UniPCStep:
    """Velocity to x0, correct, predict.

    Args:
        state: before this step.
        velocity: guided, shaped as `state.sample` and in its dtype.
        schedule: of the run.
        solver_order: 1 to 3 (2 in all references).
        corrector: False leaves out the second of the three, to see what it is good for.

    Raises:
        ValueError: the schedule is already at its end, or the order is out of range.
    """
    check_step(state.step_index, schedule)
    check_order(solver_order)
    x0 = velocity_to_x0(state.sample, velocity, schedule.sigmas[state.step_index])
    corrected = unipc_correct(state, x0, schedule, solver_order=solver_order) if corrector else state
    return UniPCStep(
        unipc_predict(corrected, x0, schedule, solver_order=solver_order),
        x0,
        corrected.sample,
        predictor_order(state, schedule, solver_order=solver_order),
        corrector_order(state, schedule, solver_order=solver_order) if corrector else 0,
    )


def check_step(step_index: int, schedule: Schedule) -> None:
    """Refuse a step that the schedule does not have.

    Raises:
        ValueError: it is at its end.
    """
    if not 0 <= step_index < schedule.num_steps:
        raise ValueError(f"got a state at step {step_index} of {schedule.num_steps}: there is no step left to do")


def check_order(solver_order: int) -> None:
    """Refuse an order that UniPC does not have here.

    Raises:
        ValueError: not 1 to 3.
    """
    if solver_order not in (1, 2, 3):
        raise ValueError(f"got solver_order {solver_order}, expected 1, 2 or 3")


@dataclass(frozen=True, eq=False)
class _Coefficients:
    """Numbers of one step, computed in float32. Plain floats, so that a bfloat16 sample does not round them first."""

    keep: float  # sigma' / sigma
    pull: float  # alpha' * B(h)
    rhos: Float32[Tensor, " d"]  # weights of the differences D_k
    rs: list[float]  # where the other x0 lie, in units of h


def _step(x: Tensor, m0: Tensor, others: list[Tensor], c: _Coefficients) -> Tensor:
    base = c.keep * x - c.pull * m0
    if not others:
        return base
    rhos = c.rhos.to(x.dtype).tolist()  # PhyAI and diffusers round the weights to the sample's dtype
    differences = (rho * ((m - m0) / r) for rho, r, m in zip(rhos, c.rs, others, strict=True))
    return base - c.pull * sum(differences)


def _bh2(sigmas: Float32[Tensor, " n_plus_1"], *, start: int, order: int, corrector: bool) -> _Coefficients:
    """Coefficients of the step from `sigmas[start]` to `sigmas[start + 1]`, in float32 as the references compute them."""
    lambdas = half_log_snr(sigmas)
    h = lambdas[start + 1] - lambdas[start]
    rs = [(lambdas[start - k] - lambdas[start]) / h for k in range(1, order)]
    if corrector:
        rs.append(torch.ones(()))
    rs = torch.stack(rs) if rs else torch.empty(0)
    b_h = torch.expm1(-h)
    keep, pull = sigmas[start + 1] / sigmas[start], (1 - sigmas[start + 1]) * b_h
    return _Coefficients(keep.item(), pull.item(), _rhos(rs, -h, b_h), rs.tolist())


def _rhos(rs: Float32[Tensor, " d"], hh: Float32[Tensor, ""], b_h: Float32[Tensor, ""]) -> Float32[Tensor, " d"]:
    """Weights that make the step exact where x0 is a polynomial in lambda: `sum_k r_k^(j-1) rho_k = b_j`, j = 1 ... d.

    `b_j = j! * phi_(j+1)(hh) / B(h)` with the exponential integrals `phi_1(z) = (e^z - 1) / z` and
    `phi_(j+1)(z) = (phi_j(z) - 1 / j!) / z` at `hh = -h` (the paper's section 3; the loop divides by h as it goes). One
    weight alone is set to 1/2 instead of solved for, in the paper and in all references.
    """
    count = len(rs)
    if count < 2:
        return torch.full((count,), 0.5)
    phi, factorial, b = torch.expm1(hh) / hh - 1, 1.0, []
    for j in range(1, count + 1):
        b.append(phi * factorial / b_h)
        factorial *= j + 1
        phi = phi / hh - 1 / factorial
    return torch.linalg.solve(torch.stack([rs**j for j in range(count)]), torch.stack(b))
