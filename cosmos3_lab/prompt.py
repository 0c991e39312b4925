"""The first arrow: a sentence becomes token ids.

The user's text gets metadata (`captions.py`), is wrapped in the checkpoint's own chat template, and is tokenized; then come
two boundary tokens, the end-of-turn `<|im_end|>` and `<|vision_start|>`, after which the model was trained to see media. The
negative prompt goes the same way with rules of its own.

Read next: `request.py` (what else is asked for), `transformer.py` (what reads the ids).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from cosmos3_lab.captions import (
    Clip,
    Metadata,
    NegativeDefault,
    NegativeMetadata,
    Segment,
    check_text,
    negative_segments,
    positive_segments,
    resolve_negative_prompt,
)
from cosmos3_lab.configs import check_choice, whole_number
from cosmos3_lab.showing import Shown
from cosmos3_lab.sizes import check_fps, effective_num_frames
from cosmos3_lab.untrusted import CheckpointError, has_file, parse_object, read_text

VISION_START = "<|vision_start|>"
MAX_TOKENIZER = 64_000_000  # bytes of a file; Nano's have 11 million


@dataclass(frozen=True, eq=False)
class Cosmos3TokenizedPrompt(Shown):
    """Token ids of one prompt, ready for the UND tower.

    Attributes:
        text_ids: `[1, S]` int64, EOS and `<|vision_start|>` included.
        text_mask: `[1, S]` int64, ones (batch 1 needs no padding).
        text: the user text with its metadata, exactly as it went into the chat template.
    """

    text_ids: Int64[Tensor, "1 s_text"]
    text_mask: Int64[Tensor, "1 s_text"]
    text: str = ""

    def __repr__(self) -> str:
        return f"Cosmos3TokenizedPrompt({self.text_ids.shape[1]} tokens, text={self.text[:60]!r})"


@dataclass(frozen=True)
class TokenRow:
    """One token, for looking. `role` is "template", "system", "prompt", "metadata" or "boundary"."""

    index: int
    id: int
    string: str
    role: str


class Cosmos3Processor:
    """Turns prompts into token ids with the checkpoint's tokenizer.

    Args:
        tokenizer_dir: the checkpoint's `text_tokenizer/` folder; its parent is asked for `assets/negative_prompt.json`.
        fps, num_frames, height, width: of the clip, stated to the model in words. `num_frames` is rounded down to 4k + 1.
        append_metadata: False turns all metadata off.
        system_prompt: text of a system message, None for none.
        metadata: see `cosmos3_generation_caption`.
        negative_metadata: "none" (PhyAI), "same" sentences as a plain prompt (NVIDIA), or "inverse" sentences (diffusers).
        negative_default: what `negative_prompt=None` means: the "structured" one of `default_negative_prompt`, or "empty".
        aspect_ratio: stated in JSON prompts, such as "16,9"; left out when None.
        temporal: video frames per latent frame.

    Raises:
        CheckpointError: the folder holds no tokenizer that this needs.
        ValueError: a size is not positive, or there is no such choice.
    """

    def __init__(
        self,
        tokenizer_dir: str | Path,
        *,
        fps: float = 24.0,
        num_frames: int = 189,
        height: int = 720,
        width: int = 1280,
        append_metadata: bool = True,
        system_prompt: str | None = None,
        metadata: Metadata = "inject",
        negative_metadata: NegativeMetadata = "same",
        negative_default: NegativeDefault = "structured",
        aspect_ratio: str | None = None,
        temporal: int = 4,
    ) -> None:
        check_fps(fps)
        check_choice("metadata", metadata, Metadata)
        check_choice("negative_metadata", negative_metadata, NegativeMetadata)
        check_choice("negative_default", negative_default, NegativeDefault)
        height, width = whole_number("height", height), whole_number("width", width)
        if system_prompt is not None:
            check_text("system prompt", system_prompt)
        self.clip = Clip(effective_num_frames(num_frames, temporal=temporal), height, width, float(fps))
        self.aspect_ratio = aspect_ratio
        self.checkpoint_dir = Path(tokenizer_dir).parent
        self.system_prompt = system_prompt
        self.metadata: Metadata = metadata if append_metadata else "none"
        self.negative_metadata: NegativeMetadata = negative_metadata if append_metadata else "none"
        self.negative_default = negative_default
        self.tokenizer = _load_tokenizer(Path(tokenizer_dir))
        self.boundary_ids = (self.tokenizer.eos_token_id, self.tokenizer.convert_tokens_to_ids(VISION_START))

    def tokenize(self, prompt: str, *, device: torch.device | str = "cpu") -> Cosmos3TokenizedPrompt:
        """Token ids of the (positive) prompt.

        Raises:
            ValueError: the prompt is empty.
        """
        return self._tokenize("".join(s.text for s in self.segments(prompt)), device)

    def tokenize_negative(
        self, negative_prompt: str | None = None, *, device: torch.device | str = "cpu"
    ) -> Cosmos3TokenizedPrompt:
        """Token ids of the negative prompt; None is this processor's default, "" is empty."""
        return self._tokenize("".join(s.text for s in self.negative_segments(negative_prompt)), device)

    def tokenize_pair(
        self, prompt: str, negative_prompt: str | None = None, *, device: torch.device | str = "cpu"
    ) -> tuple[Cosmos3TokenizedPrompt, Cosmos3TokenizedPrompt]:
        """Token ids of the prompt and of the negative prompt, `(cond, uncond)`."""
        return self.tokenize(prompt, device=device), self.tokenize_negative(negative_prompt, device=device)

    def segments(self, prompt: str) -> tuple[Segment, ...]:
        """The positive user text in pieces: what the user wrote and what the metadata rule added.

        Raises:
            ValueError: the prompt is empty, or is not text.
        """
        check_text("prompt", prompt)
        if not prompt.strip():
            raise ValueError("got an empty prompt, expected a description of the video, for example 'a red ball bounces'")
        return positive_segments(prompt, self.clip, self.metadata, self.aspect_ratio)

    def negative_segments(self, negative_prompt: str | None = None) -> tuple[Segment, ...]:
        """The negative user text in pieces; None is this processor's default, "" is empty."""
        text = resolve_negative_prompt(negative_prompt, self.negative_default, self.checkpoint_dir).text
        check_text("negative prompt", text)
        return negative_segments(text, self.clip, self.negative_metadata)

    def render(self, system: str | None, user: str) -> str:
        """The chat as one string: the checkpoint's template around a system message (None for none) and the user's text."""
        messages = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": user})
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _tokenize(self, text: str, device: torch.device | str) -> Cosmos3TokenizedPrompt:
        rendered = self.render(self.system_prompt, text)
        ids = [*self.tokenizer(rendered, add_special_tokens=False)["input_ids"], *self.boundary_ids]
        text_ids = torch.tensor([ids], dtype=torch.int64, device=device)
        return Cosmos3TokenizedPrompt(text_ids, torch.ones_like(text_ids), text)

    def __repr__(self) -> str:
        c = self.clip
        return (
            f"Cosmos3Processor({c.num_frames} frames {c.height}x{c.width} at {c.fps:g} fps, metadata={self.metadata!r}, "
            f"negative_metadata={self.negative_metadata!r}, system_prompt={self.system_prompt!r})"
        )


def token_table(processor: Cosmos3Processor, prompt: str | None = None, *, negative_prompt: str | None = None) -> list[TokenRow]:
    """Every token with its id, string and role, for looking.

    Args:
        processor: with the rules of the prompt.
        prompt: the positive prompt; None shows the negative prompt instead.
        negative_prompt: used when `prompt` is None, with the meaning of `Cosmos3Processor.tokenize_negative`.

    Raises:
        ValueError: the prompt is empty, or the checkpoint's chat template changes the text of messages.
    """
    tokenizer = processor.tokenizer
    segments = processor.negative_segments(negative_prompt) if prompt is None else processor.segments(prompt)
    rendered, spans = _role_spans(processor.render, processor.system_prompt, segments)
    encoded = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)
    # A character of several tokens is shown with the last of them, so that the strings join to the rendered text.
    starts = [start for start, _ in encoded["offset_mapping"]]
    ends = [*starts[1:], len(rendered)]
    rows = [
        TokenRow(i, token, rendered[start:end], _role_at(spans, start))
        for i, (token, start, end) in enumerate(zip(encoded["input_ids"], starts, ends, strict=True))
    ]
    boundary = zip(processor.boundary_ids, (tokenizer.eos_token, VISION_START), strict=True)
    return rows + [TokenRow(len(rows) + i, token, text, "boundary") for i, (token, text) in enumerate(boundary)]


# ------------------------------------------------------------------------------------------------------ tokenizer


def _load_tokenizer(folder: Path) -> Any:  # noqa: ANN401  (a transformers tokenizer; importing its class would be slow)
    if not folder.is_dir() or not has_file(folder / "tokenizer.json"):
        raise CheckpointError(f"got {folder}, expected a checkpoint's text_tokenizer folder with a tokenizer.json in it")
    for file in folder.iterdir():  # the library reads several, and would take anything for them
        if file.suffix in (".json", ".jinja", ".txt"):
            text = read_text(file, most=MAX_TOKENIZER) if has_file(file) else ""
            if file.suffix == ".json":
                parse_object(text, f"{file}")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        tokenizer("a word", add_special_tokens=False)
    except Exception as error:  # the tokenizers library raises bare Exception on a file that it cannot read
        raise CheckpointError(f"{folder} holds no readable tokenizer ({error}); copy it again from the checkpoint") from error
    has = {
        "an end-of-text token in its vocabulary": tokenizer.eos_token_id is not None,
        f"the token {VISION_START}": VISION_START in tokenizer.get_vocab(),
        "a chat template": tokenizer.chat_template is not None,
    }
    lacking = [what for what, there in has.items() if not there]
    if lacking:
        raise CheckpointError(f"the tokenizer in {folder} lacks {lacking[0]}; it is not a Cosmos3 text_tokenizer")
    templates = tokenizer.chat_template  # from whichever file; some tokenizers have several, by name
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        _check_template(template, folder)
    try:
        tried = tokenizer.apply_chat_template([{"role": "user", "content": "\ue000"}], tokenize=False)
    except Exception as error:  # whatever a broken Jinja template raises
        raise CheckpointError(
            f"the chat template in {folder} does not work ({error}); copy it again from the checkpoint"
        ) from error
    if "\ue000" not in tried:
        raise CheckpointError(f"the chat template in {folder} leaves the message out; copy it again from the checkpoint")
    return tokenizer


# Jinja's sandbox keeps a template from running code, not from filling the memory. A chat has no use for these.
TEMPLATE_LIMIT = 65_536
GREEDY = {"range", "lipsum", "*", "**"}


def _check_template(text: object, folder: Path) -> None:
    from jinja2 import Environment, TemplateError

    whose = f"the chat template in {folder}"
    if not isinstance(text, str) or len(text) > TEMPLATE_LIMIT:
        raise CheckpointError(f"{whose} is not a text of at most {TEMPLATE_LIMIT} characters; copy it again from the checkpoint")
    try:
        greedy = [value for _, kind, value in Environment().lex(text) if kind in ("name", "operator") and value in GREEDY]
    except TemplateError as error:
        raise CheckpointError(f"{whose} does not work ({error}); copy it again from the checkpoint") from error
    greedy += re.findall(r"\d{6,}", text)  # widths to pad to
    if greedy:
        raise CheckpointError(f"{whose} uses {greedy[0]!r}, which no chat needs and which can fill the memory")


Span = tuple[int, str]  # start in the rendered text, role of what follows


def _role_spans(
    render: Callable[[str | None, str], str], system: str | None, segments: tuple[Segment, ...]
) -> tuple[str, list[Span]]:
    """Render the chat and note where each role starts, by rendering once with a marker for each message."""
    user = "".join(s.text for s in segments)
    marks = ("\ue000", "\ue001")  # private-use characters, which no template contains
    skeleton = render(None if system is None else marks[0], marks[1])
    head, _, tail = skeleton.rpartition(marks[1])
    spans: list[Span] = [(0, "template")]
    if system is not None:
        before, _, after = head.partition(marks[0])
        spans += [(len(before), "system"), (len(before) + len(system), "template")]
        head = before + system + after
    position = len(head)
    for segment in segments:
        spans.append((position, segment.role))
        position += len(segment.text)
    rendered = head + user + tail
    if rendered != render(system, user):
        raise ValueError("this checkpoint's chat template changes the text of a message, so tokens cannot be given a role")
    return rendered, [*spans, (position, "template")]


def _role_at(spans: list[Span], start: int) -> str:
    return [role for begin, role in spans if begin <= start][-1]
