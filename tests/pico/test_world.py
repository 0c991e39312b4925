"""The synthetic world: what is told, drawn and played belongs together."""

import numpy as np
import pytest
import torch

from cosmos3_lab.pico.grammar import COLLIDE_WORDS, MOTION_WORDS, SHAPE_WORDS, SOUND_WORDS, tell
from cosmos3_lab.pico.scenes import (
    BACKGROUNDS,
    COLOURS,
    EVENT_MOTIONS,
    HELD_OUT,
    MOTIONS,
    REACH,
    SECONDS,
    SHAPES,
    SOUNDS,
    event_times,
    is_held_out,
    place,
    sample_scene,
)
from cosmos3_lab.pico.world import FPS, FRAMES, SAMPLE_RATE, SAMPLES, draw, make_clip, play

SCENES = [sample_scene(seed) for seed in range(400)]
TIMES = np.arange(FRAMES) / FPS


def test_a_seed_is_a_clip():
    a, b, other = make_clip(3), make_clip(3), make_clip(4)
    assert a.scene == b.scene
    assert a.caption == b.caption
    assert torch.equal(a.pixels, b.pixels)
    assert torch.equal(a.waveform, b.waveform)
    assert not torch.equal(a.pixels, other.pixels)


def test_shapes_and_ranges():
    clip = make_clip(0)
    assert clip.pixels.shape == (3, FRAMES, 96, 96)
    assert clip.waveform.shape == (2, SAMPLES)
    assert clip.pixels.dtype == clip.waveform.dtype == torch.float32
    assert 0 <= clip.pixels.min() <= clip.pixels.max() <= 1
    assert clip.waveform.abs().max() <= 1
    assert SAMPLES / SAMPLE_RATE >= SECONDS


def test_many_at_once_are_the_same_as_one_by_one():
    batch_pixels, batch_sound = draw(SCENES[:6]), play(SCENES[:6])
    for i, scene in enumerate(SCENES[:6]):
        assert torch.equal(batch_pixels[i], draw([scene])[0])
        assert torch.equal(batch_sound[i], play([scene])[0])


def test_everything_happens():
    motions = {t.motion for s in SCENES for t in s.things}
    assert motions == {*MOTIONS, "collide"}
    assert {s.sound for s in SCENES} == set(SOUNDS)
    assert {t.colour for s in SCENES for t in s.things} == set(COLOURS)
    assert {t.shape for s in SCENES for t in s.things} == set(SHAPES)
    assert {s.background for s in SCENES} == set(BACKGROUNDS)
    assert 0.2 < np.mean([len(s.things) == 2 for s in SCENES]) < 0.5


def test_colours_differ_within_a_scene():
    for scene in SCENES:
        names = [scene.background, *(t.colour for t in scene.things)]
        assert len(set(names)) == len(names)


def test_nothing_leaves_the_frame():
    for scene in SCENES:
        for thing in scene.things:
            x, y, scale = place(thing, TIMES)
            side, up, down = (thing.radius * scale * reach for reach in REACH[thing.shape])
            assert min((x - side).min(), (y - up).min()) > -0.01, thing
            assert max((x + side).max(), (y + down).max()) < 1.01, thing


def test_things_never_overlap():
    for scene in SCENES:
        if len(scene.things) == 2:
            (x1, y1, s1), (x2, y2, s2) = (place(t, TIMES) for t in scene.things)
            if scene.things[0].motion == "collide":
                gap = np.hypot(x1 - x2, y1 - y2)
                assert gap.min() > scene.things[0].radius + scene.things[1].radius - 1e-6
            else:  # each keeps to its own half
                assert (
                    (x1.max() < 0.5 < x2.min())
                    or (x2.max() < 0.5 < x1.min())
                    or (y1.max() < 0.5 < y2.min())
                    or (y2.max() < 0.5 < y1.min())
                )


def test_no_motion_is_too_fast_for_the_video_vae():
    """At most 18 pixels of 96 a frame, as in the prototype's world."""
    for scene in SCENES:
        for thing in scene.things:
            x, y, _ = place(thing, TIMES)
            assert np.hypot(np.diff(x), np.diff(y)).max() * 96 < 18.5, thing


@pytest.mark.parametrize("motion", EVENT_MOTIONS)
def test_events_are_where_the_thing_turns(motion):
    """Just before and after an event the thing moves in opposite directions (or stops growing)."""
    checked = 0
    for seed in range(40):
        scene = sample_scene(seed, things=2 if motion == "collide" else 1, motion=motion)
        thing = scene.things[scene.sounding]
        for event in event_times(thing):
            x, y, scale = place(thing, np.array([event - 0.004, event, event + 0.004]))
            moving = {"ricochet": x, "collide": x, "pulse": scale}.get(motion, y)
            assert (moving[1] - moving[0]) * (moving[2] - moving[1]) < 0
            checked += 1
    assert checked > 30


def test_a_dropped_ball_bounces_lower_each_time():
    thing = sample_scene(0, things=1, motion="drop").things[0]
    fine = np.linspace(0, SECONDS, 4000)
    height = thing.y - place(thing, fine)[1]
    contacts = event_times(thing)
    tops = [height[(fine > a) & (fine < b)].max() for a, b in zip(contacts, contacts[1:], strict=False)]
    assert height[0] == pytest.approx(thing.reach)
    assert tops[0] == pytest.approx(0.72**2 * thing.reach, rel=0.01)
    assert all(later < 0.6 * earlier for earlier, later in zip(tops, tops[1:], strict=False))


def test_free_fall_is_a_parabola():
    thing = sample_scene(0, things=1, motion="drop").things[0]
    t = np.linspace(0, thing.period * 0.99, 50)
    fallen = place(thing, t)[1] - place(thing, np.zeros(1))[1]
    assert np.allclose(fallen, thing.reach * (t / thing.period) ** 2)


def test_a_collision_is_symmetric():
    a, b = sample_scene(1, motion="collide").things
    before, after = a.period - 0.3, a.period + 0.3
    xa, xb = (place(t, np.array([before, a.period, after]))[0] for t in (a, b))
    assert xa[1] + a.radius == pytest.approx(xb[1] - b.radius)
    assert xa[0] == pytest.approx(xa[2])
    assert xb[0] == pytest.approx(xb[2])


def test_area_of_a_drawn_shape_is_that_of_the_shape():
    from dataclasses import replace

    scene = sample_scene(0, things=1, motion="still")
    for shape, factor in (("circle", np.pi), ("square", 3.24), ("triangle", 2.195)):
        thing = replace(scene.things[0], shape=shape, radius=0.2, x=0.5, y=0.5, rgb=(1.0, 1.0, 1.0))
        pixels = draw([replace(scene, things=(thing,), background_rgb=(0.0, 0.0, 0.0))], frames=1)[0]
        assert float(pixels[0].mean()) == pytest.approx(factor * 0.04, rel=0.02)


def test_a_sound_starts_at_its_event():
    checked = 0
    for scene in SCENES:
        if scene.sound in ("thud", "knock", "ping", "click") and scene.events:
            mono = play([scene])[0].sum(0).numpy()
            first = np.argmax(np.abs(mono) > 0.02) / SAMPLE_RATE
            assert 0 <= first - round(scene.events[0], 2) < 0.006
            assert not np.abs(mono[: int((round(scene.events[0], 2) - 0.001) * SAMPLE_RATE)]).any()
            checked += 1
    assert checked > 100


def test_sound_comes_from_where_the_thing_is():
    for seed in range(60):
        scene = sample_scene(seed, things=1, motion="bounce")
        if scene.sound != "silence" and scene.events:
            left, right = play([scene])[0].square().sum(1)
            x = scene.things[0].x
            assert abs(x - 0.5) < 0.02 or (left > right) == (x < 0.5)


def test_silence_is_exactly_zero():
    silent = next(s for s in SCENES if s.sound == "silence")
    assert not play([silent]).any()


# ------------------------------------------------------------------------------------------------------------ captions


def test_captions_name_what_is_there():
    for seed, scene in enumerate(SCENES):
        caption = tell(scene, seed).lower()
        for thing in scene.things:
            assert thing.colour in caption
            assert any(word in caption for word in SHAPE_WORDS[thing.shape])
            verbs = COLLIDE_WORDS if thing.motion == "collide" else MOTION_WORDS[thing.motion]
            assert any(verb in caption for verb in verbs)
        assert scene.background.replace("gray", "gr") in caption
        assert "background" in caption


def test_captions_never_name_another_colour_or_sound():
    for seed, scene in enumerate(SCENES):
        caption = tell(scene, seed).lower().replace("grey", "gray")
        named = {name for name in BACKGROUNDS if name in caption.split() or f"{name}," in caption}
        assert named == {scene.background, *(t.colour for t in scene.things)}
        heard = {sound for sound, words in SOUND_WORDS.items() if any(w in caption for w in words)}
        assert heard <= {scene.sound}


def test_captions_vary_in_order_and_words():
    captions = {tell(SCENES[0], seed) for seed in range(200)}
    assert len(captions) > 60
    firsts = [tell(s, i).lower().split()[0] for i, s in enumerate(SCENES)]
    assert 0.1 < np.mean([f in ("on", "against", "in") for f in firsts]) < 0.35
    assert any("; " in c for c in captions)
    assert any(", with " in c for c in captions)


@pytest.mark.parametrize(("things", "motion"), [(3, None), (None, "fly"), (0, None)])
def test_scenes_that_do_not_exist_are_refused(things, motion):
    with pytest.raises(ValueError, match="expected 1 or 2"):
        sample_scene(0, things=things, motion=motion)


def test_training_never_sees_what_is_held_out():
    assert not any(is_held_out(sample_scene(seed, held_out=False)) for seed in range(600))
    assert all(is_held_out(sample_scene(seed, held_out=True)) for seed in range(40))
    assert 0.005 < np.mean([is_held_out(s) for s in SCENES]) < 0.08


def test_every_held_out_combination_can_happen():
    seen = {(t.colour, t.shape, t.motion) for seed in range(300) for t in sample_scene(seed, held_out=True).things}
    assert seen >= HELD_OUT
    assert {c for c, _, _ in HELD_OUT} <= set(COLOURS)
    assert {m for _, _, m in HELD_OUT} <= set(MOTIONS)


def test_a_motion_that_is_never_held_out_is_refused():
    with pytest.raises(ValueError, match="nothing is held out"):
        sample_scene(0, motion="still", held_out=True)


@pytest.mark.parametrize(("things", "motion"), [(1, "collide"), (2, "orbit clockwise")])
def test_motions_that_need_another_number_of_things_are_refused(things, motion):
    with pytest.raises(ValueError, match="collisions have two things"):
        sample_scene(0, things=things, motion=motion)


@pytest.mark.parametrize("motion", [m for m in MOTIONS if not m.startswith("orbit")])
def test_a_motion_that_was_asked_for_happens(motion):
    for things in (1, 2):
        assert all(sample_scene(seed, things=things, motion=motion).things[0].motion == motion for seed in range(10))
