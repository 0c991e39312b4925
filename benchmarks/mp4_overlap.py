"""What an mp4 still takes after the last frame: frames arrive at the pace of a decoder and are encoded meanwhile.

    python benchmarks/mp4_overlap.py [--size 720x1280x189] [--decode-seconds 5.45]

A smooth clip (discs that glide over a gradient) and one of noise, each with a stereo tone. Chunks of four frames come in
`--decode-seconds` altogether, which is what the video decoder takes on the GPU (`vae_decode` in nano_h200.json).
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from measuring import Results

from cosmos3_lab.media import open_mp4

FPS, RATE = 24.0, 48_000


def smooth(frames, height, width):
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    clip = np.empty((frames, height, width, 3), np.uint8)
    for t in range(frames):
        phase = t / FPS
        for channel in range(3):
            x, y = width * (0.5 + 0.3 * np.cos(phase + channel)), height * (0.5 + 0.3 * np.sin(1.3 * phase + 2 * channel))
            disc = np.clip((0.18 * height - np.hypot(columns - x, rows - y)) / 8 + 0.5, 0, 1)
            clip[t, ..., channel] = 60 + 60 * rows / height + 60 * disc
    return clip


def seconds_after_last(clip, waveform, pace, folder):
    with open_mp4(folder / "clip.mp4", clip.shape[:3], fps=FPS, waveform=waveform, sample_rate=RATE) as write:
        begin = time.perf_counter()
        for number, first in enumerate(range(0, len(clip), 4)):
            time.sleep(max(0.0, begin + number * pace - time.perf_counter()))
            write(clip[first : first + 4])
        last = time.perf_counter()
    return round(time.perf_counter() - last, 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="720x1280x189")
    parser.add_argument("--decode-seconds", type=float, default=5.45)
    parser.add_argument("--out", default="benchmarks/results/mp4_overlap.json")
    a = parser.parse_args()
    height, width, frames = (int(n) for n in a.size.split("x"))
    results, pace = Results(a.out), a.decode_seconds / (frames / 4)
    t = np.arange(round(frames / FPS * RATE)) / RATE
    waveform = np.stack([0.3 * np.sin(2 * np.pi * f * t) for f in (220, 330)]).astype(np.float32)
    noise = np.random.RandomState(0).randint(0, 256, (frames, height, width, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        for name, clip in (("smooth", smooth(frames, height, width)), ("noise", noise)):
            times = [seconds_after_last(clip, waveform, pace, Path(folder)) for _ in range(3)]
            results.put(f"seconds_after_last_frame/{a.size}/{name}", times)


if __name__ == "__main__":
    main()
