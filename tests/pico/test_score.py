"""Scoring: many clips at once are those of one at a time, figures are right on hand-made readings, and on ground truth all 1."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from cosmos3_lab import decode_sound, decode_video, generate
from cosmos3_lab.pico import clips, score
from cosmos3_lab.pico.clips import equal_lengths, generate_clips, reconstructed_clips, true_clips
from cosmos3_lab.pico.grammar import tell, template
from cosmos3_lab.pico.judge import Reading, ThingReading
from cosmos3_lab.pico.scenes import HELD_OUT, Scene, Thing, sample_scene
from cosmos3_lab.pico.score import KINDS, aggregate, read_clips, score_groups, table_rows, unseen_prompts
from cosmos3_lab.presets import PRESETS

CAPTIONS = ("a red circle rests on a blue background", "a red square rests on a blue background; a hum", "a red circle rests")


@pytest.fixture(scope="module")
def true_scenes():
    return [prompt.scene for options in KINDS.values() for prompt in unseen_prompts(10, **options)]


@pytest.fixture(scope="module")
def true_readings(true_scenes):
    with ThreadPoolExecutor(2) as pool:
        return read_clips(true_clips(true_scenes), pool)


# ------------------------------------------------------------------------------------------------- many clips at once


@pytest.fixture(scope="module")
def small(tiny):
    """The random checkpoint with a default size that is quickly decoded."""
    defaults = replace(tiny.configs.defaults, num_frames=5, height=32, width=48, num_inference_steps=3, flow_shift=2.0)
    return replace(tiny, configs=replace(tiny.configs, defaults=defaults))


def check_same(models, made, captions, seeds, **settings):
    """Every clip of `made` is the one that `generate` makes of its caption and seed alone."""
    assert sorted(number for number, _, _ in made) == list(range(len(captions)))
    for number, pixels, waveform in made:
        alone = generate(models, captions[number], seed=seeds[number], progress=False, **settings).latents
        np.testing.assert_allclose(pixels, decode_video(models.vae, alone.video)[0].numpy(), atol=2e-5)
        assert (waveform is None) == (alone.sound is None)
        if waveform is not None:
            np.testing.assert_allclose(waveform, decode_sound(models.avae, alone.sound)[0].numpy(), atol=2e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_clip_of_a_batch_is_the_one_that_generate_makes(small, preset):
    captions, seeds = (CAPTIONS[0], *CAPTIONS, CAPTIONS[1]), (7, 3_000_000_001, 5, 4, 1)
    settings = {"preset": preset, "negative_prompt": "noise", "guidance_scale": 2.5}
    made = list(generate_clips(small, captions, seeds=seeds, **settings))
    check_same(small, made, captions, seeds, with_sound=True, **settings)


def test_settings_other_than_the_defaults(small):
    settings = {"num_inference_steps": 2, "flow_shift": 7.0, "negative_prompt": "", "with_sound": False}
    made = list(generate_clips(small, CAPTIONS[:2], seeds=(1, 2), batch_size=1, **settings))
    check_same(small, made, CAPTIONS[:2], (1, 2), **settings)


def test_texts_are_encoded_once(small, monkeypatch):
    encoded, passes = [], []
    encode, predict = clips.encode_prompts, clips.predict_velocities
    monkeypatch.setattr(clips, "encode_prompts", lambda t, ids, *a, **k: encoded.append(len(ids)) or encode(t, ids, *a, **k))
    monkeypatch.setattr(clips, "predict_velocities", lambda *a: passes.append(len(a[1].video)) or predict(*a))
    list(generate_clips(small, [CAPTIONS[0]] * 3, seeds=(0, 1, 2), batch_size=2, negative_prompt=""))
    assert encoded == [1, 2, 1]  # the negative prompt, then two batches
    assert passes == [2] * 6 + [1] * 6  # both branches in each of three steps
    encoded.clear()
    passes.clear()
    list(generate_clips(small, [CAPTIONS[0]] * 3, seeds=(0, 1, 2), guidance_scale=1.0))
    assert (encoded, passes) == ([3], [3] * 3)


def test_each_caption_has_a_seed(small):
    with pytest.raises(ValueError, match="zip"):
        list(generate_clips(small, CAPTIONS, seeds=(0,)))


def test_batches_have_one_length():
    assert list(equal_lengths([9, 4, 9, 9, 4], 2)) == [[1, 4], [0, 2], [3]]


def test_reconstructions_go_through_both_codecs(tiny, monkeypatch):
    monkeypatch.setattr(clips, "encode_video", lambda vae, pixels: pixels - 1)
    monkeypatch.setattr(clips, "decode_video", lambda vae, video: video / 2)
    monkeypatch.setattr(clips, "encode_sound", lambda avae, waveform: waveform + 1)
    monkeypatch.setattr(clips, "decode_sound", lambda avae, sound: sound / 4)
    scenes = [sample_scene(seed) for seed in range(3)]
    pairs = zip(true_clips(scenes), reconstructed_clips(tiny, scenes, batch_size=2), strict=True)
    for (number, pixels, waveform), (other, other_pixels, other_waveform) in pairs:
        assert number == other
        np.testing.assert_allclose(other_pixels, (pixels - 1) / 2, atol=1e-6)
        np.testing.assert_allclose(other_waveform, (waveform + 1) / 4, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ prompts


def test_prompts_are_of_the_kind_asked_for():
    one, two, collisions, apart = (unseen_prompts(12, **options) for options in KINDS.values())
    assert all(len(p.scene.things) == 1 for p in (*one, *apart))
    assert all(len(p.scene.things) == 2 for p in (*two, *collisions))
    moves = [{t.motion for t in p.scene.things} for p in (*two, *collisions)]
    assert [m == {"collide"} for m in moves] == [False] * 12 + [True] * 12
    combinations = [{(t.colour, t.shape, t.motion) for t in p.scene.things} for p in (*one, *apart)]
    assert [bool(c & HELD_OUT) for c in combinations] == [False] * 12 + [True] * 12
    assert {"drop"} == {p.scene.things[0].motion for p in unseen_prompts(3, motion="drop")}


def test_prompts_are_always_the_same():
    assert unseen_prompts(5) == unseen_prompts(8)[:5]
    assert len({p.caption for p in unseen_prompts(8)}) == 8


def test_templates_cover_the_grammar():
    captions = [tell(sample_scene(seed), seed) for seed in range(2000)]
    places = ("last", "first with comma", "first without comma")
    sounds = ("unsaid", *(f"behind {mark!r}" for mark in (";", ",", ".", "with")))
    assert {template(c) for c in captions} == {f"background {p}, sound {s}" for p, s in product(places, sounds)}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red circle bounces on a blue background; low thuds", "background last, sound behind ';'"),
        ("A red ball rises, and a pink box sinks on a blue background, quiet.", "background last, sound behind ','"),
        ("in front of a blue background a red ball rests. it is silent", "background first without comma, sound behind '.'"),
        ("Against a blue background, a red ball rests, with no sound.", "background first with comma, sound behind 'with'"),
        ("On a blue background, a red ball rests.", "background first with comma, sound unsaid"),
    ],
)
def test_template(caption, expected):
    assert template(caption) == expected


# ------------------------------------------------------------------------------------------------------------ figures


def test_ground_truth_scores_one(true_scenes, true_readings):
    scores = aggregate(true_scenes, true_readings)
    single = [scores.followed, scores.bound, scores.both_motions, scores.click]
    classes = [*scores.right.values(), *scores.motions.values(), *scores.sounds.values()]
    assert {figure.value for figure in (*single, *classes)} == {1.0}
    assert scores.sync.value > 0.99
    assert scores.outline.value > 0.99
    assert scores.followed.count == 40
    assert scores.bound.count == 20
    assert 5 < scores.click.count <= 10


def test_other_clips_score_low(true_scenes, true_readings):
    scores = aggregate(true_scenes, [*true_readings[1:], true_readings[0]])
    assert scores.followed.value < 0.05
    assert scores.bound.value < 0.1
    assert aggregate(true_scenes, true_readings).shuffled_sync.value < 0.45


def thing(colour="red", shape="circle", motion="still", events=()):
    return ThingReading(colour, shape, "medium", motion, 0.15, 0.9, events)


def reading(*things, sound="silence", onsets=()):
    return Reading("blue", things, sound, onsets, 2.0625)


def scene(*things, sound="silence"):
    return Scene(tuple(Thing(s, c, "medium", 0.15, m) for c, s, m in things), "blue", (0.0, 0.0, 1.0), sound)


def test_figures_of_single_things():
    bounce, still = scene(("red", "circle", "bounce"), sound="thud"), scene(("red", "circle", "still"))
    readings = [
        reading(thing(motion="bounce", events=(0.5, 1.0)), sound="thud", onsets=(0.5, 1.0)),
        reading(thing(motion="bounce", events=(0.8,)), sound="thud", onsets=(1.4,)),
        reading(thing(shape="square")),
        reading(),
    ]
    scores = aggregate([bounce, bounce, still, still], readings)
    assert (scores.followed.value, scores.followed.count) == (0.5, 4)
    right = {name: figure.value for name, figure in scores.right.items()}
    assert right == {"count": 0.75, "background": 1, "colour": 0.75, "shape": 0.5, "size": 0.75, "motion": 0.75, "sound": 1}
    assert {name: (f.value, f.count) for name, f in scores.motions.items()} == {"bounce": (1, 2), "still": (0.5, 2)}
    assert (scores.worst_motion, scores.worst_sound) == ("still", "silence")
    assert (scores.sync.value, scores.sync.count) == (0.5, 2)
    assert (scores.shuffled_sync.value, scores.shuffled_sync.count) == (0.0, 2)
    assert scores.outline.value == pytest.approx(0.9)
    assert scores.outline.count == 3
    assert (scores.bound.value, scores.bound.count, scores.click.count) == (None, 0, 0)


def test_one_soundtrack_cannot_be_shuffled():
    bounce = scene(("red", "circle", "bounce"), sound="thud")
    assert aggregate([bounce], [reading(thing(motion="bounce"), sound="thud")]).shuffled_sync.count == 0


def test_figures_of_two_things():
    asked = scene(("red", "circle", "still"), ("pink", "square", "rise"))
    readings = [
        reading(thing(), thing("pink", "square", "rise")),
        reading(thing("red", "square"), thing("pink", "circle", "rise")),
        reading(thing(), thing("pink", "square", "fall")),
    ]
    scores = aggregate([asked] * 3, readings)
    assert (scores.bound.value, scores.bound.count) == (pytest.approx(2 / 3), 3)
    assert scores.both_motions.value == pytest.approx(2 / 3)
    assert scores.right["colour"].value == 1
    assert {name: f.value for name, f in scores.motions.items()} == {"rise": pytest.approx(2 / 3), "still": 1}


@pytest.mark.parametrize(
    ("contact", "sound", "onset", "expected"),
    [(1.0, "click", 1.08, 1), (1.0, "click", 1.2, 0), (1.0, "thud", 1.0, 0), (None, "click", 1.0, 0)],
)
def test_a_click_belongs_to_the_contact_that_is_seen(contact, sound, onset, expected):
    asked = scene(("red", "circle", "collide"), ("pink", "circle", "collide"), sound="click")
    motion, events = ("still", ()) if contact is None else ("collide", (contact,))
    seen = reading(thing("red", "circle", motion, events), thing("pink", "circle", motion, events), sound=sound, onsets=(onset,))
    assert aggregate([asked], [seen]).click.value == expected


def test_groups_and_rows(true_scenes, true_readings):
    prompts = [score.Prompt(s, "") for s in true_scenes]
    names = ["first"] * 10 + ["rest"] * 30
    grouped = score_groups(prompts, names, {"made": true_readings[::-1], "true": true_readings})
    assert list(grouped) == ["first", "rest"]
    assert grouped["rest"]["true"].followed.count == 30
    rows = {label: cells for label, *cells in table_rows(grouped["first"])}
    assert rows["everything right"][0] == "10"
    assert rows["everything right"][2] == "1.000"
    assert rows["worst motion"][2].startswith("1.000 ")
    assert "both motions" not in rows  # of clips with one thing


# ------------------------------------------------------------------------------------------------------------ command


def test_the_command(tmp_path, capsys, monkeypatch, tiny):
    """With ground truth in the place of generated clips: what is read in processes of their own comes back in order."""
    of_caption = {p.caption: p.scene for options in KINDS.values() for p in unseen_prompts(1, **options)}
    monkeypatch.setattr(score, "load_cosmos3", lambda *args, **options: nullcontext(tiny))
    monkeypatch.setattr(score, "generate_clips", lambda models, captions, *, seeds: true_clips([of_caption[c] for c in captions]))
    monkeypatch.setattr(score, "reconstructed_clips", lambda models, scenes: true_clips(scenes))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["score", "--count", "1", "--device", "cpu", "--out", str(tmp_path / "scores.json")])
    score.main()
    shown, written = capsys.readouterr().out, json.loads((tmp_path / "scores.json").read_text())
    for words in ("random-tiny: 1 prompts of each kind", "ground truth", "collisions", "by word order", "both motions"):
        assert words in shown
    assert set(written["kinds"]) == set(KINDS)
    assert all(source["followed"] == {"value": 1.0, "count": 1} for kind in written["kinds"].values() for source in kind.values())
    assert sum(sources["generated"]["followed"]["count"] for sources in written["templates"].values()) == 4
