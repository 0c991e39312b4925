"""What happens in a clip: one or two things, each with a shape, a colour, a size and a motion, and one sound.

Lengths are in units of the frame (square, 1 x 1, y down); times in seconds. A scene is a frozen record of plain values, so that
it can be told (`grammar.py`), drawn and played (`world.py`) and checked (`judge.py`) from the same source.

Some motions make events: a bounce touches the floor, a ricochet a wall, a pulse reaches its largest size, two things collide.
Sounds happen exactly then. The motions are slow enough for a video VAE that packs four frames into one.

Read next: `grammar.py`, `world.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, pi, sqrt

import numpy as np

SECONDS = 33 / 16  # 33 frames at 16 frames a second

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "orange": (0.98, 0.52, 0.08),
    "yellow": (0.97, 0.88, 0.12),
    "green": (0.12, 0.66, 0.22),
    "cyan": (0.12, 0.80, 0.86),
    "blue": (0.12, 0.26, 0.90),
    "purple": (0.52, 0.16, 0.72),
    "pink": (0.99, 0.56, 0.76),
    "white": (0.96, 0.96, 0.96),
    "black": (0.05, 0.05, 0.05),
}
BACKGROUNDS = COLOURS | {"gray": (0.50, 0.50, 0.50)}
SHAPES = ("circle", "square", "triangle")
SIZES = {"small": (0.108, 0.122), "medium": (0.150, 0.168), "large": (0.202, 0.220)}  # radius; of two things the smaller two
PITCH = {"small": 1.25, "medium": 1.0, "large": 0.8}  # larger things sound lower

# How far a shape reaches from its centre, in radii: left and right, up, down.
REACH = {"circle": (1.0, 1.0, 1.0), "square": (0.9, 0.9, 0.9), "triangle": (1.126, 1.30, 0.65)}

EVENT_MOTIONS = ("bounce", "ricochet", "pulse", "drop", "collide")
SLIDES = ("slide right", "slide left", "rise", "fall")
ORBITS = ("orbit clockwise", "orbit counterclockwise")
SPEEDS = {"slow": 1.28, "normal": 1.0, "fast": 0.78}  # factor on the period
PERIODS = {"bounce": 0.90, "ricochet": 0.98, "pulse": 0.95, "orbit": 2.0}  # seconds at normal speed

EVENT_SOUNDS = ("thud", "knock", "ping")
SOUNDS = (*EVENT_SOUNDS, "click", "tone", "hum", "silence")


@dataclass(frozen=True)
class Thing:
    """One shape and how it moves.

    Attributes:
        shape, colour, size: of `SHAPES`, `COLOURS`, `SIZES`.
        radius: of the shape at rest.
        motion: "still", "bounce", "ricochet", "pulse", "drop", "collide", one of `SLIDES` or `ORBITS`.
        speed: of `SPEEDS`.
        x, y: where the motion is anchored (centre of an orbit, floor contact of a bounce, middle of a slide, ...).
        reach: height of a bounce or drop, width of a ricochet, radius of an orbit.
        period: seconds of one bounce, crossing, pulse or turn; seconds until contact of a drop or collision.
        phase: of periodic motions, in [0, 1); a start angle in turns for orbits.
        vx, vy: velocity of slides and before a collision, per second.
        rgb: the colour as drawn, with its jitter.
    """

    shape: str
    colour: str
    size: str
    radius: float
    motion: str
    speed: str = "normal"
    x: float = 0.5
    y: float = 0.5
    reach: float = 0.0
    period: float = 1.0
    phase: float = 0.0
    vx: float = 0.0
    vy: float = 0.0
    rgb: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Scene:
    """One clip.

    Attributes:
        things: one or two.
        background: of `BACKGROUNDS`.
        background_rgb: as drawn.
        sound: of `SOUNDS`.
        sounding: index of the thing that makes the sound.
        seconds: length of the clip.
    """

    things: tuple[Thing, ...]
    background: str
    background_rgb: tuple[float, float, float]
    sound: str
    sounding: int = 0
    seconds: float = SECONDS

    @property
    def events(self) -> tuple[float, ...]:
        """Times at which the sounding thing touches something, in seconds."""
        return event_times(self.things[self.sounding], self.seconds)


RESTITUTION = 0.72  # a dropped ball keeps this share of its speed at each bounce


def event_times(thing: Thing, seconds: float = SECONDS) -> tuple[float, ...]:
    """When the thing touches something or reaches its largest size, rising, within the clip."""
    if thing.motion in ("bounce", "ricochet", "pulse"):
        first = ceil(thing.phase) - thing.phase if thing.phase else 0.0
        times = [(first + k) * thing.period for k in range(12)]
    elif thing.motion == "drop":
        times, flight = [thing.period], 2 * thing.period * RESTITUTION
        while times[-1] < seconds and flight > 0.12:  # shorter hops cannot be told apart
            times.append(times[-1] + flight)
            flight *= RESTITUTION
    elif thing.motion == "collide":
        times = [thing.period]
    else:
        times = []
    return tuple(t for t in times if 0.02 < t < seconds - 0.02)


def place(thing: Thing, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the thing is and how large: `(x, y, scale)` at each time.

    Args:
        thing: that moves.
        times: `[...]` seconds.
    """
    t = np.asarray(times, dtype=np.float64)
    x, y, scale = np.full_like(t, thing.x), np.full_like(t, thing.y), np.ones_like(t)
    turn = t / thing.period + thing.phase
    if thing.motion == "bounce":
        f = turn % 1
        y = thing.y - thing.reach * 4 * f * (1 - f)
    elif thing.motion == "ricochet":
        x = thing.x - thing.reach / 2 + thing.reach * (1 - np.abs(turn % 2 - 1))
    elif thing.motion in SLIDES:
        x, y = thing.x + thing.vx * (t - SECONDS / 2), thing.y + thing.vy * (t - SECONDS / 2)
    elif thing.motion in ORBITS:
        direction = 1 if thing.motion == "orbit clockwise" else -1  # y points down
        angle = 2 * pi * (thing.phase + direction * t / thing.period)
        x, y = thing.x + thing.reach * np.cos(angle), thing.y + thing.reach * np.sin(angle)
    elif thing.motion == "pulse":
        scale = 1 + 0.36 * np.cos(2 * pi * turn)
    elif thing.motion == "drop":
        y = thing.y - _drop_height(thing, t)
    elif thing.motion == "collide":
        x = thing.x - np.abs(t - thing.period) * thing.vx  # equal masses: the things swap their speeds
    return x, y, scale


def _drop_height(thing: Thing, t: np.ndarray) -> np.ndarray:
    """Free fall from `reach`, then parabolas whose flights and heights shrink with the restitution."""
    gravity = 2 * thing.reach / thing.period**2
    height = np.maximum(thing.reach - gravity * t**2 / 2, 0.0)
    start, flight = thing.period, 2 * thing.period * RESTITUTION
    for _ in range(12):
        inside = (t >= start) & (t < start + flight)
        height = np.where(inside, gravity / 2 * (t - start) * (start + flight - t), height)
        start, flight = start + flight, flight * RESTITUTION
    return height


# ----------------------------------------------------------------------------------------------------------- sampling

MOTIONS = {
    "bounce": 0.17,
    "ricochet": 0.11,
    "slide right": 0.065,
    "slide left": 0.065,
    "rise": 0.065,
    "fall": 0.065,
    "orbit clockwise": 0.10,
    "orbit counterclockwise": 0.10,
    "pulse": 0.12,
    "drop": 0.09,
    "still": 0.05,
}
# What two things may do side by side: one keeps to the left half, the other to the right.
SIDE_BY_SIDE = ("bounce", "rise", "fall", "pulse", "drop", "still")
# ... and one above the other; what bounces is below, where the floor is.
STACKED = ("ricochet", "slide right", "slide left", "pulse", "still", "bounce")


# Combinations of colour, shape and motion that training leaves out, to see whether pico can put together what it knows.
HELD_OUT = {
    ("red", "triangle", "bounce"),
    ("green", "circle", "orbit clockwise"),
    ("blue", "square", "ricochet"),
    ("yellow", "triangle", "slide left"),
    ("purple", "circle", "pulse"),
    ("cyan", "square", "drop"),
    ("orange", "circle", "rise"),
    ("pink", "square", "orbit counterclockwise"),
}


def is_held_out(scene: Scene) -> bool:
    """Whether a thing of the scene is one of the combinations that training leaves out."""
    return any((t.colour, t.shape, t.motion) in HELD_OUT for t in scene.things)


def sample_scene(seed: int, *, things: int | None = None, motion: str | None = None, held_out: bool | None = None) -> Scene:
    """A random scene; the same seed gives the same scene.

    Args:
        seed: of the scene.
        things: 1 or 2; None draws (about half of the scenes have two).
        motion: of the first thing, "collide" for a collision of two; None draws.
        held_out: False for training (never a combination of `HELD_OUT`), True for one of those, None for anything.

    Raises:
        ValueError: a number of things or a motion that does not exist, or a motion that is never held out.
    """
    if things not in (None, 1, 2) or motion not in (None, "collide", *MOTIONS):
        raise ValueError(f"got things={things} and motion={motion!r}, expected 1 or 2 and one of {', '.join(MOTIONS)}, collide")
    if (things == 1 and motion == "collide") or (things == 2 and motion in ORBITS):
        raise ValueError(
            f"got things={things} and motion={motion!r}: collisions have two things, orbits need the frame to themselves"
        )
    if held_out and motion is not None and motion not in {m for _, _, m in HELD_OUT}:
        raise ValueError(f"got held_out=True and motion={motion!r}, of which nothing is held out")
    rng = np.random.RandomState(seed)
    while True:  # about one scene in fifty is held out
        scene = _draw_scene(rng, things, motion)
        if held_out in (None, is_held_out(scene)):
            return scene


def _draw_scene(rng: np.random.RandomState, things: int | None, motion: str | None) -> Scene:
    if motion == "collide" or (motion is None and things != 1 and rng.rand() < 0.10):
        return _collision(rng)
    if things == 2 or (things is None and rng.rand() < 0.42):  # the harder half: attributes must be bound to the right thing
        return _two_things(rng, motion)
    chosen = motion or _pick(rng, MOTIONS)
    thing = _moving(rng, _thing(rng, chosen, set(), list(SIZES)), (0.0, 1.0), (0.0, 1.0))
    return _scene(rng, (thing,), 0)


def _scene(rng: np.random.RandomState, things: tuple[Thing, ...], sounding: int) -> Scene:
    taken = {thing.colour for thing in things}
    background = str(rng.choice([name for name in BACKGROUNDS if name not in taken]))
    motion = things[sounding].motion
    if motion == "collide":
        sound = _pick(rng, {"click": 0.85, "silence": 0.15})
    elif motion in EVENT_MOTIONS:
        sound = _pick(rng, {"thud": 0.31, "knock": 0.27, "ping": 0.32, "silence": 0.10})
    elif motion == "still":
        sound = _pick(rng, {"silence": 0.6, "hum": 0.4})
    else:
        sound = _pick(rng, {"tone": 0.6, "hum": 0.22, "silence": 0.18})
    return Scene(things, background, _jittered(rng, BACKGROUNDS[background]), sound, sounding)


def _two_things(rng: np.random.RandomState, motion: str | None) -> Scene:
    """Each in its own part of the frame, so that nothing is ever hidden; events, if there are any, belong to one of them."""
    fitting = [choices for choices in (SIDE_BY_SIDE, STACKED) if motion is None or motion in choices]
    choices = fitting[rng.randint(len(fitting))]
    first = motion or str(rng.choice(choices))
    second = str(rng.choice([m for m in choices if m not in EVENT_MOTIONS] if first in EVENT_MOTIONS else choices))
    a = _thing(rng, first, set(), ["small", "medium"])
    b = _thing(rng, second, {a.colour}, ["small", "medium"])
    if choices is SIDE_BY_SIDE:
        parts = [((0.0, 0.5), (0.0, 1.0)), ((0.5, 1.0), (0.0, 1.0))]
        swapped = rng.rand() < 0.5
    else:
        split = 0.38 if "bounce" in (first, second) else 0.5  # what bounces needs the room
        parts = [((0.0, 1.0), (0.0, split)), ((0.0, 1.0), (split, 1.0))]
        swapped = first == "bounce" or (second != "bounce" and rng.rand() < 0.5)
    things = tuple(_moving(rng, thing, *part) for thing, part in zip((a, b), parts[::-1] if swapped else parts, strict=True))
    return _scene(rng, things, int(b.motion in EVENT_MOTIONS))


def _collision(rng: np.random.RandomState) -> Scene:
    """Two small equal balls meet head-on, touch, and part again, never leaving the frame."""
    radius, speed = rng.uniform(*SIZES["small"]), str(rng.choice(list(SPEEDS)))
    contact, middle, y = rng.uniform(0.85, 1.20), rng.uniform(0.47, 0.53), rng.uniform(0.2, 0.8)
    room = min(middle, 1 - middle) - 2 * radius
    velocity = {"slow": 0.70, "normal": 0.84, "fast": 0.98}[speed] * room / max(contact, SECONDS - contact)
    things: list[Thing] = []
    for side in (-1, 1):
        ball = _thing(rng, "collide", {t.colour for t in things}, ["small"], shape="circle")
        x, vx = middle + side * radius, -side * velocity
        things.append(_with(ball, radius=radius, speed=speed, x=x, y=y, period=contact, vx=vx))
    return _scene(rng, tuple(things), 0)


def _thing(rng: np.random.RandomState, motion: str, taken: set[str], sizes: Sequence[str], shape: str | None = None) -> Thing:
    colour = str(rng.choice([name for name in COLOURS if name not in taken]))
    size = str(rng.choice(list(sizes)))
    shape = str(rng.choice(SHAPES)) if shape is None else shape
    return Thing(shape, colour, size, rng.uniform(*SIZES[size]), motion, rgb=_jittered(rng, COLOURS[colour]))


def _moving(rng: np.random.RandomState, thing: Thing, xs: tuple[float, float], ys: tuple[float, float]) -> Thing:
    """Give the thing's motion room inside the given part of the frame."""
    side, up, down = (thing.radius * reach * (1.36 if thing.motion == "pulse" else 1.0) for reach in REACH[thing.shape])
    left, right, top, bottom = xs[0] + side, xs[1] - side, ys[0] + up, ys[1] - down
    speed = str(rng.choice(list(SPEEDS), p=[0.28, 0.44, 0.28]))
    x, y = _between(rng, left, right), _between(rng, top, bottom)
    pace = SPEEDS[speed] * rng.uniform(0.94, 1.06)
    m = thing.motion
    if m == "bounce":
        reach = rng.uniform(0.5, 0.8) * (bottom - top)
        return _with(thing, speed=speed, x=x, y=bottom, reach=reach, period=PERIODS["bounce"] * pace, phase=rng.rand())
    if m == "ricochet":
        period, phase = PERIODS["ricochet"] * pace, rng.rand() * 2
        return _with(thing, speed=speed, x=(left + right) / 2, y=y, reach=right - left, period=period, phase=phase)
    if m == "pulse":
        return _with(thing, speed=speed, x=x, y=y, period=PERIODS["pulse"] * pace, phase=rng.rand())
    if m == "drop":
        reach = rng.uniform(0.75, 0.98) * (bottom - top)
        return _with(thing, x=x, y=bottom, reach=reach, period=rng.uniform(0.50, 0.62) * sqrt(reach / 0.6))
    if m in ORBITS:
        radius = min(rng.uniform(0.20, 0.32), (right - left) / 2, (bottom - top) / 2)
        cx, cy = _between(rng, left + radius, right - radius), _between(rng, top + radius, bottom - radius)
        start = 0.75 + rng.uniform(-0.08, 0.08)  # near the top, so that the direction shows at once
        return _with(thing, speed=speed, x=cx, y=cy, reach=radius, period=PERIODS["orbit"] * pace, phase=start % 1)
    if m in SLIDES:
        share = {"slow": 0.62, "normal": 0.80, "fast": 0.97}[speed] * rng.uniform(0.97, 1.03)
        horizontal = m.startswith("slide")
        span = min(share, 1.0) * ((right - left) if horizontal else (bottom - top))
        sign = 1 if m in ("slide right", "fall") else -1
        velocity = sign * span / SECONDS
        x = _between(rng, left + span / 2, right - span / 2) if horizontal else x
        y = y if horizontal else _between(rng, top + span / 2, bottom - span / 2)
        return _with(thing, speed=speed, x=x, y=y, vx=velocity if horizontal else 0.0, vy=0.0 if horizontal else velocity)
    return _with(thing, x=x, y=y)


def _with(thing: Thing, **changes: object) -> Thing:
    return replace(thing, **{k: float(v) if isinstance(v, np.floating) else v for k, v in changes.items()})


def _between(rng: np.random.RandomState, low: float, high: float) -> float:
    return float(rng.uniform(low, high)) if high > low else (low + high) / 2


def _jittered(rng: np.random.RandomState, rgb: tuple[float, float, float]) -> tuple[float, float, float]:
    return tuple(float(np.clip(c + rng.uniform(-0.025, 0.025), 0, 1)) for c in rgb)


def _pick(rng: np.random.RandomState, weights: dict[str, float]) -> str:
    shares = np.array(list(weights.values()))
    return str(rng.choice(list(weights), p=shares / shares.sum()))
