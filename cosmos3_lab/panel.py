"""The generation panel: settings, Run, Stop and Resume, and a look at the clip while it takes shape.

    panel = generation_panel(models)
    panel                 # shown as a cell's last line
    panel.result          # after or during a run: a Generation with records, state and latents, as `generate` gives

Read next: `job.py`, the run behind it; `panel_box.py`, what is on the screen.
"""

from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.configs import check_choice
from cosmos3_lab.denoise import Keep
from cosmos3_lab.widget_parts import has_front_end, lab_box

if TYPE_CHECKING:
    from cosmos3_lab.panel_box import GenerationPanel


@dataclass(frozen=True)
class PanelNote:
    """What stands for the panel where no notebook can show it.

    Attributes:
        text: what to do instead.
    """

    text: str = (
        "The generation panel needs a Jupyter notebook. Elsewhere generate(models, prompt, with_sound=True, out='outputs') makes "
        "the same clip, and generate(..., should_stop=...) can be stopped."
    )

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.text)}</p>"

    def __repr__(self) -> str:
        return self.text


def generation_panel(models: Cosmos3Models, *, out: str | Path = "outputs", keep: Keep = "x0") -> "GenerationPanel | PanelNote":
    """Prompt, size, steps, guidance, seed, sound and preset; Run, Stop and Resume; a playing mp4 at the end.

    A run goes on in a worker thread, with the bits that `generate` gives for the same settings; the notebook stays usable. Stop
    ends it after the step under way and keeps what was computed: `panel.result` is a `Generation`, with `panel.records` and
    `panel.state` for the other widgets, `fork` or `save_state`. Resume goes on with that run and its settings, Run starts a new
    one. What cannot work is said in one line; `panel.job.error` is the exception. `panel.close()` ends the run and lets go of it.

    In split placement nothing else may use the models while a run goes on.

    Args:
        models: from `load_cosmos3`.
        out: folder in which every run gets one of its own, `run_001`, `run_002`, ..., with its mp4 (see `bundle.py`). A run that
            was stopped can be gone on with from there another day: `generate(models, resume=panel.result.bundle)`.
        keep: what the records hold; see `generate`.

    Returns:
        The panel; outside of a notebook kernel a note that says to use `generate`.

    Raises:
        ValueError: no such `keep`.
        ImportError: ipywidgets is not installed.
    """
    check_choice("keep", keep, Keep)
    if not has_front_end():
        return PanelNote()
    lab_box()  # says how to install ipywidgets where it is missing
    return import_module("cosmos3_lab.panel_box").GenerationPanel(models, out=out, keep=keep)
