"""The token view: a prompt as the text tower reads it, token by token.

Read next: `widgets.py`, the list of all.
"""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.figure_style import STYLE
from cosmos3_lab.prepare import make_processor
from cosmos3_lab.prompt import TokenRow, token_table
from cosmos3_lab.schedule_figures import CONTROL, ROLES, plot_tokens
from cosmos3_lab.widget_parts import SOFT_INK, buttons, has_front_end, ipywidgets, lab_box, on_change, row

if TYPE_CHECKING:
    from ipywidgets import Widget
    from matplotlib.axes import Axes

PAGE = 240  # chips at a time
MEANING = {
    "system": "from the recipe's system message",
    "template": "put there by the checkpoint's chat template",
    "prompt": "written by you",
    "metadata": "added by the recipe: duration, frame rate, resolution",
    "boundary": "end of the text; media tokens follow",
}


def token_view(models: Cosmos3Models, prompt: str, negative_prompt: str | None = None, **size: float) -> "Widget | Axes":
    """Every token as a chip in the colour of its role; choose one to see its id, string and position.

    Args:
        models: whose tokenizer, recipe and size; also after `close`.
        prompt: positive.
        negative_prompt: None for the recipe's default, "" for an empty one.
        size: `num_frames`, `height`, `width` and `fps` of the clip, which stand in the prompt; the checkpoint's where not given.

    Raises:
        ValueError: the prompt is empty or not text.
    """
    d = models.defaults
    default = {"num_frames": d.num_frames, "height": d.height, "width": d.width, "fps": d.fps}
    processor = make_processor(models, **default | size)
    tables = {"prompt": token_table(processor, prompt), "negative": token_table(processor, negative_prompt=negative_prompt)}
    return _build(tables) if has_front_end() else plot_tokens(tables["prompt"])


def _build(tables: dict[str, list[TokenRow]]) -> "Widget":
    w, box = ipywidgets(), lab_box()
    sides = [(f"prompt, {len(tables['prompt'])} tokens", "prompt"), (f"negative, {len(tables['negative'])} tokens", "negative")]
    side_row, side = buttons("tokens of the", sides, "prompt")
    chips, detail, highlight = w.HTML(), w.HTML(layout={"min_height": "150px", "width": "330px"}), w.HTML()
    listing = w.Select(options=_options(tables["prompt"]), value=0, rows=11, layout={"width": "330px"})
    mark = f"tokens-{chips.model_id}"  # of this widget alone, for the page may hold several
    shown = {}

    def redraw() -> None:
        at = listing.value or 0
        rows, page = tables[side.value], at // PAGE
        if shown.get("page") != (side.value, page):
            shown["page"] = side.value, page
            chips.value = _chips(rows, page, mark)
        highlight.value = f"<style>.{mark} .t{at} {{outline: 3px solid {STYLE['ink']}; outline-offset: 1px}}</style>"
        detail.value = _detail(rows[at], len(rows))

    def turn() -> None:
        with listing.hold_trait_notifications():
            listing.options = _options(tables[side.value])
            listing.value = 0
        redraw()

    side.observe(lambda change: turn(), names="value")
    on_change(redraw, listing)
    return box.LabBox([side_row, chips, row(listing, detail), highlight])


def _options(rows: Sequence[TokenRow]) -> list[tuple[str, int]]:
    return [(f"{r.index}:  {r.string.translate(CONTROL) or '(empty)'}   id {r.id}", r.index) for r in rows]


def _chips(rows: Sequence[TokenRow], page: int, mark: str) -> str:
    """HTML of one page; text of users is escaped."""
    part = rows[page * PAGE : (page + 1) * PAGE]
    made = []
    for r in part:
        fill, edge, _ = ROLES.get(r.role, ROLES["template"])
        style = f"background: {fill}; border: 1px solid {edge}; border-radius: 4px; padding: 1px 5px; color: {STYLE['ink']}"
        title = escape(f"position {r.index}, id {r.id}, {r.role}")
        made.append(
            f'<span class="t{r.index}" title="{title}" style="{style}">{escape(r.string.translate(CONTROL)) or "&nbsp;"}</span>'
        )
    present = [role for role in ROLES if any(r.role == role for r in rows)]
    legend = " ".join(
        f'<span style="background: {ROLES[k][0]}; border: 1px solid {ROLES[k][1]}; border-radius: 4px; padding: 0 6px; '
        f'color: {STYLE["ink"]}">{k}</span>'
        for k in present
    )
    more = "" if len(rows) <= PAGE else f" tokens {part[0].index} to {part[-1].index} of {len(rows)}"
    card = f"background: {STYLE['face']}; border-radius: 6px; padding: 10px; max-height: 260px; overflow: auto; line-height: 1.4"
    wrap = "display: flex; flex-wrap: wrap; gap: 5px 4px; font-family: monospace; font-size: 12px; white-space: pre-wrap"
    return (
        f'<div style="color: {SOFT_INK}; margin-bottom: 6px">{legend}{more}</div>'
        f'<div class="{mark}" style="{card}"><div style="{wrap}">{"".join(made)}</div></div>'
    )


def _detail(r: TokenRow, count: int) -> str:
    rows = {
        "position": f"{r.index} (the first is 0, the last {count - 1})",
        "id": str(r.id),
        "string": repr(r.string),
        "role": f"{r.role}: {MEANING.get(r.role, '')}",
    }
    cells = "".join(
        f'<tr><td style="padding: 2px 14px 2px 0; color: {SOFT_INK}">{name}</td>'
        f'<td style="font-family: monospace; overflow-wrap: anywhere">{escape(text)}</td></tr>'
        for name, text in rows.items()
    )
    return f'<table role="status" style="line-height: 1.5; text-align: left">{cells}</table>'
