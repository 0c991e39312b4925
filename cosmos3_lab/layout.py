"""Writing a folder in the Cosmos3-Nano layout: settings, weights and tokenizer under the names that `load_cosmos3` reads.

Read next: `random_checkpoint.py` and `pico/export.py`, which fill such folders.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from cosmos3_lab.files import replacing
from cosmos3_lab.towers import Cosmos3Config
from cosmos3_lab.video_vae import VideoVAEConfig
from cosmos3_lab.weights import INDEX, SINGLE

NANO_SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "solver_order": 2,
    "solver_type": "bh2",
    "predict_x0": True,
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
    "use_karras_sigmas": True,
    "sigma_min": 0.147,
    "sigma_max": 200.0,
    "flow_shift": 1.0,
    "final_sigmas_type": "zero",
    "timestep_spacing": "linspace",
    "lower_order_final": True,
}

# model_index.json: what diffusers' Cosmos3OmniPipeline.from_pretrained looks for.
MODEL_INDEX = {
    "_class_name": "Cosmos3OmniPipeline",
    "_diffusers_version": "0.42.1",
    "default_use_system_prompt": True,
    "enable_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "sound_tokenizer": ["diffusers", "Cosmos3AVAEAudioTokenizer"],
    "text_tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "Cosmos3OmniTransformer"],
    "use_native_flow_schedule": False,
    "vae": ["diffusers", "AutoencoderKLWan"],
}


def transformer_json(c: Cosmos3Config) -> dict[str, Any]:
    """`transformer/config.json` of these shapes, without the action heads."""
    config = asdict(c)
    del config["mrope_section"], config["temporal_compression_factor"]
    return config | {
        "_class_name": "Cosmos3OmniTransformer",
        "hidden_act": "silu",
        "attention_bias": False,
        "patch_latent_dim": c.patch_latent_dim,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": list(c.mrope_section), "rope_type": "default"},
        "base_fps": int(c.base_fps),
        "unified_3d_mrope_reset_spatial_ids": True,
        "qk_norm_for_text": True,
    }


def vae_json(vae: VideoVAEConfig) -> dict[str, Any]:
    """`vae/config.json` of these shapes and statistics."""
    return asdict(vae) | {"_class_name": "AutoencoderKLWan", "is_residual": True, "attn_scales": [], "dropout": 0.0}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a settings file, and the folder that it is in."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


# Qwen2's rule for cutting text into words, and a ChatML template: what the real tokenizer does with a plain message.
QWEN2_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


def write_tokenizer(folder: Path, corpus: Iterable[str], vocab_size: int) -> None:
    """Write a byte-level BPE with Qwen's rules and special tokens.

    Args:
        folder: `text_tokenizer`.
        corpus: what the merges are learned from.
        vocab_size: entries, special tokens included; at least 261.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = vocab_size - len(SPECIAL_TOKENS)
    trainer = trainers.BpeTrainer(vocab_size=room, min_frequency=2, show_progress=False, initial_alphabet=alphabet)
    bpe.train_from_iterator(corpus, trainer)
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(str(folder))


def write_weights(folder: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int | None = None) -> None:
    """Write safetensors: one file, or several with an index, each cut before it exceeds `shard_bytes`.

    Args:
        folder: of the component; it exists.
        tensors: by name, in the order of the files.
        shard_bytes: None for one file.
    """
    from safetensors.torch import save_file

    if shard_bytes is None:
        with replacing(folder / SINGLE) as temporary:
            save_file({k: v.cpu().contiguous() for k, v in tensors}, temporary, {"format": "pt"})
        return
    weight_map, total, files = {}, 0, []
    for shard in _shards(tensors, shard_bytes):
        files.append(folder / f"shard-{len(files)}")
        save_file(shard, files[-1], {"format": "pt"})
        weight_map |= dict.fromkeys(shard, len(files))
        total += sum(t.nbytes for t in shard.values())
    final = [SINGLE.replace(".safetensors", f"-{i:05d}-of-{len(files):05d}.safetensors") for i in range(1, len(files) + 1)]
    for file, name in zip(files, final, strict=True):
        file.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {k: final[i - 1] for k, i in weight_map.items()}}
    write_json(folder / INDEX, index)


def _shards(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[name] = tensor.cpu().contiguous()
    yield shard
