"""A clip at a glance, as one PNG: some of its frames with their times, and below them the waveform.

Drawn with Pillow, which takes milliseconds; the figures for notebooks are in `figures.py`.

Read next: `run.py`, which writes one for every run.
"""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, ImageDraw, ImageFont

from cosmos3_lab.files import replacing
from cosmos3_lab.media import Cosmos3GenerationOutput

MOST_FRAMES = 12
SHEET_WIDTH = 1280  # pixels, about
LEAST_WIDTH, MOST_WIDTH, ENLARGED = 120, 480, 2  # of a frame, and how many times as wide as it is
GAP, CAPTION, WAVE = 8, 18, 72
PAPER, INK, SOUND = (255, 255, 255), (70, 70, 70), (0, 114, 178)


def write_contact_sheet(output: Cosmos3GenerationOutput, path: str | Path) -> Path:
    """Write the PNG, whole or not at all.

    Args:
        output: a finished clip.
        path: of the file.

    Raises:
        OSError: it cannot be written.
    """
    with replacing(path) as temporary:
        draw_contact_sheet(output).save(temporary, format="PNG", compress_level=1)  # as quick as the rest
    return Path(path)


def draw_contact_sheet(output: Cosmos3GenerationOutput) -> Image.Image:
    """Up to twelve frames, the first and the last among them, row by row.

    Args:
        output: a finished clip.
    """
    count, tall, wide, _ = output.frames.shape
    picked = np.unique(np.linspace(0, count - 1, min(count, MOST_FRAMES)).round().astype(int))
    columns = _columns(len(picked), wide / tall)
    widest = min(MOST_WIDTH, ENLARGED * wide, (SHEET_WIDTH - GAP) // columns - GAP)
    width = max(LEAST_WIDTH, widest)
    height = max(1, round(width * tall / wide))
    rows = math.ceil(len(picked) / columns)
    frames_end = GAP + rows * (height + CAPTION + GAP)
    size = (GAP + columns * (width + GAP), frames_end + (0 if output.waveform is None else WAVE + GAP))
    sheet = Image.new("RGB", size, PAPER)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for cell, index in enumerate(picked):
        row, column = divmod(cell, columns)
        x, y = GAP + column * (width + GAP), GAP + row * (height + CAPTION + GAP)
        sheet.paste(_resized(output.frames[index], width, height), (x, y))
        pen.text((x, y + height + 2), f"{index / output.fps:.2f} s", fill=INK, font=font)
    if output.waveform is not None:
        _draw_waveform(pen, output.waveform, GAP, frames_end, size[0] - 2 * GAP)
    return sheet


def _columns(count: int, aspect: float) -> int:
    """So many that the sheet is about as wide as a screen, and the rows are full where that can be."""
    ideal = math.sqrt(count * 1.6 / aspect)
    return min(range(1, count + 1), key=lambda columns: abs(math.log(columns / ideal)) + 0.5 * (-count % columns) / columns)


def _resized(frame: UInt8[np.ndarray, "height width 3"], width: int, height: int) -> Image.Image:
    """Smaller by averaging; larger in whole squares, so that pixels stay pixels."""
    image = Image.fromarray(frame)
    return image.resize((width, height), Image.Resampling.NEAREST if width >= image.width else Image.Resampling.BOX)


def _draw_waveform(
    pen: ImageDraw.ImageDraw, waveform: Float32[np.ndarray, "channels samples"], left: int, top: int, width: int
) -> None:
    """The lowest and the highest sample of each column of pixels, over all channels."""
    edges = np.linspace(0, waveform.shape[1], min(width, waveform.shape[1]) + 1).round().astype(int)
    middle, half = top + WAVE // 2, WAVE / 2
    pen.line([(left, middle), (left + width - 1, middle)], fill=(220, 220, 220))
    for column, (begin, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        piece = waveform[:, begin:end]
        low, high = (round(middle - half * float(v)) for v in (piece.max(), piece.min()))
        pen.line([(left + column, low), (left + column, high)], fill=SOUND)
