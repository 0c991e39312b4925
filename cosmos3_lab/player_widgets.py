"""The denoise player: scrub through the steps and see, and hear, what the network believes the clip to be.

Read next: `sound_widgets.py`.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import StepRecord
from cosmos3_lab.figure_style import MOST_FRAMES, STYLE, VIDEO, add_colour_bar, dress, new_figure, pick_evenly
from cosmos3_lab.latent_figures import filmstrip_of_x0
from cosmos3_lab.latent_widgets import video_of
from cosmos3_lab.preview import LatentPreview, latent_preview
from cosmos3_lab.sound_avae import decode_sound
from cosmos3_lab.sound_figures import draw_levels, spectrogram_db
from cosmos3_lab.sound_widgets import player, wav_bytes
from cosmos3_lab.step_widgets import step_marker
from cosmos3_lab.widget_parts import check_records, has_front_end, lab_box, line, on_change, row, say, step_controls, step_words

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D

Film = Callable[[int], Float[np.ndarray, "kinds t h w 3"]]
Heard = Callable[[int], tuple[Float[np.ndarray, "channels samples"], int]]
STEPS_HELD = 64  # whose colours and decoded sound stay in memory


def denoise_player(records: Sequence[StepRecord], models: Cosmos3Models) -> "Widget | Figure":
    """Scrub the steps: x0 and sample in colours, the spectrogram of the decoded sound x0 and its sound, the noise level.

    Args:
        records: with x0 kept; with `keep="full"` the noisy sample is shown too.
        models: that made them, not closed; the AVAE decodes each step's sound when it is first shown.

    Raises:
        ValueError: there are no records, they hold no x0, or the models were closed.
    """
    records = check_records(records, "x0")
    preview = latent_preview(models)
    with_sound = records[0].x0.sound is not None
    if with_sound and (models.avae is None or models.avae.decoder.conv1.weight.device.type == "meta"):
        raise ValueError("got records with sound and models that were closed or have no AVAE, try load_cosmos3 again, with sound")
    if not has_front_end():
        return filmstrip_of_x0(records, preview)
    return _build(records, models, preview)


def _build(records: list[StepRecord], models: Cosmos3Models, preview: LatentPreview) -> "Widget":
    with_sample = records[0].velocity is not None

    def film(at: int) -> np.ndarray:
        kinds = ["x0", "sample"] if with_sample else ["x0"]
        return np.stack([preview.pixels(torch.from_numpy(video_of(records[at], kind)[None])) for kind in kinds])

    def heard(at: int) -> tuple[np.ndarray, int]:
        sound = records[at].x0.sound.to(models.device)
        return decode_sound(models.avae, sound)[0].cpu().numpy(), models.avae.config.sampling_rate

    return step_player(records, film, None if records[0].x0.sound is None else heard)


def step_player(records: list[StepRecord], film: Film, heard: Heard | None) -> "Widget":
    """Scrub through steps, whatever makes their pictures and sounds: models, or files of a trace.

    Args:
        records: of steps that follow each other; numbers are enough.
        film: gives small frames `[kinds, t, h, w, 3]` of a step by its place in `records`: of x0, or of x0 and the sample.
        heard: gives its waveform `[channels, samples]` and sample rate, None for a silent run.
    """
    box, first = lab_box(), records[0].index
    steps, scrub, link = step_controls(records)
    picture, words = box.Picture(), line()
    audio = None if heard is None else player()
    seen = "Clean video" if heard is None else "Clean video and sound"
    films = lru_cache(maxsize=STEPS_HELD)(film)

    @lru_cache(maxsize=STEPS_HELD)
    def sounds(at: int) -> tuple[np.ndarray, float, int, bytes]:
        wave, rate = heard(at)
        return *spectrogram_db(wave, rate, scale="mel"), rate, wav_bytes(wave, rate)

    panes = _Panes(records, films(0), None if heard is None else sounds(0)[:3])

    def redraw() -> None:
        at = scrub.value - first
        panes.show(scrub.value, films(at), None if heard is None else sounds(at)[0])
        picture.show(panes.moving.png(), f"{seen} predicted at {step_words(records[at])}")
        if audio is not None:
            audio.value = sounds(at)[3]
        say(words, step_words(records[at]))

    on_change(redraw, scrub)
    top = row(steps, audio) if audio is not None else steps
    return box.LabBox([top, picture, words], links=[link])


class _Panes:
    """Noise level over the steps, spectrogram, and latent frames in colours."""

    def __init__(self, records: list[StepRecord], film: np.ndarray, levels: tuple[np.ndarray, float, int] | None) -> None:
        from cosmos3_lab.figure_canvas import LabAxes
        from cosmos3_lab.widget_canvas import Mosaic, MovingFigure

        figure = new_figure(10.0, 2.7 + 1.1 * len(film))
        grid = figure.add_gridspec(2, 2, height_ratios=(1.6, len(film)), width_ratios=(1, 1.6))
        places = [grid[0, 0] if levels is not None else grid[0, :], grid[1, :]] + ([] if levels is None else [grid[0, 1]])
        sigma, strip, *spectrum = [figure.add_subplot(place, axes_class=LabAxes) for place in places]
        self.mark = _draw_sigma(sigma, records)
        self.frames = pick_evenly(film.shape[1], MOST_FRAMES)
        names = [f"frame {f}" for f in self.frames] + [""] * (len(self.frames) if len(film) > 1 else 0)
        self.film = Mosaic(strip, self._tiles(film), columns=len(self.frames), names=names)
        labels = [(self.film.corner(k * len(self.frames))[1] + film.shape[2] / 2, n) for k, n in enumerate(("x0", "sample"))]
        strip.set_yticks([y for y, _ in labels[: len(film)]], [n for _, n in labels[: len(film)]])
        strip.tick_params(length=0, labelcolor=STYLE["ink"], labelsize=STYLE["text_size"])
        moving = [self.film.image, self.mark]
        self.sound = None
        if levels is not None:
            self.sound = _draw_sound(spectrum[0], *levels)
            moving.append(self.sound)
        self.moving = MovingFigure(figure, moving)

    def _tiles(self, film: np.ndarray) -> np.ndarray:
        return film[:, self.frames].reshape(-1, *film.shape[2:])

    def show(self, step: int, film: np.ndarray, levels: np.ndarray | None) -> None:
        """Put another step in."""
        self.mark.set_xdata([step, step])
        self.film.show(self._tiles(film))
        if self.sound is not None:
            self.sound.set_data(levels)


def _draw_sigma(ax: "Axes", records: Sequence[StepRecord]) -> "Line2D":
    look = {"color": VIDEO, "marker": "o", "markersize": 4, "linewidth": 1.5}
    ax.plot([record.index for record in records], [record.sigma for record in records], **look)
    ax.set_ylim(0, 1.05)
    dress(ax, title="Noise level", x="step", y=r"$\sigma$", grid="both")
    return step_marker(ax, records)


def _draw_sound(ax: "Axes", levels: np.ndarray, hop: float, sample_rate: int) -> "AxesImage":
    image = draw_levels(ax, levels, hop, sample_rate, scale="mel")
    ax.set_xlim(0, (levels.shape[1] - 1) * hop)
    dress(ax, title="Sound x0, decoded", x="time (s)", y="frequency (Hz, mel)")
    add_colour_bar(image, [ax], "dB of full scale", pad=0.02)
    return image
