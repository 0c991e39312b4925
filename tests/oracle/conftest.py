"""The oracle: a small random checkpoint that diffusers writes, and what diffusers computes on it.

diffusers is imported without a fallback: where it is missing, these tests fail. Everything is float32 on the CPU. Sizes are
odd on purpose (latent 3 x 3 x 5, 16 fps against a base of 24), so that padding and axis mistakes show.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    Cosmos3AVAEAudioTokenizer,
    Cosmos3OmniPipeline,
    Cosmos3OmniTransformer,
    UniPCMultistepScheduler,
)
from shared import CLIP, NEGATIVE, PROMPT, STEPS, numpy_noise
from transformers import AutoTokenizer

from cosmos3_lab import load_cosmos3
from cosmos3_lab.layout import NANO_SCHEDULER, write_tokenizer
from cosmos3_lab.random_checkpoint import CORPUS, RECIPES


def _fill(module, seed):
    """Weights of order one everywhere: unlike a fresh initialisation, every parameter then has an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise, leaf = torch.randn(parameter.shape, generator=generator), name.rsplit(".", 1)[-1]
            if leaf in ("gamma", "weight_g") or (parameter.ndim == 1 and leaf == "weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif leaf in ("alpha", "beta") or parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(noise * (1 if "embed_tokens" in name else parameter[0].numel() ** -0.5))
            # Keep both decoders inside [-1, 1]: a clamp would hide differences.
            if name == "decoder.conv_out.weight":
                parameter.mul_(0.35)
            elif name == "decoder.conv2.weight_g":
                parameter.mul_(0.05)
            elif ".res_unit" in name and name.endswith("conv2.weight_g"):
                parameter.mul_(0.2)
    return module.eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Written by diffusers' own `save_pretrained`, the transformer in several shards."""
    root, recipe = tmp_path_factory.mktemp("oracle"), RECIPES["tiny"]
    c, rng = recipe.transformer, np.random.RandomState(7)
    transformer = Cosmos3OmniTransformer(
        hidden_size=c.hidden_size,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_hidden_layers,
        num_attention_heads=c.num_attention_heads,
        num_key_value_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        vocab_size=c.vocab_size,
        rope_theta=c.rope_theta,
        rope_scaling={"mrope_interleaved": True, "mrope_section": list(c.mrope_section), "rope_type": "default"},
        latent_channel=c.latent_channel,
        latent_patch_size=2,
        patch_latent_dim=c.patch_latent_dim,
        action_gen=True,
        action_dim=6,
        num_embodiment_domains=4,
        sound_gen=True,
        sound_dim=c.sound_dim,
    )
    vae = AutoencoderKLWan(
        base_dim=8,
        decoder_base_dim=16,
        z_dim=8,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        temperal_downsample=[False, True, True],
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
        latents_mean=[round(float(v), 4) for v in 0.2 * rng.standard_normal(8)],
        latents_std=[round(float(v), 4) for v in 0.5 + rng.rand(8)],
    )
    sound = Cosmos3AVAEAudioTokenizer(
        sampling_rate=48000,
        hop_size=1920,
        vocoder_input_dim=4,
        dec_dim=4,
        dec_c_mults=[1, 2, 4, 8, 16],
        dec_strides=[2, 4, 5, 6, 8],
        dec_out_channels=2,
        enc_dim=8,
        enc_latent_dim=8,
        encoder_enabled=True,  # its tensors must be skipped
    )
    _fill(transformer, 1).save_pretrained(root / "transformer", max_shard_size="300KB")
    _fill(vae, 2).save_pretrained(root / "vae")
    _fill(sound, 3).save_pretrained(root / "sound_tokenizer")
    scheduler = {k: v for k, v in NANO_SCHEDULER.items() if k != "_class_name"}
    UniPCMultistepScheduler(**scheduler).save_pretrained(root / "scheduler")
    write_tokenizer(root / "text_tokenizer", CORPUS * 4, vocab_size=325)
    (root / "model_index.json").write_text(json.dumps({"_class_name": "Cosmos3OmniPipeline"}))
    assert len(list((root / "transformer").glob("*.safetensors"))) > 2
    return root


@pytest.fixture(scope="session")
def models(folder):
    with load_cosmos3(folder, device="cpu", load_encoder=True) as models:
        yield models


@pytest.fixture(scope="session")
def pipe(folder):
    """diffusers' pipeline on the same folder, part by part (the guardrail package is not needed so)."""
    return load_pipeline(folder)


def load_pipeline(root: Path) -> Cosmos3OmniPipeline:
    pipe = Cosmos3OmniPipeline(
        transformer=Cosmos3OmniTransformer.from_pretrained(root / "transformer"),
        vae=AutoencoderKLWan.from_pretrained(root / "vae"),
        sound_tokenizer=Cosmos3AVAEAudioTokenizer.from_pretrained(root / "sound_tokenizer"),
        scheduler=UniPCMultistepScheduler.from_pretrained(root / "scheduler"),
        text_tokenizer=AutoTokenizer.from_pretrained(root / "text_tokenizer"),
        enable_safety_checker=False,
        default_use_system_prompt=True,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@dataclass
class Recording:
    """One run of diffusers' pipeline: what went into the transformer and came out, and every latent."""

    calls: list
    trajectory: list
    video: torch.Tensor
    sound: torch.Tensor | None
    waveform: torch.Tensor | None
    sigmas: torch.Tensor
    timesteps: torch.Tensor


@pytest.fixture(scope="session")
def record(pipe):
    """Run the pipeline once per setting and remember the recordings."""
    done = {}

    def run(*, karras=False, native_schedule=True, flow_shift=10.0, guidance_scale=6.0, sound=False, system_prompt=False):
        key = (karras, native_schedule, flow_shift, guidance_scale, sound, system_prompt)
        if key not in done:
            done[key] = _record(pipe, *key)
        return done[key]

    return run


def _record(pipe, karras, native_schedule, flow_shift, guidance_scale, sound, system_prompt):
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=karras, flow_shift=flow_shift)
    pipe.register_to_config(use_native_flow_schedule=native_schedule and not karras)
    calls, trajectory, last = [], [], {}

    def spy(_module, args, kwargs, result):
        last["sound_latents"] = kwargs.get("sound_tokens")
        calls.append((kwargs, [None if group is None else group[0].clone() for group in result]))

    hook = pipe.transformer.register_forward_hook(spy, with_kwargs=True)
    decode, sound_latents = pipe.decode_sound, []
    pipe.decode_sound = lambda latent: sound_latents.append(latent.clone()) or decode(latent)
    try:
        result = pipe(
            prompt=PROMPT,
            negative_prompt=NEGATIVE,
            **CLIP,
            num_inference_steps=STEPS,
            guidance_scale=guidance_scale,
            use_system_prompt=system_prompt,
            latents=numpy_noise(1, 8, 3, 3, 5),
            output_type="latent",
            callback_on_step_end=lambda p, i, t, k: trajectory.append(k["latents"].clone()) or k,
            **({"enable_sound": True, "sound_latents": numpy_noise(4, 15)} if sound else {}),
        )
    finally:
        hook.remove()
        del pipe.decode_sound
    return Recording(
        calls,
        trajectory,
        result.video,
        sound_latents[0] if sound_latents else None,
        result.sound,
        pipe.scheduler.sigmas.clone(),
        pipe.scheduler.timesteps.clone(),
    )
