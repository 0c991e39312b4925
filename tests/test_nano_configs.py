"""The released Nano's own config files (nano_configs.json holds their keys and values) must be read as what they say."""

import json
from pathlib import Path

import pytest

from cosmos3_lab.random_checkpoint import RECIPES
from cosmos3_lab.schedule import karras_schedule, schedule_from_config
from cosmos3_lab.sound_avae import SoundAVAEConfig
from cosmos3_lab.towers import Cosmos3Config
from cosmos3_lab.video_vae import VideoVAEConfig

NANO = json.loads((Path(__file__).parent / "nano_configs.json").read_text(encoding="utf-8"))


def test_the_transformer_is_nano():
    assert Cosmos3Config.from_dict(NANO["transformer"]) == Cosmos3Config() == RECIPES["nano"].transformer
    assert Cosmos3Config().patch_latent_dim == 192


def test_newer_exports_write_the_sections_flat():
    flat = NANO["transformer"] | {"rope_scaling": None, "rope_axes_dim": [24, 20, 20]}
    assert Cosmos3Config.from_dict(flat) == Cosmos3Config()


@pytest.mark.parametrize("gone", [{"sound_gen": False, "sound_dim": None}, {"sound_gen": None, "sound_dim": None}])
def test_a_silent_export_is_silent(gone):
    config = Cosmos3Config.from_dict(NANO["transformer"] | gone)
    assert not config.sound_gen
    assert config.sound_dim is None


def test_sound_without_a_width_is_refused():
    with pytest.raises(ValueError, match="sound_dim"):
        Cosmos3Config.from_dict(NANO["transformer"] | {"sound_dim": None})


def test_the_video_vae_is_nano():
    vae = VideoVAEConfig.from_dict(NANO["vae"])
    assert (vae.scale_factor_temporal, vae.scale_factor_spatial, vae.z_dim, vae.decoder_base_dim) == (4, 16, 48, 256)
    assert (vae.latents_mean[0], vae.latents_mean[-1]) == (-0.2289, -0.0667)
    assert (vae.latents_std[0], vae.latents_std[-1]) == (0.4765, 0.7744)
    assert len(vae.latents_mean) == len(vae.latents_std) == 48


def test_the_avae_is_nano():
    assert SoundAVAEConfig.from_dict(NANO["sound_tokenizer"]) == SoundAVAEConfig()


@pytest.mark.parametrize("key", ["sampling_rate", "hop_size", "dec_strides"])
def test_an_avae_without_its_rates_is_refused(key):
    with pytest.raises(ValueError, match=f"lacks {key}"):
        SoundAVAEConfig.from_dict({k: v for k, v in NANO["sound_tokenizer"].items() if k != key})


def test_the_scheduler_file_is_karras():
    made = schedule_from_config(NANO["scheduler"], 35)
    assert made.sigmas.equal(karras_schedule(35).sigmas)


@pytest.mark.parametrize(("part", "key"), [("transformer", "hidden_size"), ("transformer", "rope_theta"), ("vae", "z_dim")])
@pytest.mark.parametrize("value", [10**400, -(10**400), 1e400, float("nan")])
def test_numbers_beyond_reason_are_one_error(part, key, value):
    read = Cosmos3Config.from_dict if part == "transformer" else VideoVAEConfig.from_dict
    with pytest.raises(ValueError, match=key):
        read(NANO[part] | {key: value})
    with pytest.raises(ValueError, match="sigma_max"):
        schedule_from_config(NANO["scheduler"] | {"sigma_max": value}, 4)
