"""The doctor: healthy here, and whatever is broken is named with how far it is off."""

import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cosmos3_lab import doctor, load_cosmos3, selftest
from cosmos3_lab.cli import app
from cosmos3_lab.doctor import Finding, examine, verdict
from cosmos3_lab.random_checkpoint import write_random_checkpoint
from cosmos3_lab.selftest import BFLOAT16, FLOAT32, STAGES, distance, make_golden, self_test
from cosmos3_lab.weights import SINGLE

NAMES = [stage.name for stage in STAGES]


@pytest.fixture(scope="module")
def pico():
    with load_cosmos3("pico", device="cpu") as models:
        yield models


@pytest.fixture(scope="module")
def stored():
    return load_file(selftest.FILE)


def failed(results):
    return {r.name: r.error for r in results if not r.passed}


# ---------------------------------------------------------------------------------------------------------- self-test


def test_the_stored_numbers_still_match(pico, stored):
    """If pico or a stage was changed on purpose: `python -m cosmos3_lab.selftest`."""
    made = make_golden(pico)
    assert made.keys() == stored.keys()
    for name, values in made.items():
        assert values.dtype == stored[name].dtype, name
        assert distance(values, stored[name]) <= FLOAT32 / 10, name


def test_the_stored_numbers_are_small_and_say_something(stored):
    assert selftest.FILE.stat().st_size < 300_000
    for name, values in stored.items():
        assert values.double().std() > 1e-3, name
    for name in ("pixels", "waveform"):  # not all clipped to the ends of the range
        assert ((stored[name] > stored[name].min()) & (stored[name] < stored[name].max())).float().mean() > 0.5, name


def test_this_machine_is_healthy(pico):
    assert failed(self_test(pico)) == {}


def test_bfloat16_is_judged_by_its_own_measure():
    with load_cosmos3("pico", device="cpu", dtype=torch.bfloat16) as models:
        results = {r.name: r for r in self_test(models)}
    assert failed(results.values()) == {}
    for name in ("UND (text K/V)", "GEN (velocity)", "VAE decode", "AVAE decode"):
        assert FLOAT32 < results[name].error < BFLOAT16 / 2  # twice as much as is needed, and float32 would not pass
    assert results["UniPC"].allowed == FLOAT32


# What each stage calls, and how it is bent by one percent.
BENT = {
    "noise": ("init_latents", lambda latents: latents.map(lambda x: x * 1.01)),
    "schedule": ("karras_schedule", lambda schedule: replace(schedule, sigmas=schedule.sigmas * 0.99)),
    "UND (text K/V)": (
        "encode_condition",
        lambda c: replace(c, cached_kv=tuple(replace(kv, k=kv.k * 1.02) for kv in c.cached_kv)),
    ),
    "GEN (velocity)": ("predict_velocity", lambda latents: latents.map(lambda x: x * 1.01)),
    "guidance": ("classifier_free_guidance", lambda g: replace(g, guided=g.guided.map(lambda x: x * 1.01))),
    "UniPC": ("unipc_step", lambda step: replace(step, state=replace(step.state, sample=step.state.sample * 1.004))),
    "VAE decode": ("decode_video", lambda pixels: pixels * 1.01),
    "AVAE decode": ("decode_sound", lambda waveform: waveform * 1.01),
}


@pytest.mark.parametrize("name", BENT)
def test_a_bent_stage_is_found_alone_and_measured(pico, monkeypatch, name):
    function, bend = BENT[name]
    plain = getattr(selftest, function)
    monkeypatch.setattr(selftest, function, lambda *args, **kwargs: bend(plain(*args, **kwargs)))
    ((found, error),) = failed(self_test(pico)).items()
    assert found == name
    assert 0.004 < error < 0.03


def test_another_tokenizer_is_found(pico, monkeypatch):
    monkeypatch.setattr(selftest, "PROMPT", selftest.PROMPT.replace("red", "green"))
    assert list(failed(self_test(pico))) == ["tokenize"]


def test_a_wrong_weight_is_found_in_its_stage(pico):
    weight = pico.vae.post_quant_conv.weight
    weight.mul_(1.01)
    try:
        assert list(failed(self_test(pico))) == ["VAE decode"]
    finally:
        weight.div_(1.01)


def test_a_stage_that_raises_or_makes_nan_is_named(pico, monkeypatch):
    def out_of_luck(*args):
        raise RuntimeError("no kernel image is available\nfor execution")

    monkeypatch.setattr(selftest, "decode_sound", out_of_luck)
    monkeypatch.setattr(selftest, "decode_video", lambda *args: torch.full((1, 3, 5, 32, 48), torch.nan))
    results = {r.name: r for r in self_test(pico)}
    assert results["AVAE decode"].problem == "RuntimeError: no kernel image is available"
    assert results["VAE decode"].error == float("inf")
    assert not results["AVAE decode"].passed
    assert not results["VAE decode"].passed


# ------------------------------------------------------------------------------------------------------------ command


@pytest.fixture
def well(monkeypatch):
    """Stages that passed, for tests of the rest."""
    monkeypatch.setattr(doctor, "self_test", lambda models: [selftest.StageResult(name, 0.0, 1e-5) for name in NAMES])


def run(*arguments):
    return CliRunner(env={"COLUMNS": "200", "COSMOS3_CHECKPOINT": ""}).invoke(app, ["doctor", "--device", "cpu", *arguments])


def test_the_command_is_quick_and_healthy_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    begin = time.perf_counter()
    ran = run()
    assert ran.exit_code == 0, ran.output
    assert time.perf_counter() - begin < 20
    for name in ("Python", "versions", "GPU", "memory", "disk here", "widgets", "mp4", *NAMES):
        assert name in ran.output
    assert ran.output.rstrip().splitlines()[-1].startswith("healthy")


def test_the_command_says_which_stage_is_off_and_how_far(monkeypatch):
    plain = selftest.decode_video
    monkeypatch.setattr(selftest, "decode_video", lambda *args: plain(*args) * 1.1)
    ran = run()
    assert ran.exit_code == 1
    assert "VAE decode: off by 1.0e-01 in float32 on cpu (allowed 1e-05)" in ran.output


def test_a_wrong_version_is_named(well, monkeypatch):
    plain = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "1.13.1" if name == "torch" else plain(name))
    ran = run()
    assert ran.exit_code == 1
    assert "torch is 1.13.1, needed is" in ran.output


def test_a_missing_package_is_named(monkeypatch):
    plain = metadata.version

    def version(name):
        if name in ("av", "ipywidgets"):
            raise metadata.PackageNotFoundError(name)
        return plain(name)

    monkeypatch.setattr(metadata, "version", version)
    found = {f.name: f for f in [*doctor._versions(), *doctor._widgets()]}
    assert found["versions"].state == "bad"
    assert "av is not installed" in found["versions"].text
    assert found["widgets"].state == "note"  # not needed for anything but widgets


def test_a_source_tree_without_metadata_is_a_note(monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert [f.state for f in doctor._versions()] == ["note"]


def test_a_driver_that_torch_cannot_use_is_bad(monkeypatch, tmp_path):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = doctor._gpu(driver)
    assert found.state == "bad"
    assert "driver 470.57.02 is there, but PyTorch" in found.text


def test_a_folder_that_cannot_be_written_is_bad(monkeypatch):
    def full(dir=None):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(doctor, "TemporaryFile", full)
    found = list(doctor._disk())
    assert [f.state for f in found] == ["bad", "bad"]
    assert "No space left on device" in found[0].text


def test_an_encoder_that_fails_is_bad(monkeypatch):
    def fails(*args):
        raise OSError("h264 encoder not found")

    monkeypatch.setattr(doctor, "save_mp4", fails)
    found = list(doctor._looked("mp4", doctor._codecs))
    assert found == [Finding("mp4", "bad", "OSError: h264 encoder not found")]


def test_an_encoder_that_writes_other_colours_is_bad(monkeypatch):
    plain = doctor.read_mp4
    monkeypatch.setattr(doctor, "read_mp4", lambda path: replace(plain(path), frames=plain(path).frames[..., ::-1]))
    (found,) = doctor._codecs()
    assert found.state == "bad"
    assert "colours are off by" in found.text


def test_too_little_memory_is_bad(monkeypatch):
    monkeypatch.setattr(doctor, "LEAST_MEMORY", 2**60)
    assert [f.state for f in doctor._memory()] == ["bad"]


def test_the_verdict_names_the_first_problem():
    good, note, bad = (Finding(s, s, f"{s} text") for s in ("ok", "note", "bad"))
    assert verdict([good]).text == "healthy"
    assert verdict([good, note]).text == "healthy, with 1 note"
    assert verdict([note, bad, bad]).text == "bad: bad text and 1 more"


# --------------------------------------------------------------------------------------------------------- checkpoint


def test_a_named_checkpoint_is_loaded_and_tried(well, tiny_folder):
    ran = run("--checkpoint", str(tiny_folder))
    assert ran.exit_code == 0, ran.output
    assert "all finite" in ran.output
    assert "whole" in ran.output


def test_what_is_wrong_with_a_checkpoint_is_said(well, tmp_path):
    folder = write_random_checkpoint(tmp_path / "broken")
    (folder / "vae" / "config.json").unlink()
    ran = run("--checkpoint", str(folder))
    assert ran.exit_code == 1
    assert "config.json is missing" in ran.output


def test_numbers_that_outgrow_the_dtype_are_found(well, tmp_path):
    folder = write_random_checkpoint(tmp_path / "huge")
    file = folder / "vae" / SINGLE
    tensors = load_file(file)
    save_file({n: t.fill_(3e38) if n == "decoder.conv_in.weight" else t for n, t in tensors.items()}, file)
    found = list(doctor._looked("checkpoint", lambda: doctor._checkpoint(folder, "cpu")))
    assert found[-1].state == "bad"
    assert "not finite" in found[-1].text


def test_a_missing_folder_is_a_finding(well):
    assert [f.state for f in examine(Path("nowhere"), device="cpu")][-1] == "bad"


@pytest.mark.cuda
def test_a_gpu_is_healthy():
    findings = list(examine(device="cuda"))
    assert [f for f in findings if f.state == "bad"] == []
    assert any("bfloat16 on cuda" in f.text for f in findings)
