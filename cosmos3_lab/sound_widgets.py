"""The sound view: look at a waveform, look closer, and listen.

Read next: `token_widgets.py`.
"""

import wave
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from cosmos3_lab.figure_style import Numbers, with_shape
from cosmos3_lab.sound_figures import plot_sound
from cosmos3_lab.widget_parts import buttons, has_front_end, ipywidgets, lab_box, line, on_change, row, say

if TYPE_CHECKING:
    from ipywidgets import Audio, Widget
    from matplotlib.figure import Figure


SCALES = [("log-mel", "mel"), ("linear", "linear")]


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
    from cosmos3_lab.widget_canvas import MovingFigure

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
    figures = {name: plot_sound(array, sample_rate, scale=name) for _, name in SCALES}
    drawn = {name: MovingFigure(figure, figure.axes[:2]) for name, figure in figures.items()}

    def redraw() -> None:
        shown, (begin, end) = drawn[scale.value], zoom.value
        end = max(end, begin + seconds / 200)
        shown.figure.axes[0].set_xlim(begin, end)
        picture.show(shown.png(), f"{shown.figure.alt_text} Shown from {begin:.2f} s to {end:.2f} s.")
        part = array[:, int(begin * sample_rate) : int(end * sample_rate) + 1]
        level = 20 * np.log10(np.sqrt((part**2).mean()) + 1e-10)
        say(words, f"{begin:.2f} s to {end:.2f} s: peak {np.abs(part).max():.3f}, rms {level:.1f} dB of full scale")

    on_change(redraw, scale, zoom)
    return box.LabBox([row(scale_row, zoom, audio), picture, words])


def player() -> "Audio":
    """An audio player that waits to be started."""
    layout = {"width": "320px", "height": "40px"}
    return ipywidgets().Audio(value=b"", format="wav", autoplay=False, loop=False, layout=layout)


def wav_bytes(array: np.ndarray, sample_rate: int) -> bytes:
    """A WAV file in memory, 16 bits.

    Args:
        array: `[channels, samples]` in [-1, 1].
        sample_rate: in Hz.
    """
    buffer = BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(array.shape[0])
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((array.clip(-1, 1) * 32767).round().astype("<i2").T.tobytes())
    return buffer.getvalue()
