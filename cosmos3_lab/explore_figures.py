"""Runs as pictures: a tree with a lane for each branch and a preview wherever lanes meet or end, a trace as film strips.

Read next: `grid_sheet.py`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from cosmos3_lab.figure_style import CURVES, STYLE, axes_or_new, describe, dress, pick_evenly
from cosmos3_lab.latent_figures import filmstrip_of_steps
from cosmos3_lab.latents import Latents
from cosmos3_lab.preview import LatentPreview
from cosmos3_lab.trace import Trace
from cosmos3_lab.tree import Branch, RunTree, x0_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LANE = 1.1  # inches from one lane to the next
PICTURE = 0.58  # inches of a preview's longer side
LETTERS = 112  # of a note, if it could be as long as the root
Picture = Float[np.ndarray, "height width 3"] | UInt8[np.ndarray, "height width 3"]


def plot_tree(
    tree: RunTree,
    preview: LatentPreview,
    *,
    frames: Mapping[str, UInt8[np.ndarray, "_frames _height _width 3"]] | None = None,
    count: int = 3,
    ax: "Axes | None" = None,
) -> "Axes":
    """Branches over the steps of the root, with x0 wherever one leaves another, and the end of each as a few frames.

    Steps of another schedule stand where the root's noise level is the same.

    Args:
        tree: to draw.
        preview: from `latent_preview`.
        frames: decoded frames by the name of their branch, shown at its end instead of the preview.
        count: frames at the end of a branch.
        ax: to draw on.

    Raises:
        ValueError: fewer than 1 frame, or a preview for another number of channels.
    """
    lanes = {branch.name: lane for lane, branch in enumerate(_in_lanes(tree))}
    ax = axes_or_new(ax, 10.0, 0.75 + LANE * len(lanes))
    root = tree.branches[0]
    length = root.inputs.schedule.num_steps
    for branch, look in zip(tree.branches, _looks(len(tree.branches)), strict=True):
        xs, lane = [_place(root, branch, step) for step in branch.kept], lanes[branch.name]
        if branch.parent is not None:
            ax.plot([xs[0], xs[0]], [lanes[branch.parent], lane], color=look["color"], linewidth=1.2, zorder=1)
        ax.plot([xs[0], xs[-1]], [lane, lane], color=look["color"], linewidth=2, zorder=1)
        ax.plot(xs, [lane] * len(xs), color=look["color"], marker=look["marker"], markersize=3.5, linestyle="", zorder=2)
        leaving = {child.kept[0] for child in tree.children(branch.name)}
        for step in sorted(leaving):
            clean = x0_of(branch.at(step))
            if clean is not None:
                _add_picture(ax, _place(root, branch, step), lane, _middle(preview, clean), look["color"])
        _add_end(ax, branch, xs[-1], lane, preview, (frames or {}).get(branch.name), count, look["color"])
        words = {"color": STYLE["ink"], "fontsize": STYLE["text_size"], "parse_math": False, "va": "bottom", "zorder": 4}
        room = max(len(branch.name) + 1, round(LETTERS * (xs[-1] - xs[0]) / length))
        ax.annotate(
            _label(branch, room), (xs[0], lane), (4 * (branch.parent is not None), 20), textcoords="offset points", **words
        )
    ax.set(xlim=(-0.02 * length, length * (1.06 + 0.085 * count)), ylim=(len(lanes) - 0.55, -0.62), yticks=[])
    ax.set_xticks(range(0, length + 1, max(1, round(length / 10))))
    dress(ax, x="step of the root (dots: states that were kept)")
    ax.spines["left"].set_visible(False)
    describe(ax, f"A tree of runs: {'; '.join(map(repr, tree.branches))}")
    return ax


def _looks(count: int) -> list[dict[str, str]]:
    return [CURVES[i % len(CURVES)] for i in range(count)]


def _in_lanes(tree: RunTree) -> list[Branch]:
    """Parents above their children, later forks nearer to the parent, so that no lane crosses another."""
    found: list[Branch] = []

    def add(branch: Branch) -> None:
        found.append(branch)
        for child in sorted(tree.children(branch.name), key=lambda child: child.sigma(child.kept[0])):
            add(child)

    add(tree.branches[0])
    return found


def _label(branch: Branch, room: int) -> str:
    """Name and note, cut before the pictures at the end."""
    text = branch.name if not branch.note else f"{branch.name}  ({branch.note})"
    return text if len(text) <= room else f"{text[: room - 1]}…"


def _place(root: Branch, branch: Branch, step: int) -> float:
    """On the root's axis of steps, by noise level."""
    sigmas = root.inputs.schedule.sigmas.numpy()
    return float(np.interp(-branch.sigma(step), -sigmas, np.arange(len(sigmas))))


def _middle(preview: LatentPreview, clean: Latents) -> Picture:
    pixels = preview.pixels(clean.video)
    return pixels[len(pixels) // 2]


def _add_end(
    ax: "Axes", branch: Branch, x: float, lane: int, preview: LatentPreview, frames: np.ndarray | None, count: int, colour: str
) -> None:
    clean = branch.result if branch.finished else x0_of(branch.states[-1])
    if clean is None:
        return
    film = preview.pixels(clean.video) if frames is None else frames
    pictures = [film[i] for i in pick_evenly(len(film), count)]
    gap = np.full((len(pictures[0]), max(1, len(pictures[0]) // 16), 3), _white(pictures[0]), pictures[0].dtype)
    strip = np.concatenate([part for picture in pictures for part in (picture, gap)][:-1], axis=1)
    _add_picture(ax, x, lane, strip, colour, wide=len(pictures))


def _white(picture: np.ndarray) -> float | int:
    return 255 if picture.dtype == np.uint8 else 1.0


def _add_picture(ax: "Axes", x: float, lane: int, picture: Picture, colour: str, *, wide: int = 0) -> None:
    """A picture in the middle of a dot, or, if it is `wide` frames, to the right of the end."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    side = max(picture.shape[0], picture.shape[1] / max(wide, 1))
    image = OffsetImage(picture, zoom=72 * PICTURE / side, interpolation="nearest")
    align = (0, 0.5) if wide else (0.5, 0.5)
    frame = {"edgecolor": colour, "linewidth": 1.2, "facecolor": STYLE["face"]}
    box = AnnotationBbox(
        image, (x, lane), (10 if wide else 0, 0), xycoords="data", boxcoords="offset points", box_alignment=align
    )
    box.patch.set(**frame)
    box.pad = 0.15
    box.set_zorder(3)
    ax.add_artist(box)


# ------------------------------------------------------------------------------------------------------------ trace


def plot_trace(trace: Trace, *, rows: int = 8, count: int = 9) -> "Figure":
    """How the clean video took shape in a run on disk: a row for each step, latent frames from left to right.

    Args:
        trace: from `open_trace`.
        rows, count: steps and latent frames to show at most, evenly spaced.

    Raises:
        ValueError: a picture of it is missing or damaged.
    """
    return filmstrip_of_steps(trace.records, lambda at: trace.film(trace.records[at].index), rows=rows, count=count)
