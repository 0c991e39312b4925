"""Processes that are killed, disks that are full, runs that are long or odd: nothing wrong under a final name, nothing lost.

The numbers are small here; `COSMOS3_KILLS=60 COSMOS3_GENERATIONS=100 python -m pytest -s tests/test_crashes.py` does more and
says what it did. Children are forked, because a process that imports PyTorch first takes seconds.
"""

import gc
import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image

from cosmos3_lab import generate, load_state, prepare_denoise, prepare_request, read_mp4
from cosmos3_lab.bundle import Bundle

KILLS = int(os.environ.get("COSMOS3_KILLS", "6"))
GENERATIONS = int(os.environ.get("COSMOS3_GENERATIONS", "15"))
ASK = {
    "prompt": "a red ball",
    "negative_prompt": "blurry",
    "num_frames": 9,
    "height": 64,
    "width": 64,
    "fps": 16.0,
    "with_sound": True,
}
STEPS = 24
SOON = 120.0  # seconds that no child should take


def run(models, **changes):
    return generate(models, **{"progress": False, "num_inference_steps": STEPS, **ASK, **changes})


def same(a, b):
    return torch.equal(a.video, b.video) and torch.equal(a.sound, b.sound)


def child(work):
    """The id of a new process that does `work` and ends: with 0, or with 1 and a traceback."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def generate_or_go_on(models, out, said):
    """A run in `out`, one step after the other on disk; `said` is the last step that is known to be done."""

    def tell(record):
        said.write_text(str(record.index + 1))

    how = {"should_stop": lambda record: tell(record) or False, "save_every": 1}
    begun = (out / "run_001").exists()
    if begun:
        generate(models, resume=out / "run_001", progress=False, **how)
    else:
        run(models, out=out, **how)


def check_folder(models, folder, expected):
    """Every file under a final name is whole; the number of steps that are saved, and the stage."""
    bundle = Bundle(folder)
    manifest = bundle.read_manifest()
    inputs, _ = prepare_denoise(models, prepare_request(models, num_inference_steps=STEPS, **ASK))
    saved = load_state(bundle.state, inputs).step_index if bundle.state.exists() else 0
    if bundle.latents.exists():
        assert same(load_state(bundle.latents, inputs).latents, expected.latents)
        saved = STEPS
    else:
        assert manifest["status"] == "denoising"
    if (folder / "video.mp4").exists():
        assert read_mp4(folder / "video.mp4").frames.shape == expected.output.frames.shape
    if bundle.contact_sheet.exists():
        with Image.open(bundle.contact_sheet) as sheet:
            sheet.load()
    if manifest["status"] == "finished":
        assert manifest["hashes"] == expected.hashes
        assert {path.name for path in folder.iterdir()} == {
            "contact_sheet.png",
            "latents.safetensors",
            "manifest.json",
            "video.mp4",
        }
    return saved, manifest["status"]


@pytest.fixture(scope="module")
def expected(tiny, tmp_path_factory):
    """A run that nothing disturbed, and how long it took."""
    run(tiny)  # the first one loads what the others use
    begin = time.monotonic()
    result = run(tiny, out=tmp_path_factory.mktemp("expected"), save_every=1)
    hashes = json.loads((result.bundle / "manifest.json").read_text())["hashes"]
    object.__setattr__(result, "hashes", hashes)
    object.__setattr__(result, "seconds", time.monotonic() - begin)
    return result


# ------------------------------------------------------------------------------------------------------------------ killed


def test_killed_at_random_moments_nothing_saved_is_lost_and_nothing_is_wrong(tiny, expected, tmp_path):
    """SIGKILL: no handler runs. Every run is killed until it is whole; then it is the undisturbed run, bit for bit."""
    dice, stages, lost, finished, number = random.Random(0), Counter(), 0, 0, 0
    while sum(stages.values()) < KILLS:
        out = tmp_path / f"{number}"
        out.mkdir()
        number += 1
        for _ in range(1000):
            said = out / "said"
            said.unlink(missing_ok=True)
            pid = child(lambda out=out, said=said: generate_or_go_on(tiny, out, said))
            time.sleep(dice.uniform(0, 0.9 * expected.seconds))
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended:
                os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
            killed = os.WIFSIGNALED(status)
            assert killed or os.WEXITSTATUS(status) == 0, "an error that is not the kill"
            folder = out / "run_001"
            saved, stage = check_folder(tiny, folder, expected) if folder.exists() else (0, "not begun")
            done = int(said.read_text() or 0) if said.exists() else 0
            lost += max(0, done - saved)
            stages[stage] += killed
            if stage == "finished":
                finished += 1
                break
    print(f"\n{sum(stages.values())} kills ({dict(stages)}), {finished} runs whole after them, steps lost: {lost}")
    assert lost == 0
    assert finished == number


# --------------------------------------------------------------------------------------------------------------- full disk


def files_of(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_files_that_may_not_grow_leave_nothing_wrong(tiny, expected, tmp_path):
    """The operating system ends every write beyond a limit, in a real process; without it the run goes on to the same bits."""
    resource = pytest.importorskip("resource")
    stages = Counter()
    manifest = (expected.bundle / "manifest.json").stat().st_size
    for limit in (0, manifest // 2, manifest + 300, manifest + 1000, 16_000, 50_000):
        out = tmp_path / str(limit)

        def limited(out=out, limit=limit):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                run(tiny, out=out, save_every=3)
            except OSError as error:
                os._exit(0 if "could not write" in str(error) or "cannot write" in str(error) else 3)

        _, status = os.waitpid(child(limited), 0)
        assert os.WEXITSTATUS(status) == 0
        assert not [name for name in files_of(out) if ".part" in name]
        folder = out / "run_001"
        stages[check_folder(tiny, folder, expected)[1] if folder.exists() else "not begun"] += 1
        if folder.exists() and Bundle(folder).read_manifest()["status"] != "finished":
            result = generate(tiny, resume=folder, progress=False)
            assert same(result.latents, expected.latents)
            assert (result.output.frames == expected.output.frames).all()
            assert check_folder(tiny, folder, expected) == (STEPS, "finished")
    assert len(stages) >= 3, stages  # limits that end it in different stages


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a given size, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(size):
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("no mount here")
        if done.returncode:
            pytest.skip("this user may not mount a small file system")
        mounted.append(folder)
        return folder

    yield mount
    for one in mounted:
        subprocess.run(["umount", str(one)], check=True)


@pytest.mark.parametrize("kilobytes", [4, 12, 24, 44, 64])
def test_a_full_disk_leaves_nothing_wrong(tiny, expected, small_disk, kilobytes):
    disk = small_disk("1m")
    filler = disk / "filler"
    filler.write_bytes(bytes((1024 - kilobytes) * 1024))
    try:
        result = run(tiny, out=disk, save_every=3)
    except OSError as error:
        result = None
        assert "No space left on device" in str(error)  # noqa: PT017  (where it fits there is no error)
    assert not [name for name in files_of(disk) if ".part" in name]
    filler.unlink()  # somebody makes room
    folder = disk / "run_001"
    if folder.exists():
        saved, stage = check_folder(tiny, folder, expected)
        print(f"\n{kilobytes} KiB free: {stage}, {saved} steps kept")
        if result is None:
            result = generate(tiny, resume=folder, progress=False)
        assert same(result.latents, expected.latents)
        assert check_folder(tiny, folder, expected) == (STEPS, "finished")


# ------------------------------------------------------------------------------------------------------------ long and odd


ODD = {
    "an image": ({"num_frames": 1}, (1, 32, 32)),
    "five frames": ({"num_frames": 5}, (5, 32, 32)),
    "400 frames": ({"num_frames": 400, "num_inference_steps": 1}, (397, 32, 32)),
    "portrait": ({"height": 128, "width": 16}, (1, 128, 16)),
    "landscape": ({"height": 16, "width": 208}, (1, 16, 208)),
    "one frame a second": ({"num_frames": 5, "fps": 1.0}, (5, 32, 32)),
    "60 frames a second": ({"num_frames": 5, "fps": 60.0}, (5, 32, 32)),
    "guidance 0": ({"guidance_scale": 0.0}, (1, 32, 32)),
    "guidance 20": ({"guidance_scale": 20.0}, (1, 32, 32)),
    "one step": ({"num_inference_steps": 1}, (1, 32, 32)),
    "500 steps": ({"num_inference_steps": 500, "guidance_scale": 1.0, "with_sound": False}, (1, 32, 32)),
    "a long prompt": ({"prompt": "ball " * 600, "num_inference_steps": 1}, (1, 32, 32)),
}


@pytest.mark.parametrize("name", ODD)
def test_long_and_odd_runs_give_a_clip_and_go_on(tiny, tmp_path, name):
    changes, shape = ODD[name]
    ask = {"num_frames": 1, "height": 32, "width": 32, "num_inference_steps": 2, **changes}
    result = run(tiny, out=tmp_path, **ask)
    frames = shape[0]
    assert result.output.frames.shape == (*shape, 3)
    assert read_mp4(result.path).frames.shape == (*shape, 3)
    if result.output.waveform is not None:
        assert result.output.waveform.shape[1] >= 48000 * frames / result.output.fps - 1
    assert Bundle(result.bundle).read_manifest()["status"] == "finished"


def test_a_prompt_of_30000_characters_becomes_tokens(tiny):
    request = prepare_request(tiny, "a red ball bounces " * 1579, num_frames=1)
    assert request.text_ids.shape[1] > 3000
    assert request.text_ids.max() < tiny.config.vocab_size


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"height": 100}, "try 96 or 112"), ({"width": 1281}, "try 1280 or 1296"), ({"prompt": " "}, "empty prompt")],
    ids=str,
)
def test_what_cannot_be_is_refused_with_what_can(tiny, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        run(tiny, out=tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_one_generation_after_the_other_takes_no_more_memory(tiny, tmp_path):
    def one(seed):
        run(tiny, out=tmp_path, num_inference_steps=1, num_frames=5, seed=seed, keep="full")

    def tensors():
        gc.collect()
        return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())

    warm = min(10, GENERATIONS // 3)
    for seed in range(warm):
        one(seed)
    before, begin, opened = tensors(), resident_bytes(), len(list(Path("/proc/self/fd").iterdir()))
    for seed in range(warm, GENERATIONS):
        one(seed)
    grown = resident_bytes() - begin
    print(f"\n{GENERATIONS} generations: {grown / 2**20:.1f} MiB more after the first {warm}")
    assert tensors() == before
    assert len(list(Path("/proc/self/fd").iterdir())) == opened
    assert grown < 16 * 2**20
