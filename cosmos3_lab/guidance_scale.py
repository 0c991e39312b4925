"""How strongly to guide at each step: w as a number, a list, a function of the noise level, or an interval.

    6.0                                        the same at every step, as in all references
    [1, 1, 6, 6, 6, 1]                         one for each step
    lambda step, sigma: 6 if sigma > 0.5 else 1
    GuidanceInterval(6.0, low=0.2, high=0.9)   6 at these noise levels, 1 elsewhere
    Guidance(6.0, sound_scale=3.0, rescale=0.7)

Each of them can be given as `guidance_scale`. `resolve_guidance` turns it into plain numbers once, before the first step, so that
it can be shown, saved and compared. Where w needs no second pass (1, by the usual rule), that pass is skipped.

Read next: `guidance.py`, what is done with w.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal

from cosmos3_lab.configs import real_number, whole_number

SkipGuidance = Literal["at 1", "up to 1"]
SCALE = "a finite number of at least 0 (or a list of them, a function of (step, sigma), or a GuidanceInterval)"


def needs_uncond(guidance_scale: float, skip_guidance: SkipGuidance = "at 1") -> bool:
    """Whether the negative prompt's pass is needed at all: not at w = 1 (NVIDIA, diffusers), not up to w = 1 (PhyAI)."""
    return guidance_scale > 1 if skip_guidance == "up to 1" else guidance_scale != 1


@dataclass(frozen=True)
class GuidanceInterval:
    """Guidance at some noise levels only: `scale` where `low < sigma <= high`, 1 elsewhere.

    Kynkäänniemi et al. 2024, arXiv:2404.07724: guidance does harm at high noise levels and nothing at low ones. Their noise
    level e (noise over signal, unbounded) is ours by `sigma = e / (e + 1)`.

    Attributes:
        scale: w, at least 0.
        low, high: sigmas, `0 <= low < high <= 1`.

    Raises:
        ValueError: a number is out of range.
    """

    scale: float | int
    low: float | int
    high: float | int

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _number(self.scale, "guidance_scale"))
        for name in ("low", "high"):
            object.__setattr__(self, name, real_number(f"an interval's {name}", getattr(self, name), "a sigma from 0 to 1"))
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"got an interval of sigma from {self.low} to {self.high}, expected 0 <= low < high <= 1")


# w for a run: a number, one for each step, a function of (step, sigma), or an interval of sigma.
GuidanceScale = float | int | Sequence[float | int] | Callable[[int, float], float | int] | GuidanceInterval


@dataclass(frozen=True)
class Guidance:
    """Everything about guidance; where only w matters, w alone will do.

    Attributes:
        scale: w of the video, see the module's docstring.
        sound_scale: w of the sound; None means the video's.
        rescale: phi of `rescale_guided`, 0 (off) to 1.
        optimized: whether `optimized_scale` shortens or lengthens the unconditional velocity first.
        zero_steps: how many steps at the start are done with a velocity of zero, see `zero_init`.

    Raises:
        ValueError: a number is out of range.
    """

    scale: GuidanceScale
    sound_scale: GuidanceScale | None = None
    rescale: float | int = 0.0
    optimized: bool = False
    zero_steps: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _checked(self.scale, "guidance_scale"))
        if self.sound_scale is not None:
            object.__setattr__(self, "sound_scale", _checked(self.sound_scale, "sound's guidance_scale"))
        share = "a number from 0 (off) to 1"
        object.__setattr__(self, "rescale", real_number("guidance rescale", self.rescale, share))
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"got guidance rescale {self.rescale}, expected {share}")
        if not isinstance(self.optimized, bool):
            raise ValueError(f"got optimized {self.optimized!r}, expected True or False")
        object.__setattr__(self, "zero_steps", whole_number("zero_steps", self.zero_steps, 0))

    def scales_at(self, step: int) -> tuple[float, float]:
        """w of video and of sound at a step, once resolved.

        Args:
            step: from 0.
        """
        return self.scale[step], (self.scale if self.sound_scale is None else self.sound_scale)[step]

    def needs_uncond(self, step: int, skip_guidance: SkipGuidance = "at 1") -> bool:
        """Whether the negative prompt's pass is needed at a step, once resolved.

        Args:
            step: from 0.
            skip_guidance: the preset's rule.
        """
        return step >= self.zero_steps and any(needs_uncond(w, skip_guidance) for w in self.scales_at(step))

    def needs_negative(self, skip_guidance: SkipGuidance = "at 1", *, first_step: int = 0) -> bool:
        """Whether any step needs the negative prompt, once resolved.

        Args:
            skip_guidance: the preset's rule.
            first_step: the first one that counts.
        """
        return any(self.needs_uncond(step, skip_guidance) for step in range(first_step, len(self.scale)))

    def __repr__(self) -> str:
        sound = "" if self.sound_scale is None else f", sound_scale={scale_words(self.sound_scale)}"
        others = {"rescale": self.rescale, "optimized": self.optimized, "zero_steps": self.zero_steps}
        on = "".join(f", {name}={value}" for name, value in others.items() if value)
        return f"Guidance({scale_words(self.scale)}{sound}{on})"


def check_guidance(guidance: GuidanceScale | Guidance, num_steps: int) -> GuidanceScale | Guidance:
    """The same with lists made tuples, if it can work for a run of `num_steps` steps.

    Args:
        guidance: w, or all about guidance.
        num_steps: of the run.

    Raises:
        ValueError: a number is negative, infinite or not a number; a list of another length; more zero steps than steps.
    """
    if not isinstance(guidance, Guidance):
        return _checked(guidance, "guidance_scale", num_steps)
    for name, scale in (("guidance_scale", guidance.scale), ("sound's guidance_scale", guidance.sound_scale)):
        if scale is not None:
            _checked(scale, name, num_steps)
    if guidance.zero_steps >= num_steps:
        raise ValueError(f"got zero_steps {guidance.zero_steps} of {num_steps} steps, expected fewer: nothing would be denoised")
    return guidance


def _checked(scale: object, name: str, num_steps: int | None = None) -> GuidanceScale:
    if isinstance(scale, GuidanceInterval) or callable(scale):
        return scale
    if isinstance(scale, Sequence) and not isinstance(scale, str):
        if num_steps is not None and len(scale) != num_steps:
            raise ValueError(
                f"got {len(scale)} numbers as {name} for {num_steps} steps, expected one for each step; make the list or "
                "num_inference_steps fit"
            )
        return tuple(_number(w, name) for w in scale)
    return _number(scale, name)


def _number(w: object, name: str) -> float:
    value = real_number(name, w, SCALE)
    if value < 0:
        raise ValueError(f"got {name} {w}, expected {SCALE}")
    return value


# ---------------------------------------------------------------------------------------------------- numbers per step


def resolve_guidance(
    guidance: GuidanceScale | Guidance, sigmas: Sequence[float], *, with_sound: bool = True, first_step: int = 0
) -> Guidance:
    """The same guidance with w as a plain tuple, one number for each step.

    Args:
        guidance: w, or all about guidance. A function is called here, once for each step, and not kept.
        sigmas: noise level of each step.
        with_sound: whether there is sound; without it the result has no `sound_scale`.
        first_step: number of the step that `sigmas` begins with.

    Raises:
        ValueError: see `check_guidance`; also where a function returns such a number.
    """
    if not isinstance(guidance, Guidance):
        guidance = Guidance(guidance)

    def numbers(scale: GuidanceScale, name: str) -> tuple[float, ...]:
        if isinstance(scale, GuidanceInterval):
            scale = [scale.scale if scale.low < sigma <= scale.high else 1.0 for sigma in sigmas]
        elif callable(scale):
            scale = [scale(step, sigma) for step, sigma in enumerate(sigmas, first_step)]
        elif not isinstance(scale, Sequence):
            scale = [scale] * len(sigmas)
        return tuple(float(w) for w in _checked(scale, name, len(sigmas)))

    sound = None
    if with_sound and guidance.sound_scale is not None:
        sound = numbers(guidance.sound_scale, "sound's guidance_scale")
    return replace(guidance, scale=numbers(guidance.scale, "guidance_scale"), sound_scale=sound)


def carry_guidance(guidance: Guidance, sigmas: Sequence[float], new_sigmas: Sequence[float]) -> Guidance:
    """Resolved guidance taken to another schedule: each new step gets the w that its noise level had before.

    Args:
        guidance: with a number for each of `sigmas`.
        sigmas, new_sigmas: noise levels of the steps, before and after.
    """
    if list(new_sigmas) == list(sigmas):
        return guidance
    # The old step that was under way at this noise level; a little room, because sigmas are float32.
    at = [sum(old >= sigma - 1e-6 for old in sigmas[1:]) for sigma in new_sigmas]
    sound = None if guidance.sound_scale is None else tuple(guidance.sound_scale[i] for i in at)
    zero_steps = sum(i < guidance.zero_steps for i in at)
    return replace(guidance, scale=tuple(guidance.scale[i] for i in at), sound_scale=sound, zero_steps=zero_steps)


def simplest(scale: Sequence[float]) -> float | tuple[float, ...]:
    """One number where all are the same, else the numbers.

    Args:
        scale: w of each step.
    """
    return scale[0] if len(set(scale)) == 1 else tuple(scale)


def guidance_settings(guidance: Guidance) -> dict[str, Any]:
    """Resolved guidance as plain values, for a manifest: a number where w is the same at every step, else a list.

    Args:
        guidance: with a number for each step.
    """
    scales = [None if s is None else simplest(s) for s in (guidance.scale, guidance.sound_scale)]
    scale, sound_scale = (list(s) if isinstance(s, tuple) else s for s in scales)
    return {
        "guidance_scale": scale,
        "sound_guidance_scale": sound_scale,
        "guidance_rescale": guidance.rescale,
        "guidance_optimized": guidance.optimized,
        "guidance_zero_steps": guidance.zero_steps,
    }


def scale_words(scale: GuidanceScale | Guidance) -> str:
    """w in a few words, such as "6" or "1 to step 2, 6 to 7, 1 to 9".

    Args:
        scale: as asked for, or resolved.
    """
    if isinstance(scale, (Guidance, GuidanceInterval)):
        return repr(scale)
    if callable(scale):
        return "a function of (step, sigma)"
    if not isinstance(scale, Sequence):
        return f"{scale:g}"
    runs, last = [], -1
    for w, steps in groupby(scale):
        last += len(list(steps))
        runs.append(f"{w:g} to {last}" if runs else f"{w:g} to step {last}")
    if len(runs) == 1:
        return f"{scale[0]:g}"
    return ", ".join(runs) if len(runs) <= 4 else f"{min(scale):g} to {max(scale):g} over {len(scale)} steps"
