"""What a step of the loop leaves behind: numbers always, tensors where they are kept.

Read next: `denoise.py`, which makes the steps.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from cosmos3_lab.guidance import GuidedVelocity
from cosmos3_lab.latents import Latents
from cosmos3_lab.schedule import Schedule
from cosmos3_lab.showing import Shown
from cosmos3_lab.unipc import UniPCStep

Keep = Literal["none", "summary", "x0", "full"]


@dataclass(frozen=True, eq=False)
class StepRecord(Shown):
    """What one step saw and did.

    Attributes:
        index: of the step, from 0.
        order: of the predictor.
        corrector_order: of the corrector, 0 where there was nothing to correct.
        sigma, timestep: noise level, and what the network was told.
        seconds: wall-clock time of the step.
        rms: root mean square of every tensor of the step, such as `rms["video.x0"]`; always kept.
        velocity: conditional, unconditional and guided; None where `keep` dropped it.
        x0: this step's prediction of the clean latents; None where dropped.
        corrector_move: corrected sample minus sample; None where dropped or where there was nothing to correct.
        predictor_move: next sample minus corrected sample; None where dropped.
        evaluations: how often the solver asked for a velocity: 1, in Heun's steps 2 (the record holds the first).
        passes: through the GEN tower: one for each evaluation, two where guidance needed the negative prompt's as well.
    """

    index: int
    order: int
    corrector_order: int
    sigma: float
    timestep: int
    seconds: float
    rms: Mapping[str, float]
    velocity: GuidedVelocity | None = None
    x0: Latents | None = None
    corrector_move: Latents | None = None
    predictor_move: Latents | None = None
    evaluations: int = 1
    passes: int = 1

    @property
    def second_pass(self) -> bool:
        """Whether the negative prompt's pass ran."""
        return self.passes > self.evaluations

    def keep(self, what: Keep) -> "StepRecord":
        """A copy that holds only what was asked for, on the CPU: "summary" numbers, "x0" too, or the "full" record."""
        if what == "full":
            v = self.velocity
            moved = GuidedVelocity(_cpu(v.guided), _cpu(v.cond), _cpu(v.uncond)) if v else None
            moves = {"corrector_move": _cpu(self.corrector_move), "predictor_move": _cpu(self.predictor_move)}
            return replace(self, velocity=moved, x0=_cpu(self.x0), **moves)
        x0 = _cpu(self.x0) if what == "x0" else None
        return replace(self, velocity=None, x0=x0, corrector_move=None, predictor_move=None)

    def __repr__(self) -> str:
        held = [n for n in ("velocity", "x0", "corrector_move", "predictor_move") if getattr(self, n) is not None]
        return (
            f"StepRecord(index={self.index}, order={self.order}, sigma={self.sigma:.5f}, timestep={self.timestep}, "
            f"{self.seconds:.2f} s, holds {', '.join(held) or 'numbers only'})"
        )


def record_step(
    index: int,
    schedule: Schedule,
    velocities: Sequence[GuidedVelocity],
    before: Latents,
    steps: Sequence[UniPCStep],
    begin: float,
) -> StepRecord:
    """The full record of a step that was done.

    Args:
        index: of the step.
        schedule: of the run.
        velocities: that the solver asked for, in order.
        before: the sample at the start of the step.
        steps: what the solver did, for video and, where there is any, sound.
        begin: `time.perf_counter()` at the start of the step.

    Raises:
        FloatingPointError: a velocity or sample is infinite or not a number.
    """
    velocity, video = velocities[0], steps[0]
    x0 = Latents(*(step.x0 for step in steps))
    corrected = Latents(*(step.corrected for step in steps))
    after = Latents(*(step.state.sample for step in steps))
    corrector_move = corrected.map(torch.sub, before) if video.corrector_order else None
    predictor_move = after.map(torch.sub, corrected)
    rms = _rms(
        sample=before,
        velocity=velocity.guided,
        velocity_cond=velocity.cond,
        velocity_uncond=velocity.uncond,
        guidance=None if velocity.uncond is None else velocity.cond.map(torch.sub, velocity.uncond),
        x0=x0,
        corrector_move=corrector_move,
        predictor_move=predictor_move,
    )
    broken = [name for name, value in rms.items() if not math.isfinite(value)]
    if broken:
        raise FloatingPointError(
            f"step {index}: {broken[0]} is not finite; the weights are damaged, or the numbers outgrew the dtype (try float32)"
        )
    return StepRecord(
        index=index,
        order=video.predictor_order,
        corrector_order=video.corrector_order,
        sigma=float(schedule.sigmas[index]),
        timestep=int(schedule.timesteps[index]),
        seconds=time.perf_counter() - begin,  # after the numbers above have waited for the device
        rms=rms,
        velocity=velocity,
        x0=x0,
        corrector_move=corrector_move,
        predictor_move=predictor_move,
        evaluations=len(velocities),
        passes=sum(1 if v.uncond is None else 2 for v in velocities),
    )


def _rms(**tensors: Latents | None) -> dict[str, float]:
    """`{"video.x0": ..., "sound.x0": ..., ...}`, brought to the CPU in one transfer."""
    values: dict[str, Tensor] = {}
    for name, latents in tensors.items():
        if latents is not None:
            values[f"video.{name}"] = latents.video.float().square().mean().sqrt()
            if latents.sound is not None:
                values[f"sound.{name}"] = latents.sound.float().square().mean().sqrt()
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))


def _cpu(latents: Latents | None) -> Latents | None:
    return None if latents is None else latents.to("cpu")


@dataclass(frozen=True)
class GuidanceSaving:
    """What was saved where guidance needed no second pass.

    Attributes:
        skipped: second passes that were not done.
        evaluations: how many there would be, had every evaluation had one.
        seconds: an estimate of the time saved, from the steps of this run; None where it has no steps of both kinds.
    """

    skipped: int
    evaluations: int
    seconds: float | None

    def __str__(self) -> str:
        about = "" if self.seconds is None else f", about {self.seconds:.2f} s saved (estimated from the steps of this run)"
        return f"{self.skipped} of {self.evaluations} second passes skipped{about}"


def guidance_saving(records: Sequence[StepRecord]) -> GuidanceSaving:
    """Count the second passes that guidance did not need, and estimate the time that they would have taken.

    The estimate is the median time of an evaluation with the second pass, less that of one without, for each one skipped; never
    below 0, which noise can make of it.

    Args:
        records: of a run, in order; numbers are enough (`keep="summary"`).
    """
    with_it, without = ([r.seconds / r.evaluations for r in records if r.second_pass == second] for second in (True, False))
    skipped = sum(r.evaluations for r in records if not r.second_pass)
    seconds = max(0.0, skipped * (median(with_it) - median(without))) if with_it and without else None
    return GuidanceSaving(skipped, sum(r.evaluations for r in records), seconds)
