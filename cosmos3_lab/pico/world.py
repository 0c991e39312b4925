"""How a scene looks and sounds: pixels and waveform computed from its record, many scenes at once, on any device.

A shape is drawn from its signed distance (negative inside): the edge is a ramp 1.6 pixels wide, so that it is smooth and moves
smoothly. A sound starts at the exact time of its event (snapped to 10 ms, which nobody hears), comes from where the thing is,
and is lower for larger things; a tone follows the thing's height.

Read next: `judge.py`, which reads a scene back from pixels and waveform.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cosmos3_lab.pico.grammar import tell
from cosmos3_lab.pico.scenes import PITCH, SECONDS, Scene, Thing, place, sample_scene

FPS = 16.0
FRAMES = 33
SIDE = 96  # pixels
SAMPLE_RATE = 16000
SAMPLES = 33280  # 52 sound latents of 640 samples: the clip, rounded up
EDGE = 1.6  # pixels from full colour to none


@dataclass(frozen=True, eq=False)
class Clip:
    """A scene with everything that can be made of it.

    Attributes:
        scene: what happens.
        caption: how it is told.
        pixels: `[3, frames, height, width]` float32 in [0, 1].
        waveform: `[2, samples]` float32 in [-1, 1] at `SAMPLE_RATE`.
    """

    scene: Scene
    caption: str
    pixels: Float[Tensor, "3 frames height width"]
    waveform: Float[Tensor, "2 samples"]


def make_clip(seed: int, *, things: int | None = None, motion: str | None = None) -> Clip:
    """A random clip; the same seed gives the same clip. Arguments as in `sample_scene`."""
    scene = sample_scene(seed, things=things, motion=motion)
    return Clip(scene, tell(scene, seed), draw([scene])[0], play([scene])[0])


def draw(
    scenes: Sequence[Scene],
    *,
    frames: int = FRAMES,
    side: int = SIDE,
    starts: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> Float[Tensor, "n 3 frames height width"]:
    """Pixels of every scene, float32 in [0, 1].

    Args:
        scenes: n of them.
        frames: how many, 16 a second.
        side: height and width in pixels.
        starts: first frame of each scene, None for the beginning.
        device: where to draw.
    """
    times = (np.arange(frames) + np.array([0] * len(scenes) if starts is None else starts)[:, None]) / FPS
    rows = (torch.arange(side, dtype=torch.float32, device=device) + 0.5) / side
    background = torch.tensor([s.background_rgb for s in scenes], device=device)
    pixels = background[:, :, None, None, None].expand(-1, -1, frames, side, side)
    for index in range(max(len(s.things) for s in scenes)):  # things are drawn in order, the last in front
        present = [s.things[index] if index < len(s.things) else None for s in scenes]
        x, y, radius = (torch.from_numpy(v).float().to(device) for v in _paths(present, times))
        dx = rows[None, None, None, :] - x[:, :, None, None]
        dy = rows[None, None, :, None] - y[:, :, None, None]
        distance = _distance([t.shape if t else "circle" for t in present], dx, dy, radius[:, :, None, None])
        cover = (0.5 - distance * side / EDGE).clamp(0, 1)[:, None]
        colour = torch.tensor([t.rgb if t else (0.0, 0.0, 0.0) for t in present], device=device)
        pixels = pixels + cover * (colour[:, :, None, None, None] - pixels)
    return pixels.contiguous()


def _paths(things: Sequence[Thing | None], times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y, radius `[n, frames]`; a missing thing lies far outside."""
    paths = np.full((3, *times.shape), -9.0)
    for i, thing in enumerate(things):
        if thing is not None:
            x, y, scale = place(thing, times[i])
            paths[:, i] = x, y, scale * thing.radius
    paths[2] = np.maximum(paths[2], 1e-3)
    return paths[0], paths[1], paths[2]


def _distance(shapes: Sequence[str], dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    """Signed distance to the outline of each scene's shape, negative inside."""
    wanted = torch.tensor([("circle", "square", "triangle").index(s) for s in shapes], device=dx.device)[:, None, None, None]
    circle = torch.sqrt(dx**2 + dy**2) - radius
    square = torch.maximum(dx.abs().expand_as(circle), dy.abs().expand_as(circle)) - 0.9 * radius
    slope = 0.75**0.5 * dx.abs() - 0.5 * dy  # the two slanted sides of a triangle that points up
    triangle = torch.maximum(slope, dy.expand_as(circle)) - 0.65 * radius
    return torch.where(wanted == 0, circle, torch.where(wanted == 1, square, triangle))


# -------------------------------------------------------------------------------------------------------------- sound


def play(scenes: Sequence[Scene], *, samples: int = SAMPLES, device: torch.device | str = "cpu") -> Float[Tensor, "n 2 samples"]:
    """Stereo waveforms of every scene, float32 in [-1, 1].

    Args:
        scenes: n of them.
        samples: length, 16,000 a second.
        device: where to compute.
    """
    seconds = torch.arange(samples, dtype=torch.float64, device=device) / SAMPLE_RATE
    out = torch.zeros(len(scenes), 2, samples, dtype=torch.float64, device=device)
    for kind in sorted({scene.sound for scene in scenes} - {"silence"}):
        index = [i for i, scene in enumerate(scenes) if scene.sound == kind]
        sounding = [scenes[i] for i in index]
        out[index] = (_continuous if kind in ("tone", "hum") else _hits)(kind, sounding, seconds)
    return out.clamp(-1, 1).float()


def _hits(kind: str, scenes: Sequence[Scene], seconds: Tensor) -> Tensor:
    """One impact at every event, each from where the thing is then."""
    things = [scene.things[scene.sounding] for scene in scenes]
    # A 10 ms grid: few different onsets within a sound latent, and inaudible. A missing event is never reached.
    events = np.full((len(scenes), max(len(scene.events) for scene in scenes)), np.inf)
    for row, scene in zip(events, scenes, strict=True):
        row[: len(scene.events)] = np.round(scene.events, 2)
    xs = np.stack([place(thing, np.minimum(row, SECONDS))[0] for thing, row in zip(things, events, strict=True)])
    pitch = torch.tensor([PITCH[thing.size] for thing in things]).to(seconds)
    out = torch.zeros(len(scenes), 2, len(seconds)).to(seconds)
    for event, x in zip(torch.from_numpy(events.T).to(seconds), torch.from_numpy(xs.T).to(seconds), strict=True):
        since = seconds - event[:, None]
        hit = _hit(kind, since.clamp_min(0), pitch[:, None]) * (since >= 0)
        out += _pan(x).T[:, :, None] * hit[:, None]
    return out


def _hit(kind: str, t: Tensor, pitch: Tensor) -> Tensor:
    """One impact, starting at t = 0 with a 2 ms attack."""
    attack = (t / 0.002).clamp(0, 1)
    turns = 2 * torch.pi * t * pitch
    if kind == "thud":  # a drum: low, and falling in pitch
        chirp = turns * 100 + 2 * torch.pi * 0.6 * 100 * 0.03 * (1 - torch.exp(-t / 0.03)) * pitch
        return 0.75 * attack * torch.sin(chirp) * torch.exp(-t / 0.10)
    if kind == "knock":  # wood: two partials that are no harmonics
        return 0.65 * attack * (torch.sin(320 * turns) + 0.4 * torch.sin(320 * 2.3 * turns)) / 1.2 * torch.exp(-t / 0.05)
    if kind == "ping":  # a small bell
        overtone = 0.25 * torch.sin(880 * 2.76 * turns) * torch.exp(-t / 0.05)
        return 0.55 * attack * (torch.sin(880 * turns) * torch.exp(-t / 0.16) + overtone)
    # click: two small balls of hardwood; at their pitch, 1600 and 2400 Hz, which start alike at every 10 ms of the grid
    return 0.6 * attack * (torch.sin(1280 * turns) + 0.5 * torch.sin(1920 * turns)) / 1.3 * torch.exp(-t / 0.04)


def _continuous(kind: str, scenes: Sequence[Scene], seconds: Tensor) -> Tensor:
    """A tone whose pitch is the thing's height, or a hum; both fade in and out over 30 ms."""
    things = [scene.things[scene.sounding] for scene in scenes]
    coarse = np.linspace(0, SECONDS + 0.05, 256)
    paths = torch.from_numpy(np.stack([place(thing, coarse)[:2] for thing in things])).to(seconds)
    spot = seconds / (coarse[1] - coarse[0])
    before = spot.long().clamp_max(len(coarse) - 2)
    x, y = torch.lerp(paths[..., before], paths[..., before + 1], spot - before).unbind(dim=1)
    if kind == "tone":
        phase = 2 * torch.pi * torch.cumsum(230 * 2 ** (1.7 * (1 - y)), dim=-1) / SAMPLE_RATE
        wave = 0.30 * (torch.sin(phase) + 0.18 * torch.sin(2 * phase)) / 1.18
    else:
        turns = 2 * torch.pi * 140 * seconds * torch.tensor([PITCH[thing.size] for thing in things]).to(seconds)[:, None]
        wave = 0.30 * (torch.sin(turns) + 0.5 * torch.sin(2 * turns) + 0.3 * torch.sin(3 * turns)) / 1.8
    fade = (seconds / 0.03).clamp(0, 1) * ((SECONDS - seconds) / 0.03).clamp(0, 1)
    return _pan(x).transpose(0, 1) * (wave * fade)[:, None]


def _pan(x: Tensor) -> Tensor:
    """Left and right gains of equal power, stacked first, for places between 0 and 1."""
    angle = x.clamp(0, 1) * 0.76 + 0.12
    return torch.stack([torch.cos(angle * torch.pi / 2), torch.sin(angle * torch.pi / 2)])
