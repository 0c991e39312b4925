"""Figures of video latents and of frames: channels, moments, distributions, film strips.

Read next: `step_figures.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from cosmos3_lab.denoise import StepRecord
from cosmos3_lab.figure_style import (
    CURVES,
    STYLE,
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
    symmetric_limit,
    with_shape,
)
from cosmos3_lab.preview import LatentPreview

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cosmos3_lab.figure_canvas import LabFigure


def plot_latent_channels(video: Numbers, *, frame: int = 0, channels: Sequence[int] | None = None, columns: int = 8) -> "Figure":
    """Channels of one latent frame side by side, on one colour scale around zero.

    Args:
        video: latent `[1, C, t, h, w]`.
        frame: which latent frame.
        channels: which; None for all.
        columns: of the grid.

    Raises:
        ValueError: another shape, or a frame or channel out of range.
    """
    array = with_shape("a video latent", video, "1 C t h w")
    (frame,) = check_indices("latent frame", [frame], array.shape[2])
    channels = check_indices("channels", range(array.shape[1]) if channels is None else channels, array.shape[1])
    pictures = {f"channel {c}": array[0, c, frame] for c in channels}
    figure = _signed_grid(pictures, columns)
    dress_title(figure, f"Latent frame {frame}")
    describe(figure, f"{len(channels)} channels of latent frame {frame} on one colour scale")
    return figure


def plot_latent_frames(video: Numbers, *, channel: int = 0, columns: int = 9) -> "Figure":
    """One channel through all latent frames, on one colour scale around zero.

    Args:
        video: latent `[1, C, t, h, w]`.
        channel: which.
        columns: of the grid.

    Raises:
        ValueError: another shape, or a channel out of range.
    """
    array = with_shape("a video latent", video, "1 C t h w")
    (channel,) = check_indices("channel", [channel], array.shape[1])
    pictures = {f"frame {t}": picture for t, picture in enumerate(array[0, channel])}
    figure = _signed_grid(pictures, columns)
    dress_title(figure, f"Channel {channel}, by latent frame")
    describe(figure, f"Channel {channel} in each of {array.shape[2]} latent frames on one colour scale")
    return figure


def _signed_grid(pictures: Mapping[str, np.ndarray], columns: int) -> "LabFigure":
    shape = next(iter(pictures.values())).shape
    figure, panels = new_pictures(len(pictures), columns, 9.1, side=1.6, shape=shape, room=0.9)
    limit = symmetric_limit(np.stack(list(pictures.values())))
    for ax, (title, picture) in zip(panels, pictures.items(), strict=True):
        image = ax.imshow(picture, cmap=STYLE["signed"], vmin=-limit, vmax=limit, interpolation="nearest")
        dress_picture(ax, title=title)
    add_colour_bar(image, panels, "latent value", aspect=30 if len(pictures) > columns else 12, pad=0.01)
    return figure


def plot_latent_histogram(latents: Mapping[str, Numbers], *, ax: "Axes | None" = None, bins: int = 80) -> "Axes":
    """How the values of latents are distributed, beside the standard normal that noise follows.

    Args:
        latents: by the name that the legend gives them, 1 to 6, of any shape.
        ax: to draw on.
        bins: over the range of all values together.

    Raises:
        ValueError: there are none, or more than can be told apart, or one is empty.
    """
    if not 1 <= len(latents) <= len(CURVES):
        raise ValueError(f"got {len(latents)} latents, expected 1 to {len(CURVES)}")
    values = {name: as_array(latent).ravel() for name, latent in latents.items()}
    if min(len(v) for v in values.values()) == 0:
        raise ValueError("got a latent without values, expected at least one")
    reach = max(4.0, *(float(np.abs(v).max()) for v in values.values()))
    edges = np.linspace(-reach, reach, bins + 1)
    ax = axes_or_new(ax, 7.0, 3.4)
    for (name, value), curve in zip(values.items(), CURVES, strict=False):
        density, _ = np.histogram(value, edges, density=True)
        label = f"{name}: mean {value.mean():.2f}, std {value.std():.2f}"
        ax.stairs(density, edges, label=label, color=curve["color"], linestyle=curve["linestyle"], linewidth=1.6)
    x = np.linspace(-reach, reach, 400)
    ax.plot(x, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi), color=STYLE["ink"], linewidth=1, label="standard normal")
    dress(ax, x="latent value (normalised)", y="probability density", grid="y")
    ax.set_xlim(-reach, reach)
    ax.set_ylim(bottom=0)
    dress_legend(ax)
    describe(ax, f"Histograms of {', '.join(latents)} beside the standard normal density")
    return ax


# ------------------------------------------------------------------------------------------------------------- films


def filmstrip(frames: Numbers, *, fps: float, count: int = 8) -> "Figure":
    """Frames at even distances with their times.

    Args:
        frames: `[frames, height, width, 3]` in [0, 1] or uint8.
        fps: frames a second.
        count: how many to show at most.

    Raises:
        ValueError: another shape.
    """
    array = with_shape("frames", frames, "frames height width 3")
    picked = pick_evenly(len(array), count)
    figure, panels = new_pictures(len(picked), len(picked), 10.0, side=2.5, shape=array.shape[1:], room=0.0)
    for ax, index in zip(panels, picked, strict=True):
        ax.imshow(_shown(array[index]))
        dress_picture(ax, title=f"{index / fps:.2f} s")
    describe(figure, f"{len(picked)} of {len(array)} frames, from {picked[0] / fps:.2f} s to {picked[-1] / fps:.2f} s")
    return figure


def _shown(frame: np.ndarray) -> np.ndarray:
    """What imshow takes without a word: uint8, or floats in [0, 1]."""
    return frame if frame.dtype == np.uint8 else frame.clip(0, 1)


def filmstrip_of_x0(records: Sequence[StepRecord], preview: LatentPreview, *, rows: int = 8, count: int = 9) -> "Figure":
    """How the clean video that the network predicts takes shape: a row for each step, latent frames from left to right.

    Args:
        records: with `x0` kept.
        preview: from `latent_preview`; each latent pixel becomes one colour.
        rows: steps to show at most, evenly spaced.
        count: latent frames to show at most, evenly spaced.

    Raises:
        ValueError: there are no records, or they hold no x0.
    """
    if not records or any(record.x0 is None for record in records):
        raise ValueError("got no records that hold x0, expected those of a run with keep='x0' or 'full'")
    return filmstrip_of_steps(records, lambda step: preview.pixels(records[step].x0.video), rows=rows, count=count)


def filmstrip_of_steps(
    records: Sequence[StepRecord], film: Callable[[int], Float[np.ndarray, "t h w 3"]], *, rows: int = 8, count: int = 9
) -> "Figure":
    """The same from frames that are there already, such as those of a trace.

    Args:
        records: at least one; numbers are enough.
        film: gives the small frames of a record by its place in `records`, in [0, 1].
        rows, count: see `filmstrip_of_x0`.
    """
    steps = pick_evenly(len(records), rows)
    films = [film(step) for step in steps]
    frames = pick_evenly(len(films[0]), count)
    height, width = films[0].shape[1:3]
    side = min(9 / len(frames), 0.85)
    size = len(frames) * side + 0.8, len(steps) * (side * height / width + 0.02) + 0.3
    figure, panels = new_panels(len(steps), len(frames), *size)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for row, step, film in zip(panels, steps, films, strict=True):
        for ax, frame in zip(row, frames, strict=True):
            ax.imshow(film[frame], interpolation="nearest")
            dress_picture(ax, title=f"frame {frame}" if step == steps[0] else "")
        label = f"step {records[step].index}\n$\\sigma$ = {records[step].sigma:.3f}"
        look = {"color": STYLE["ink"], "fontsize": STYLE["text_size"] - 1, "rotation": 0, "ha": "right", "va": "center"}
        row[0].set_ylabel(label, labelpad=6, **look)
    dress_title(figure, "Clean video predicted at each step, by latent frame")
    describe(figure, f"Predicted clean video at {len(steps)} of {len(records)} steps, {len(frames)} latent frames each")
    return figure
