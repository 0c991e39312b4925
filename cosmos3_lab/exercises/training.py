"""The exercises of notebook 12: a training pair, the loss of a network that looks at nothing, a scene by hand.

Read next: `solver_lab.py`, the exercises of notebook 13.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cosmos3_lab.exercises.framework import call, exercise, expect
from cosmos3_lab.pico.judge import judge, read_clip, synchrony
from cosmos3_lab.pico.scenes import Scene
from cosmos3_lab.pico.world import draw, play

WANTED = {"colour": "green", "shape": "square", "size": "large", "motion": "bounce"}
BACKGROUND, SOUND = "white", "knock"
IN_SYNC = 0.9


@exercise("12.1", hint="sigma.view(-1, *[1] * (x0.ndim - 1)) puts one noise level beside each sample of the batch.")
def make_pair(answer: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """What goes in, and what should come out: a network, an optimizer and many clips are all that is missing."""
    x0, noise = torch.randn(2, 4, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.0, 1.0, 0.5, 0.25])
    pair = call(answer, x0, noise, sigma)
    expect(isinstance(pair, tuple) and len(pair) == 2, f"got {type(pair).__name__}, expected the pair (sample, velocity).")
    sample, velocity = pair
    for name, value in (("sample", sample), ("velocity", velocity)):
        shape = tuple(value.shape)
        expect(shape == tuple(x0.shape), f"the {name} has shape {shape}, expected that of x0, {tuple(x0.shape)}.")
    expect(torch.allclose(sample[0], x0[0]), "at sigma = 0 the sample should be x0, without any noise.")
    expect(torch.allclose(sample[1], noise[1]), "at sigma = 1 the sample should be the noise.")
    expect(torch.allclose(sample[2], (x0[2] + noise[2]) / 2, atol=1e-6), "at sigma = 1/2 the sample should be half of each.")
    expect(torch.allclose(sample[3], 0.75 * x0[3] + 0.25 * noise[3], atol=1e-6), "at sigma = 1/4 a quarter should be noise.")
    backwards = torch.allclose(velocity, x0 - noise, atol=1e-6)
    expect(not backwards, "the velocity points to the clip; expected d sample / d sigma, which points to the noise.")
    back = sample - sigma.view(-1, 1, 1, 1, 1) * velocity
    expect(torch.allclose(back, x0, atol=1e-5), "sample - sigma * velocity is not x0 again; is the velocity noise - x0?")
    expect(torch.allclose(velocity, noise - x0, atol=1e-5), "the velocity at sigma = 0 is not noise - x0.")
    flat = call(answer, x0[:, 0, 0, 0], noise[:, 0, 0, 0], sigma)[0]
    expect(flat.shape == x0[:, 0, 0, 0].shape, f"for sound of shape [4, 4] the sample has shape {tuple(flat.shape)}.")


@exercise(
    "12.2", hint="The best constant is the mean of noise - x0. What is left of the noise, and what of x0, around their means?"
)
def blind_loss(answer: Callable[[Tensor], Tensor | float]) -> None:
    """Whatever a network is better than this, it has learned by looking."""
    generator = torch.Generator().manual_seed(0)
    place = torch.randn(1, 3, 1, 4, 4, generator=generator)
    for says, x0, expected in (
        ("x0 is 0 everywhere, so that only the noise is left", torch.zeros(256, 3, 1, 4, 4), 1.0),
        ("x0 is 2 everywhere, which a constant velocity can know", torch.full((256, 3, 1, 4, 4), 2.0), 1.0),
        (
            "x0 is one picture every time, which a constant velocity can know place by place",
            3 * place.expand(256, -1, -1, -1, -1),
            1,
        ),
        ("x0 is normal with variance 4", 2 * torch.randn(2048, 3, 1, 4, 4, generator=generator), 5.0),
    ):
        found = float(call(answer, x0))
        expect(abs(found - expected) < 0.05 * expected, f"{says}: got {found:.2f}, expected {expected:.2f}.")


@exercise(
    "12.3",
    hint='A bounce is anchored where it touches the floor: Thing("square", "green", "large", radius=0.21, motion="bounce", '
    "x=..., y=..., reach=..., period=..., phase=..., rgb=...).",
)
def scene(answer: object) -> None:
    """Seen and heard as asked; pico was trained on millions of such records."""
    expect(isinstance(answer, Scene), f"got {type(answer).__name__}, expected a Scene.")
    expect(len(answer.things) == 1, f"got {len(answer.things)} things, expected 1.")
    reading = read_clip(draw([answer])[0].numpy(), play([answer])[0].numpy())
    expect(reading.background == BACKGROUND, f"the judge sees the background as {reading.background}, expected {BACKGROUND}.")
    expect(len(reading.things) == 1, f"the judge sees {len(reading.things)} things, expected 1; is it inside, and its rgb set?")
    for name, wanted in WANTED.items():
        seen, said = getattr(reading.things[0], name), getattr(answer.things[0], name)
        expect(seen == wanted, f"the judge sees the {name} as {seen}, expected {wanted} (the record says {said}).")
        expect(said == wanted, f"the judge sees the {name} as {wanted}, but the record says {said}.")
    expect(reading.sound == SOUND, f"the judge hears {reading.sound}, expected {SOUND}.")
    in_sync = synchrony(reading.things[0].events, reading.onsets, reading.seconds)
    expect(in_sync >= IN_SYNC, f"impacts and knocks agree with F1 {in_sync:.2f}, expected at least {IN_SYNC}.")
    expect(judge(answer, reading).followed, judge(answer, reading).sentence)
