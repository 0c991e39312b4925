"""Compare settings side by side: rows x columns x seeds, each cell a finished clip on disk.

    grid = fill_grid(
        models, "a red circle bounces on a blue background; low thuds", folder="outputs/grid",
        rows={"guidance_scale": [1, 3]}, columns={"flow_shift": [1, 5]}, seeds=[1, 2],
    )
    grid["guidance_scale 3", "flow_shift 5", 1].clip()

Cells of one seed start from the same noise, and each prompt is encoded once. A cell is written when it is done: latents, clip,
and last `cell.json`, which makes it count. Calling `fill_grid` again with the same folder makes only what is missing, so a crash
costs one cell. Cells are found by their settings and not by their place, so rows and columns can be added later.

Read next: `grid_sheet.py` (all cells in one mp4 or picture).
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.configs import shown, whole_number
from cosmos3_lab.decode import decode_latents
from cosmos3_lab.denoise import Encode, denoise, prepare_denoise, resolve_run
from cosmos3_lab.files import check_writable, replacing
from cosmos3_lab.guidance_scale import resolve_guidance
from cosmos3_lab.latents import LARGEST_SEED, Latents
from cosmos3_lab.manifest import plain
from cosmos3_lab.media import Cosmos3GenerationOutput, read_mp4
from cosmos3_lab.out_of_memory import freeing_memory
from cosmos3_lab.plain import in_words, read_json, to_plain
from cosmos3_lab.prepare import prepare_request
from cosmos3_lab.presets import Preset
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.reuse import encode_once
from cosmos3_lab.schedule import Schedule

GRID_FORMAT, CELL_FORMAT, VERSION = "cosmos3_lab.compare_grid", "cosmos3_lab.grid_cell", 1
GRID_FILE, CELL_FILE, CLIP, LATENTS, CELLS = "grid.json", "cell.json", "clip.mp4", "latents.safetensors", "cells"
RESERVED = {"models", "checkpoint", "request", "encode", "noise", "seed"}  # arguments that are not settings of a cell
SIZE = ("num_frames", "height", "width", "fps")  # the same for all cells, or they could not be played in step
Place = tuple[str, str, int]  # row, column, seed
Value = float | int | bool | str
Axis = Mapping[str, Iterable[Any]] | Mapping[str, Mapping[str, Any]]
Score = Callable[[Cosmos3GenerationOutput], Mapping[str, Value]]


@dataclass(frozen=True)
class GridCell:
    """One finished cell.

    Attributes:
        row, column, seed: where it stands.
        settings: all that was given for it, as plain values.
        scores: what `score` said of the clip, by name; empty where none was asked for.
        seconds: that denoising and decoding took.
        folder: with `clip.mp4`, `latents.safetensors` and `cell.json`.
    """

    row: str
    column: str
    seed: int
    settings: Mapping[str, Any]
    scores: Mapping[str, Value]
    seconds: float
    folder: Path

    def clip(self) -> Cosmos3GenerationOutput:
        """Frames and sound, read from the mp4."""
        return read_mp4(self.folder / CLIP)

    def latents(self) -> Latents:
        """The clean latents, on the CPU."""
        from safetensors.torch import load_file

        tensors = load_file(self.folder / LATENTS)
        return Latents(tensors["video"], tensors.get("sound"))


@dataclass(frozen=True, eq=False)
class CompareGrid:
    """Finished cells and the places of all.

    Attributes:
        rows, columns: labels.
        seeds: of the noise.
        cells: those that are done, row by row; each row holds all columns, each column all seeds.
        folder: on disk.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[GridCell, ...]
    folder: Path

    @property
    def places(self) -> tuple[tuple[str, str, int], ...]:
        """`(row, column, seed)` of every cell, whether done or not."""
        return tuple(product(self.rows, self.columns, self.seeds))

    @property
    def finished(self) -> bool:
        """Whether all cells are done."""
        return len(self.cells) == len(self.places)

    def __getitem__(self, place: tuple[str, str, int]) -> GridCell:
        found = {(cell.row, cell.column, cell.seed): cell for cell in self.cells}
        if place not in found:
            state = "which is not done yet" if place in self.places else "which is no place of this grid"
            raise ValueError(f"got {place}, {state}, expected one of {', '.join(map(str, found)) or 'none yet'}")
        return found[place]

    def __repr__(self) -> str:
        size = f"{len(self.rows)} rows x {len(self.columns)} columns x {len(self.seeds)} seeds"
        return f"CompareGrid({size}, {len(self.cells)} of {len(self.places)} cells done, {self.folder})"


def fill_grid(
    models: Cosmos3Models,
    prompt: str,
    *,
    folder: str | Path,
    rows: Axis,
    columns: Axis | None = None,
    seeds: Iterable[Any] = (42,),
    score: Score | None = None,
    progress: bool = True,
    **settings: Any,  # noqa: ANN401  (of prepare_request and prepare_denoise)
) -> CompareGrid:
    """Make every cell that the folder does not have yet.

    Args:
        models: from `load_cosmos3`.
        prompt: of all cells, unless an axis changes it.
        folder: for the cells; made where it is missing.
        rows: one setting and its values, `{"guidance_scale": [1, 3]}` or `np.linspace(1, 3, 5)` in their place, or labels with
            several settings each, `{"PhyAI's": {"preset": "phyai"}, "ours": {}}`.
        columns: in the same way; None for one column.
        seeds: whole numbers; each makes a cell for every row and column, from the same noise.
        score: called with each finished clip; what it returns is kept with the cell.
        progress: whether to show a tqdm bar.
        settings: of all cells: arguments of `prepare_request` and `prepare_denoise`.

    Raises:
        ValueError: an unknown setting, one given twice, axes that change the size of the clips, or values that cannot work.
        OSError: a file cannot be written.
        MemoryError: a cell did not fit; says what was needed and what would fit. Finished cells are kept.
    """
    folder = Path(folder)
    axes, common = (_labelled(rows), _labelled({"": {}} if columns is None else columns)), {"prompt": prompt} | settings
    asked, seeds = seeds, [whole_number("seed", seed, 0, LARGEST_SEED) for seed in _values(seeds)]
    if len(seeds) == 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"got seeds {shown(asked)}, expected a list of at least one, and none twice")
    wanted = {
        (row, column, seed): _merged(common, first, second)
        for (row, first), (column, second), seed in product(axes[0].items(), axes[1].items(), seeds)
    }
    plans = {
        place: _plan(models, given, place[2]) for place, given in wanted.items()
    }  # refuses what cannot work before anything is made
    check_writable(folder)
    _write_grid(folder, axes, seeds, {place: plan.key for place, plan in plans.items()})
    encode = encode_once()
    try:
        for place, plan in tqdm(plans.items(), desc="cells", unit="cell", disable=not progress):
            cell = _read_cell(folder, place, plan.key)
            with freeing_memory(models, plan.request, plan.preset):
                if cell is None:
                    _make_cell(models, plan, folder / CELLS / plan.key, encode, score)
                elif score is not None and not cell.scores:
                    _write_cell(cell.folder, cell.settings, _scored(score, cell.clip()), cell.seconds)
    finally:
        del encode  # it holds the texts' K/V, and an error would keep it alive with this frame
    return open_grid(folder)


def open_grid(folder: str | Path) -> CompareGrid:
    """A grid and its finished cells, read from disk; needs neither models nor GPU.

    Args:
        folder: given to `fill_grid`.

    Raises:
        ValueError: it is no such folder, or a file in it is damaged.
    """
    folder = Path(folder)
    values = read_json(folder / GRID_FILE, format=GRID_FORMAT, version=VERSION)
    try:
        rows, columns, seeds = axes = [tuple(values[name]) for name in ("rows", "columns", "seeds")]
        if math.prod(map(len, axes)) != len(values["cells"]):  # first: a small file can ask for a product that fills the memory
            raise ValueError(f"it has {len(values['cells'])} cells, expected one for each row, column and seed")
        places = {(cell["row"], cell["column"], cell["seed"]): cell["key"] for cell in values["cells"]}
        if list(places) != list(product(rows, columns, seeds)) or not all(re.fullmatch(r"[0-9a-f]+", k) for k in places.values()):
            raise ValueError("its cells do not fit its rows, columns and seeds")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / GRID_FILE} is damaged: {error}") from error
    cells = [_read_cell(folder, place, key) for place, key in places.items()]
    return CompareGrid(rows, columns, seeds, tuple(cell for cell in cells if cell is not None), folder)


# ---------------------------------------------------------------------------------------------------------- settings


@dataclass(frozen=True, eq=False)
class _Plan:
    """A cell to be: what `resolve_run` made of its settings, all of them as plain values, and its name on disk."""

    request: Cosmos3T2VRequest
    schedule: Schedule
    preset: Preset
    settings: Any
    key: str


def _labelled(axis: Axis) -> dict[str, Mapping[str, Any]]:
    """Label to settings."""
    if not isinstance(axis, Mapping):
        raise ValueError(
            f"got {shown(axis)} as an axis, expected a setting with its values, such as {{'guidance_scale': [1, 3]}}"
        )
    if axis and all(isinstance(changes, Mapping) for changes in axis.values()):
        found = dict(axis)
    elif len(axis) == 1 and (values := _values(*axis.values())):
        (name,) = axis
        twice = [value for i, value in enumerate(values) if value in values[:i]]
        if twice:
            raise ValueError(f"got the value {in_words(twice[0])} of {name} twice, expected no two that are equal")
        found = {}
        for value in values:
            label = f"{name} {in_words(value)}"
            same = sum(label == other or other.startswith(f"{label} #") for other in found)
            found[f"{label} #{same + 1}" if same else label] = {name: value}
    else:
        raise ValueError(
            f"got {shown(dict(axis))}, expected one setting with its values, such as {{'guidance_scale': [1, 3]}}, or labels "
            "with the settings of each"
        )
    names = {name for changes in found.values() for name in changes}
    if names & set(SIZE):
        sizes = ", ".join(sorted(names & set(SIZE)))
        raise ValueError(f"got {sizes} on an axis, expected clips of one size, which can be played in step")
    return found


def _values(values: Any) -> list[Any]:  # noqa: ANN401
    """Those of an axis; none where it is no series: a number, or a text, whose letters nobody means."""
    alone = isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0
    return [] if alone else [_python(value) for value in values]


def _merged(common: Mapping[str, Any], first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    twice = sorted(set(first) & set(second))
    if twice:
        raise ValueError(f"got {', '.join(twice)} in rows and in columns, expected each setting on one axis only")
    return {name: _python(value) for name, value in {**common, **first, **second}.items()}


def _python(value: Any) -> Any:  # noqa: ANN401
    """Numbers of NumPy and PyTorch become Python's, arrays lists of them."""
    if isinstance(value, list | tuple):
        return [_python(item) for item in value]
    return value.tolist() if isinstance(value, np.generic | np.ndarray | Tensor) else value


def _plan(models: Cosmos3Models, given: dict[str, Any], seed: int) -> _Plan:
    names = [set(signature(f).parameters) - RESERVED for f in (prepare_request, prepare_denoise)]
    unknown = sorted(set(given) - names[0] - names[1])
    if unknown:
        raise ValueError(f"got {', '.join(unknown)}, expected settings among {', '.join(sorted(names[0] | names[1]))}")
    if isinstance(given.get("schedule"), Schedule):
        given = {"num_inference_steps": given["schedule"].num_steps} | given
    request = prepare_request(models, **{name: value for name, value in given.items() if name in names[0]}, seed=seed)
    options = {name: value for name, value in given.items() if name in names[1]}
    request, schedule, preset = resolve_run(models.configs, request, **options)
    return _Plan(request, schedule, preset, plain(given | {"seed": seed}), _key(models, request, schedule, preset))


def _key(models: Cosmos3Models, request: Cosmos3T2VRequest, schedule: Schedule, preset: Preset) -> str:
    """Hash of all that a cell comes from as it takes effect: however it was asked for, what is the same has the same name."""
    sigmas, with_sound = schedule.sigmas[:-1].tolist(), request.sound_frames is not None
    guidance = resolve_guidance(request.guidance_scale, sigmas, with_sound=with_sound)
    tensors: dict[str, Tensor] = {}
    effective = {
        "checkpoint": models.fingerprint,
        "dtype": str(models.transformer.dtype),
        "preset": preset,
        "sigmas": schedule.sigmas,
        "timesteps": schedule.timesteps,
        "request": replace(request, guidance_scale=guidance, preset=None),  # its preset is in the tokens already
    }
    digest = hashlib.sha256(json.dumps(to_plain(effective, tensors), sort_keys=True).encode())
    for tensor in tensors.values():
        digest.update(str(tensor.tolist()).encode())
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------------------------------------- cells


def _make_cell(models: Cosmos3Models, plan: _Plan, folder: Path, encode: Encode, score: Score | None) -> None:
    from safetensors.torch import save

    begin = perf_counter()
    inputs, state = prepare_denoise(models, plan.request, schedule=plan.schedule, preset=plan.preset, encode=encode)
    for after, _ in denoise(models.transformer, inputs, state):
        state = after
    clean = state.latents.to("cpu")
    tensors = {"video": clean.video} | ({} if clean.sound is None else {"sound": clean.sound})
    with replacing(folder / LATENTS) as temporary:
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    output = decode_latents(models, state.latents, fps=plan.request.fps, mp4=folder / CLIP)
    seconds = perf_counter() - begin
    _write_cell(folder, plan.settings, _scored(score, output), seconds)


def _scored(score: Score | None, clip: Cosmos3GenerationOutput) -> dict[str, Value]:
    found = {} if score is None else score(clip)
    return {name: _python(value) for name, value in found.items()}


def _write_cell(folder: Path, settings: Mapping[str, Any], scores: Mapping[str, Any], seconds: float) -> None:
    values = {"format": CELL_FORMAT, "version": VERSION, "settings": settings, "scores": scores, "seconds": seconds}
    with replacing(folder / CELL_FILE) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _read_cell(folder: Path, place: Place, key: str) -> GridCell | None:
    """None where it is not done."""
    home = folder / CELLS / key
    if not (home / CELL_FILE).exists():
        return None
    values = read_json(home / CELL_FILE, format=CELL_FORMAT, version=VERSION)
    missing = [name for name in (CLIP, LATENTS) if not (home / name).is_file()]
    if missing or not {"settings", "scores", "seconds"} <= set(values):
        raise ValueError(f"{home} is damaged; delete it, and fill_grid makes the cell again")
    return GridCell(*place, values["settings"], values["scores"], values["seconds"], home)


def _write_grid(
    folder: Path, axes: tuple[Mapping[str, Any], Mapping[str, Any]], seeds: Sequence[int], keys: Mapping[Place, str]
) -> None:
    cells = [{"row": row, "column": column, "seed": seed, "key": key} for (row, column, seed), key in keys.items()]
    labels = {"rows": list(axes[0]), "columns": list(axes[1]), "seeds": list(seeds)}
    with replacing(folder / GRID_FILE) as temporary:
        values = {"format": GRID_FORMAT, "version": VERSION, **labels, "cells": cells}
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
