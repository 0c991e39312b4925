"""The exercises of notebook 07: right answers pass, and typical mistakes are named."""

import numpy as np
import pytest
import torch

from cosmos3_lab import to_uint8_frames
from cosmos3_lab.exercises import check


def psnr(a, b):
    return float(-10 * np.log10(np.mean((a / 255 - b / 255) ** 2)))


def truncated(pixels):
    return (pixels[0].clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 3, 0)


def wrapped(pixels):
    return (pixels[0] * 255).round().to(torch.int64).to(torch.uint8).permute(1, 2, 3, 0)


def turned(pixels):
    return to_uint8_frames(pixels.transpose(3, 4))


RIGHT = {"07.1": lambda frame, temporal: -(-frame // temporal), "07.2": to_uint8_frames, "07.3": psnr}


@pytest.mark.parametrize("name", RIGHT)
def test_right_answers_pass(name):
    assert check(name, RIGHT[name], strict=True).passed


@pytest.mark.parametrize(
    ("name", "answer", "words"),
    [
        ("07.1", lambda frame, temporal: frame // temporal, "frame 1 is in latent frame 0"),
        ("07.1", lambda frame, temporal: 1 + frame // temporal, "which it has for itself"),
        ("07.1", lambda frame, temporal: -(-frame // 4), "with 2 frames for each"),
        ("07.1", lambda frame, temporal: frame / temporal, "frame 1 is in latent frame 0.25"),
        ("07.2", truncated, "round before the cast"),
        ("07.2", wrapped, "unless they are clipped"),
        ("07.2", turned, "another order"),
        ("07.2", lambda pixels: to_uint8_frames(pixels).float(), "dtype"),
        ("07.2", lambda pixels: to_uint8_frames(pixels).permute(3, 0, 1, 2), "shape"),
        ("07.2", lambda pixels: None, "returns nothing"),
        ("07.3", lambda a, b: float(-10 * np.log10(np.mean(((a - b) / 255.0) ** 2))), "wrap around"),
        ("07.3", lambda a, b: float(-10 * np.log10(np.mean((a.astype(float) - b) ** 2))), "brighter"),
        ("07.3", lambda a, b: float(-20 * np.log10(np.mean(np.abs(a / 255 - b / 255)))), "square first"),
    ],
)
def test_wrong_answers_hear_why(name, answer, words):
    verdict = check(name, answer)
    assert not verdict.passed
    assert words in verdict.message


@pytest.mark.parametrize("name", RIGHT)
def test_no_answer_yet(name):
    assert "nothing was given yet" in check(name, None).message
