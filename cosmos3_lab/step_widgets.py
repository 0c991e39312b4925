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
    MOST_FRAMES,
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
    round_up,
    row,
    say,
    step_controls,
    step_words,
)

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

SCALES = [("each step its own", "step"), ("same at every step", "run")]
SHARES = (0.0, 0.5, 1.0)  # of a scale, where its numbers stand


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
        records: of a guided run with `keep="full"`. Steps without the second pass are left out; the rest must be
            steps that follow each other.

    Raises:
        ValueError: there are no records, they hold no velocities, or guidance was off.
    """
    records = [record for record in check_records(records, "velocity") if record.velocity.uncond is not None]
    if not records:
        raise ValueError("got records of a run without guidance, expected guidance_scale other than 1")
    records = check_records(records)
    return _build_guidance(records) if has_front_end() else plot_guidance(records)


def _build_guidance(records: list[StepRecord]) -> "Widget":
    box = lab_box()
    apart = [record.velocity.cond.map(lambda c, u: c - u, record.velocity.uncond) for record in records]
    maps = np.stack([rms_map(latents.video) for latents in apart])  # [steps, t, h, w]
    over_time = {"video": np.sqrt(reduce(maps**2, "s t h w -> s t", "mean"))}
    if apart[0].sound is not None:
        sounds = np.stack([as_array(latents.sound)[0] for latents in apart])
        over_time["sound"] = np.sqrt(reduce(sounds**2, "s n d -> s n", "mean"))
    del apart
    records = [record.keep("summary") for record in records]
    steps, scrub, link = step_controls(records)
    scale_row, scale = buttons("scale", SCALES, "step")
    picture, words = box.Picture(), line()
    panes = _GuidancePanes(records, maps, over_time)

    def redraw() -> None:
        record = records[scrub.value - records[0].index]
        panes.show(record, whole_run=scale.value == "run")
        numbers = ", ".join(f"{name} {record.rms[f'{name}.guidance']:.3f}" for name in over_time)
        picture.show(panes.moving.png(), f"Where and when the prompt moves the velocity at {step_words(record)}")
        say(words, f"{step_words(record)}; the prompt moves the velocity by rms {numbers}")

    on_change(redraw, scrub, scale)
    return box.LabBox([row(steps, scale_row), picture, words], links=[link])


class _GuidancePanes:
    """Maps of one step, the rms over the steps, and over the clip at this step.

    Args:
        records: with numbers.
        maps: `[steps, t, h, w]`.
        over_time: `[steps, places]` of each modality.
    """

    def __init__(self, records: Sequence[StepRecord], maps: np.ndarray, over_time: dict[str, np.ndarray]) -> None:
        from cosmos3_lab.figure_canvas import LabAxes
        from cosmos3_lab.widget_canvas import MovingFigure, moving_labels

        figure = new_figure(10.0, 4.4)
        grid = figure.add_gridspec(2, 2, height_ratios=(1.1, 2))
        top, left, right = (figure.add_subplot(p, axes_class=LabAxes) for p in (grid[0, :], grid[1, 0], grid[1, 1]))
        self.first, self.over_time, self.maps = records[0].index, over_time, _Maps(top, maps)
        indices = [record.index for record in records]
        for name in over_time:
            left.plot(indices, [record.rms[f"{name}.guidance"] for record in records], label=name, **LOOKS[name])
        dress(left, title="Over the steps", x="step", y=r"rms of $v_{cond} - v_{uncond}$", grid="both")
        left.set_ylim(bottom=0)
        dress_legend(left)
        _fill_legend(left)
        self.curves = {}
        for name, values in over_time.items():
            count = values.shape[1]
            look = LOOKS[name] | {"marker": "o" if name == "video" else ""}
            (self.curves[name],) = right.plot((np.arange(count) + 0.5) / count, values[0], **look)
        dress(right, title="Over the clip, at this step", x="share of the clip's time", y="rms", grid="both")
        right.set(xlim=(0, 1), ylim=(0, 1.05))
        self.numbers = moving_labels(right.yaxis, SHARES, widest="0.0075")
        self.mark = step_marker(left, records)
        moving = [*self.maps.moving, self.mark, *self.curves.values(), *self.numbers]
        self.moving = MovingFigure(figure, moving, above=[left.get_legend()])

    def show(self, record: StepRecord, *, whole_run: bool) -> None:
        """Put another step in.

        Args:
            record: of the step.
            whole_run: whether the scales are those of all steps.
        """
        at = record.index - self.first
        self.maps.show(at, whole_run=whole_run)
        self.mark.set_xdata([record.index, record.index])
        limit = round_up(max(float((values if whole_run else values[at]).max()) for values in self.over_time.values()))
        for name, curve in self.curves.items():
            curve.set_ydata(self.over_time[name][at] / limit)
        for share, text in zip(SHARES, self.numbers, strict=True):
            text.set_text(f"{share * limit:.3g}")


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
    box = lab_box()
    predicted = np.stack([rms_map(record.predictor_move.video) for record in records])
    corrected = np.stack(
        [np.zeros_like(predicted[0]) if r.corrector_move is None else rms_map(r.corrector_move.video) for r in records]
    )
    records = [record.keep("summary") for record in records]
    steps, scrub, link = step_controls(records)
    scale_row, scale = buttons("scale", SCALES, "step")
    picture, words = box.Picture(), line()
    panes = _UniPCPanes(records, {"corrector": corrected, "predictor": predicted})

    def redraw() -> None:
        record = records[scrub.value - records[0].index]
        panes.show(record, whole_run=scale.value == "run")
        picture.show(panes.moving.png(), f"What corrector and predictor move at {step_words(record)}")
        say(words, _solver_words(record))

    on_change(redraw, scrub, scale)
    return box.LabBox([row(steps, scale_row), picture, words], links=[link])


class _UniPCPanes:
    """Maps of what each part moves at one step; how far and with which order at all steps.

    Args:
        records: with numbers.
        maps: `[steps, t, h, w]` of each part.
    """

    def __init__(self, records: Sequence[StepRecord], maps: dict[str, np.ndarray]) -> None:
        from cosmos3_lab.figure_canvas import LabAxes
        from cosmos3_lab.widget_canvas import MovingFigure

        figure = new_figure(10.0, 5.6)
        grid = figure.add_gridspec(3, 2, height_ratios=(1, 1, 2), width_ratios=(2, 1))
        *rows, far, order = (figure.add_subplot(p, axes_class=LabAxes) for p in (grid[0, :], grid[1, :], grid[2, 0], grid[2, 1]))
        self.first, self.rows = records[0].index, [_Maps(ax, part) for ax, part in zip(rows, maps.values(), strict=True)]
        for ax, name in zip(rows, maps, strict=True):
            ax.set_ylabel(name, color=STYLE["ink"], fontsize=STYLE["text_size"])
        self.marks = [_draw_moves(far, records), _draw_orders(order, records)]
        moving = [*(artist for part in self.rows for artist in part.moving), *self.marks]
        self.moving = MovingFigure(figure, moving, above=[far.get_legend(), order.get_legend()])

    def show(self, record: StepRecord, *, whole_run: bool) -> None:
        """Put another step in.

        Args:
            record: of the step.
            whole_run: whether the scales are those of all steps.
        """
        for part in self.rows:
            part.show(record.index - self.first, whole_run=whole_run)
        for mark in self.marks:
            mark.set_xdata([record.index, record.index])


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
        corrector = f"corrector (order {record.corrector_order}) moves video by rms {record.rms['video.corrector_move']:.4f}"
    predictor = f"predictor (order {record.order}) by {record.rms['video.predictor_move']:.4f}"
    return f"{step_words(record)}; {corrector}, {predictor}"


# -------------------------------------------------------------------------------------------------------------- both


class _Maps:
    """A row of maps of amounts with a colour bar, one step at a time.

    The bar stays as it is and the maps are shares of its upper end, for numbers are drawn in a tenth of a bar's time.

    Args:
        ax: to draw on.
        maps: `[steps, t, h, w]`.
    """

    def __init__(self, ax: "Axes", maps: np.ndarray) -> None:
        from cosmos3_lab.widget_canvas import Mosaic, moving_labels

        self.steps, self.frames = maps, pick_evenly(maps.shape[1], MOST_FRAMES)
        names, look = [f"frame {f}" for f in self.frames], {"cmap": STYLE["amount"], "vmin": 0, "vmax": 1}
        self.tiles = Mosaic(ax, maps[0, self.frames], columns=MOST_FRAMES, names=names, **look)
        bar = add_colour_bar(self.tiles.image, [ax], "rms over C", pad=0.01, aspect=10)
        self.numbers = moving_labels(bar.ax.yaxis, SHARES, widest="0.00058")
        self.moving = [self.tiles.image, *self.numbers]

    def show(self, at: int, *, whole_run: bool) -> None:
        """Put another step in.

        Args:
            at: its place among the steps.
            whole_run: whether the scale is that of all steps.
        """
        limit = float((self.steps if whole_run else self.steps[at]).max()) or 1.0
        self.tiles.show(self.steps[at, self.frames] / limit)
        for share, text in zip(SHARES, self.numbers, strict=True):
            text.set_text(f"{share * limit:.2g}")


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
