"""Trained weights as a checkpoint: what is written is what is loaded, and other shapes are refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from checks import refused
from safetensors.torch import load_file, save_file

from cosmos3_lab import generate, inspect_checkpoint, load_cosmos3
from cosmos3_lab.pico.export import (
    read_autoencoders,
    read_transformer,
    write_avae,
    write_settings,
    write_transformer,
    write_vae,
)
from cosmos3_lab.pico.recipe import NEGATIVE_PROMPT, RECIPES
from cosmos3_lab.pico.train import DEFAULTS
from cosmos3_lab.pico.train_avae import build_avae
from cosmos3_lab.pico.train_transformer import build_transformer
from cosmos3_lab.pico.train_vae import build_vae
from cosmos3_lab.weights import SINGLE

TINY, CPU = RECIPES["tiny"], torch.device("cpu")


def shaken(module, seed):
    """Every weight at a random value of its own, so that none can be taken for another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    return module


@pytest.fixture(scope="module")
def modules():
    vae, avae, transformer = (build(TINY, CPU) for build in (build_vae, build_avae, build_transformer))
    vae.config = replace(vae.config, latents_mean=(0.1, -0.2, 0.3, 0.0), latents_std=(0.5, 2.0, 1.5, 1.0))
    return {"vae": shaken(vae, 0), "avae": shaken(avae, 1), "transformer": shaken(transformer, 2)}


@pytest.fixture(scope="module")
def written(modules, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written") / "checkpoint"
    write_settings(folder, TINY, DEFAULTS)
    write_vae(folder, modules["vae"])
    write_avae(folder, modules["avae"])
    write_transformer(folder, modules["transformer"])
    return folder


def rounded(name, p):
    return p if ".time_embedder." in name else p.bfloat16().float()


def check_loaded(modules, loaded):
    """In float32: rounded to bfloat16 as Nano's files are, but for the time embedder and the AVAE."""
    for key, module in loaded.items():
        ours, theirs = dict(modules[key].named_parameters()), dict(module.named_parameters())
        assert ours.keys() == theirs.keys()
        for name, p in theirs.items():
            assert p.dtype == torch.float32
            if key == "avae":  # magnitude times direction is the weight again
                torch.testing.assert_close(p, ours[name].detach(), rtol=1e-6, atol=1e-6)
            else:
                assert torch.equal(p, rounded(name, ours[name])), name


def test_what_is_written_is_loaded(modules, written):
    assert inspect_checkpoint(written).problems == ()
    with load_cosmos3(written, device="cpu", load_encoder=True) as models:
        check_loaded(modules, {"vae": models.vae, "avae": models.avae, "transformer": models.transformer})
        assert models.vae.config == modules["vae"].config
        assert models.avae.config == modules["avae"].config
        assert models.transformer.config == modules["transformer"].config
        d = models.defaults
        assert (d.name, d.num_frames, d.height, d.width, d.fps) == ("tiny", 9, 32, 32, 16)
        assert {name: getattr(d, name) for name in DEFAULTS} == DEFAULTS
        made = generate(models, d.example_prompts[0], with_sound=True, num_inference_steps=2, progress=False)
    assert made.output.frames.shape == (9, 32, 32, 3)
    assert made.output.waveform.shape == (2, 9600)  # 15 latents of 640 samples
    assert json.loads((written / "assets" / "negative_prompt.json").read_text()) == NEGATIVE_PROMPT


def test_autoencoders_are_read_without_a_transformer(modules, written, tmp_path):
    for name in ("vae", "sound_tokenizer"):
        (tmp_path / name).symlink_to(written / name)
    vae, avae = read_autoencoders(tmp_path, CPU)
    check_loaded(modules, {"vae": vae, "avae": avae})
    (tmp_path / "sound_tokenizer").unlink()
    refused("sound_tokenizer", "is missing", call=lambda: read_autoencoders(tmp_path, CPU))


def test_autoencoders_without_their_encoders_are_refused(written, tmp_path):
    for name in ("vae", "sound_tokenizer"):
        shutil.copytree(written / name, tmp_path / name)
    file = tmp_path / "sound_tokenizer" / SINGLE
    save_file({k: v for k, v in load_file(file).items() if not k.startswith("encoder.")}, file)
    refused("sound_tokenizer", "encoder", call=lambda: read_autoencoders(tmp_path, CPU))


def test_a_transformer_is_trained_further(modules, written):
    transformer = build_transformer(TINY, CPU)
    read_transformer(written, transformer)
    check_loaded(modules, {"transformer": transformer})


@pytest.mark.parametrize(("change", "words"), [
    ({"hidden_size": 96}, ("shape", "64", "96")),
    ({"num_hidden_layers": 3}, ("lacks", "layers.2.")),
    ({"num_hidden_layers": 1}, ("unexpected", "layers.1.")),
])  # fmt: skip
def test_a_transformer_of_another_shape_is_refused(written, change, words):
    transformer = build_transformer(replace(TINY, transformer=replace(TINY.transformer, **change)), CPU)
    before = {name: p.clone() for name, p in transformer.named_parameters()}
    refused("transformer", *words, call=lambda: read_transformer(written, transformer))
    assert all(torch.equal(p, before[name]) for name, p in transformer.named_parameters())
