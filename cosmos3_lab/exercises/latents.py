"""The exercises of notebook 02: the latent grid, mixing noise in, telling noise from a video.

Read next: `schedules.py`, the exercises of notebook 03.
"""

import torch
from torch import Tensor

from cosmos3_lab.exercises.framework import call, exercise, expect


@exercise("02.1", hint="The first frame stands alone; the others go in groups of `temporal`. Rows and columns are divided.")
def latent_grid(answer: object) -> None:
    """The grid (t, h, w): one latent frame for the first frame, one more for each further group."""
    cases = {(1, 96, 96, 4, 8): (1, 12, 12), (33, 96, 96, 4, 8): (9, 12, 12), (189, 720, 1280, 4, 16): (48, 45, 80)}
    for (frames, height, width, temporal, spatial), expected in cases.items():
        found = tuple(call(answer, frames, height, width, temporal, spatial))
        clip = f"{frames} frames of {height}x{width}, packed {temporal} and {spatial}"
        expect(len(found) == 3, f"got {found}, expected three numbers (t, h, w).")
        expect(found[1:] == expected[1:], f"{clip}: got {found[1:]} rows and columns, expected {expected[1:]}.")
        expect(found[0] == expected[0], f"{clip}: got {found[0]} latent frames, expected {expected[0]} (the first stands alone).")
        expect(all(isinstance(n, int) for n in found), f"got {found}, expected integers (// divides whole numbers).")


@exercise("02.2", hint="A straight line from x0 at sigma 0 to noise at sigma 1: how much of each is there at sigma?")
def mix(answer: object) -> None:
    """A straight line from the clean latent to the noise, the path that flow matching learns."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(1, 2, 3, 4, 4, generator=generator) for _ in range(2))
    kept, copy = (x0.clone(), noise.clone()), (x0.clone(), noise.clone())
    found = call(answer, *copy, 0.3)
    expect(isinstance(found, Tensor) and found.shape == x0.shape, f"expected a tensor of shape {list(x0.shape)}.")
    unchanged = torch.equal(kept[0], copy[0]) and torch.equal(kept[1], copy[1])
    expect(unchanged, "x0 or noise was changed in place, expected a new tensor.")
    expect(torch.allclose(call(answer, x0, noise, 0.0), x0, atol=1e-6), "at sigma 0 something else than x0 came out.")
    expect(torch.allclose(call(answer, x0, noise, 1.0), noise, atol=1e-6), "at sigma 1 something else than the noise came out.")
    halfway, expected = call(answer, x0, noise, 0.5), (x0 + noise) / 2
    message = "at sigma 0.5 expected the mean of x0 and noise (the path is straight; square roots belong to other models)."
    expect(torch.allclose(halfway, expected), message)
    expect(torch.allclose(found, 0.7 * x0 + 0.3 * noise), "at sigma 0.3 expected 0.7 of x0 and 0.3 of the noise.")


@exercise("02.3", hint="Pair each value with its right neighbour, x[..., :-1] and x[..., 1:]; torch.corrcoef takes two rows.")
def neighbours(answer: object) -> None:
    """Near 0 for noise, well above for a video: what the network has to bring back is structure, not values of some size."""
    noise = torch.randn(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    steps = torch.randn(1, 4, 3, 16, 1, generator=torch.Generator().manual_seed(1))
    apart = float(call(answer, noise))
    expect(abs(apart) < 0.1, f"for white noise got {apart:.2f}, expected about 0.")
    alike = float(call(answer, steps.expand(-1, -1, -1, -1, 16)))
    expect(abs(alike - 1) < 1e-3, f"for rows of one value each got {alike:.2f}, expected 1: neighbours in a row (the last axis).")
    signs = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 4, 3, 16, 16)
    opposite = float(call(answer, signs))
    expect(abs(opposite + 1) < 0.02, f"for values that alternate along the row got {opposite:.2f}, expected -1.")
    scaled = float(call(answer, 5 * noise + 3))
    expect(abs(scaled - apart) < 1e-3, f"scale and offset changed it from {apart:.3f} to {scaled:.3f}, expected no change.")
