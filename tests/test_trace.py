"""Traces: what comes back is what was written; looking at them needs no weights; damage is one clear error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cosmos3_lab import decode_sound, denoise, load_cosmos3, prepare_denoise, prepare_request
from cosmos3_lab.explore_figures import plot_trace
from cosmos3_lab.explore_widgets import trace_player
from cosmos3_lab.figure_canvas import LabFigure
from cosmos3_lab.preview import latent_preview
from cosmos3_lab.trace import open_trace, trace_steps

STEPS = 3
PROMPT = "a red circle bounces on a blue background; low thuds"


@pytest.fixture(scope="module")
def pico():
    with load_cosmos3("pico", device="cpu") as models:
        yield models


@pytest.fixture(scope="module")
def prepared(pico):
    options = {"with_sound": True, "num_frames": 9, "num_inference_steps": STEPS}
    return prepare_denoise(pico, prepare_request(pico, PROMPT, **options))


@pytest.fixture(scope="module")
def written(pico, prepared, tmp_path_factory):
    """A folder, and the steps as they went by."""
    folder = tmp_path_factory.mktemp("trace")
    steps = denoise(pico.transformer, *prepared)
    options = {"with_x0": True, "with_sound": True, "notes": {"prompt": PROMPT}}
    return folder, list(trace_steps(steps, folder, models=pico, inputs=prepared[0], **options))


@pytest.fixture
def copy(written, tmp_path):
    for path in written[0].rglob("*.*"):
        target = tmp_path / path.relative_to(written[0])
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path


def test_writing_changes_nothing(pico, prepared, written):
    for (state, _), (plain, _) in zip(written[1], denoise(pico.transformer, *prepared), strict=True):
        assert torch.equal(state.latents.video, plain.latents.video)
        assert torch.equal(state.latents.sound, plain.latents.sound)


def test_what_was_written_comes_back(pico, prepared, written):
    folder, steps = written
    trace = open_trace(folder, with_x0=True)
    preview = latent_preview(pico)
    assert trace.finished
    assert trace.manifest["prompt"] == PROMPT
    assert (trace.manifest["num_inference_steps"], trace.manifest["num_frames"]) == (STEPS, 9)
    assert torch.equal(trace.schedule.sigmas, prepared[0].schedule.sigmas)
    assert trace.schedule.timesteps.dtype == torch.int64
    assert torch.equal(trace.preview.weight, preview.weight)
    for (_, record), back in zip(steps, trace.records, strict=True):
        assert (back.index, back.sigma, back.rms, back.seconds) == (record.index, record.sigma, dict(record.rms), record.seconds)
        assert torch.equal(back.x0.video, record.x0.video.half().float())
        assert torch.equal(back.x0.sound, record.x0.sound.half().float())
        assert np.abs(trace.film(record.index) - preview.pixels(record.x0.video)).max() <= 0.5 / 255 + 1e-6
        waveform, rate = trace.sound(record.index)
        assert rate == pico.media.sampling_rate
        assert np.abs(waveform - decode_sound(pico.avae, record.x0.sound)[0].numpy()).max() <= 1 / 32767


def test_without_being_asked_for_there_is_neither_x0_nor_sound(pico, prepared, tmp_path):
    list(trace_steps(denoise(pico.transformer, *prepared, stop=2), tmp_path, models=pico, inputs=prepared[0]))
    trace = open_trace(tmp_path)
    assert {path.suffix for path in tmp_path.glob("steps/*")} == {".json", ".png"}
    assert (trace.finished, trace.with_sound, trace.records[0].x0, trace.clip) == (False, False, None, None)
    with pytest.raises(ValueError, match="was the trace written with_x0"):
        open_trace(tmp_path, with_x0=True)
    with pytest.raises(ValueError, match="was the trace written with_sound"):
        trace.sound(0)


def test_a_new_trace_replaces_the_old_one(pico, prepared, copy):
    list(trace_steps(denoise(pico.transformer, *prepared, stop=1), copy, models=pico, inputs=prepared[0]))
    assert len(open_trace(copy).records) == 1
    assert len(list(copy.glob("steps/*"))) == 2


def test_too_large_a_trace_is_foreseen(pico, prepared, tmp_path):
    steps = trace_steps(
        denoise(pico.transformer, *prepared), tmp_path, models=pico, inputs=prepared[0], with_x0=True, most_bytes=9000
    )
    with pytest.raises(ValueError, match=r"would take about .* MB, expected at most 0\.01"):
        next(steps)


def test_sound_of_a_silent_run_is_refused(pico, tmp_path):
    inputs, state = prepare_denoise(pico, prepare_request(pico, PROMPT, num_frames=5, num_inference_steps=2))
    with pytest.raises(ValueError, match="expected a run with sound"):
        next(trace_steps(denoise(pico.transformer, inputs, state), tmp_path, models=pico, inputs=inputs, with_sound=True))


def test_outside_of_a_notebook_the_player_is_the_film_strip(written):
    trace = open_trace(written[0])
    assert isinstance(trace_player(trace), LabFigure)
    assert f"{STEPS} of {STEPS} steps" in plot_trace(trace).alt_text


LOOK = """
import sys
from pathlib import Path
import safetensors, torch

def refuse(*a, **k):
    raise AssertionError("weights were touched")

safetensors.safe_open = refuse
torch.nn.Module.__init__ = refuse
from cosmos3_lab import figures
from cosmos3_lab.trace import open_trace
trace = open_trace(sys.argv[1], with_x0=True)
figures.plot_trace(trace).png()
figures.filmstrip_of_x0(trace.records, trace.preview).png()
figures.plot_guidance(trace.records).png()
print(trace, {name.split(".")[0] for name in sys.modules} & {"transformers", "tokenizers"})
"""


def test_looking_needs_no_weights(written, tmp_path):
    """Neither a network is made nor a weight file opened, and no checkpoint is where the environment says."""
    nowhere = os.environ | {"COSMOS3_CHECKPOINT": str(tmp_path / "nowhere"), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", LOOK, str(written[0])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], env=nowhere)
    assert done.returncode == 0, done.stderr
    assert f"Trace({STEPS} of {STEPS} steps, with sound" in done.stdout
    assert "set()" in done.stdout


KILLED = """
import os, signal, sys
from cosmos3_lab import denoise, load_cosmos3, prepare_denoise, prepare_request
from cosmos3_lab.trace import trace_steps
models = load_cosmos3("pico", device="cpu")
inputs, state = prepare_denoise(models, prepare_request(models, "a ball", num_frames=5, num_inference_steps=6))
for state, record in trace_steps(denoise(models.transformer, inputs, state), sys.argv[1], models=models, inputs=inputs):
    if record.index == 2:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_its_steps(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=Path(__file__).parents[1])
    assert done.returncode == -9
    trace = open_trace(tmp_path)
    assert [record.index for record in trace.records] == [0, 1, 2]
    assert not trace.finished


def change(path, how):
    values = json.loads(path.read_text())
    how(values)
    path.write_text(json.dumps(values))


def nested(depth):
    found = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (lambda f: (f / "trace.json").unlink(), "trace.json is not a readable cosmos3_lab.trace file"),
        (lambda f: (f / "trace.json").write_text("{"), "trace.json is not a readable"),
        (lambda f: change(f / "trace.json", lambda v: v.update(version=2)), "has version 2, expected 1 to 1"),
        (lambda f: change(f / "trace.json", lambda v: v.pop("tensors")), "trace.json is damaged: KeyError"),
        (lambda f: change(f / "trace.json", lambda v: v["manifest"].pop("latent_frames")), "trace.json is damaged"),
        (lambda f: (f / "steps" / "001.json").unlink(), r"holds the steps \[0, 2\]"),
        (lambda f: (f / "steps" / "001.json").write_text("[]"), "001.json is damaged"),
        (lambda f: (f / "steps" / "001.json").write_text("[" * 200_000), "001.json is damaged"),
        (lambda f: (f / "trace.json").write_text("[" * 200_000), "trace.json is not a readable cosmos3_lab.trace file"),
        (lambda f: change(f / "steps" / "001.json", lambda v: v.update(record=nested(600))), "001.json is damaged"),
        (lambda f: change(f / "steps" / "001.json", lambda v: v["record"]["fields"].pop("sigma")), "001.json is damaged"),
        (lambda f: change(f / "steps" / "001.json", lambda v: v["record"]["fields"].update(index=0)), "no record of step 1"),
        (lambda f: (f / "steps" / "002.safetensors").write_bytes(b"no"), "002.safetensors is missing or damaged"),
    ],
)
def test_damage_is_one_clear_error(copy, how, says):
    how(copy)
    with pytest.raises(ValueError, match=says):
        open_trace(copy, with_x0=True)


def test_damaged_pictures_and_sounds_are_named_when_they_are_looked_at(copy):
    trace = open_trace(copy)
    (copy / "steps" / "000.png").write_bytes(b"no")
    (copy / "steps" / "000.wav").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"000\.png is missing or damaged"):
        trace.film(0)
    with pytest.raises(ValueError, match=r"000\.wav is missing or damaged"):
        trace.sound(0)
