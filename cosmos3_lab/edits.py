"""Change latents by hand: choose a region of space, time or sound, put something else there, and let the run go on.

    right = select_video(latents, columns=(6, 12))           ->  Region: which entries are meant
    paste(latents, renoise(clean, sigma, seed=7), right)      ->  Latents with that region replaced
    restart_at(inputs, clean, 12, seed=7)                     ->  DenoiseState: a finished clip, noisy again, to be redone
    denoise_keeping(transformer, inputs, state, known, ...)   ->  steps that leave a region as it is in `known`

What stands in a region must be as noisy as the rest, or the network takes noise for picture: latents of another run at the
same sigma are, clean ones after `renoise`. Zeros before `renoise` say nothing about what will be there.

Source of the last: keep what is known by putting it back, as noisy as needed, after every step (the replacement method of
Song et al. 2021, arXiv:2011.13456, section 5; Lugmayr et al. 2022, arXiv:2201.09865), here along flow matching's straight path.

Read next: `tree.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from cosmos3_lab.denoise import DenoiseInputs, DenoiseState, StepRecord, denoise_step
from cosmos3_lab.latents import Latents, init_latents
from cosmos3_lab.schedule import add_noise
from cosmos3_lab.towers import Cosmos3Transformer
from cosmos3_lab.unipc import unipc_init

Range = tuple[int, int]  # first, and first after the last


@dataclass(frozen=True, eq=False)
class Region:
    """Which entries of latents are meant, in all channels. Regions can be joined `a | b`, cut `a & b` and turned round `~a`.

    Attributes:
        video: `[t, h, w]` bool, by latent frame, row and column.
        sound: `[n_sound]` bool, None in a silent video.
    """

    video: Bool[Tensor, "t h w"]
    sound: Bool[Tensor, " n_sound"] | None = None

    def __or__(self, other: "Region") -> "Region":
        return self._with(torch.logical_or, other)

    def __and__(self, other: "Region") -> "Region":
        return self._with(torch.logical_and, other)

    def __invert__(self) -> "Region":
        return Region(~self.video, None if self.sound is None else ~self.sound)

    def _with(self, fn: Callable[[Tensor, Tensor], Tensor], other: "Region") -> "Region":
        return Region(fn(self.video, other.video), None if self.sound is None else fn(self.sound, other.sound))

    def __repr__(self) -> str:
        sound = "" if self.sound is None else f", {int(self.sound.sum())} of {len(self.sound)} sound latents"
        return f"Region({int(self.video.sum())} of {self.video.numel()} video latents{sound})"


def select_video(
    latents: Latents, *, frames: Range | None = None, rows: Range | None = None, columns: Range | None = None
) -> Region:
    """A box of video latents, and no sound.

    Args:
        latents: for their shape.
        frames, rows, columns: `(first, first after the last)` in latent frames and latent pixels, None for all.

    Raises:
        ValueError: a range is empty or reaches beyond the latents.
    """
    shape = latents.video.shape[2:]
    inside = [
        _slice(name, given, size)
        for name, given, size in zip(("frames", "rows", "columns"), (frames, rows, columns), shape, strict=True)
    ]
    nothing = _nothing(latents)
    nothing.video[tuple(inside)] = True
    return nothing


def select_sound(latents: Latents, *, steps: Range | None = None) -> Region:
    """Sound latents, and no video.

    Args:
        latents: with sound, for their shape.
        steps: `(first, first after the last)` in sound latents (25 a second on Nano and pico), None for all.

    Raises:
        ValueError: there is no sound, or the range is empty or reaches beyond it.
    """
    if latents.sound is None:
        raise ValueError("got latents without sound, expected those of a run with sound (with_sound=True)")
    nothing = _nothing(latents)
    nothing.sound[_slice("steps", steps, len(nothing.sound))] = True
    return nothing


def _nothing(latents: Latents) -> Region:
    sound = None if latents.sound is None else torch.zeros(latents.sound.shape[1], dtype=torch.bool)
    return Region(torch.zeros(latents.video.shape[2:], dtype=torch.bool), sound)


def _slice(name: str, given: Range | None, size: int) -> slice:
    first, stop = given or (0, size)
    if not 0 <= first < stop <= size:
        raise ValueError(f"got {name} {(first, stop)}, expected (first, first after the last) within 0 and {size}")
    return slice(first, stop)


def paste(latents: Latents, source: Latents, region: Region) -> Latents:
    """Latents with those of `source` inside the region; neither of the two is changed.

    Args:
        latents: to begin with.
        source: of the same shapes; brought to the device and dtype of `latents`.
        region: of the same shapes.

    Raises:
        ValueError: the shapes differ.
    """
    shapes = [_shapes(latents), _shapes(source), (tuple(region.video.shape), None if region.sound is None else len(region.sound))]
    grids = [(v[2:], s and s[1]) for v, s in shapes[:2]] + shapes[2:]
    if shapes[0] != shapes[1] or grids[0] != grids[2]:
        raise ValueError(
            f"got latents {shapes[0]}, a source {shapes[1]} and a region {shapes[2]} (video, sound), expected the same shapes"
        )
    source = source.to(latents.video.device, latents.video.dtype)
    video = torch.where(region.video.to(latents.video.device), source.video, latents.video)
    if latents.sound is None:
        return Latents(video)
    return Latents(video, torch.where(region.sound.to(latents.sound.device)[:, None], source.sound, latents.sound))


def _shapes(latents: Latents) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    return tuple(latents.video.shape), None if latents.sound is None else tuple(latents.sound.shape)


def renoise(clean: Latents, sigma: float, *, seed: int) -> Latents:
    """Clean latents made as noisy as a run is at `sigma`: `(1 - sigma) * clean + sigma * noise`.

    Args:
        clean: x0, or the result of a run; zeros for a region about which nothing is said.
        sigma: in [0, 1].
        seed: of the noise.

    Raises:
        ValueError: sigma is out of range.
    """
    if not 0 <= sigma <= 1:
        raise ValueError(f"got sigma {sigma}, expected a noise level from 0 to 1")
    sound = {} if clean.sound is None else {"sound_frames": clean.sound.shape[1], "sound_dim": clean.sound.shape[2]}
    noise = init_latents(tuple(clean.video.shape[2:]), channels=clean.video.shape[1], seed=seed, **sound)
    return clean.map(lambda x0, drawn: add_noise(x0, drawn.to(x0.device, x0.dtype), sigma), noise)


def restart_at(inputs: DenoiseInputs, clean: Latents, step_index: int, *, seed: int) -> DenoiseState:
    """A finished clip, noisy again: the state at any step of the schedule, with a solver that remembers nothing.

    The earlier the step, the less of the clip is left (Meng et al. 2022, SDEdit, arXiv:2108.01073).

    Args:
        inputs: of the run that will go on from there.
        clean: the result of any run of the same shapes.
        step_index: the step to do next, from 0 to n - 1.
        seed: of the noise.

    Raises:
        ValueError: the schedule has no such step.
    """
    if not 0 <= step_index < inputs.schedule.num_steps:
        raise ValueError(f"got step_index {step_index}, expected 0 to {inputs.schedule.num_steps - 1}, a step of the schedule")
    noisy = renoise(clean, float(inputs.schedule.sigmas[step_index]), seed=seed)
    sound = None if noisy.sound is None else unipc_init(noisy.sound, step_index=step_index)
    return DenoiseState(unipc_init(noisy.video, step_index=step_index), sound)


def denoise_keeping(
    transformer: Cosmos3Transformer, inputs: DenoiseInputs, state: DenoiseState, known: Latents, region: Region
) -> Iterator[tuple[DenoiseState, StepRecord]]:
    """`denoise`, but what lies in the region ends as it is in `known`: new sound for a given video, a new corner of a picture.

    After each step the region is filled with `known`, made as noisy as the sample is then, always with the noise that the run
    came with. The solver need not restart: what it remembers of the rest is true, and what it makes of the region is replaced.

    Args:
        transformer, inputs, state: see `denoise_step`.
        known: clean latents; outside of the region they do not matter.
        region: what to keep.

    Raises:
        ValueError: the shapes differ.
    """
    sigmas, latents = inputs.schedule.sigmas.tolist(), state.latents
    known = known.to(latents.video.device, latents.video.dtype)
    paste(latents, known, region)  # refuses what does not fit before the first step
    sigma = sigmas[state.step_index]
    noise = latents.map(lambda sample, x0: (sample - (1 - sigma) * x0) / sigma, known)
    while state.step_index < inputs.schedule.num_steps:
        state, record = denoise_step(transformer, inputs, state)
        sigma = sigmas[state.step_index]
        kept = paste(state.latents, known.map(lambda x0, drawn, s=sigma: add_noise(x0, drawn, s), noise), region)
        sound = state.sound and replace(state.sound, sample=kept.sound)
        state = DenoiseState(replace(state.video, sample=kept.video), sound)
        yield state, record
