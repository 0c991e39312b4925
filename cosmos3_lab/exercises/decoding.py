"""The exercises of notebook 07: from a frame to its latent frame, frames of 8 bits, the error of a file.

Read next: `video.py`, the exercises of notebook 08.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cosmos3_lab.exercises.framework import call, exercise, expect
from cosmos3_lab.media import to_uint8_frames

CLOSE = 0.01  # dB


@exercise(
    "07.1",
    hint="Latent frame 0 is frame 0 alone. From then on each latent frame stands for `temporal` frames: with 4, "
    "frames 1 to 4 are latent frame 1, frames 5 to 8 latent frame 2.",
)
def frame_to_latent(latent_frame_of: Callable[[int, int], int]) -> None:
    """Hence clips have 4k + 1 frames, and a change in latent frame k starts at frame 4k - 3."""
    first = call(latent_frame_of, 0, 4)
    expect(first == 0, f"frame 0 is in latent frame {first}, expected 0, which it has for itself.")
    for temporal in (4, 2):
        for frame in range(1, 20):
            found, want = call(latent_frame_of, frame, temporal), -(-frame // temporal)
            message = (
                f"frame {frame} is in latent frame {found}, expected {want}, with {temporal} frames for each after the first."
            )
            expect(found == want, message)
            expect(isinstance(found, int | np.integer), f"the latent frame is {found!r}, expected a whole number.")


@exercise(
    "07.2",
    hint="clamp(0, 1), times 255, round, to(torch.uint8), and the axes from [1, 3, frames, height, width] to "
    "[frames, height, width, 3] with pixels[0].permute(1, 2, 3, 0).",
)
def eight_bits(to_frames: Callable[[Tensor], Tensor]) -> None:
    """Clipped, rounded to the nearest of 256 levels, and with the colour last, as pictures are stored."""
    levels = torch.tensor([-0.2, 0.0, 0.0059, 0.5, 0.998, 1.0, 1.3, 0.25])
    pixels = levels.repeat(3).reshape(1, 3, 2, 2, 2) * torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1, 1)
    found, want = call(to_frames, pixels), to_uint8_frames(pixels)
    expect(found.dtype == torch.uint8, f"the dtype is {found.dtype}, expected torch.uint8.")
    expect(found.shape == want.shape, f"the shape is {list(found.shape)}, expected {list(want.shape)}: frames, height, width, 3.")
    for level in (-0.2, 1.3):
        got = int(to_frames(torch.full((1, 3, 1, 2, 2), level))[0, 0, 0, 0])
        limit = 0 if level < 0 else 255
        expect(got == limit, f"{level} became {got}, expected {limit}: values beyond [0, 1] wrap around unless they are clipped.")
    half = int(to_frames(torch.full((1, 3, 1, 2, 2), 0.998))[0, 0, 0, 0])
    expect(half == 254, f"0.998 became {half}, expected 254: 254.49 is nearest to it, 0.0059 is nearest to 2.")
    rounded = int(to_frames(torch.full((1, 3, 1, 2, 2), 0.0059))[0, 0, 0, 0])
    expect(rounded == 2, f"0.0059 became {rounded}, expected 2: round before the cast, which only cuts off.")
    expect(torch.equal(found, want), "the colours or the pixels are in another order than in the clip.")


@exercise(
    "07.3",
    hint="Bring both to floats in [0, 1] first (a.astype(float) / 255), because 8-bit numbers wrap around when subtracted. "
    "Then the mean of the squared difference, and -10 * log10 of it.",
)
def peak_signal_to_noise(psnr: Callable[[np.ndarray, np.ndarray], float]) -> None:
    """30 dB can be seen, 40 dB hardly, and every 10 dB are a factor of 10 in the squared error."""
    a, b = np.random.RandomState(0).randint(0, 200, (2, 2, 6, 6, 3)).astype(np.uint8)
    for step in (10, 50):
        brighter, want = a + np.uint8(step), _decibels((step / 255) ** 2)
        found, swapped = float(call(psnr, brighter, a)), float(psnr(a, brighter))
        says = f"frames that are {step} of 255 brighter give {found:.2f} dB, expected {want:.2f} dB."
        expect(abs(found - want) < CLOSE, says)
        says = f"the other way round it is {swapped:.2f} dB, expected {want:.2f} dB again (did 8-bit numbers wrap around?)."
        expect(abs(swapped - want) < CLOSE, says)
    found, want = float(psnr(a, b)), _decibels(np.mean((a / 255 - b / 255) ** 2))
    says = f"two random clips give {found:.2f} dB, expected {want:.2f} dB: square first, then take the mean."
    expect(abs(found - want) < CLOSE, says)


def _decibels(squared_error: float) -> float:
    return float(-10 * np.log10(squared_error))
