"""The text of a prompt: what the user wrote, what a metadata rule adds, and what "no negative prompt" means.

The model was trained on captions that state duration, frame rate and size. For a JSON prompt they are fields; for plain text,
sentences behind it. The three reference implementations disagree on the details (`presets.py`), so each rule is named here.

Read next: `prompt.py`, which makes tokens of the text.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from cosmos3_lab.configs import check_choice, whole_number
from cosmos3_lab.sizes import check_fps
from cosmos3_lab.untrusted import CheckpointError, has_file, read_json

Metadata = Literal["inject", "sentences", "none"]
NegativeMetadata = Literal["none", "same", "inverse"]
NegativeDefault = Literal["structured", "empty"]

LONGEST_PROMPT = 100_000  # characters; the time that attention takes grows with the square
LONGEST_NEGATIVE = 40_000  # characters of a checkpoint's negative prompt; every step attends to all of them

DURATION = "The video is {duration:.1f} seconds long and is of {fps:.0f} FPS."
RESOLUTION = "This {medium} is of {height}x{width} resolution."  # height first, as the model was trained
INVERSE_DURATION = "The video is not {duration:.1f} seconds long and is not of {fps:.0f} FPS."
INVERSE_RESOLUTION = "This {medium} is not of {height}x{width} resolution."

# sha256 of `json.dumps(...)` of the negative prompt that PhyAI and NVIDIA's framework bundle. The text itself is not part
# of this project; the hash says whether a checkpoint ships the same one.
REFERENCE_NEGATIVE_SHA256 = "66fc51e1267bacb290659a84717bc72a859e09d0cd021e74b25847bdcd8e72db"


@dataclass(frozen=True)
class Segment:
    """A piece of the user text. `role` is "prompt" (written by the user) or "metadata" (added by a rule)."""

    role: Literal["prompt", "metadata"]
    text: str


@dataclass(frozen=True)
class NegativePrompt:
    """What `negative_prompt=None` means for a checkpoint.

    Attributes:
        text: the negative prompt.
        source: the file that it came from, in words.
        is_reference: whether it is, byte for byte, the text that PhyAI and NVIDIA's framework use.
    """

    text: str
    source: str
    is_reference: bool


@dataclass(frozen=True)
class Clip:
    """What the metadata states: frames, pixels, frames a second."""

    num_frames: int
    height: int
    width: int
    fps: float

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.num_frames / self.fps


def default_negative_prompt(checkpoint_dir: str | Path) -> NegativePrompt:
    """The structured negative prompt of a checkpoint, else the lab's own.

    Args:
        checkpoint_dir: the checkpoint folder; its `assets/negative_prompt.json` is used when it is there.

    Raises:
        CheckpointError: the file is not a JSON object, or a very long one.
    """
    path = Path(checkpoint_dir) / "assets" / "negative_prompt.json"
    if has_file(path):
        fields, source = read_json(path), f"the checkpoint's {path.parent.name}/{path.name}"
    else:
        content = resources.files("cosmos3_lab").joinpath("negative_prompt.json").read_bytes()
        fields, source = json.loads(content), "the lab's own structured negative prompt"
    if "_class_name" in fields:
        raise CheckpointError(f"{path} is the config of a {fields['_class_name']!r}, not a prompt; files were swapped")
    text = json.dumps(fields)
    if len(text) > LONGEST_NEGATIVE:
        raise CheckpointError(f"{path} has {len(text)} characters, expected at most {LONGEST_NEGATIVE}; mend or remove the file")
    return NegativePrompt(text, source, sha256(text.encode()).hexdigest() == REFERENCE_NEGATIVE_SHA256)


def resolve_negative_prompt(negative_prompt: str | None, default: NegativeDefault, checkpoint_dir: str | Path) -> NegativePrompt:
    """The negative prompt that a run uses, and where it came from.

    Args:
        negative_prompt: as given; None asks for the default.
        default: the "structured" one of `default_negative_prompt`, or "empty".
        checkpoint_dir: the checkpoint folder.
    """
    if negative_prompt is None and default == "structured":
        return default_negative_prompt(checkpoint_dir)
    source = "given" if negative_prompt else "empty"
    return NegativePrompt(negative_prompt or "", source, is_reference=False)


def cosmos3_generation_caption(
    prompt: str,
    *,
    num_frames: int,
    height: int,
    width: int,
    fps: float,
    metadata: Metadata = "inject",
    aspect_ratio: str | None = None,
) -> str:
    """The prompt with its duration, frame rate and size.

    Args:
        prompt: plain text, or a JSON object (the form the model was trained on).
        num_frames, height, width, fps: of the clip, in frames, pixels and frames a second.
        metadata: "inject" (PhyAI, NVIDIA) writes fields into a JSON object and sentences behind plain text; "sentences"
            (diffusers) always writes sentences; "none" leaves the prompt as it is.
        aspect_ratio: for JSON prompts, such as "16,9"; left out when None.

    Raises:
        ValueError: the prompt is not text, or a number cannot be one of a clip.
    """
    check_text("prompt", prompt)
    check_choice("metadata", metadata, Metadata)
    check_fps(fps)
    size = (whole_number(name, n) for name, n in (("num_frames", num_frames), ("height", height), ("width", width)))
    segments = positive_segments(prompt, Clip(*size, fps), metadata, aspect_ratio)
    return "".join(s.text for s in segments)


def check_text(name: str, text: object) -> None:
    """Refuse what is not text that a tokenizer can read.

    Args:
        name: what it is, for the message.
        text: given.

    Raises:
        ValueError: not a `str`, with half of a surrogate pair in it, or very long.
    """
    if not isinstance(text, str):
        raise ValueError(f"got a {name} of type {type(text).__name__}, expected text")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"got a {name} that is not text: character {error.start} is half of a surrogate pair") from error
    if len(text) > LONGEST_PROMPT:
        raise ValueError(f"got a {name} of {len(text)} characters, expected at most {LONGEST_PROMPT}; shorten it")


def _sentences(clip: Clip, duration: str, resolution: str, *, medium: str) -> str:
    """The duration sentence (not for a still image) and the resolution sentence."""
    size = resolution.format(medium=medium, height=clip.height, width=clip.width)
    return size if clip.num_frames == 1 else f"{duration.format(duration=clip.seconds, fps=clip.fps)} {size}"


def positive_segments(prompt: str, clip: Clip, metadata: Metadata, aspect_ratio: str | None = None) -> tuple[Segment, ...]:
    """The positive user text in pieces: what the user wrote and what the metadata rule added.

    Args:
        prompt: plain text or a JSON object.
        clip: what the metadata states.
        metadata, aspect_ratio: see `cosmos3_generation_caption`.
    """
    if metadata == "none":
        return (Segment("prompt", prompt),)
    if metadata == "sentences":
        medium = "image" if clip.num_frames == 1 else "video"
        return _behind(prompt, _sentences(clip, DURATION, RESOLUTION, medium=medium), after_nothing="")
    fields = _json_object(prompt)
    if fields is None:
        return _behind(prompt.strip(), _sentences(clip, DURATION, RESOLUTION, medium="video"), after_nothing=". ")
    return _injected(fields, _metadata_fields(clip, aspect_ratio), drop=() if clip.num_frames > 1 else ("duration", "fps"))


def negative_segments(text: str, clip: Clip, metadata: NegativeMetadata) -> tuple[Segment, ...]:
    """The negative user text in pieces.

    Args:
        text: of the negative prompt; "" stays empty but for the inverse sentences.
        clip: what the metadata states.
        metadata: see `Cosmos3Processor`.
    """
    if metadata == "inverse":
        medium = "image" if clip.num_frames == 1 else "video"
        sentences = _sentences(clip, INVERSE_DURATION, INVERSE_RESOLUTION, medium=medium)
        return _behind(text, sentences, after_nothing="")
    if metadata == "none" or not text.strip():  # "" stays empty: the unconditional prompt of the literature
        return (Segment("prompt", text),)
    return _behind(text.strip(), _sentences(clip, DURATION, RESOLUTION, medium="video"), after_nothing=". ")


def _behind(text: str, sentences: str, *, after_nothing: str) -> tuple[Segment, ...]:
    """The references join with '. ' after removing every trailing full stop; they differ when nothing is left."""
    base = text.rstrip(".")
    return (Segment("prompt", base), Segment("metadata", (". " if base else after_nothing) + sentences))


def _metadata_fields(clip: Clip, aspect_ratio: str | None) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if clip.num_frames > 1:
        fields |= {"duration": f"{int(clip.seconds)}s", "fps": float(clip.fps)}
    fields["resolution"] = {"H": int(clip.height), "W": int(clip.width)}
    if aspect_ratio is not None:
        fields["aspect_ratio"] = aspect_ratio
    return fields


def _injected(prompt: dict[str, Any], added: dict[str, Any], drop: tuple[str, ...]) -> tuple[Segment, ...]:
    """`json.dumps` of the prompt with the added fields (existing keys keep their place), in pieces."""
    merged = {k: v for k, v in {**prompt, **added}.items() if k in added or k not in drop}
    segments = [Segment("prompt", "{")]
    for i, (key, value) in enumerate(merged.items()):
        comma = ", " if i else ""
        role: Literal["prompt", "metadata"] = "metadata" if key in added else "prompt"
        segments.append(Segment(role, f"{comma}{json.dumps(key)}: {json.dumps(value)}"))
    return (*segments, Segment("prompt", "}"))


def _json_object(text: str | bytes) -> dict[str, Any] | None:
    """The parsed object, or None for plain text (arrays, numbers and strings count as plain text)."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
