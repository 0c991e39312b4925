"""Classifier-free guidance: look at the prompt's velocity from the negative prompt's, and go further that way.

`guided = v_uncond + w * (v_cond - v_uncond)`; w = 1 is no guidance, w = 6 is Nano's default. Video and sound share w.
Source: Ho and Salimans 2022, arXiv:2207.12598, in the convention of the reference implementations.

Read next: `unipc.py`, which takes the guided velocity one step down the sigmas.
"""

from dataclasses import dataclass
from typing import Literal

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
    guided = v_uncond.map(lambda uncond, cond: uncond + guidance_scale * (cond - uncond), v_cond)
    return GuidedVelocity(guided, v_cond, v_uncond)


def needs_uncond(guidance_scale: float, skip_guidance: Literal["at 1", "up to 1"] = "at 1") -> bool:
    """Whether the negative prompt's pass is needed at all: not at w = 1 (NVIDIA, diffusers), not up to w = 1 (PhyAI)."""
    return guidance_scale > 1 if skip_guidance == "up to 1" else guidance_scale != 1
