"""Figures that show themselves in a notebook, with alt text, without pyplot and so without anything to close.

This module imports matplotlib; `figure_style.py` imports it when the first figure is made.

Read next: `figure_style.py`.
"""

from base64 import b64encode
from html import escape
from io import BytesIO
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

CSS_PIXELS_PER_INCH = 100
SHARPNESS = 2.0  # image pixels for each CSS pixel, for screens that have them


class LabFigure(Figure):
    """A figure whose last line in a cell shows a sharp picture; `alt_text` says in words what is on it."""

    alt_text = ""

    def png(self, *, sharpness: float = SHARPNESS) -> bytes:
        """The picture as the bytes of a PNG.

        Args:
            sharpness: image pixels for each CSS pixel; 1 is the quickest to draw.
        """
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=CSS_PIXELS_PER_INCH * sharpness)
        return buffer.getvalue()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:  # noqa: ANN401  (IPython's call)
        """HTML carries the alt text and the width; the plain image is for viewers that drop HTML."""
        data = b64encode(self.png()).decode("ascii")
        width = round(self.get_figwidth() * CSS_PIXELS_PER_INCH)
        image = f'<img alt="{escape(self.alt_text)}" width="{width}" style="max-width: 100%" src="data:image/png;base64,{data}">'
        return {"text/plain": self.alt_text or repr(self), "text/html": image, "image/png": data}


class LabAxes(Axes):
    """Axes that show their figure, so that a cell may end with the function that drew them."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:  # noqa: ANN401  (IPython's call)
        return self.get_figure(root=True)._repr_mimebundle_()
