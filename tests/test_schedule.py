"""Sigmas and timesteps against numbers that the references gave (golden_schedules.json), and the algebra of flow matching."""

import json
import math
from pathlib import Path

import pytest
import torch

from cosmos3_lab import (
    Schedule,
    add_noise,
    flow_schedule,
    half_log_snr,
    karras_schedule,
    log_snr,
    schedule_from_config,
    unipc_init,
    unipc_step,
    velocity_to_x0,
)
from cosmos3_lab.layout import NANO_SCHEDULER

GOLDEN = json.loads(Path(__file__).with_name("golden_schedules.json").read_text())
CASES = [case for case in GOLDEN if case != "_note"]
VARIANTS = ["native-flow", "phyai-flow", "diffusers-flow"]

# The column "t" of 35 steps, as printed in the references' comparison.
TIMESTEPS = {
    "native-flow": """999 996 993 990 987 983 979 975 971 966 961 956 950 944 937 930 922 913
        904 893 882 869 855 838 820 799 775 747 714 673 624 563 483 377 227""",
    "phyai-flow": """999 997 993 990 987 983 979 975 971 966 961 956 950 944 937 930 922 913
        904 893 882 869 855 839 820 799 775 747 714 674 624 563 483 377 227""",
    "diffusers-flow": """999 997 993 990 987 983 979 975 971 966 961 956 950 944 937 930 922 913
        904 894 882 869 855 839 821 800 776 748 715 675 626 565 486 381 233""",
    "karras": """995 994 993 992 991 990 988 986 984 981 978 975 970 965 958 950 941 929
        915 898 877 852 822 785 742 693 636 572 504 432 361 292 229 174 128""",
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def by_name(name, n):
    return karras_schedule(n) if name == "karras" else flow_schedule(n, variant=name)


# ----------------------------------------------------------------------------------------------------------- golden


def test_the_golden_file_has_every_case():
    assert set(CASES) == {f"{name}/{n}" for name in TIMESTEPS for n in (1, 4, 10, 35)}


@pytest.mark.parametrize("case", CASES)
def test_golden_sigmas_and_timesteps(case):
    name, n = case.split("/")
    schedule = by_name(name, int(n))
    torch.testing.assert_close(schedule.sigmas, torch.tensor(GOLDEN[case]["sigmas"]), atol=1e-7, rtol=0)
    assert schedule.timesteps.tolist() == GOLDEN[case]["timesteps"]
    assert schedule.sigmas[-1] == 0
    assert (schedule.name, schedule.num_steps) == (name, int(n))


@pytest.mark.parametrize("case", CASES)
def test_golden_solver_outputs(case):
    name, n = case.split("/")
    schedule, n = by_name(name, int(n)), int(n)
    state, after = unipc_init(torch.linspace(-1, 1, 8).reshape(1, 2, 2, 2)), []
    for t in schedule.timesteps.tolist():
        velocity = 0.05 * state.sample + 0.3 * math.sin(t / 1000) - 0.1
        state = unipc_step(state, velocity, schedule).state
        after.append(state.sample.flatten())
    torch.testing.assert_close(after[n // 2], torch.tensor(GOLDEN[case]["mid"]), atol=1e-5, rtol=0)
    torch.testing.assert_close(after[-1], torch.tensor(GOLDEN[case]["final"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", TIMESTEPS)
def test_timesteps_of_35_steps(name):
    assert by_name(name, 35).timesteps.tolist() == [int(t) for t in TIMESTEPS[name].split()]


def test_native_and_phyai_differ_where_phyai_shifts_twice():
    native, phyai = flow_schedule(35), flow_schedule(35, variant="phyai-flow")
    assert (native.timesteps != phyai.timesteps).nonzero().flatten().tolist() == [1, 23, 29]
    assert 2e-4 < float((native.sigmas - phyai.sigmas).abs().max()) < 2.6e-4


@pytest.mark.parametrize(("name", "n"), [("diffusers-flow", 101), ("phyai-flow", 102), ("native-flow", 113)])
def test_leading_timesteps_first_repeat_at(name, n):
    below, at = by_name(name, n - 1).timesteps, by_name(name, n).timesteps
    assert below[0] > below[1]
    assert at[0] == at[1]


@pytest.mark.parametrize("name", TIMESTEPS)
@pytest.mark.parametrize("n", [1, 2, 3, 36, 200, 1000])
def test_every_schedule_falls_to_zero(name, n):
    schedule = by_name(name, n)
    assert schedule.sigmas.shape == (n + 1,)
    assert (schedule.sigmas.diff() < 0).all()
    assert schedule.sigmas[0] < 1
    assert schedule.timesteps.min() >= 0
    assert schedule.timesteps.max() <= 999


# ------------------------------------------------------------------------------------------------------------ rules


def test_shift_one_leaves_the_line_straight():
    sigmas = flow_schedule(3, flow_shift=1.0).sigmas
    torch.testing.assert_close(sigmas, torch.tensor([0.999, 0.666, 0.333, 0.0]), atol=1e-7, rtol=0)


def test_shift_bends_towards_noise():
    # shift(s, x) = s x / (1 + (s - 1) x), at x = 0.999 and 0.4995
    expected = torch.tensor([3 * 0.999 / (1 + 2 * 0.999), 3 * 0.4995 / (1 + 2 * 0.4995), 0.0])
    torch.testing.assert_close(flow_schedule(2, flow_shift=3.0).sigmas, expected, atol=1e-7, rtol=0)


def test_timesteps_are_truncated():
    assert flow_schedule(1, flow_shift=1.0, variant="native-flow").timesteps.tolist() == [999]
    assert flow_schedule(3, flow_shift=2.0).timesteps.tolist() == [int(1000 * 2 * x / (1 + x)) for x in (0.999, 0.666, 0.333)]


def test_a_sigma_that_would_round_to_one_is_clamped():
    schedule = flow_schedule(2, flow_shift=1e5)
    assert schedule.sigmas[0] == torch.tensor(1 - 1e-6)
    assert half_log_snr(schedule.sigmas[:-1]).isfinite().all()


def test_karras_takes_its_own_range():
    schedule = karras_schedule(3, sigma_min=0.25, sigma_max=4.0, rho=2.0)
    edm = torch.tensor([4.0, ((2 + 0.5) / 2) ** 2, 0.25])
    torch.testing.assert_close(schedule.sigmas[:-1], edm / (edm + 1), atol=1e-7, rtol=0)
    assert schedule.flow_shift is None


@pytest.mark.parametrize("make", [flow_schedule, karras_schedule])
@pytest.mark.parametrize("n", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(make, n):
    with pytest.raises(ValueError, match=f"got steps {n}, expected a whole number from 1 to 1000"):
        make(n)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_shifts_are_refused(variant, shift):
    with pytest.raises(ValueError, match="got flow_shift"):
        flow_schedule(4, flow_shift=shift, variant=variant)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (2.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (0.1, float("inf")), (float("nan"), 1.0)])
def test_impossible_karras_ranges_are_refused(ends):
    with pytest.raises(ValueError, match="expected (0 < sigma_min < sigma_max|a finite number)"):
        karras_schedule(4, sigma_min=ends[0], sigma_max=ends[1])


def test_a_shift_that_makes_sigmas_alike_is_refused():
    with pytest.raises(ValueError, match="a smaller flow shift or fewer steps"):
        flow_schedule(35, flow_shift=1e9)


@pytest.mark.parametrize(
    ("sigmas", "timesteps"),
    [
        ([0.9, 0.5, 0.0], [900]),
        ([0.9, 0.5, 0.1], [900, 500]),
        ([0.5, 0.5, 0.0], [500, 500]),
        ([0.5, 0.9, 0.0], [500, 900]),
        ([1.0, 0.5, 0.0], [999, 500]),
        ([0.9, float("nan"), 0.0], [900, 500]),
    ],
    ids=["lengths", "no zero", "alike", "rising", "one", "nan"],
)
def test_schedules_that_cannot_be_solved_are_refused(sigmas, timesteps):
    with pytest.raises(ValueError, match="expected n \\+ 1 sigmas that fall"):
        Schedule(torch.tensor(sigmas), torch.tensor(timesteps))


def test_repr_names_the_rule():
    assert repr(flow_schedule(4)) == "Schedule(native-flow, 4 steps, sigma 0.99990 ... 0.76899, 0, flow_shift=10)"


# -------------------------------------------------------------------------------------------------- scheduler file


def test_nanos_file_means_karras():
    schedule = schedule_from_config(NANO_SCHEDULER, 10)
    assert schedule.name == "karras"
    assert torch.equal(schedule.sigmas, karras_schedule(10).sigmas)


def test_a_flow_file_means_diffusers_flow_with_its_shift():
    flow = NANO_SCHEDULER | {"use_karras_sigmas": False, "flow_shift": 3.0}
    expected = flow_schedule(10, flow_shift=3.0, variant="diffusers-flow")
    assert torch.equal(schedule_from_config(flow, 10).sigmas, expected.sigmas)
    other = schedule_from_config(flow, 10, flow_shift=5.0)
    assert (other.name, other.flow_shift) == ("diffusers-flow", 5.0)


def test_the_files_karras_range_is_used():
    config = NANO_SCHEDULER | {"sigma_min": 0.5, "sigma_max": 2.0}
    assert torch.equal(schedule_from_config(config, 4).sigmas, karras_schedule(4, sigma_min=0.5, sigma_max=2.0).sigmas)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prediction_type", "epsilon"),
        ("use_flow_sigmas", False),
        ("num_train_timesteps", 500),
        ("solver_order", 3),
        ("solver_type", "bh1"),
        ("predict_x0", False),
        ("final_sigmas_type", "sigma_min"),
        ("use_beta_sigmas", True),
        ("use_exponential_sigmas", True),
    ],
)
def test_other_samplers_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key} = {value!r}"):
        schedule_from_config(NANO_SCHEDULER | {key: value}, 4)


def test_a_shift_for_karras_is_refused():
    with pytest.raises(ValueError, match="got flow_shift 3, .* Karras"):
        schedule_from_config(NANO_SCHEDULER, 4, flow_shift=3.0)


def test_karras_without_its_range_is_refused():
    with pytest.raises(ValueError, match="numbers for sigma_min and sigma_max"):
        schedule_from_config({k: v for k, v in NANO_SCHEDULER.items() if k != "sigma_max"}, 4)


# ---------------------------------------------------------------------------------------------------------- algebra


@pytest.mark.parametrize("sigma", [0.001, 0.25, 0.9, 0.9999])
def test_x0_undoes_add_noise(sigma):
    x0, noise = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    sample = add_noise(x0, noise, sigma)
    torch.testing.assert_close(sample, x0 + sigma * (noise - x0), atol=1e-14, rtol=0)
    recovered = velocity_to_x0(sample, noise - x0, torch.tensor(sigma, dtype=torch.float64))
    torch.testing.assert_close(recovered, x0, atol=1e-14, rtol=0)


def test_add_noise_at_both_ends():
    x0, noise = torch.randn(5), torch.randn(5)
    assert torch.equal(add_noise(x0, noise, 0.0), x0)
    assert torch.equal(add_noise(x0, noise, torch.tensor(1.0)), noise)


def test_x0_rounds_sigma_to_the_samples_dtype():
    velocity, sigma = -torch.arange(1.0, 100.0), torch.tensor(0.98725)
    sample = torch.zeros_like(velocity)
    assert torch.equal(velocity_to_x0(sample, velocity, sigma), -sigma * velocity)
    rounded = velocity_to_x0(sample.bfloat16(), velocity.bfloat16(), sigma)
    assert torch.equal(rounded, (-0.98828125 * velocity).bfloat16())
    assert not torch.equal(rounded, (-sigma * velocity).bfloat16())
    assert velocity_to_x0(torch.ones(1).bfloat16(), torch.ones(1).bfloat16(), torch.tensor(0.99999)) == 0


def test_log_snr():
    sigma = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    expected = torch.tensor([math.log(((1 - s) / s) ** 2) for s in sigma.tolist()], dtype=torch.float64)
    torch.testing.assert_close(log_snr(sigma), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(half_log_snr(sigma), expected / 2, atol=1e-12, rtol=0)
    assert log_snr(torch.tensor(0.5)) == 0
    assert log_snr(torch.tensor(0.0)) == math.inf


@pytest.mark.parametrize(
    "change",
    [
        {"lower_order_final": False},
        {"disable_corrector": [0]},
        {"thresholding": True},
        {"shift_terminal": 0.1},
        {"solver_order": 3},
        {"sigma_min": "x"},
        {"sigma_max": None},
        {"flow_shift": [1]},
        {"use_karras_sigmas": "false"},
    ],
)
def test_scheduler_files_of_another_sampler_are_refused(change):
    from cosmos3_lab.layout import NANO_SCHEDULER

    with pytest.raises(ValueError, match=next(iter(change))):
        schedule_from_config(NANO_SCHEDULER | change, 4)
