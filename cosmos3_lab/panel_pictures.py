"""What the generation panel shows while a run goes on: pictures that take milliseconds, not figures that take tenths of a second.

Axes and captions are HTML around plain images, in the colours of the page; they take the theme from JupyterLab.

Read next: `panel.py`.
"""

from base64 import b64encode
from html import escape
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float

from cosmos3_lab.figure_style import MOST_FRAMES, STYLE, Numbers, pick_evenly
from cosmos3_lab.sound_figures import FLOOR_DB, mel_ticks, spectrogram_db, spectrogram_extent

INK = "color: var(--jp-ui-font-color1, inherit)"
SOFT_INK = "color: var(--jp-ui-font-color2, inherit)"
EMPTY = "background: var(--jp-layout-color2, rgba(128, 128, 128, 0.12))"
PIXELS = "image-rendering: pixelated"
SMALL = "font-size: 12px; line-height: 16px"
FILM_HEIGHT, SPECTROGRAM_HEIGHT, CAPTION_HEIGHT = 84, 284, 18  # CSS pixels
PLAYER_AREA = 320 * 320
TICK_SHARE = 0.97  # of the axis: a number further up would stand in the caption


def film_html(frames: Float[np.ndarray, "frames height width 3"], caption: str) -> str:
    """Frames from left to right, at most nine of them, evenly spaced, every pixel as a square.

    Args:
        frames: in [0, 1].
        caption: above them.
    """
    widest = round(FILM_HEIGHT * frames.shape[2] / frames.shape[1])
    look = f"flex: 1 1 0; min-width: 0; max-width: {widest}px; max-height: {FILM_HEIGHT}px; object-fit: contain"
    cells = "".join(
        f'<img alt="frame {index}" decoding="sync" src="{_data_url(frames[index])}" style="{look}; {PIXELS}">'
        for index in pick_evenly(len(frames), MOST_FRAMES)
    )
    row = f'<div style="display: flex; gap: 3px; height: {FILM_HEIGHT}px; align-items: flex-start">{cells}</div>'
    return _captioned(caption, row)


def spectrogram_html(waveform: Numbers, sample_rate: int, caption: str) -> str:
    """Log-mel spectrogram with its axes.

    Args:
        waveform: `[channels, samples]` in [-1, 1].
        sample_rate: in Hz.
        caption: above it.
    """
    levels, hop = spectrogram_db(waveform, sample_rate, scale="mel")
    left, right, low, high = spectrogram_extent(levels, hop, sample_rate, scale="mel")
    seconds = waveform.shape[-1] / sample_rate
    ticks = "".join(
        f'<span style="position: absolute; right: 4px; bottom: {100 * (mel - low) / (high - low):.1f}%; '
        f'transform: translateY(50%)">{text}</span>'
        for text, mel in mel_ticks(sample_rate).items()
        if (mel - low) < TICK_SHARE * (high - low)
    )
    # the first and the last moment reach beyond the ends of the time axis
    place = (
        f"position: absolute; left: {100 * left / seconds:.3f}%; width: {100 * (right - left) / seconds:.3f}%; max-width: none"
    )
    image = (
        f'<img alt="{escape(caption)}" decoding="sync" src="{_data_url(levels[::-1], sound=True)}" '
        f'style="{place}; height: 100%; {PIXELS}">'
    )
    plot = (
        f'<div style="display: flex; height: {SPECTROGRAM_HEIGHT}px">'
        f'<div style="position: relative; width: 40px; {SMALL}">{ticks}</div>'
        f'<div style="position: relative; overflow: hidden; flex: 1 1 0; min-width: 0">{image}</div></div>'
        f'<div style="display: flex; justify-content: space-between; margin-left: 40px; {SMALL}">'
        f"<span>0 s</span><span>{seconds:.2f} s</span></div>"
    )
    return _captioned(caption, plot)


def player_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of a player in CSS pixels: of one area for every shape of clip.

    Args:
        height, width: of the clip.
    """
    aspect = min(max(width / height, 0.5), 2.0) if height > 0 and width > 0 else 1.0
    return round((PLAYER_AREA / aspect) ** 0.5), round((PLAYER_AREA * aspect) ** 0.5)


def player_html(path: Path, prompt: str, height: int, width: int) -> str:
    """The clip with controls, inside the page.

    Args:
        path: of the mp4.
        prompt: for those who do not see the clip.
        height, width: of the clip.
    """
    tall, wide = player_size(height, width)
    return video_html(
        path, f"Clip of: {prompt}", size=f'width="{wide}" height="{tall}" style="display: block; background: black"'
    )


def video_html(path: Path, label: str, *, size: str = 'style="display: block; max-width: 100%"') -> str:
    """An mp4 with controls, inside the page.

    Args:
        path: of the mp4.
        label: for those who do not see it.
        size: attributes that say how large it is shown.
    """
    data = b64encode(path.read_bytes()).decode("ascii")
    label = escape(label)
    return f'<video controls loop playsinline {size} aria-label="{label}" src="data:video/mp4;base64,{data}"></video>'


def empty_html(text: str, height: int) -> str:
    """The place of a picture that is not there yet, so that nothing jumps when it comes.

    Args:
        text: what will be there.
        height: in CSS pixels.
    """
    middle = "display: flex; align-items: center; justify-content: center; text-align: center; box-sizing: border-box"
    return f'<div style="{EMPTY}; {SOFT_INK}; {SMALL}; {middle}; height: {height}px; padding: 0 16px">{escape(text)}</div>'


def line_html(text: str, *, alarm: bool = False) -> str:
    """One line of text for the user.

    Args:
        text: any; it is escaped.
        alarm: True for what went wrong.
    """
    look = "color: var(--jp-error-color1, #c62828); font-weight: 600" if alarm else INK
    return (
        f'<div role="{"alert" if alarm else "status"}" style="{look}; line-height: 20px">{escape(" ".join(text.split()))}</div>'
    )


def _captioned(caption: str, body: str) -> str:
    return f'<div style="{INK}"><div style="{SMALL}; margin-bottom: 2px">{escape(caption)}</div>{body}</div>'


def _data_url(picture: np.ndarray, *, sound: bool = False) -> str:
    """A PNG of colours `[rows, columns, 3]` in [0, 1], or of levels `[rows, columns]` in dB."""
    from matplotlib.image import imsave

    buffer = BytesIO()
    look = {"cmap": STYLE["sound"], "vmin": FLOOR_DB, "vmax": 0} if sound else {}
    imsave(buffer, picture, format="png", **look)
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode('ascii')}"
