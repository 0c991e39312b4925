"""The three recipes, and how a schedule is chosen among them, the arguments and the checkpoint's file."""

from dataclasses import fields, replace

import pytest
import torch

from cosmos3_lab import PRESETS, Preset, flow_schedule, get_preset, karras_schedule
from cosmos3_lab.captions import Metadata
from cosmos3_lab.layout import NANO_SCHEDULER
from cosmos3_lab.presets import compare, comparison_rows, resolve_schedule

NATIVE, PHYAI, DIFFUSERS = PRESETS["native"], PRESETS["phyai"], PRESETS["diffusers"]
FLOW_FILE = NANO_SCHEDULER | {"use_karras_sigmas": False, "flow_shift": 3.0}

# What the reference implementations do; columns native, phyai, diffusers.
GIVE = "You are a helpful assistant who will generate {} from a give prompt."  # the misspelling is the constant
CHOICES = {
    "schedule": ("native-flow", "phyai-flow", "auto"),
    "flow_shift": (10.0, 10.0, 10.0),
    "system_prompt": (None, None, GIVE.format("videos")),
    "system_prompt_image": (None, None, GIVE.format("images")),
    "metadata": ("inject", "inject", "sentences"),
    "negative_metadata": ("same", "none", "inverse"),
    "negative_default": ("structured", "structured", "empty"),
    "noise_source": ("numpy", "numpy", "torch"),
    "sound_rounding": ("integer", "float", "integer"),
    "skip_guidance": ("at 1", "up to 1", "at 1"),
    "solver_precision": ("float32", "model", "float32"),
    "guidance_precision": ("float32", "model", "float32"),
    "timestep_precision": ("float32", "model", "float32"),
    "solver": ("unipc", "unipc", "unipc"),
    "solver_order": (2, 2, 2),
    "corrector": (True, True, True),
}


@pytest.mark.parametrize("field", CHOICES)
def test_choices_of_the_references(field):
    assert tuple(getattr(p, field) for p in (NATIVE, PHYAI, DIFFUSERS)) == CHOICES[field]


def test_every_choice_is_checked_above():
    assert {f.name for f in fields(Preset)} == {"name", *CHOICES}
    assert list(PRESETS) == [p.name for p in PRESETS.values()] == ["native", "phyai", "diffusers"]


def test_get_preset():
    own = replace(NATIVE, system_prompt="Be brief.")
    assert get_preset(own) is own
    assert get_preset("phyai") is PHYAI
    with pytest.raises(ValueError, match="got preset 'nativ', expected one of native, phyai, diffusers"):
        get_preset("nativ")


def test_comparison_has_every_choice():
    assert {row[0]: row[1:] for row in comparison_rows()} == {k: tuple(str(v) for v in vs) for k, vs in CHOICES.items()}


@pytest.mark.parametrize("columns", ["80", "200"])
def test_compare_prints_a_table(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    compare()
    lines = capsys.readouterr().out.splitlines()
    [header] = [line for line in lines if "choice" in line]
    assert all(name in header for name in PRESETS)
    rows = {field: [line for line in lines if f" {field} " in line] for field in CHOICES}
    assert {field: len(found) for field, found in rows.items()} == dict.fromkeys(CHOICES, 1)
    differing = {field for field, values in CHOICES.items() if len(set(values)) > 1}
    assert {field for field, [line] in rows.items() if "*" in line} == differing


# --------------------------------------------------------------------------------------------------------- schedule


def resolve(preset=NATIVE, **arguments):
    return resolve_schedule(6, preset=preset, **{"scheduler_config": NANO_SCHEDULER, **arguments})


@pytest.mark.parametrize(
    ("preset", "arguments", "name"),
    [
        (NATIVE, {}, "native-flow"),
        (PHYAI, {}, "phyai-flow"),
        (DIFFUSERS, {}, "karras"),
        (DIFFUSERS, {"scheduler_config": FLOW_FILE}, "diffusers-flow"),
        (NATIVE, {"schedule": "karras"}, "karras"),
        (NATIVE, {"schedule": "diffusers-flow"}, "diffusers-flow"),
        (NATIVE, {"schedule": "auto"}, "karras"),
        (NATIVE, {"schedule": "auto", "scheduler_config": FLOW_FILE}, "diffusers-flow"),
        (DIFFUSERS, {"schedule": "native-flow"}, "native-flow"),
        (NATIVE, {"use_karras_sigmas": True}, "karras"),
        (NATIVE, {"use_karras_sigmas": True, "schedule": "karras"}, "karras"),
        (NATIVE, {"use_karras_sigmas": None}, "karras"),
        (NATIVE, {"use_karras_sigmas": None, "schedule": "auto"}, "karras"),
        (NATIVE, {"use_karras_sigmas": None, "scheduler_config": FLOW_FILE}, "diffusers-flow"),
        (NATIVE, {"use_karras_sigmas": False}, "native-flow"),
        (PHYAI, {"use_karras_sigmas": False}, "phyai-flow"),
        (DIFFUSERS, {"use_karras_sigmas": False}, "diffusers-flow"),
        (NATIVE, {"use_karras_sigmas": False, "schedule": "phyai-flow"}, "phyai-flow"),
        (DIFFUSERS, {"use_karras_sigmas": "preset"}, "karras"),
    ],
)
def test_which_schedule(preset, arguments, name):
    schedule = resolve(preset, **arguments)
    assert (schedule.name, schedule.num_steps) == (name, 6)


def test_the_resolved_schedules_are_the_real_ones():
    assert torch.equal(resolve(PHYAI).sigmas, flow_schedule(6, variant="phyai-flow").sigmas)
    assert torch.equal(resolve(DIFFUSERS).sigmas, karras_schedule(6).sigmas)


@pytest.mark.parametrize(
    ("arguments", "shift"),
    [
        ({}, 10.0),
        ({"default_flow_shift": 4.0}, 4.0),
        ({"flow_shift": 2.0}, 2.0),
        ({"flow_shift": 2.0, "default_flow_shift": 4.0}, 2.0),
        ({"flow_shift": 2.0, "use_karras_sigmas": False}, 2.0),
        ({"preset": replace(NATIVE, flow_shift=7.0)}, 7.0),
        ({"schedule": "auto", "scheduler_config": FLOW_FILE}, 3.0),
        ({"schedule": "auto", "scheduler_config": FLOW_FILE, "flow_shift": 2.0}, 2.0),
        ({"schedule": "karras"}, None),
    ],
)
def test_which_shift(arguments, shift):
    schedule = resolve(**arguments)
    assert schedule.flow_shift == shift
    if shift is not None:
        assert torch.equal(schedule.sigmas, flow_schedule(6, flow_shift=shift, variant=schedule.name).sigmas)


@pytest.mark.parametrize(
    ("preset", "arguments", "message"),
    [
        (NATIVE, {"schedule": "native-flow", "use_karras_sigmas": True}, "disagree"),
        (NATIVE, {"schedule": "auto", "use_karras_sigmas": True}, "disagree"),
        (NATIVE, {"schedule": "karras", "use_karras_sigmas": False}, "disagree"),
        (NATIVE, {"schedule": "auto", "use_karras_sigmas": False}, "disagree"),
        (NATIVE, {"schedule": "karras", "use_karras_sigmas": None}, "disagree"),
        (NATIVE, {"schedule": "native-flow", "use_karras_sigmas": None}, "disagree"),
        (NATIVE, {"schedule": "karras", "flow_shift": 3.0}, "got flow_shift 3 with Karras"),
        (NATIVE, {"use_karras_sigmas": True, "flow_shift": 3.0}, "got flow_shift 3 with Karras"),
        (NATIVE, {"use_karras_sigmas": None, "flow_shift": 3.0}, "got flow_shift 3, .* Karras"),
        (DIFFUSERS, {"flow_shift": 3.0}, "got flow_shift 3, .* Karras"),
        (DIFFUSERS, {"scheduler_config": None}, "reads scheduler/scheduler_config.json, which this checkpoint lacks"),
        (NATIVE, {"use_karras_sigmas": None, "scheduler_config": None}, "which this checkpoint lacks"),
        (NATIVE, {"flow_shift": 0.0}, "got flow_shift 0"),
        (NATIVE, {"schedule": flow_schedule(6), "flow_shift": 3.0}, "finished Schedule"),
        (NATIVE, {"schedule": flow_schedule(6), "use_karras_sigmas": True}, "finished Schedule"),
        (NATIVE, {"schedule": flow_schedule(6), "use_karras_sigmas": None}, "finished Schedule"),
        (NATIVE, {"schedule": flow_schedule(5)}, "got a Schedule of 5 steps and num_inference_steps=6"),
    ],
)
def test_contradictions_are_refused(preset, arguments, message):
    with pytest.raises(ValueError, match=message):
        resolve(preset, **arguments)


def test_a_finished_schedule_is_used_as_it_is():
    schedule = flow_schedule(6, flow_shift=2.5)
    assert resolve(PHYAI, schedule=schedule, default_flow_shift=4.0) is schedule


def test_a_flow_needs_no_scheduler_file():
    assert resolve(scheduler_config=None).name == "native-flow"


@pytest.mark.parametrize("field", [f for f in CHOICES if isinstance(CHOICES[f][0], str)])
def test_a_choice_that_does_not_exist_is_refused(field):
    with pytest.raises(Exception, match=field):  # ValueError, or beartype's error where it looks first
        replace(NATIVE, **{field: "nonsense"})


def test_choices_are_checked_without_beartype():
    from cosmos3_lab.configs import check_choice

    with pytest.raises(ValueError, match="got metadata='sentence', expected one of 'inject', 'sentences', 'none'"):
        check_choice("metadata", "sentence", Metadata)
    check_choice("metadata", "sentences", Metadata)
