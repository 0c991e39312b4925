"""Training end to end with the tiny recipe: the command, what it leaves, the same command again, and a stop in between."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from checks import refused
from matplotlib.figure import Figure
from matplotlib.image import imread
from safetensors.torch import load_file

from cosmos3_lab import generate, inspect_checkpoint, load_cosmos3
from cosmos3_lab.pico import train, train_transformer
from cosmos3_lab.pico.data import unconditional_ids
from cosmos3_lab.pico.export import read_autoencoders
from cosmos3_lab.pico.optimizers import Trainer
from cosmos3_lab.pico.pictures import draw_sounds, save_figure
from cosmos3_lab.pico.recipe import RECIPES, Phase
from cosmos3_lab.pico.score import KINDS
from cosmos3_lab.pico.train import MODELS, Job, _fitting_steps
from cosmos3_lab.pico.train_transformer import build_transformer, clip_lengths

TINY, CPU = RECIPES["tiny"], torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """What the command leaves; do not change it."""
    out = tmp_path_factory.mktemp("train") / "run"
    command = [sys.executable, "-m", "cosmos3_lab.pico.train", str(out), "--recipe", "tiny", "--workers", "0", "--count", "2"]
    ran = subprocess.run(
        [*command, "--device", "cpu", "--seed", "0"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return out


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def weights(folder):
    """Every tensor of every safetensors file below a folder."""
    files = {str(path.relative_to(folder)): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}
    return {f"{file}: {name}": value for file, tensors in files.items() for name, value in tensors.items()}


def same_weights(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


# ----------------------------------------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("phase", "name"), [("vae", "loss"), ("avae", "loss"), *(("transformer", n) for n in ("video", "sound"))]
)
def test_something_is_learned(tiny_run, phase, name):
    log = read(tiny_run / f"{phase}.json")
    steps = getattr(TINY, f"{phase}_phase").steps
    assert [row["step"] for row in log["curve"]] == list(range(1, steps + 1))
    first, last = (
        np.mean([row[name] for row in rows if name in row]) for rows in (log["curve"][: steps // 5], log["curve"][-steps // 5 :])
    )
    assert last < first
    if phase == "vae":
        psnr = [row["psnr"] for row in log["curve"]]
        assert np.mean(psnr[-8:]) > np.mean(psnr[:8])


def test_its_checkpoint_loads_and_generates(tiny_run):
    assert inspect_checkpoint(tiny_run / "checkpoint").problems == ()
    with load_cosmos3(tiny_run / "checkpoint", device="cpu", load_encoder=True) as models:
        assert models.vae.config.latents_std != TINY.vae.latents_std  # measured
        assert any(p.any() for name, p in models.transformer.named_parameters() if name.endswith("gen.proj_out.weight"))
        made = generate(models, models.defaults.example_prompts[1], with_sound=True, num_inference_steps=2, progress=False)
    assert made.output.frames.shape == (9, 32, 32, 3)
    assert np.isfinite(made.output.waveform).all()


def test_what_ships_is_the_average(tiny_run):
    state = load_file(tiny_run / "state" / "transformer.safetensors")
    shipped = load_file(tiny_run / "checkpoint" / "transformer" / "diffusion_pytorch_model.safetensors")
    name = "gen.layers.0.mlp_moe_gen.up_proj.weight"
    assert torch.equal(shipped[name.removeprefix("gen.")], state[f"average.{name}"].bfloat16())
    assert not torch.equal(state[f"average.{name}"], state[f"master.{name}"])
    assert f"optimizer1.{name}.average" in state  # Muon
    assert f"optimizer0.{name}.exp_avg" not in state
    assert "optimizer0.gen.proj_in.weight.exp_avg" in state


def test_it_says_how_it_was_trained(tiny_run):
    about = read(tiny_run / "checkpoint" / "TRAINING.json")
    assert about["seed"] == 0
    assert about["machine"] == {"device": "cpu", "processes": 1, "torch": torch.__version__}
    assert about["recipe"] == json.loads(json.dumps(asdict(TINY)))
    assert about["scores"] == read(tiny_run / "scores.json")
    assert about["scores"]["count"] == 2
    assert set(about["scores"]["kinds"]) == set(KINDS)
    for phase in MODELS:
        log, told = read(tiny_run / f"{phase}.json"), about["phases"][phase]
        curve = [row for row in log["curve"] if "loss" in row]  # a step on short clips reports none
        assert (told["steps"], told["seconds"]) == (getattr(TINY, f"{phase}_phase").steps, log["seconds"])
        assert told["last"] == pytest.approx(curve[-1], rel=1e-3)
        assert [row["step"] for row in told["curve"]] == [row["step"] for row in curve]  # thinned out only where it is long
        assert 0 < told["seconds"] < 600


@pytest.mark.parametrize("phase", MODELS)
@pytest.mark.parametrize("kind", ["", "_sheet"])
def test_there_is_something_to_look_at(tiny_run, phase, kind):
    picture = imread(tiny_run / f"{phase}{kind}.png")
    assert min(picture.shape[:2]) > 300
    assert picture[..., :3].std() > 0.03
    assert (picture[..., :3].min(axis=-1) < 0.9).mean() > 0.01  # not just white paper


def test_the_same_command_again_changes_no_weight(tiny_run, tmp_path, monkeypatch, capsys):
    again = shutil.copytree(tiny_run, tmp_path / "again")
    before = {phase: read(again / f"{phase}.json") for phase in MODELS}
    phases = [word for phase in MODELS for word in ("--phase", phase)]  # scored above
    command = ["train", str(again), "--recipe", "tiny", "--workers", "0", "--device", "cpu", "--seed", "0", *phases]
    monkeypatch.setattr(sys, "argv", command)
    steps = []
    monkeypatch.setattr(Trainer, "step", lambda trainer: steps.append(trainer))
    train.main()
    assert steps == []
    assert same_weights(weights(again), weights(tiny_run))
    for phase in MODELS:
        after = read(again / f"{phase}.json")
        assert after["curve"] == before[phase]["curve"]
        assert after["seconds"] >= before[phase]["seconds"]
    for file in (tiny_run / "checkpoint").rglob("*.json"):
        assert file.read_bytes() == (again / file.relative_to(tiny_run)).read_bytes(), file
    assert "100%" in capsys.readouterr().err


def test_another_seed_trains_another_model(tiny_run, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "write_settings", lambda *args: None)
    monkeypatch.setattr(train, "measure_statistics", lambda vae, *args, **kwargs: vae.config)
    monkeypatch.setattr(train, "draw_sheet", lambda *args: Figure())
    recipe = replace(TINY, vae_phase=replace(TINY.vae_phase, steps=2))
    states = []
    for seed in (0, 0, 1):
        train.run(Job(tmp_path / f"run{len(states)}", recipe, seed, CPU, 0), ("vae",))
        states.append(weights(tmp_path / f"run{len(states)}" / "state"))
    assert same_weights(states[0], states[1])
    assert not same_weights(states[0], states[2])


def test_a_transformer_is_trained_further(tiny_run, tmp_path, monkeypatch):
    """At the rate that was asked for, falling at once, by whichever process; the scores may be taken by another one."""
    out, start = tmp_path / "more", tiny_run / "checkpoint"
    shutil.copytree(start, out / "checkpoint")
    for phase in ("vae", "avae"):
        shutil.copy(tiny_run / f"{phase}.json", out)
    shutil.copy(tiny_run / "scores.json", out)
    monkeypatch.setattr(train, "draw_sheet", lambda *args: Figure())
    recipe, trainers, step = replace(TINY, transformer_phase=replace(TINY.transformer_phase, steps=4)), [], Trainer.step
    rates = []

    def watched(trainer):
        step(trainer)
        trainers.append(trainer)
        rates.append([o.param_groups[0]["lr"] for o in trainer.optimizers])

    monkeypatch.setattr(Trainer, "step", watched)
    monkeypatch.setenv("WORLD_SIZE", "4")
    job = Job(out, recipe, 1, CPU, 0, start_from=start, rate_share=0.5)
    train.run(job, ("transformer",))
    monkeypatch.delenv("WORLD_SIZE")
    assert len(trainers) == 4
    full = [recipe.transformer_phase.rate, 0.02]  # AdamW's and Muon's
    shares = [min((i + 1) / recipe.transformer_phase.warmup, (4 - i) / 4) for i in range(4)]
    assert rates == [pytest.approx([0.5 * rate * share for rate in full]) for share in shares]
    about = train.about(job)["phases"]["transformer"]
    told = {"clips_a_step": 2 * recipe.transformer_phase.batch, "rate_share": 0.5, "sigma_shift": train.TRAINING_SHIFT}
    assert told.items() <= about.items()
    assert about["before"] == read(start / "TRAINING.json")["phases"]["transformer"]
    assert not same_weights(weights(out / "checkpoint" / "transformer"), weights(start / "transformer"))


def test_the_transformer_needs_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "write_settings", lambda *args: None)
    job = Job(tmp_path, TINY, 0, CPU, 0)
    refused(str(job.checkpoint / "vae"), "is missing", call=lambda: train.run(job, ("transformer",)))


# ------------------------------------------------------------------------------------------------------- stops and time


class Interrupted:
    """A phase of a toy model whose numbers come from a list of steps, the last of which may be an interruption."""

    def __init__(self, out, monkeypatch, stop=None):
        torch.manual_seed(0)
        self.trainer = Trainer(torch.nn.Linear(2, 1), Phase(steps=10, batch=1, rate=0.1, warmup=1, flat=0.5, ema=0.9))
        self.out, self.stop, self.shown = out, stop, 0
        monkeypatch.setattr(train, "SAVE_EVERY", -1.0)  # after every step

    def numbers(self):
        while self.trainer.progress < 1:
            if self.trainer.step_index == self.stop:
                raise KeyboardInterrupt
            x = torch.randn(4, 2, generator=torch.Generator().manual_seed(self.trainer.step_index))
            loss = (self.trainer.module(x) - 1).square().mean()
            loss.backward()
            self.trainer.step()
            yield {"loss": loss.detach(), "psnr": -loss.detach(), "psnr_near": -loss.detach()}

    def show(self):
        self.shown += 1
        return Figure()

    def run(self):
        job = Job(self.out, TINY, 0, CPU, 0)
        with pytest.raises(KeyboardInterrupt) if self.stop else nullcontext():
            train._train(job, "vae", self.trainer, self.numbers(), self.show)
        return load_file(job.state_file("vae")), read(self.out / "vae.json")


def test_an_interrupted_command_goes_on(tmp_path, monkeypatch):
    expected, whole = Interrupted(tmp_path / "whole", monkeypatch).run()
    state, log = Interrupted(tmp_path / "parts", monkeypatch, stop=4).run()
    assert (int(state["step_index"]), len(log["curve"])) == (4, 4)
    (tmp_path / "parts" / "vae.json").write_text(json.dumps(log | {"seconds": 1000.0}), encoding="utf-8")
    later = Interrupted(tmp_path / "parts", monkeypatch)
    state, continued = later.run()
    assert later.shown == 7  # after each of six steps, and at the end
    assert same_weights(state, expected)
    assert continued["curve"] == whole["curve"]
    assert continued["steps"] == 10
    assert continued["seconds"] > 1000
    assert not [path for path in (tmp_path / "parts").rglob("*.part*")]


@pytest.mark.parametrize(
    ("paces", "end", "steps"),
    [
        ([(5.0, 40)], 100.0, 1080),  # nothing known yet: enough to go on
        ([(5.0, 40), (5.0, 40)], 100.0, 1080),
        ([(0.0, 10), (10.0, 30)], 20.0, 50),  # two steps a second, ten seconds left
        ([(0.0, 10), (2.0, 10), (10.0, 30)], 20.0, 50),
        ([(0.0, 0), (3.0, 1)], 10.0, 3),  # a third step would end at 9 s, a fourth too late
        ([(0.0, 10), (10.0, 30)], 10.0, 30),  # time is up
        ([(0.0, 10), (10.0, 30)], 5.0, 30),
    ],
)
def test_steps_fit_the_time(paces, end, steps):
    assert _fitting_steps(paces, end) == steps


# ------------------------------------------------------------------------------------------------------- prompt dropout


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropped_prompts_are_the_unconditional_ones(tiny_run, monkeypatch, share):
    tokenizer = tiny_run / "checkpoint" / "text_tokenizer"
    seen, encode = [], train_transformer.encode_prompts
    monkeypatch.setattr(train_transformer, "DROP_PROMPT", share)

    def watched(towers, ids, places):
        seen.append((places.layout.video_shape[0], ids, places.layout.n_sound))
        return encode(towers, ids, places)

    monkeypatch.setattr(train_transformer, "encode_prompts", watched)
    recipe = replace(TINY, pool=8, transformer_phase=replace(TINY.transformer_phase, steps=12, batch=4))
    transformer = build_transformer(recipe, CPU)
    trainer = Trainer(transformer, recipe.transformer_phase)
    autoencoders = read_autoencoders(tiny_run / "checkpoint", CPU)
    rows = list(train_transformer.train_transformer(transformer, trainer, *autoencoders, tokenizer, recipe, seed=5, workers=0))
    assert len(rows) == 12
    assert len(seen) == 24
    lengths = {(n - 1) // 4 + 1: n for n in clip_lengths(recipe)}
    unconditional = {t: [ids.tolist() for ids in unconditional_ids(tokenizer, n, 32)] for t, n in lengths.items()}
    dropped = [row in unconditional[t] for t, ids, _ in seen for row in ids.tolist()]
    assert len(dropped) == 48
    assert set(dropped) == {share == 1}
    assert {(t, sound) for t, _, sound in seen} <= {(1, 0), (2, 0), (2, 8), (3, 0), (3, 15)}
    assert (3, 15) in {(t, sound) for t, _, sound in seen}


# --------------------------------------------------------------------------------------------------------------- pictures


def test_silence_can_be_drawn(tmp_path):
    silence = np.zeros((1, 2, 9600), np.float32)
    save_figure(draw_sounds(["silence"], silence, silence, 16000), tmp_path / "silence.png")
    assert re.match(rb"\x89PNG", (tmp_path / "silence.png").read_bytes())
