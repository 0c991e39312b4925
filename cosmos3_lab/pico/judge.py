"""What a clip shows: a scene read back from pixels and waveform alone, with rules instead of learned parts.

    read = read_clip(pixels, waveform, ...)   ->  Reading: background, things (colour, shape, size, motion), sound, onsets
    judge(scene, read)                        ->  Verdict: which attributes are right, outline, synchrony, one sentence

On ground truth it is right about everything (tests/pico), so that what it finds wrong in a generated clip is the model's. Times
are in seconds, lengths in units of the frame.

Read next: `score.py`, which judges many clips.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cosmos3_lab.pico.scenes import BACKGROUNDS, COLOURS, EVENT_MOTIONS, SHAPES, Scene

AREA = {"circle": np.pi, "square": 3.24, "triangle": 2.195}  # of a shape, in squared radii
SIZE_LIMITS = (0.136, 0.185)  # radius between small and medium, medium and large
TOLERANCE = 0.11  # seconds between an event and its sound
MARGINS = (0.16, 0.20)  # seconds at the start and end in which events and onsets do not count


@dataclass(frozen=True, eq=False)
class ThingReading:
    """One thing as seen.

    Attributes:
        colour, shape, size, motion: the names of `scenes.py` that fit best.
        radius: median over the frames.
        outline: IoU of the outline with the ideal shape of equal area, mean over the frames that show all of it.
        events: times of contacts or largest sizes.
    """

    colour: str
    shape: str
    size: str
    motion: str
    radius: float
    outline: float
    events: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Reading:
    """A clip as seen and heard.

    Attributes:
        background: nearest name.
        things: largest first, none where nothing stands out.
        sound: of `scenes.SOUNDS`.
        onsets: times at which sounds start.
        seconds: length of the video.
    """

    background: str
    things: tuple[ThingReading, ...]
    sound: str
    onsets: tuple[float, ...]
    seconds: float

    def sentence(self) -> str:
        """What was seen and heard, in words."""
        seen = " and ".join(f"a {t.size} {t.colour} {t.shape} ({t.motion})" for t in self.things) or "nothing"
        return f"I see {seen} on {self.background}; I hear {self.sound}."


@dataclass(frozen=True, eq=False)
class Verdict:
    """How well a clip follows its scene.

    Attributes:
        right: attribute to whether it is right; attributes that do not apply (size of a pulse) are left out. For two things
            the names carry the thing's number.
        sync: F1 of events seen and onsets heard, None where the scene has no event sound.
        outline: mean IoU of the outlines, None where nothing was seen.
        sentence: what was seen and whether the prompt was followed.
    """

    right: Mapping[str, bool]
    sync: float | None
    outline: float | None
    sentence: str

    @property
    def followed(self) -> bool:
        """Whether every attribute is right."""
        return all(self.right.values())


def judge(scene: Scene, reading: Reading) -> Verdict:
    """Compare what was asked for with what was seen and heard.

    Args:
        scene: asked for.
        reading: of the clip.
    """
    right = {"background": reading.background == scene.background, "count": len(reading.things) == len(scene.things)}
    by_colour = {t.colour: t for t in reading.things}
    for i, thing in enumerate(scene.things):
        tag = f" {i + 1}" if len(scene.things) == 2 else ""
        # Two things are told apart by colour; one thing is whatever there is.
        seen = by_colour.get(thing.colour) if len(scene.things) == 2 else next(iter(reading.things), None)
        wanted = {"colour": thing.colour, "shape": thing.shape, "motion": thing.motion}
        if thing.motion != "pulse":
            wanted["size"] = thing.size
        right |= {name + tag: seen is not None and getattr(seen, name) == value for name, value in wanted.items()}
    right["sound"] = reading.sound == scene.sound
    sync = None
    if scene.things[scene.sounding].motion in EVENT_MOTIONS and scene.sound not in ("silence", "hum", "tone"):
        seen = by_colour.get(scene.things[scene.sounding].colour) or next(iter(reading.things), None)
        sync = synchrony(seen.events if seen else (), reading.onsets, reading.seconds)
    wrong = [name for name, ok in right.items() if not ok]
    ending = "The prompt was followed." if not wrong else f"The prompt was not followed: {', '.join(wrong)}."
    outline = float(np.mean([t.outline for t in reading.things])) if reading.things else None
    return Verdict(right, sync, outline, f"{reading.sentence()} {ending}")


def synchrony(events: tuple[float, ...], onsets: tuple[float, ...], seconds: float) -> float:
    """F1 of events and onsets that lie within 0.11 s of each other; 1 where there is neither.

    Args:
        events: seen, in seconds.
        onsets: heard, in seconds.
        seconds: length of the clip; both ends are left out, where either half of a pair may be cut off.
    """
    low, high = MARGINS[0], seconds - MARGINS[1]

    def matched(these: tuple[float, ...], those: tuple[float, ...]) -> tuple[int, int]:
        inside = [t for t in these if low <= t <= high]
        return sum(any(abs(t - other) <= TOLERANCE for other in those) for t in inside), len(inside)

    (seen_hit, seen), (heard_hit, heard) = matched(events, onsets), matched(onsets, events)
    if seen + heard == 0:
        return 1.0
    precision, recall = heard_hit / heard if heard else 0.0, seen_hit / seen if seen else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def read_clip(
    pixels: Float[np.ndarray, "3 frames height width"],
    waveform: Float[np.ndarray, "channels samples"] | None,
    *,
    fps: float = 16.0,
    sample_rate: int = 16000,
) -> Reading:
    """Read a clip.

    Args:
        pixels: in [0, 1].
        waveform: in [-1, 1]; None counts as silence.
        fps: frames a second.
        sample_rate: of the waveform in Hz.
    """
    frames = np.moveaxis(np.asarray(pixels, dtype=np.float64), 0, -1)  # frames height width 3
    background, rgb = _background(frames)
    colours = _colours(frames, rgb, background)
    tracks = [_track(frames, rgb, name, colours) for name in colours]
    things = tuple(_thing(track, [o for o in tracks if o is not track], fps) for track in tracks)
    mono = np.zeros(1) if waveform is None else np.asarray(waveform, dtype=np.float64).mean(axis=0)
    sound, onsets = read_sound(mono, sample_rate)
    return Reading(background, things, sound, onsets, len(frames) / fps)


# -------------------------------------------------------------------------------------------------------------- seeing


@dataclass(frozen=True, eq=False)
class _Track:
    """One thing in every frame: coverage `[frames, height, width]`, centre, area (0 where it is not seen)."""

    colour: str
    cover: np.ndarray
    x: np.ndarray
    y: np.ndarray
    area: np.ndarray


def _nearest(rgb: np.ndarray, palette: Mapping[str, tuple[float, float, float]]) -> str:
    return min(palette, key=lambda name: float(np.sum((np.array(palette[name]) - rgb) ** 2)))


def _background(frames: np.ndarray) -> tuple[str, np.ndarray]:
    border = np.concatenate([frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1]], axis=1)
    rgb = np.median(border.reshape(-1, 3), axis=0)
    return _nearest(rgb, BACKGROUNDS), rgb


def _colours(frames: np.ndarray, background: np.ndarray, name: str) -> dict[str, np.ndarray]:
    """The colours of the one or two things, most pixels first, by name and as they are in this clip."""
    away = np.abs(frames - background).max(axis=-1)
    mask = away > max(0.25 * np.percentile(away, 99.5), 0.12)
    core = mask.copy()  # without the rim, where colours are mixed
    for axis in (1, 2):
        for shift in (1, -1):
            core &= np.roll(mask, shift, axis)
    palette = {colour: rgb for colour, rgb in COLOURS.items() if colour != name}
    table = np.array(list(palette.values()))
    found = frames[core]
    if len(found) == 0:
        return {}
    index = np.argmin(((found[:, None] - table) ** 2).sum(-1), axis=1)
    counts = np.bincount(index, minlength=len(table))
    most = [i for i in np.argsort(-counts)[:2] if counts[i] > 0.12 * counts.sum() and counts[i] > 5 * len(frames)]
    return {list(palette)[i]: np.median(found[index == i], axis=0) for i in most}


def _track(frames: np.ndarray, background: np.ndarray, colour: str, colours: dict[str, np.ndarray]) -> _Track:
    """How much of each pixel the thing covers: where its colour lies between the background's and the thing's own."""
    cover, distance = _mix(frames, background, colours[colour])
    for other in colours.keys() - {colour}:
        other_cover, other_distance = _mix(frames, background, colours[other])
        cover = np.where((other_distance < distance) & (other_cover > 0.2), 0.0, cover)
    cover = np.where(cover < 0.08, 0.0, cover)
    x, y, area = _centres(cover)
    if len(colours) == 2:  # what lies further away than any shape reaches is the other thing's rim
        grid = (np.arange(frames.shape[1]) + 0.5) / frames.shape[1]
        away = np.hypot(grid[None, None, :] - x[:, None, None], grid[None, :, None] - y[:, None, None])
        cover = np.where(away < 1.75 * np.sqrt(area / np.pi)[:, None, None], cover, 0.0)
        x, y, area = _centres(cover)
    return _Track(colour, cover, x, y, area)


def _centres(cover: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and area of what is covered, in every frame."""
    grid = (np.arange(cover.shape[1]) + 0.5) / cover.shape[1]
    weight = np.maximum(cover.sum(axis=(1, 2)), 1e-9)
    return (cover.sum(axis=1) @ grid) / weight, (cover.sum(axis=2) @ grid) / weight, cover.mean(axis=(1, 2))


def _mix(frames: np.ndarray, background: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of `colour` in each pixel, and how far the pixel is from any mixture of the two."""
    line = colour - background
    share = np.clip((frames - background) @ line / (line @ line), 0, 1)
    return share, np.linalg.norm(frames - background - share[..., None] * line, axis=-1)


def _thing(track: _Track, others: list[_Track], fps: float) -> ThingReading:
    shown = track.area > 0.35 * np.median(track.area)
    shape, outline = _shape(track, others)
    radius = float(np.median(np.sqrt(track.area[shown] / AREA[shape])))
    size = ("small", "medium", "large")[int(np.searchsorted(SIZE_LIMITS, radius))]
    motion, events = _motion(track, others, fps)
    return ThingReading(track.colour, shape, size, motion, radius, outline, events)


def _shape(track: _Track, others: list[_Track]) -> tuple[str, float]:
    """The shape whose ideal outline fits best over frames that show all of it, and how well."""
    side = track.cover.shape[-1]
    grid = (np.arange(side) + 0.5) / side
    scores: dict[str, list[float]] = {shape: [] for shape in SHAPES}
    edges = [track.cover[:, 0], track.cover[:, :, 0], track.cover[:, :, -1]]  # a thing on the floor may touch the last row
    whole = [i for i in range(len(track.cover)) if track.area[i] > 0 and max(float(e[i].max()) for e in edges) < 0.5]
    apart = [i for i in whole if all(np.hypot(track.x[i] - o.x[i], track.y[i] - o.y[i]) > 0.3 for o in others)] or whole
    chosen = apart[:: max(1, len(apart) // 9)] or list(range(0, len(track.cover), 4))
    for i in chosen:
        seen = track.cover[i] > 0.5
        dx, dy = grid[None, :] - track.x[i], grid[:, None] - track.y[i]
        for shape in SHAPES:
            ideal = _inside(shape, dx, dy, np.sqrt(track.area[i] / AREA[shape]))
            scores[shape].append(float((seen & ideal).sum() / max((seen | ideal).sum(), 1)))
    best = max(SHAPES, key=lambda shape: np.mean(scores[shape]))
    return best, float(np.mean(scores[best]))


def _inside(shape: str, dx: np.ndarray, dy: np.ndarray, radius: float) -> np.ndarray:
    if shape == "circle":
        return dx**2 + dy**2 < radius**2
    if shape == "square":
        return (np.abs(dx) < 0.9 * radius) & (np.abs(dy) < 0.9 * radius)
    return (np.sqrt(0.75) * np.abs(dx) - 0.5 * dy < 0.65 * radius) & (dy < 0.65 * radius)


# -------------------------------------------------------------------------------------------------------------- moving


def _motion(track: _Track, others: list[_Track], fps: float) -> tuple[str, tuple[float, ...]]:
    x, y, width = track.x, track.y, np.sqrt(track.area)
    range_x, range_y = np.ptp(x), np.ptp(y)
    growth = np.percentile(width, 97) / max(np.percentile(width, 3), 1e-6)
    if growth > 1.35 and max(range_x, range_y) < 0.13:
        return "pulse", _peaks(width, fps, np.ptp(width) * 0.4)
    if max(range_x, range_y) < 0.06:
        return "still", ()
    if min(range_x, range_y) > 0.15 and min(range_x, range_y) / max(range_x, range_y) > 0.45:
        angle = np.unwrap(np.arctan2(y - (y.max() + y.min()) / 2, x - (x.max() + x.min()) / 2))
        return ("orbit clockwise" if angle[-1] > angle[0] else "orbit counterclockwise"), ()
    along = x if range_x > range_y else y
    step = np.diff(along)
    steady = abs(step.sum()) / max(np.abs(step).sum(), 1e-9)
    if along is x:
        if steady > 0.85:
            return ("slide right" if step.sum() > 0 else "slide left"), ()
        meeting = _meeting(track, others, fps)
        if meeting is not None:
            return "collide", (meeting,)
        return "ricochet", tuple(sorted(_peaks(x, fps, range_x * 0.25) + _peaks(-x, fps, range_x * 0.25)))
    if steady > 0.85:
        return ("fall" if step.sum() > 0 else "rise"), ()
    contacts = _peaks(y, fps, range_y * 0.12)
    height = y.max() - y
    later = height[int(contacts[0] * fps) + 1 :].max() if contacts else 0.0
    falls_first = int(np.argmax(height)) <= 2
    return ("drop" if falls_first and contacts and later < 0.78 * height[0] else "bounce"), contacts


def _meeting(track: _Track, others: list[_Track], fps: float) -> float | None:
    """When two things that come from both sides at one height touch, None if they do not."""
    for other in others:
        if abs(np.median(track.y) - np.median(other.y)) > 0.1:
            continue
        gap = np.hypot(track.x - other.x, track.y - other.y)
        nearest = int(np.argmin(gap))
        touching = gap[nearest] < 1.25 * (np.sqrt(track.area[nearest] / np.pi) + np.sqrt(other.area[nearest] / np.pi))
        if touching and 2 < nearest < len(gap) - 3 and gap[0] > gap[nearest] + 0.05 < gap[-1]:
            return _refined(-gap, nearest) / fps
    return None


def _peaks(curve: np.ndarray, fps: float, prominence: float) -> tuple[float, ...]:
    """Times of the local maxima that stand out by `prominence`, ends of the clip left out."""
    found = []
    for i in range(1, len(curve) - 1):
        if curve[i] < curve[i - 1] or curve[i] <= curve[i + 1]:
            continue
        left = curve[i] - curve[max(0, i - 10) : i].min()
        right = curve[i] - curve[i + 1 : i + 11].min()
        if min(left, right) >= prominence * 0.35 and max(left, right) >= prominence:
            found.append(_refined(curve, i) / fps)
    return tuple(found)


def _refined(curve: np.ndarray, i: int) -> float:
    """Where the curve's two flanks meet: contacts are corners, not rounded tops, so lines fit better than a parabola."""
    if not 2 <= i < len(curve) - 2:
        return float(i)
    rise, fall = curve[i - 1] - curve[i - 2], curve[i + 1] - curve[i + 2]  # slopes towards the corner, both positive
    if rise + fall <= 1e-9:
        return float(i)
    # left line through (i-1) with slope `rise`, right line through (i+1) with slope `-fall`
    meet = (curve[i + 1] - curve[i - 1] + fall - rise) / (rise + fall)
    return float(np.clip(i + meet, i - 1, i + 1))


# ------------------------------------------------------------------------------------------------------------- hearing


def read_sound(mono: Float[np.ndarray, " samples"], sample_rate: int) -> tuple[str, tuple[float, ...]]:
    """The kind of sound and the times at which it starts.

    Args:
        mono: waveform in [-1, 1].
        sample_rate: in Hz.

    Returns:
        `(sound, onsets)`, with a name of `scenes.SOUNDS` and seconds.
    """
    hop = sample_rate // 200  # 5 ms
    count = len(mono) // hop
    if count < 10:
        return "silence", ()
    envelope = np.sqrt((mono[: count * hop].reshape(count, hop) ** 2).mean(axis=1))
    if np.sqrt((mono**2).mean()) < 0.012:
        return "silence", ()
    if (envelope > 0.35 * envelope.max()).mean() > 0.62:
        pitch = _pitches(mono, sample_rate)
        steady = np.percentile(pitch, 90) / max(np.percentile(pitch, 10), 1.0) < 1.06
        return ("hum" if np.median(pitch) < 215 and steady else "tone"), ()
    onsets, last = [], -1.0
    for i in range(1, count):
        time = i * hop / sample_rate
        if envelope[i] > 0.05 and envelope[i] > 2.2 * envelope[max(0, i - 8) : i].min() + 0.02 and time - last > 0.15:
            onsets.append(time)
            last = time
    peak = _peak_hertz(mono, sample_rate)
    sound = "thud" if peak < 185 else "knock" if peak < 560 else "ping" if peak < 1500 else "click"
    return sound, tuple(onsets)


def _peak_hertz(mono: np.ndarray, sample_rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(mono * np.hanning(len(mono))))
    return float(np.fft.rfftfreq(len(mono), 1 / sample_rate)[np.argmax(spectrum)])


def _pitches(mono: np.ndarray, sample_rate: int) -> np.ndarray:
    """Loudest frequency of every 64 ms."""
    width = sample_rate * 64 // 1000
    return np.array([_peak_hertz(mono[i : i + width], sample_rate) for i in range(0, len(mono) - width, width)])
