"""The folder of a run: what is in it, going on from it, repeating it; running out of memory."""

import gc
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image
from typer.testing import CliRunner

from cosmos3_lab import (
    PRESETS,
    Cosmos3GenerationOutput,
    Guidance,
    GuidanceInterval,
    Schedule,
    decode_latents,
    generate,
    init_latents,
    load_cosmos3,
    prepare_request,
    read_mp4,
    replay,
    run_request,
)
from cosmos3_lab import run as run_module
from cosmos3_lab.bundle import VERSION, Bundle, create_bundle
from cosmos3_lab.cli import app
from cosmos3_lab.contact_sheet import draw_contact_sheet
from cosmos3_lab.costs import nano_configs
from cosmos3_lab.interruption import Terminated, terminable
from cosmos3_lab.job import Job
from cosmos3_lab.manifest import plain, sha256_of
from cosmos3_lab.memory import GIB
from cosmos3_lab.out_of_memory import OutOfMemoryError, out_of_memory_words
from cosmos3_lab.plan import plan_run
from cosmos3_lab.random_checkpoint import write_random_checkpoint
from cosmos3_lab.replay import CLOSE, read_latents
from cosmos3_lab.request import Cosmos3T2VRequest

PROMPT = '../../a [red]ball[/red] <b>bounces</b>\n"twice" | rm -rf ~'
ASK = {"negative_prompt": "blurry", "num_frames": 5, "height": 32, "width": 48, "fps": 16.0, "num_inference_steps": 4}
QUICK = ASK | {"num_frames": 1, "num_inference_steps": 2}
MUTATIONS = int(os.environ.get("COSMOS3_MUTATIONS", "25"))
WHOLE = ["contact_sheet.png", "latents.safetensors", "manifest.json", "video.mp4"]
OLD = Path(__file__).parent / "old_run_v1"


def run(models, **changes):
    return generate(models, **{"prompt": PROMPT, "progress": False, **ASK, **changes})


def go_on(models, folder, **how):
    return generate(models, resume=folder, progress=False, **how)


def same(a, b):
    pairs = ((a.latents.video, b.latents.video), (a.latents.sound, b.latents.sound))
    return all((x is None and y is None) or torch.equal(x, y) for x, y in pairs)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def manifest_of(result):
    return json.loads((result.bundle / "manifest.json").read_text(encoding="utf-8"))


def stop_after(step):
    return lambda record: record.index == step - 1


class Crash(BaseException):
    """Nothing that the package knows."""


def crash_in(monkeypatch, name, error=None):
    """The named function of `run.py` fails once it has begun."""

    def fail(*args, **kwargs):
        raise error or Crash

    monkeypatch.setattr(run_module, name, fail)


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    return run(tiny, with_sound=True, out=tmp_path_factory.mktemp("out"))


# ------------------------------------------------------------------------------------------------------------ what is in it


def test_a_finished_run_has_its_files(finished):
    assert finished.bundle.name == "run_001"
    assert names(finished.bundle) == WHOLE
    assert names(finished.bundle.parent) == ["run_001"]
    assert finished.path == finished.bundle / "video.mp4"
    with Image.open(finished.bundle / "contact_sheet.png") as sheet:
        assert sheet.width > 100


def test_the_manifest_says_what_was_asked_and_what_was_done(finished, tiny):
    m = manifest_of(finished)
    assert (m["format"], m["version"], m["status"], m["video"]) == ("cosmos3_lab.run", VERSION, "finished", "video.mp4")
    assert m["requested"]["num_frames"] == 5
    assert (m["requested"]["flow_shift"], m["requested"]["seed"]) == (None, 42)
    assert m["texts"]["prompt"] == PROMPT
    assert m["texts"]["ids"] == finished.inputs.request.text_ids[0].tolist()
    assert m["effective"]["flow_shift"] == 10.0
    assert m["effective"]["fingerprint"] == tiny.fingerprint
    assert finished.manifest == m["effective"] | {name: m["texts"][name] for name in run_module.TEXTS}
    assert m["machine"]["versions"]["torch"] == torch.__version__
    assert m["machine"]["versions"]["av"] == av.__version__
    assert m["hashes"]["output"]["frames"] == sha256_of(finished.output.frames)
    assert m["hashes"]["latents"]["video"] == sha256_of(finished.latents.video)
    assert m["hashes"]["noise"]["sound"] == sha256_of(init_latents((2, 2, 3), channels=8, sound_frames=8, sound_dim=4).sound)
    assert m["peak_memory"]["process"] > 100e6
    assert m["timings"]["denoise"] == finished.timings["denoise"] > 0


def test_a_job_begins_its_run_as_generate_does(finished, tiny, tmp_path):
    job = Job(tiny)
    job.start(PROMPT, with_sound=True, out=tmp_path, **ASK)
    assert job.join(120.0)
    assert job.error is None
    ours, theirs = manifest_of(job.result), manifest_of(finished)
    assert ours["requested"] == {"preset": None, "with_sound": True} | {k: v for k, v in ASK.items() if k != "negative_prompt"}
    differ = {key for key in theirs if ours[key] != theirs[key]}
    assert differ <= {"requested", "timings", "peak_memory"}
    assert list(ours) == list(theirs)
    assert list(ours["timings"]) == list(theirs["timings"])
    assert all(ours["timings"][phase] > 0 for phase in (*run_module.PHASES[1:], "condition"))


def test_prompts_name_no_file(finished):
    assert "ball" not in " ".join(str(path) for path in finished.bundle.parent.rglob("*"))


def test_a_hash_knows_dtype_and_shape():
    zeros = torch.zeros(2, 3)
    hashes = {sha256_of(x) for x in (zeros, zeros.T, zeros.int(), torch.zeros(7), zeros + 1e-45)}
    assert len(hashes) == 5
    assert sha256_of(zeros.numpy()) == sha256_of(zeros)


def test_settings_that_json_cannot_hold_become_text():
    assert plain({"w": (1.0, (2, None)), "f": init_latents((1, 2, 2), channels=1)}) == {
        "w": [1.0, [2, None]],
        "f": "Latents(video=[1, 1, 1, 2, 2], torch.float32, cpu)",
    }


def test_runs_are_counted_and_nothing_is_replaced(tiny, tmp_path):
    (tmp_path / "run_001").mkdir()
    (tmp_path / "run_002").write_text("mine")
    made = [run(tiny, **QUICK, out=tmp_path, name="my clip.mp4") for _ in range(2)]
    assert [one.path.relative_to(tmp_path).as_posix() for one in made] == ["run_003/my clip.mp4", "run_004/my clip.mp4"]
    assert (tmp_path / "run_002").read_text() == "mine"
    assert list((tmp_path / "run_001").iterdir()) == []


def test_many_at_once_get_a_folder_each(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: create_bundle(tmp_path, {"n": n}), range(40)))
    assert sorted(one.path.name for one in made) == [f"run_{n:03}" for n in range(1, 41)]
    assert sorted(json.loads(one.manifest.read_text())["n"] for one in made) == list(range(40))
    assert len(list(tmp_path.iterdir())) == 40


def test_a_folder_that_cannot_be_completed_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        create_bundle(tmp_path, {"fps": math.nan})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("frames", [1, 2, 7, 12, 100])
def test_a_contact_sheet_has_every_shape(frames):
    for height, width in ((32, 32), (16, 320), (320, 16)):
        pixels = np.full((frames, height, width, 3), 200, np.uint8)
        wave = np.linspace(-1, 1, 999, dtype=np.float32)[None]
        sheet = draw_contact_sheet(Cosmos3GenerationOutput(pixels, 24.0, wave, 16000))
        assert max(sheet.size) < 8000
        silent = draw_contact_sheet(Cosmos3GenerationOutput(pixels, 24.0))
        assert silent.height < sheet.height


# ------------------------------------------------------------------------------------------------------------------ private


def test_a_private_run_keeps_prompt_and_machine_out(tiny, tmp_path):
    secret = "zebra 4711"
    plainly, privately = (run(tiny, prompt=secret, negative_prompt=secret, out=tmp_path, private=p) for p in (False, True))
    assert same(plainly, privately)
    m = manifest_of(privately)
    assert (m["private"], m["texts"], m["machine"]) == (True, None, None)
    for one, there in ((plainly, True), (privately, False)):
        written = b"".join(path.read_bytes() for path in one.bundle.iterdir())
        for word in (secret, torch.__version__, str(tiny.folder), "cosmos3_lab 0"):
            assert (word.encode() in written) == there, word
    with av.open(str(privately.path)) as container:
        assert {"title", "comment"}.isdisjoint(container.metadata)
    with av.open(str(plainly.path)) as container:
        assert container.metadata["title"] == secret
        assert container.metadata["comment"].endswith("random-tiny, seed 42")
    with pytest.raises(ValueError, match="is private"):
        replay(privately.bundle, tiny)


def test_a_private_run_can_be_gone_on_with(tiny, tmp_path):
    stopped = run(tiny, out=tmp_path, private=True, should_stop=stop_after(2))
    assert set(manifest_of(stopped)["texts"]) == {"ids", "mask", "negative_ids", "negative_mask"}
    result = go_on(tiny, stopped.bundle)
    assert same(result, run(tiny))
    assert manifest_of(result)["texts"] is None


# ------------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("preset", ["native", "phyai", "diffusers"])
@pytest.mark.parametrize("step", [1, 3])
def test_a_stopped_run_goes_on_bit_for_bit(tiny, tmp_path, preset, step):
    changes = {"with_sound": True, "preset": preset, "flow_shift": None if preset == "diffusers" else 7.0}
    stopped = run(tiny, out=tmp_path, should_stop=stop_after(step), **changes)
    result, expected = go_on(tiny, stopped.bundle), run(tiny, **changes)
    assert same(result, expected)
    assert (result.output.frames == expected.output.frames).all()
    assert result.manifest == expected.manifest
    assert [record.index for record in result.records] == list(range(step, 4))
    assert names(result.bundle) == WHOLE
    assert result.timings["denoise"] > stopped.timings["denoise"]


def test_a_run_with_everything_of_its_own_goes_on(tiny, tmp_path):
    noise = init_latents((2, 2, 3), channels=8, seed=9)
    sigmas = torch.tensor([0.9, 0.5, 0.3, 0.0])
    own = {
        "noise": noise,
        "schedule": Schedule(sigmas, (sigmas[:-1] * 1000).long()),
        "preset": replace(PRESETS["native"], name="mine", solver_order=3, system_prompt="Be kind."),
        "num_inference_steps": None,
        "guidance_scale": 2.5,
    }
    stopped = run(tiny, out=tmp_path, should_stop=stop_after(2), **own)
    result = go_on(tiny, stopped.bundle)
    assert same(result, run(tiny, **own))
    assert names(result.bundle) == sorted([*WHOLE, "noise.safetensors"])
    assert replay(result.bundle, tiny, progress=False).verdict == "identical"


@pytest.mark.parametrize("where", ["denoise", "decode_latents", "write_contact_sheet"])
@pytest.mark.parametrize("error", [Crash, KeyboardInterrupt, OSError])
def test_whatever_ends_a_run_leaves_what_was_done(tiny, tmp_path, monkeypatch, where, error):
    with monkeypatch.context() as patched:
        crash_in(patched, where, error("ended"))
        with pytest.raises(error) as caught:
            run(tiny, out=tmp_path)
    (note,) = caught.value.__notes__
    done = "0 of 4 steps are" if where == "denoise" else "the latents are"
    assert note == f"{done} saved in {tmp_path / 'run_001'}; go on with: cosmos3-lab generate --resume {tmp_path / 'run_001'}"
    status = Bundle(tmp_path / "run_001").read_manifest()["status"]
    assert status == ("denoising" if where == "denoise" else "decoding")
    if where != "denoise":  # what was done is not done again
        monkeypatch.setattr(sys.modules["cosmos3_lab.denoise"], "denoise_step", lambda *a, **k: pytest.fail("a step"))
    result = go_on(tiny, tmp_path / "run_001")
    monkeypatch.undo()
    assert same(result, run(tiny))
    assert names(result.bundle) == WHOLE


OTHERS = {
    "list": {"guidance_scale": [1.0, 3.0, 3.0, 1.0]},
    "interval": {"guidance_scale": GuidanceInterval(3.0, low=0.3, high=0.9)},
    "function": {"guidance_scale": lambda step, sigma: 1 + 2 * sigma},
    "all of it": {"guidance_scale": Guidance(3.0, sound_scale=[1.0, 2.0, 1.0, 1.0], rescale=np.float64(0.5), zero_steps=1)},
    "heun": {"guidance_scale": [2.0, 3.0, 1.0, 1.0], "solver": "heun"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_guidance_by_steps_and_other_solvers_go_on_and_are_repeated(tiny, tmp_path, monkeypatch, name):
    whole = run(tiny, **OTHERS[name])
    stopped = run(tiny, out=tmp_path, should_stop=stop_after(2), **OTHERS[name])
    with monkeypatch.context() as patched:
        crash_in(patched, "decode_latents", Crash("ended"))
        with pytest.raises(Crash):
            go_on(tiny, stopped.bundle)
    result = go_on(tiny, stopped.bundle)
    assert same(result, whole)
    assert replay(result.bundle, tiny, progress=False).verdict == "identical"


def test_choices_of_the_prompt_outlast_a_stop(tiny, tmp_path):
    request = prepare_request(tiny, "a ball", preset="diffusers", num_inference_steps=3, num_frames=5, height=32, width=32)
    stopped = run_request(tiny, request, preset="native", out=tmp_path, should_stop=stop_after(1), progress=False)
    assert go_on(tiny, stopped.bundle).manifest["choices"] == stopped.manifest["choices"]


STRANGE = [
    {"texts": {"negative_prompt_source": "[/red]"}},
    {"machine": {"checkpoint_folder": 5}},
    {"effective": {"dtype": [1]}},
]


@pytest.mark.parametrize("what", STRANGE)
def test_a_manifest_from_elsewhere_is_one_line_on_the_command_line(tiny, tiny_folder, tmp_path, what):
    bundle = Bundle(run(tiny, out=tmp_path, should_stop=stop_after(1)).bundle)
    manifest = json.loads(bundle.manifest.read_text())
    for part, values in what.items():
        manifest[part] |= values
    manifest["machine"]["versions"]["torch"] = "\x1b]0;title"
    bundle.manifest.write_text(json.dumps(manifest))
    for command in (["replay", str(bundle.path)], ["generate", "--resume", str(bundle.path)]):
        done = CliRunner().invoke(app, [*command, "--checkpoint", str(tiny_folder), "--device", "cpu"])
        assert done.exception is None or isinstance(done.exception, SystemExit)
        assert "\x1b]0" not in done.output


def test_an_interrupt_during_a_step_keeps_the_steps_before(tiny, tmp_path):
    def interrupt(record):
        if record.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run(tiny, out=tmp_path, should_stop=interrupt)
    assert caught.value.__notes__[0].startswith("3 of 4 steps are saved in")
    assert same(go_on(tiny, tmp_path / "run_001"), run(tiny))


def test_a_disk_that_is_full_at_the_end_too_does_not_hide_the_error(tiny, tmp_path, monkeypatch):
    def interrupt(record):
        if record.index == 1:
            crash_in(monkeypatch, "save_state", OSError("the disk is full"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        run(tiny, out=tmp_path, should_stop=interrupt, save_every=1)
    (note,) = caught.value.__notes__
    assert note.startswith("2 of 4 steps are saved")
    monkeypatch.undo()
    assert same(go_on(tiny, tmp_path / "run_001"), run(tiny))


def test_save_every_and_the_share_of_time(tiny, tmp_path, monkeypatch):
    saved, slow = [], 0.0

    def save(path, inputs, state):
        saved.append(state.step_index)
        time.sleep(slow)
        return save_state(path, inputs, state)

    save_state = run_module.save_state
    monkeypatch.setattr(run_module, "save_state", save)
    run(tiny, out=tmp_path, num_inference_steps=7, save_every=3)
    assert saved == [0, 3, 6, 7]
    saved.clear()
    slow = 0.2
    run(tiny, out=tmp_path, num_inference_steps=7)  # a step takes hundredths of a second
    assert saved == [0, 7]
    saved.clear()
    slow = 0.0
    monkeypatch.setattr(run_module, "SAVE_SHARE", 1e6)
    run(tiny, out=tmp_path, num_inference_steps=3)
    assert saved == [0, 1, 2, 3]


def test_a_crash_before_the_first_save_starts_again(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        crash_in(patched, "save_state")
        with pytest.raises(Crash):
            run(tiny, out=tmp_path)
    assert names(tmp_path / "run_001") == ["manifest.json"]
    assert same(go_on(tiny, tmp_path / "run_001"), run(tiny))


def test_leftovers_of_a_killed_process_are_removed(tiny, tmp_path):
    stopped = run(tiny, out=tmp_path, should_stop=stop_after(1))
    (stopped.bundle / ".state.1.part.safetensors").write_bytes(b"half")
    (stopped.bundle / ".video.1.part.mp4").write_bytes(b"half")
    (stopped.bundle / "notes.txt").write_text("mine")
    go_on(tiny, stopped.bundle)
    assert names(stopped.bundle) == sorted([*WHOLE, "notes.txt"])


def test_two_cannot_work_on_one_run(tiny, tmp_path):
    stopped = run(tiny, out=tmp_path, should_stop=stop_after(1))
    with Bundle(stopped.bundle).locked(), pytest.raises(ValueError, match="being worked on by another process"):
        go_on(tiny, stopped.bundle)
    assert same(go_on(tiny, stopped.bundle), run(tiny))


def test_a_finished_run_is_not_gone_on_with(tiny, finished):
    with pytest.raises(ValueError, match=r"run_001 is finished: its clip is .*video\.mp4; replay"):
        go_on(tiny, finished.bundle)


@pytest.mark.parametrize(
    "other", [{"prompt": "a cat"}, {"seed": 1}, {"out": "here"}, {"private": True}, {"with_sound": True}], ids=str
)
def test_a_run_goes_on_with_its_own_settings(tiny, finished, other):
    with pytest.raises(ValueError, match=f"got {next(iter(other))} together with resume"):
        generate(tiny, resume=finished.bundle, **other)


def test_no_prompt_and_no_run_is_an_error(tiny):
    with pytest.raises(ValueError, match="got no prompt"):
        generate(tiny)
    with pytest.raises(ValueError, match="save_every 0"):
        run(tiny, save_every=0)


def test_another_checkpoint_does_not_go_on_with_it(tiny, tmp_path):
    stopped = run(tiny, **QUICK, out=tmp_path, should_stop=stop_after(1))
    with load_cosmos3(write_random_checkpoint(tmp_path / "other", seed=1), device="cpu") as other:
        with pytest.raises(ValueError, match="the checkpoint's weights differ"):
            go_on(other, stopped.bundle)
        repeated = replay(run(tiny, **QUICK, out=tmp_path).bundle, other, progress=False)
    assert repeated.verdict == "different"
    assert repeated.distances["video"] > CLOSE
    assert repeated.differences[0].startswith("weights ")


# ------------------------------------------------------------------------------------------------------------ what is wrong


DAMAGES = {
    "no manifest": (lambda m: None, "is not the folder of a run"),
    "not JSON": (lambda m: "{", "is not JSON"),
    "deep": (lambda m: "[" * 100_000, "is not JSON"),
    "a list": (lambda m: "[]", "is not a JSON object"),
    "foreign": (lambda m: json.dumps(m | {"format": "x"}), "is not the manifest of a run"),
    "later": (lambda m: json.dumps(m | {"version": 99}), "has version 99, and this package reads up to 1"),
    "status": (lambda m: json.dumps(m | {"status": "lost"}), "status 'lost'"),
    "elsewhere": (lambda m: json.dumps(m | {"video": "../../x.mp4"}), "without a folder"),
    "no video": (lambda m: json.dumps(m | {"video": None}), "has video None, expected"),
    "no ids": (lambda m: json.dumps(m | {"texts": {}}), "does not describe a run"),
    "other ids": (
        lambda m: json.dumps(m | {"texts": m["texts"] | {"ids": [1, 10**6]}}),
        "token ids that random-tiny",
    ),
    "shape": (lambda m: json.dumps(m | {"request": m["request"] | {"video_shape": [0, 1]}}), "video_shape"),
    "preset": (lambda m: json.dumps(m | {"solver": m["solver"] | {"preset": {"nome": 1}}}), "does not describe a run"),
    "sigmas": (lambda m: json.dumps(m | {"solver": m["solver"] | {"sigmas": ["a"]}}), "does not describe a run"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_manifest_is_one_error(tiny, tmp_path, damage, stopped_folder):
    make, words = DAMAGES[damage]
    folder = shutil.copytree(stopped_folder, tmp_path / "run")
    file = folder / "manifest.json"
    text = make(json.loads(file.read_text()))
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    with pytest.raises(ValueError, match=words):
        go_on(tiny, folder)
    assert names(tmp_path) == ["run"]


@pytest.fixture(scope="module")
def stopped_folder(tiny, tmp_path_factory):
    return run(tiny, **QUICK, out=tmp_path_factory.mktemp("stopped"), should_stop=stop_after(1)).bundle


@pytest.mark.parametrize("file", ["state.safetensors", "latents.safetensors"])
def test_damaged_tensors_are_one_error(tiny, tmp_path, finished, stopped_folder, file):
    folder = shutil.copytree(stopped_folder if file.startswith("state") else finished.bundle, tmp_path / "run")
    (folder / file).write_bytes((folder / file).read_bytes()[:-1])
    call = go_on if file.startswith("state") else lambda models, at: replay(at, models)
    with pytest.raises(ValueError, match=file):
        call(tiny, folder)


# ------------------------------------------------------------------------------------------------------------------- replay


def test_a_replay_is_bit_identical_in_either_placement(finished, tiny, tiny_folder):
    repeated = replay(finished.bundle, tiny, progress=False)
    assert (repeated.verdict, repeated.distances, repeated.differences) == ("identical", {"video": 0, "sound": 0}, ())
    assert repr(repeated) == "latents are bit-identical"
    with load_cosmos3(tiny_folder, device="cpu", placement="split") as split:
        repeated = replay(finished.bundle, split, progress=False)
    assert repr(repeated) == "latents are bit-identical; what differs: placement resident then, split now"
    assert names(finished.bundle) == WHOLE


def test_a_replay_measures_and_names_what_differs(finished, tiny, tiny_folder, tmp_path):
    with load_cosmos3(tiny_folder, device="cpu", dtype=torch.bfloat16) as rounded:
        repeated = replay(finished.bundle, rounded, progress=False)
    assert repeated.verdict in ("close", "different")
    assert 1e-4 < repeated.distances["video"] < 1
    assert repeated.differences == ("dtype float32 then, bfloat16 now",)
    folder = shutil.copytree(finished.bundle, tmp_path / "run")
    m = json.loads((folder / "manifest.json").read_text())
    m["machine"]["versions"]["torch"] = "2.0.1"
    m["hashes"]["noise"]["video"] = m["hashes"]["latents"]["video"] = "0"
    (folder / "manifest.json").write_text(json.dumps(m))
    said = repr(replay(folder, tiny, progress=False))
    assert f"torch 2.0.1 then, {torch.__version__} now" in said
    assert "latents.safetensors is not what the run wrote" in said
    assert "the noise" in said


def test_a_run_that_is_not_denoised_cannot_be_replayed(tiny, stopped_folder):
    with pytest.raises(ValueError, match="has no latents yet"):
        replay(stopped_folder, tiny)


def test_old_runs_stay_readable(tiny, tmp_path):
    """Written by version 1 of the format; never write it again."""
    folder = shutil.copytree(OLD, tmp_path / "old")
    m = Bundle(folder).read_manifest()
    assert (m["version"], m["status"], m["texts"]["prompt"]) == (1, "finished", "a red ball bounces")
    assert read_mp4(folder / m["video"]).frames.shape == (1, 32, 32, 3)
    repeated = replay(folder, tiny, progress=False)
    assert repeated.verdict in ("identical", "close")
    assert not any("not what the run wrote" in said for said in repeated.differences)
    assert decode_latents(tiny, read_latents(Bundle(folder)), fps=24.0).frames.shape == (1, 32, 32, 3)


# ------------------------------------------------------------------------------------------------------------ command line


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


SMALL = ["--num-frames", 1, "--height", 32, "--width", 32, "--steps", 2, "--negative-prompt", "blurry", "--device", "cpu"]


def test_the_command_goes_on_and_replays_with_the_runs_own_checkpoint(tiny, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.delenv("COSMOS3_CHECKPOINT", raising=False)
    stopped = run(tiny, **QUICK, out=tmp_path, should_stop=stop_after(1))
    refused = call("generate", "--resume", stopped.bundle, "--seed", 3)
    assert refused.exit_code == 2
    assert "got --seed with --resume" in refused.output
    went_on = call("generate", "--resume", stopped.bundle)
    assert went_on.exit_code == 0, went_on.output
    assert f"saved {stopped.bundle / 'video.mp4'}" in went_on.output
    again = call("replay", stopped.bundle)
    assert (again.exit_code, again.stdout.splitlines()[-1]) == (0, f"{stopped.bundle}: latents are bit-identical")
    other = write_random_checkpoint(tmp_path / "other", seed=1)
    different = call("replay", stopped.bundle, "--checkpoint", other)
    assert different.exit_code == 1
    assert "latents are different" in different.output
    missing = call("replay", tmp_path)
    assert missing.exit_code == 2
    assert "is not the folder of a run" in missing.output


def test_the_command_says_how_to_go_on(tiny_folder, tmp_path, monkeypatch):
    for error, code in ((KeyboardInterrupt(), 130), (Terminated(signal.SIGTERM), 143), (Terminated(signal.SIGHUP), 129)):
        with monkeypatch.context() as patched:
            crash_in(patched, "decode_latents", error)
            ended = call("generate", "a ball", "--checkpoint", tiny_folder, *SMALL, "--out", tmp_path / str(code), "--private")
        assert ended.exit_code == code
        line = ended.stderr.strip().splitlines()[-1]
        assert line.startswith("error: interrupted; the latents are saved in")
        assert line.endswith(f"go on with: cosmos3-lab generate --resume {tmp_path / str(code) / 'run_001'}")


def test_sigterm_is_an_exception_only_where_it_is_wanted():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated, match="SIGTERM"), terminable():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminable():
            signal.raise_signal(signal.SIGHUP)  # as under nohup
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def test_a_real_process_that_is_terminated_saves_and_says_how_to_go_on(tiny, tiny_folder, tmp_path):
    command = [sys.executable, "-m", "cosmos3_lab", "generate", "a ball", "--checkpoint", tiny_folder, *SMALL]
    command += ["--steps", 1000, "--save-every", 1, "--out", tmp_path]
    process = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begin = time.monotonic()
    while not (tmp_path / "run_001" / "state.safetensors").exists() and time.monotonic() - begin < 120:
        time.sleep(0.01)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    assert "1000 steps are saved in" in stderr.splitlines()[-1]
    assert names(tmp_path / "run_001") == ["manifest.json", "state.safetensors"]
    stopped = go_on(tiny, tmp_path / "run_001", should_stop=lambda record: True)
    assert 1 <= stopped.state.step_index < 1000


# ----------------------------------------------------------------------------------------------------------- out of memory


class Big:
    """Stands for memory on a GPU."""


NO_ROOM = [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]


@pytest.mark.parametrize("where", ["denoise", "decode_latents"])
@pytest.mark.parametrize("kind", range(2), ids=["cuda", "cpu"])
def test_after_running_out_of_memory_everything_is_let_go(tiny, tmp_path, monkeypatch, where, kind):
    held = []

    def fill(*args, **kwargs):
        big = Big()
        held.append(weakref.ref(big))
        held.append(weakref.ref(args[1].cond if where == "denoise" else args[1]))
        raise NO_ROOM[kind].with_traceback(None)

    with monkeypatch.context() as patched:
        patched.setattr(run_module, where, fill)
        with pytest.raises(
            OutOfMemoryError, match=r"out of memory on the CPU: 32x48x5 needs about [\d.]+ MiB by the plan"
        ) as caught:
            run(tiny, out=tmp_path)
    gc.collect()
    assert [ref() for ref in held] == [None, None], "the error that is still here keeps them"
    assert "saved in" in caught.value.__notes__[0]
    result = run(tiny)  # the next cell
    assert same(go_on(tiny, tmp_path / "run_001"), result)


def test_other_errors_are_not_called_out_of_memory(tiny, monkeypatch):
    crash_in(monkeypatch, "decode_latents", RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        run(tiny)


def nano_request(height=720, width=1280, frames=189):
    ids = torch.ones(1, 200, dtype=torch.int64)
    negative, shape = ids.repeat(1, 17), ((frames - 1) // 4 + 1, height // 16, width // 16)
    sound = {"sound_frames": 197, "sound_dim": 64, "sound_latent_fps": 25.0}
    return Cosmos3T2VRequest(ids, ids, negative, negative, shape, **sound)


@pytest.mark.parametrize(
    ("gib", "total", "placement", "words"),
    [
        (30, 80, "resident", ["GiB resident", "GiB split by", "there are 30.0 GiB", "50.0 GiB of 80.0 GiB", "placement='split'"]),
        (16, 16, "split", ["720x1280x189 with sound needs", "the largest that fits is", "GiB split)"]),
    ],
    ids=["split would fit", "smaller would fit"],
)
def test_the_message_has_the_plans_numbers_and_the_cheapest_change(gib, total, placement, words):
    said = out_of_memory_words(nano_configs(), nano_request(), PRESETS["native"], placement, gib * GIB, total * GIB)
    assert "\n" not in said
    for word in words:
        assert word in said


def test_the_message_admits_that_it_should_have_fit(tiny):
    request = prepare_request(tiny, PROMPT, **QUICK)
    said = out_of_memory_words(tiny.configs, request, PRESETS["native"], "resident", 8 * GIB, 8 * GIB)
    assert re.search(r"32x48x1 needs [\d.]+ MiB resident, [\d.]+ MiB split by the plan.*; that should fit resident", said)


@pytest.mark.parametrize(
    ("scale", "preset", "needed"),
    [
        (1, None, False),
        (2, None, True),
        (0.5, None, True),
        (0.5, "phyai", False),  # the run's preset and not that of the request
        ([1, 1], None, False),
        ([1, 2], None, True),
        (lambda step, sigma: 1.0, None, False),
        (GuidanceInterval(6.0, 0.0, 1e-6), None, False),
        (Guidance([6, 1], zero_steps=1), None, False),
        (Guidance(1, sound_scale=3), None, False),  # there is no sound
    ],
    ids=repr,
)
def test_the_message_counts_the_prompts_that_the_run_encodes(tiny, monkeypatch, scale, preset, needed):
    request = prepare_request(tiny, PROMPT, guidance_scale=scale, **QUICK)
    assert (run_request(tiny, request, preset=preset, progress=False).inputs.uncond is not None) == needed
    counted = []
    monkeypatch.setattr(
        "cosmos3_lab.out_of_memory.plan_run", lambda *a, **k: counted.append(k["text_tokens"]) or plan_run(*a, **k)
    )
    crash_in(monkeypatch, "denoise", NO_ROOM[0])
    with pytest.raises(OutOfMemoryError):
        run_request(tiny, request, preset=preset, progress=False)
    texts = (request.text_ids, request.neg_text_ids) if needed else (request.text_ids,)
    assert counted == [tuple(ids.shape[1] for ids in texts)]


@pytest.mark.cuda
def test_memory_of_a_gpu_is_free_after_running_out_of_it(tiny_folder):
    with load_cosmos3(tiny_folder, device="cuda") as models:
        run(models)
        before = torch.cuda.memory_allocated()
        torch.cuda.empty_cache()
        room = torch.cuda.memory_reserved() + 2**26
        torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(0).total_memory)
        try:
            with pytest.raises(MemoryError, match="out of GPU memory: 1024x1024x33"):
                run(models, height=1024, width=1024, num_frames=33)
            assert torch.cuda.memory_allocated() == before
            assert run(models).output.frames.shape == (5, 32, 48, 3)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)


def places(value, path=()):
    """Every place in nested JSON, from the top down."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def test_mutated_manifests_are_one_error_or_none(tiny, tmp_path, stopped_folder):
    """Nothing is written outside of the folder, and nothing but ValueError comes out (or what checks types under pytest)."""
    folder = shutil.copytree(stopped_folder, tmp_path / "run")
    whole, dice, ended = json.loads((folder / "manifest.json").read_text()), random.Random(0), Counter()
    everywhere = [path for path in places(whole) if "ids" not in path[:2] and "negative_ids" not in path[:2]]
    for _ in range(MUTATIONS):
        m, (*path, last) = json.loads(json.dumps(whole)), dice.choice(everywhere)
        at = m
        for key in path:
            at = at[key]
        at[last] = dice.choice([None, -1, 7, 0.5, "x", "../x.mp4", [], {}, [[1]], True])
        shutil.rmtree(folder)
        shutil.copytree(stopped_folder, folder)
        (folder / "manifest.json").write_text(json.dumps(m))
        try:
            go_on(tiny, folder, should_stop=lambda record: True)
            ended["went on"] += 1
        except ValueError:
            ended["refused"] += 1
        except TypeCheckError:
            ended["refused by the type checks"] += 1
        assert names(tmp_path) == ["run"]
    print(f"\n{MUTATIONS} mutated manifests: {dict(ended)}")
    assert min(ended["went on"], ended["refused"]) > 0
