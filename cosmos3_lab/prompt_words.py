"""Tokens grouped into the words that a reader sees, with nothing left out: template and boundary tokens are words too.

Read next: `attention_maps.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from cosmos3_lab.prompt import Cosmos3Processor, TokenRow, token_table


@dataclass(frozen=True)
class PromptWord:
    """Tokens that follow each other and make one word.

    Attributes:
        text: without the space before it.
        start, stop: its tokens are `start` to `stop - 1`.
        role: "template", "system", "prompt", "metadata" or "boundary", as in `token_table`.
    """

    text: str
    start: int
    stop: int
    role: str

    def __repr__(self) -> str:
        return f"PromptWord({self.text!r}, tokens {self.start} to {self.stop - 1}, {self.role})"


def prompt_words(
    processor: Cosmos3Processor, prompt: str | None = None, *, negative_prompt: str | None = None
) -> tuple[PromptWord, ...]:
    """The words of a tokenized prompt in order; together they hold every token once.

    A word ends where the next token begins with a space or a mark, or has another role. Marks, line breaks and special tokens
    stand alone. Where words are written without spaces between them, as in Chinese, a run of letters is one word.

    Args:
        processor: with the rules of the prompt.
        prompt, negative_prompt: see `token_table`.
    """
    groups: list[list[TokenRow]] = []
    waiting: list[TokenRow] = []  # first tokens of a character of several, which show with its last
    for row in token_table(processor, prompt, negative_prompt=negative_prompt):
        if not row.string:
            waiting.append(row)
        elif groups and _continues(groups[-1], row):
            groups[-1] += [*waiting, row]
            waiting = []
        else:
            groups.append([*waiting, row])
            waiting = []
    return tuple(_word(group) for group in groups)


def _continues(group: Sequence[TokenRow], row: TokenRow) -> bool:
    last = group[-1]
    joined = last.string == " " or (last.string[-1].isalnum() and row.string[0].isalnum())  # a space before digits is a token
    return joined and last.role == row.role


def _word(rows: Sequence[TokenRow]) -> PromptWord:
    text = "".join(row.string for row in rows)
    return PromptWord(text.strip() or repr(text)[1:-1], rows[0].index, rows[-1].index + 1, rows[-1].role)


def word_of_token(words: Sequence[PromptWord], s_text: int) -> Int64[Tensor, " s_text"]:
    """For each text token the place of its word.

    Args:
        words: from `prompt_words`.
        s_text: number of text tokens.

    Raises:
        ValueError: the words do not hold every token once, in order: they are those of another prompt.
    """
    tokens = [token for word in words for token in range(word.start, word.stop)]
    if tokens != list(range(s_text)):
        raise ValueError(
            f"got {len(words)} words with {len(tokens)} tokens, expected those of the prompt's {s_text} tokens, in order; "
            "make them with prompt_words from the same prompt and processor"
        )
    return torch.tensor([place for place, word in enumerate(words) for _ in range(word.start, word.stop)], dtype=torch.int64)
