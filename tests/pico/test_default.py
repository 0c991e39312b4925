"""The checkpoint in the package: when it is taken, that it is whole, and that an installation has it."""

import json
import shutil
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import cosmos3_lab
from cosmos3_lab import generate, inspect_checkpoint, load_cosmos3
from cosmos3_lab.settings import PICO, Defaults, resolve_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder, and no checkpoint in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COSMOS3_CHECKPOINT", raising=False)


# ----------------------------------------------------------------------------------------------------- when it is taken


def test_nothing_named_is_pico():
    with load_cosmos3(device="cpu") as models:
        assert (models.folder, models.defaults.name) == (PICO, "pico")
        size = {"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 2}
        result = generate(models, models.defaults.example_prompts[0], with_sound=True, **size, progress=False)
    assert result.output.frames.shape == (5, 32, 32, 3)
    assert result.output.waveform is not None
    assert inspect_checkpoint().folder == PICO


@pytest.mark.parametrize("value", ["", "pico"])
def test_the_variable_may_be_empty_or_say_pico(monkeypatch, value):
    monkeypatch.setenv("COSMOS3_CHECKPOINT", value)
    assert resolve_folder(None) == PICO


def test_the_variable_comes_before_pico(tiny_folder, monkeypatch):
    monkeypatch.setenv("COSMOS3_CHECKPOINT", str(tiny_folder))
    assert resolve_folder(None) == inspect_checkpoint().folder == tiny_folder


def test_the_name_comes_before_the_variable_and_the_working_folder(tiny_folder, monkeypatch):
    monkeypatch.setenv("COSMOS3_CHECKPOINT", str(tiny_folder))
    shutil.copytree(tiny_folder, "pico")
    assert resolve_folder("pico") == inspect_checkpoint("pico").folder == PICO


@pytest.mark.parametrize("folder", ["./pico", "pico/", Path("pico"), Path("./pico")], ids=repr)
def test_a_folder_called_pico_is_a_path(tiny_folder, folder):
    shutil.copytree(tiny_folder, "pico")
    assert resolve_folder(folder).resolve() == inspect_checkpoint(folder).folder.resolve() == Path("pico").resolve()


# ------------------------------------------------------------------------------------------------------- what is in it


def test_nothing_is_wrong_with_it():
    report = inspect_checkpoint("pico")
    assert report.problems == ()
    assert report.has_sound


def test_it_says_everything_that_a_checkpoint_can_say():
    about = json.loads((PICO / "cosmos3_lab.json").read_text(encoding="utf-8"))
    assert about["name"] == "pico"
    assert {*about["defaults"], "name", "example_prompts"} == {f.name for f in fields(Defaults)}
    assert len(set(about["example_prompts"])) >= 6


def test_it_is_small():
    assert sum(p.stat().st_size for p in PICO.rglob("*") if p.is_file()) <= 40_000_000


def test_an_installation_has_every_file():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folder = Path(cosmos3_lab.__file__).parent
    installed = {
        path
        for package, patterns in setuptools["package-data"].items()
        for pattern in patterns
        for path in (folder.parent / package.replace(".", "/")).glob(pattern)
    }
    there = {p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".py", ".pyc")}
    assert PICO / "cosmos3_lab.json" in there
    assert there == installed
