"""One look for all figures: dark ink on their own near-white face, so that they read the same on a light and a dark page.

Colours are those of Okabe and Ito, which colour-blind readers can tell apart; lines also differ in their dashes and markers,
for print. The look is set on each figure and never in matplotlib's global settings. Figures are made without pyplot.

Read next: `figures.py`, the list of them.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.image import AxesImage

    from cosmos3_lab.figure_canvas import LabFigure

# What figures take: a tensor on any device, or an array. The docstrings give shapes.
Numbers = Shaped[Tensor, "..."] | Shaped[np.ndarray, "..."]

STYLE: dict[str, Any] = {
    "face": "#FCFCFA",
    "ink": "#1E2329",
    "soft_ink": "#565E68",
    "rule": "#D9DCE0",
    "text_size": 9,
    "title_size": 10,
    "signed": "RdBu_r",  # colour maps: of values around zero, of amounts, and of sound
    "amount": "viridis",
    "sound": "magma",
}
COLOURS = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "purple": "#CC79A7",
}
MOST_FRAMES = 9  # pictures in a row
TITLE_INCHES = 0.085  # room for a letter of a title
# For several curves in one picture, first come first served.
CURVES: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 4, "linewidth": 1.5}
    for colour, dashes, marker in zip(COLOURS.values(), ("-", "--", "-.", ":", "-", "--"), "osD^vP", strict=True)
)
VIDEO, SOUND = COLOURS["blue"], COLOURS["vermillion"]  # the two modalities, in every figure


# ----------------------------------------------------------------------------------------------------------- figures


def new_figure(width: float, height: float, *, constrained: bool = True) -> "LabFigure":
    """An empty figure with the face of all.

    Args:
        width, height: in inches; 10 fill a notebook.
        constrained: False where the caller places its axes itself.
    """
    from cosmos3_lab.figure_canvas import LabFigure

    layout = "constrained" if constrained else None
    return LabFigure(figsize=(width, height), layout=layout, facecolor=STYLE["face"])


def new_panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple["LabFigure", np.ndarray]:  # noqa: ANN401
    """A figure with a grid of axes, `[rows, columns]`.

    Args:
        rows, columns: of the grid.
        width, height: in inches.
        options: of `Figure.subplots`.
    """
    from cosmos3_lab.figure_canvas import LabAxes

    figure = new_figure(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False, subplot_kw={"axes_class": LabAxes}, **options)


def new_pictures(
    count: int, columns: int, width: float, *, side: float, shape: tuple[int, ...], room: float
) -> tuple["LabFigure", np.ndarray]:
    """A figure with a place for each of some pictures of one shape, wrapped after `columns`.

    Args:
        count: number of pictures.
        columns: of the grid at most.
        width: of the pictures together in inches, at most.
        side: width of one picture in inches, at most.
        shape: `(rows, columns, ...)` of a picture.
        room: inches to the right of the pictures, for a colour bar.

    Returns:
        The figure and its `[count]` axes.
    """
    columns = min(columns, count)
    rows, side = -(-count // columns), min(width / columns, side)
    tall = side * shape[0] / shape[1] + 0.22  # with a title
    figure, panels = new_panels(rows, columns, columns * side + room, rows * tall + 0.04)
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, wspace=0, hspace=0)
    for ax in panels.flat[count:]:
        ax.remove()
    return figure, panels.flat[:count]


def axes_or_new(ax: "Axes | None", width: float, height: float) -> "Axes":
    """The axes that the caller gave, or those of a new figure.

    Args:
        ax: to draw on, or None.
        width, height: of the new figure in inches.
    """
    return new_panels(1, 1, width, height)[1][0, 0] if ax is None else ax


def describe(target: "LabFigure | Axes", text: str) -> None:
    """Say in words what a figure shows: its alt text in a notebook. Words about several axes of a figure are joined.

    Args:
        target: the figure, or axes on it.
        text: one sentence, without the final stop.
    """
    figure = target.get_figure(root=True)
    before = getattr(figure, "alt_text", "")
    figure.alt_text = f"{before} {text}." if before else f"{text}."


# -------------------------------------------------------------------------------------------------------------- look


def dress(ax: "Axes", *, title: str = "", x: str = "", y: str = "", grid: str = "") -> None:
    """Give axes the common look; call it after drawing.

    Args:
        ax: to dress.
        title, x, y: texts; what is empty is left out.
        grid: "x", "y" or "both" for faint lines behind the data, "" for none.
    """
    ink, size = STYLE["ink"], STYLE["text_size"]
    ax.set_facecolor(STYLE["face"])
    ax.tick_params(which="both", color=STYLE["soft_ink"], labelcolor=ink, labelsize=size - 1)
    for name, spine in ax.spines.items():
        spine.set(color=STYLE["soft_ink"], linewidth=0.8, visible=name in ("left", "bottom") or bool(ax.images))
    if title:
        ax.set_title(title, color=ink, fontsize=STYLE["title_size"], loc="left", parse_math=False)
    if x:
        ax.set_xlabel(x, color=ink, fontsize=size)
    if y:
        ax.set_ylabel(y, color=ink, fontsize=size)
    if grid:
        ax.grid(visible=True, axis=grid, color=STYLE["rule"], linewidth=0.7)
        ax.set_axisbelow(True)


def dress_picture(ax: "Axes", *, title: str = "") -> None:
    """The common look of an image whose rows and columns need no numbers.

    Args:
        ax: with the image.
        title: small, above it.
    """
    dress(ax)
    ax.set(xticks=[], yticks=[])
    if title:
        ax.set_title(title, color=STYLE["ink"], fontsize=STYLE["text_size"] - 1, pad=3, parse_math=False)


def dress_title(figure: "LabFigure", title: str) -> None:
    """A title over all panels, in room of its own; a narrow figure grows as wide as the title.

    Args:
        figure: to name.
        title: may hold mathtext.
    """
    figure.set_size_inches(max(figure.get_figwidth(), TITLE_INCHES * len(title)), figure.get_figheight() + 0.3)
    figure.suptitle(title, x=0.004, ha="left", color=STYLE["ink"], fontsize=STYLE["title_size"])


def dress_legend(target: "Axes | LabFigure", **options: Any) -> None:  # noqa: ANN401
    """A legend without a box.

    Args:
        target: axes with labelled data, or a figure with such axes.
        options: of `Axes.legend` or `Figure.legend`.
    """
    legend = target.legend(frameon=False, fontsize=STYLE["text_size"] - 1, **options)
    for text in legend.get_texts():
        text.set(color=STYLE["ink"], parse_math=False)


def add_colour_bar(image: "AxesImage", axes: Sequence["Axes"] | np.ndarray, label: str, **options: Any) -> "Colorbar":  # noqa: ANN401
    """A dressed colour bar beside the axes that share it.

    Args:
        image: whose colours it explains.
        axes: that it stands beside.
        label: with the unit.
        options: of `Figure.colorbar`.
    """
    bar = image.get_figure(root=True).colorbar(image, ax=list(np.ravel(axes)), **options)
    dress_colour_bar(bar, label)
    return bar


def dress_colour_bar(bar: "Colorbar", label: str) -> None:
    """The common look of a colour bar.

    Args:
        bar: to dress.
        label: with the unit.
    """
    bar.set_label(label, color=STYLE["ink"], fontsize=STYLE["text_size"])
    bar.ax.tick_params(which="both", color=STYLE["soft_ink"], labelcolor=STYLE["ink"], labelsize=STYLE["text_size"] - 1)
    bar.outline.set(edgecolor=STYLE["soft_ink"], linewidth=0.8)


# -------------------------------------------------------------------------------------------------------------- data


def as_array(values: Numbers) -> np.ndarray:
    """A float or integer array on the CPU, from a tensor of any dtype and device, or from an array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return np.asarray(values)


def with_shape(name: str, values: Numbers, axes: str) -> np.ndarray:
    """An array, checked to have these axes.

    Args:
        name: of the thing, for the message.
        values: to check.
        axes: such as "1 C t h w"; an axis named by a number must have that length.

    Raises:
        ValueError: it has other axes, or no elements.
    """
    array, words = as_array(values), axes.split()
    fits = array.ndim == len(words) and all(not w.isdigit() or int(w) == n for w, n in zip(words, array.shape, strict=True))
    if not fits or array.size == 0:
        raise ValueError(f"got {name} of shape {list(array.shape)}, expected [{', '.join(words)}]")
    return array


def pick_evenly(length: int, count: int) -> list[int]:
    """At most `count` indices below `length`, evenly spaced, the first and the last among them.

    Raises:
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"got a count of {count}, expected at least 1")
    return sorted({int(i) for i in np.linspace(0, length - 1, min(count, length)).round()})


def check_indices(name: str, indices: Sequence[int], length: int) -> list[int]:
    """The indices as given.

    Args:
        name: of what they count, for the message.
        indices: each from 0 to `length` - 1.
        length: how many there are.

    Raises:
        ValueError: there are none, or one is out of range.
    """
    if len(indices) == 0 or not all(0 <= i < length for i in indices):
        raise ValueError(f"got {name} {list(indices)}, expected numbers from 0 to {length - 1}")
    return list(indices)


def symmetric_limit(array: np.ndarray) -> float:
    """The end of a colour scale around zero: the largest finite magnitude, or 1 where all is zero."""
    return float(np.abs(array).max()) or 1.0
