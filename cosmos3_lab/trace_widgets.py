"""A trace to look at: the denoise player and its film strip from files alone.

Read next: `grid_widgets.py`.
"""

from typing import TYPE_CHECKING

import numpy as np

from cosmos3_lab.latent_figures import filmstrip_of_steps
from cosmos3_lab.player_widgets import step_player
from cosmos3_lab.trace import Trace
from cosmos3_lab.widget_parts import check_records, has_front_end

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.figure import Figure


def trace_player(trace: Trace) -> "Widget | Figure":
    """Scrub the steps of a run on disk: x0 in colours, the noise level, and its sound where that was written.

    Args:
        trace: from `open_trace`.

    Raises:
        ValueError: a file of it is missing or damaged.
    """
    records = check_records(trace.records)
    if not has_front_end():
        return plot_trace(trace)
    first = records[0].index
    heard = (lambda at: trace.sound(first + at)) if trace.with_sound else None
    return step_player(records, lambda at: np.stack([trace.film(first + at)]), heard)


def plot_trace(trace: Trace, *, rows: int = 8, count: int = 9) -> "Figure":
    """How the clean video took shape: a row for each step, latent frames from left to right.

    Args:
        trace: from `open_trace`.
        rows, count: steps and latent frames to show at most, evenly spaced.
    """
    first = trace.records[0].index
    return filmstrip_of_steps(trace.records, lambda at: trace.film(first + at), rows=rows, count=count)
