"""Training of VAE and AVAE: the same maths as encoding and decoding, weights where something happens, statistics."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from cosmos3_lab import decode_video, encode_sound, encode_video
from cosmos3_lab.pico import train_vae as vae_module
from cosmos3_lab.pico.data import SceneBatches, scene_stream
from cosmos3_lab.pico.optimizers import Trainer
from cosmos3_lab.pico.recipe import RECIPES
from cosmos3_lab.pico.scenes import Scene, Thing, sample_scene
from cosmos3_lab.pico.train_avae import MOMENTS, _spectral, avae_loss, build_avae, train_avae
from cosmos3_lab.pico.train_vae import KL, _weights, build_vae, decode, encode, measure_statistics, stage, train_vae, vae_loss
from cosmos3_lab.pico.world import draw, play
from cosmos3_lab.video_vae import denormalize, normalize

TINY, CPU = RECIPES["tiny"], torch.device("cpu")
SCENES = [sample_scene(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def vae():
    """Untrained, with statistics that are not those of a normal distribution; do not change it."""
    torch.manual_seed(0)
    built = build_vae(TINY, CPU).requires_grad_(False)
    built.config = replace(built.config, latents_mean=(0.1, -0.2, 0.3, 0.0), latents_std=(0.5, 2.0, 1.5, 1.0))
    return built


# ------------------------------------------------------------------------------------------------------------- video VAE


@pytest.mark.parametrize("frames", [5, 9, 17])
def test_two_chunks_are_chunk_by_chunk(vae, frames):
    pixels = draw(SCENES, frames=frames, side=32)
    mean, log_variance = encode(vae, pixels * 2 - 1)
    assert mean.shape == log_variance.shape == (3, 4, (frames - 1) // 4 + 1, 4, 4)
    torch.testing.assert_close(normalize(vae.config, mean), encode_video(vae, pixels), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mean, log_variance)
    latent = torch.randn(3, 4, (frames - 1) // 4 + 1, 4, 4, generator=torch.Generator().manual_seed(0))
    decoded = decode(vae, denormalize(vae.config, latent))
    assert decoded.shape == pixels.shape
    torch.testing.assert_close(((decoded + 1) / 2).clamp(0, 1), decode_video(vae, latent), atol=1e-5, rtol=1e-5)
    assert decoded.std() > 0.01  # neither constant nor all clamped away
    assert (decoded.abs() < 1).float().mean() > 0.5


def picture(*things):
    return Scene(things, "black", (0.0, 0.0, 0.0), "silence")


def thing(radius, **options):
    return Thing("circle", "white", "small", radius, "still", rgb=(1.0, 1.0, 1.0), **options)


def weights_of(*scenes, frames=3):
    pixels = draw(scenes, frames=frames)
    return _weights(pixels, torch.tensor([scene.background_rgb for scene in scenes])), pixels


def test_outlines_weigh_most_and_empty_space_least():
    weights, _ = weights_of(picture(thing(0.2)))
    assert weights.shape == (1, 1, 3, 96, 96)
    row = weights[0, 0, 1, 48]  # through the middle, radius 19.2 pixels: the outline is at 28.8
    far, near, rim, inside = row[5], row[25], row[29], row[48]
    assert far == 1
    assert near == inside == 3
    assert rim > 6
    assert torch.equal(row, row.flip(0))


def test_the_outlines_of_small_and_large_things_weigh_the_same():
    weights, _ = weights_of(picture(thing(0.108)), picture(thing(0.22)))
    rims = (weights - 3).clamp_min(0).sum(dim=(1, 2, 3, 4))
    assert 0.7 < rims[0] / rims[1] < 1 / 0.7
    assert rims[1] / weights[0].numel() == pytest.approx(0.8, rel=0.01)


def test_ghosts_count():
    """Where a thing was a frame ago, or will be a frame later, weighs as what is near it."""
    moving = thing(0.1, x=0.5, y=0.5, vx=4.0)  # 0.25 of the frame in a frame
    scene = picture(replace(moving, motion="slide right", x=0.5 + 4.0 * 33 / 32))
    weights, pixels = weights_of(scene, frames=5)
    there = pixels[0, 0].amax(dim=1) > 0.5  # [frames, columns]
    centres = [float(row.nonzero().float().mean()) for row in there[:2]]
    assert centres[1] - centres[0] == pytest.approx(24, abs=1)
    now, before = round(centres[1]), round(centres[0])
    assert weights[0, 0, 1, 48, now] >= 3
    assert weights[0, 0, 1, 48, before] >= 3
    assert weights[0, 0, 0, 48, now] >= 3
    assert weights[0, 0, 3, 48, before] == 1


def test_colours_near_the_background_are_background():
    pixels = torch.full((1, 3, 2, 16, 16), 0.5)
    pixels[..., 4:8, 4:8] += 0.05
    assert (_weights(pixels, torch.full((1, 3), 0.5)) == 1).all()


def test_the_loss_of_the_vae_by_hand(vae, monkeypatch):
    """With a decoder that gives fixed pixels: weighted error, its square, its edges, and KL; noise as large as asked for."""
    pixels, seen = draw(SCENES, frames=5, side=32), []
    made = torch.rand(pixels.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(vae_module, "decode", lambda vae, latent: seen.append(latent) or made)
    backgrounds = torch.tensor([s.background_rgb for s in SCENES])
    noise = torch.randn(2, 3, 4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    loss, numbers = vae_loss(vae, pixels, backgrounds, noise, torch.tensor(0.5))
    mean, log_variance = encode(vae, pixels * 2 - 1)
    spread = mean.transpose(0, 1).flatten(1).std(dim=1).view(1, 4, 1, 1, 1)
    torch.testing.assert_close(seen[0], mean + (log_variance / 2).exp() * noise[0] + 0.5 * spread * noise[1])
    error, weight = made - (pixels * 2 - 1), _weights(pixels, backgrounds)
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    rows = (weight[..., 1:, :] * (error[..., 1:, :] - error[..., :-1, :]).abs()).mean()
    columns = (weight[..., 1:] * (error[..., 1:] - error[..., :-1]).abs()).mean()
    expected = (weight * error.abs()).mean() + 2 * (weight * error**2).mean() + 0.3 * (rows + columns) + KL * kl
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(numbers["kl"], kl)
    assert numbers["psnr"] == pytest.approx(10 * np.log10(4 / float((error**2).mean())), abs=1e-3)


def test_statistics_make_latents_normal(vae):
    config = measure_statistics(vae, TINY, seed=7, clips=20)
    assert config == measure_statistics(vae, TINY, seed=7, clips=20)
    assert config != measure_statistics(vae, TINY, seed=8, clips=20)
    assert config == replace(vae.config, latents_mean=config.latents_mean, latents_std=config.latents_std)
    stream = scene_stream(SceneBatches(7, 16), workers=0)
    scenes = next(stream) + next(stream)  # a whole number of batches
    latents = normalize(config, encode(vae, draw(scenes, frames=9, side=32) * 2 - 1)[0])
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 0.01
    assert (latents.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 0.01


def test_clips_grow_with_the_training():
    pico = RECIPES["pico"]
    assert [stage(progress, pico) for progress in (0.0, 0.09, 0.1, 0.77, 0.78, 1.0)] == [
        *[(9, 32)] * 2,
        *[(17, 16)] * 2,
        *[(33, 8)] * 2,
    ]
    assert {stage(progress, TINY) for progress in (0.0, 0.5, 0.9)} == {(9, 4)}


# ------------------------------------------------------------------------------------------------------------------ AVAE


class Says(nn.Module):
    """A decoder that always gives one waveform."""

    def __init__(self, waveform):
        super().__init__()
        self.waveform = waveform

    def forward(self, x):
        return self.waveform


@pytest.fixture(scope="module")
def sounds():
    scenes = [sample_scene(seed, motion="bounce") for seed in range(12)]
    return play([scene for scene in scenes if scene.sound != "silence"][:4], samples=12 * 640)


def loss_of(made, sounds, kl_weight=0.0):
    torch.manual_seed(0)
    avae = build_avae(TINY, CPU).requires_grad_(False)
    avae.decoder = Says(made)
    noise = torch.zeros(len(sounds), 4, 12)
    return avae_loss(avae, sounds, noise, torch.tensor(1.0), torch.tensor(kl_weight))


def test_perfect_sound_costs_nothing_but_the_shape_of_latents(sounds):
    torch.manual_seed(0)
    latents = encode_sound(build_avae(TINY, CPU), sounds)
    moments = latents.mean(dim=(0, 1)).square().mean() + (latents.std(dim=(0, 1)) - 1).square().mean()
    loss, numbers = loss_of(sounds, sounds)
    torch.testing.assert_close(loss, MOMENTS * moments)
    more, _ = loss_of(sounds, sounds, kl_weight=2.0)
    torch.testing.assert_close(more - loss, 2 * numbers["kl"], rtol=1e-4, atol=1e-5)
    assert numbers["snr"] > 90
    assert loss_of(sounds * 0.9, sounds)[0] > loss + 0.1


def test_quiet_sounds_count_as_much_as_loud_ones(sounds):
    nothing = torch.zeros_like(sounds)
    loud, quiet = (float(loss_of(nothing, factor * sounds)[0]) for factor in (1.0, 0.3))
    assert 0.7 * loud < quiet < loud


def test_spectral_distance(sounds):
    assert _spectral(sounds, sounds) == 0
    assert _spectral(sounds.roll(1, dims=2), sounds) > 0  # of phase little is heard
    assert _spectral(sounds.roll(1, dims=2), sounds) < 0.1 * _spectral(torch.zeros_like(sounds), sounds)
    assert _spectral(sounds.flip(1), sounds) > 0.01  # left and right are not the same
    assert _spectral(sounds * torch.tensor([1.0, -1.0])[:, None], sounds) > 0.01  # nor is their phase to each other
    assert _spectral(sounds[..., :100], sounds[..., :100]) == 0  # shorter than some windows


# ----------------------------------------------------------------------------------------------------------- going on


def weights(trainer):
    return {name: p.clone() for name, p in trainer.state().items()}


@pytest.mark.parametrize("phase", ["vae", "avae"])
def test_a_stopped_phase_goes_on_bit_for_bit(phase):
    """With clips that grow on the way (of the VAE), stopped within a stage."""
    steps = {"steps": 9, "batch": 2, "warmup": 2}
    recipe = replace(TINY, frames=17, vae_phase=replace(TINY.vae_phase, **steps), avae_phase=replace(TINY.avae_phase, **steps))
    build, train = {"vae": (build_vae, train_vae), "avae": (build_avae, train_avae)}[phase]

    def start(seed):
        torch.manual_seed(seed)
        module = build(recipe, CPU)
        trainer = Trainer(module, getattr(recipe, f"{phase}_phase"))
        return trainer, train(module, trainer, recipe, seed=3, workers=0)

    whole, numbers = start(0)
    losses = [float(step["loss"]) for step in numbers]
    assert len(losses) == whole.step_index == 9
    first, numbers = start(0)
    begun = [float(next(numbers)["loss"]) for _ in range(4)]
    numbers.close()
    kept = weights(first)
    later, numbers = start(1)
    later.restore(kept)
    assert begun + [float(step["loss"]) for step in numbers] == losses
    assert [name for name, value in whole.state().items() if not torch.equal(value, later.state()[name])] == []
    assert list(train(later.module, later, recipe, seed=3, workers=0)) == []  # nothing is left to do
