"""UniPC on problems with known answers, and guidance."""

import math

import pytest
import torch

from cosmos3_lab import (
    Latents,
    Schedule,
    UniPCState,
    add_noise,
    classifier_free_guidance,
    flow_schedule,
    karras_schedule,
    unipc_correct,
    unipc_init,
    unipc_predict,
    unipc_restart,
    unipc_step,
    velocity_to_x0,
)
from cosmos3_lab.guidance import needs_uncond

STRAIGHT = pytest.mark.parametrize(
    "schedule",
    [flow_schedule(7), flow_schedule(7, variant="phyai-flow"), flow_schedule(9, flow_shift=1.0), karras_schedule(8)],
    ids=repr,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def field(sample, sigma):
    """A velocity that bends, so that history matters."""
    return torch.sin(3 * sample) - sigma * sample


def run(schedule, sample, *, start=None, stop=None, velocity=field, **knobs):
    """All steps from `start` (a state) to before `stop`."""
    state, steps = start or unipc_init(sample), []
    while state.step_index < (schedule.num_steps if stop is None else stop):
        steps.append(unipc_step(state, velocity(state.sample, schedule.sigmas[state.step_index]), schedule, **knobs))
        state = steps[-1].state
    return state, steps


def tensors(state):
    return [t for t in (state.sample, state.last_sample, *state.x0_history) if t is not None]


# ----------------------------------------------------------------------------------------------------------- orders


@pytest.mark.parametrize(
    ("n", "solver_order", "predictor", "corrector"),
    [
        (1, 2, [1], [0]),
        (2, 2, [1, 1], [0, 1]),
        (3, 2, [1, 2, 1], [0, 1, 2]),
        (6, 2, [1, 2, 2, 2, 2, 1], [0, 1, 2, 2, 2, 2]),
        (4, 1, [1, 1, 1, 1], [0, 1, 1, 1]),
        (6, 3, [1, 2, 3, 3, 2, 1], [0, 1, 2, 3, 3, 2]),
    ],
)
def test_orders(n, solver_order, predictor, corrector):
    _, steps = run(flow_schedule(n), torch.randn(5), solver_order=solver_order)
    assert [s.predictor_order for s in steps] == predictor
    assert [s.corrector_order for s in steps] == corrector
    assert [len(s.state.x0_history) for s in steps] == [min(i + 1, solver_order) for i in range(n)]


def test_orders_after_a_restart():
    schedule = flow_schedule(6)
    state, _ = run(schedule, torch.randn(5), stop=3)
    _, steps = run(schedule, None, start=unipc_restart(state))
    assert [(s.predictor_order, s.corrector_order) for s in steps] == [(1, 0), (2, 1), (1, 2)]


# -------------------------------------------------------------------------------------------------------- exactness


@STRAIGHT
@pytest.mark.parametrize("solver_order", [1, 2, 3])
def test_a_constant_x0_is_reached_along_the_straight_path(schedule, solver_order):
    x0, noise = torch.randn(20, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    start = add_noise(x0, noise, schedule.sigmas[0])
    state, steps = run(schedule, start, velocity=lambda x, sigma: (x - x0) / sigma, solver_order=solver_order)
    torch.testing.assert_close(state.sample, x0, atol=1e-12, rtol=0)
    for step, sigma in zip(steps, schedule.sigmas[1:], strict=True):
        torch.testing.assert_close(step.state.sample, add_noise(x0, noise, sigma), atol=1e-6, rtol=0)


def test_the_last_step_returns_its_x0():
    _, steps = run(flow_schedule(5), torch.randn(7))
    assert torch.equal(steps[-1].state.sample, steps[-1].x0)


def test_x0_comes_from_the_uncorrected_sample():
    schedule = flow_schedule(5)
    state, _ = run(schedule, torch.randn(7), stop=3)
    velocity = field(state.sample, schedule.sigmas[3])
    step = unipc_step(state, velocity, schedule)
    assert torch.equal(step.x0, velocity_to_x0(state.sample, velocity, schedule.sigmas[3]))
    assert torch.equal(step.state.x0_history[0], step.x0)
    assert torch.equal(step.state.last_sample, step.corrected)
    assert not torch.allclose(step.corrected, state.sample, atol=1e-4)


def test_steps_stay_finite_down_to_zero():
    state, _ = run(flow_schedule(35), torch.randn(50))
    assert state.sample.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_samples_dtype_is_kept(dtype):
    state, _ = run(flow_schedule(4), torch.randn(6, dtype=dtype), velocity=lambda x, sigma: torch.sin(x))
    assert {t.dtype for t in tensors(state)} == {dtype}


# ------------------------------------------------------------------------------------------------------ convergence


def error_at_half(n, order, *, correct, a=-1.5):
    """Of dx/dsigma = a x, whose solution is exp(a (sigma - sigma_0)), half-way down n even steps from 0.9."""
    sigmas = torch.linspace(0.9, 0, n + 1)
    schedule, state = Schedule(sigmas, (sigmas[:-1] * 1000).long()), unipc_init(torch.ones(1, dtype=torch.float64))
    while state.step_index < n // 2:
        x0 = velocity_to_x0(state.sample, a * state.sample, sigmas[state.step_index])
        if correct:
            state = unipc_correct(state, x0, schedule, solver_order=order)
        state = unipc_predict(state, x0, schedule, solver_order=order)
    return abs(float(state.sample) - math.exp(a * float(sigmas[n // 2] - sigmas[0])))


@pytest.mark.parametrize(("order", "correct", "slope"), [(1, False, 1), (1, True, 2), (2, False, 2), (2, True, 3)])
def test_order_of_convergence(order, correct, slope):
    coarse, fine = (error_at_half(n, order, correct=correct) for n in (16, 32))
    assert math.log2(coarse / fine) == pytest.approx(slope, abs=0.15)  # the corrector gains one order


def test_order_2_is_better_than_order_1():
    assert error_at_half(32, 2, correct=True) < error_at_half(32, 1, correct=True) / 10


# ------------------------------------------------------------------------------------------------------------ state


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_resume_is_bit_exact(cut):
    schedule, sample = flow_schedule(6), torch.randn(3, 4)
    whole, _ = run(schedule, sample)
    paused, _ = run(schedule, sample, stop=cut)
    copy = UniPCState(cut, paused.sample.clone(), paused.last_sample.clone(), tuple(x.clone() for x in paused.x0_history))
    resumed, _ = run(schedule, None, start=copy)
    assert all(torch.equal(a, b) for a, b in zip(tensors(resumed), tensors(whole), strict=True))


def test_a_step_leaves_its_state_alone():
    schedule = flow_schedule(6)
    for stop in range(6):
        state, _ = run(schedule, torch.randn(3, 4), stop=stop)
        before = [t.clone() for t in tensors(state)]
        velocity = field(state.sample, 0.5)
        kept = velocity.clone()
        unipc_step(state, velocity, schedule)
        assert state.step_index == stop
        assert all(torch.equal(a, b) for a, b in zip(tensors(state), before, strict=True))
        assert torch.equal(velocity, kept)


def test_restart_is_init_at_that_sigma():
    schedule = flow_schedule(6)
    paused, _ = run(schedule, torch.randn(3, 4), stop=3)
    restarted = unipc_restart(paused)
    assert (restarted.step_index, restarted.last_sample, restarted.x0_history) == (3, None, ())
    assert restarted.sample is paused.sample
    again, _ = run(schedule, None, start=restarted)
    fresh, _ = run(schedule, None, start=unipc_init(paused.sample, step_index=3))
    continued, _ = run(schedule, None, start=paused)
    assert torch.equal(again.sample, fresh.sample)
    assert not torch.allclose(again.sample, continued.sample, atol=1e-5)


def test_there_is_nothing_to_correct_at_the_start():
    state = unipc_init(torch.randn(3))
    assert unipc_correct(state, torch.randn(3), flow_schedule(3)) is state


def test_a_finished_run_has_no_next_step():
    schedule = flow_schedule(2)
    state, _ = run(schedule, torch.randn(3))
    with pytest.raises(ValueError, match="got a state at step 2 of 2: there is no step left"):
        unipc_step(state, torch.randn(3), schedule)


@pytest.mark.parametrize("order", [0, 4])
def test_impossible_orders_are_refused(order):
    with pytest.raises(ValueError, match=f"got solver_order {order}, expected 1, 2 or 3"):
        unipc_step(unipc_init(torch.randn(3)), torch.randn(3), flow_schedule(2), solver_order=order)


def test_repr_shows_shapes_instead_of_numbers():
    state, _ = run(flow_schedule(6), torch.randn(3, 4), stop=3)
    assert repr(state) == "UniPCState(step_index=3, sample=[3, 4], last_sample=kept, 2 x0 in history)"


# --------------------------------------------------------------------------------------------------------- guidance


def velocities(dtype=torch.float64):
    def draw():
        return Latents(torch.randn(1, 2, 3, 4, 5, dtype=dtype), torch.randn(1, 6, 7, dtype=dtype))

    return draw(), draw()


@pytest.mark.parametrize("w", [0.0, 0.5, 2.0, 6.0])
def test_guidance_is_linear_in_w(w):
    cond, uncond = velocities()
    result = classifier_free_guidance(cond, uncond, w)
    for name in ("video", "sound"):
        c, u, guided = (getattr(v, name) for v in (cond, uncond, result.guided))
        torch.testing.assert_close(guided, (1 - w) * u + w * c, atol=1e-13, rtol=0)
    assert result.cond is cond
    assert result.uncond is uncond


def test_w_of_zero_is_the_negative_prompt_and_one_is_the_prompt():
    cond, uncond = velocities()
    zero, one = (classifier_free_guidance(cond, uncond, w).guided for w in (0.0, 1.0))
    assert torch.equal(zero.video, uncond.video)
    assert torch.equal(zero.sound, uncond.sound)
    torch.testing.assert_close(one.video, cond.video, atol=1e-14, rtol=0)
    torch.testing.assert_close(one.sound, cond.sound, atol=1e-14, rtol=0)


def test_without_a_second_branch_the_prompt_is_used_as_it_is():
    cond, _ = velocities()
    result = classifier_free_guidance(cond, None, 6.0)
    assert result.guided is cond
    assert result.uncond is None


def test_guidance_stays_in_the_dtype_of_the_velocities():
    cond, uncond = velocities(torch.bfloat16)
    guided = classifier_free_guidance(cond, uncond, 6.0).guided
    assert guided.video.dtype == guided.sound.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("w", "at_1", "up_to_1"),
    [(0.0, True, False), (0.5, True, False), (1.0, False, False), (1.001, True, True), (6.0, True, True)],
)
def test_when_the_negative_pass_is_needed(w, at_1, up_to_1):
    assert needs_uncond(w) is at_1
    assert needs_uncond(w, "at 1") is at_1
    assert needs_uncond(w, "up to 1") is up_to_1


def test_a_bfloat16_state_is_scaled_in_float32_and_rounded_once():
    """As PhyAI does it on a GPU: the coefficients are not rounded to bfloat16 before the product."""
    schedule, sample = flow_schedule(35), torch.linspace(-1, 1, 64).bfloat16()
    x0 = torch.zeros_like(sample)
    after = unipc_predict(unipc_init(sample), x0, schedule).sample
    ratio = schedule.sigmas[1] / schedule.sigmas[0]
    assert torch.equal(after, (ratio * sample.float()).bfloat16())
