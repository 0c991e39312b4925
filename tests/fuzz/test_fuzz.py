"""Damaged checkpoints by the hundred: each is refused in one clear line, or gives what the good one gives; nothing else happens.

    COSMOS3_FUZZ_CASES=5000 COSMOS3_FUZZ_FIRST=0 python -m pytest tests/fuzz      more cases, other seeds

Where the damage is a change that no reader can know from a wish (another `rope_theta`, another prompt, a bit of a weight),
another result is right too; `may_differ` lists those. `python tests/fuzz/worker.py FOLDER SEED 1` repeats one case.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

CASES = int(os.environ.get("COSMOS3_FUZZ_CASES", "400"))
FIRST = int(os.environ.get("COSMOS3_FUZZ_FIRST", "0"))
HERE = Path(__file__).parent

# Settings of which every value in range is another model, or another default.
FREE = {
    "transformer/config.json": {
        "rope_theta",
        "rms_norm_eps",
        "timestep_scale",
        "base_fps",
        "enable_fps_modulation",
        "mrope_section",
    }
    | {"unified_3d_mrope_temporal_modality_margin", "rope_scaling", "rope_axes_dim"},
    "vae/config.json": {"latents_mean", "latents_std"},
    "scheduler/scheduler_config.json": {"use_karras_sigmas", "sigma_min", "sigma_max", "flow_shift"},
    "cosmos3_lab.json": {
        "defaults",
        "num_frames",
        "height",
        "width",
        "fps",
        "num_inference_steps",
        "example_prompts",
        "name",
        "",
    },
}
WHOLLY_FREE = ("assets/negative_prompt.json", "assets/latent_preview.json")  # any text, any numbers
TOKENIZER = "text_tokenizer/"  # another vocabulary, other merges, another template around the prompt
OPTIONAL = ("cosmos3_lab.json", "scheduler/scheduler_config.json", *WHOLLY_FREE)


def may_differ(case):
    """Whether what was done to the files may also be meant."""
    kind, files = case["kind"], case["files"]
    if kind in ("data bits", "header swap"):  # two tensors of one shape
        return True
    if kind.startswith("place: ") and files[0] in OPTIONAL:
        return kind.split(": ")[1] in ("gone", "renamed", "other case")
    if kind == "swap":
        return bool(set(files) & set(WHOLLY_FREE))
    if files[0].startswith((TOKENIZER, *WHOLLY_FREE)):
        return True
    if kind == "JSON value":
        return case["key"] in FREE.get(files[0], ())
    return kind == "text bytes" and files[0] in FREE  # a digit of one of them


def is_clear(case):
    """One printable line that is not too long and names what was damaged, or the component that it is in."""
    message = case["message"]
    names = {part for file in case["files"] for part in file.split("/") if part}
    place = message.replace(str(HERE), "")
    return message.isprintable() and 20 < len(message) < 900 and any(name in place for name in names)


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """What came of each case, from a process of its own."""
    room, environment = tmp_path_factory.mktemp("fuzz"), {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(HERE / "worker.py"), str(room), str(FIRST), str(CASES)]
    limit = 120 + CASES  # seconds; a case takes a twentieth of one
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env=environment, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]  # libraries print too
    assert done.returncode == 0, (
        f"the process died in case {lines[-1]['seed'] + 1 if len(lines) > 1 else FIRST}: {done.stderr[-2000:]}"
    )
    assert len(lines) == CASES + 1
    return lines[1:]


def test_every_case_is_refused_or_gives_the_same(cases):
    wrong = [
        c
        for c in cases
        if c["outcome"] not in ("refused", "same") and not (c["outcome"] in ("other", "stopped") and may_differ(c))
    ]
    assert not wrong, json.dumps(wrong[0], indent=1)


def test_every_refusal_names_what_is_damaged(cases):
    unclear = [c for c in cases if c["outcome"] == "refused" and not is_clear(c)]
    assert not unclear, json.dumps(unclear[0], indent=1)


def test_nothing_else_happens(cases):
    """No file is written or read outside, nothing is imported, unpickled or started, no socket is opened."""
    assert [c for c in cases if c["watched"]] == []


def test_no_case_takes_long_or_much(cases):
    assert max(c["seconds"] for c in cases) < 5
    assert max(c["gib"] for c in cases) < 1.0


def test_numbers_that_are_none_never_pass(cases):
    """They are refused, or stand in a tensor that no run reads."""
    assert {c["outcome"] for c in cases if c["kind"] == "not finite"} <= {"refused", "same"}


def test_the_cases_are_many_and_reach_far(cases):
    outcomes = Counter(c["outcome"] for c in cases)
    assert outcomes["refused"] > CASES / 2
    assert outcomes["same"] > CASES / 20
    assert len({c["kind"] for c in cases}) > min(20, CASES // 10)
    assert len({file for c in cases for file in c["files"]}) > min(15, CASES // 10)
