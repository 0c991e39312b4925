"""The attention lens: layer, head, step and word; where the video looks at it, when, and which frame the sound looks at.

Read next: `notebooks/11_attention_lens.ipynb`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from cosmos3_lab.attention_maps import LayerAttention
from cosmos3_lab.figure_style import MOST_FRAMES, STYLE, add_colour_bar, as_array, dress, new_figure, pick_evenly
from cosmos3_lab.lens_figures import HEAT, frame_edges, heated, middle_frames, plot_attention_frames
from cosmos3_lab.probe import Activation
from cosmos3_lab.prompt_words import PromptWord
from cosmos3_lab.widget_parts import dropdown, has_front_end, lab_box, line, on_change, row, say, slider

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
        who = f"layer {layer.value.removeprefix('gen.layers.')}, {'mean of heads' if head.value == MEAN else f'head {head.value}'}, step {step}"
        picture.show(panes.moving.png(), f"Attention to the word {chosen.text}, {who}: on the picture, over time, and from sound to video")
        video, sound = (_of_head(part, head.value) for part in (seen.over_frames(), seen.over_sound()))
        text = f"{who}: video gives {video.sum(1).mean():.0%} of its attention to text, {video[:, word.value].mean():.2%} to \u201c{chosen.text}\u201d"
        if len(sound):
            text += f"; sound {sound.sum(1).mean():.0%} and {sound[:, word.value].mean():.2%}"
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
        figure = new_figure(10.0, 2.4 + max(2.0, 0.19 * len(self.rows) + 0.6))
        grid = figure.add_gridspec(2, 3 if n_sound else 1, height_ratios=(1.25, max(2.0, 0.19 * len(self.rows))))
        film = figure.add_subplot(grid[0, :], axes_class=LabAxes)
        look = {"cmap": HEAT, "vmin": 0, "vmax": 1}
        blank = np.stack([heated(frame, np.zeros((1, 1))) for frame in self.frames])
        self.film = Mosaic(film, blank, columns=MOST_FRAMES, names=[f"frame {f}" for f in self.places], **look)
        bar = add_colour_bar(self.film.image, [film], "share", pad=0.01, aspect=10)
        self.film_numbers = moving_labels(bar.ax.yaxis, SHARES, widest="0.00058")
        texts, span = [seen.words[i].text for i in self.rows], seconds or float(t)
        self.charts, self.marks, axes = [], [], []
        for column, (name, count) in enumerate([("video", t), ("sound", n_sound)][: 2 if n_sound else 1]):
            ax = figure.add_subplot(grid[1, column], axes_class=LabAxes)
            image, mark = _chart(ax, np.zeros((count, len(texts))), texts if column == 0 else [""] * len(texts), span, f"{name} \u2192 words")
            self.charts.append(image)
            self.marks.append(mark)
            axes.append(ax)
        bar = add_colour_bar(self.charts[0], axes[-1:], "share", pad=0.02, aspect=18)
        self.chart_numbers = moving_labels(bar.ax.yaxis, SHARES, widest="0.00058")
        moving = [self.film.image, *self.film_numbers, *self.charts, *self.marks, *self.chart_numbers]
        self.ridge = None
        if n_sound:
            ax = figure.add_subplot(grid[1, 2], axes_class=LabAxes)
            edges = frame_edges(t, span)
            self.ridge = ax.pcolormesh(
                np.linspace(0, span, n_sound + 1), edges, np.zeros((t, n_sound)), cmap=STYLE["amount"], vmin=0, vmax=1
            )
            (diagonal,) = ax.plot([0, span], [0, span], color=STYLE["face"], linewidth=1, linestyle=":")
            unit = "s" if seconds else "latent frames"
            dress(ax, title="sound \u2192 video, share", x=f"sound token ({unit})", y=f"frame ({unit})")
            add_colour_bar(self.ridge, [ax], "", pad=0.02, aspect=18)
            moving += [self.ridge, diagonal]
        for ax in axes:
            ax.set_xlabel("s" if seconds else "latent frames", color=STYLE["ink"], fontsize=STYLE["text_size"])
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


def _chart(ax: "Axes", values: np.ndarray, texts: Sequence[str], span: float, title: str) -> tuple[object, object]:
    """A row for each word with a border that will stand around one."""
    from matplotlib.patches import Rectangle

    look = {"aspect": "auto", "interpolation": "nearest", "cmap": STYLE["amount"], "vmin": 0, "vmax": 1}
    image = ax.imshow(values.T, extent=(0, span, len(texts), 0), **look)
    ax.set_yticks(np.arange(len(texts)) + 0.5, texts, parse_math=False)
    dress(ax, title=title)
    mark = Rectangle((0, 0), span, 1, fill=False, edgecolor=STYLE["face"], linewidth=1.6)
    ax.add_patch(mark)
    return image, mark


def _small(frame: np.ndarray) -> np.ndarray:
    """Every n-th pixel, so that nine frames side by side are no wider than the picture is."""
    step = max(1, frame.shape[1] // 110)
    return frame[::step, ::step]
