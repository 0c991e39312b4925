"""The latent viewer: any number inside the latents of any step, in place and in colours.

Read next: `step_widgets.py`.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from math import ceil
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from cosmos3_lab.denoise import StepRecord
from cosmos3_lab.figure_style import STYLE, as_array, dress_colour_bar, dress_picture, new_figure, pick_evenly
from cosmos3_lab.latent_figures import filmstrip_of_x0, plot_latent_channels
from cosmos3_lab.preview import LatentPreview
from cosmos3_lab.widget_parts import (
    buttons,
    check_records,
    has_front_end,
    lab_box,
    line,
    on_change,
    row,
    say,
    slider,
    step_controls,
    step_words,
)

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.figure import Figure


NAMES = {"x0": "x0 (predicted)", "sample": "sample (noisy)", "velocity": "velocity (guided)"}
SHOWN = 0.995  # share of the values that the colour scale tells apart; a few outliers would make the rest pale
# The layout, in inches: where the large pictures begin, how wide they are, how tall the strip of frames is.
LEFT, LEFT_OF_TWO, SIDE, FILM = (0.1, 3.85, 6.95), (1.4, 5.65), 2.95, 1.2
STEPS_HELD = 4  # steps whose arrays stay in memory


def latent_viewer(records: Sequence[StepRecord], preview: LatentPreview | None = None) -> "Widget | Figure":
    """One number of the video latents at a time: step, latent frame, channel; as sample, x0 or velocity; and in colours.

    Args:
        records: with x0 kept; sample and velocity are there with `keep="full"`.
        preview: from `latent_preview(models)`, for the colours; None shows values only.

    Raises:
        ValueError: there are no records, or they hold no x0, or the preview is for another number of channels.
    """
    records = check_records(records, "x0")
    if preview is not None:
        preview.pixels(records[0].x0.video[:, :, :1])  # raises where it does not fit
    if not has_front_end():
        last = records[-1].x0.video
        return plot_latent_channels(last) if preview is None else filmstrip_of_x0(records, preview)
    return _build(records, preview)


def video_of(record: StepRecord, what: str) -> Float[np.ndarray, "c t h w"]:
    """One of a step's video tensors.

    Args:
        record: with what it takes.
        what: "x0", "velocity", or "sample", which is `x0 + sigma * velocity`.
    """
    if what == "velocity":
        return as_array(record.velocity.guided.video)[0]
    x0 = as_array(record.x0.video)[0]
    return x0 if what == "x0" else x0 + record.sigma * as_array(record.velocity.guided.video)[0]


def _build(records: list[StepRecord], preview: LatentPreview | None) -> "Widget":
    box, first = lab_box(), records[0]
    channels, frames = first.x0.video.shape[1:3]
    steps, scrub, link = step_controls(records)
    kinds = ["x0"] + ([] if first.velocity is None else ["sample", "velocity"])
    kind_row, what = buttons("show", [(k, k) for k in kinds], "x0")
    frame = slider("frame", 0, frames - 1, 0)
    channel = slider("channel", 0, channels - 1, 0)
    picture, words = box.Picture(), line()

    @lru_cache(maxsize=STEPS_HELD)
    def values(step: int, kind: str) -> np.ndarray:
        return video_of(records[step - first.index], kind)

    @cache
    def limit(kind: str) -> float:  # one colour scale for the whole run
        some = [video_of(records[i], kind).ravel() for i in pick_evenly(len(records), 5)]
        return max(float(np.quantile(np.abs(v[:: max(1, v.size // 100_000)]), SHOWN)) for v in some) or 1.0

    @lru_cache(maxsize=STEPS_HELD)
    def colours(step: int, kind: str) -> np.ndarray:
        return preview.pixels(torch.from_numpy(values(step, kind)[None]))

    panes = _Panes(values(first.index, "x0"), in_colour=preview is not None)

    def redraw() -> None:
        step, kind, f, c = scrub.value, what.value, frame.value, channel.value
        array = values(step, kind)
        seen = "x0" if kind == "velocity" else kind  # a velocity is a difference and has no colours of its own
        panes.show(array, f, c, limit=limit(kind), name=NAMES[kind], colours=None if preview is None else colours(step, seen))
        picture.show(panes.moving.png(), f"{NAMES[kind]} of {step_words(records[step - first.index])}, frame {f}, channel {c}")
        one = array[c, f]
        spread = f"this channel and frame: mean {one.mean():.3f}, std {one.std():.3f}, from {one.min():.3f} to {one.max():.3f}"
        say(words, f"{step_words(records[step - first.index])}; {spread}")

    on_change(redraw, scrub, what, frame, channel)
    return box.LabBox([row(steps, kind_row), row(frame, channel), picture, words], links=[link])


class _Panes:
    """One channel large, the frame in colours, all channels of this frame, and all frames of this channel.

    Args:
        array: `[C, t, h, w]`, for the shapes.
        in_colour: whether there is a preview.
    """

    def __init__(self, array: np.ndarray, *, in_colour: bool) -> None:
        from cosmos3_lab.figure_canvas import LabAxes
        from cosmos3_lab.widget_canvas import Mosaic, MovingFigure

        channels, frames, height, width = array.shape
        side = SIDE, SIDE * min(1, height / width)
        size = 10.0, side[1] + FILM + 0.62
        figure = new_figure(*size, constrained=False)

        def place(left: float, bottom: float, wide: float, tall: float) -> LabAxes:  # in inches
            box = (left / size[0], bottom / size[1], wide / size[0], tall / size[1])
            return figure.add_axes(box, axes_class=LabAxes, anchor="N")

        left = LEFT if in_colour else LEFT_OF_TWO
        large, many = place(left[0], FILM + 0.34, *side), place(left[-1], FILM + 0.34, *side)
        film = place(0.1, 0.08, 9.8, FILM)
        self.frames = pick_evenly(frames, 12)
        signed = {"cmap": STYLE["signed"], "vmin": -1, "vmax": 1}
        self.large = large.imshow(array[0, 0], interpolation="nearest", **signed)
        self.bar = figure.colorbar(self.large, cax=large.inset_axes((1.02, 0, 0.04, 1)), extend="both")
        dress_colour_bar(self.bar, "latent value")
        dress_picture(large, title=" ")
        self.rgb = None
        if in_colour:
            rgb = place(LEFT[1], FILM + 0.34, *side)
            self.rgb = rgb.imshow(np.zeros((height, width, 3)), interpolation="nearest")
            dress_picture(rgb, title=" ")
        self.many = Mosaic(many, array[:, 0], columns=ceil(channels**0.5), **signed)
        dress_picture(many, title="all channels of this frame")
        many.spines[:].set_visible(False)
        shown = np.zeros((len(self.frames), height, width, 3)) if in_colour else array[0, self.frames]
        look = {} if in_colour else signed
        self.film = Mosaic(film, shown, columns=12, names=[f"frame {f}" for f in self.frames], **look)
        borders = [self.many.frame(), self.film.frame()]
        images = [self.large, self.many.image, self.film.image] + ([self.rgb] if in_colour else [])
        titles = [image.axes.title for image in (self.large, self.rgb) if image is not None]
        self.moving = MovingFigure(figure, [*images, *titles, self.bar.ax, *borders])

    def show(self, array: np.ndarray, frame: int, channel: int, *, limit: float, name: str, colours: np.ndarray | None) -> None:
        """Put other values in.

        Args:
            array: `[C, t, h, w]`.
            frame, channel: chosen.
            limit: end of the colour scale.
            name: of the array.
            colours: `[t, h, w, 3]` or None.
        """
        self.large.set_data(array[channel, frame])
        self.many.show(array[:, frame])
        self.many.select(channel)
        self.film.show(array[channel, self.frames] if colours is None else colours[self.frames])
        nearest = min(range(len(self.frames)), key=lambda place: abs(self.frames[place] - frame))
        self.film.select(nearest)
        for image in (self.large, self.many.image, *([self.film.image] if colours is None else [])):
            image.set_clim(-limit, limit)
        self.large.axes.title.set_text(f"{name}, channel {channel}, frame {frame}")
        if self.rgb is not None:
            self.rgb.set_data(colours[frame])
            self.rgb.axes.title.set_text(f"frame {frame} in colours" + (", of x0" if name == NAMES["velocity"] else ""))
