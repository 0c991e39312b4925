"""Figures of the loop's records: what guidance asks for, what the solver does, and the way of the sample from noise to x0.

Read next: `sound_figures.py`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from einops import reduce
from jaxtyping import Float

from cosmos3_lab.denoise import StepRecord
from cosmos3_lab.figure_style import (
    COLOURS,
    SOUND,
    STYLE,
    VIDEO,
    Numbers,
    add_colour_bar,
    as_array,
    axes_or_new,
    check_indices,
    describe,
    dress,
    dress_legend,
    dress_picture,
    dress_title,
    new_panels,
    new_pictures,
    pick_evenly,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Modality = Literal["video", "sound"]
LOOKS = {
    "video": {"color": VIDEO, "linestyle": "-", "marker": "o", "markersize": 4, "linewidth": 1.5},
    "sound": {"color": SOUND, "linestyle": "--", "marker": "s", "markersize": 3.5, "linewidth": 1.5},
}


def plot_guidance(records: Sequence[StepRecord]) -> "Figure":
    """Two panels over the steps: how far apart the two branches are, and the cosine between them; video and sound.

    Args:
        records: of a guided run, in order; numbers are enough (`keep="summary"`). Steps without the second pass are left out.

    Raises:
        ValueError: there are no records, or guidance was off.
    """
    records = [record for record in records if "video.guidance" in record.rms] or records
    modalities = _modalities(records, "guidance")
    figure, panels = new_panels(1, 2, 10.0, 3.5)
    steps = [record.index for record in records]
    for modality in modalities:
        apart = [record.rms[f"{modality}.guidance"] for record in records]
        panels[0, 0].plot(steps, apart, label=modality, **LOOKS[modality])
        panels[0, 1].plot(steps, [_branch_cosine(record, modality) for record in records], label=modality, **LOOKS[modality])
    dress(panels[0, 0], title="How far the prompt moves the velocity", x="step", y=r"rms of $v_{cond} - v_{uncond}$", grid="both")
    dress(panels[0, 1], title="How alike the two branches are", x="step", y="cosine", grid="both")
    panels[0, 0].set_ylim(bottom=0)
    for ax in panels[0]:
        _show_sigma(ax, records)
    dress_legend(panels[0, 0])
    describe(figure, f"Distance and cosine between conditional and unconditional velocity of {' and '.join(modalities)}")
    return figure


def _branch_cosine(record: StepRecord, modality: str) -> float:
    """From the three lengths alone: `|c - u|^2 = |c|^2 + |u|^2 - 2 |c| |u| cos`."""
    cond, uncond, apart = (record.rms[f"{modality}.{name}"] for name in ("velocity_cond", "velocity_uncond", "guidance"))
    return (cond**2 + uncond**2 - apart**2) / (2 * cond * uncond)


def guidance_map(record: StepRecord, *, frames: Sequence[int] | None = None) -> "Figure":
    """Where in the picture the prompt moves the velocity: rms over the channels of `v_cond - v_uncond`, one colour scale.

    Args:
        record: with its velocities kept.
        frames: latent frames to show; None for at most 9, evenly spaced.

    Raises:
        ValueError: the record holds no velocities, guidance was off, or a frame is out of range.
    """
    if record.velocity is None or record.velocity.uncond is None:
        raise ValueError("got a record without two velocities, expected one of a guided run with keep='full'")
    apart = as_array(record.velocity.cond.video) - as_array(record.velocity.uncond.video)
    maps = np.sqrt(reduce(apart**2, "1 c t h w -> t h w", "mean"))
    frames = check_indices("frames", pick_evenly(len(maps), 9) if frames is None else frames, len(maps))
    figure, panels = new_pictures(len(frames), len(frames), 9.1, side=2.2, shape=maps.shape[1:], room=0.9)
    for ax, frame in zip(panels, frames, strict=True):
        image = ax.imshow(maps[frame], cmap=STYLE["amount"], vmin=0, vmax=maps[frames].max() or 1, interpolation="nearest")
        dress_picture(ax, title=f"frame {frame}")
    add_colour_bar(image, panels, "rms over channels", aspect=12, pad=0.01)
    dress_title(
        figure, rf"Where the prompt moves the velocity, by latent frame: step {record.index}, $\sigma$ = {record.sigma:.3f}"
    )
    describe(figure, f"Distance between the two velocities over space at step {record.index}, latent frames {frames}")
    return figure


def plot_unipc(records: Sequence[StepRecord]) -> "Figure":
    """What the solver does at each step: how far predictor and corrector move the sample, and the orders they use.

    Args:
        records: in order; numbers are enough (`keep="summary"`).

    Raises:
        ValueError: there are no records.
    """
    modalities = _modalities(records, "predictor_move")
    figure, panels = new_panels(2, 1, 10.0, 5.2, sharex=True, height_ratios=(3, 1))
    moves, orders = panels[:, 0]
    steps = np.array([record.index for record in records])
    for modality in modalities:
        for name, filled in (("predictor", True), ("corrector", False)):
            values = np.array([record.rms.get(f"{modality}.{name}_move", np.nan) for record in records])
            values[values == 0] = np.nan  # a logarithmic axis has no zero
            look = LOOKS[modality] | ({} if filled else {"markerfacecolor": STYLE["face"], "linewidth": 1})
            moves.plot(steps, values, label=f"{modality}, {name}", **look)
    moves.set_yscale("log")
    dress(moves, title="How far the sample moves", y="rms of the move", grid="both")
    orders.step(steps, [record.order for record in records], where="mid", color=COLOURS["green"], label="predictor", linewidth=2)
    corrector = [record.corrector_order for record in records]
    orders.step(steps, corrector, where="mid", color=STYLE["ink"], linestyle=":", label="corrector", linewidth=1.8)
    dress(orders, title="Order (corrector 0: nothing to correct yet)", x="step", y="order", grid="y")
    orders.set(yticks=range(max(record.order for record in records) + 1))
    orders.set_ylim(-0.25, orders.get_yticks()[-1] + 0.25)
    _show_sigma(moves, records)
    for ax in (moves, orders):
        dress_legend(ax, loc="center left", bbox_to_anchor=(1.005, 0.5))
    describe(figure, f"Size of the predictor's and corrector's moves of {' and '.join(modalities)}, and their orders")
    return figure


def _modalities(records: Sequence[StepRecord], needed: str) -> list[Modality]:
    """Those for which every record has this number."""
    found = [m for m in LOOKS if records and all(f"{m}.{needed}" in record.rms for record in records)]
    if not found:
        why = " of a guided run (guidance_scale other than 1)" if needed == "guidance" else ""
        raise ValueError(f"got {len(records)} records without '{needed}', expected at least one{why}")
    return found


def _show_sigma(ax: "Axes", records: Sequence[StepRecord]) -> None:
    """The noise level of some steps along the upper edge, whole steps along the lower one."""
    ax.xaxis.get_major_locator().set_params(integer=True)
    shown = [records[i] for i in pick_evenly(len(records), 6)]
    above = ax.secondary_xaxis("top")
    above.set_xticks([record.index for record in shown], [f"{record.sigma:.3g}" for record in shown])
    above.tick_params(color=STYLE["soft_ink"], labelcolor=STYLE["soft_ink"], labelsize=STYLE["text_size"] - 2)
    above.set_xlabel(r"$\sigma$", color=STYLE["soft_ink"], fontsize=STYLE["text_size"], labelpad=2)
    above.spines[:].set_visible(False)


# ------------------------------------------------------------------------------------------------------- trajectory


def plot_trajectory(records: Sequence[StepRecord], *, modality: Modality = "video", ax: "Axes | None" = None) -> "Axes":
    """The sample's way from noise to x0, and where the network pointed at each step, in the plane that shows most of both.

    Args:
        records: of one run, in order, with x0 and velocity kept.
        modality: "video" or "sound".
        ax: to draw on.

    Raises:
        ValueError: fewer than 2 records, or records without their tensors or without this modality.
    """
    kept = [r for r in records if r.x0 is not None and r.velocity is not None and getattr(r.x0, modality) is not None]
    if len(kept) < 2 or len(kept) < len(records):
        raise ValueError(f"got {len(kept)} records with {modality}, expected at least 2, all of a run with keep='full'")
    sigmas = np.array([record.sigma for record in kept])
    x0s = [as_array(getattr(record.x0, modality)) for record in kept]
    velocities = [as_array(getattr(record.velocity.guided, modality)) for record in kept]
    samples = [x0 + sigma * v for x0, v, sigma in zip(x0s, velocities, sigmas, strict=True)]  # schedule.velocity_to_x0
    points, shares = principal_plane([*samples, *x0s])
    path, aims = points[: len(kept)], points[len(kept) :]
    ax = axes_or_new(ax, 7.0, 5.0)
    for sample, aim in zip(path, aims, strict=True):
        ax.plot(*zip(sample, aim, strict=True), color=STYLE["rule"], linewidth=0.8, zorder=1)
    ax.plot(*path.T, color=STYLE["soft_ink"], linewidth=1, zorder=2)
    ax.plot(*aims.T, color=STYLE["soft_ink"], linewidth=1, linestyle=":", zorder=2)
    look = {"c": sigmas, "cmap": STYLE["amount"], "vmin": 0, "vmax": 1, "edgecolors": STYLE["ink"], "linewidths": 0.6}
    dots = ax.scatter(*path.T, s=36, zorder=3, **look)
    ax.scatter(*aims.T, s=30, marker="D", zorder=3, **look)
    for marker, label in (("o", "sample"), ("D", "x0 predicted from it")):  # in the legend without a noise level's colour
        ax.plot([], [], linestyle="", marker=marker, color=STYLE["face"], markeredgecolor=STYLE["ink"], label=label)
    for text, point in (("noise", path[0]), ("result", aims[-1])):  # the last step goes all the way to its x0
        away = point - points.mean(axis=0)  # from all others, which the label must not hide
        look = {"textcoords": "offset points", "color": STYLE["ink"], "fontsize": STYLE["text_size"], "zorder": 4}
        look |= {"ha": "center", "va": "center", "arrowprops": {"arrowstyle": "-", "color": STYLE["soft_ink"], "linewidth": 0.8}}
        ax.annotate(text, point, 30 * away / (np.linalg.norm(away) or 1), **look)
    ax.margins(x=0.25, y=0.15)
    ax.set_aspect("equal", adjustable="datalim")
    labels = [f"component {i + 1} ({share:.0%} of the variance)" for i, share in enumerate(shares)]
    dress(ax, x=labels[0], y=labels[1], grid="both")
    add_colour_bar(dots, [ax], r"$\sigma$", aspect=30)
    dress_legend(ax)
    describe(ax, f"Path of the {modality} sample over {len(kept)} steps and the x0 predicted at each, in two components")
    return ax


def principal_plane(points: Sequence[Numbers]) -> tuple[Float[np.ndarray, "n 2"], tuple[float, float]]:
    """Coordinates of points in the plane through their mean along which they differ most (PCA).

    Args:
        points: n arrays or tensors of one shape, at least 2.

    Returns:
        `[n, 2]`, and the share of the variance along either axis. Each axis points so that the first point's coordinate
        is not positive.
    """
    stacked = np.stack([as_array(point).ravel() for point in points]).astype(np.float64)
    centred = stacked - stacked.mean(axis=0)
    # The few points' inner products hold all that is needed; the latents' many numbers need no decomposition.
    variances, directions = np.linalg.eigh(centred @ centred.T)
    top = np.argsort(variances)[::-1][:2]
    variances, directions = variances.clip(min=0), directions[:, top]
    directions = directions * np.where(directions[0] > 0, -1, 1)
    shares = variances[top] / (variances.sum() or 1)
    return directions * np.sqrt(variances[top]), (float(shares[0]), float(shares[1]))
