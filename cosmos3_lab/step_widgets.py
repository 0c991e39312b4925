"""Two lenses on the loop: what guidance adds at each step, and what the solver does with it.

Both turn their records into small maps first and let go of the large tensors.

Read next: `player_widgets.py`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from einops import reduce
from jaxtyping import Float
from torch import Tensor

from cosmos3_lab.denoise import StepRecord
from cosmos3_lab.figure_style import (
    SOUND,
    STYLE,
    VIDEO,
    add_colour_bar,
    as_array,
    dress,
    dress_legend,
    new_figure,
    pick_evenly,
)
from cosmos3_lab.step_figures import LOOKS, plot_guidance, plot_unipc
from cosmos3_lab.widget_parts import (
    buttons,
    check_records,
    has_front_end,
    lab_box,
    line,
    on_change,
    row,
    say,
    step_controls,
    step_words,
)

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from cosmos3_lab.widget_canvas import Mosaic

MOST_FRAMES = 9  # of a row of maps
SCALES = [("each step its own", "step"), ("same at every step", "run")]


def rms_map(video: Tensor) -> Float[np.ndarray, "t h w"]:
    """Root mean square over the channels.

    Args:
        video: `[1, C, t, h, w]`.
    """
    return np.sqrt(reduce(as_array(video) ** 2, "1 c t h w -> t h w", "mean"))


# ---------------------------------------------------------------------------------------------------------- guidance


def guidance_lens(records: Sequence[StepRecord]) -> "Widget | Figure":
    """How far the prompt moves the velocity, `|v_cond - v_uncond|`, over space, over the clip's time and over the steps.

    Args:
        records: of a guided run with `keep="full"`.

    Raises:
        ValueError: there are no records, they hold no velocities, or guidance was off.
    """
    records = check_records(records, "velocity")
    if any(record.velocity.uncond is None for record in records):
        raise ValueError("got records of a run without guidance, expected guidance_scale other than 1")
    return _build_guidance(records) if has_front_end() else plot_guidance(records)


def _build_guidance(records: list[StepRecord]) -> "Widget":
    from cosmos3_lab.widget_canvas import Mosaic, MovingFigure

    box = lab_box()
    apart = [record.velocity.cond.map(lambda c, u: c - u, record.velocity.uncond) for record in records]
    maps = np.stack([rms_map(latents.video) for latents in apart])  # [steps, t, h, w]
    over_time = {"video": np.sqrt(reduce(maps**2, "s t h w -> s t", "mean"))}
    if apart[0].sound is not None:
        sounds = np.stack([as_array(latents.sound)[0] for latents in apart])
        over_time["sound"] = np.sqrt(reduce(sounds**2, "s n d -> s n", "mean"))
    del apart
    steps, scrub, link = step_controls(records)
    scale_row, scale = buttons("scale", SCALES, "step")
    picture, words = box.Picture(), line()

    figure, (top, left, right) = _three_panels()
    frames = pick_evenly(maps.shape[1], MOST_FRAMES)
    tiles = Mosaic(top, maps[0, frames], columns=MOST_FRAMES, names=[f"frame {f}" for f in frames], cmap=STYLE["amount"])
    bar = _amount_bar(tiles)
    indices = [record.index for record in records]
    for name in over_time:
        left.plot(indices, [record.rms[f"{name}.guidance"] for record in records], label=name, **LOOKS[name])
    dress(left, title="Over the steps", x="step", y=r"rms of $v_{cond} - v_{uncond}$", grid="both")
    left.set_ylim(bottom=0)
    dress_legend(left)
    _fill_legend(left)
    curves = {}
    for name, values in over_time.items():
        count = values.shape[1]
        look = LOOKS[name] | {"marker": "o" if name == "video" else ""}
        (curves[name],) = right.plot((np.arange(count) + 0.5) / count, values[0], **look)
    dress(right, title="Over the clip, at this step", x="share of the clip's time", y="rms", grid="both")
    right.set(xlim=(0, 1))
    mark = step_marker(left, records)
    moving = MovingFigure(figure, [tiles.image, bar.ax, mark, left.get_legend(), right])

    def redraw() -> None:
        at = scrub.value - indices[0]
        tiles.show(maps[at, frames])
        tiles.image.set_clim(0, (maps if scale.value == "run" else maps[at]).max() or 1)
        mark.set_xdata([scrub.value, scrub.value])
        for name, curve in curves.items():
            curve.set_ydata(over_time[name][at])
        seen = [values if scale.value == "run" else values[at] for values in over_time.values()]
        right.set_ylim(0, 1.08 * max(values.max() for values in seen) or 1)
        numbers = ", ".join(f"{name} {records[at].rms[f'{name}.guidance']:.3f}" for name in over_time)
        picture.show(moving.png(), f"Where and when the prompt moves the velocity at {step_words(records[at])}")
        say(words, f"{step_words(records[at])}; the prompt moves the velocity by rms {numbers}")

    records = [record.keep("summary") for record in records]
    on_change(redraw, scrub, scale)
    return box.LabBox([row(steps, scale_row), picture, words], links=[link])


# ------------------------------------------------------------------------------------------------------------- unipc


def unipc_lens(records: Sequence[StepRecord]) -> "Widget | Figure":
    """What corrector and predictor of UniPC move at each step, where, how far, and with which order.

    Args:
        records: of a run with `keep="full"`.

    Raises:
        ValueError: there are no records, or they hold no moves.
    """
    records = check_records(records, "predictor_move")
    return _build_unipc(records) if has_front_end() else plot_unipc(records)


def _build_unipc(records: list[StepRecord]) -> "Widget":
    from cosmos3_lab.widget_canvas import Mosaic, MovingFigure

    box = lab_box()
    predicted = np.stack([rms_map(record.predictor_move.video) for record in records])
    corrected = np.stack(
        [np.zeros_like(predicted[0]) if r.corrector_move is None else rms_map(r.corrector_move.video) for r in records]
    )
    steps, scrub, link = step_controls(records)
    scale_row, scale = buttons("scale", SCALES, "step")
    picture, words = box.Picture(), line()

    figure = new_figure(10.0, 5.6)
    from cosmos3_lab.figure_canvas import LabAxes

    grid = figure.add_gridspec(3, 2, height_ratios=(1, 1, 2), width_ratios=(2, 1))
    axes = [figure.add_subplot(p, axes_class=LabAxes) for p in (grid[0, :], grid[1, :], grid[2, 0], grid[2, 1])]
    frames = pick_evenly(predicted.shape[1], MOST_FRAMES)
    rows = {}
    for ax, name, maps in zip(axes, ("corrector", "predictor"), (corrected, predicted), strict=False):
        names = [f"frame {f}" for f in frames]
        tiles = Mosaic(ax, maps[0, frames], columns=MOST_FRAMES, names=names, cmap=STYLE["amount"])
        ax.set_ylabel(name, color=STYLE["ink"], fontsize=STYLE["text_size"])
        rows[name] = tiles, maps, _amount_bar(tiles)
    indices = [record.index for record in records]
    marks = [_draw_moves(axes[2], records), _draw_orders(axes[3], records)]
    legends = [ax.get_legend() for ax in axes[2:]]  # over the marks
    parts = [part for tiles, _, bar in rows.values() for part in (tiles.image, bar.ax)]
    moving = MovingFigure(figure, [*parts, *marks, *legends])

    def redraw() -> None:
        at = scrub.value - indices[0]
        for tiles, maps, _ in rows.values():
            tiles.show(maps[at, frames])
            tiles.image.set_clim(0, (maps if scale.value == "run" else maps[at]).max() or 1)
        for mark in marks:
            mark.set_xdata([scrub.value, scrub.value])
        picture.show(moving.png(), f"What corrector and predictor move at {step_words(records[at])}")
        say(words, _solver_words(records[at]))

    records = [record.keep("summary") for record in records]
    on_change(redraw, scrub, scale)
    return box.LabBox([row(steps, scale_row), picture, words], links=[link])


def _draw_moves(ax: "Axes", records: Sequence[StepRecord]) -> "Line2D":
    indices = [record.index for record in records]
    for name in LOOKS:
        for part, face in (("predictor", LOOKS[name]["color"]), ("corrector", STYLE["face"])):
            values = np.array([record.rms.get(f"{name}.{part}_move", np.nan) for record in records])
            values[values == 0] = np.nan  # a logarithmic axis has no zero
            if np.isfinite(values).any():
                ax.plot(indices, values, label=f"{name}, {part}", **LOOKS[name] | {"markerfacecolor": face})
    ax.set_yscale("log")
    dress(ax, title="How far the sample moves", x="step", y="rms of the move", grid="both")
    dress_legend(ax, ncols=2, loc="upper left")
    _fill_legend(ax)
    return step_marker(ax, records)


def _draw_orders(ax: "Axes", records: Sequence[StepRecord]) -> "Line2D":
    indices = [record.index for record in records]
    ax.step(indices, [r.order for r in records], where="mid", color=VIDEO, linewidth=2, label="predictor")
    ax.step(indices, [r.corrector_order for r in records], where="mid", color=SOUND, linestyle="--", label="corrector")
    ax.set(yticks=range(max(r.order for r in records) + 1))
    ax.set_ylim(-0.25, ax.get_yticks()[-1] + 0.6)
    dress(ax, title="Order", x="step", grid="y")
    dress_legend(ax, ncols=2, loc="upper left")
    _fill_legend(ax)
    return step_marker(ax, records)


def _solver_words(record: StepRecord) -> str:
    corrector = "nothing to correct yet"
    if record.corrector_order:
        corrector = f"the corrector (order {record.corrector_order}) moves video by rms {record.rms['video.corrector_move']:.4f}"
    predictor = f"the predictor (order {record.order}) by {record.rms['video.predictor_move']:.4f}"
    return f"{step_words(record)}; {corrector}, {predictor}"


# -------------------------------------------------------------------------------------------------------------- both


def _three_panels() -> tuple["Figure", list["Axes"]]:
    """A wide panel above two."""
    from cosmos3_lab.figure_canvas import LabAxes

    figure = new_figure(10.0, 4.4)
    grid = figure.add_gridspec(2, 2, height_ratios=(1.1, 2))
    return figure, [figure.add_subplot(place, axes_class=LabAxes) for place in (grid[0, :], grid[1, 0], grid[1, 1])]


def _amount_bar(tiles: "Mosaic") -> "Colorbar":
    """A colour bar with three numbers, whose width does not depend on what they are."""
    from matplotlib.ticker import LinearLocator

    tiles.image.set_clim(0, 0.00116)  # numbers as wide as they get, while the room is laid out
    look = {"ticks": LinearLocator(3), "format": lambda value, place: f"{value:.2g}"}
    return add_colour_bar(tiles.image, [tiles.ax], "rms over C", pad=0.01, aspect=10, **look)


def _fill_legend(ax: "Axes") -> None:
    """Give the legend a face, for a mark may stand behind it."""
    box = ax.get_legend().get_frame()
    box.set(facecolor=STYLE["face"], edgecolor="none", alpha=0.92)
    ax.get_legend().set_frame_on(True)


def step_marker(ax: "Axes", records: Sequence[StepRecord]) -> "Line2D":
    """A vertical line that will stand at the step shown, on an axis of whole steps.

    Args:
        ax: with steps from left to right.
        records: of the steps.
    """
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlim(records[0].index - 0.5, records[-1].index + 0.5)
    return ax.axvline(0, color=STYLE["ink"], linewidth=1.4, linestyle=(0, (4, 2)))
