"""Sizes and requests: golden numbers of Nano, and what is refused."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from cosmos3_lab import (
    NANO,
    PRESETS,
    Cosmos3T2VRequest,
    Cosmos3TokenizedPrompt,
    effective_num_frames,
    make_request,
    pixel_to_latent_shape,
    sound_latent_frames,
)
from cosmos3_lab.sizes import check_fps


def prompt(n):
    ids = torch.arange(n)[None]
    return Cosmos3TokenizedPrompt(ids, torch.ones_like(ids), "text")


def request(**fields):
    cond, uncond = prompt(5), prompt(3)
    tokens = {"text_ids": cond.text_ids, "text_mask": cond.text_mask}
    tokens |= {"neg_text_ids": uncond.text_ids, "neg_text_mask": uncond.text_mask}
    return Cosmos3T2VRequest(**{**tokens, "video_shape": (3, 4, 5), **fields})


@pytest.mark.parametrize(
    ("pixels", "latent"),
    [
        ((189, 720, 1280), (48, 45, 80)),
        ((25, 192, 320), (7, 12, 20)),
        ((1, 16, 16), (1, 1, 1)),
        ((4, 480, 832), (1, 30, 52)),
        ((5, 704, 1280), (2, 44, 80)),
    ],
)
def test_latent_shape(pixels, latent):
    assert pixel_to_latent_shape(*pixels) == latent


def test_latent_shape_with_other_factors():
    assert pixel_to_latent_shape(10, 96, 160, temporal=8, spatial=8) == (2, 12, 20)


@pytest.mark.parametrize(
    ("asked", "effective"), [(1, 1), (2, 1), (4, 1), (5, 5), (8, 5), (9, 9), (97, 97), (100, 97), (189, 189), (192, 189)]
)
def test_num_frames_are_rounded_down_to_4k_plus_1(asked, effective):
    assert effective_num_frames(asked) == effective
    t, _, _ = pixel_to_latent_shape(asked, 16, 16)
    assert 1 + 4 * (t - 1) == effective


@pytest.mark.parametrize("num_frames", [0, -3])
def test_no_frames_are_refused(num_frames):
    with pytest.raises(ValueError, match=f"got num_frames {num_frames}, expected a whole number from 1"):
        effective_num_frames(num_frames)


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (730, 1280, r"got height 730, .* multiple of 16 pixels, try 720 or 736$"),
        (720, 1279, r"got width 1279, .* multiple of 16 pixels, try 1264 or 1280$"),
        (8, 1280, r"got height 8, .* try 16$"),
        (720, 0, r"got width 0, .* try 16$"),
    ],
)
def test_sizes_that_cannot_work_name_the_nearest(height, width, message):
    with pytest.raises(ValueError, match=message):
        pixel_to_latent_shape(189, height, width)


@pytest.mark.parametrize(("num_frames", "fps", "frames"), [(189, 24.0, 197), (9, 16.0, 15), (1, 24.0, 2), (24, 24.0, 25)])
def test_sound_frames_where_all_references_agree(num_frames, fps, frames):
    assert sound_latent_frames(num_frames, fps) == frames
    assert sound_latent_frames(num_frames, fps, rounding="float") == frames


@pytest.mark.parametrize(
    ("num_frames", "fps", "frames"), [(66, 30.0, 55), (132, 30.0, 110), (264, 30.0, 220), (33, 15.0, 55), (109, 25.0, 109)]
)
def test_sound_frames_where_the_float_ceil_gives_one_more(num_frames, fps, frames):
    assert sound_latent_frames(num_frames, fps) == frames
    assert sound_latent_frames(num_frames, fps, rounding="float") == frames + 1


def test_sound_frames_with_other_rates():
    assert sound_latent_frames(24, 24.0, sampling_rate=16000, hop_size=1024) == 16  # 15.625, rounded up


@pytest.mark.parametrize("fps", [0.0, 0.99, -24.0, 240.5, float("nan"), float("inf")])
def test_impossible_frame_rates_are_refused(fps):
    with pytest.raises(ValueError, match="got fps .*, expected a number from 1 to 240"):
        check_fps(fps)


@pytest.mark.parametrize("fps", [1.0, 23.976, 240.0])
def test_possible_frame_rates_pass(fps):
    check_fps(fps)


# ---------------------------------------------------------------------------------------------------------- request


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("video_shape", (0, 4, 5)),
        ("video_shape", (3, 4, -1)),
        ("num_inference_steps", 0),
        ("guidance_scale", -0.1),
        ("guidance_scale", float("nan")),
        ("guidance_scale", float("inf")),
        ("seed", -1),
        ("seed", 2**32),
        ("sound_frames", 0),
        ("fps", 0.0),
    ],
)
def test_request_refuses(field, value):
    with pytest.raises(ValueError, match=f"got {field}"):
        request(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("seed", 0), ("seed", 2**32 - 1), ("guidance_scale", 0.0), ("sound_frames", 1)])
def test_request_accepts_the_ends_of_its_ranges(field, value):
    assert getattr(request(**{field: value}), field) == value


def test_request_has_the_pages_defaults_and_is_frozen():
    r = request()
    assert (r.fps, r.num_inference_steps, r.guidance_scale, r.seed) == (24.0, 35, 6.0, 42)
    assert (r.noise, r.sound_frames) == (None, None)
    with pytest.raises(FrozenInstanceError):
        r.seed = 1
    assert "5 + 3 text tokens, latent 3x4x5" in repr(r)


def test_make_request_has_the_defaults_of_the_model():
    cond, uncond = prompt(5), prompt(3)
    r = make_request(cond, uncond)
    assert (r.video_shape, r.fps, r.num_inference_steps, r.guidance_scale, r.seed) == ((48, 45, 80), 24.0, 35, 6.0, 42)
    assert (r.sound_frames, r.sound_dim, r.sound_latent_fps) == (None, None, None)
    assert r.text_ids is cond.text_ids
    assert r.text_mask is cond.text_mask
    assert r.neg_text_ids is uncond.text_ids
    assert r.neg_text_mask is uncond.text_mask


def test_make_request_with_sound():
    r = make_request(prompt(5), prompt(3), with_sound=True, num_inference_steps=7, guidance_scale=2.5, seed=3)
    assert (r.sound_frames, r.sound_dim, r.sound_latent_fps) == (197, 64, 25.0)
    assert (r.num_inference_steps, r.guidance_scale, r.seed) == (7, 2.5, 3)


def test_make_request_counts_sound_of_the_effective_frames():
    r = make_request(prompt(5), prompt(3), num_frames=100, with_sound=True)
    assert r.video_shape[0] == 25
    assert r.sound_frames == sound_latent_frames(97, 24.0) == 102
    assert sound_latent_frames(100, 24.0) == 105


@pytest.mark.parametrize(("rounding", "frames"), [("integer", 109), ("float", 110)])
def test_make_request_obeys_the_rounding(rounding, frames):
    r = make_request(
        prompt(5),
        prompt(3),
        num_frames=109,
        fps=25.0,
        with_sound=True,
        preset=replace(PRESETS["native"], sound_rounding=rounding),
    )
    assert r.sound_frames == frames


def test_make_request_uses_the_checkpoints_units():
    media = replace(NANO, temporal=8, spatial=8, sampling_rate=16000, hop_size=1024, sound_dim=4, sound_latent_fps=15.625)
    r = make_request(prompt(5), prompt(3), num_frames=10, height=96, width=160, fps=8.0, with_sound=True, media=media)
    assert r.video_shape == (2, 12, 20)
    assert (r.sound_frames, r.sound_dim, r.sound_latent_fps) == (18, 4, 15.625)  # 9 frames, 1.125 s, 17.6 latents


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 100}, "got height 100, .* try 96 or 112"),
        ({"fps": 0.0}, "got fps 0"),
        ({"num_frames": 0}, "got num_frames 0"),
        ({"with_sound": True, "media": replace(NANO, sound_dim=None)}, "no sound.* try with_sound=False"),
        ({"seed": -1}, "got seed -1"),
    ],
)
def test_make_request_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_request(prompt(5), prompt(3), **arguments)


@pytest.mark.parametrize("size", [-16, -5, 0, 1])
def test_sizes_below_one_latent_name_the_smallest(size):
    with pytest.raises(ValueError, match="try 16$"):
        pixel_to_latent_shape(9, size, 1280)


def test_a_mask_of_another_length_is_refused():
    ids = torch.zeros(1, 3, dtype=torch.int64)
    with pytest.raises(Exception, match="mask|text_mask"):
        Cosmos3T2VRequest(ids, torch.ones(1, 4, dtype=torch.int64), ids, torch.ones_like(ids), (3, 3, 5))
