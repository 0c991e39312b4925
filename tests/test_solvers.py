"""Euler, Heun and UniPC behind one step: orders, evaluations, whole runs, states, forks, and the errors of the laboratory."""

from dataclasses import replace

import pytest
import torch

from cosmos3_lab import (
    PRESETS,
    Schedule,
    Solver,
    add_noise,
    denoise,
    euler_step,
    figures,
    flow_schedule,
    fork,
    generate,
    load_cosmos3,
    load_state,
    prepare_denoise,
    prepare_request,
    save_state,
    schedule_from_sigmas,
    solver_step,
    unipc_init,
)
from cosmos3_lab.presets import make_solver, with_solver
from cosmos3_lab.solver_lab import (
    ALL_SOLVERS,
    REFERENCE_FILE,
    GaussianFlow,
    SolverError,
    convergence_order,
    flow_errors,
    load_reference,
    model_errors,
    reference_request,
    relative_error,
    walk,
)

STEPS = 5  # in 4, the end is too near for UniPC to have an order of 3
ASK = {"prompt": "a red ball bounces", "negative_prompt": "blurry", "num_inference_steps": STEPS, "with_sound": True}
ASK |= {"num_frames": 5, "height": 32, "width": 48, "fps": 16.0}
FLOW = GaussianFlow(torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64))
every_solver = pytest.mark.parametrize("solver", ALL_SOLVERS, ids=str)


def prepared(models, solver=None, **changes):
    return prepare_denoise(models, prepare_request(models, **ASK | changes), solver=solver)


def run(models, inputs, state, stop=None):
    records = []
    for after, record in denoise(models.transformer, inputs, state, stop=stop):
        state = after
        records.append(record)
    return state, records


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


# ------------------------------------------------------------------------------------------------------------ choices


@pytest.mark.parametrize("order", [0, 4])
def test_orders_that_do_not_exist_are_refused(order):
    with pytest.raises(ValueError, match=f"got solver_order {order}, expected 1, 2 or 3"):
        Solver("unipc", order)
    with pytest.raises(ValueError, match=f"got solver_order {order}, expected 1, 2 or 3"):
        replace(PRESETS["native"], solver_order=order)


def test_a_name_keeps_the_presets_settings_and_a_solver_brings_its_own():
    preset = replace(PRESETS["phyai"], solver_order=3, corrector=False)
    assert make_solver(PRESETS["native"]) == Solver()
    assert make_solver(with_solver(preset, "euler")) == Solver("euler", 3, corrector=False)
    assert make_solver(with_solver(preset, Solver("heun"))) == Solver("heun")
    assert with_solver(preset, None) is preset


def test_names_for_a_legend():
    assert [str(s) for s in (Solver("euler"), Solver(order=3), Solver(corrector=False))] == [
        "Euler",
        "UniPC 3",
        "UniPC 2, no corrector",
    ]


# -------------------------------------------------------------------------------------------------------------- steps


@every_solver
def test_a_constant_x0_is_reached_along_the_straight_path(solver):
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 20, dtype=torch.float64, generator=generator)
    schedule = flow_schedule(7)
    end, _ = walk(lambda x, sigma: (x - x0) / sigma, add_noise(x0, noise, schedule.sigmas[0].double()), schedule, solver)
    torch.testing.assert_close(end, x0, atol=1e-12, rtol=0)


@every_solver
def test_evaluations_are_counted(solver):
    for n in (1, 2, 7):
        _, evaluations = walk(FLOW.velocity, FLOW.path(0.999), flow_schedule(n), solver)
        assert evaluations == (2 * n - 1 if solver.name == "heun" else n)


def test_heuns_step_in_its_own_words():
    schedule, x = schedule_from_sigmas([0.8, 0.3]), torch.tensor([1.0, -2.0], dtype=torch.float64)
    v = torch.sin(x)
    there = torch.sin(x - 0.5 * v)
    step = solver_step(Solver("heun"), [unipc_init(x)], lambda xs, i: [torch.sin(xs[0])], schedule)[0]
    torch.testing.assert_close(step.state.sample, x - 0.25 * (v + there), atol=1e-7, rtol=0)
    torch.testing.assert_close(step.x0, x - 0.8 * v, atol=1e-7, rtol=0)
    assert (step.state.step_index, step.predictor_order, step.corrector_order) == (1, 2, 0)


def test_modalities_are_stepped_together_and_do_not_mix():
    """The second evaluation sees both samples at the next sigma; each modality ends where it ends alone."""
    schedule, samples = flow_schedule(5), [torch.ones(3), 2 * torch.ones(2)]
    states = [unipc_init(x) for x in samples]
    while states[0].step_index < 5:
        steps = solver_step(Solver("heun"), states, lambda xs, i: [torch.sin(x) for x in xs], schedule)
        states = [step.state for step in steps]
    for state, x in zip(states, samples, strict=True):
        assert torch.equal(state.sample, walk(lambda x, sigma: torch.sin(x), x, schedule, Solver("heun"))[0])


@every_solver
def test_a_finished_run_has_no_next_step_and_asks_for_nothing(solver):
    def never(samples, step):
        raise AssertionError("asked for a velocity")

    with pytest.raises(ValueError, match="got a state at step 2 of 2: there is no step left"):
        solver_step(solver, [unipc_init(torch.ones(2), step_index=2)], never, flow_schedule(2))
    with pytest.raises(ValueError, match="no step left"):
        euler_step(unipc_init(torch.ones(2), step_index=2), torch.ones(2), flow_schedule(2))


def test_a_bfloat16_sample_is_stepped_with_sigmas_that_are_not_rounded():
    schedule, x = flow_schedule(35), torch.linspace(-1, 1, 64).bfloat16()
    after = euler_step(unipc_init(x), torch.ones_like(x), schedule).state.sample
    step = float(schedule.sigmas[1]) - float(schedule.sigmas[0])  # 0.003, where bfloat16 has no number between 0.996 and 1
    torch.testing.assert_close(after, (x.double() + step).bfloat16())


# -------------------------------------------------------------------------------------------------------- convergence


@pytest.mark.parametrize(
    ("solver", "order"),
    [
        (Solver("euler"), 1),
        (Solver(order=1, corrector=False), 1),
        (Solver("heun"), 2),
        (Solver(order=1), 2),
        (Solver(order=2, corrector=False), 2),
        (Solver(order=2), 3),
    ],
    ids=str,
)
def test_order_of_convergence(solver, order):
    """Half-way down straight sigmas, where no last step of order 1 stands between; the corrector gains one order."""
    errors = flow_errors(FLOW, [solver], [16, 24, 32, 48, 64], share=0.5)
    assert convergence_order(errors) == pytest.approx(order, abs=0.2)


def test_unipc_of_order_1_without_corrector_is_euler():
    """In another form: x0 and the ratio of sigmas, in float32."""
    schedule, x = flow_schedule(12), FLOW.path(0.999)
    ours, euler = (walk(FLOW.velocity, x, schedule, s)[0] for s in (Solver(order=1, corrector=False), Solver("euler")))
    torch.testing.assert_close(ours, euler, atol=1e-6, rtol=0)


def test_the_fit_of_an_order():
    errors = [SolverError(Solver(), n, n, 5.0 * n**-2.5) for n in (4, 8, 32)]
    assert convergence_order(errors) == pytest.approx(2.5, abs=1e-9)
    for bad in (errors[:1], [replace(errors[0], error=0.0), errors[1]]):
        with pytest.raises(ValueError, match="two numbers of steps or more"):
            convergence_order(bad)


def test_the_flows_formulas_agree():
    """The velocity is the path's derivative."""
    sigma = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    for i in range(4):
        (slope,) = torch.autograd.grad(FLOW.path(sigma)[i], sigma)
        velocity = FLOW.velocity(FLOW.path(sigma.detach()), sigma.detach())
        assert float(slope) == pytest.approx(float(velocity[i]), rel=1e-12)


# --------------------------------------------------------------------------------------------------------- whole runs


def test_the_presets_solver_is_the_default(tiny):
    expected = run(tiny, *prepared(tiny))[0].latents
    assert same(run(tiny, *prepared(tiny, Solver()))[0].latents, expected)
    assert same(run(tiny, *prepared(tiny, "unipc"))[0].latents, expected)


@every_solver
def test_every_solver_has_its_own_end_and_goes_on_bit_for_bit(tiny, tmp_path, solver):
    inputs, state = prepared(tiny, solver)
    whole, records = run(tiny, inputs, state)
    assert same(whole.latents, run(tiny, *prepared(tiny))[0].latents) is (solver == Solver())
    heun = solver.name == "heun"
    assert [r.evaluations for r in records] == ([2] * (STEPS - 1) + [1] if heun else [1] * STEPS)
    assert [r.passes for r in records] == [2 * r.evaluations for r in records]
    if solver.name != "unipc":
        assert [(r.order, r.corrector_order) for r in records] == [(2 if heun else 1, 0)] * (STEPS - 1) + [(1, 0)]
    elif not solver.corrector:
        assert {r.corrector_order for r in records} == {0}
    for step in (1, 3):
        paused, _ = run(tiny, inputs, state, stop=step)
        path = save_state(tmp_path / f"{step}.safetensors", inputs, paused)
        again, _ = prepared(tiny, solver)
        assert same(run(tiny, again, load_state(path, again))[0].latents, whole.latents)
    other, _ = prepared(tiny, Solver("euler" if solver.name != "euler" else "heun"))
    with pytest.raises(ValueError, match="preset differ"):
        load_state(path, other)


def test_records_hold_the_first_evaluation_of_a_heun_step(tiny):
    inputs, state = prepared(tiny, "heun")
    euler_inputs, _ = prepared(tiny, "euler")
    heun, euler = (run(tiny, i, state, stop=1)[1][0] for i in (inputs, euler_inputs))
    assert same(heun.velocity.guided, euler.velocity.guided)
    assert same(heun.x0, euler.x0)
    assert not same(heun.predictor_move, euler.predictor_move)


def test_generate_takes_a_solver_and_the_manifest_says_so(tiny):
    result = generate(tiny, **ASK, solver=Solver("unipc", 3, corrector=False), progress=False)
    choices = result.manifest["choices"]
    assert (choices["solver"], choices["solver_order"], choices["corrector"]) == ("unipc", 3, False)
    assert [r.order for r in result.records] == [1, 2, 3, 2, 1]


# --------------------------------------------------------------------------------------------------------------- fork


@pytest.fixture(scope="module")
def parent(tiny):
    inputs, state = prepared(tiny)
    paused, _ = run(tiny, inputs, state, stop=2)
    return inputs, paused, run(tiny, inputs, paused)[0].latents


@pytest.mark.parametrize("change", [{"solver": "heun"}, {"solver": Solver(order=3)}, {"preset": "diffusers"}], ids=str)
def test_a_fork_to_another_solver_or_preset_restarts(tiny, parent, change):
    inputs, paused, end = parent
    forked, state = fork(tiny, inputs, paused, **change)
    assert same(state.latents, paused.latents)
    assert (state.video.last_sample, state.video.x0_history) == (None, ())
    assert not same(run(tiny, forked, state)[0].latents, end)
    assert same(run(tiny, inputs, paused)[0].latents, end)
    assert make_solver(inputs.preset) == Solver()


def test_a_fork_to_another_solver_may_keep_the_history(tiny, parent):
    inputs, paused, _ = parent
    _, kept = fork(tiny, inputs, paused, solver=Solver(order=3), restart=False)
    assert kept.video.x0_history == paused.video.x0_history
    with pytest.raises(ValueError, match="restart=False with a new prompt, schedule or preset"):
        fork(tiny, inputs, paused, preset="phyai", restart=False)


def test_a_fork_to_another_preset_takes_its_precision_and_rule_but_neither_tokens_nor_schedule(tiny_folder):
    with load_cosmos3(tiny_folder, device="cpu", dtype=torch.bfloat16) as models:
        inputs, state = prepared(models, guidance_scale=0.5)
        assert (state.latents.video.dtype, inputs.uncond is not None) == (torch.float32, True)
        forked, rounded = fork(models, inputs, state, preset="phyai")
        assert {x.dtype for x in rounded.latents.tensors()} == {torch.bfloat16}
        assert forked.uncond is None  # "up to 1"
        assert forked.preset == PRESETS["phyai"]
        assert forked.schedule is inputs.schedule
        assert torch.equal(forked.request.text_ids, inputs.request.text_ids)
        assert run(models, forked, rounded)[0].latents.video.dtype == torch.bfloat16
        back, again = fork(models, forked, rounded, preset="native", solver="euler")
        assert (again.latents.video.dtype, back.uncond is not None) == (torch.float32, True)
        assert make_solver(back.preset) == Solver("euler")


# ------------------------------------------------------------------------------------------------------- own schedules


@pytest.mark.parametrize("n", [1, 4, 30])
def test_sigmas_of_a_schedule_make_that_schedule_again(n):
    schedule = flow_schedule(n, flow_shift=5.0)
    for sigmas in (schedule.sigmas, schedule.sigmas[:-1], schedule.sigmas.tolist()):
        again = schedule_from_sigmas(sigmas)
        assert torch.equal(again.sigmas, schedule.sigmas)
        assert torch.equal(again.timesteps, schedule.timesteps)
        assert (again.name, again.flow_shift) == ("custom", None)


def test_timesteps_of_own_sigmas():
    schedule = schedule_from_sigmas([1.0, 0.978, 0.5, 0.0015])
    assert schedule.timesteps.tolist() == [999, 978, 500, 1]
    assert 0.99999 < schedule.sigmas[0] < 1
    assert schedule.sigmas[-1] == 0


@pytest.mark.parametrize("sigmas", [[], [0.0], [0.5, 0.5], [0.4, 0.5], [1.5, 0.5], [0.5, -0.1], [float("nan"), 0.1]], ids=str)
def test_sigmas_that_make_no_schedule_are_refused(sigmas):
    with pytest.raises(ValueError, match="got (sigmas|steps 0)"):
        schedule_from_sigmas(sigmas)


def test_a_run_takes_own_sigmas(tiny):
    result = generate(
        tiny, **ASK | {"num_inference_steps": None}, schedule=schedule_from_sigmas([0.99, 0.7, 0.2]), progress=False
    )
    assert [r.timestep for r in result.records] == [990, 700, 200]
    assert result.manifest["schedule"] == "custom"


# ---------------------------------------------------------------------------------------------------------- laboratory


@pytest.fixture(scope="module")
def pico():
    with load_cosmos3("pico", device="cpu", dtype=torch.float32) as models:
        yield models


def test_the_reference_is_the_end_of_picos_flow(pico):
    """64 steps of UniPC nearly get there (0.025 was measured of the video, 0.016 of the sound), 4 do not."""
    assert REFERENCE_FILE.stat().st_size < 100_000
    request, reference = reference_request(pico), load_reference(pico)
    assert reference.video.shape[2:] == request.video_shape
    few, many = model_errors(pico, request, [Solver()], [4, 64], reference)
    assert (few.evaluations, many.evaluations) == (4, 64)
    assert many.error < 0.04 < 0.3 < few.error
    assert many.sound_error < 0.02 < 0.5 < few.sound_error


def test_solvers_are_compared_at_equal_cost(tiny):
    inputs, state = prepared(tiny)
    reference = run(tiny, inputs, state)[0].latents
    errors = list(model_errors(tiny, inputs.request, [Solver("heun"), Solver()], [3, 5], reference))
    assert [(e.solver.name, e.steps, e.evaluations) for e in errors] == [
        ("heun", 2, 3),
        ("heun", 3, 5),
        ("unipc", 3, 3),
        ("unipc", 5, 5),
    ]
    assert errors[-1].error == errors[-1].sound_error == 0.0  # the reference's own walk
    assert all(e.error > 0 for e in errors[:-1])


def test_the_reference_of_other_weights_is_refused(tiny):
    with pytest.raises(ValueError, match=r"solver_reference\.safetensors belongs to weights .* makes a new one"):
        load_reference(tiny)


def test_a_silent_request_has_no_sound_error(tiny):
    request = prepare_request(tiny, **ASK | {"with_sound": False})
    reference = run(tiny, *prepare_denoise(tiny, request))[0].latents
    (error,) = model_errors(tiny, request, [Solver()], [STEPS], reference)
    assert (error.error, error.sound_error, error.evaluations) == (0.0, None, STEPS)


def test_relative_error():
    assert relative_error(torch.tensor([3.0, 0.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.8)


# -------------------------------------------------------------------------------------------------------------- figures


def test_solver_errors_are_drawn_on_two_logarithmic_axes():
    errors = flow_errors(FLOW, ALL_SOLVERS, [4, 8, 16])
    ax = figures.plot_solver_errors(errors, title="here")
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_title(loc="left")) == ("log", "log", "here")
    assert [line.get_label() for line in ax.get_lines()] == [str(solver) for solver in ALL_SOLVERS]
    drawn = ax.get_lines()[1].get_xydata()
    assert drawn.tolist() == [[e.evaluations, e.error] for e in errors if e.solver.name == "heun"]
    with pytest.raises(ValueError, match="got no errors of sound"):
        figures.plot_solver_errors(errors, modality="sound")


def test_guidance_is_drawn_over_sigma(tiny):
    from cosmos3_lab import Guidance

    inputs, _ = prepared(tiny, guidance_scale=Guidance([1.0, 6.0, 6.0, 2.0, 2.0], sound_scale=3.0))
    ax = figures.plot_guidance_scale(inputs.guidance, inputs.schedule)
    points = {tuple(map(tuple, line.get_xydata().round(4).tolist())) for line in ax.get_lines()}
    sigmas = [round(float(sigma), 4) for sigma in inputs.schedule.sigmas[:-1]]
    assert tuple(zip(sigmas, (1.0, 6.0, 6.0, 2.0, 2.0), strict=True)) in points
    assert ax.xaxis_inverted()
    with pytest.raises(ValueError, match="expected a number for each step"):
        figures.plot_guidance_scale(Guidance(6.0), inputs.schedule)
    with pytest.raises(ValueError, match="for 4 steps"):
        figures.plot_guidance_scale(inputs.guidance, Schedule(inputs.schedule.sigmas[1:], inputs.schedule.timesteps[1:]))
