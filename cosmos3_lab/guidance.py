"""Classifier-free guidance: look at the prompt's velocity from the negative prompt's, and go further that way.

`guided = v_uncond + w * (v_cond - v_uncond)`; w = 1 is no guidance, w = 6 is Nano's default. Source: Ho and Salimans 2022,
arXiv:2207.12598, in the convention of the reference implementations, where video and sound share one w for the whole run.

Three refinements, all off by default, are functions on velocities: `rescale_guided`, `optimized_scale` and `zero_init`. `guide`
puts everything together for one step of a run.

Read next: `unipc.py`, which takes the guided velocity one step down the sigmas.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos3_lab.guidance_scale import Guidance, SkipGuidance, needs_uncond
from cosmos3_lab.latents import Latents
from cosmos3_lab.showing import Shown


@dataclass(frozen=True, eq=False)
class GuidedVelocity(Shown):
    """One step's velocities, each shaped as the latents.

    Attributes:
        guided: what the solver uses.
        cond: of the prompt.
        uncond: of the negative prompt; None where guidance was skipped.
    """

    guided: Latents
    cond: Latents
    uncond: Latents | None


def classifier_free_guidance(v_cond: Latents, v_uncond: Latents | None, guidance_scale: float) -> GuidedVelocity:
    """`v_uncond + guidance_scale * (v_cond - v_uncond)`, for video and sound; just `v_cond` where `v_uncond` is None.

    Args:
        v_cond, v_uncond: velocities of the two branches, computed in the dtype that they come in.
        guidance_scale: w, at least 0.
    """
    if v_uncond is None:
        return GuidedVelocity(v_cond, v_cond, None)
    guided = v_uncond.map(lambda uncond, cond: _further(cond, uncond, guidance_scale), v_cond)
    return GuidedVelocity(guided, v_cond, v_uncond)


def guide(
    v_cond: Latents, v_uncond: Latents | None, guidance: Guidance, step: int, *, skip_guidance: SkipGuidance = "at 1"
) -> GuidedVelocity:
    """One step's guidance with all of its refinements; `classifier_free_guidance` where they are off.

    Video and sound are guided apart. Where one of them needs no guidance at this step, it is exactly `v_cond`, whether or not
    the other one made the second pass necessary.

    Args:
        v_cond, v_uncond: velocities of the two branches; None where the second pass was skipped.
        guidance: with a number for each step.
        step: from 0.
        skip_guidance: the preset's rule.
    """

    def one(cond: Tensor, uncond: Tensor, w: float) -> Tensor:
        if not needs_uncond(w, skip_guidance):
            return cond
        base = optimized_scale(cond, uncond) * uncond if guidance.optimized else uncond
        guided = _further(cond, base, w)
        return rescale_guided(guided, cond, guidance.rescale) if guidance.rescale else guided

    guided = v_cond
    if v_uncond is not None:
        w_video, w_sound = guidance.scales_at(step)
        sound = None if v_cond.sound is None else one(v_cond.sound, v_uncond.sound, w_sound)
        guided = Latents(one(v_cond.video, v_uncond.video, w_video), sound)
    return GuidedVelocity(zero_init(guided, step, guidance.zero_steps), v_cond, v_uncond)


def _further(cond: Tensor, uncond: Tensor, w: float) -> Tensor:
    return uncond + w * (cond - uncond)


def rescale_guided(guided: Float[Tensor, "b ..."], cond: Float[Tensor, "b ..."], rescale: float | int) -> Float[Tensor, "b ..."]:
    """CFG rescale: give the guided prediction the standard deviation of the conditional one, by a share of `rescale`.

    `(1 - rescale) * guided + rescale * guided * std(cond) / std(guided)`, with the std of each sample. Lin et al. 2023,
    arXiv:2305.08891, section 3.4 (their phi; they use 0.7), against the strong contrast of a large w. As there, it is what the
    model predicts that is rescaled. Here that is the velocity, `noise - x0`, and not x0: most of its std comes from the noise.

    Args:
        guided, cond: velocities of one modality.
        rescale: 0 (leave it) to 1.
    """
    over = tuple(range(1, guided.ndim))
    ratio = cond.std(over, keepdim=True) / guided.std(over, keepdim=True)
    return (1 - rescale) * guided + rescale * (ratio * guided)


def optimized_scale(cond: Float[Tensor, "b ..."], uncond: Float[Tensor, "b ..."]) -> Float[Tensor, "b ..."]:
    """CFG-Zero*'s factor for the unconditional velocity: `s = <cond, uncond> / |uncond|^2`, for each sample.

    `s * uncond` is the part of `cond` along `uncond`, so that guidance, `s * uncond + w * (cond - s * uncond)`, only goes
    further in what is perpendicular to it. Fan et al. 2025, arXiv:2503.18886.

    Args:
        cond, uncond: velocities of one modality.

    Returns:
        `[b, 1, ...]`, to multiply `uncond` with.
    """
    over = tuple(range(1, cond.ndim))
    return (cond * uncond).sum(over, keepdim=True) / (uncond.square().sum(over, keepdim=True) + 1e-8)


def zero_init(velocity: Latents, step: int, zero_steps: int) -> Latents:
    """CFG-Zero*'s second part: a velocity of zero in the first steps, where the model's own is worse than none.

    The sample then stays as it is while sigma falls, as if the run began later with the same noise. Fan et al. 2025,
    arXiv:2503.18886. (`denoise_step` makes UniPC forget those steps: there is no x0 in them to extrapolate from.)

    Args:
        velocity: guided.
        step: from 0.
        zero_steps: how many steps get zero.
    """
    return velocity.map(torch.zeros_like) if step < zero_steps else velocity
