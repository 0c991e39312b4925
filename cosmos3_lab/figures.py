"""Every figure of the package, in the order of the story: plain arrays and this package's records in, a picture out.

    from cosmos3_lab import figures
    figures.plot_schedules({"shift 10": flow_schedule(35)})

What is drawn comes first; knobs are keyword-only. Figures of one pair of axes draw on `ax` where it is given and return the
axes; those of several panels return the figure. Either shows itself as the last line of a notebook's cell, outside of a
notebook `figure.savefig(path)` writes it (of axes: `ax.figure`); nothing has to be closed.

Read next: the modules below, `figure_style.py` for their common look.
"""

from cosmos3_lab.explore_figures import plot_trace, plot_tree
from cosmos3_lab.grid_sheet import plot_grid
from cosmos3_lab.latent_figures import (
    filmstrip,
    filmstrip_of_x0,
    plot_latent_channels,
    plot_latent_frames,
    plot_latent_histogram,
)
from cosmos3_lab.lens_figures import plot_attention_frames, plot_sound_to_video, plot_word_effects, plot_word_time
from cosmos3_lab.lesson_figures import (
    plot_curves,
    plot_guidance_scale,
    plot_parts,
    plot_positions,
    plot_solver_errors,
    plot_token_change,
    plot_token_sequence,
)
from cosmos3_lab.schedule_figures import plot_noise_levels, plot_schedules, plot_stage_times, plot_tokens
from cosmos3_lab.sound_figures import plot_sound, plot_sound_latents, plot_spectrogram, plot_timeline, plot_waveform
from cosmos3_lab.step_figures import guidance_map, plot_guidance, plot_trajectory, plot_unipc

__all__ = [
    "filmstrip",
    "filmstrip_of_x0",
    "guidance_map",
    "plot_attention_frames",
    "plot_curves",
    "plot_grid",
    "plot_guidance",
    "plot_guidance_scale",
    "plot_latent_channels",
    "plot_latent_frames",
    "plot_latent_histogram",
    "plot_noise_levels",
    "plot_parts",
    "plot_positions",
    "plot_schedules",
    "plot_solver_errors",
    "plot_sound",
    "plot_sound_latents",
    "plot_sound_to_video",
    "plot_spectrogram",
    "plot_stage_times",
    "plot_timeline",
    "plot_token_change",
    "plot_token_sequence",
    "plot_tokens",
    "plot_trace",
    "plot_trajectory",
    "plot_tree",
    "plot_unipc",
    "plot_waveform",
    "plot_word_effects",
    "plot_word_time",
]
