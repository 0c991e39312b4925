import pytest
import torch

from cosmos3_lab.exercises import check

DURATION = "The video is {:.1f} seconds long and is of {:.0f} FPS."
SIZE = "This video is of {}x{} resolution."


def ids_of(rows, *, role="prompt"):
    return [row.id for row in rows if row.role == role]


def caption(prompt, frames, height, width, fps):
    return f"{prompt.rstrip('.')}. {DURATION.format(frames / fps, fps)} {SIZE.format(height, width)}"


def test_own_words_pass():
    assert check("01.1", ids_of).passed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda rows: [row.id for row in rows], "got 6 tokens of a prompt of 3"),
        (lambda rows: [row.string for row in rows if row.role == "prompt"], "expected integers"),
        (lambda rows: sorted(ids_of(rows)), "in the order of the prompt"),
        (lambda rows: ids_of(rows, role="metadata") * 3, "expected [5, 9, 5]"),
        (lambda rows: "5 9 5", "got str"),
        (lambda rows: ids_of(rows) or [7], "should give an empty list"),
        (lambda rows: None, "returns nothing yet"),
        ([5, 9, 5], "expected a function"),
        (None, "nothing was given yet"),
    ],
)
def test_other_words_are_told_what_is_wrong(answer, says):
    verdict = check("01.1", answer)
    assert not verdict.passed
    assert says in verdict.message


def test_the_caption_passes():
    assert check("01.2", caption).passed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda p, n, h, w, fps: caption(p, n, w, h, fps), "height first"),
        (lambda p, n, h, w, fps: caption(p, n, h, w, fps).replace("7.9", "7.875"), "one decimal"),
        (lambda p, n, h, w, fps: caption(p, n, h, w, fps).replace("24", "24.0"), "whole number"),
        (lambda p, n, h, w, fps: caption(p, n, h, w, fps).replace(". The", ", the"), "a full stop and a space first"),
        (lambda p, n, h, w, fps: f"{p}. {DURATION.format(n / fps, fps)} {SIZE.format(h, w)}", "for 'a red ball.' got"),
        (lambda p, n, h, w, fps: caption(p, n, h, w, fps)[:-1], "for 'a red ball' got"),
        (lambda p, n, h, w, fps: None, "returns nothing yet"),
    ],
)
def test_other_captions_are_told_what_is_wrong(answer, says):
    verdict = check("01.2", answer)
    assert not verdict.passed
    assert says in verdict.message


def test_rows_of_the_table_pass():
    assert check("01.3", lambda weight, ids: weight[ids[0]]).passed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda weight, ids: weight[ids], "got shape [1, 4, 3]"),
        (lambda weight, ids: weight[: ids.shape[1]], "expected the same row for both"),
        (lambda weight, ids: weight[ids[0] - 1], "expected rows 4, 0, 9, 4"),
        (lambda weight, ids: weight[ids[0]].flip(0), "expected rows 4, 0, 9, 4"),
        (lambda weight, ids: weight[ids[0]].tolist(), "got list"),
        (lambda weight, ids: weight @ ids, "could not be used"),
    ],
)
def test_other_rows_are_told_what_is_wrong(answer, says):
    verdict = check("01.3", answer)
    assert not verdict.passed
    assert says in verdict.message


def test_one_hot_rows_are_the_same_look_up():
    assert check("01.3", lambda weight, ids: torch.nn.functional.one_hot(ids[0], len(weight)).float() @ weight).passed
