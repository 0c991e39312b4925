"""What widgets share: whether there is a notebook to show them, the checks of their records, their controls.

ipywidgets is an optional extra and imported late. Sliders answer when they are released. Nothing is kept outside of a widget.

Read next: `schedule_widgets.py`, the simplest of them.
"""

import sys
from collections.abc import Callable, Sequence
from html import escape
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from cosmos3_lab.denoise import StepRecord

if TYPE_CHECKING:
    from ipywidgets import HTML, Box, Dropdown, IntSlider, Play, ToggleButtons, Widget
    from ipywidgets.widgets.widget_link import Link

READ_WELL = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
PLAY_MILLISECONDS = 500  # from one step to the next
INK = "var(--jp-ui-font-color1, inherit)"  # of the page's theme
SOFT_INK = "var(--jp-ui-font-color2, inherit)"


def has_front_end() -> bool:
    """Whether this runs in a Jupyter kernel, whose front end can show widgets."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def lab_box() -> ModuleType:
    """The module of the boxes.

    Raises:
        ImportError: ipywidgets is not installed.
    """
    ipywidgets()
    return import_module("cosmos3_lab.widget_box")


def ipywidgets() -> ModuleType:
    """The module ipywidgets.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return import_module("ipywidgets")
    except ImportError as error:
        raise ImportError('widgets need ipywidgets, which is not installed; try pip install "cosmos3-lab[lab]"') from error


# ----------------------------------------------------------------------------------------------------------- records


def check_records(records: Sequence[StepRecord], *needed: str) -> list[StepRecord]:
    """The records as a list.

    Args:
        records: of one run, in order.
        needed: fields that each must hold, such as "x0" and "velocity".

    Raises:
        ValueError: there are none, they are not steps that follow each other, or one lacks a field.
    """
    records = list(records)
    if not records or not all(isinstance(record, StepRecord) for record in records):
        kinds = ", ".join(sorted({type(r).__name__ for r in records})) or "none"
        raise ValueError(f"got records of {kinds}, expected at least one StepRecord, try generate(..., keep='full').records")
    indices = [record.index for record in records]
    if indices != list(range(indices[0], indices[0] + len(indices))):
        raise ValueError(f"got records of the steps {indices}, expected steps that follow each other, those of one run")
    for name in needed:
        if any(getattr(record, name) is None for record in records):
            keep = "'x0' or 'full'" if name == "x0" else "'full'"
            raise ValueError(f"got records without {name}, expected those of a run with keep={keep}")
    return records


def step_words(record: StepRecord) -> str:
    """Where a step stands, for a line of text."""
    return f"step {record.index}: \u03c3 = {record.sigma:.4f}, timestep {record.timestep}"


# ------------------------------------------------------------------------------------------------------------- scales


def round_up(value: float) -> float:
    """The next number that reads well, such as 0.15 for 0.13; 1 for 0."""
    if value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next((power * n for n in READ_WELL if power * n >= value), 10 * power))


# ---------------------------------------------------------------------------------------------------------- controls


def slider(description: str, low: int, high: int, value: int, *, width: str = "340px") -> "IntSlider":
    """A slider of whole numbers that answers when it is released.

    Args:
        description: in front of it.
        low, high: its ends.
        value: where it stands first.
        width: CSS, with description and number.
    """
    # A slider whose ends are the same cannot be moved; it is shown all the same, so that every run looks alike.
    options = {"min": low, "max": high, "value": value, "description": description, "continuous_update": False}
    return ipywidgets().IntSlider(**options, disabled=low == high, layout={"width": width}, style={"description_width": "70px"})


def dropdown(description: str, options: Sequence[Any], value: Any, *, width: str) -> "Dropdown":  # noqa: ANN401
    """A choice among some, one of them in sight.

    Args:
        description: in front of it.
        options: values, or `(text, value)`.
        value: chosen first.
        width: CSS, with the description.
    """
    options = {"options": options, "value": value, "description": description}
    return ipywidgets().Dropdown(**options, layout={"width": width}, style={"description_width": "70px"})


def buttons(description: str, options: Sequence[tuple[str, str]], value: str) -> tuple["Box", "ToggleButtons"]:
    """A choice among a few, all of them in sight.

    Args:
        description: in front of them.
        options: `(text, value)`.
        value: chosen first.

    Returns:
        Text and buttons in a row that does not break, and the buttons.
    """
    w = ipywidgets()
    tips = [f"{description}: {text}" for text, _ in options]
    made = w.ToggleButtons(options=options, value=value, tooltips=tips, style={"button_width": "auto"}, layout={"width": "auto"})
    return w.HBox([w.Label(description), made], layout={"align_items": "center", "grid_gap": "6px"}), made


def step_controls(records: Sequence[StepRecord]) -> tuple["Box", "IntSlider", "Link"]:
    """Buttons that walk through the steps, and a slider over them.

    Args:
        records: that follow each other.

    Returns:
        Both in a row; the slider, whose value is a record's `index`; and the link between the two.
    """
    w, first, last = ipywidgets(), records[0].index, records[-1].index
    scrub = slider("step", first, last, first + (len(records) - 1) // 2, width="460px")
    play: Play = w.Play(min=first, max=last, value=scrub.value, interval=PLAY_MILLISECONDS, show_repeat=False)
    return row(scrub, play), scrub, w.jslink((play, "value"), (scrub, "value"))


def row(*widgets: "Widget") -> "Box":
    """Side by side, wrapped where the page is narrow."""
    return ipywidgets().HBox(widgets, layout={"flex_flow": "row wrap", "align_items": "center", "grid_gap": "2px 14px"})


def line() -> "HTML":
    """An empty line of text, for `say`; it keeps its height."""
    return ipywidgets().HTML(layout={"min_height": "28px", "margin": "0 0 0 4px"})


def say(target: "HTML", text: str) -> None:
    """Put text on a line, in the theme's ink; it is read out where a screen reader is on.

    Args:
        target: from `line`.
        text: not HTML.
    """
    target.value = f'<span role="status" style="color: {INK}; font-variant-numeric: tabular-nums">{escape(text)}</span>'


def on_change(redraw: Callable[[], None], *widgets: "Widget") -> None:
    """Call `redraw` whenever one of the values changes, and once now.

    Args:
        redraw: reads the widgets itself.
        widgets: with a `value`.
    """
    for widget in widgets:
        widget.observe(lambda change: redraw(), names="value")
    redraw()
