"""Figures of the towers, of solvers and guidance, and of curves that a notebook measures itself.

Read next: `figures.py`, the list of all figures.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cosmos3_lab.figure_style import (
    COLOURS,
    CURVES,
    SOUND,
    STYLE,
    VIDEO,
    Numbers,
    add_colour_bar,
    as_array,
    axes_or_new,
    describe,
    dress,
    dress_legend,
    new_panels,
    with_shape,
)
from cosmos3_lab.guidance_scale import Guidance
from cosmos3_lab.positions import TokenLayout
from cosmos3_lab.schedule import Schedule
from cosmos3_lab.solver_lab import SolverError
from cosmos3_lab.solvers import Solver

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXES = ("time", "row", "column")
MOST_MARKERS = 40  # of a curve; more would run into each other


def plot_parts(
    parts: Mapping[str, Mapping[str, float | int]], *, x: str = "million parameters", ax: "Axes | None" = None
) -> "Axes":
    """Bars that are made of parts, such as the parameters of each tower.

    Args:
        parts: bar to part to size; every bar has the same parts.
        x: what the sizes are.
        ax: to draw on.

    Raises:
        ValueError: there are no bars, or they have different parts.
    """
    names = [list(sizes) for sizes in parts.values()]
    if not names or not names[0] or any(part != names[0] for part in names):
        raise ValueError(f"got bars with the parts {names}, expected at least one bar, and the same parts for all")
    ax, left = axes_or_new(ax, 9.0, 0.8 + 0.5 * len(parts)), np.zeros(len(parts))
    for part, colour in zip(names[0], _cycle(list(COLOURS.values()), len(names[0])), strict=True):
        sizes = np.array([bar[part] for bar in parts.values()])
        ax.barh(list(parts), sizes, left=left, color=colour, height=0.6, label=part)
        left = left + sizes
    ax.invert_yaxis()
    dress(ax, x=x, grid="x")
    dress_legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    describe(ax, "Bars of parts, " + "; ".join(f"{bar}: {dict(sizes)}" for bar, sizes in parts.items()))
    return ax


def plot_token_change(change: Numbers, *, token: int, ax: "Axes | None" = None) -> "Axes":
    """How much each text token changes in each layer, on a logarithmic scale; what does not change at all is left blank.

    Args:
        change: `[layers, s_text]`, at least 0.
        token: which token was exchanged.
        ax: to draw on.

    Raises:
        ValueError: another shape, or nothing changes.
    """
    amounts = with_shape("changes", change, "layers s_text")
    if not (amounts > 0).any():
        raise ValueError("got changes that are zero everywhere, expected at least one token that changes")
    ax = axes_or_new(ax, 9.5, 2.6)
    shown = np.where(amounts > 0, amounts, np.nan)
    image = ax.imshow(shown, aspect="auto", origin="lower", interpolation="nearest", cmap=STYLE["amount"], norm="log")
    ax.annotate(
        f"token {token}, exchanged",
        (token, len(amounts) - 0.5),
        (0, 3),
        textcoords="offset points",
        color=STYLE["ink"],
        ha="center",
    )
    ax.yaxis.get_major_locator().set_params(integer=True)
    dress(ax, x="text token", y="layer")
    add_colour_bar(image, [ax], "rms of the change", pad=0.01)
    describe(ax, f"Change by layer and text token after token {token} was exchanged; blank where nothing changes")
    return ax


def plot_token_sequence(layout: TokenLayout, *, ax: "Axes | None" = None) -> "Axes":
    """The sequence that a GEN layer attends to: text, video by latent frame, sound.

    Args:
        layout: token counts.
        ax: to draw on.

    Raises:
        ValueError: the layout has no video.
    """
    if layout.n_video == 0:
        raise ValueError(f"got a layout without video tokens ({layout}), expected at least one latent frame")
    ax, frames = axes_or_new(ax, 10.0, 1.5), layout.video_grid[0]
    per_frame, start = layout.n_video // frames, layout.s_text
    video = [(start + f * per_frame, per_frame) for f in range(frames)]
    look = {"edgecolor": STYLE["face"], "linewidth": 1.2}
    text = {"facecolor": STYLE["rule"], "edgecolor": STYLE["soft_ink"], "hatch": "///", "linewidth": 0}
    ax.broken_barh([(0, start)], (0, 1), label=f"text: K and V only ({start})", **text)
    ax.broken_barh(video, (0, 1), facecolor=VIDEO, label=f"video: a block for each latent frame ({layout.n_video})", **look)
    if layout.n_sound:
        end = [(start + layout.n_video, layout.n_sound)]
        ax.broken_barh(end, (0, 1), facecolor=SOUND, label=f"sound ({layout.n_sound})", **look)
    dress(ax, x="place in the sequence that a GEN layer attends to")
    ax.set(yticks=[], xlim=(0, start + layout.s_gen))
    dress_legend(ax, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    describe(ax, f"The sequence of {start} text, {layout.n_video} video and {layout.n_sound} sound tokens, in this order")
    return ax


def plot_positions(
    text: Float[Tensor, "3 s_text"], media: Float[Tensor, "3 s_gen"], layout: TokenLayout, *, start: int
) -> "Figure":
    """Time, row and column of text tokens, of the first media tokens, and where sound and video stand on the time axis.

    Args:
        text: from `compute_mrope_position_ids_text`.
        media: from `media_position_ids`.
        layout: token counts.
        start: M, which is subtracted from times.

    Raises:
        ValueError: there are not as many positions as the layout has tokens.
    """
    if (text.shape[1], media.shape[1]) != (layout.s_text, layout.s_gen):
        found, wanted = f"{text.shape[1]} and {media.shape[1]}", f"{layout.s_text} and {layout.s_gen}"
        raise ValueError(f"got {found} positions of text and media, expected {wanted}, as the layout says")
    figure, panels = new_panels(1, 3, 10.0, 3.3, width_ratios=(1, 1.5, 1.3))
    at_text, between, at_time = panels[0]
    per_frame = layout.n_video // layout.video_grid[0]
    shown = min(2 * per_frame, layout.n_video)  # of more frames, rows and columns could not be told apart
    moved = as_array(media) - np.array([[start], [0], [0]])
    for axis, look in enumerate(CURVES[:3]):
        at_text.plot(as_array(text)[axis], **look | {"marker": "", "linewidth": (4.5, 3, 1.5)[axis]})
        lane, colour = moved[axis, :shown], look["color"]
        between.plot(2 - axis + 0.75 * lane / max(lane.max(), 1), color=colour, linewidth=1.4, drawstyle="steps-mid")
    between.set_yticks([2, 1, 0], [f"{name}\n0 to {moved[a, :shown].max():g}" for a, name in enumerate(AXES)])
    dress(at_text, title="Text: all three axes agree", x="text token", y="position", grid="both")
    dress(between, title=f"Video: the first {shown // per_frame} latent frames", x="video token (time: minus M)")
    frames, sound = moved[0, : layout.n_video : per_frame], moved[0, layout.n_video :]
    for row, (name, times, colour) in enumerate((("video", frames, VIDEO), ("sound", sound, SOUND))):
        at_time.vlines(times, row + 0.12, row + 0.88, color=colour, linewidth=1.6, label=name)
    at_time.set(yticks=[0.5, 1.5], yticklabels=[f"video\n({len(frames)} frames)", f"sound\n({len(sound)})"], ylim=(-0.1, 2.1))
    dress(at_time, title="The time axis: one tick, one latent", x="time position minus M", grid="x")
    describe(
        figure, f"Positions on the axes time, row and column; M is {start:g}, the last sound or frame at {moved[0].max():.1f}"
    )
    return figure


def plot_curves(
    curves: Mapping[str, tuple[Sequence[float | int] | Numbers, Sequence[float | int] | Numbers]],
    *,
    title: str = "",
    x: str = "",
    y: str = "",
    log: bool = False,
    ax: "Axes | None" = None,
) -> "Axes":
    """A few measured curves in one picture, told apart by colour, dashes and marker.

    Args:
        curves: name to `(x values, y values)`, at most 6.
        title, x, y: texts.
        log: both axes logarithmic; where not, y begins at 0.
        ax: to draw on.

    Raises:
        ValueError: no curve, or more than can be told apart.
    """
    if not 1 <= len(curves) <= len(CURVES):
        raise ValueError(f"got {len(curves)} curves, expected 1 to {len(CURVES)}, which can be told apart")
    ax = axes_or_new(ax, 8.0, 3.4)
    for (name, (xs, ys)), look in zip(curves.items(), CURVES, strict=False):
        marker = look["marker"] if len(xs) <= MOST_MARKERS else ""
        ax.plot(*(as_array(torch.as_tensor(values)) for values in (xs, ys)), label=name, **look | {"marker": marker})
    dress(ax, title=title, x=x, y=y, grid="both")
    if log:
        ax.set(xscale="log", yscale="log")
    else:
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    dress_legend(ax)
    describe(ax, f"{title or 'Curves'}: {', '.join(curves)} over {x or 'x'}")
    return ax


def plot_solver_errors(
    errors: Iterable[SolverError],
    *,
    modality: Literal["video", "sound"] = "video",
    title: str = "Error at the end",
    ax: "Axes | None" = None,
) -> "Axes":
    """Error over evaluations, one curve for each solver; both axes logarithmic, so that order p is a straight line of slope -p.

    UniPC of one order has one colour, dashed and hollow without its corrector.

    Args:
        errors: from `flow_errors` or `model_errors`.
        modality: "video" or "sound".
        title: text.
        ax: to draw on.

    Raises:
        ValueError: there are none, or none of this modality.
    """
    field = "error" if modality == "video" else "sound_error"
    shown = [error for error in errors if getattr(error, field) is not None]
    if not shown:
        raise ValueError(f"got no errors of {modality}, expected at least one")
    ax = axes_or_new(ax, 8.0, 4.4)
    solvers = list(dict.fromkeys(error.solver for error in shown))
    for solver in solvers:
        points = sorted((e.evaluations, getattr(e, field)) for e in shown if e.solver == solver)
        ax.plot(*zip(*points, strict=True), label=str(solver), **_solver_look(solver))
    ax.set(xscale="log", yscale="log")
    ticks = _spread([error.evaluations for error in shown])
    ax.set_xticks(ticks, [str(count) for count in ticks])
    ax.set_xticks([], minor=True)
    of = f" of the {modality}" if any(error.sound_error is not None for error in shown) else ""
    dress(ax, title=title, x="evaluations of the velocity", y="relative rms error" + of, grid="both")
    dress_legend(ax, loc="center left", bbox_to_anchor=(1.0, 0.5))
    describe(ax, f"{title}: error{of} over evaluations for {'; '.join(str(solver) for solver in solvers)}")
    return ax


def _solver_look(solver: Solver) -> dict[str, Any]:
    if solver.name != "unipc":
        colour, marker = (COLOURS["orange"], "s") if solver.name == "euler" else (COLOURS["purple"], "D")
        return {"color": colour, "linestyle": "-.", "marker": marker, "markersize": 4, "linewidth": 1.5}
    colour, marker = (("green", "^"), ("blue", "o"), ("vermillion", "v"))[solver.order - 1]
    look = {"color": COLOURS[colour], "marker": marker, "markersize": 4, "linewidth": 1.5}
    return look | ({} if solver.corrector else {"linestyle": "--", "linewidth": 1, "markerfacecolor": STYLE["face"]})


def _spread(counts: Sequence[int]) -> list[int]:
    """Those of some whole numbers that are at least a third apart, from the largest down, so that their labels do not touch."""
    kept: list[int] = []
    for count in sorted(counts, reverse=True):
        if not kept or 1.33 * count <= kept[-1]:
            kept.append(count)
    return kept


def plot_guidance_scale(guidance: Guidance, schedule: Schedule, *, ax: "Axes | None" = None) -> "Axes":
    """w of every step over the noise level at which it is used; where the line is at 1, there is no second pass.

    Args:
        guidance: with a number for each step, such as `inputs.guidance`.
        schedule: of the run.
        ax: to draw on.

    Raises:
        ValueError: there are not as many numbers as steps.
    """
    scales = {"video": guidance.scale} | ({} if guidance.sound_scale is None else {"sound": guidance.sound_scale})
    if any(not isinstance(scale, Sequence) or len(scale) != schedule.num_steps for scale in scales.values()):
        raise ValueError(f"got {guidance} for {schedule.num_steps} steps, expected a number for each step: see resolve_guidance")
    ax = axes_or_new(ax, 8.0, 2.6)
    for name, scale in scales.items():
        look = {"color": VIDEO, "marker": "o"} if name == "video" else {"color": SOUND, "marker": "s", "linestyle": "--"}
        sigmas = as_array(schedule.sigmas)
        ax.step(sigmas, [*scale, scale[-1]], where="post", label=name, linewidth=1.5, **look | {"marker": ""})
        ax.plot(sigmas[:-1], scale, color=look["color"], marker=look["marker"], markersize=4, linestyle="")
    ax.axhline(1, color=STYLE["soft_ink"], linewidth=0.8, linestyle=":")
    ax.invert_xaxis()
    ax.set_ylim(0, 1.1 * max(1.0, *(max(scale) for scale in scales.values())))
    dress(ax, title="Guidance of each step", x=r"$\sigma$ (time runs to the right)", y="w", grid="both")
    dress_legend(ax)
    describe(ax, f"Guidance scale over sigma: {guidance}")
    return ax


def _cycle(colours: Sequence[str], count: int) -> list[str]:
    return [colours[i % len(colours)] for i in range(count)]
