"""Players: all cells of a compare grid in step, and the steps of a run on disk.

Read next: `notebooks/10_pause_fork_compare.ipynb`.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from cosmos3_lab.explore_figures import plot_trace
from cosmos3_lab.grid import CompareGrid, Place
from cosmos3_lab.grid_sheet import plot_grid, save_grid_mp4, score_words
from cosmos3_lab.panel_pictures import video_html
from cosmos3_lab.player_widgets import step_player
from cosmos3_lab.trace import Trace
from cosmos3_lab.widget_parts import check_records, dropdown, has_front_end, ipywidgets, lab_box, line, on_change, say

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.figure import Figure

SILENT = "no sound"


def grid_player(grid: CompareGrid) -> "Widget | Figure":
    """Every cell at once, frame by frame in step, with the sound and the scores of one of them.

    Args:
        grid: from `fill_grid` or `open_grid`.

    Raises:
        ValueError: no cell is done.
    """
    if not grid.cells:
        raise ValueError(f"got {grid}, expected at least one finished cell; call fill_grid again")
    return _build(grid) if has_front_end() else plot_grid(grid)


def _build(grid: CompareGrid) -> "Widget":
    box = lab_box()
    places = {_words(cell.row, cell.column, cell.seed): (cell.row, cell.column, cell.seed) for cell in grid.cells}
    heard = dropdown("sound of", [SILENT, *places], next(iter(places)), width="460px")
    film, words, sheet = ipywidgets().HTML(), line(), box.Picture()
    figure = plot_grid(grid)
    sheet.show(figure.png(sharpness=1.0), figure.alt_text)  # also for a page without a kernel
    films = cache(lambda place: _film(grid, place))

    def redraw() -> None:
        place = places.get(heard.value)
        film.value = films(place)
        scores = "" if place is None else score_words(grid[place])
        say(words, scores or f"{len(grid.cells)} of {len(grid.places)} cells, in step")

    on_change(redraw, heard)
    return box.LabBox([heard, film, words, sheet])


def _words(row: str, column: str, seed: int) -> str:
    return ", ".join(word for word in (row, column, f"seed {seed}") if word)


def _film(grid: CompareGrid, place: Place | None) -> str:
    sound = place if place is not None and grid[place].clip().waveform is not None else None
    with TemporaryDirectory() as folder:
        path = save_grid_mp4(grid, Path(folder) / "grid.mp4", sound=sound)
        return video_html(path, f"{len(grid.cells)} clips side by side")


def trace_player(trace: Trace) -> "Widget | Figure":
    """Scrub the steps of a run on disk: x0 in colours, the noise level, and its sound where that was written.

    Args:
        trace: from `open_trace`.

    Raises:
        ValueError: a file of it is missing or damaged.
    """
    records = check_records(trace.records)
    if not has_front_end():
        return plot_trace(trace)
    heard = (lambda at: trace.sound(records[at].index)) if trace.with_sound else None
    return step_player(records, lambda at: np.stack([trace.film(records[at].index)]), heard)
