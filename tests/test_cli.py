"""The command line: a folder in, an mp4 out; whatever cannot work is one line and exit code 2."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cosmos3_lab import generate, read_mp4
from cosmos3_lab.checkpoint import Defaults
from cosmos3_lab.cli import app
from cosmos3_lab.manifest import sha256_of
from cosmos3_lab.run import PHASES
from cosmos3_lab.settings import PICO
from cosmos3_lab.solvers import Solver

SMALL = ["--num-frames", "1", "--height", "32", "--width", "32", "--steps", "2", "--negative-prompt", "blurry", "--device", "cpu"]
KEPT = ["contact_sheet.png", "latents.safetensors", "manifest.json"]
QUICK = ["--prompt", "a red ball", *SMALL]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder, and no checkpoint in the environment."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("COSMOS3_CHECKPOINT", raising=False)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny checkpoint to change."""
    return shutil.copytree(tiny_folder, tmp_path / "checkpoint")


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def plain(text):
    """Without the colours that some CI systems force."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def succeeded(*arguments):
    """What a successful command printed."""
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return plain(result.output)


def failed(*arguments):
    """The one line that a command gave up with."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    (line,) = plain(result.stderr).strip().splitlines()
    assert line.startswith("error: ")
    return line


def mp4s(folder):
    return sorted(p.name for p in folder.rglob("*") if p.is_file())


def test_generate_with_every_flag(tiny_folder, tmp_path):
    flags = {
        "--prompt": "a red [bold] ball bounces",
        "--negative-prompt": "",
        "--num-frames": 7,
        "--height": 32,
        "--width": 48,
        "--fps": 12,
        "--steps": 3,
        "--guidance-scale": 2,
        "--flow-shift": 5,
        "--use-karras-sigmas": "false",
        "--solver": "heun",
        "--preset": "phyai",
        "--seed": 7,
        "--device": "cpu",
        "--dtype": "bfloat16",
        "--placement": "split",
        "--out": tmp_path / "made",
    }
    words = [x for flag in flags.items() for x in flag]
    printed = succeeded("generate", "--checkpoint", tiny_folder, "--sound", *words)
    assert "prompt: a red [bold] ball bounces" in printed
    assert "torch.bfloat16, cpu, split" in printed
    line = "5 frames 32x48 at 12 fps, 3 steps, guidance 2, phyai-flow (shift 5), preset phyai, Heun, seed 7,"
    assert line in " ".join(printed.split())
    clip = read_mp4(tmp_path / "made" / "run_001" / "video_with_sound.mp4")
    assert clip.frames.shape == (5, 32, 48, 3)
    assert (clip.fps, clip.sample_rate) == (12.0, 48000)
    assert mp4s(tmp_path / "made") == [*KEPT, "video_with_sound.mp4"]


def test_generate_prints_every_phase_and_the_path(tiny_folder, tmp_path):
    printed = succeeded("generate", "--checkpoint", tiny_folder, *QUICK, "--out", tmp_path / "out")
    for phase in (*PHASES, "denoise", "decode"):
        assert re.search(rf"\b{phase}\b\W+\d+\.\d\d", printed), phase
    assert f"saved {tmp_path / 'out' / 'run_001' / 'video.mp4'}" in printed
    assert mp4s(tmp_path / "out") == [*KEPT, "video.mp4"]


def test_defaults_come_from_the_checkpoint(folder):
    small = {"num_frames": 5, "height": 48, "width": 32, "fps": 12, "num_inference_steps": 2, "guidance_scale": 1.5}
    lab = {"defaults": small | {"preset": "phyai", "flow_shift": 4}}
    (folder / "cosmos3_lab.json").write_text(json.dumps(lab))
    printed = " ".join(succeeded("generate", "a ball", "--checkpoint", folder, "--device", "cpu").split())
    assert "5 frames 48x32 at 12 fps, 2 steps, guidance 1.5, phyai-flow (shift 4), preset phyai, seed 42" in printed
    assert read_mp4("outputs/run_001/video.mp4").frames.shape == (5, 48, 32, 3)


def test_the_checkpoint_may_come_from_the_environment(tiny_folder, monkeypatch):
    monkeypatch.setenv("COSMOS3_CHECKPOINT", str(tiny_folder))
    assert "saved outputs" in succeeded("generate", *QUICK)


@pytest.mark.parametrize(
    ("choice", "schedule"),
    [([], "native-flow"), (["auto"], "karras"), (["true"], "karras"), (["false"], "native-flow")],
    ids=["not given", "auto", "true", "false"],
)
def test_use_karras_sigmas(tiny_folder, choice, schedule):
    flag = ["--use-karras-sigmas", *choice] if choice else []
    printed = succeeded("generate", "--checkpoint", tiny_folder, *QUICK, *flag)
    assert f"guidance 6, {schedule}" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("flags", "used", "said", "asked"),
    [
        ([], ("unipc", 2, True), "", None),
        (["--solver", "unipc"], ("unipc", 2, True), "", "unipc"),
        (["--solver", "euler"], ("euler", 2, True), ", Euler", "euler"),
        (["--solver", "heun"], ("heun", 2, True), ", Heun", "heun"),
        (["--solver-order", 3], ("unipc", 3, True), ", UniPC 3", "Solver(name='unipc', order=3, corrector=True)"),
        (
            ["--solver", "unipc", "--solver-order", 1, "--no-corrector"],
            ("unipc", 1, False),
            ", UniPC 1, no corrector",
            "Solver(name='unipc', order=1, corrector=False)",
        ),
    ],
    ids=str,
)
def test_solvers_are_those_of_the_library(tiny, tiny_folder, flags, used, said, asked):
    """The latents are those of `generate` with the same solver, and a replay takes it from the manifest."""
    printed = succeeded("generate", "--checkpoint", tiny_folder, "--prompt", "a red ball", *SMALL, "--steps", 4, *flags)
    assert f"preset native{said}, seed 42" in " ".join(printed.split())
    manifest = json.loads(Path("outputs/run_001/manifest.json").read_text())
    assert manifest["requested"]["solver"] == asked
    for preset in (manifest["effective"]["choices"], manifest["solver"]["preset"]):
        assert (preset["solver"], preset["solver_order"], preset["corrector"]) == used
    size = {"num_frames": 1, "height": 32, "width": 32, "num_inference_steps": 4}
    ours = generate(tiny, "a red ball", negative_prompt="blurry", **size, solver=Solver(*used), progress=False)
    assert manifest["hashes"]["latents"] == {"video": sha256_of(ours.latents.video)}
    assert "bit-identical" in succeeded("replay", "outputs/run_001", "--checkpoint", tiny_folder, "--device", "cpu")


def test_a_run_goes_on_with_its_own_solver(tiny, tiny_folder, monkeypatch):
    command = ("generate", "--checkpoint", tiny_folder, *QUICK, "--solver", "heun")
    with monkeypatch.context() as patched:
        patched.setattr("cosmos3_lab.run.Run.steps", lambda self: (_ for _ in ()).throw(OSError("the disk is full")))
        assert "the disk is full" in call(*command).stderr
    assert "with --resume" in failed("generate", "--resume", "outputs/run_001", "--solver", "euler")
    assert ", Heun, seed 42" in " ".join(succeeded("generate", "--resume", "outputs/run_001", "--device", "cpu").split())
    succeeded(*command)
    first, second = (json.loads(Path(f"outputs/run_00{i}/manifest.json").read_text()) for i in (1, 2))
    assert first["hashes"] == second["hashes"]


def test_auto_follows_the_checkpoints_file(folder):
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"use_karras_sigmas": False, "flow_shift": 3}))
    printed = succeeded("generate", "--checkpoint", folder, *QUICK, "--use-karras-sigmas", "auto")
    assert "diffusers-flow (shift 3)" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--height", "100"], ["height 100", "96 or 112"]),
        (["--width", "0"], ["width 0"]),
        (["--num-frames", "0"], ["num_frames 0"]),
        (["--fps", "0"], ["fps 0"]),
        (["--fps", "nan"], ["fps nan"]),
        (["--steps", "0"], ["num_inference_steps 0"]),
        (["--steps", "5000"], ["5000"]),
        (["--guidance-scale", "-1"], ["guidance_scale -1"]),
        (["--guidance-scale", "nan"], ["guidance_scale nan"]),
        (["--seed", "-1"], ["seed -1"]),
        (["--prompt", ""], ["empty prompt"]),
        (["--prompt", "  "], ["empty prompt"]),
        (["--preset", "nativ"], ["'nativ'", "native, phyai, diffusers"]),
        (["--flow-shift", "5", "--use-karras-sigmas", "true"], ["flow_shift 5", "Karras"]),
        (["--flow-shift", "5", "--use-karras-sigmas", "auto"], ["flow_shift 5", "Karras"]),
        (["--flow-shift", "0"], ["flow_shift 0"]),
        (["--solver", "eulr"], ["got solver='eulr'", "'unipc', 'euler', 'heun'"]),
        (["--solver", "eulr", "--no-corrector"], ["got solver='eulr'"]),
        (["--solver-order", "4"], ["solver_order 4", "1, 2 or 3"]),
        (["--solver", "heun", "--solver-order", "3"], ["--solver-order", "heun", "leave it out"]),
        (["--solver", "euler", "--no-corrector"], ["--no-corrector", "euler"]),
        (["--device", "gpu"], ["'gpu'", "'cuda'"]),
        (["--checkpoint", "gone"], ["gone is not a folder"]),
    ],
    ids=" ".join,
)
def test_what_cannot_work_is_one_line(tiny_folder, tmp_path, flags, words):
    line = failed("generate", "--checkpoint", tiny_folder, *QUICK, *flags, "--out", tmp_path / "out")
    for word in words:
        assert word in line
    assert mp4s(tmp_path) == []


def test_a_gpu_that_is_not_there_is_one_line(tiny_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "use device='cpu'" in failed("generate", "--checkpoint", tiny_folder, *QUICK, "--device", "cuda")


def test_no_prompt_names_two_examples(folder):
    examples = ["a green square", "a blue one's [red] twin", "a third"]
    (folder / "cosmos3_lab.json").write_text(json.dumps({"example_prompts": examples}))
    line = failed("generate", "--checkpoint", folder, *SMALL)
    assert shlex.split(line.split("for example ")[1]) == [examples[0], "or", examples[1]]


def test_no_prompt_for_nano_names_its_one_example(folder):
    (folder / "cosmos3_lab.json").unlink()
    assert failed("generate", "--checkpoint", folder, *SMALL).endswith(f"for example '{Defaults().example_prompts[0]}'")


def test_no_prompt_and_no_examples_is_one_line(folder):
    (folder / "cosmos3_lab.json").write_text('{"example_prompts": []}')
    assert failed("generate", "--checkpoint", folder, *SMALL) == "error: got no prompt; describe the video"


def test_the_prompt_needs_no_flag(tiny_folder):
    assert "prompt: a red ball" in succeeded("generate", "a red ball", "--checkpoint", tiny_folder, *SMALL)


def test_two_prompts_are_one_line(tiny_folder):
    assert "--prompt as well" in failed("generate", "a blue ball", "--checkpoint", tiny_folder, *QUICK)


def test_no_checkpoint_is_pico():
    assert "Cosmos3Models(pico:" in succeeded("generate", *QUICK, "--sound")
    assert f"{PICO}: transformer, vae" in succeeded("inspect")


def test_pico_is_a_name_and_dot_pico_a_folder(tiny_folder, monkeypatch):
    monkeypatch.setenv("COSMOS3_CHECKPOINT", "gone")
    shutil.copytree(tiny_folder, "pico")
    assert "Cosmos3Models(pico:" in succeeded("generate", "--checkpoint", "pico", *QUICK)
    assert "Cosmos3Models(random-tiny:" in succeeded("generate", "--checkpoint", "./pico", *QUICK)
    assert f"{PICO}: transformer" in succeeded("inspect", "pico")
    assert succeeded("inspect", "./pico").startswith("pico: transformer")
    assert "gone is not a folder" in failed("inspect")


def test_sound_of_a_silent_checkpoint_is_one_line(folder):
    shutil.rmtree(folder / "sound_tokenizer")
    assert "no sound" in failed("generate", "--checkpoint", folder, *QUICK, "--sound")
    assert "silent" in succeeded("generate", "--checkpoint", folder, *QUICK)


def test_a_damaged_checkpoint_is_one_line(folder):
    file = next((folder / "vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    assert str(file) in failed("generate", "--checkpoint", folder, *QUICK)


def test_an_output_folder_that_is_a_file_is_one_line(tiny_folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    assert str(tmp_path / "out") in failed("generate", "--checkpoint", tiny_folder, *QUICK, "--out", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    "flags",
    [["--use-karras-sigmas", "maybe"], ["--dtype", "float16"], ["--steps", "many"], ["--no-such-flag"]],
    ids=" ".join,
)
def test_flags_that_do_not_exist_are_usage_errors(tiny_folder, flags):
    result = call("generate", "--checkpoint", tiny_folder, *QUICK, *flags)
    assert result.exit_code == 2
    assert "Traceback" not in result.output
    assert flags[0] in plain(result.output)
    assert not list(Path().iterdir())


def test_inspect_of_a_good_folder(tiny_folder):
    printed = succeeded("inspect", tiny_folder)
    assert "transformer, vae, text_tokenizer, sound_tokenizer, scheduler" in printed
    for kind in ("T2V", "T2AV"):
        assert re.search(rf"{kind} reads [\d,]+ parameters", printed)
    assert "defaults: 17 frames 96x160 at 16 fps, 4 steps" in printed
    assert "problem" not in printed


def test_inspect_of_a_damaged_folder(folder):
    file = next((folder / "vae").glob("*.safetensors"))
    file.write_bytes(b"")
    shutil.rmtree(folder / "text_tokenizer")
    result = call("inspect", folder)
    printed = plain(result.output)
    assert result.exit_code == 1
    assert "problem: text_tokenizer/ is missing" in printed
    assert f"problem: {file} is not a complete safetensors file" in printed
    assert "Traceback" not in printed


def test_inspect_of_no_folder_is_one_line(tmp_path):
    assert str(tmp_path / "gone") in failed("inspect", tmp_path / "gone")


def test_names_are_printed_as_they_are(tiny_folder, tmp_path):
    """Square brackets are markup to rich."""
    folder = tmp_path / "[red]folder[/red]"
    assert "[red]folder[/red]" in failed("inspect", folder)
    shutil.copytree(tiny_folder, folder)
    assert "[red]folder[/red]" in succeeded("inspect", folder)


def test_python_m_cosmos3_lab_is_the_command():
    command = [sys.executable, "-m", "cosmos3_lab", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "generate" in plain(result.stdout)
    assert "inspect" in plain(result.stdout)
    assert result.stderr == ""


def test_no_command_shows_the_help():
    assert "generate" in call().output


@pytest.mark.parametrize(
    "flags",
    [
        ["--preset", "nativ"],
        ["--height", "50"],
        ["--steps", "0"],
        ["--prompt", " "],
        ["--solver", "eulr"],
        ["--flow-shift", "5", "--use-karras-sigmas", "true"],
    ],
)
def test_bad_arguments_are_found_before_weights_are_read(tiny_folder, tmp_path, monkeypatch, flags):
    monkeypatch.setattr("cosmos3_lab.cli.load_cosmos3", lambda *a, **k: pytest.fail("loaded"))
    ran = CliRunner().invoke(
        app, ["generate", "--checkpoint", str(tiny_folder), "--out", str(tmp_path), "--prompt", "a ball", *flags]
    )
    assert ran.exit_code == 2, ran.output
