import pytest
import torch

from cosmos3_lab.exercises import check


def grid(frames, height, width, temporal, spatial):
    return (frames - 1) // temporal + 1, height // spatial, width // spatial


def mix(x0, noise, sigma):
    return (1 - sigma) * x0 + sigma * noise


def neighbours(video, axis=-1):
    video = video.movedim(axis, -1)
    return torch.corrcoef(torch.stack([video[..., :-1].flatten(), video[..., 1:].flatten()]))[0, 1]


def in_place(x0, noise, sigma):
    return x0.mul_(1 - sigma).add_(noise, alpha=sigma)


ANSWERS = {"02.1": grid, "02.2": mix, "02.3": neighbours}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_right_answers_pass(name):
    assert check(name, ANSWERS[name]).passed


@pytest.mark.parametrize(
    ("name", "answer", "says"),
    [
        ("02.1", lambda n, h, w, t, s: (n // t, h // s, w // s), "got 0 latent frames, expected 1"),
        ("02.1", lambda n, h, w, t, s: (-(-n // t), h // t, w // t), "rows and columns, expected (12, 12)"),
        ("02.1", lambda n, h, w, t, s: ((n - 1) / t + 1, h // s, w // s), "expected integers"),
        ("02.1", lambda n, h, w, t, s: (n, h // s), "expected three numbers"),
        ("02.2", lambda x0, noise, sigma: (1 - sigma**2) ** 0.5 * x0 + sigma * noise, "the path is straight"),
        ("02.2", lambda x0, noise, sigma: mix(noise, x0, sigma), "at sigma 0"),
        ("02.2", lambda x0, noise, sigma: x0 + sigma * noise, "at sigma 1"),
        ("02.2", lambda x0, noise, sigma: mix(x0, noise, 3 * sigma**2 - 2 * sigma**3), "at sigma 0.3"),
        ("02.2", in_place, "changed in place"),
        ("02.2", lambda x0, noise, sigma: sigma, "expected a tensor"),
        ("02.3", lambda video: neighbours(video, axis=-2), "neighbours in a row"),
        ("02.3", lambda video: neighbours(video).abs(), "expected -1"),
        ("02.3", lambda video: (video[..., :-1] * video[..., 1:]).mean(), "for rows of one value"),
        ("02.3", lambda video: torch.tensor(1.0), "for white noise got 1.00"),
        ("02.3", lambda video: None, "returns nothing yet"),
        ("02.3", None, "nothing was given yet"),
    ],
)
def test_other_answers_are_told_what_is_wrong(name, answer, says):
    verdict = check(name, answer)
    assert not verdict.passed
    assert says in verdict.message
