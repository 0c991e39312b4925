"""The exercises of notebook 11: tokens pooled to words, a share without the whole row, a head that looks at nothing.

Read next: `training.py`, the exercises of notebook 12.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cosmos3_lab.exercises.framework import call, exercise, expect
from cosmos3_lab.prompt_words import PromptWord

WORDS = (
    PromptWord("<|im_start|>", 0, 1, "template"),
    PromptWord("tricycle", 1, 4, "prompt"),
    PromptWord("rolls", 4, 5, "prompt"),
    PromptWord("16", 5, 7, "metadata"),
)
CLOSE = 1e-5


def _is_tensor(found: object, shape: Sequence[int], what: str) -> None:
    expect(isinstance(found, Tensor), f"{what} gave {type(found).__name__}, expected a tensor.")
    expect(tuple(found.shape) == tuple(shape), f"{what} gave the shape {list(found.shape)}, expected {list(shape)}.")


@exercise(
    "11.1",
    hint="A word's tokens are word.start to word.stop - 1: rows[..., word.start : word.stop]. Put one number for each word "
    "together with torch.stack(..., dim=-1).",
)
def pool_words(answer: Callable[[Float[Tensor, "heads queries s_text"], Sequence[PromptWord]], Tensor]) -> None:
    """Shares are added, not averaged: a word gets what its tokens get together, and the sum over all words stays the same."""
    rows = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0)) / 7
    found = call(answer, rows.clone(), WORDS)
    _is_tensor(found, (2, 5, 4), "rows [2, 5, 7] of 7 tokens in 4 words")
    mean = rows[..., 1:4].mean(-1)
    expect(not torch.allclose(found[..., 1], mean), "the word of three tokens got their mean; a share of attention is their sum.")
    want = torch.stack([rows[..., w.start : w.stop].sum(-1) for w in WORDS], dim=-1)
    for place, word in enumerate(WORDS):
        away = float((found[..., place] - want[..., place]).abs().max())
        expect(away < CLOSE, f"{word} is off by up to {away:.2g}: stop is not one of its tokens, start is.")


@exercise(
    "11.2",
    hint="exp(score - total) is the share, where total is the log of the sum of all exponentials: that of the text's scores "
    "(torch.logsumexp) and `rest` together (torch.logaddexp).",
)
def share_of_text(answer: Callable[[Float[Tensor, "queries s_text"], Float[Tensor, " queries"]], Tensor]) -> None:
    """One number for each query stood for 44 thousand keys: that is how the lens fits beside a full-size model."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(6, 40, generator=generator)
    want = scores.softmax(-1)[:, :9]
    found = call(answer, scores[:, :9].clone(), scores[:, 9:].logsumexp(-1))
    _is_tensor(found, (6, 9), "scores [6, 9] and rest [6]")
    text_alone = scores[:, :9].softmax(-1)
    expect(not torch.allclose(found, text_alone, atol=1e-3), "the text's shares sum to 1; `rest` has its part in the sum.")
    away = float((found - want).abs().max())
    expect(away < CLOSE, f"the shares are off by up to {away:.2g}; `rest` is the log of a sum of exponentials, not a sum.")
    large = scores * 100 + 500
    found = call(answer, large[:, :9].clone(), large[:, 9:].logsumexp(-1))
    expect(bool(torch.isfinite(found).all()), "scores of some hundreds give inf or nan: subtract before the exponential.")
    away = float((found - large.softmax(-1)[:, :9]).abs().max())
    expect(away < 1e-3, f"with scores of some hundreds the shares are off by up to {away:.2g}.")


@exercise(
    "11.3",
    hint="`q.clone().unflatten(-1, (heads, -1))` gives the heads an axis of their own; `.flatten(-2)` takes it away again.",
)
def blind(answer: Callable[[Float[Tensor, "tokens width"], int, int], Tensor]) -> None:
    """A query of zeros has the same score with every key: this head sees the mean of everything, and nothing in particular."""
    q = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    given = q.clone()
    found = call(answer, given, 2, 6)
    _is_tensor(found, (5, 24), "q [5, 24] of 6 heads")
    expect(torch.equal(given, q), "the answer writes into its argument, which the run may still need; start from a clone.")
    heads, before = found.unflatten(-1, (6, 4)), q.unflatten(-1, (6, 4))
    expect(bool((heads[:, 2] == 0).all()), "head 2 of 6 is not all zeros; heads lie one after the other, 4 numbers each here.")
    others = [h for h in range(6) if h != 2 and not torch.equal(heads[:, h], before[:, h])]
    expect(not others, f"the heads {others} changed too, expected only head 2.")
    found = call(answer, q.clone(), 0, 3).unflatten(-1, (3, 8))
    right = bool((found[:, 0] == 0).all()) and torch.equal(found[:, 1:], q.unflatten(-1, (3, 8))[:, 1:])
    expect(right, "with 3 heads of 8 numbers, head 0 should be zeros and heads 1 and 2 as before.")
