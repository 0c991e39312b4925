"""The exercises of notebook 09: from sound latents to frames, the first onset, a sound that comes too late.

Read next: `exploring.py`, the exercises of notebook 10.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float

from cosmos3_lab.exercises.framework import call, exercise, expect
from cosmos3_lab.latents import Latents

RATE = 16000  # Hz
HITS = ((0.48, 0.3), (1.21, 0.8))  # seconds and loudness
HISS = 1e-4
CLOSE = 0.02  # seconds


@exercise("09.1", hint="Seconds are index / sound_latent_fps; a frame lasts 1 / fps seconds. Rounding down is int(...).")
def frame_at(answer: Callable[[int, float, float], int]) -> None:
    """What is seen and heard at one moment now stands side by side."""
    first = call(answer, 0, 24.0, 25.0)
    expect(first == 0, f"sound latent 0 gave frame {first}, expected 0.")
    second = call(answer, 25, 24.0, 25.0)
    expect(second == 24, f"at 24 fps and 25 sound latents a second, latent 25 (1 s) gave frame {second}, expected 24.")
    found = call(answer, 14, 16.0, 25.0)
    expect(found == 8, f"latent 14 (0.56 s) at 16 fps gave {found}, expected 8: frame 9 only comes at 0.5625 s.")
    for index, fps, rate, expected in ((37, 30.0, 25.0, 44), (100, 16.0, 21.5, 74)):
        found = call(answer, index, fps, rate)
        expect(found == expected, f"latent {index} at {fps:g} fps and {rate:g} a second gave {found}, expected {expected}.")


@exercise("09.2", hint="Compare the amplitude with a share of the loudest one; np.argmax of a boolean array is the first True.")
def first_onset(answer: Callable[[Float[np.ndarray, "channels samples"], int], float]) -> None:
    """The ear works; pico's judge does the same with a 5 ms envelope, and goes on to the next onset."""
    waveform = two_hits()
    found = float(call(answer, waveform.copy(), RATE))
    expect(found < 60, f"the first sound begins at {found:g}, expected seconds (divide the sample's index by the sample rate).")
    later = abs(found - HITS[1][0]) < CLOSE + 0.05
    expect(not later, f"got {found:.3f} s, where the second and louder sound is; expected the first.")
    expect(abs(found - HITS[0][0]) < CLOSE, f"the first sound begins at {HITS[0][0]} s, and the answer was {found:.3f} s.")
    quiet = float(call(answer, 0.001 * waveform, RATE))
    expect(
        abs(quiet - HITS[0][0]) < CLOSE, f"a thousand times quieter, the answer was {quiet:.3f} s, expected still {HITS[0][0]} s."
    )
    right = waveform.copy()
    right[0] = HISS
    found = float(call(answer, right, RATE))
    expect(abs(found - HITS[0][0]) < CLOSE, f"with sound in the right channel only, the answer was {found:.3f} s.")
    half = float(call(answer, waveform[:, ::2].copy(), RATE // 2))
    expect(abs(half - HITS[0][0]) < CLOSE, f"at half of the sample rate, the answer was {half:.3f} s; is the rate used?")


def two_hits() -> Float[np.ndarray, "channels samples"]:
    """Two seconds of faint hiss with a quiet and a loud hit."""
    t = np.arange(2 * RATE) / RATE
    mono = HISS * np.random.RandomState(0).standard_normal(len(t))
    for begin, loudness in HITS:
        since = (t - begin).clip(min=0)
        mono += loudness * (t >= begin) * np.sin(2 * np.pi * 100 * since) * np.exp(-since / 0.1)
    return np.stack([mono, 0.8 * mono]).astype(np.float32)


@exercise("09.3", hint="torch.roll(latents.sound, n, dims=...): which axis of [1, n_sound, d_sound] is time?")
def delay(answer: Callable[[Latents, int], Latents]) -> None:
    """Everything is heard later and nothing else has changed: timing is in the latents, not in the file."""
    latents = Latents(torch.randn(1, 3, 2, 4, 4), torch.randn(1, 12, 5))
    before = latents.map(torch.clone)
    after = call(answer, latents, 3)
    expect(isinstance(after, Latents), f"got {type(after).__name__}, expected Latents(video, sound).")
    untouched = torch.equal(latents.sound, before.sound) and torch.equal(latents.video, before.video)
    expect(untouched, "the latents that came in were changed in place; expected new ones.")
    same = after.video.shape == before.video.shape and torch.equal(after.video, before.video)
    expect(same, "the video is another one, expected the same.")
    shape = None if after.sound is None else tuple(after.sound.shape)
    expect(shape == (1, 12, 5), f"the sound has shape {shape}, expected (1, 12, 5) as before.")
    earlier = torch.equal(after.sound[:, :-3], before.sound[:, 3:])
    expect(not earlier, "the sound comes 3 latents earlier, expected later.")
    expect(torch.equal(after.sound[:, 3:], before.sound[:, :-3]), "sound latent i is not at i + 3; is the middle axis moved?")
    around = torch.equal(after.sound[:, :3], before.sound[:, -3:])
    expect(around, "the last 3 sound latents are not at the beginning, where they should come in again.")
    five = call(answer, latents, 5).sound
    expect(torch.equal(five, before.sound.roll(5, dims=1)), "with n = 5 the sound does not come 5 latents later; is n used?")
