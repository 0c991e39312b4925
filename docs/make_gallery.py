"""The picture at the top of README.md: clips that pico generates with its defaults, each above its prompt and its sound.

    python docs/make_gallery.py [--checkpoint DIR] [--out docs/gallery.webp]

The checkpoint's first example prompts and one seed, whatever comes out. An image is silent, so the waveform is drawn below each
clip and a playhead runs along it: the eye can check that a sound starts when things touch. What the judge sees and hears in
every clip is printed.
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cosmos3_lab import Cosmos3GenerationOutput, generate, load_cosmos3
from cosmos3_lab.files import replacing
from cosmos3_lab.pico.judge import read_clip

COLUMNS, ROWS, SEED = 3, 2, 42
SIDE, WAVE, GAP = 256, 40, 24  # pixels: a picture, the height of its waveform, and what lies between two of them
FONT = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", 13)
LINE = 18
# A background of its own, because a page may be light or dark. Sky blue is Okabe and Ito's.
PAPER, EDGE, INK, PLAYED, UNPLAYED, PLAYHEAD = "#1b1f27", "#4a5261", "#e8eaee", "#56b4e9", "#5c6675", "#ffffff"


def main() -> None:
    """Generate the clips, have them read, draw them side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="pico")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "gallery.webp")
    a = parser.parse_args()
    clips = {}
    with load_cosmos3(a.checkpoint, device="cpu") as models:
        for prompt in models.defaults.example_prompts[: COLUMNS * ROWS]:
            output = generate(models, prompt, with_sound=True, seed=SEED, progress=False).output
            print(f"{prompt}\n  {read_clip(output.frames.transpose(3, 0, 1, 2) / 255, output.waveform).sentence()}", flush=True)
            clips[prompt] = output
    frames, fps = draw_gallery(clips), output.fps
    ends = np.round(1000 * np.arange(len(frames) + 1) / fps).astype(int)
    with replacing(a.out) as path:
        settings = {"format": "WEBP", "loop": 0, "duration": np.diff(ends).tolist(), "quality": 90, "method": 6}
        frames[0].save(path, save_all=True, append_images=frames[1:], **settings)
    print(f"{a.out}: {len(frames)} frames of {frames[0].width} x {frames[0].height}, {a.out.stat().st_size / 1e6:.2f} MB")


def draw_gallery(clips: dict[str, Cosmos3GenerationOutput]) -> list[Image.Image]:
    """Every frame of all clips together.

    Args:
        clips: by prompt, all of one length and with sound.
    """
    captions = [wrapped(prompt) for prompt in clips]
    text = LINE * max(len(lines) for lines in captions)
    loudest = max(np.abs(clip.waveform).max() for clip in clips.values())
    width, height = COLUMNS * (SIDE + GAP) + GAP, ROWS * (SIDE + text + WAVE + 2 * GAP) + GAP // 2
    still = Image.new("RGB", (width, height), PAPER)
    corners = [(GAP + i % COLUMNS * (SIDE + GAP), GAP + i // COLUMNS * (SIDE + text + WAVE + 2 * GAP)) for i in range(len(clips))]
    pen = ImageDraw.Draw(still)
    for (x, y), lines in zip(corners, captions, strict=True):
        pen.rectangle((x - 1, y - 1, x + SIDE, y + SIDE), outline=EDGE)
        for i, line in enumerate(lines):
            pen.text((x, y + SIDE + GAP // 3 + LINE * i), line, INK, FONT)
    pages = [still.copy() for _ in next(iter(clips.values())).frames]
    for (x, y), clip in zip(corners, clips.values(), strict=True):
        played, unplayed = (draw_waveform(clip, loudest, colour) for colour in (PLAYED, UNPLAYED))
        for i, (page, frame) in enumerate(zip(pages, clip.frames, strict=True)):
            page.paste(Image.fromarray(frame).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y))
            left, top = round(SIDE * i / len(pages)), y + SIDE + GAP // 2 + text
            page.paste(unplayed, (x, top))
            page.paste(played.crop((0, 0, left, WAVE)), (x, top))
            ImageDraw.Draw(page).rectangle((x + left, top, x + left + 1, top + WAVE - 1), PLAYHEAD)
    return pages


def wrapped(prompt: str) -> list[str]:
    """The prompt in lines as wide as a picture.

    Args:
        prompt: to wrap between words.
    """
    lines = [""]
    for word in prompt.split():
        longer = f"{lines[-1]} {word}".strip()
        if FONT.getlength(longer) <= SIDE:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def draw_waveform(clip: Cosmos3GenerationOutput, loudest: float, colour: str) -> Image.Image:
    """As many bars as pixels, from the lowest to the highest sample; as long as the pictures play.

    Args:
        clip: with sound.
        loudest: sample that reaches the edge.
        colour: of the bars.
    """
    image = Image.new("RGB", (SIDE, WAVE), PAPER)
    samples = clip.waveform[:, : round(len(clip.frames) / clip.fps * clip.sample_rate)].mean(axis=0)
    middle = (WAVE - 1) / 2
    for x, some in enumerate(np.array_split(samples / loudest, SIDE)):
        top, bottom = (round(middle - middle * v) for v in (some.max(), some.min()))
        ImageDraw.Draw(image).line((x, top, x, bottom), colour)
    return image


if __name__ == "__main__":
    main()
