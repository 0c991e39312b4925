"""The sound view: look at a waveform, look closer, and listen.

Read next: `token_widgets.py`.
"""

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from cosmos3_lab.figure_style import Numbers, with_shape
from cosmos3_lab.media import wav_bytes
from cosmos3_lab.sound_figures import WAVEFORM, Scale, plot_sound
from cosmos3_lab.widget_parts import buttons, has_front_end, ipywidgets, lab_box, line, on_change, row, say

if TYPE_CHECKING:
    from ipywidgets import Audio, Widget
    from matplotlib.figure import Figure


SCALES = [("log-mel", "mel"), ("linear", "linear")]
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of what is shown, where its times stand


def sound_view(waveform: Numbers, sample_rate: int) -> "Widget | Figure":
    """Waveform and spectrogram (log-mel or linear) on one time axis, a slider to look closer, and a player.

    Args:
        waveform: `[channels, samples]` in [-1, 1].
        sample_rate: in Hz.

    Raises:
        ValueError: another shape, or no such rate.
    """
    array = with_shape("a waveform", waveform, "channels samples")
    if not np.isfinite(array).all() or not sample_rate > 0:
        raise ValueError(f"got a sample_rate of {sample_rate} or a waveform that is not finite, expected Hz and finite numbers")
    return _build(array, int(sample_rate)) if has_front_end() else plot_sound(array, int(sample_rate))


def _build(array: np.ndarray, sample_rate: int) -> "Widget":
    w, box = ipywidgets(), lab_box()
    seconds = array.shape[1] / sample_rate
    scale_row, scale = buttons("frequency", SCALES, "mel")
    zoom = w.FloatRangeSlider(
        value=(0, seconds),
        min=0,
        max=seconds,
        step=seconds / 200,
        description="from, to (s)",
        continuous_update=False,
        readout_format=".2f",
        layout={"width": "460px"},
        style={"description_width": "80px"},
    )
    audio, picture, words = player(), box.Picture(), line()
    audio.value = wav_bytes(array, sample_rate)
    panes = cache(lambda name: _Panes(array, sample_rate, name))  # the second when it is asked for

    def redraw() -> None:
        shown, (begin, end) = panes(scale.value), zoom.value
        end = max(end, begin + seconds / 200)
        shown.show(begin, end)
        alt = shown.moving.figure.alt_text
        picture.show(shown.moving.png(), f"{alt} Shown from {begin:.2f} s to {end:.2f} s.")
        part = array[:, int(begin * sample_rate) : int(end * sample_rate) + 1]
        level = 20 * np.log10(np.sqrt((part**2).mean()) + 1e-10)
        say(words, f"{begin:.2f} s to {end:.2f} s: peak {np.abs(part).max():.3f}, rms {level:.1f} dB of full scale")

    on_change(redraw, scale, zoom)
    return box.LabBox([row(scale_row, zoom, audio), picture, words])


class _Panes:
    """Waveform and spectrogram of a part of the sound.

    Args:
        array: `[channels, samples]`.
        sample_rate: in Hz.
        scale: of the spectrogram.
    """

    def __init__(self, array: np.ndarray, sample_rate: int, scale: Scale) -> None:
        from cosmos3_lab.widget_canvas import MovingFigure, moving_labels

        figure = plot_sound(array, sample_rate, scale=scale)
        self.above, below, _ = figure.axes
        self.lanes = [lane for lane in self.above.lines if lane.get_gid() == WAVEFORM]
        self.samples, self.rate = [lane.get_ydata() for lane in self.lanes], sample_rate
        seconds = array.shape[1] / sample_rate
        self.numbers = moving_labels(below.xaxis, [share * seconds for share in SHARES], widest="0.000")
        self.moving = MovingFigure(figure, [*self.lanes, *below.images, *self.numbers])

    def show(self, begin: float, end: float) -> None:
        """Another part of it.

        Args:
            begin, end: in seconds.
        """
        self.above.set_xlim(begin, end)  # of both
        first, last = max(int(begin * self.rate) - 1, 0), int(end * self.rate) + 2
        for lane, samples in zip(self.lanes, self.samples, strict=True):
            moments, values = outline(samples[first:last])
            lane.set_data((first + moments) / self.rate, values)
        digits = 2 if end - begin > 0.25 else 3
        for share, text in zip(SHARES, self.numbers, strict=True):  # the ticks stay where they are on the page
            at = begin + share * (end - begin)
            text.set(x=at, text=f"{at:.{digits}f}")


def outline(samples: np.ndarray, *, most: int = 1600) -> tuple[np.ndarray, np.ndarray]:
    """Where a line goes that looks like all samples: the lowest and the highest of each few, in turn.

    Args:
        samples: `[n]`.
        most: of such pairs; as many samples or fewer are left as they are.

    Returns:
        Moments, counted in samples, and values.
    """
    every = -(-len(samples) // most)
    if every <= 2:
        return np.arange(len(samples)), samples
    folded = np.pad(samples, (0, -len(samples) % every), mode="edge").reshape(-1, every)
    moments = (np.arange(len(folded))[:, None] + (0.25, 0.75)) * every
    return moments.ravel(), np.stack([folded.min(axis=1), folded.max(axis=1)], axis=1).ravel()


def player() -> "Audio":
    """An audio player that waits to be started."""
    layout = {"width": "320px", "height": "40px"}
    return ipywidgets().Audio(value=b"", format="wav", autoplay=False, loop=False, layout=layout)
