"""The exercises of notebook 05: right answers pass, and typical mistakes are named."""

from dataclasses import replace

import pytest

from cosmos3_lab import denoise, prepare_denoise, prepare_request
from cosmos3_lab.exercises import check

RUN = {"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": 4, "guidance_scale": 3.0}


def guide(v_cond, v_uncond, w):
    return v_uncond + w * (v_cond - v_uncond)


def rescaled(v_cond, v_uncond, w):
    guided = guide(v_cond, v_uncond, w)
    return guided * (v_cond.square().mean() / guided.square().mean()).sqrt()


def in_place(v_cond, v_uncond, w):
    return v_uncond.add_(v_cond - v_uncond, alpha=w)


def by_std(v_cond, v_uncond, w):
    guided = guide(v_cond, v_uncond, w)
    return guided * v_cond.std() / guided.std()


@pytest.fixture(scope="module")
def halves(tiny):
    """Records of steps with guidance, and of the second half without."""
    inputs, start = prepare_denoise(tiny, prepare_request(tiny, "a ball", **RUN))
    guided = list(denoise(tiny.transformer, inputs, start))
    middle = guided[1][0]
    without = [record for _, record in denoise(tiny.transformer, replace(inputs, uncond=None), middle)]
    return [record for _, record in guided], without


def test_right_answers_pass(halves):
    guided, without = halves
    assert check("05.1", guide, strict=True).passed
    assert check("05.2", guided[:2] + without, strict=True).passed
    assert check("05.3", rescaled, strict=True).passed


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("05.1", lambda c, u, w: c + w * (c - u), "w = 0"),
        ("05.1", lambda c, u, w: u + w * (u - c), "w = 1"),
        ("05.1", lambda c, u, w: u + min(w, 2) * (c - u), "w = 6"),
        ("05.1", in_place, "in place"),
        ("05.1", lambda c, u, w: None, "returns nothing"),
        ("05.3", lambda c, u, w: c, "direction"),
        ("05.3", guide, "rms"),
        ("05.3", by_std, "rms"),
    ],
)
def test_wrong_formulas_hear_why(name, answer, words):
    verdict = check(name, answer)
    assert not verdict.passed
    assert words in verdict.message


def test_wrong_runs_hear_why(halves):
    guided, without = halves
    cases = {
        "every step was guided": guided,
        "the steps are": guided[:2] + guided[:2],
        "at least 4": without,
        "end of the schedule": [*guided[:3], replace(guided[2], index=3)],
        "guided are steps 0, 2,": [guided[0], replace(without[0], index=1), guided[2], without[1]],
    }
    for words, records in cases.items():
        assert words in check("05.2", records).message


@pytest.mark.parametrize("name", ["05.1", "05.2", "05.3"])
def test_no_answer_yet(name):
    assert "nothing was given yet" in check(name, None).message
