"""A figure whose layout is made once: afterwards only the parts that move are drawn anew, in milliseconds.

Laying out and drawing a whole figure takes a quarter of a second; a slider should answer sooner. This module imports
matplotlib; the widgets import it when the first one is made.

Read next: `widget_box.py`.
"""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from cosmos3_lab.figure_canvas import CSS_PIXELS_PER_INCH, LabFigure
from cosmos3_lab.figure_style import STYLE

GAP = 1  # latent pixels between two tiles of a mosaic


class MovingFigure:
    """A figure and those of its artists that change.

    Args:
        figure: drawn, with everything in its place.
        moving: artists that will change, in the order in which they are painted over the rest; whole axes are welcome, but cost
            as much as all the others. Of an axis whose numbers change, its `moving_labels` are enough.
        above: artists that stay as they are, over the moving ones, such as a legend.
    """

    def __init__(self, figure: LabFigure, moving: Sequence[Artist], *, above: Sequence[Artist] = ()) -> None:
        self.figure, self.moving = figure, list(moving)
        figure.set_dpi(CSS_PIXELS_PER_INCH)
        self.canvas = FigureCanvasAgg(figure)
        for artist in (*self.moving, *above):
            artist.set_animated(True)  # left out of the background
        self.draw_background()
        figure.set_layout_engine("none")
        self.above = [self._alone(artist) for artist in above]

    def draw_background(self) -> None:
        """Draw what does not move; again where it did, such as the limits of an axis."""
        colours = [(artist, artist.get_color()) for artist in self.moving if isinstance(artist, Text)]
        for text, _ in colours:
            text.set_color("none")  # the labels of an axis are drawn with it, animated or not
        self.canvas.draw()
        for text, colour in colours:
            text.set_color(colour)
        self.background = self.canvas.copy_from_bbox(self.figure.bbox)

    def png(self) -> bytes:
        """The picture as it is now, one image pixel for each CSS pixel."""
        self.canvas.restore_region(self.background)
        for artist in self.moving:
            self.figure.draw_artist(artist)
        pixels = np.array(np.asarray(self.canvas.buffer_rgba())[..., :3])
        for place, colours, alpha in self.above:
            pixels[place] = pixels[place] * (1 - alpha) + colours * alpha + 0.5
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "png", compress_level=3)
        return buffer.getvalue()

    def _alone(self, artist: Artist) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
        """An artist on nothing: its place in the picture, colours, and opacity in [0, 1]."""
        self.canvas.get_renderer().clear()
        self.figure.draw_artist(artist)
        sheet = np.asarray(self.canvas.buffer_rgba())
        rows, columns = (np.flatnonzero(sheet[..., 3].any(axis=axis)) for axis in (1, 0))
        place = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        cut = sheet[place].astype(np.float32)
        return place, cut[..., :3], cut[..., 3:] / 255


def moving_labels(axis: Axis, places: Sequence[float], *, widest: str) -> list[Text]:
    """The texts beside fixed ticks, for `MovingFigure`, which draws them alone; `set_text` changes one.

    Args:
        axis: gets these ticks.
        places: within the ends of the axis, for outside of them too they would be drawn.
        widest: text that needs as much room as any that will stand there.
    """
    axis.set_ticks(list(places), [widest] * len(places))
    return axis.get_majorticklabels()


class Mosaic:
    """Small pictures side by side in one image, which draws much faster than many axes.

    Args:
        ax: to draw on.
        pictures: `[n, h, w]` or, in colours, `[n, h, w, 3]`.
        columns: of the grid.
        names: one above each picture; empty for none.
        look: of `imshow`.
    """

    def __init__(self, ax: Axes, pictures: np.ndarray, *, columns: int, names: Sequence[str] = (), **look: Any) -> None:  # noqa: ANN401
        self.columns = min(columns, len(pictures))
        self.head = max(2, round(0.2 * pictures.shape[1])) if names else GAP  # room above a tile, in latent pixels
        self.tile = pictures.shape[1:3]
        self.ax = ax
        self.image: AxesImage = ax.imshow(self.arranged(pictures), interpolation="nearest", **look)
        ax.set(xticks=[], yticks=[])
        ax.set_facecolor(STYLE["face"])
        ax.spines[:].set_visible(False)
        for place, name in enumerate(names):
            left, top = self.corner(place)
            text = {"color": STYLE["ink"], "fontsize": STYLE["text_size"] - 1, "parse_math": False}
            ax.text(left + self.tile[1] / 2 - 0.5, top - 0.6, name, ha="center", va="bottom", **text)

    def corner(self, place: int) -> tuple[int, int]:
        """Column and row of a tile's first pixel."""
        row, column = divmod(place, self.columns)
        return column * (self.tile[1] + GAP), self.head + row * (self.tile[0] + self.head)

    def arranged(self, pictures: np.ndarray) -> np.ma.MaskedArray | np.ndarray:
        """All pictures in one array, nothing between them."""
        rows = -(-len(pictures) // self.columns)
        height, width = self.tile
        shape = rows * (height + self.head), self.columns * (width + GAP) - GAP
        channels = pictures.shape[3:]
        sheet = np.full((*shape, *channels), np.nan) if not channels else np.zeros((*shape, 4))
        for place, picture in enumerate(pictures):
            left, top = self.corner(place)
            sheet[top : top + height, left : left + width, ...] = with_alpha(picture) if channels else picture
        return sheet if channels else np.ma.masked_invalid(sheet)

    def show(self, pictures: np.ndarray) -> None:
        """Replace all pictures by others of the same shape."""
        self.image.set_data(self.arranged(pictures))

    def frame(self) -> Rectangle:
        """A border around the first picture; `select` moves it."""
        height, width = self.tile
        self.border = Rectangle((0, 0), width, height, fill=False, edgecolor=STYLE["ink"], linewidth=2.2)
        self.ax.add_patch(self.border)
        self.border.set_clip_on(False)
        self.select(0)
        return self.border

    def select(self, place: int) -> None:
        """Put the border around one picture."""
        left, top = self.corner(place)
        self.border.set_xy((left - 0.5, top - 0.5))


def with_alpha(picture: Float[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 4"]:
    """The same colours, opaque."""
    return np.concatenate([picture, np.ones_like(picture[..., :1])], axis=-1)
