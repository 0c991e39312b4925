"""Figures of sound, and of sound and frames on one time axis.

A spectrogram is the short-time Fourier transform's power in dB of full scale: a sine of amplitude 1 is 0 dB. The mel scale
spaces frequencies as the ear does, `mel(f) = 2595 log10(1 + f / 700)`.

Read next: `media.py`, which makes both of them play.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from einops import rearrange
from jaxtyping import Float

from cosmos3_lab.configs import check_choice
from cosmos3_lab.figure_style import (
    SOUND,
    STYLE,
    Numbers,
    add_colour_bar,
    axes_or_new,
    describe,
    dress,
    dress_colour_bar,
    new_figure,
    new_panels,
    symmetric_limit,
    with_shape,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from cosmos3_lab.figure_canvas import LabFigure

Scale = Literal["linear", "mel"]
WINDOW_SECONDS = {"linear": 0.032, "mel": 0.064}  # low mel bands are narrow and need a longer look
MEL_BANDS = 64
FLOOR_DB = -80.0  # the quietest that figures show
MEL_TICKS = (100.0, 300.0, 1000.0, 3000.0, 10000.0)  # Hz
WAVEFORM = "waveform"  # gid of the lines of samples
LANE = 2.2  # amplitudes between the middles of two channels
# The timeline's measures, in inches.
WIDTH, LEFT, PLOT_WIDTH = 10.0, 0.8, 8.2
ABOVE, BELOW, ROW_GAP = 0.12, 0.5, 0.14


# ------------------------------------------------------------------------------------------------------ spectrogram


def spectrogram_db(
    waveform: Numbers, sample_rate: int, *, scale: Scale = "linear"
) -> tuple[Float[np.ndarray, "bands moments"], float]:
    """Power over frequency and time in dB of full scale, the mean of the channels.

    Args:
        waveform: `[channels, samples]` in [-1, 1].
        sample_rate: in Hz.
        scale: "linear", bands from 0 Hz to half of the sample rate; "mel", 64 bands of equal width in mel between the same.

    Returns:
        `[bands, moments]`, and the seconds from one moment to the next; the first is at 0 s.

    Raises:
        ValueError: another shape, or no such scale.
    """
    array = with_shape("a waveform", waveform, "channels samples").astype(np.float64)
    check_choice("scale", scale, Scale)
    window = 2 ** int(np.log2(max(WINDOW_SECONDS[scale] * sample_rate, 16)))
    hop, weights = window // 4, np.hanning(window + 1)[:-1]
    padded = np.pad(array, ((0, 0), (window // 2, window // 2)), mode="reflect")  # moments are in the middle of their window
    pieces = np.lib.stride_tricks.sliding_window_view(padded, window, axis=1)[:, ::hop]
    spectrum = np.abs(np.fft.rfft(pieces * weights, axis=-1)) / (weights.sum() / 2)
    power = rearrange((spectrum**2).mean(axis=0), "moments bands -> bands moments")
    if scale == "mel":
        power = mel_filters(sample_rate, window) @ power
    return 10 * np.log10(power + 1e-20), hop / sample_rate


def mel_filters(sample_rate: int, window: int, *, bands: int = MEL_BANDS) -> Float[np.ndarray, "bands bins"]:
    """Triangles over the bins of a Fourier transform, evenly spaced in mel, each reaching to its neighbours' tops.

    Args:
        sample_rate: in Hz.
        window: samples of the transform; its bins are `sample_rate / window` Hz apart.
        bands: number of triangles between 0 Hz and half of the sample rate.
    """
    hertz = np.fft.rfftfreq(window, 1 / sample_rate)
    corners = mel_to_hertz(np.linspace(0, hertz_to_mel(sample_rate / 2), bands + 2))
    low, top, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    return np.minimum((hertz - low) / (top - low), (high - hertz) / (high - top)).clip(min=0)


def hertz_to_mel(hertz: float | np.ndarray) -> float | np.ndarray:
    """2595 log10(1 + f / 700)."""
    return 2595 * np.log10(1 + hertz / 700)


def mel_to_hertz(mel: float | np.ndarray) -> float | np.ndarray:
    """The inverse of `hertz_to_mel`."""
    return 700 * (10 ** (mel / 2595) - 1)


def plot_spectrogram(waveform: Numbers, sample_rate: int, *, scale: Scale = "linear", ax: "Axes | None" = None) -> "Axes":
    """Which frequencies sound when, with a colour bar in dB.

    Args:
        waveform: `[channels, samples]` in [-1, 1]; the channels' mean power is shown.
        sample_rate: in Hz.
        scale: of the frequency axis, "linear" or "mel".
        ax: to draw on.

    Raises:
        ValueError: another shape, or no such scale.
    """
    image = _draw_spectrogram(waveform, sample_rate, scale, ax)
    image.axes.set_xlim(0, np.shape(waveform)[-1] / sample_rate)
    dress(image.axes, x="time (s)", y=image.axes.get_ylabel())
    add_colour_bar(image, [image.axes], "power (dB of full scale)", pad=0.02)
    return image.axes


def _draw_spectrogram(waveform: Numbers, sample_rate: int, scale: Scale, ax: "Axes | None") -> "AxesImage":
    levels, hop = spectrogram_db(waveform, sample_rate, scale=scale)
    image = draw_levels(axes_or_new(ax, 9.0, 3.2), levels, hop, sample_rate, scale=scale)
    dress(image.axes, y="frequency (kHz)" if scale == "linear" else "frequency (Hz, mel)")
    seconds = np.shape(waveform)[-1] / sample_rate
    describe(image.axes, f"Spectrogram of {seconds:.2f} s of sound, {scale} frequency axis")
    return image


def draw_levels(ax: "Axes", levels: np.ndarray, hop: float, sample_rate: int, *, scale: Scale) -> "AxesImage":
    """The levels of a spectrogram over time and frequency, with the frequency axis; the caller sets the limits in time.

    Args:
        ax: to draw on.
        levels, hop: from `spectrogram_db`.
        sample_rate: in Hz.
        scale: of the levels.
    """
    extent = spectrogram_extent(levels, hop, sample_rate, scale=scale)
    look = {"cmap": STYLE["sound"], "vmin": FLOOR_DB, "vmax": 0, "interpolation": "nearest"}
    image = ax.imshow(levels, origin="lower", aspect="auto", extent=extent, **look)
    if scale == "mel":
        ticks = mel_ticks(sample_rate)
        ax.set_yticks(list(ticks.values()), list(ticks))
    ax.set_ylim(max(extent[2], 0), min(extent[3], _top(sample_rate, scale)))
    return image


def spectrogram_extent(levels: np.ndarray, hop: float, sample_rate: int, *, scale: Scale) -> tuple[float, float, float, float]:
    """Left and right end in seconds, lower and upper end in kHz or mel: each level's colour lies around its time and frequency.

    Args:
        levels, hop: from `spectrogram_db`.
        sample_rate: in Hz.
        scale: of the levels.
    """
    bands, moments = levels.shape
    # the first and the last bin are at the ends of the scale, mel bands one step inside of them
    first, gaps = (0, bands - 1) if scale == "linear" else (1, bands + 1)
    step = _top(sample_rate, scale) / gaps
    return -hop / 2, (moments - 0.5) * hop, (first - 0.5) * step, (first + bands - 0.5) * step


def mel_ticks(sample_rate: int) -> dict[str, float]:
    """Where the marks of a mel axis stand, in mel, by their text in Hz.

    Args:
        sample_rate: in Hz; what it cannot hold has no mark.
    """
    return {f"{f:g}" if f < 1000 else f"{f / 1000:g}k": hertz_to_mel(f) for f in MEL_TICKS if f <= sample_rate / 2}


def _top(sample_rate: int, scale: Scale) -> float:
    """The upper end of the frequency scale, in kHz or mel."""
    return sample_rate / 2000 if scale == "linear" else hertz_to_mel(sample_rate / 2)


def plot_sound(waveform: Numbers, sample_rate: int, *, scale: Scale = "mel") -> "Figure":
    """Waveform and spectrogram on one time axis.

    Args:
        waveform: `[channels, samples]` in [-1, 1].
        sample_rate: in Hz.
        scale: of the frequency axis, "linear" or "mel".

    Raises:
        ValueError: another shape, or no such scale.
    """
    figure, ((above,), (below,)) = new_panels(2, 1, 10.0, 4.6, sharex=True, height_ratios=(1, 1.5))
    plot_waveform(waveform, sample_rate, ax=above)
    above.set_xlabel("")
    plot_spectrogram(waveform, sample_rate, scale=scale, ax=below)
    return figure


# ------------------------------------------------------------------------------------------------ waveform, latents


def plot_waveform(waveform: Numbers, sample_rate: int, *, ax: "Axes | None" = None) -> "Axes":
    """Amplitude over time, a lane for each channel, the left one on top.

    Args:
        waveform: `[channels, samples]` in [-1, 1].
        sample_rate: in Hz.
        ax: to draw on.

    Raises:
        ValueError: another shape.
    """
    array = with_shape("a waveform", waveform, "channels samples")
    count, samples = array.shape
    ax = axes_or_new(ax, 9.0, 0.7 + 1.1 * count)
    middles = [LANE * (count - 1 - channel) for channel in range(count)]
    times = np.arange(samples) / sample_rate
    for channel, middle in zip(array, middles, strict=True):
        ax.axhline(middle, color=STYLE["rule"], linewidth=0.8, zorder=0)
        ax.plot(times, channel + middle, color=SOUND, linewidth=0.7, gid=WAVEFORM)
    names = {1: ["mono"], 2: ["left", "right"]}.get(count, [f"channel {i}" for i in range(count)])
    ticks = [
        (middle + end, text)
        for middle, name in zip(middles, names, strict=True)
        for end, text in ((-0.5, "\u22120.5"), (0, name), (0.5, "0.5"))
    ]
    ax.set_yticks([place for place, _ in ticks], [text for _, text in ticks])
    ax.set(xlim=(0, samples / sample_rate), ylim=(-LANE / 2, middles[0] + LANE / 2))
    dress(ax, x="time (s)", y="amplitude", grid="x")
    describe(ax, f"Waveform of {samples / sample_rate:.2f} s of sound with {count} channels, peak {np.abs(array).max():.2f}")
    return ax


def plot_sound_latents(sound: Numbers, *, latent_fps: float = 25.0, ax: "Axes | None" = None) -> "Axes":
    """Every channel of the sound latents over time, on a colour scale around zero.

    Args:
        sound: latents `[1, n_sound, d_sound]`.
        latent_fps: sound latents a second.
        ax: to draw on.

    Raises:
        ValueError: another shape.
    """
    image = _draw_sound_latents(sound, latent_fps, ax)
    dress(image.axes, x="time (s)", y="channel")
    add_colour_bar(image, [image.axes], "latent value", pad=0.02)
    return image.axes


def _draw_sound_latents(sound: Numbers, latent_fps: float, ax: "Axes | None") -> "AxesImage":
    array = with_shape("sound latents", sound, "1 n_sound d_sound")[0]
    count, channels = array.shape
    ax, limit = axes_or_new(ax, 9.0, 3.0), symmetric_limit(array)
    extent = (0, count / latent_fps, channels - 0.5, -0.5)  # latent i spans i / fps to (i + 1) / fps
    look = {"cmap": STYLE["signed"], "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
    image = ax.imshow(array.T, aspect="auto", extent=extent, **look)
    ax.yaxis.get_major_locator().set_params(integer=True)
    dress(ax, y="channel")
    describe(ax, f"{count} sound latents of {channels} channels, {count / latent_fps:.2f} s")
    return image


# --------------------------------------------------------------------------------------------------------- timeline


def plot_timeline(
    frames: Numbers,
    fps: float,
    waveform: Numbers,
    sample_rate: int,
    *,
    sound_latents: Numbers | None = None,
    sound_latent_fps: float = 25.0,
    scale: Scale = "linear",
    events: Sequence[float] = (),
    count: int = 10,
) -> "Figure":
    """Frames, sound latents, waveform and spectrogram on one time axis.

    Every picture is the frame that is on screen at the middle of its place, so that what is seen and heard at one moment
    stands in one vertical line.

    Args:
        frames: `[frames, height, width, 3]` in [0, 1] or uint8.
        fps: frames a second.
        waveform: `[channels, samples]` in [-1, 1].
        sample_rate: in Hz.
        sound_latents: `[1, n_sound, d_sound]`, None to leave their row out.
        sound_latent_fps: sound latents a second.
        scale: of the spectrogram.
        events: seconds at which to draw a line through all rows.
        count: of pictures.

    Raises:
        ValueError: another shape.
    """
    film = with_shape("frames", frames, "frames height width 3")
    seconds = len(film) / fps
    rows = ["frames", *(["latents"] if sound_latents is not None else []), "waveform", "spectrogram"]
    heights = {"frames": PLOT_WIDTH / count * film.shape[1] / film.shape[2], "latents": 1.3, "waveform": 1.5, "spectrogram": 1.5}
    figure, axes = _stacked_axes({row: heights[row] for row in rows})
    _draw_film(axes["frames"], film, fps, count)
    if sound_latents is not None:
        _add_bar(_draw_sound_latents(sound_latents, sound_latent_fps, axes["latents"]), "sound latent")
    plot_waveform(waveform, sample_rate, ax=axes["waveform"])
    _add_bar(_draw_spectrogram(waveform, sample_rate, scale, axes["spectrogram"]), "dB of full scale")
    for row, ax in axes.items():
        dress(ax, x="time (s)" if row == rows[-1] else "")
        ax.set(xlim=(0, seconds), xlabel=ax.get_xlabel() if row == rows[-1] else "")
        ax.tick_params(labelbottom=row == rows[-1])
        ax.yaxis.set_label_coords(-0.55 / PLOT_WIDTH, 0.5)
        for event in events:
            ax.axvline(event, color="white", linewidth=2.6, zorder=4)  # seen on dark pictures, as the dashes on light ones
            ax.axvline(event, color=STYLE["ink"], linewidth=1.2, linestyle="--", zorder=5)
    return figure


def _stacked_axes(heights: Mapping[str, float]) -> tuple["LabFigure", dict[str, "Axes"]]:
    """Axes of one width, one below the other, that share their x axis; room for colour bars at the right."""
    from cosmos3_lab.figure_canvas import LabAxes

    tall = sum(heights.values()) + ROW_GAP * (len(heights) - 1) + BELOW + ABOVE
    figure = new_figure(WIDTH, tall, constrained=False)
    axes, top, first = {}, tall - ABOVE, None
    for name, height in heights.items():
        place = (LEFT / WIDTH, (top - height) / tall, PLOT_WIDTH / WIDTH, height / tall)
        axes[name] = figure.add_axes(place, axes_class=LabAxes, sharex=first)
        first, top = first or axes[name], top - height - ROW_GAP
    return figure, axes


def _add_bar(image: "AxesImage", label: str) -> None:
    """A colour bar at the right of axes that keep their width."""
    bar = image.axes.inset_axes((1.012, 0, 0.014, 1))
    dress_colour_bar(image.figure.colorbar(image, cax=bar), label)


def _draw_film(ax: "Axes", film: np.ndarray, fps: float, count: int) -> None:
    seconds = len(film) / fps
    for slot in range(count):
        begin, end = slot * seconds / count, (slot + 1) * seconds / count
        frame = min(int((begin + end) / 2 * fps), len(film) - 1)
        ax.imshow(film[frame], extent=(begin, end, 0, 1), aspect="auto", interpolation="nearest")
        ax.axvline(begin, color=STYLE["face"], linewidth=1)
    ax.set(ylim=(0, 1), yticks=[])
    dress(ax, y="frames")
    describe(ax, f"{count} of {len(film)} frames of {seconds:.2f} s")
