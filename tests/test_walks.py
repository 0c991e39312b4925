"""Walks: arcs of a sphere, prompts of one length, means."""

import math
from dataclasses import replace

import pytest
import torch

from cosmos3_lab import Latents, denoise_step, encode_condition, init_latents, load_cosmos3, prepare_denoise, prepare_request
from cosmos3_lab.walks import blend_conditions, blend_inputs, expected_clip, mean_latents, slerp, slerp_latents

PROMPT = "a red circle bounces on a blue background; low thuds"


@pytest.fixture(scope="module")
def pico():
    with load_cosmos3("pico", device="cpu") as models:
        yield models


def noise(seed, n=4000):
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def test_the_ends_of_an_arc_are_its_points():
    a, b = noise(1), noise(2)
    assert torch.allclose(slerp(a, b, 0.0), a, atol=1e-6)
    assert torch.allclose(slerp(a, b, 1.0), b, atol=1e-6)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.83])
def test_an_arc_keeps_the_length_and_moves_evenly(t):
    a, b = noise(1), noise(2)
    b = b * a.norm() / b.norm()
    point = slerp(a, b, t)
    assert point.norm() == pytest.approx(float(a.norm()), rel=1e-6)
    assert torch.lerp(a, b, 0.5).norm() < 0.75 * a.norm()  # what a straight line would do

    def angle(x, y):
        return math.acos(float(torch.dot(x.double(), y.double()) / x.double().norm() / y.double().norm()))

    assert angle(a, point) == pytest.approx(t * angle(a, b), rel=1e-5)
    assert angle(a, point) + angle(point, b) == pytest.approx(angle(a, b), rel=1e-5)


def test_the_other_way_round_is_the_same_arc():
    a, b = noise(1), 2 * noise(2)
    assert torch.allclose(slerp(a, b, 0.3), slerp(b, a, 0.7), atol=1e-5)
    assert slerp(a, b, 0.5).norm() == pytest.approx(float(a.norm() + b.norm()) / 2, rel=1e-6)


@pytest.mark.parametrize("distance", [0.0, 1e-7, 1e-4, 2e-3])
def test_nearly_parallel_vectors_are_no_trouble(distance):
    a, aside = noise(1), noise(2)
    b = a + distance * aside
    assert torch.allclose(slerp(a, b, 0.5), (a + b) / 2, atol=1e-5)
    assert slerp(a, 3 * a, 0.5).norm() == pytest.approx(2 * float(a.norm()), rel=1e-6)


def test_vectors_without_a_shortest_arc_are_refused():
    a = noise(1)
    with pytest.raises(ValueError, match="opposite directions"):
        slerp(a, -2 * a, 0.5)
    with pytest.raises(ValueError, match="not zero"):
        slerp(a, 0 * a, 0.5)
    with pytest.raises(ValueError, match="one shape"):
        slerp(a, a[:-1], 0.5)


def test_video_and_sound_have_spheres_of_their_own():
    a, b = (init_latents((3, 4, 4), channels=8, sound_frames=9, sound_dim=16, seed=seed) for seed in (1, 2))
    middle = slerp_latents(a, b, 0.5)
    assert torch.equal(middle.video, slerp(a.video, b.video, 0.5))
    assert torch.equal(middle.sound, slerp(a.sound, b.sound, 0.5))
    with pytest.raises(ValueError, match="with and without sound"):
        slerp_latents(a, Latents(b.video), 0.5)


def encoded(pico, prompt):
    request = prepare_request(pico, prompt, num_frames=5)
    return encode_condition(pico.transformer, request.text_ids, request.text_mask, request.video_shape, request.fps)


def test_prompts_of_one_length_blend_from_the_one_to_the_other(pico):
    a, b = encoded(pico, PROMPT), encoded(pico, PROMPT.replace("red", "green"))
    for t, end in ((0.0, a), (1.0, b)):
        blended = blend_conditions(a, b, t)
        assert all(torch.equal(x.k, y.k) for x, y in zip(blended.cached_kv, end.cached_kv, strict=True))
        assert all(torch.equal(x.v, y.v) for x, y in zip(blended.cached_kv, end.cached_kv, strict=True))
    middle = blend_conditions(a, b, 0.5)
    assert torch.allclose(middle.cached_kv[3].v, (a.cached_kv[3].v + b.cached_kv[3].v) / 2, atol=1e-6)
    assert middle.layout == a.layout


def test_prompts_of_other_lengths_are_refused_with_both_lengths(pico):
    a, b = encoded(pico, PROMPT), encoded(pico, f"{PROMPT} and knocks")
    with pytest.raises(ValueError, match=f"got prompts of {a.layout.s_text} and {b.layout.s_text} text tokens.*token_table"):
        blend_conditions(a, b, 0.5)


def test_conditions_for_other_latents_are_refused(pico):
    a = encoded(pico, PROMPT)
    with pytest.raises(ValueError, match="expected the same latents"):
        blend_conditions(a, replace(a, layout=replace(a.layout, video_shape=(1, 2, 2))), 0.5)


def test_blended_inputs_keep_everything_but_the_prompt(pico):
    first, second = (
        prepare_denoise(pico, prepare_request(pico, prompt, num_frames=5, num_inference_steps=2))[0]
        for prompt in (PROMPT, PROMPT.replace("red", "green"))
    )
    blended = blend_inputs(first, second, 0.25)
    assert (blended.schedule, blended.request, blended.preset) == (first.schedule, first.request, first.preset)
    assert torch.allclose(blended.uncond.cached_kv[0].k, first.uncond.cached_kv[0].k, atol=1e-6)  # one negative prompt
    assert not torch.equal(blended.cond.cached_kv[0].v, first.cond.cached_kv[0].v)


def test_the_expected_clip_hardly_depends_on_the_noise(pico):
    request = prepare_request(pico, PROMPT, num_frames=5, with_sound=True)
    one, other = (expected_clip(pico, replace(request, seed=seed)) for seed in (1, 2))
    full, _ = prepare_denoise(pico, request)
    clips = [
        expected_clip(pico, prepare_request(pico, p, num_frames=5, with_sound=True)) for p in (PROMPT, "a green square rises")
    ]
    same, different = (one.video - other.video).norm(), (clips[0].video - clips[1].video).norm()
    assert same < 0.6 * different
    assert full.guidance_scale != 1  # the request's own guidance was set aside
    inputs, state = prepare_denoise(pico, replace(request, guidance_scale=1.0))
    assert torch.equal(clips[0].video, denoise_step(pico.transformer, inputs, state)[1].x0.video)


def test_means():
    parts = [init_latents((2, 3, 3), channels=4, sound_frames=5, sound_dim=6, seed=seed) for seed in range(4)]
    mean = mean_latents(parts)
    assert torch.allclose(mean.sound, sum(p.sound for p in parts) / 4, atol=1e-6)
    assert torch.equal(mean_latents(parts[:1]).video, parts[0].video)
    with pytest.raises(ValueError, match="at least one"):
        mean_latents([])
