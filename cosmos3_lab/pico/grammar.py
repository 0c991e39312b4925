"""How a scene is told: captions with synonyms, in several word orders, long and short.

    a small red circle bounces slowly on a blue background; low thuds
    on a gray background, a green square slides to the left while a pink ball stays still, with no sound

Everything that a caption says is true; it may leave out what is usual (medium size, normal speed, the sound that one expects).

Read next: `world.py`, which draws and plays the same scene.
"""

import numpy as np

from cosmos3_lab.pico.scenes import Scene, Thing

SHAPE_WORDS = {
    "circle": ("circle", "ball", "disc", "circle"),
    "square": ("square", "box", "block", "square"),
    "triangle": ("triangle", "triangle", "triangle", "pyramid"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "medium": ("medium", "medium-sized"), "large": ("large", "big", "huge")}
SPEED_WORDS = {"slow": ("slowly", "slowly", "at a slow pace"), "fast": ("quickly", "fast", "rapidly")}
COLOUR_WORDS = {"gray": ("gray", "grey")}

MOTION_WORDS = {
    "still": ("stays still", "does not move", "rests", "stands still"),
    "bounce": ("bounces", "bounces up and down", "hops on the floor", "keeps bouncing"),
    "ricochet": ("bounces from side to side", "goes back and forth between the walls", "ricochets between the walls"),
    "slide right": ("slides to the right", "moves right", "drifts from left to right"),
    "slide left": ("slides to the left", "moves left", "drifts from right to left"),
    "rise": ("rises", "slides up", "moves upwards", "floats up"),
    "fall": ("falls", "slides down", "moves downwards", "sinks"),
    "orbit clockwise": ("orbits clockwise", "circles clockwise", "goes around clockwise"),
    "orbit counterclockwise": ("orbits counterclockwise", "circles counterclockwise", "goes around counterclockwise"),
    "pulse": ("pulses", "grows and shrinks", "gets bigger and smaller"),
    "drop": ("is dropped and bounces lower each time", "drops and bounces lower and lower", "is let go and comes to rest"),
}
COLLIDE_WORDS = ("collide", "bump into each other", "hit each other and bounce back", "crash into each other")

SOUND_WORDS = {
    "thud": ("low thuds", "deep thuds", "thuds", "dull thumps"),
    "knock": ("knocks", "wooden knocks", "a knock at each hit", "knocking"),
    "ping": ("high pings", "bright pings", "a bell at each hit", "pings"),
    "click": ("a click", "a click when they touch", "a sharp click"),
    "tone": ("a tone follows its height", "a whistle follows its height", "its pitch follows its height"),
    "hum": ("a hum", "humming", "a steady hum", "a low hum"),
    "silence": ("silence", "no sound", "it is silent", "quiet"),
}
USUAL_SOUND = {"bounce": "thud", "ricochet": "knock", "pulse": "ping", "drop": "thud", "collide": "click", "still": "silence"}
SOUND_MARKS = ("; ", ", ", ". ", ", with ")  # between the rest of a caption and its sound


def tell(scene: Scene, seed: int) -> str:
    """A caption of the scene; the same seed gives the same words.

    Args:
        scene: to tell.
        seed: of the choice of words.
    """
    rng = np.random.RandomState(seed)
    # A collision gives both things one verb.
    if scene.things[0].motion == "collide":
        a, b = (_noun(rng, thing) for thing in scene.things)
        action = f"{a} and {b} {_word(rng, COLLIDE_WORDS)}"
    else:
        joint = _word(rng, (" while ", " and ", ", and ")) if len(scene.things) == 2 else ""
        action = joint.join(_clause(rng, thing) for thing in scene.things)
    background = f"{_word(rng, COLOUR_WORDS.get(scene.background, (scene.background,)))} background"
    article = "an" if background[0] in "aeiou" else "a"
    caption = _ordered(rng, action, f"{article} {background}", _sound_words(rng, scene))
    return caption[0].upper() + caption[1:] + "." if rng.rand() < 0.15 else caption


def template(caption: str) -> str:
    """Which word order a caption of `tell` has: where the background stands, and behind what the sound.

        a red circle bounces on a blue background; low thuds    ->  background last, sound behind ';'
        On a blue background a red circle bounces.              ->  background first without comma, sound unsaid

    Args:
        caption: told by `tell`.
    """
    text = caption.lower()
    place = "last"
    if text.startswith(("on ", "against ", "in front of ")):
        place = "first with comma" if "background," in text else "first without comma"
    endings = {mark: tuple(mark + words for sound in SOUND_WORDS.values() for words in sound) for mark in SOUND_MARKS}
    marks = [mark.strip(", ") or "," for mark, ends in endings.items() if text.removesuffix(".").endswith(ends)]
    return f"background {place}, sound {f'behind {marks[0]!r}' if marks else 'unsaid'}"


def _ordered(rng: np.random.RandomState, action: str, background: str, sound: str) -> str:
    """Background first or last; the sound behind ';', ',', 'with', or in a sentence of its own."""
    if rng.rand() < 0.22:
        comma = "," if rng.rand() < 0.6 else ""
        told = f"{_word(rng, ('on', 'against', 'in front of'))} {background}{comma} {action}"
    else:
        told = f"{action} {_word(rng, ('on', 'on', 'against', 'in front of'))} {background}"
    if not sound:
        return told
    if rng.rand() < 0.12 and not sound.startswith(("it ", "its ")) and "follows" not in sound and sound != "quiet":
        return f"{told}, with {sound}"
    return told + _word(rng, ("; ", "; ", ", ", ". ")) + sound


def _sound_words(rng: np.random.RandomState, scene: Scene) -> str:
    motion = scene.things[scene.sounding].motion
    if USUAL_SOUND.get(motion) == scene.sound and rng.rand() < 0.15:
        return ""
    return _word(rng, SOUND_WORDS[scene.sound])


def _clause(rng: np.random.RandomState, thing: Thing) -> str:
    verb = _word(rng, MOTION_WORDS[thing.motion])
    if thing.motion not in ("still", "drop", "collide") and (thing.speed != "normal") and rng.rand() < 0.85:
        verb = f"{verb} {_word(rng, SPEED_WORDS[thing.speed])}"
    return f"{_noun(rng, thing)} {verb}"


def _noun(rng: np.random.RandomState, thing: Thing) -> str:
    unsaid = thing.size == "medium" and rng.rand() < 0.7
    words = [_word(rng, COLOUR_WORDS.get(thing.colour, (thing.colour,))), _word(rng, SHAPE_WORDS[thing.shape])]
    if not unsaid:
        words.insert(0, _word(rng, SIZE_WORDS[thing.size]))
    return f"{'an' if words[0][0] in 'aeiou' else 'a'} {' '.join(words)}"


def _word(rng: np.random.RandomState, words: tuple[str, ...]) -> str:
    return words[rng.randint(len(words))]
