"""The compare grid: cells that survive a kill, shared noise and text, one film of all of them."""

import gc
import json
import re
import subprocess
import sys
import time
import weakref
from base64 import b64decode
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import pytest
import torch
from checks import only_one_prompt_fits

from cosmos3_lab import generate, load_cosmos3, read_mp4
from cosmos3_lab.explore_widgets import grid_player
from cosmos3_lab.figure_canvas import LabFigure
from cosmos3_lab.grid import fill_grid, open_grid
from cosmos3_lab.grid_sheet import grid_clip, plot_grid, save_grid_mp4, score_words
from cosmos3_lab.guidance_scale import Guidance, GuidanceInterval
from cosmos3_lab.out_of_memory import OutOfMemoryError
from cosmos3_lab.plain import in_words
from cosmos3_lab.presets import PRESETS
from cosmos3_lab.schedule import karras_schedule
from cosmos3_lab.solvers import Solver
from cosmos3_lab.widget_box import Picture

PROMPT = "a red circle bounces on a blue background; low thuds"
QUICK = {"num_frames": 5, "num_inference_steps": 2, "with_sound": True, "progress": False}
AXES = {
    "rows": {"guidance_scale": [1.0, 3.0]},
    "columns": {"early": {"flow_shift": 5.0}, "even": {"flow_shift": 1.0}},
    "seeds": [1, 2],
}


@pytest.fixture(scope="module")
def pico():
    with load_cosmos3("pico", device="cpu") as models:
        yield models


def redness(clip):
    return {"redness": clip.frames[..., 0].mean() / 255, "long": len(clip.frames) > 3, "kind": "clip"}


@pytest.fixture(scope="module")
def grid(pico, tmp_path_factory):
    return fill_grid(pico, PROMPT, folder=tmp_path_factory.mktemp("grid"), score=redness, **AXES, **QUICK)


def test_every_place_has_a_cell(grid):
    assert grid.finished
    assert grid.rows == ("guidance_scale 1", "guidance_scale 3")
    assert grid.columns == ("early", "even")
    assert [(c.row, c.column, c.seed) for c in grid.cells] == list(grid.places)
    assert len(grid.cells) == 8


def test_a_cell_is_what_generate_makes(pico, grid):
    options = {**QUICK, "guidance_scale": 3.0, "flow_shift": 1.0, "seed": 2}
    alone = generate(pico, PROMPT, **options)
    cell = grid["guidance_scale 3", "even", 2]
    assert torch.equal(cell.latents().video, alone.latents.video)
    assert torch.equal(cell.latents().sound, alone.latents.sound)
    assert cell.clip().frames.shape == alone.output.frames.shape
    assert cell.settings["flow_shift"] == 1.0
    assert cell.scores == redness(alone.output)
    assert type(cell.scores["redness"]) is float
    assert cell.seconds > 0


def test_seeds_differ_and_nothing_else_is_drawn(grid):
    one, two = (grid["guidance_scale 1", "early", seed].latents().video for seed in (1, 2))
    assert not torch.allclose(one, two, atol=0.1)


def test_prompts_are_encoded_once(pico, tmp_path, monkeypatch):
    import cosmos3_lab.reuse

    seen = []
    encode = cosmos3_lab.reuse.encode_prompts
    monkeypatch.setattr("cosmos3_lab.reuse.encode_prompts", lambda *a: seen.append(a) or encode(*a))
    axes = {"rows": {"prompt": [PROMPT, "a green square rises"]}, "columns": {"flow_shift": [1.0, 5.0]}, "seeds": [1, 2]}
    fill_grid(pico, PROMPT, folder=tmp_path, **axes, **QUICK)
    assert len(seen) == 2


def test_a_second_call_makes_only_what_is_missing(pico, grid, monkeypatch):
    made = []
    monkeypatch.setattr("cosmos3_lab.grid._make_cell", lambda models, plan, folder, *a: made.append(plan))
    again = fill_grid(pico, PROMPT, folder=grid.folder, score=redness, **AXES, **QUICK)
    assert made == []
    assert again.cells == grid.cells
    wider = AXES | {"seeds": [1, 2, 3]}
    more = fill_grid(pico, PROMPT, folder=grid.folder, score=redness, **wider, **QUICK)
    assert [plan.request.seed for plan in made] == [3] * 4
    assert len(more.cells) == 8
    assert not more.finished
    with pytest.raises(ValueError, match="which is not done yet"):
        more["guidance_scale 1", "early", 3]
    fill_grid(pico, PROMPT, folder=grid.folder, score=redness, **AXES, **QUICK)  # as it was, for the other tests


def test_scores_can_come_later(pico, tmp_path):
    options = {"folder": tmp_path, "rows": {"guidance_scale": [1.0]}, **QUICK}
    assert fill_grid(pico, PROMPT, **options).cells[0].scores == {}
    scored = fill_grid(pico, PROMPT, score=redness, **options)
    assert scored.cells[0].scores == redness(scored.cells[0].clip())


def test_schedules_may_be_on_an_axis(pico, tmp_path):
    rows = {"karras 2": {"schedule": karras_schedule(2)}, "karras 3": {"schedule": karras_schedule(3)}}
    quick = {**QUICK, "with_sound": False}
    del quick["num_inference_steps"]
    grid = fill_grid(pico, PROMPT, folder=tmp_path, rows=rows, **quick)
    assert not torch.equal(grid.cells[0].latents().video, grid.cells[1].latents().video)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"rows": {"num_frames": [5, 9]}}, "got num_frames on an axis, expected clips of one size"),
        ({"rows": {"colour": [1, 2]}}, "got colour, expected settings among"),
        ({"rows": {"guidance_scale": [1]}, "columns": {"guidance_scale": [2]}}, "in rows and in columns"),
        ({"rows": {"guidance_scale": [1, 1]}}, "got the value 1 of guidance_scale twice"),
        ({"rows": {"guidance_scale": []}}, "expected one setting with its values"),
        ({"rows": {"guidance_scale": [1.0, -3.0]}}, "got guidance_scale -3"),
        ({"rows": {"noise": [None]}}, "got noise, expected settings among"),
        ({"rows": {"seed": [1, 2]}}, "got seed, expected settings among"),
        ({"rows": {"guidance_scale": [1.0]}, "seeds": [1, 1]}, "none twice"),
        ({"rows": {"guidance_scale": [1.0]}, "seeds": []}, "at least one"),
        ({"rows": {"guidance_scale": [1.0]}, "seeds": np.linspace(0, 1, 2)}, r"got seed 0\.0, expected a whole number"),
        ({"rows": {"guidance_scale": np.array(3.0)}}, "expected one setting with its values"),
        ({"rows": {"guidance_scale": np.array([])}}, "expected one setting with its values"),
        ({"rows": {"guidance_scale": np.array([1.0, np.nan])}}, "got guidance_scale nan"),
        ({"rows": {"prompt": "a red ball"}}, "got {'prompt': 'a red ball'}, expected one setting with its values"),
    ],
)
def test_grids_that_cannot_be_are_refused_before_anything_is_made(pico, tmp_path, axes, says):
    with pytest.raises(ValueError, match=says):
        fill_grid(pico, PROMPT, folder=tmp_path / "grid", **axes, **QUICK)
    assert not (tmp_path / "grid").exists()


SMALL = {"num_frames": 1, "height": 32, "width": 48, "num_inference_steps": 4, "progress": False}


def test_cells_of_another_dtype_are_not_handed_back(tiny, tiny_folder, tmp_path):
    options = {"folder": tmp_path, "rows": {"guidance_scale": [3.0]}, **SMALL}
    whole = fill_grid(tiny, PROMPT, **options).cells[0]
    with load_cosmos3(tiny_folder, device="cpu", dtype=torch.bfloat16) as rounded:
        assert rounded.fingerprint == tiny.fingerprint
        cell = fill_grid(rounded, PROMPT, **options).cells[0]
    assert cell.folder != whole.folder
    assert not torch.equal(cell.latents().video, whole.latents().video)
    assert fill_grid(tiny, PROMPT, **options).cells == (whole,)


LONG = [GuidanceInterval(6.123456789, low=0.123456789, high=high) for high in (0.9, 0.95)]


@pytest.mark.parametrize(
    ("axis", "labels"),
    [
        ({"solver": [Solver("unipc", 1), Solver("unipc", 3), "euler"]}, ["solver UniPC 1", "solver UniPC 3", "solver euler"]),
        ({"guidance_scale": LONG}, [f"guidance_scale {interval!r}" for interval in LONG]),
        (
            {"guidance_scale": [lambda step, sigma: 1.0 + step, lambda step, sigma: 3.0]},
            ["guidance_scale a function of (step, sigma)", "guidance_scale a function of (step, sigma) #2"],
        ),
        (
            {"guidance_scale": [[1, 1, 3, 3], Guidance(3.0, rescale=0.5)]},
            ["guidance_scale 1 to step 1, 3 to 3", "guidance_scale Guidance(3, rescale=0.5)"],
        ),
        ({"guidance_scale": list(np.float32([1, 2.5]))}, ["guidance_scale 1", "guidance_scale 2.5"]),
        ({"preset": [PRESETS["native"], "phyai"]}, ["preset native", "preset phyai"]),
        ({"schedule": [karras_schedule(4), "native-flow"]}, ["schedule karras", "schedule native-flow"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_whatever_can_be_a_setting_can_be_compared(tiny, tmp_path, axis, labels):
    grid = fill_grid(tiny, PROMPT, folder=tmp_path, rows=axis, **SMALL)
    assert list(grid.rows) == labels
    videos = [cell.latents().video for cell in grid.cells]
    assert len(videos) == len(labels)
    assert not any(torch.equal(a, b) for i, a in enumerate(videos) for b in videos[:i])
    assert plot_grid(grid).png()


@pytest.mark.parametrize(
    ("values", "settings"),
    [
        (np.linspace(1, 3, 3), [1.0, 2.0, 3.0]),
        (np.arange(1, 3), [1, 2]),
        (torch.linspace(1, 3, 3), [1.0, 2.0, 3.0]),
        (np.float32([[1, 1, 3, 3], [3, 3, 1, 1]]), [[1.0, 1.0, 3.0, 3.0], [3.0, 3.0, 1.0, 1.0]]),
        ([tuple(np.float32([1, 1, 3, 3]))], [[1.0, 1.0, 3.0, 3.0]]),
        ((w for w in np.float32([1, 3])), [1.0, 3.0]),
        ({1: "one", 3: "three"}.keys(), [1, 3]),
    ],
    ids=["linspace", "arange", "torch", "two axes", "tuple of numbers", "generator", "keys"],
)
def test_whatever_can_be_gone_through_is_an_axis_and_is_saved_as_plain_values(tiny, tmp_path, values, settings):
    quick = SMALL | {"flow_shift": np.float32(2.5)}
    grid = fill_grid(tiny, PROMPT, folder=tmp_path, rows={"guidance_scale": values}, seeds=np.arange(5, 6), **quick)
    stored = json.loads((tmp_path / "grid.json").read_text())
    assert stored["seeds"] == [5]
    assert stored["rows"] == [f"guidance_scale {in_words(value)}" for value in settings]
    saved = [cell.settings["guidance_scale"] for cell in grid.cells]
    assert repr(saved) == repr(settings)  # 1 and 1.0 are not the same here
    assert {cell.settings["flow_shift"] for cell in grid.cells} == {2.5}
    assert re.fullmatch("[0-9a-f]{16}", grid.cells[0].folder.name)
    again = fill_grid(tiny, PROMPT, folder=tmp_path, rows={"guidance_scale": settings}, seeds=[5], **SMALL, flow_shift=2.5)
    assert [cell.folder for cell in again.cells] == [cell.folder for cell in grid.cells]


def test_what_takes_effect_names_the_cell_and_not_how_it_was_asked_for(tiny, tmp_path, monkeypatch):
    options = {"folder": tmp_path, "seeds": [1], **SMALL}
    first = fill_grid(tiny, PROMPT, rows={"guidance_scale": [3.0]}, **options).cells[0]
    monkeypatch.setattr("cosmos3_lab.grid._make_cell", lambda *a: pytest.fail("it is there already"))
    ways = [np.float32(3), [3, 3, 3, 3], lambda step, sigma: 3]
    again = fill_grid(tiny, PROMPT, rows={"guidance_scale": ways}, solver="unipc", preset="native", **options)
    assert {cell.folder for cell in again.cells} == {first.folder}
    assert len(again.cells) == 3


def test_after_running_out_of_memory_everything_is_let_go(tiny, tmp_path, monkeypatch):
    held = []

    def fill(transformer, inputs, state):
        held.extend(map(weakref.ref, (inputs.cond, state)))
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr("cosmos3_lab.grid.denoise", fill)
        with pytest.raises(OutOfMemoryError, match="out of memory on the CPU: 32x48x1 needs about") as caught:
            fill_grid(tiny, PROMPT, folder=tmp_path, rows={"guidance_scale": [3.0]}, **SMALL)
    gc.collect()
    assert [ref() for ref in held] == [None, None], f"{caught.value!r}, which is still here, keeps them"
    assert fill_grid(tiny, PROMPT, folder=tmp_path, rows={"guidance_scale": [3.0]}, **SMALL).finished


def test_after_running_out_of_memory_with_the_second_prompt_the_first_is_let_go_too(tiny, tmp_path, monkeypatch):
    held = only_one_prompt_fits(monkeypatch)
    with pytest.raises(OutOfMemoryError, match="out of memory on the CPU") as caught:
        fill_grid(tiny, PROMPT, folder=tmp_path, rows={"prompt": ["one ball", "two balls"]}, **SMALL)
    gc.collect()
    assert [ref() for ref in held] == [None], f"{caught.value!r}, which is still here, keeps it"
    assert len(open_grid(tmp_path).cells) == 1


@pytest.mark.parametrize("there", [False, True], ids=["new cell", "finished cell"])
def test_a_score_that_runs_out_of_memory_is_the_same_error(tiny, tmp_path, there):
    def score(clip):
        raise torch.OutOfMemoryError("CUDA out of memory")

    options = {"folder": tmp_path, "rows": {"guidance_scale": [3.0]}, **SMALL}
    if there:
        fill_grid(tiny, PROMPT, **options)
    with pytest.raises(OutOfMemoryError, match="out of memory on the CPU: 32x48x1 needs about"):
        fill_grid(tiny, PROMPT, score=score, **options)


SLOW = """
import sys
from cosmos3_lab import load_cosmos3
from cosmos3_lab.grid import fill_grid
models = load_cosmos3("pico", device="cpu")
options = {"num_frames": 5, "num_inference_steps": 2, "progress": False}
fill_grid(models, "a red circle rises", folder=sys.argv[1], rows={"guidance_scale": [1.0, 2.0]}, seeds=range(60), **options)
"""


def test_a_killed_grid_keeps_its_cells_and_goes_on(pico, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path)], cwd=Path(__file__).parents[1])
    end = time.monotonic() + 120
    while len(list(tmp_path.glob("cells/*/cell.json"))) < 2:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()  # SIGKILL
    assert process.wait() == -9
    before = open_grid(tmp_path)
    assert 2 <= len(before.cells) < 120
    kept = {cell.folder: (cell.folder / "cell.json").stat().st_mtime_ns for cell in before.cells}
    for cell in before.cells:
        assert cell.clip().frames.shape == (5, 96, 96, 3)
    seeds = [cell.seed for cell in before.cells if cell.row == "guidance_scale 1"]
    options = {"num_frames": 5, "num_inference_steps": 2, "progress": False}
    more = [*seeds, len(seeds)]
    after = fill_grid(pico, "a red circle rises", folder=tmp_path, rows={"guidance_scale": [1.0]}, seeds=more, **options)
    assert after.finished
    assert len(after.cells) == len(seeds) + 1
    again = {cell.folder for cell in after.cells}
    assert all((folder / "cell.json").stat().st_mtime_ns == written for folder, written in kept.items() if folder in again)


# ------------------------------------------------------------------------------------------------------------- looks


def test_the_film_shows_every_cell_in_step(grid):
    film = grid_clip(grid, sound=("guidance_scale 3", "even", 2))
    first = grid.cells[0].clip()
    assert len(film.frames) == len(first.frames)
    assert film.fps == first.fps
    assert np.array_equal(film.waveform, grid["guidance_scale 3", "even", 2].clip().waveform)
    scale = 2  # 96 pixels are shown as 192
    for frame in (0, 3):
        for cell in grid.cells:
            big = cell.clip().frames[frame].repeat(scale, 0).repeat(scale, 1)
            windows = np.lib.stride_tricks.sliding_window_view(film.frames[frame], big.shape)[:, :, 0]
            corner = big[0, 0], big[-1, -1]
            found = (windows[..., 0, 0, :] == corner[0]).all(-1) & (windows[..., -1, -1, :] == corner[1]).all(-1)
            assert any(np.array_equal(windows[y, x], big) for y, x in np.argwhere(found)), (cell.row, cell.column, cell.seed)


def test_the_film_can_be_written(grid, tmp_path):
    path = save_grid_mp4(grid, tmp_path / "grid.mp4")
    clip = read_mp4(path)
    assert clip.waveform is None
    assert clip.frames.shape == grid_clip(grid).frames.shape
    with pytest.raises(ValueError, match="expected a finished cell with sound"):
        save_grid_mp4(grid, tmp_path / "other.mp4", sound=("no", "such", 1))


def test_the_sheet_names_rows_columns_and_scores(grid):
    figure = plot_grid(grid, scores=["redness", "long"])
    assert isinstance(figure, LabFigure)
    assert figure.axes[0].get_title() == "early, seed 1"
    assert figure.axes[0].get_ylabel() == "guidance_scale 1"
    assert figure.axes[0].get_xlabel() == f"redness {grid.cells[0].scores['redness']:.2f}, long yes"
    assert score_words(grid.cells[0]).endswith("kind clip")
    figure.png()


def test_outside_of_a_notebook_the_player_is_the_sheet(grid):
    assert isinstance(grid_player(grid), LabFigure)


def test_in_a_notebook_the_player_has_the_sound_of_the_chosen_cell(grid, monkeypatch):
    monkeypatch.setattr("cosmos3_lab.explore_widgets.has_front_end", lambda: True)
    widget = grid_player(grid)
    heard, film, words, sheet = widget.children
    assert isinstance(sheet, Picture)
    assert sheet.value in widget._repr_mimebundle_()["text/html"]
    assert "kind clip" in words.value
    clips = {}
    for choice in (heard.options[0], heard.options[1], heard.options[-1]):
        heard.value = choice
        clips[choice] = clip_in(film.value)
    silent, first, final = clips.values()
    assert silent.waveform is None
    assert np.array_equal(silent.frames, final.frames)
    assert not np.array_equal(first.waveform, final.waveform)
    widget.close()


def clip_in(html):
    with NamedTemporaryFile(suffix=".mp4") as file:
        file.write(b64decode(re.search(r"base64,([^\"]+)", html)[1]))
        file.flush()
        return read_mp4(file.name)


def test_an_empty_grid_has_no_film(grid, tmp_path):
    (tmp_path / "grid.json").write_bytes((grid.folder / "grid.json").read_bytes())
    empty = open_grid(tmp_path)
    assert empty.cells == ()
    plot_grid(empty).png()
    for function in (grid_clip, grid_player):
        with pytest.raises(ValueError, match="at least one finished cell"):
            function(empty)


# ------------------------------------------------------------------------------------------------------------ damage


def test_damage_is_one_clear_error(grid, tmp_path):
    for content in (None, "[" * 200_000, '{"format": 1, "format": 2}'):
        if content is not None:
            (tmp_path / "grid.json").write_text(content)
        with pytest.raises(ValueError, match=r"grid\.json is not a readable cosmos3_lab.compare_grid file"):
            open_grid(tmp_path)
    values = json.loads((grid.folder / "grid.json").read_text())
    values["cells"][0]["key"] = "../../elsewhere"
    (tmp_path / "grid.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"grid\.json is damaged: its cells do not fit"):
        open_grid(tmp_path)
    values["cells"][0]["key"] = "ab"
    (tmp_path / "grid.json").write_text(json.dumps(values))
    (tmp_path / "cells" / "ab").mkdir(parents=True)
    (tmp_path / "cells" / "ab" / "cell.json").write_bytes((grid.cells[0].folder / "cell.json").read_bytes())
    with pytest.raises(ValueError, match="ab is damaged; delete it"):
        open_grid(tmp_path)


def test_a_small_file_cannot_ask_for_a_grid_that_fills_the_memory(grid, tmp_path, monkeypatch):
    values = json.loads((grid.folder / "grid.json").read_text())
    monkeypatch.setattr("cosmos3_lab.grid.product", lambda *a: pytest.fail("made before the lengths were compared"))
    for axes in ({"rows": ["x"] * 10**5, "columns": "y" * 10**5}, {"seeds": [1]}, {"columns": []}):
        (tmp_path / "grid.json").write_text(json.dumps(values | axes))
        with pytest.raises(ValueError, match=r"grid\.json is damaged: it has 8 cells, expected one for each row"):
            open_grid(tmp_path)
