"""Figures of what comes before the loop, and of what the whole took: tokens, noise levels, schedules, seconds.

Read next: `latent_figures.py`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from cosmos3_lab.figure_style import (
    COLOURS,
    CURVES,
    STYLE,
    Numbers,
    add_colour_bar,
    as_array,
    axes_or_new,
    describe,
    dress,
    dress_legend,
    dress_picture,
    new_panels,
    new_pictures,
    symmetric_limit,
    with_shape,
)
from cosmos3_lab.preview import LatentPreview
from cosmos3_lab.prompt import TokenRow
from cosmos3_lab.run import INFERENCE_PARTS, PHASES
from cosmos3_lab.schedule import Schedule, add_noise, log_snr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Fill and border of a chip; the borders' dashes tell the roles apart in print.
ROLES = {
    "system": ("#EFE3EC", COLOURS["purple"], ":"),
    "template": ("#ECEEF0", STYLE["soft_ink"], (0, (1, 1))),
    "prompt": ("#CFE3F2", COLOURS["blue"], "-"),
    "metadata": ("#FBE6C8", COLOURS["orange"], "--"),
    "boundary": ("#F7D5C2", COLOURS["vermillion"], "-."),
}
CHARACTERS = 96  # of a monospaced line of chips, 10 inches wide
CHIP_ROOM = 1.6  # characters of padding in a chip and of space beside it
CONTROL = str.maketrans({" ": "\N{MIDDLE DOT}", "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d"})


def plot_schedules(schedules: Mapping[str, Schedule]) -> "Figure":
    """Three panels over the steps: sigma, log-SNR, and by how much sigma falls.

    Args:
        schedules: by the name that the legend gives them, 1 to 6.

    Raises:
        ValueError: there are none, or more than can be told apart.
    """
    if not 1 <= len(schedules) <= len(CURVES):
        raise ValueError(f"got {len(schedules)} schedules, expected 1 to {len(CURVES)}")
    figure, panels = new_panels(1, 3, 10.0, 3.3)
    level, clock, size = panels[0]
    for (name, schedule), curve in zip(schedules.items(), CURVES, strict=False):
        sigmas = as_array(schedule.sigmas)
        steps = np.arange(len(sigmas))
        level.plot(steps, sigmas, label=name, **curve)
        clock.plot(steps[:-1], as_array(log_snr(schedule.sigmas[:-1])), **curve)  # infinite where sigma is 0
        size.plot(steps[:-1], -np.diff(sigmas), **curve)
    dress(level, title="Noise level", x="step", y=r"$\sigma$", grid="both")
    dress(clock, title="Signal over noise", x="step", y="log-SNR (natural log of power)", grid="both")
    dress(size, title="Size of each step", x="step", y=r"$\sigma_i - \sigma_{i+1}$", grid="both")
    level.set_ylim(0, 1.03)
    size.set_ylim(bottom=0)
    for ax in panels[0]:
        ax.xaxis.get_major_locator().set_params(integer=True)
    dress_legend(figure, handles=level.get_lines(), loc="outside upper left", ncols=len(schedules))
    describe(figure, f"Sigma, log-SNR and step size over the steps of the schedules {', '.join(schedules)}")
    return figure


def plot_noise_levels(
    clean: Numbers,
    *,
    sigmas: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0),
    seed: int = 0,
    frame: int = 0,
    channel: int = 0,
    preview: LatentPreview | None = None,
) -> "Figure":
    """The same picture on the straight path to one noise, `(1 - sigma) * clean + sigma * noise`.

    Args:
        clean: a video latent `[1, C, t, h, w]`, or one frame `[height, width, 3]` in [0, 1] or uint8, which is scaled to
            [-1, 1] first, as the VAE does.
        sigmas: noise levels in [0, 1].
        seed: of the noise.
        frame: latent frame to show.
        channel: to show where there is no preview.
        preview: shows a latent in colours.

    Raises:
        ValueError: another shape, or a frame or channel out of range.
    """
    array = as_array(clean)
    is_frame = array.ndim == 3
    array = with_shape("a frame", array, "height width 3") if is_frame else with_shape("a video latent", array, "1 C t h w")
    if not is_frame and not (0 <= frame < array.shape[2] and 0 <= channel < array.shape[1]):
        raise ValueError(f"got frame {frame} and channel {channel} of a latent {list(array.shape)}, expected them to be in it")
    signal = torch.from_numpy(unit_pixels(array) * 2 - 1 if is_frame else array).float()
    noise = torch.randn(signal.shape, generator=torch.Generator().manual_seed(seed))
    noisy = [add_noise(signal, noise, float(sigma)) for sigma in sigmas]
    if is_frame:
        pictures = [((x + 1) / 2).clamp(0, 1).numpy() for x in noisy]
    elif preview is not None:
        pictures = [preview.pixels(x)[frame] for x in noisy]
    else:
        pictures = [x[0, channel, frame].numpy() for x in noisy]
    limit, in_colour = symmetric_limit(np.stack(pictures)), pictures[0].ndim == 3
    room = 0.0 if in_colour else 0.9
    figure, panels = new_pictures(len(pictures), len(pictures), 10.0 - room, side=2.5, shape=pictures[0].shape, room=room)
    for ax, sigma, picture in zip(panels, sigmas, pictures, strict=True):
        image = ax.imshow(picture, cmap=STYLE["signed"], vmin=-limit, vmax=limit, interpolation="auto" if is_frame else "nearest")
        dress_picture(ax, title=f"\N{GREEK SMALL LETTER SIGMA} = {sigma:g}")
    if not in_colour:
        add_colour_bar(image, panels, "latent value", aspect=12, pad=0.01)
    describe(figure, f"One picture with more and more noise, at sigma {', '.join(f'{s:g}' for s in sigmas)}")
    return figure


def unit_pixels(frames: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] from 8-bit frames or from floats; everything clipped."""
    scaled = frames.astype(np.float32) / 255 if frames.dtype == np.uint8 else frames.astype(np.float32)
    return scaled.clip(0, 1)


def plot_stage_times(timings: Mapping[str, float], *, ax: "Axes | None" = None) -> "Axes":
    """Seconds of every phase of a run as horizontal bars; the parts of inference below it, lighter and thinner.

    Args:
        timings: `Generation.timings`, seconds by phase; other names come last.
        ax: to draw on.

    Raises:
        ValueError: there are none, or one is negative.
    """
    if not timings or min(timings.values()) < 0:
        raise ValueError(f"got timings {dict(timings)}, expected at least one phase, in seconds")
    known = [p for phase in PHASES for p in ((phase, *INFERENCE_PARTS) if phase == "inference" else (phase,))]
    names = [n for n in known if n in timings] + [n for n in timings if n not in known]
    ax = axes_or_new(ax, 8.0, 0.9 + 0.3 * len(names))
    seconds, is_part = [timings[n] for n in names], [n in INFERENCE_PARTS for n in names]
    bars = ax.barh(
        range(len(names)),
        seconds,
        height=[0.5 if part else 0.72 for part in is_part],
        color=[COLOURS["sky"] if part else COLOURS["blue"] for part in is_part],
    )
    for label in ax.bar_label(bars, [_duration(s) for s in seconds], padding=4, fontsize=STYLE["text_size"] - 1):
        label.set_color(STYLE["ink"])
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    if any(is_part):
        bars[is_part.index(True)].set_label("part of inference")
        dress_legend(ax, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
    dress(ax, x="seconds", grid="x")
    ax.set_xlim(0, max(seconds) * 1.12 or 1)
    describe(ax, "Seconds of each phase: " + ", ".join(f"{n} {s:.2f}" for n, s in zip(names, seconds, strict=True)))
    return ax


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 or seconds == 0 else f"{1000 * seconds:.2g} ms"


# ------------------------------------------------------------------------------------------------------------ tokens


def plot_tokens(rows: Sequence[TokenRow], *, ax: "Axes | None" = None, limit: int = 240) -> "Axes":
    """Every token as a chip with its id below, in the colour of its role, wrapped like text.

    A character of several tokens stands in its last one; the chips before it are empty.

    Args:
        rows: from `token_table`.
        ax: to draw on; it should be as wide as 10 inches for the chips to hold their text.
        limit: of tokens shown; the rest is counted.

    Raises:
        ValueError: there are no tokens.
    """
    from matplotlib.patches import FancyBboxPatch, Patch

    if not rows:
        raise ValueError("got no tokens, expected the rows of token_table")
    shown = rows[:limit]
    texts = [printable(row.string) for row in shown]
    places = _wrap([max(len(text), len(str(row.id)) * 0.75) + CHIP_ROOM for text, row in zip(texts, shown, strict=True)])
    lines = places[-1][1] + 1
    ax = axes_or_new(ax, 10.0, 0.5 + 0.46 * lines)
    for row, text, (left, line, width) in zip(shown, texts, places, strict=True):
        fill, edge, dashes = ROLES.get(row.role, ROLES["template"])
        box = {"boxstyle": "round,pad=0,rounding_size=0.25", "mutation_aspect": 0.5, "linestyle": dashes, "linewidth": 1.0}
        ax.add_patch(FancyBboxPatch((left, line + 0.1), width - 0.4, 0.8, facecolor=fill, edgecolor=edge, **box))
        middle = left + (width - 0.4) / 2
        look = {"ha": "center", "va": "center", "family": "monospace", "parse_math": False}
        ax.text(middle, line + 0.37, text, color=STYLE["ink"], fontsize=8.5, **look)
        ax.text(middle, line + 0.71, str(row.id), color=STYLE["soft_ink"], fontsize=6.5, **look)
    dress(ax)
    ax.set(xlim=(-0.3, CHARACTERS), ylim=(lines, 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    present = [role for role in ROLES if any(row.role == role for row in shown)]
    chips = [Patch(facecolor=ROLES[r][0], edgecolor=ROLES[r][1], linestyle=ROLES[r][2], label=r) for r in present]
    dress_legend(ax, handles=chips, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(chips), borderaxespad=0.2)
    if len(rows) > limit:
        ax.set_title(f"{len(rows) - limit} more tokens not shown", loc="right", color=STYLE["soft_ink"], fontsize=8)
    describe(ax, f"{len(rows)} tokens in the colours of their roles: {', '.join(present)}")
    return ax


def _wrap(widths: Sequence[float]) -> list[tuple[float, int, float]]:
    """Left end, line and width of each chip, in characters."""
    places, left, line = [], 0.0, 0
    for width in widths:
        if left > 0 and left + width > CHARACTERS:
            left, line = 0.0, line + 1
        places.append((left, line, width))
        left += width
    return places


def printable(text: str, *, longest: int = 40) -> str:
    """A token's string for a picture: visible spaces and line ends, a box where the font has no such character.

    Args:
        text: of the token.
        longest: what is longer is cut.
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    glyphs = get_font(findfont(FontProperties(family="monospace"))).get_charmap()
    visible = text.translate(CONTROL)
    cut = visible if len(visible) <= longest else visible[: longest - 1] + "\u2026"
    return "".join(c if ord(c) in glyphs else "\u25a1" for c in cut)
