"""Figures of attention: on the decoded frames, by word and time, between sound and video, and beside what a word does.

Read next: `lens_widgets.py`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from cosmos3_lab.figure_style import (
    MOST_FRAMES,
    STYLE,
    Numbers,
    add_colour_bar,
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
    with_shape,
)
from cosmos3_lab.step_figures import LOOKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

HEAT = "inferno"  # of attention over pale frames, which show where little is given
GETS, DOES = "share of attention", "change of the velocity without it"
HEATED, PALE = 0.9, 0.45  # how much of a frame the most attention covers; what is left of a frame's colours


def plot_attention_frames(frames: Numbers, maps: Numbers, *, word: str, chosen: Sequence[int] | None = None) -> "Figure":
    """How much each video token gives to a word, over the decoded frames; one colour scale.

    Args:
        frames: `[T, H, W, 3]` uint8, of the finished clip.
        maps: `[t, rows, columns]`, such as `LayerAttention.on_picture(word).mean(0)`.
        word: for the title.
        chosen: latent frames to show; None for at most 9, evenly spaced.

    Raises:
        ValueError: other shapes, or a frame is out of range.
    """
    frames, maps = with_shape("frames", frames, "T H W 3"), with_shape("maps", maps, "t rows columns")
    chosen = check_indices("frames", pick_evenly(len(maps), MOST_FRAMES) if chosen is None else chosen, len(maps))
    limit, middles = float(maps.max()) or 1.0, middle_frames(len(frames), len(maps))
    figure, panels = new_pictures(len(chosen), len(chosen), 9.1, side=2.2, shape=frames.shape[1:3], room=0.9)
    for ax, frame in zip(panels, chosen, strict=True):
        ax.imshow(heated(frames[middles[frame]], maps[frame] / limit), interpolation="nearest")
        dress_picture(ax, title=f"frame {frame}")
    add_colour_bar(_scale(panels[0], limit), panels, "share of attention", aspect=12, pad=0.01)
    dress_title(figure, f"Where the video looks at \u201c{word}\u201d")
    describe(
        figure,
        f"Attention of the video's tokens to the word {word} over latent frames {chosen}, at most {limit:.2g} of a token's",
    )
    return figure


def middle_frames(frames: int, latent_frames: int) -> list[int]:
    """The video frame in the middle of each latent frame: the first stands for one frame, each later one for as many as the rest.

    Args:
        frames, latent_frames: how many there are.
    """
    each = (frames - 1) // max(latent_frames - 1, 1)
    return [0] + [min(each * (f - 1) + 1 + each // 2, frames - 1) for f in range(1, latent_frames)]


def heated(frame: UInt8[np.ndarray, "h w 3"], share: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, "h w 3"]:
    """A pale frame, with heat laid over it where the share is large.

    Args:
        frame: in [0, 255].
        share: in [0, 1], one number for each token, at most as fine as the frame.
    """
    from matplotlib import colormaps

    height, width = frame.shape[:2]
    rows, columns = (np.arange(n) * count // n for n, count in zip((height, width), share.shape, strict=True))
    fine = np.clip(share, 0, 1)[np.ix_(rows, columns)]
    cover = HEATED * fine[..., None] ** 0.7
    return (1 - PALE + PALE * frame.astype(np.float32) / 255) * (1 - cover) + cover * colormaps[HEAT](fine)[..., :3]


def _scale(ax: "Axes", limit: float) -> "AxesImage":
    """An image out of sight with the scale of the heat, for a colour bar."""
    image = ax.imshow(np.zeros((1, 1)), cmap=HEAT, vmin=0, vmax=limit, extent=ax.get_xlim() + ax.get_ylim())
    image.set_visible(False)
    return image


def plot_word_time(shares: Numbers, words: Sequence[str], *, seconds: float, title: str = "", ax: "Axes | None" = None) -> "Axes":
    """Which words are looked at when: a row for each word, a column for each moment of the clip.

    Args:
        shares: `[moments, words]`, such as `LayerAttention.over_frames().mean(0)` or `.over_sound().mean(0)`.
        words: their texts.
        seconds: length of the clip.
        title: above.
        ax: to draw on.

    Raises:
        ValueError: not a column for each word.
    """
    array = with_shape("shares", shares, f"moments {len(words)}")
    ax = axes_or_new(ax, 9.0, 0.9 + 0.2 * len(words))
    image = ax.imshow(
        array.T, aspect="auto", cmap=STYLE["amount"], vmin=0, interpolation="nearest", extent=(0, seconds, len(words), 0)
    )
    ax.set_yticks(np.arange(len(words)) + 0.5, words, parse_math=False)
    dress(ax, title=title, x="time in the clip (s)")
    add_colour_bar(image, [ax], "share of attention", pad=0.01)
    most = words[int(array.mean(0).argmax())]
    describe(ax, f"Share of attention by word and time, {title or 'over the clip'}; most goes to {most}")
    return ax


def plot_sound_to_video(
    shares: Numbers, *, seconds: float, events: Sequence[float] = (), title: str = "", ax: "Axes | None" = None
) -> "Axes":
    """Which latent frame each sound token looks at; on the diagonal it looks at its own moment.

    Args:
        shares: `[n_sound, t]`, such as one head of `LayerAttention.sound_to_video()`.
        seconds: length of the clip.
        events: times of impacts, drawn as dashed lines.
        title: above.
        ax: to draw on.

    Raises:
        ValueError: another shape.
    """
    array = with_shape("shares", shares, "n_sound t")
    ax = axes_or_new(ax, 6.5, 3.0)
    edges = frame_edges(array.shape[1], seconds)
    image = ax.pcolormesh(np.linspace(0, seconds, len(array) + 1), edges, array.T, cmap=STYLE["amount"], vmin=0, rasterized=True)
    ax.plot([0, seconds], [0, seconds], color=STYLE["face"], linewidth=1, linestyle=":")
    for time in events:
        ax.axvline(time, color=STYLE["face"], linewidth=1.1, linestyle="--")
    ax.set(xlim=(0, seconds), ylim=(0, seconds))
    dress(ax, title=title, x="time of the sound token (s)", y="time of the frame (s)")
    add_colour_bar(image, [ax], "share of attention", pad=0.01)
    describe(ax, f"Attention of sound tokens to latent frames over {seconds:.2f} s{f', {title}' if title else ''}")
    return ax


def frame_edges(latent_frames: int, seconds: float, temporal: int = 4) -> Float[np.ndarray, " edges"]:
    """Where latent frames begin and end in seconds: the first is one frame long, each later one `temporal`."""
    lengths = np.array([1.0] + [float(temporal)] * (latent_frames - 1))
    return np.concatenate([[0.0], np.cumsum(lengths)]) / lengths.sum() * seconds


def plot_word_effects(attention: Mapping[str, Numbers], change: Mapping[str, Numbers], words: Sequence[str]) -> "Figure":
    """Two panels with a row for each word: how much attention it gets, and how much changes when it is taken away.

    Args:
        attention: "video", "sound" or both to `[words]`, from `attention_shares`.
        change: the same names to `[words]`, such as `WordEffects.video.mean(1)`.
        words: their texts.

    Raises:
        ValueError: other names, or not a number for each word.
    """
    if not attention or set(attention) != set(change) or not set(attention) <= set(LOOKS):
        found = f"attention of {sorted(attention)} and changes of {sorted(change)}"
        raise ValueError(f"got {found}, expected video, sound or both, the same in either")
    figure, panels = new_panels(1, 2, 9.5, 1.2 + 0.24 * len(words), sharey=True)
    rows, height, most = np.arange(len(words)), 0.8 / len(attention), []
    for ax, (x, parts) in zip(panels[0], ((GETS, attention), (DOES, change)), strict=True):
        for i, name in enumerate(parts):
            numbers = with_shape(f"{x} of the {name}", parts[name], f"{len(words)}")
            ax.barh(rows + height * (i - (len(parts) - 1) / 2), numbers, height, color=LOOKS[name]["color"], label=name)
            most.append(words[int(numbers.argmax())])
        dress(ax, x=x, grid="x")
    panels[0, 0].set_yticks(rows, words, parse_math=False)
    panels[0, 0].invert_yaxis()
    if len(attention) > 1:
        dress_legend(panels[0, 1], loc="center left", bbox_to_anchor=(1.0, 0.5))
    found = f"most attention goes to {most[0]}, most changes without {most[len(attention)]}"
    describe(figure, f"Attention to {len(words)} words, and change without each; {found}")
    return figure
