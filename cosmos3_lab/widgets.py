"""Every widget of the package, in the order of the story: sliders and buttons around the figures of `figures.py`.

    from cosmos3_lab import widgets
    widgets.schedule_explorer()

In a notebook each returns a widget, which a cell shows as its last line; elsewhere the static figure that tells the same.
Sliders can be moved with the arrow keys and answer when they are released. `close()` gives a widget's memory back.

Read next: `schedule_widgets.py`, `widget_parts.py` for what they share.
"""

from cosmos3_lab.explore_widgets import grid_player, trace_player
from cosmos3_lab.latent_widgets import latent_viewer
from cosmos3_lab.lens_widgets import attention_lens
from cosmos3_lab.panel import generation_panel
from cosmos3_lab.player_widgets import denoise_player
from cosmos3_lab.schedule_widgets import schedule_explorer
from cosmos3_lab.sound_widgets import sound_view
from cosmos3_lab.step_widgets import guidance_lens, unipc_lens
from cosmos3_lab.token_widgets import token_view

__all__ = [
    "attention_lens",
    "denoise_player",
    "generation_panel",
    "grid_player",
    "guidance_lens",
    "latent_viewer",
    "schedule_explorer",
    "sound_view",
    "token_view",
    "trace_player",
    "unipc_lens",
]
