"""Pieces of a record's HTML: tables of fields and of tensors' statistics, blocks of text, things to unfold.

All text that comes in is escaped here. No colour is named, so that the page's own show through: dark on a light theme, light on
a dark one. Tensors are reduced where they are, and only the numbers are copied from a GPU.

Read next: `reprs.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

if TYPE_CHECKING:
    from cosmos3_lab.figure_canvas import LabFigure

Row = tuple[str, object, str]  # name of a field, its value, what it means
Values = Shaped[Tensor, "..."] | Shaped[np.ndarray, "..."]
TensorRow = tuple[str, Values, str]
STATISTICS = ("mean", "std", "min", "max")

MONO = "font-family: var(--jp-code-font-family, monospace)"
CELL = "text-align: left; vertical-align: top; padding: 0.2em 0.9em 0.2em 0.3em; white-space: normal"
NAME = f"{CELL}; {MONO}; font-weight: normal; white-space: nowrap"
NUMBER = f"{CELL}; {MONO}; text-align: right; white-space: nowrap"
HEAD = f"{CELL}; font-weight: bold"
SOFT = f"{CELL}; opacity: 0.75; min-width: 10em"
LONGEST_TEXT = 1200  # characters of a prompt; the structured ones of Nano have thousands


def page(name: str, summary: str, parts: Iterable[str]) -> str:
    """A whole record.

    Args:
        name: of its class.
        summary: the most important of it in a few words.
        parts: HTML, one below the other.
    """
    head = f"<b>{escape(name)}</b>{f' &nbsp;{escape(summary)}' if summary else ''}"
    label = escape(f"{name} {summary}".strip())
    return f'<div role="group" aria-label="{label}"><div style="margin: 0.2em 0">{head}</div>{"".join(parts)}</div>'


def field_table(rows: Sequence[Row]) -> str:
    """Field, value, meaning.

    Args:
        rows: values are shown by `value_text`.
    """
    body = [
        f'<tr><th scope="row" style="{NAME}">{escape(name)}</th><td style="{CELL}; {MONO}">{escape(value_text(value))}</td>'
        f'<td style="{SOFT}">{escape(meaning)}</td></tr>'
        for name, value, meaning in rows
    ]
    return _table(("field", "value", "meaning"), body)


def tensor_table(rows: Sequence[TensorRow], *, samples: Mapping[str, Values] | None = None) -> str:
    """Name, shape, dtype, statistics, meaning.

    Args:
        rows: tensors on any device, of any real dtype.
        samples: by name, a part of a tensor that is too large to be measured whole.
    """
    measured = statistics([(samples or {}).get(name, values) for name, values, _ in rows])
    body = []
    for (name, values, meaning), numbers in zip(rows, measured, strict=True):
        cells = "".join(f'<td style="{NUMBER}">{number_text(number)}</td>' for number in numbers)
        body.append(
            f'<tr><th scope="row" style="{NAME}">{escape(name)}</th><td style="{NAME}">{list(values.shape)}</td>'
            f'<td style="{NAME}">{dtype_text(values)}</td>{cells}<td style="{SOFT}">{escape(meaning)}</td></tr>'
        )
    return _table(("tensor", "shape", "dtype", *STATISTICS, "meaning"), body, numbers=STATISTICS)


def number_table(
    name: str, columns: Sequence[str], rows: Mapping[str, Sequence[float | None]], meanings: Mapping[str, str]
) -> str:
    """Numbers in columns, a dash where there is none.

    Args:
        name: head of the first column.
        columns: heads of the numbers.
        rows: numbers by the name of their row.
        meanings: by the same names.
    """
    body = []
    for row, numbers in rows.items():
        cells = "".join(f'<td style="{NUMBER}">{"&ndash;" if n is None else number_text(n)}</td>' for n in numbers)
        body.append(
            f'<tr><th scope="row" style="{NAME}">{escape(row)}</th>{cells}'
            f'<td style="{SOFT}">{escape(meanings.get(row, ""))}</td></tr>'
        )
    return _table((name, *columns, "meaning"), body, numbers=columns)


def _table(heads: Sequence[str], body: Sequence[str], numbers: Sequence[str] = ()) -> str:
    cells = [
        f'<th scope="col" style="{HEAD}{"; text-align: right" if head in numbers else ""}">{escape(head)}</th>' for head in heads
    ]
    style = "border-collapse: collapse; margin: 0.2em 0; font-variant-numeric: tabular-nums"
    return f'<table style="{style}"><thead><tr>{"".join(cells)}</tr></thead><tbody>{"".join(body)}</tbody></table>'


def text_block(text: str, *, name: str) -> str:
    """A text as it is, with its line ends, and cut where it is very long.

    Args:
        text: of the user, or made for the user.
        name: what it is.
    """
    shown, cut = text[:LONGEST_TEXT], len(text) - LONGEST_TEXT
    more = f'<i style="opacity: 0.75"> ... {cut} more characters</i>' if cut > 0 else ""
    style = "white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid currentColor; padding-left: 0.8em; margin: 0"
    return (
        f'<div style="margin: 0.4em 0"><div style="opacity: 0.75">{escape(name)}</div><div style="{style}">'
        f"{escape(shown)}{more}</div></div>"
    )


def unfold(name: str, inside: str, *, is_open: bool = False) -> str:
    """Something that a click opens.

    Args:
        name: what it is.
        inside: HTML.
        is_open: from the start.
    """
    return f"<details{' open' if is_open else ''}><summary>{escape(name)}</summary>{inside}</details>"


def image(figure: "LabFigure") -> str:
    """A figure as a sharp picture with alt text.

    Args:
        figure: any of this package's.
    """
    return f'<div style="margin: 0.4em 0">{figure._repr_mimebundle_()["text/html"]}</div>'


# -------------------------------------------------------------------------------------------------------------- text


def value_text(value: object) -> str:
    """A value in a table: numbers short, tensors by their shape, text and records by their `repr`."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Tensor | np.ndarray):
        return f"{dtype_text(value)} {list(value.shape)}"
    return value if isinstance(value, Plain) else repr(value)


class Plain(str):
    """Text that a table shows without quotation marks."""

    __slots__ = ()


def number_text(number: float) -> str:
    """Four significant digits (whole numbers as they are), with a real minus sign."""
    whole = float(number).is_integer() and abs(number) < 1e6
    text = f"{number:.0f}" if whole else f"{number:#.4g}".rstrip(".")
    return text.replace("-", "\u2212")


def dtype_text(values: Tensor | np.ndarray) -> str:
    """Name of the dtype, and of the device where that is not the CPU."""
    device = values.device.type if isinstance(values, Tensor) else "cpu"
    return str(values.dtype).removeprefix("torch.") + ("" if device == "cpu" else f", {device}")


def statistics(tensors: Sequence[Values]) -> list[tuple[float, float, float, float]]:
    """Mean, standard deviation (of these values, not an estimate), minimum and maximum of each, in one transfer a device.

    Args:
        tensors: with at least one element each.
    """
    measured = [_measure(t if isinstance(t, Tensor) else torch.from_numpy(np.ascontiguousarray(t))) for t in tensors]
    numbers: list[Any] = [None] * len(measured)
    for device in {m.device for m in measured}:
        places = [i for i, m in enumerate(measured) if m.device == device]
        for place, values in zip(places, torch.stack([measured[i] for i in places]).tolist(), strict=True):
            numbers[place] = tuple(values)
    return numbers


def _measure(tensor: Tensor) -> Tensor:
    values = tensor.detach().float()
    std, mean = torch.std_mean(values, correction=0)
    return torch.stack([mean, std, *torch.aminmax(values)])
