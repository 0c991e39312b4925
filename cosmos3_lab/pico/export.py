"""Trained weights become a checkpoint folder in the Nano layout, which `load_cosmos3` and diffusers both read.

Read next: `train.py`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cosmos3_lab.captions import Clip, positive_segments
from cosmos3_lab.checkpoint import SKIP_TRANSFORMER, weight_norm_sources
from cosmos3_lab.layout import MODEL_INDEX, NANO_SCHEDULER, transformer_json, vae_json, write_json, write_tokenizer, write_weights
from cosmos3_lab.pico.grammar import tell
from cosmos3_lab.pico.recipe import NEGATIVE_PROMPT, Recipe
from cosmos3_lab.pico.scenes import sample_scene
from cosmos3_lab.pico.world import FPS
from cosmos3_lab.presets import PRESETS
from cosmos3_lab.sound_avae import SoundAVAE, SoundAVAEConfig
from cosmos3_lab.towers import Cosmos3Transformer
from cosmos3_lab.video_vae import VideoVAE, VideoVAEConfig
from cosmos3_lab.weights import check_weights, find_tensors, load_weights

EXAMPLE_PROMPTS = (
    "a red circle bounces on a blue background; low thuds",
    "a large yellow square bounces from side to side on a purple background; high pings",
    "a red circle bounces while a green square slides to the left on a white background; knocks",
    "a small orange ball is dropped and bounces lower each time on a black background; wooden knocks",
    "a small pink ball and a small blue ball collide on a gray background; a click",
    "a green triangle rises on a black background; a whistle follows its height",
    "a pink circle orbits clockwise on a gray background; a tone follows its height",
    "a big orange square pulses slowly on a cyan background; low thuds",
)


def write_settings(folder: Path, recipe: Recipe, defaults: dict[str, Any]) -> None:
    """Everything but weights: tokenizer, negative prompt, scheduler, index and defaults.

    Args:
        folder: of the checkpoint.
        recipe: gives shapes, size of the clips and of the vocabulary.
        defaults: of `cosmos3_lab.json`.
    """
    write_tokenizer(folder / "text_tokenizer", _corpus(recipe), recipe.transformer.vocab_size)
    write_json(folder / "assets" / "negative_prompt.json", NEGATIVE_PROMPT)
    flow = {"use_karras_sigmas": False, "flow_shift": defaults["flow_shift"], "sigma_min": None, "sigma_max": None}
    write_json(folder / "scheduler" / "scheduler_config.json", NANO_SCHEDULER | flow)
    write_json(folder / "model_index.json", MODEL_INDEX)
    size = {"num_frames": recipe.frames, "height": recipe.side, "width": recipe.side, "fps": int(FPS)}
    lab = {"name": recipe.name, "defaults": size | defaults, "example_prompts": EXAMPLE_PROMPTS}
    write_json(folder / "cosmos3_lab.json", lab)


def write_vae(folder: Path, vae: VideoVAE) -> None:
    """`vae/`, in bfloat16 as Nano's.

    Args:
        folder: of the checkpoint.
        vae: with its encoder, and with the statistics of its latents in its config.
    """
    write_json(folder / "vae" / "config.json", vae_json(vae.config))
    write_weights(folder / "vae", ((name, p.bfloat16()) for name, p in vae.named_parameters()))


def write_avae(folder: Path, avae: SoundAVAE) -> None:
    """`sound_tokenizer/`, in float32 as Nano's, with convolutions as magnitude and direction.

    Args:
        folder: of the checkpoint.
        avae: with its encoder.
    """
    c = avae.config
    unused = {"model_type": "autoencoder_v2", "stereo": True, "use_wav_as_input": True, "encoder_enabled": True}
    encoder = {"enc_type": "spec_convnext", "enc_use_snake": True, "enc_num_layers": len(c.enc_strides)}
    decoder = {"dec_type": "oobleck", "dec_use_snake": True, "activation": "snakebeta", "snake_logscale": True}
    config = {"_class_name": "Cosmos3AVAEAudioTokenizer", **asdict(c), **unused, **encoder, **decoder}
    write_json(folder / "sound_tokenizer" / "config.json", config | {"enc_intermediate_dim": 4 * c.enc_dim})
    write_weights(folder / "sound_tokenizer", _with_weight_norm(avae))


def _with_weight_norm(avae: SoundAVAE) -> Iterator[tuple[str, Tensor]]:
    for name, p in avae.named_parameters():
        sources = weight_norm_sources(name)
        if len(sources) == 1:
            yield name, p
        else:
            yield sources[0], torch.linalg.vector_norm(p, dim=tuple(range(1, p.ndim)), keepdim=True)
            yield sources[1], p


def write_transformer(folder: Path, transformer: Cosmos3Transformer) -> None:
    """`transformer/`, in bfloat16 but for the time embedder, with the two unused tensors that diffusers looks for.

    Args:
        folder: of the checkpoint.
        transformer: both towers.
    """
    c = transformer.config
    write_json(folder / "transformer" / "config.json", transformer_json(c) | {"action_gen": False})
    write_weights(folder / "transformer", _tower_tensors(transformer))


def _tower_tensors(transformer: Cosmos3Transformer) -> Iterator[tuple[str, Tensor]]:
    for name, p in transformer.named_parameters():
        plain = name.split(".", 1)[1]  # the file's names lack the tower's
        yield plain, p.float() if plain.startswith("time_embedder.") else p.bfloat16()
    table = transformer.und.embed_tokens.weight
    yield "norm.weight", torch.ones_like(table[0]).bfloat16()
    yield "lm_head.weight", torch.zeros_like(table).bfloat16()


def _corpus(recipe: Recipe) -> Iterator[str]:
    """Texts as the tokenizer will see them: captions in every form, and the negative prompt."""
    for seed in range(4000):
        clip = Clip(recipe.frames if seed % 3 else 1, recipe.side, recipe.side, FPS)
        yield "".join(s.text for s in positive_segments(tell(sample_scene(seed), seed), clip, "inject"))
    yield from [json.dumps(NEGATIVE_PROMPT)] * 40
    yield from [preset.system_prompt or "" for preset in PRESETS.values()] * 40
    yield from ["user assistant system not"] * 40


def read_autoencoders(folder: Path, device: torch.device) -> tuple[VideoVAE, SoundAVAE]:
    """Both autoencoders with their encoders in float32, from a folder that may not have a transformer yet.

    Args:
        folder: of the checkpoint.
        device: where they go.

    Raises:
        CheckpointError: one of them is not there, or not complete.
    """
    tensors = [find_tensors(folder / name) for name in ("vae", "sound_tokenizer")]
    settings = [json.loads((folder / name / "config.json").read_text()) for name in ("vae", "sound_tokenizer")]
    with torch.device("meta"):
        vae = VideoVAE(VideoVAEConfig.from_dict(settings[0]), with_encoder=True)
        avae = SoundAVAE(SoundAVAEConfig.from_dict(settings[1]), with_encoder=True)
    sources = lambda name: (name,), weight_norm_sources
    for module, found, component, of in zip((vae, avae), tensors, ("vae", "sound_tokenizer"), sources, strict=True):
        check_weights(module, found, component=component, sources=of, skip=())
        load_weights(module, found, sources=of, device=device, dtype=torch.float32)
    return vae, avae


def read_transformer(folder: Path, transformer: Cosmos3Transformer) -> None:
    """Replace the weights of a transformer by those of a checkpoint with the same shapes, to train on from there.

    Args:
        folder: of the checkpoint.
        transformer: on its device, float32.

    Raises:
        CheckpointError: the checkpoint has other shapes.
    """
    tensors, sources = find_tensors(folder / "transformer"), lambda name: (name.split(".", 1)[1],)
    check_weights(transformer, tensors, component="transformer", sources=sources, skip=SKIP_TRANSFORMER)
    device = transformer.gen.proj_in.weight.device
    load_weights(transformer, tensors, sources=sources, device=device, dtype=torch.float32)
