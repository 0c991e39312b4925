"""Ways between two generations: through noise on a sphere, through prompts in the space of keys and values.

    slerp(a, b, 0.3)                            ->  noise between two noises, as long as they are
    blend_conditions(cond_a, cond_b, 0.3)       ->  Cosmos3Condition between two prompts of one length
    expected_clip(models, request)              ->  Latents: the mean of all clips that a prompt may give, in one pass
    mean_latents([...])                         ->  Latents: the mean of several

*Why not straight lines through noise?* In many dimensions standard normal noise lies near a sphere of radius sqrt(n). The middle
of a straight line between two such points is only 0.71 times as long: less noise than the network was ever shown at this sigma.
An arc of the sphere keeps the length (Shoemake 1985; White 2016, arXiv:1609.04468).

*Why must prompts have one length?* Media tokens stand at `s_text + 15000` and later on the time axis. Prompts of 54 and 57 tokens
put the same latent at different distances from the text, and in the shorter one there is no K or V for token 56. Keys
carry the rotation of their own position, and rotations are linear: at equal positions the mean of two rotated keys is the rotated
mean. So with equal lengths everything has a partner, and otherwise nothing does.

Read next: `grid.py`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import DenoiseInputs, denoise_step, prepare_denoise
from cosmos3_lab.latents import Latents
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.towers import LayerKV
from cosmos3_lab.transformer import Cosmos3Condition

PARALLEL = 1e-3  # radians; below, the arc is as straight as float32 can tell


def slerp(a: Float[Tensor, "..."], b: Float[Tensor, "..."], t: float) -> Float[Tensor, "..."]:
    """The point at share `t` of the arc from `a` to `b`; its length goes evenly from that of `a` to that of `b`.

    Args:
        a, b: of one shape, taken as vectors; not zero.
        t: 0 gives `a`, 1 gives `b`; outside of that the arc goes on.

    Raises:
        ValueError: the shapes differ, one is zero, or they point in opposite directions, between which every arc is as short.
    """
    lengths = [float(torch.linalg.vector_norm(x.double())) for x in (a, b)]
    if a.shape != b.shape or min(lengths) == 0:
        raise ValueError(f"got {list(a.shape)} and {list(b.shape)} of lengths {lengths}, expected one shape and not zero")
    u, v = (x.double() / length for x, length in zip((a, b), lengths, strict=True))
    # From the half chords: near 0 and near pi, where it matters, the arc cosine of a scalar product is all rounding.
    angle = 2 * torch.atan2(torch.linalg.vector_norm(u - v), torch.linalg.vector_norm(u + v))
    if float(angle) > torch.pi - PARALLEL:
        raise ValueError("got vectors in opposite directions, between which there is no shortest arc; try another seed for one")
    length = (1 - t) * lengths[0] + t * lengths[1]
    if float(angle) < PARALLEL:
        return (length * torch.lerp(u, v, t)).to(a.dtype)
    weights = torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)
    return (length * (weights[0] * u + weights[1] * v)).to(a.dtype)


def slerp_latents(a: Latents, b: Latents, t: float) -> Latents:
    """`slerp` of the videos and of the sounds, each on its own sphere.

    Args:
        a, b: noise of one shape.
        t: share of the way.

    Raises:
        ValueError: see `slerp`; or only one of them has sound.
    """
    if (a.sound is None) != (b.sound is None):
        raise ValueError("got latents with and without sound, expected both with or both without")
    return a.map(lambda x, y: slerp(x, y, t), b)


def blend_conditions(a: Cosmos3Condition, b: Cosmos3Condition, t: float) -> Cosmos3Condition:
    """Text K/V at share `t` of the straight way from one prompt to another of the same length.

    Args:
        a, b: conditions for the same latents, with equally many text tokens.
        t: 0 gives `a`, 1 gives `b`; beyond that it goes on in the same direction.

    Raises:
        ValueError: the numbers of tokens or the latents differ.
    """
    if a.layout != b.layout:
        if replace(a.layout, s_text=b.layout.s_text) == b.layout:
            raise ValueError(
                f"got prompts of {a.layout.s_text} and {b.layout.s_text} text tokens, expected equally many: each K and V needs "
                "a partner; add or exchange words (token_table shows what a word costs)"
            )
        raise ValueError(f"got conditions for {a.layout} and {b.layout}, expected the same latents")
    kv = [LayerKV(torch.lerp(x.k, y.k, t), torch.lerp(x.v, y.v, t)) for x, y in zip(a.cached_kv, b.cached_kv, strict=True)]
    return replace(a, cached_kv=tuple(kv))


def blend_inputs(a: DenoiseInputs, b: DenoiseInputs, t: float) -> DenoiseInputs:
    """Inputs of a run between two prompts: `blend_conditions` of both branches, all else from `a`.

    The request still names the prompt of `a`, so a state of such a run is saved at your own risk.

    Args:
        a, b: of runs that differ in their prompts only.
        t: share of the way.

    Raises:
        ValueError: see `blend_conditions`.
    """
    pairs = [(a.cond, b.cond), (a.uncond, b.uncond)]
    cond, uncond = (blend_conditions(x, y, t) if x is not None and y is not None else None for x, y in pairs)
    return replace(a, cond=cond, uncond=uncond)


def expected_clip(models: Cosmos3Models, request: Cosmos3T2VRequest) -> Latents:
    """The mean of all clips that a prompt may give, as the network believes: x0 of the first step, without guidance.

    At sigma near 1 the sample says nothing about the clip, and the prediction with the least squared error is the mean over
    everything that fits the prompt. What the prompt leaves open is blurred; what it says stands out. One pass of the network.

    Args:
        models: from `load_cosmos3`.
        request: its guidance scale and number of steps do not matter.
    """
    inputs, state = prepare_denoise(models, replace(request, guidance_scale=1.0))
    return denoise_step(models.transformer, inputs, state)[1].x0


def mean_latents(latents: Sequence[Latents]) -> Latents:
    """The mean of latents of one shape.

    Args:
        latents: at least one.

    Raises:
        ValueError: there are none.
    """
    if not latents:
        raise ValueError("got no latents, expected at least one")
    return latents[0].map(lambda *parts: torch.stack(parts).mean(0), *latents[1:])
