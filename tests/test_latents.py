"""Initial noise and patches."""

import pytest
import torch

from cosmos3_lab import Latents, init_latents, patchify, unpatchify

GOLDEN_42 = torch.tensor([0.49671415, -0.1382643, 0.64768857, 1.5230298, -0.23415338])  # RandomState(42), float32


def test_golden_noise_of_seed_42():
    latents = init_latents((3, 3, 5), channels=8, sound_frames=15, sound_dim=4)
    assert torch.equal(latents.video.flatten()[:5], GOLDEN_42)
    assert torch.equal(latents.sound[0].T.flatten()[:5], GOLDEN_42)  # drawn channel-major
    assert latents.video.dtype == latents.sound.dtype == torch.float32


def test_nano_shapes():
    latents = init_latents((2, 45, 80), sound_frames=197)
    assert latents.video.shape == (1, 48, 2, 45, 80)
    assert latents.sound.shape == (1, 197, 64)
    assert latents.sound.is_contiguous()


def test_sound_noise_repeats_the_start_of_the_video_noise():
    latents = init_latents((3, 3, 5), channels=8, sound_frames=15, sound_dim=4, seed=7)
    assert torch.equal(latents.sound[0].T.flatten(), latents.video.flatten()[: 15 * 4])


def test_torch_noise_is_one_stream_video_first():
    latents = init_latents((3, 3, 5), channels=8, sound_frames=15, sound_dim=4, seed=7, noise_source="torch")
    torch.manual_seed(7)
    assert torch.equal(latents.video, torch.randn(1, 8, 3, 3, 5))
    assert torch.equal(latents.sound[0].T, torch.randn(4, 15))


@pytest.mark.parametrize("source", ["numpy", "torch"])
def test_a_seed_decides_the_noise_and_nothing_else(source):
    def draw(seed, sound_frames=None):
        return init_latents((2, 3, 4), channels=2, sound_frames=sound_frames, sound_dim=4, seed=seed, noise_source=source)

    state = torch.get_rng_state()
    assert torch.equal(draw(1).video, draw(1, sound_frames=3).video)
    assert not torch.equal(draw(1).video, draw(2).video)
    assert draw(1).sound is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ValueError, match=f"got seed {seed}, expected a whole number from 0 to 4294967295"):
        init_latents((1, 1, 1), seed=seed)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
@pytest.mark.parametrize("source", ["numpy", "torch"])
def test_the_extreme_seeds_work(seed, source):
    assert init_latents((1, 2, 2), channels=1, seed=seed, noise_source=source).video.isfinite().all()


# ---------------------------------------------------------------------------------------------------------- patches


@pytest.mark.parametrize(("height", "width"), [(4, 6), (3, 5), (4, 5), (1, 1)])
def test_patch_order_is_row_column_channel(height, width):
    channels, frames = 3, 2
    video = torch.randn(1, channels, frames, height, width)
    tokens = patchify(video)
    rows, columns = -(-height // 2), -(-width // 2)
    assert tokens.shape == (frames * rows * columns, 4 * channels)
    padded = torch.zeros(channels, frames, 2 * rows, 2 * columns)
    padded[..., :height, :width] = video[0]
    for f in range(frames):
        for i in range(rows):
            for j in range(columns):
                token = tokens[(f * rows + i) * columns + j]
                for a in (0, 1):
                    for b in (0, 1):
                        values = token[(a * 2 + b) * channels : (a * 2 + b + 1) * channels]
                        assert torch.equal(values, padded[:, f, 2 * i + a, 2 * j + b])


def test_nano_has_44160_video_tokens():
    assert patchify(torch.zeros(1, 48, 48, 45, 80)).shape == (44160, 192)


@pytest.mark.parametrize("shape", [(2, 4, 6), (3, 3, 5), (1, 1, 1), (2, 7, 4)])
def test_unpatchify_inverts_patchify(shape):
    video = torch.randn(1, 5, *shape)
    assert torch.equal(unpatchify(patchify(video), shape), video)


def test_other_patch_sides():
    video = torch.randn(1, 2, 2, 4, 7)
    tokens = patchify(video, patch=3)
    assert tokens.shape == (2 * 2 * 3, 9 * 2)
    assert torch.equal(unpatchify(tokens, (2, 4, 7), patch=3), video)


# ----------------------------------------------------------------------------------------------------------- record


def test_map_covers_both_modalities():
    a, b = Latents(torch.ones(1, 2, 1, 1, 1), torch.full((1, 3, 4), 2.0)), Latents(torch.ones(1, 2, 1, 1, 1), torch.ones(1, 3, 4))
    total = a.map(lambda x, y: 10 * x + y, b)
    assert total.video.unique().tolist() == [11.0]
    assert total.sound.unique().tolist() == [21.0]
    assert a.video.unique().tolist() == [1.0]


def test_map_of_a_silent_record_stays_silent():
    assert Latents(torch.ones(1, 2, 1, 1, 1)).map(torch.neg).sound is None


def test_to_moves_both_modalities():
    moved = Latents(torch.ones(1, 2, 1, 1, 1), torch.ones(1, 3, 4)).to("cpu", torch.bfloat16)
    assert moved.video.dtype == moved.sound.dtype == torch.bfloat16


def test_repr_shows_shapes():
    video, sound = torch.ones(1, 2, 3, 4, 5), torch.ones(1, 6, 7)
    assert repr(Latents(video)) == "Latents(video=[1, 2, 3, 4, 5], torch.float32, cpu)"
    assert "sound=[1, 6, 7]" in repr(Latents(video, sound))
