import pytest
import torch

from cosmos3_lab.exercises import check


def pool(rows, words):
    return torch.stack([rows[..., word.start : word.stop].sum(-1) for word in words], dim=-1)


def share(scores, rest):
    return (scores - torch.logaddexp(scores.logsumexp(-1), rest)[:, None]).exp()


def blind(q, head, heads):
    found = q.clone().unflatten(-1, (heads, -1))
    found[:, head] = 0
    return found.flatten(-2)


def blind_in_place(q, head, heads):
    q.unflatten(-1, (heads, -1))[:, head] = 0
    return q


@pytest.mark.parametrize(("name", "answer"), [("11.1", pool), ("11.2", share), ("11.3", blind)])
def test_right_answers_pass(name, answer):
    assert check(name, answer).passed


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("11.1", lambda rows, words: torch.stack([rows[..., w.start : w.stop].mean(-1) for w in words], -1), "their mean"),
        ("11.1", lambda rows, words: torch.stack([rows[..., w.start] for w in words], -1), "is off by"),
        ("11.1", lambda rows, words: pool(rows, words)[0], "gave the shape [5, 4]"),
        ("11.1", lambda rows, words: None, "returns nothing yet"),
        ("11.2", lambda scores, rest: scores.softmax(-1), "the text's shares sum to 1"),
        ("11.2", lambda scores, rest: scores.exp() / (scores.exp().sum(-1) + rest.exp())[:, None], "inf or nan"),
        ("11.2", lambda scores, rest: scores.exp() / (scores.exp().sum(-1) + rest)[:, None], "not a sum"),
        ("11.3", blind_in_place, "writes into its argument"),
        ("11.3", lambda q, head, heads: torch.zeros_like(q), "[0, 1, 3, 4, 5] changed too"),
        ("11.3", lambda q, head, heads: q.clone(), "not all zeros"),
        ("11.3", lambda q, head, heads: blind(q, head, 6), "with 3 heads of 8 numbers"),
    ],
)
def test_wrong_answers_are_told_what_is_wrong(name, answer, says):
    verdict = check(name, answer)
    assert not verdict.passed
    assert says in verdict.message
