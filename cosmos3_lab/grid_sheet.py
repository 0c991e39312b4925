"""All cells of a compare grid in one film, played in step, or on one sheet.

    save_grid_mp4(grid, "outputs/grid.mp4", sound=("guidance_scale 3", "", 1))
    plot_grid(grid, frames=3)                  # a figure; `.figure.savefig(...)` writes the sheet as PNG

Cells that are not done yet stay empty. What is drawn is read from the cells' mp4s.

Read next: `explore_widgets.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from cosmos3_lab.figure_style import STYLE, describe, dress_picture, new_panels, pick_evenly
from cosmos3_lab.grid import CompareGrid, GridCell, Place, Value
from cosmos3_lab.media import Cosmos3GenerationOutput, save_mp4

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDEST = 1920  # pixels of a film of all cells
SMALLEST, LARGEST = 160, 480  # pixels of a cell's longer side, as far as that goes
LABEL, TITLE = 16, 40  # letters of a row's label in a line of the sheet, and of a whole label
GAP, LINE = 6, 18  # pixels between cells, and height of a line of text


def grid_clip(grid: CompareGrid, *, sound: Place | None = None) -> Cosmos3GenerationOutput:
    """All cells side by side with their labels, as one clip; clips that end early stand still.

    Args:
        grid: with at least one finished cell.
        sound: `(row, column, seed)` of the cell that is heard, None for a silent clip.

    Raises:
        ValueError: no cell is done, or the one to be heard is not, or has no sound.
    """
    clips = {(cell.row, cell.column, cell.seed): cell.clip() for cell in grid.cells}
    if not clips:
        raise ValueError(f"got {grid}, expected at least one finished cell; call fill_grid again")
    heard = None if sound is None else clips.get(sound)
    if sound is not None and (heard is None or heard.waveform is None):
        raise ValueError(f"got sound={sound}, expected a finished cell with sound")
    first = next(iter(clips.values()))
    count = max(len(clip.frames) for clip in clips.values())
    columns = [(column, seed) for column in grid.columns for seed in grid.seeds]
    size = _cell_size(first.frames.shape[1:3], len(columns))
    sheet, corners = _sheet(grid, columns, size)
    film = np.repeat(sheet[None], count, axis=0)
    for place, clip in clips.items():
        y, x = corners[place]
        small = _resized(clip.frames, size)
        film[: len(small), y : y + size[0], x : x + size[1]] = small
        film[len(small) :, y : y + size[0], x : x + size[1]] = small[-1]
    audio = {} if heard is None else {"waveform": heard.waveform, "sample_rate": heard.sample_rate}
    return Cosmos3GenerationOutput(film, first.fps, **audio)


def save_grid_mp4(grid: CompareGrid, path: str | Path, *, sound: Place | None = None) -> Path:
    """Write `grid_clip` as an mp4, complete or not at all.

    Args:
        grid, sound: see `grid_clip`.
        path: ending in `.mp4`.

    Raises:
        ValueError, OSError: see `grid_clip` and `save_mp4`.
    """
    return save_mp4(grid_clip(grid, sound=sound), path)


def plot_grid(grid: CompareGrid, *, frames: int = 3, scores: Sequence[str] = ()) -> "Figure":
    """A contact sheet: some frames of every cell, with its scores.

    Args:
        grid: cells that are not done stay empty.
        frames: of each cell, evenly spaced.
        scores: names of the scores to print under the cells.

    Raises:
        ValueError: fewer than 1 frame.
    """
    columns = [(column, seed) for column in grid.columns for seed in grid.seeds]
    cells = {(cell.row, cell.column, cell.seed): cell for cell in grid.cells}
    films = {place: _film(cell.clip().frames, frames) for place, cell in cells.items()}
    aspect = next((film.shape[0] / film.shape[1] for film in films.values()), 1 / frames)
    width = min(8.9 / len(columns), 4.5)
    tall = width * aspect + 0.04 + 0.2 * bool(scores)
    figure, panels = new_panels(len(grid.rows), len(columns), width * len(columns) + 1.2, len(grid.rows) * tall + 0.3)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    ink = {"color": STYLE["ink"], "fontsize": STYLE["text_size"] - 1}
    for line, row in zip(panels, grid.rows, strict=True):
        for ax, (column, seed) in zip(line, columns, strict=True):
            place = (row, column, seed)
            title = ", ".join(word for word in (_cut(column), f"seed {seed}") if word)
            ax.imshow(films.get(place, np.full((1, frames, 3), 0.93)), interpolation="nearest", aspect="equal")
            dress_picture(ax, title=title if row == grid.rows[0] else "")
            if place in cells and scores:
                ax.set_xlabel(score_words(cells[place], scores), parse_math=False, labelpad=2, **ink)
        words = "\n".join(wrap(_cut(row), LABEL, break_long_words=False))
        line[0].set_ylabel(words, parse_math=False, rotation=0, ha="right", va="center", **ink)
    places = f"{len(grid.rows)} rows ({', '.join(grid.rows)}) and {len(columns)} columns"
    describe(figure, f"Frames of {len(films)} clips in {places}")
    return figure


def score_words(cell: GridCell, names: Sequence[str] | None = None) -> str:
    """Scores of a cell in one line.

    Args:
        cell: with scores.
        names: which; None for all.
    """
    return ", ".join(f"{name} {_words(cell.scores[name])}" for name in (names or cell.scores) if name in cell.scores)


def _cut(label: str) -> str:
    return label if len(label) <= TITLE else f"{label[: TITLE - 1]}…"


def _words(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _film(frames: UInt8[np.ndarray, "frames height width 3"], count: int) -> UInt8[np.ndarray, "height all_widths 3"]:
    return np.concatenate([frames[i] for i in pick_evenly(len(frames), count)], axis=1)


def _cell_size(shape: tuple[int, int], columns: int) -> tuple[int, int]:
    """Height and width of a cell: small clips in whole multiples, large ones smaller, both even for h264."""
    longest = max(shape)
    scale = max(1, -(-SMALLEST // longest)) if longest < LARGEST else LARGEST / longest
    scale = min(scale, (WIDEST / columns - GAP) / shape[1])
    return tuple(max(2, round(side * scale / 2) * 2) for side in shape)


def _resized(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    whole = size[0] % frames.shape[1] == 0 and size[1] % frames.shape[2] == 0
    how = Image.Resampling.NEAREST if whole else Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(frame).resize(size[::-1], how)) for frame in frames])


def _sheet(
    grid: CompareGrid, columns: Sequence[tuple[str, int]], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "height width 3"], Mapping[Place, tuple[int, int]]]:
    """The page with all labels and empty cells, and where each cell's top left corner is."""
    font = _font(LINE - 5)
    head = 2 * LINE if any(grid.columns) else LINE
    step = size[0] + LINE + GAP, size[1] + GAP
    height, width = head + len(grid.rows) * step[0], len(columns) * step[1] + GAP
    page = Image.new("RGB", (width + width % 2, height + height % 2), STYLE["face"])
    pen = ImageDraw.Draw(page)
    corners = {}
    for j, (column, seed) in enumerate(columns):
        x = GAP + j * step[1]
        if any(grid.columns) and seed == grid.seeds[0]:
            pen.text((x, 1), _fitted(font, column, step[1] * len(grid.seeds) - GAP), fill=STYLE["ink"], font=font)
        pen.text((x, head - LINE + 1), _fitted(font, f"seed {seed}", size[1]), fill=STYLE["soft_ink"], font=font)
    for i, row in enumerate(grid.rows):
        y = head + i * step[0]
        pen.text((GAP, y), _fitted(font, row, width - 2 * GAP), fill=STYLE["ink"], font=font)
        for j, (column, seed) in enumerate(columns):
            corners[row, column, seed] = (y + LINE, GAP + j * step[1])
            box = (GAP + j * step[1], y + LINE, GAP + j * step[1] + size[1] - 1, y + LINE + size[0] - 1)
            pen.rectangle(box, fill=STYLE["rule"])
    return np.array(page), corners


def _fitted(font: ImageFont.FreeTypeFont, text: str, width: int) -> str:
    while len(text) > 1 and font.getlength(text) > width:
        text = text.rstrip("…")[:-1] + "…"
    return text


def _font(size: int) -> ImageFont.FreeTypeFont:
    from matplotlib.font_manager import findfont

    return ImageFont.truetype(findfont("DejaVu Sans"), size)  # comes with matplotlib, and knows Greek
