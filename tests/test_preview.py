"""The linear preview: what it is fitted to, how well, and what its file may hold."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmos3_lab import decode_video, encode_video
from cosmos3_lab.preview import (
    FILE,
    LatentPreview,
    example_latents,
    fit_latent_preview,
    latent_grid_colours,
    latent_preview,
    main,
    preview_r2,
    read_preview,
    smooth_latents,
    write_preview,
)


def a_preview(channels=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return LatentPreview(torch.randn(2, 3, channels, generator=g), torch.rand(2, 3, generator=g), 0.5)


def lab_copy(models, folder):
    """The same models, as if loaded from another folder."""
    return replace(models, configs=replace(models.configs, folder=folder))


# -------------------------------------------------------------------------------------------------------------- map


def test_the_first_frame_has_weights_of_its_own():
    weight, bias = torch.zeros(2, 3, 4), torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    weight[0, 0, 1] = weight[1, 2, 3] = 0.5
    video = torch.zeros(1, 4, 3, 2, 2)
    video[0, 1], video[0, 3] = 0.4, -0.2
    pixels = LatentPreview(weight, bias, 1.0).pixels(video)
    assert pixels.shape == (3, 2, 2, 3)
    assert pixels[0, 1, 1] == pytest.approx([0.3, 0.2, 0.3])
    assert pixels[1, 0, 1] == pytest.approx([0.4, 0.5, 0.5])
    assert np.array_equal(pixels[1, 0, 1], pixels[2, 1, 0])


def test_colours_are_clipped_and_keep_their_place():
    preview = LatentPreview(torch.ones(2, 3, 1), torch.zeros(2, 3), 1.0)
    video = torch.tensor([[-3.0, 0.25], [0.75, 9.0]]).reshape(1, 1, 1, 2, 2).bfloat16()
    assert np.array_equal(preview.pixels(video)[0, :, :, 0], [[0.0, 0.25], [0.75, 1.0]])


def test_another_number_of_channels_is_refused():
    with pytest.raises(ValueError, match="got latents with 5 channels, expected the preview's 4"):
        a_preview().pixels(torch.zeros(1, 5, 1, 2, 2))


# -------------------------------------------------------------------------------------------------------------- fit


def test_targets_are_decoded_frames_averaged_over_each_latent_pixel(tiny):
    video = torch.randn(1, tiny.media.channels, 3, 2, 4)
    pixels, side = decode_video(tiny.vae, video)[0], tiny.media.spatial
    colours = latent_grid_colours(tiny.vae, video)
    assert colours.shape == (3, 2, 4, 3)
    corner = (slice(None), slice(side, 2 * side), slice(3 * side, 4 * side))  # row 1, column 3
    assert torch.allclose(colours[0, 1, 3], pixels[:, 0][corner].mean((1, 2)), atol=1e-5)
    assert torch.allclose(colours[2, 1, 3], pixels[:, 5:9][corner[0], :, corner[1], corner[2]].mean((1, 2, 3)), atol=1e-5)


def test_a_linear_decoder_is_recovered(tiny, monkeypatch):
    truth = LatentPreview(torch.randn(2, 3, 6) * 0.02, torch.rand(2, 3) * 0.2 + 0.4, 1.0)  # stays within [0, 1]
    monkeypatch.setattr("cosmos3_lab.preview.latent_grid_colours", lambda vae, video: torch.from_numpy(truth.pixels(video)))
    fitted = fit_latent_preview(tiny.vae, [torch.randn(1, 6, 3, 5, 5)])
    assert torch.allclose(fitted.weight, truth.weight, atol=1e-5)
    assert torch.allclose(fitted.bias, truth.bias, atol=1e-5)
    assert fitted.r2 == pytest.approx(1, abs=1e-6)


def test_images_alone_give_both_frames_the_same_map(tiny):
    preview = fit_latent_preview(tiny.vae, [torch.randn(1, tiny.media.channels, 1, 4, 4) for _ in range(3)])
    assert torch.equal(preview.weight[0], preview.weight[1])


def test_a_fit_explains_its_clips_better_than_another_one(tiny):
    latents = smooth_latents(tiny.media.channels, count=1)
    preview = fit_latent_preview(tiny.vae, latents)
    assert preview.r2 == pytest.approx(preview_r2(preview, tiny.vae, latents), abs=1e-6)
    assert preview_r2(a_preview(tiny.media.channels), tiny.vae, latents) < preview.r2 <= 1
    assert preview.r2 > 0


def test_encoded_films_can_be_fitted_on(tiny):
    film = torch.rand(1, 3, 5, 2 * tiny.media.spatial, 2 * tiny.media.spatial)
    assert fit_latent_preview(tiny.vae, [encode_video(tiny.vae, film)]).weight.shape == (2, 3, tiny.media.channels)


def test_nothing_to_fit_on_is_refused(tiny):
    with pytest.raises(ValueError, match="got no latents"):
        fit_latent_preview(tiny.vae, [])


def test_smooth_latents_are_smooth_and_as_wide_as_real_ones():
    (video,) = smooth_latents(16, count=1)
    assert video.std() == pytest.approx(1, abs=1e-5)
    assert (video.diff(dim=-1).std(), video.diff(dim=2).std()) < (0.6, 0.8)  # white noise: 1.4
    assert torch.equal(video, smooth_latents(16, count=3)[0])
    assert not torch.equal(video, smooth_latents(16, count=1, seed=1)[0])


# ------------------------------------------------------------------------------------------------------- checkpoint


def test_the_checkpoints_file_is_used(tiny, tmp_path):
    written = a_preview(tiny.media.channels)
    write_preview(written, tmp_path / FILE)
    read = latent_preview(lab_copy(tiny, tmp_path))
    assert torch.allclose(read.weight, written.weight, atol=1e-6)
    assert torch.allclose(read.bias, written.bias, atol=1e-6)
    assert read.r2 == 0.5


def test_without_a_file_it_is_fitted_on_demand(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("cosmos3_lab.preview.SMOOTH_SHAPE", (2, 3, 3))  # quicker
    made = latent_preview(lab_copy(tiny, tmp_path))
    assert torch.equal(made.weight, fit_latent_preview(tiny.vae, smooth_latents(tiny.media.channels)).weight)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        '{"weight": [], "bias": []}',
        json.dumps({"weight": [[[1.0] * 4] * 3] * 2, "bias": [[0.0] * 3] * 2, "r2": "good"}),
    ],
)
def test_a_file_that_is_no_preview_is_refused(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=r"p\.json (holds no latent preview|is not JSON|is not a JSON object).* again"):
        read_preview(tmp_path / "p.json", channels=4)


@pytest.mark.parametrize("broken", [a_preview(5), LatentPreview(torch.full((2, 3, 4), torch.nan), torch.zeros(2, 3), 0.0)])
def test_a_file_of_another_checkpoint_is_refused(tmp_path, broken):
    write_preview(broken, tmp_path / "p.json")
    with pytest.raises(ValueError, match=r"expected finite numbers of \(2, 3, 4\) and \(2, 3\)"):
        read_preview(tmp_path / "p.json", channels=4)


# ---------------------------------------------------------------------------------------------------------- command


def test_example_runs_differ_and_are_those_of_generate(tiny):
    from cosmos3_lab import generate

    size = {"num_inference_steps": 2, "num_frames": 5}
    first, second = example_latents(tiny, runs=2, side=2 * tiny.media.spatial, **size)
    assert not torch.equal(first, second)
    side = 2 * tiny.media.spatial
    run = generate(tiny, tiny.defaults.example_prompts[0], height=side, width=side, seed=0, progress=False, **size)
    assert torch.equal(first, run.latents.video)


def test_the_command_writes_the_file(tiny_folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "preview.json"
    args = ["preview", str(tiny_folder), "--runs", "2", "--steps", "1", "--frames", "5", "--side", "32", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", [*args, "--out", str(out)])
    main()
    assert "on clips that a fit had not seen" in capsys.readouterr().out
    channels = len(json.loads(out.read_text())["weight"][0][0])
    assert read_preview(out, channels=channels).r2 <= 1
    assert not (tiny_folder / FILE).exists()
