from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmos3_lab.exercises import check


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda i, fps, rate: round(i / rate * fps), "frame 9 only comes at 0.5625 s"),
        (lambda i, fps, rate: int(i / fps * rate), "latent 25 (1 s) gave frame 26"),
        (lambda i, fps, rate: int(i / rate * fps) + 1, "sound latent 0 gave frame 1"),
        (lambda i, fps, rate: int(i / 25 * fps), "latent 100 at 16 fps and 21.5 a second"),
        (lambda i, fps, rate: None, "returns nothing yet"),
    ],
)
def test_wrong_frames_are_told_what_is_wrong(answer, says):
    verdict = check("09.1", answer)
    assert not verdict.passed
    assert says in verdict.message


def test_the_frame_on_screen_passes():
    assert check("09.1", lambda i, fps, rate: int(i / rate * fps)).passed


def onset(waveform, sample_rate, *, share=0.1, level=None):
    loud = np.abs(waveform).max(axis=0)
    return int(np.argmax(loud > (level or share * loud.max()))) / sample_rate


def test_the_first_onset_passes():
    assert check("09.2", onset).passed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda w, rate: onset(w, 1), "expected seconds"),
        (lambda w, rate: int(np.abs(w).max(axis=0).argmax()) / rate, "the second and louder sound"),
        (lambda w, rate: onset(w, rate, level=0.05), "a thousand times quieter"),
        (lambda w, rate: onset(w, rate, level=1e-6), "the answer was 0.000 s"),
        (lambda w, rate: onset(w[:1], rate), "in the right channel only"),
        (lambda w, rate: onset(w, 16000), "at half of the sample rate"),
    ],
)
def test_other_ears_are_told_what_is_wrong(answer, says):
    verdict = check("09.2", answer)
    assert not verdict.passed
    assert says in verdict.message


def delayed(latents, n, *, axis=1):
    return replace(latents, sound=torch.roll(latents.sound, n, dims=axis))


def in_place(latents, n):
    latents.sound.copy_(torch.roll(latents.sound, n, dims=1))
    return latents


def with_silence(latents, n):
    silence = torch.zeros_like(latents.sound[:, :n])
    return replace(latents, sound=torch.cat([silence, latents.sound[:, :-n]], dim=1))


def test_sound_that_comes_later_passes():
    assert check("09.3", delayed).passed


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda latents, n: delayed(latents, -n), "3 latents earlier"),
        (lambda latents, n: delayed(latents, n, axis=2), "is the middle axis moved?"),
        (with_silence, "not at the beginning"),
        (in_place, "changed in place"),
        (lambda latents, n: replace(latents, video=torch.roll(latents.video, n, dims=2)), "the video is another one"),
        (lambda latents, n: replace(latents, sound=None), "the sound has shape None"),
        (lambda latents, n: latents.sound, "got Tensor, expected Latents"),
    ],
)
def test_other_delays_are_told_what_is_wrong(answer, says):
    verdict = check("09.3", answer)
    assert not verdict.passed
    assert says in verdict.message


@pytest.mark.parametrize("name", ["09.1", "09.2", "09.3"])
def test_no_answer_is_no_mistake(name):
    assert "nothing was given yet" in check(name, None).message
