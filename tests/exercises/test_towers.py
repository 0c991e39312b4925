"""The exercises of notebook 04: right answers pass, and typical mistakes are named."""

import pytest

from cosmos3_lab import embed_gen_tokens, predict_velocity, project_velocity, run_gen_layers
from cosmos3_lab.exercises import check


def kv_bytes(cond):
    return sum(kv.k.nbytes + kv.v.nbytes for kv in cond.cached_kv)


def frame_tokens(layout, frame):
    _, rows, columns = layout.video_grid
    return slice(frame * rows * columns, (frame + 1) * rows * columns)


def velocity_after(transformer, latents, timestep, cond, layers):
    tokens = embed_gen_tokens(transformer, latents, timestep)
    return project_velocity(transformer, run_gen_layers(transformer, tokens, cond, stop=layers), cond.layout)


def floored(layout, frame):
    t, h, w = layout.video_shape
    size = (h // layout.patch) * (w // layout.patch)
    return slice(frame * size, (frame + 1) * size)


def sound_first(layout, frame):
    block = frame_tokens(layout, frame)
    return slice(block.start + layout.n_sound, block.stop + layout.n_sound)


def whole(transformer, latents, timestep, cond, layers):
    return predict_velocity(transformer, latents, timestep, cond)


def wrong_timestep(transformer, latents, timestep, cond, layers):
    return velocity_after(transformer, latents, 0, cond, layers)


@pytest.mark.parametrize(("name", "answer"), [("04.1", kv_bytes), ("04.2", frame_tokens), ("04.3", velocity_after)])
def test_right_answers_pass(name, answer):
    assert check(name, answer, strict=True).passed


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("04.1", lambda cond: sum(kv.k.nbytes for kv in cond.cached_kv), "only half"),
        ("04.1", lambda cond: cond.cached_kv[0].k.nbytes * 2, "only one layer"),
        ("04.1", lambda cond: sum(2 * kv.k.numel() for kv in cond.cached_kv), "not bytes"),
        ("04.2", floored, "rounded up"),
        ("04.2", sound_first, "stand elsewhere"),
        ("04.3", whole, "changes nothing"),
        ("04.3", wrong_timestep, "is off by"),
        ("04.3", lambda *given: 1.0, "expected Latents"),
        ("04.1", lambda cond: None, "returns nothing"),
    ],
)
def test_wrong_answers_hear_why(name, answer, words):
    verdict = check(name, answer)
    assert not verdict.passed
    assert words in verdict.message


@pytest.mark.parametrize("name", ["04.1", "04.2", "04.3"])
def test_no_answer_yet(name):
    assert "nothing was given yet" in check(name, None).message
