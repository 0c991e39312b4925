"""Pictures of a training: loss curves, and sheets of clips to look at.

Read next: `train.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from cosmos3_lab.files import replacing

# Okabe and Ito's colours, which colour-blind readers can tell apart.
INKS = ("#0072B2", "#D55E00", "#009E73")
# What a curve shows, by the name in the log; the rest of a log is for those who look closer.
PANELS = {
    "vae": ("video VAE: PSNR (dB)", {"psnr": "whole clip", "psnr_near": "around the things"}),
    "avae": ("AVAE: signal to error (dB)", {"snr": "waveform"}),
    "transformer": ("transformer: squared error of the velocity", {"video": "video", "sound": "sound"}),
}


def draw_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """One panel for each phase.

    Args:
        logs: by phase, a list of `{"step": ..., name: value, ...}`.
    """
    figure = Figure(figsize=(4.6 * len(logs), 3.4), layout="constrained", facecolor="white")
    for axes, (phase, log) in zip(np.atleast_1d(figure.subplots(1, len(logs))), logs.items(), strict=True):
        title, names = PANELS[phase]
        for ink, (name, label) in zip(INKS, names.items(), strict=False):
            points = [(row["step"], row[name]) for row in log if name in row]
            axes.plot(*zip(*points, strict=True), color=ink, label=label, linewidth=1.2)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
        if phase == "transformer":
            axes.set_yscale("log")
    return figure


def draw_sheet(
    clips: Sequence[tuple[str, Float[np.ndarray, "3 frames height width"], Float[np.ndarray, "channels samples"] | None]],
    *,
    columns: int = 9,
) -> Figure:
    """Every clip in a row: some of its frames in order, and its waveform below them on the same time axis.

    Args:
        clips: caption, pixels in [0, 1], waveform in [-1, 1] or None.
        columns: frames shown.
    """
    figure = Figure(figsize=(columns, 1.75 * len(clips)), layout="constrained", facecolor="white")
    parts = np.atleast_1d(figure.subfigures(len(clips), 1))
    for part, (caption, pixels, waveform) in zip(parts, clips, strict=True):
        part.suptitle(caption, fontsize=9, x=0.01, ha="left")
        grid = part.add_gridspec(2, columns, height_ratios=(4, 1))
        for column, frame in enumerate(np.linspace(0, pixels.shape[1] - 1, columns).round().astype(int)):
            axes = part.add_subplot(grid[0, column])
            axes.imshow(pixels[:, frame].transpose(1, 2, 0).clip(0, 1))
            axes.axis("off")
        axes = part.add_subplot(grid[1, :])
        if waveform is not None:
            axes.plot(waveform.mean(axis=0), color=INKS[0], linewidth=0.5)
        axes.set(ylim=(-0.8, 0.8), xmargin=0)
        axes.axis("off")
    return figure


def draw_sounds(
    names: Sequence[str],
    before: Float[np.ndarray, "n channels samples"],
    after: Float[np.ndarray, "n channels samples"],
    sample_rate: int,
) -> Figure:
    """Spectrograms (log magnitude, left and right together) of waveforms above those of their reconstructions.

    Args:
        names: of the sounds.
        before, after: waveforms.
        sample_rate: in Hz.
    """
    figure = Figure(figsize=(1 + 2.2 * len(names), 4.2), layout="constrained", facecolor="white")
    grid = figure.subplots(2, len(names), sharex=True, sharey=True, squeeze=False)
    for row, (label, waveforms) in zip(grid, (("played", before), ("through the AVAE", after)), strict=True):
        for axes, waveform, name in zip(row, waveforms, names, strict=True):
            hiss = 1e-6 * np.random.RandomState(0).standard_normal(waveform.shape[-1])  # silence has no logarithm
            axes.specgram(waveform.mean(axis=0) + hiss, NFFT=256, Fs=sample_rate, noverlap=192, vmin=-120, vmax=-30)
            axes.set_title(f"{name}, {label}", fontsize=8)
    grid[0, 0].set_ylabel("Hz")
    grid[1, 0].set(ylabel="Hz", xlabel="seconds")
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG, whole or not at all.

    Args:
        figure: to write.
        path: of the file.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
