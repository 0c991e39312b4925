"""The boxes that widgets are made of: a picture with alt text, and a column of controls that cleans up after itself.

This module imports ipywidgets, an optional extra; `widget_parts.py` imports it when the first widget is made.

Read next: `widget_parts.py`.
"""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from ipywidgets import HTML, Box, VBox, Widget
from ipywidgets.widgets.widget_link import Link

CARD = "display: block; max-width: 100%; height: auto; border-radius: 6px"


class Picture(HTML):
    """An image with words for those who do not see it. Its place keeps its size while the picture changes."""

    def show(self, png: bytes, alt: str) -> None:
        """Replace the picture.

        Args:
            png: one image pixel for each CSS pixel.
            alt: what is on it, in words.
        """
        width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))  # the header's own words
        data = b64encode(png).decode("ascii")
        self.value = (
            f'<img alt="{escape(alt)}" width="{width}" height="{height}" decoding="sync" style="{CARD}" '
            f'src="data:image/png;base64,{data}">'
        )


class LabBox(VBox):
    """A widget of this package. Closing it closes everything in it, so that nothing it drew stays in memory.

    Args:
        children: from top to bottom.
        links: between them, closed with them.
    """

    def __init__(self, children: Sequence[Widget], *, links: Sequence[Link] = ()) -> None:
        super().__init__(children)
        self.links = tuple(links)
        self.layout.width = "100%"
        self.layout.max_width = "1040px"
        self.layout.overflow = "hidden"

    def close(self) -> None:
        """Close this widget and everything in it."""
        for link in self.links:
            link.close()
        inside = list(descendants(self))
        for widget in [*inside, self]:  # each has a layout and mostly a style, which are widgets of their own
            parts = [part for part in (getattr(widget, "style", None), widget.layout) if part is not None]
            for part in parts:
                part.close()
            widget.unobserve_all()
        for widget in inside:
            widget.close()
        self.links = ()
        super().close()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401  (IPython's call)
        """Where no widget can be shown, such as on a web page, the pictures are."""
        bundle = super()._repr_mimebundle_(**kwargs)
        pictures = [widget.value for widget in descendants(self) if isinstance(widget, Picture)]
        return bundle | {"text/html": "\n".join(pictures)}


def descendants(box: Box) -> Iterator[Widget]:
    """Everything inside a box, at any depth."""
    for child in box.children:
        yield child
        if isinstance(child, Box):
            yield from descendants(child)
