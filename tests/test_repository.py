"""The repository around the package: README examples run, tables and dependency lists agree with the code."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from cosmos3_lab import PRESETS, generate, read_mp4
from cosmos3_lab.cli import app
from cosmos3_lab.presets import comparison_rows
from cosmos3_lab.settings import PICO, read_configs

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# What is replaced so that the examples run on a small checkpoint in seconds.
SMALL = {
    "num_frames = 189": "num_frames = 5",
    "height = 720": "height = 48",
    "width = 1280": "width = 80",
    "num_inference_steps=35": "num_inference_steps=2",
    'device = "cuda"': 'device = "cpu"',
}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_readme_has_the_examples():
    assert len(blocks("python")) == 3
    assert sum("cosmos3-lab generate" in b for b in blocks("bash")) == 5  # the last goes on with a run


@pytest.mark.parametrize("index", range(3))
def test_readme_python_runs(index, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COSMOS3_CHECKPOINT", str(tiny_folder))  # smaller than pico
    code = blocks("python")[index].replace("/path/to/Cosmos3-Nano", str(tiny_folder))
    for full, small in SMALL.items():
        code = code.replace(full, small)
    scope = {}
    exec(compile(code, f"README python block {index}", "exec"), scope)
    if "result" in scope:
        assert list(tmp_path.rglob("*.mp4"))


@pytest.mark.parametrize("index", range(4))
def test_readme_commands_run(index, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COSMOS3_CHECKPOINT", str(tiny_folder))
    command = [b for b in blocks("bash") if "cosmos3-lab generate" in b][index].replace("\\\n", " ")
    arguments = shlex.split(command.replace("/path/to/Cosmos3-Nano", str(tiny_folder)))[1:]
    small = ["--num-frames", "5", "--height", "48", "--width", "80", "--steps", "2", "--device", "cpu"]
    ran = CliRunner().invoke(app, [*arguments, *small])
    assert ran.exit_code == 0, ran.output
    for phase in ("model_load", "preprocess", "inference", "to_cpu", "encode"):
        assert phase in ran.output
    assert len(list((tmp_path / "outputs").rglob("*.mp4"))) == 1


def test_readme_goes_on_with_a_run_and_repeats_it(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    size = {"num_frames": 1, "height": 32, "width": 32, "num_inference_steps": 2}
    generate(tiny, "a ball", out="outputs", should_stop=lambda record: True, progress=False, **size)
    (block,) = [b for b in blocks("bash") if "--resume" in b]
    commands = [shlex.split(line, comments=True)[1:] for line in block.splitlines()]
    assert [command[0] for command in commands] == ["generate", "replay"]
    for command in commands:
        ran = CliRunner().invoke(app, command)
        assert ran.exit_code == 0, ran.output
    assert ran.stdout.endswith("outputs/run_001: latents are bit-identical\n")


def test_readme_inspect_runs(tiny_folder):
    assert "cosmos3-lab inspect" in README
    assert CliRunner().invoke(app, ["inspect", str(tiny_folder)]).exit_code == 0


def test_readme_preset_table_is_the_code():
    assert list(PRESETS) == ["native", "phyai", "diffusers"]
    shown = {line for line in README.splitlines() if line.startswith("|")}
    for name, *values in comparison_rows():
        if len(set(values)) > 1 and name != "system_prompt_image":
            if name == "system_prompt":
                values = ["none" if v == "None" else "yes" for v in values]
            assert f"| {name} | {' | '.join(values)} |" in shown


def test_readme_names_exist():
    import cosmos3_lab

    table = README.split("| stage | functions")[1].split("\n\n")[0]
    for name in re.findall(r"`([A-Za-z_0-9]+)(?:\.[a-z_]+)?`", table):
        assert name.endswith("_") or hasattr(cosmos3_lab, name) or (ROOT / "cosmos3_lab" / f"{name}.py").exists(), name
    for file in re.findall(r"`(\w+\.py)`", table):
        assert (ROOT / "cosmos3_lab" / file).exists(), file


def test_readme_links_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_readme_shows_a_gallery_that_plays():
    assert "](docs/gallery.webp)" in README.split("\n## ")[0]
    path = ROOT / "docs" / "gallery.webp"
    assert path.stat().st_size <= 3_000_000
    with Image.open(path) as gallery:
        assert gallery.format == "WEBP"
        assert gallery.n_frames == read_configs(PICO).defaults.num_frames
        assert gallery.info["loop"] == 0  # for ever
        assert gallery.width <= 900


def test_environment_yml_equals_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda, pip = environment["dependencies"][:-1], environment["dependencies"][-1]["pip"]
    project = PYPROJECT["project"]
    assert environment["channels"] == ["conda-forge"]
    assert conda == [f"python{project['requires-python']}", "pip"]
    assert pip == [*project["dependencies"], *project["optional-dependencies"]["lab"], "--editable ."]


def test_every_import_is_a_dependency():
    """What the package imports is declared, and what is declared is imported."""
    names = {"av": "av", "einops": "einops", "jaxtyping": "jaxtyping", "numpy": "numpy", "rich": "rich", "tqdm": "tqdm"}
    names |= {"safetensors": "safetensors", "tokenizers": "tokenizers", "torch": "torch", "transformers": "transformers"}
    names |= {"matplotlib": "matplotlib", "typer": "typer", "PIL": "pillow", "packaging": "packaging", "jinja2": "jinja2"}
    lab = {"IPython": "jupyterlab", "ipywidgets": "ipywidgets"}  # the extra; IPython comes with both
    on_a_gpu = {"triton", "flashinfer"}  # come with PyTorch for CUDA, and with an extra
    pattern = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
    found = {m for p in (ROOT / "cosmos3_lab").rglob("*.py") for m in pattern.findall(p.read_text(encoding="utf-8"))}
    third_party = {m for m in found if m not in sys.stdlib_module_names and m != "cosmos3_lab"}
    assert third_party == {*names, *lab, *on_a_gpu}
    assert {re.match(r"[\w-]+", d)[0] for d in PYPROJECT["project"]["optional-dependencies"]["lab"]} == set(lab.values())
    declared = {re.match(r"[\w-]+", d)[0] for d in PYPROJECT["project"]["dependencies"]}
    assert declared == set(names.values())


def test_nothing_large_and_no_outputs_in_git():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        # The weights in the box have a limit of their own (tests/pico/test_default.py).
        assert (ROOT / name).stat().st_size < 20_000_000 or name.startswith("cosmos3_lab/pico/checkpoint/"), name
        assert not name.startswith("outputs/")


def test_make_demo_makes_a_video_with_sound_and_says_where(tmp_path, monkeypatch):
    """The Makefile's own command, with pico; only the installation before it is left out."""
    monkeypatch.chdir(tmp_path)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    command = re.search(r"\t(.*cosmos3-lab generate.*)", makefile)[1].replace("$(CURDIR)", str(tmp_path))
    variable, program, *arguments = shlex.split(command)
    assert (variable, program) == ("COSMOS3_CHECKPOINT=", "$(BIN)/cosmos3-lab")
    ran = CliRunner(env={"COSMOS3_CHECKPOINT": ""}).invoke(app, [*arguments, "--num-frames", "5", "--steps", "2"])
    assert ran.exit_code == 0, ran.output
    assert "Cosmos3Models(pico:" in ran.output
    said = Path(ran.stdout.splitlines()[-1].removeprefix("saved "))
    assert said == tmp_path / "outputs" / "demo" / "run_001" / "video_with_sound.mp4"
    assert read_mp4(said).sample_rate is not None


def test_ci_runs_make_test():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


# Rows of the README's table about pico: what it is called there, and where it stands in the scores.
PICO_ROWS = {
    "everything right": ("followed",),
    "background": ("right", "background"),
    "colour": ("right", "colour"),
    "shape": ("right", "shape"),
    "size": ("right", "size"),
    "motion": ("right", "motion"),
    "sound": ("right", "sound"),
    "sound in sync (F1)": ("sync",),
    "outline (IoU with the ideal shape)": ("outline",),
    "both colours with their shapes": ("bound",),
}
PICO_COLUMNS = ("one thing", "two things", "collisions", "one thing, combinations held out")


def pico_table():
    kinds = json.loads((ROOT / "cosmos3_lab/pico/checkpoint/TRAINING.json").read_text(encoding="utf-8"))["scores"]["kinds"]

    def figure(kind, source, path):
        scores = kinds[kind][source]
        for key in path:
            scores = scores[key]
        return "-" if scores["value"] is None else f"{scores['value']:.3f}"

    counts = [kinds[kind]["generated"]["followed"]["count"] for kind in PICO_COLUMNS]
    heads = [f"{kind} ({count})" for kind, count in zip(PICO_COLUMNS, counts, strict=True)]
    rows = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, path in PICO_ROWS.items():
        cells = [f"{figure(k, 'generated', path)} [{figure(k, 'reconstruction', path)}]" for k in PICO_COLUMNS]
        rows.append(f"| {name} | {' | '.join(c.replace('- [-]', '-') for c in cells)} |")
    return "\n".join(rows)


def test_the_table_about_pico_says_what_was_measured():
    assert pico_table() in README, f"put this table into the README:\n{pico_table()}"
