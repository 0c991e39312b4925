"""The exercises of notebook 10: an edit as noisy as the rest, an arc through noise, a new picture for a sound.

Read next: `training.py`, the exercises of notebook 12.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cosmos3_lab.checkpoint import load_cosmos3
from cosmos3_lab.denoise import prepare_denoise
from cosmos3_lab.exercises.framework import call, exercise, expect
from cosmos3_lab.latents import Latents, init_latents
from cosmos3_lab.prepare import prepare_request

SHAPE = (4, 12, 16)  # of the video latents of 10.1
QUICK = {"with_sound": True, "num_frames": 5, "num_inference_steps": 3}


@exercise(
    "10.1",
    hint="`select_video(latents, rows=...)` gives the region, `renoise(clean, sigma, seed=...)` what belongs there, and `paste` "
    "puts it in.",
)
def new_top(answer: Callable[[Latents, Latents, float], Latents]) -> None:
    """What stands in the region is as noisy as the rest: clean latents and noise in the shares that sigma says."""
    latents, clean = (init_latents(SHAPE, channels=16, sound_frames=9, sound_dim=4, seed=seed) for seed in (1, 2))
    clean = clean.map(lambda x: 2 * x)
    before = latents.map(torch.clone)
    for sigma in (0.9, 0.4):
        made = call(answer, latents, clean, sigma)
        expect(isinstance(made, Latents), f"got {type(made).__name__}, expected Latents.")
        expect(torch.equal(latents.video, before.video), "the latents that came in were changed in place; expected new ones.")
        shape = tuple(made.video.shape)
        expect(shape == (1, 16, *SHAPE), f"the video has shape {shape}, expected {(1, 16, *SHAPE)} as before.")
        expect(made.sound is not None and torch.equal(made.sound, before.sound), "the sound is another one, expected the same.")
        half = SHAPE[1] // 2
        expect(torch.equal(made.video[..., half:, :], before.video[..., half:, :]), "the lower half changed, expected the same.")
        inside = made.video[..., :half, :]
        expect(
            not torch.equal(inside, clean.video[..., :half, :]), "the upper half is clean, in a sample that is not; add noise."
        )
        noise = (inside - (1 - sigma) * clean.video[..., :half, :]) / sigma
        found = f"mean {float(noise.mean()):.2f} and standard deviation {float(noise.std()):.2f}"
        level = abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05
        expect(level, f"at sigma = {sigma}, what is left without (1 - sigma) * clean, over sigma, has {found}, expected 0 and 1.")
        top = torch.corrcoef(torch.stack([noise.flatten(), clean.video[..., :half, :].flatten()]))[0, 1]
        expect(abs(float(top)) < 0.05, "the noise resembles the clean latents; are the shares 1 - sigma and sigma?")


@exercise(
    "10.2",
    hint="With the angle between a and b, the weights are sin((1 - t) * angle) / sin(angle) and sin(t * angle) / sin(angle).",
)
def arc(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """The way keeps to the sphere, in even steps, and standing still is no division by zero."""
    a, b = (torch.randn(2000, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
    b = b * a.norm() / b.norm()
    for t, end, name in ((0.0, a, "a"), (1.0, b, "b")):
        away = float((call(answer, a, b, t) - end).abs().max())
        expect(away < 1e-3, f"t = {t:g} should give {name}, found something up to {away:.2g} away from it.")
    middle = call(answer, a, b, 0.5)
    length = float(middle.norm() / a.norm())
    expect(length > 0.8, f"half-way the noise is only {length:.2f} times as long as at the ends: that is a straight line.")
    expect(abs(length - 1) < 1e-3, f"half-way the noise is {length:.3f} times as long as at the ends, expected 1.")
    angles = [_angle(a, call(answer, a, b, t)) / _angle(a, b) for t in (0.25, 0.75)]
    even = max(abs(angles[0] - 0.25), abs(angles[1] - 0.75)) < 1e-3
    expect(even, f"t = 0.25 and 0.75 lie at {angles[0]:.3f} and {angles[1]:.3f} of the angle, expected 0.25 and 0.75.")
    still = call(answer, a, a.clone(), 0.5)
    expect(bool(torch.isfinite(still).all()), "from a to a itself, the result is not finite: the angle is 0, and so is its sine.")
    expect(torch.allclose(still, a, atol=1e-3), "from a to a itself, the result is not a.")


def _angle(a: Tensor, b: Tensor) -> float:
    return float(torch.acos((a @ b / a.norm() / b.norm()).clamp(-1, 1)))


@exercise(
    "10.3",
    hint="`restart_at(inputs, clean, 0, seed=seed)` is a state to begin with, `select_sound(clean)` what to keep, and "
    "`denoise_keeping` yields one state after another; the last one's `latents` are the answer.",
)
def new_picture(answer: Callable[[Any, Any, Latents, int], Latents]) -> None:
    """The sound is the same to the last bit, and a new seed gives it a new picture."""
    with load_cosmos3("pico", device="cpu") as models:
        inputs, state = prepare_denoise(models, prepare_request(models, "a red circle bounces; low thuds", **QUICK))
        clean = state.latents.map(lambda x: x.roll(1, dims=1))
        before = clean.map(torch.clone)
        made = [call(answer, models, inputs, clean, seed) for seed in (1, 2)]
    expect(all(isinstance(m, Latents) for m in made), f"got {type(made[0]).__name__}, expected the Latents of the last state.")
    expect(torch.equal(clean.sound, before.sound), "the latents that came in were changed in place.")
    away = float((made[0].sound - clean.sound).norm() / clean.sound.norm())
    expect(torch.equal(made[0].sound, clean.sound), f"the sound ends {away:.0%} of its length away from what it was, expected 0.")
    same = torch.equal(made[0].video, clean.video)
    expect(not same, "the video was kept, and the sound should be; which region is which?")
    expect(not torch.equal(made[0].video, made[1].video), "two seeds gave the same picture; is seed used?")
    level = float(made[0].video.std())
    expect(level < 0.97, f"the video is still noise (standard deviation {level:.2f}); go on to the last state.")
