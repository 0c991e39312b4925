"""The attention lens: layer, head, step and word; where the video looks at it, when, and which frame the sound looks at.

Read next: `notebooks/11_attention_lens.ipynb`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from cosmos3_lab.attention_maps import LayerAttention
from cosmos3_lab.figure_style import MOST_FRAMES, STYLE, as_array, dress, dress_colour_bar, new_figure, pick_evenly
from cosmos3_lab.lens_figures import HEAT, frame_edges, heated, middle_frames, plot_attention_frames
from cosmos3_lab.passes import Activation
from cosmos3_lab.prompt_words import PromptWord
from cosmos3_lab.widget_parts import dropdown, has_front_end, lab_box, line, on_change, row, say, slider

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.patches import Rectangle

FILM = 9.2  # inches of nine frames side by side
MEAN = -1  # among the heads: their mean
MOST_WORDS = 24  # rows of the chart
SHARES = (0.0, 0.5, 1.0)  # of a scale, where its numbers stand


def attention_lens(
    activations: Sequence[Activation], frames: UInt8[np.ndarray, "T H W 3"], *, seconds: float | None = None
) -> "Widget | Figure":
    """Attention to one word at a time over the decoded frames, to all words over time, and between sound and video.

    Args:
        activations: from `record_attention(..., per_head=True)`, for some layers and steps of one branch; without `per_head`
            only the mean over heads is shown.
        frames: of the finished clip.
        seconds: length of the clip; None shows latent frames as moments of equal length, and says so.

    Raises:
        ValueError: no attention was recorded, or not the same words at all layers and steps, or the frames have another shape.
    """
    found = {(a.name, a.at.step): a.value for a in activations if isinstance(a.value, LayerAttention)}
    words = {value.words for value in found.values()}
    if len(words) != 1 or len(found) < len(activations):
        raise ValueError(
            f"got {len(activations)} activations with {len(found)} different layers and steps and {len(words)} prompts, expected "
            "those of one run, one branch and one prompt, try record_attention(...).activations"
        )
    names = list(dict.fromkeys(name for name, _ in found))
    if not has_front_end():
        first = next(iter(found.values()))
        place = _first_word(first.words)
        maps = np.mean([as_array(value.on_picture(place)).mean(0) for value in found.values()], axis=0)
        return plot_attention_frames(frames, maps, word=first.words[place].text)
    return _build(found, names, frames, seconds)


def _first_word(words: Sequence[PromptWord]) -> int:
    """The first word of the prompt that is longer than an article."""
    return next((i for i, word in enumerate(words) if word.role == "prompt" and len(word.text) > 2), 0)


def _build(
    found: dict[tuple[str, int | None], LayerAttention], names: list[str], frames: np.ndarray, seconds: float | None
) -> "Widget":
    box, first = lab_box(), next(iter(found.values()))
    steps = sorted({step for _, step in found})
    per_head = first.to_words.shape[0] > 1
    heads = [("mean", MEAN)] + [(str(i), i) for i in range(len(first.moments))] if per_head else [("mean", MEAN)]
    layer = dropdown("layer", [(name.removeprefix("gen.layers."), name) for name in names], names[len(names) // 2], width="150px")
    head = dropdown("head", heads, MEAN, width="160px")
    scrub = slider("step", 0, len(steps) - 1, len(steps) // 2, width="300px")
    scrub.readout = False
    options = [(f"{word.text} ({word.role})" if word.role != "prompt" else word.text, i) for i, word in enumerate(first.words)]
    word = dropdown("word", options, _first_word(first.words), width="290px")
    picture, words = box.Picture(), line()
    panes = _Panes(first, frames, seconds)

    def redraw() -> None:
        step, chosen = steps[scrub.value], first.words[word.value]
        seen = found[layer.value, step]
        panes.show(seen, head.value, word.value)
        which = "mean of heads" if head.value == MEAN else f"head {head.value}"
        where = f"layer {layer.value.removeprefix('gen.layers.')}, {which}, step {step}"
        picture.show(
            panes.moving.png(), f"Attention to the word {chosen.text}, {where}: over frames, over time, and of sound to video"
        )
        text = where
        for name, part in (("video", seen.over_frames()), ("sound", seen.over_sound())):
            gives = _of_head(part, head.value)
            if len(gives):
                to_text, to_word = gives.sum(1).mean(), gives[:, word.value].mean()
                text += f"; {name} gives {to_text:.0%} to text, {to_word:.2%} to \u201c{chosen.text}\u201d"
        say(words, text)

    on_change(redraw, layer, head, scrub, word)
    return box.LabBox([row(layer, head, scrub, word), picture, words])


def _of_head(values: object, head: int) -> np.ndarray:
    """One head of `[heads, ...]`, or their mean."""
    array = as_array(values)
    return array.mean(0) if head == MEAN or len(array) == 1 else array[head]


class _Panes:
    """Heat on the frames; words over video time and over sound time; sound over video.

    Args:
        seen: for shapes and words.
        frames: `[T, H, W, 3]`.
        seconds: of the clip, or None.
    """

    def __init__(self, seen: LayerAttention, frames: np.ndarray, seconds: float | None) -> None:
        from cosmos3_lab.figure_canvas import LabAxes
        from cosmos3_lab.widget_canvas import Mosaic, MovingFigure, moving_labels

        t, n_sound = seen.layout.video_grid[0], seen.layout.n_sound
        self.places = pick_evenly(t, MOST_FRAMES)
        middles = middle_frames(len(frames), t)
        self.frames = [_small(frames[middles[place]]) for place in self.places]
        self.rows = [i for i, word in enumerate(seen.words) if word.role == "prompt"][:MOST_WORDS]
        tall = FILM / MOST_FRAMES * (frames.shape[1] / frames.shape[2] + 0.2)
        chart = max(2.0, 0.19 * len(self.rows))
        size = 10.0, chart + tall + 1.0
        figure = new_figure(*size, constrained=False)

        def place(left: float, bottom: float, wide: float, high: float) -> "LabAxes":  # in inches
            box = (left / size[0], bottom / size[1], wide / size[0], high / size[1])
            return figure.add_axes(box, axes_class=LabAxes)

        def bar(image: "ScalarMappable", left: float, bottom: float, high: float) -> "Axis":
            made = figure.colorbar(image, cax=place(left, bottom, 0.1, high), ticks=SHARES)
            dress_colour_bar(made, "")
            return made.ax.yaxis

        blank = np.stack([heated(frame, np.zeros((1, 1))) for frame in self.frames])
        look = {"cmap": HEAT, "vmin": 0, "vmax": 1}
        film = place(0.1, chart + 0.92, FILM, tall)
        film.set_anchor("W")
        self.film = Mosaic(film, blank, columns=MOST_FRAMES, names=[f"frame {f}" for f in self.places], **look)
        wide = FILM * len(self.places) / MOST_FRAMES
        self.film_numbers = moving_labels(bar(self.film.image, 0.2 + wide, chart + 0.95, tall - 0.2), SHARES, widest="0.00058")
        texts, span, unit = (
            [_short(seen.words[i].text) for i in self.rows],
            seconds or float(t),
            "s" if seconds else "latent frames",
        )
        image, mark = _chart(place(1.2, 0.5, 2.45, chart), t, texts, span, "video \u2192 words", unit)
        self.charts, self.marks, self.ridge, end = [image], [mark], None, 3.8
        if n_sound:
            image, mark = _chart(place(3.9, 0.5, 2.45, chart), n_sound, [""] * len(texts), span, "sound \u2192 words", unit)
            self.charts.append(image)
            self.marks.append(mark)
            ax, end = place(7.55, 0.5, 1.75, chart), 6.45
            edges = np.linspace(0, span, n_sound + 1), frame_edges(t, span)
            look = {"cmap": STYLE["amount"], "vmin": 0, "vmax": 1}
            self.ridge = ax.pcolormesh(*edges, np.zeros((t, n_sound)), **look)
            (diagonal,) = ax.plot([0, span], [0, span], color=STYLE["face"], linewidth=1, linestyle=":")
            dress(ax, title="sound \u2192 frame", x=f"sound token ({unit})", y=f"frame ({unit})")
            bar(self.ridge, 9.4, 0.5, chart)
        self.chart_numbers = moving_labels(bar(self.charts[0], end, 0.5, chart), SHARES, widest="0.00058")
        moving = [self.film.image, *self.film_numbers, *self.charts, *self.marks, *self.chart_numbers]
        moving += [self.ridge, diagonal] if n_sound else []
        self.moving = MovingFigure(figure, moving)

    def show(self, seen: LayerAttention, head: int, word: int) -> None:
        """Put other values in.

        Args:
            seen: of a layer and a step.
            head: or `MEAN`.
            word: its place.
        """
        maps = _of_head(seen.on_picture(word), head)
        limit = float(maps.max()) or 1.0
        tiles = [heated(frame, maps[place] / limit) for frame, place in zip(self.frames, self.places, strict=True)]
        self.film.show(np.stack(tiles))
        over = [_of_head(part, head)[:, self.rows] for part in (seen.over_frames(), seen.over_sound())]
        most = max(float(part.max()) for part in over if part.size) or 1.0
        for image, part in zip(self.charts, over, strict=False):
            image.set_data(part.T / most)
        for mark in self.marks:
            mark.set_visible(word in self.rows)
            mark.set_y(self.rows.index(word) if word in self.rows else 0)
        if self.ridge is not None:
            self.ridge.set_array(_of_head(seen.sound_to_video(), head).T)
        for numbers, end in ((self.film_numbers, limit), (self.chart_numbers, most)):
            for share, text in zip(SHARES, numbers, strict=True):
                text.set_text(f"{share * end:.2g}")


def _chart(ax: "Axes", moments: int, texts: Sequence[str], span: float, title: str, unit: str) -> tuple["AxesImage", "Rectangle"]:
    """A row for each word, and a border that will stand around one."""
    from matplotlib.patches import Rectangle

    look = {"aspect": "auto", "interpolation": "nearest", "cmap": STYLE["amount"], "vmin": 0, "vmax": 1}
    image = ax.imshow(np.zeros((len(texts), moments)), extent=(0, span, len(texts), 0), **look)
    ax.set_yticks(np.arange(len(texts)) + 0.5, texts, parse_math=False)
    dress(ax, title=title, x=unit)
    mark = Rectangle((0, 0), span, 1, fill=False, edgecolor=STYLE["face"], linewidth=1.6)
    ax.add_patch(mark)
    return image, mark


def _short(text: str) -> str:
    return text if len(text) <= 14 else text[:13] + "\u2026"


def _small(frame: np.ndarray) -> np.ndarray:
    """Every n-th pixel, so that nine frames side by side are no wider than the picture is."""
    step = max(1, frame.shape[1] // 110)
    return frame[::step, ::step]
