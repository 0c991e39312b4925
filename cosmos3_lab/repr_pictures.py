"""Small pictures for the records' HTML: quick to draw, and at most a few latent frames are copied from a GPU.

A record does not know its checkpoint, so latents are shown in false colours: the three directions in which their channels
differ most become red, green and blue. Real colours are those of `LatentPreview`, which `figures.filmstrip_of_x0` uses.

Read next: `reprs.py`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from cosmos3_lab.figure_style import (
    COLOURS,
    MOST_FRAMES,
    SOUND,
    STYLE,
    VIDEO,
    as_array,
    describe,
    dress,
    new_figure,
    pick_evenly,
)
from cosmos3_lab.latents import Latents
from cosmos3_lab.media import Cosmos3GenerationOutput
from cosmos3_lab.schedule import Schedule, log_snr
from cosmos3_lab.sound_figures import draw_levels, spectrogram_db
from cosmos3_lab.towers import LayerKV

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cosmos3_lab.figure_canvas import LabFigure

LABEL, WIDTH, RIGHT = 0.9, 6.3, 0.25  # inches: of the words at the left, of the strips, and beside them
TALLEST = 1.1  # inches of a strip
SOUND_TALL, SPECTROGRAM_TALL, TITLE, GAP, CLOCK = 0.55, 0.8, 0.22, 0.08, 0.38  # inches too
ROWS_OF_PIXELS = 160  # of a frame, more are left out
SOME_TOKENS = 64  # of which keys and values are measured


class Stack:
    """A figure of rows of one width, from top to bottom, with words at their left; without a layout engine, for speed.

    Args:
        heights: of the rows in inches, by name; the names are shown.
        title: small, above all.
        clock: leaves room for a time axis at the bottom.
    """

    def __init__(self, heights: Mapping[str, float], *, title: str, clock: bool = False) -> None:
        from cosmos3_lab.figure_canvas import LabAxes

        tall = TITLE + sum(heights.values()) + GAP * len(heights) + (CLOCK if clock else 0)
        wide = LABEL + WIDTH + RIGHT
        self.figure = new_figure(wide, tall, constrained=False)
        look = {"fontsize": STYLE["text_size"], "color": STYLE["ink"], "ha": "left", "va": "center", "parse_math": False}
        self.figure.text(0.06 / wide, 1 - 0.6 * TITLE / tall, title, **look | {"color": STYLE["soft_ink"]})
        self.axes: dict[str, Axes] = {}
        top = tall - TITLE
        for name, height in heights.items():
            place = (LABEL / wide, (top - height) / tall, WIDTH / wide, height / tall)
            ax = self.axes[name] = self.figure.add_axes(place, axes_class=LabAxes)
            self.figure.text(0.06 / wide, (top - height / 2) / tall, name, **look)
            dress(ax)
            ax.set(xticks=[], yticks=[])
            top -= height + GAP


def strip(ax: "Axes", frames: np.ndarray, height: float) -> None:
    """Pictures side by side from the left edge.

    Args:
        ax: of the strips' width.
        frames: `[n, rows, columns, 3]` in [0, 1] or uint8.
        height: of the row in inches.
    """
    each = height * frames.shape[2] / frames.shape[1]
    for i, frame in enumerate(frames):
        ax.imshow(frame, extent=(i * each, (i + 1) * each, 0, height), interpolation="nearest", aspect="auto")
        ax.axvline(i * each, color=STYLE["face"], linewidth=1.5)
    ax.set(xlim=(0, WIDTH), ylim=(0, height))
    ax.spines[:].set_visible(False)


def strip_height(rows: int, columns: int, count: int) -> float:
    """Inches of a row of `count` pictures that fills the width, unless it would be too tall."""
    return min(WIDTH / count * rows / columns, TALLEST)


# ----------------------------------------------------------------------------------------------------------- latents


def latents_picture(shown: Mapping[str, Latents]) -> "LabFigure":
    """Some latent frames of each in false colours, and their sound latents below.

    Args:
        shown: one or more latents of one shape by the name that the rows get; the last one chooses the colours.
    """
    first = next(iter(shown.values()))
    _, _, t, h, w = first.video.shape
    picked = pick_evenly(t, MOST_FRAMES)
    films = {name: _frames(latents.video, picked) for name, latents in shown.items()}
    basis = false_colour_basis(list(films.values())[-1])
    tall = strip_height(h, w, len(picked))
    sounds = {name: finite(latents.sound[0]) for name, latents in shown.items() if latents.sound is not None}
    limits = {name: float(np.percentile(np.abs(sound), 99)) or 1.0 for name, sound in sounds.items()}
    labels = {name: f"{name}\nsound \u00b1{limit:.2g}" for name, limit in limits.items()}
    of = "all" if len(picked) == t else f"{len(picked)} of"
    title = f"{of} {t} latent frames, false colours" + ("; sound latents, a row for each channel" if sounds else "")
    stack = Stack(dict.fromkeys(shown, tall) | dict.fromkeys(labels.values(), SOUND_TALL), title=title)
    for name, film in films.items():
        strip(stack.axes[name], false_colours(film, basis), tall)
    for name, sound in sounds.items():  # colours end at a limit that leaves out the few largest values
        look = {"cmap": STYLE["signed"], "vmin": -limits[name], "vmax": limits[name], "interpolation": "nearest"}
        stack.axes[labels[name]].imshow(sound.T, aspect="auto", **look)
    describe(
        stack.figure, f"{', '.join(shown)}: {len(picked)} latent frames in false colours" + (", and sound" if sounds else "")
    )
    return stack.figure


def _frames(video: Float[Tensor, "b c t h w"], picked: Sequence[int]) -> Float[np.ndarray, "n h w c"]:
    """Some frames of the first sample, on the CPU."""
    return finite(rearrange(video[0, :, list(picked)], "c n h w -> n h w c"))


def finite(values: Float[Tensor, "..."]) -> Float[np.ndarray, "..."]:
    """On the CPU, with 0 where a value is infinite or not a number."""
    array = as_array(values)
    return np.where(np.isfinite(array), array, 0)


def false_colour_basis(frames: Float[np.ndarray, "n h w c"]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Middle `[C]`, directions `[C, 3]` and range (two times `[3]`) that make red, green and blue of channels.

    Args:
        frames: with C channels; the directions are those of their largest variance, each pointing to where its largest
            weight is positive.
    """
    points = frames.reshape(-1, frames.shape[-1]).astype(np.float64)
    middle = points.mean(axis=0)
    _, directions = np.linalg.eigh((points - middle).T @ (points - middle))
    top = directions[:, ::-1][:, [i % directions.shape[1] for i in range(3)]]
    top = top * np.sign(top[np.abs(top).argmax(axis=0), range(3)])
    low, high = np.percentile((points - middle) @ top, (0.5, 99.5), axis=0)
    return middle, top, low, np.maximum(high - low, 1e-6)


def false_colours(frames: Float[np.ndarray, "n h w c"], basis: tuple[np.ndarray, ...]) -> Float[np.ndarray, "n h w 3"]:
    """Colours in [0, 1].

    Args:
        frames: with C channels.
        basis: of `false_colour_basis`.
    """
    middle, directions, low, reach = basis
    return (((frames - middle) @ directions - low) / reach).clip(0, 1)


# ------------------------------------------------------------------------------------------------------------ others


def schedule_picture(schedule: Schedule) -> "LabFigure":
    """Sigma and log-SNR over the steps."""
    figure = new_figure(6.4, 2.0, constrained=False)
    from cosmos3_lab.figure_canvas import LabAxes

    steps, sigmas = np.arange(schedule.num_steps + 1), as_array(schedule.sigmas)
    level, clock = (figure.add_axes((left, 0.24, 0.38, 0.6), axes_class=LabAxes) for left in (0.1, 0.6))
    look = {"color": VIDEO, "linewidth": 1.4, "marker": "o", "markersize": 3}
    level.plot(steps, sigmas, **look)
    clock.plot(steps[:-1], as_array(log_snr(schedule.sigmas[:-1])), **look)  # infinite where sigma is 0
    dress(level, title="Noise level", x="step", y=r"$\sigma$", grid="both")
    dress(clock, title="Signal over noise", x="step", y="log-SNR", grid="both")
    level.set_ylim(0, 1.05)
    for ax in (level, clock):
        ax.xaxis.get_major_locator().set_params(integer=True)
    describe(figure, f"Sigma and log-SNR over {schedule.num_steps} steps")
    return figure


def cache_picture(cached: Sequence[LayerKV]) -> "LabFigure":
    """Root mean square of keys and values, layer by layer.

    Args:
        cached: of all layers; some of their tokens are measured.
    """
    from cosmos3_lab.figure_canvas import LabAxes

    def rms(tensors: Sequence[Tensor]) -> np.ndarray:
        every = max(1, tensors[0].shape[-3] // SOME_TOKENS)
        return as_array(torch.stack([t[..., ::every, :, :].float().square().mean().sqrt() for t in tensors]))

    figure = new_figure(4.6, 2.0, constrained=False)
    ax = figure.add_axes((0.13, 0.24, 0.84, 0.6), axes_class=LabAxes)
    layers = range(len(cached))
    ax.plot(layers, rms([kv.k for kv in cached]), color=COLOURS["blue"], marker="o", markersize=3, label="keys")
    ax.plot(
        layers, rms([kv.v for kv in cached]), color=COLOURS["orange"], marker="s", markersize=3, linestyle="--", label="values"
    )
    dress(ax, title="What the text tower left", x="layer", y="rms", grid="both")
    ax.set_ylim(bottom=0)
    ax.xaxis.get_major_locator().set_params(integer=True)
    legend = ax.legend(frameon=False, fontsize=STYLE["text_size"] - 1)
    for text in legend.get_texts():
        text.set_color(STYLE["ink"])
    describe(figure, f"Root mean square of keys and values in {len(cached)} layers")
    return figure


def clip_picture(output: Cosmos3GenerationOutput) -> "LabFigure":
    """Frames, and the spectrogram of the sound below them on the same time axis.

    Args:
        output: a finished clip.
    """
    count, height, width, _ = output.frames.shape
    seconds = count / output.fps
    slots = min(MOST_FRAMES, count)
    # every picture is on screen at the middle of its slot
    picked = [min(int((slot + 0.5) / slots * count), count - 1) for slot in range(slots)]
    every = max(1, height // ROWS_OF_PIXELS)
    frames = output.frames[picked, ::every, ::every]
    tall = strip_height(height, width, slots)
    wide = tall * width / height * slots / WIDTH  # share of the width that the pictures fill
    has_sound, moves = output.waveform is not None, count > 1
    heights = {"frames": tall} | ({"sound": SPECTROGRAM_TALL} if has_sound else {})
    of = f"{slots} of {count} frames, {seconds:.2f} s" if moves else "1 frame"
    stack = Stack(heights, title=of + ("; mel spectrogram" if has_sound else ""), clock=has_sound or moves)
    strip(stack.axes["frames"], frames, tall)
    if has_sound:
        levels, hop = spectrogram_db(output.waveform, output.sample_rate, scale="mel")
        draw_levels(stack.axes["sound"], levels, hop, output.sample_rate, scale="mel").axes.set_yticks([])
        stack.axes["sound"].set_xlim(0, seconds / wide)
    if has_sound or moves:
        _clock(list(stack.axes.values())[-1], seconds, wide, has_sound=has_sound)
    describe(stack.figure, f"The clip: {of}" + (", and the spectrogram of the sound" if has_sound else ""))
    return stack.figure


def _clock(ax: "Axes", seconds: float, wide: float, *, has_sound: bool) -> None:
    """Seconds below the last row; a strip counts in inches, a spectrogram in seconds."""
    per_second = 1.0 if has_sound else WIDTH * wide / seconds
    ticks = np.linspace(0, seconds, 5)
    ax.set_xticks(ticks * per_second, [f"{tick:.2f}" for tick in ticks])
    ax.set_xlabel("time (s)", fontsize=STYLE["text_size"] - 1, color=STYLE["ink"], labelpad=1)


def parameters_picture(parts: Mapping[str, int]) -> "LabFigure":
    """Parameters of each part as bars.

    Args:
        parts: counts by name.
    """
    from cosmos3_lab.figure_canvas import LabAxes

    figure = new_figure(5.2, 0.35 + 0.27 * len(parts), constrained=False)
    room = 0.3 / figure.get_figheight()
    ax = figure.add_axes((0.24, 0.04, 0.6, 0.96 - room), axes_class=LabAxes)
    bars = ax.barh(list(parts), list(parts.values()), color=[VIDEO, VIDEO, COLOURS["sky"], SOUND][: len(parts)], height=0.65)
    labels = [count_text(n) for n in parts.values()]
    ax.bar_label(bars, labels, padding=4, color=STYLE["ink"], fontsize=STYLE["text_size"] - 1)
    ax.invert_yaxis()
    dress(ax, title="Parameters")
    ax.set_xticks([])
    ax.tick_params(left=False)
    ax.spines[:].set_visible(False)
    describe(figure, "Parameters: " + ", ".join(f"{name} {label}" for name, label in zip(parts, labels, strict=True)))
    return figure


def count_text(number: int) -> str:
    """Such as 7.6 billion, 4.1 million, 512."""
    for size, word in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.3g}{word}"
    return f"{number:,}"
