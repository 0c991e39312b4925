"""The judge on ground truth: always right; on swapped captions and soundtracks: not."""

import numpy as np
import pytest

from cosmos3_lab.pico.judge import Reading, judge, read_clip, read_sound, synchrony
from cosmos3_lab.pico.scenes import MOTIONS
from cosmos3_lab.pico.world import make_clip

COUNT = 150


@pytest.fixture(scope="module")
def clips():
    return [make_clip(20_000 + seed) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def readings(clips):
    return [read_clip(c.pixels.numpy(), c.waveform.numpy()) for c in clips]


def test_ground_truth_is_followed(clips, readings):
    verdicts = [judge(c.scene, r) for c, r in zip(clips, readings, strict=True)]
    wrong = [(c.caption, v.sentence) for c, v in zip(clips, verdicts, strict=True) if not v.followed]
    assert not wrong


def test_ground_truth_is_in_sync(clips, readings):
    scores = [v.sync for c, r in zip(clips, readings, strict=True) if (v := judge(c.scene, r)).sync is not None]
    assert len(scores) > 50
    assert np.mean(scores) > 0.99


def test_outlines_of_ground_truth_are_ideal(clips, readings):
    outlines = [judge(c.scene, r).outline for c, r in zip(clips, readings, strict=True)]
    assert np.mean(outlines) > 0.995
    assert min(outlines) > 0.93


def test_other_captions_are_not_followed(clips, readings):
    followed = [judge(clips[i].scene, readings[i - 1]).followed for i in range(COUNT)]
    assert np.mean(followed) < 0.02


def test_other_soundtracks_are_not_in_sync(clips, readings):
    """As low as chance: the control beside every figure for synchrony."""
    events = [i for i in range(COUNT) if judge(clips[i].scene, readings[i]).sync is not None]
    scores = []
    for i, other in zip(events, [*events[1:], events[0]], strict=True):
        r = readings[i]
        swapped = Reading(r.background, r.things, r.sound, readings[other].onsets, r.seconds)
        scores.append(judge(clips[i].scene, swapped).sync)
    assert np.mean(scores) < 0.4


@pytest.mark.parametrize("motion", [*MOTIONS, "collide"])
def test_every_motion_is_recognised(motion):
    for seed in range(12):
        clip = make_clip(seed, things=2 if motion == "collide" else 1, motion=motion)
        assert judge(clip.scene, read_clip(clip.pixels.numpy(), clip.waveform.numpy())).followed, clip.caption


def test_a_sentence_says_what_is_wrong(clips, readings):
    verdict = judge(clips[0].scene, readings[0])
    assert verdict.sentence.startswith("I see a ")
    assert verdict.sentence.endswith("The prompt was followed.")
    other = next(r for r in readings if r.background != readings[0].background)
    assert "background" in judge(clips[0].scene, other).sentence.split("not followed:")[1]


def test_attributes_are_bound_to_the_right_thing(clips, readings):
    """Two things with their shapes swapped: the colours are there, the shapes are wrong."""
    from dataclasses import replace

    clip, reading = next((c, r) for c, r in zip(clips, readings, strict=True) if len({t.shape for t in c.scene.things}) == 2)
    a, b = clip.scene.things
    swapped = replace(clip.scene, things=(replace(a, shape=b.shape), replace(b, shape=a.shape)))
    right = judge(swapped, reading).right
    assert right["colour 1"]
    assert right["colour 2"]
    assert not right["shape 1"]
    assert not right["shape 2"]


def test_noise_and_emptiness_are_no_scene():
    rng = np.random.RandomState(0)
    for pixels in (np.full((3, 33, 96, 96), 0.5), rng.rand(3, 33, 96, 96)):
        reading = read_clip(pixels, None)
        assert not judge(make_clip(0).scene, reading).followed
        assert reading.sound == "silence"


@pytest.mark.parametrize(
    ("events", "onsets", "expected"),
    [
        ((1.0,), (1.05,), 1.0),
        ((1.0,), (1.2,), 0.0),
        ((0.5, 1.5), (0.5,), 2 / 3),
        ((), (), 1.0),
        ((0.01,), (), 1.0),
        ((), (1.0,), 0.0),
    ],
)
def test_synchrony(events, onsets, expected):
    assert synchrony(events, onsets, 2.0625) == pytest.approx(expected)


def test_sound_of_nothing():
    assert read_sound(np.zeros(0), 16000) == ("silence", ())
    assert read_sound(np.zeros(16000), 16000) == ("silence", ())
