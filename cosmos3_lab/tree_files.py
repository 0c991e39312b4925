"""A tree of runs in a folder, which another kernel opens and goes on with, bit for bit.

    save_tree(tree, "outputs/tree")
    tree = load_tree("outputs/tree", models)      # tomorrow, same checkpoint
    tree = resume(models, tree, "green")

The folder holds `tree.json` (branches, settings, numbers of the steps), `branches/` (token ids, sigmas and such) and `states/`,
one file of `save_state` for each kept state. Files are named after what is in them, so one that is there never changes, and
`tree.json` is written last: a crash in between leaves the tree as it was saved before. Text K/V are not written; the prompts are
encoded again, once each.

Read next: `explore_figures.py`.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos3_lab.branch import load_state, save_state
from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import DenoiseInputs, DenoiseState, Encode, StepRecord
from cosmos3_lab.files import check_writable, replacing
from cosmos3_lab.guidance_scale import Guidance
from cosmos3_lab.latents import Latents
from cosmos3_lab.out_of_memory import freeing_memory
from cosmos3_lab.plain import from_plain, read_json, to_plain
from cosmos3_lab.presets import Preset
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.reuse import encode_once
from cosmos3_lab.schedule import Schedule
from cosmos3_lab.tree import Branch, RunTree, move_state

FORMAT, VERSION = "cosmos3_lab.tree", 1
FILE = "tree.json"
RECORDS = (Cosmos3T2VRequest, Guidance, Latents, Preset, Schedule, StepRecord)
ENCODED = ("cond", "uncond")  # fields of DenoiseInputs that are made again


def save_tree(tree: RunTree, folder: str | Path) -> Path:
    """Write a tree; states that are there already are not written again.

    Args:
        tree: to write.
        folder: made where it is missing. A tree that was there is replaced, and its files that nobody needs any more are removed.

    Returns:
        `folder`.

    Raises:
        ValueError: a setting cannot be written, such as a function.
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    check_writable(folder)
    branches = [_write_branch(branch, folder) for branch in tree.branches]
    values = {"format": FORMAT, "version": VERSION, "checkpoint": tree.branches[0].inputs.checkpoint, "branches": branches}
    with replacing(folder / FILE) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    needed = {branch["settings"] for branch in branches} | {name for branch in branches for name in branch["states"]}
    for old in [*folder.glob("branches/*.safetensors"), *folder.glob("states/*.safetensors")]:
        if old.relative_to(folder).as_posix() not in needed:
            old.unlink()
    return folder


def _write_branch(branch: Branch, folder: Path) -> dict[str, Any]:
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    settings = {f.name: getattr(branch.inputs, f.name) for f in fields(branch.inputs) if f.name not in ENCODED}
    plain = to_plain(settings, tensors, at="inputs")
    data = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})
    file = folder / "branches" / f"{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    if not file.exists():
        with replacing(file) as temporary:
            temporary.write_bytes(data)
    states = []
    for state in branch.states:
        path = folder / "states" / f"step_{state.step_index:03}_{_digest(json.dumps(plain), state)}.safetensors"
        if not path.exists():
            save_state(path, branch.inputs, state)
        states.append(path.relative_to(folder).as_posix())
    return {
        "name": branch.name,
        "parent": branch.parent,
        "note": branch.note,
        "inputs": plain,
        "negative": branch.inputs.uncond is not None,
        "records": [to_plain(record.keep("summary"), {}) for record in branch.records],
        "settings": file.relative_to(folder).as_posix(),
        "states": states,
    }


def load_tree(folder: str | Path, models: Cosmos3Models) -> RunTree:
    """Read a tree that `save_tree` wrote, ready to be looked at, resumed and forked.

    Args:
        folder: of the tree.
        models: of the same checkpoint.

    Raises:
        ValueError: it is no such folder, a file of it is missing or damaged, or it belongs to another checkpoint.
        MemoryError: encoding the prompts did not fit; says what a run of the root needs and what would fit.
    """
    folder = Path(folder)
    values = read_json(folder / FILE, format=FORMAT, version=VERSION)
    if values.get("checkpoint") != models.fingerprint:
        raise ValueError(f"{folder} holds runs of another checkpoint; load the one that made them, or choose another folder")

    def read() -> tuple[Branch, ...]:  # its tensors are not in the frame that an error goes out through
        encode, branches = encode_once(), []
        for plain in values["branches"]:
            branches.append(_read_branch(plain, folder, models, encode))
        return tuple(branches)

    try:
        if not values["branches"]:
            raise ValueError(f"{folder / FILE} is damaged: it holds no branches")
        root = _read_settings(values["branches"][0], folder)
        with freeing_memory(models, root["request"], root["preset"]):
            branches = read()
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / FILE} is damaged: {type(error).__name__} {error}") from error
    _check_family(branches, folder)
    return RunTree(branches)


def _read_branch(plain: dict[str, Any], folder: Path, models: Cosmos3Models, encode: Encode) -> Branch:
    settings = _read_settings(plain, folder)
    cond, uncond = encode(models, settings["request"], settings["preset"])
    inputs = DenoiseInputs(**settings, cond=cond, uncond=uncond if plain["negative"] else None)
    records = tuple(from_plain(record, {}, records=RECORDS) for record in plain["records"])
    states = tuple(move_state(load_state(_inside(folder, name), inputs), "cpu") for name in plain["states"])
    return Branch(plain["name"], plain["parent"], plain["note"], inputs, states, records)


def _read_settings(plain: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fields of `DenoiseInputs`, but those that are encoded."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = _inside(folder, plain["settings"])
    try:
        tensors = load(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is missing or damaged: {error}") from error
    return from_plain(plain["inputs"], tensors, records=RECORDS)


def _inside(folder: Path, name: object) -> Path:
    if not isinstance(name, str) or not re.fullmatch(r"(branches|states)/\w+\.safetensors", name):
        raise ValueError(f"{folder / FILE} is damaged: it names the file {name!r}")
    return folder / name


def _check_family(branches: Sequence[Branch], folder: Path) -> None:
    """One root, parents before children, steps that rise, no name twice."""
    seen: set[str] = set()
    for branch in branches:
        orphan = branch.parent not in seen if seen else branch.parent is not None
        rising = list(branch.kept) == sorted(set(branch.kept)) and branch.states
        if orphan or branch.name in seen or not rising:
            raise ValueError(f"{folder / FILE} is damaged: branch {branch.name!r} does not fit into the tree")
        seen.add(branch.name)


def _digest(settings: str, state: DenoiseState) -> str:
    digest = hashlib.sha256(settings.encode())
    for solver in (state.video, state.sound):
        for tensor in () if solver is None else (solver.sample, solver.last_sample, *solver.x0_history):
            data = b"none" if tensor is None else tensor.contiguous().view(torch.uint8).numpy().tobytes()
            digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]
