"""Write a checkpoint with random weights in the Cosmos3-Nano layout: tiny for tests and demos, or at full Nano size.

    python -m cosmos3_lab.random_checkpoint FOLDER                a few MB; its pictures are noise
    python -m cosmos3_lab.random_checkpoint FOLDER --size nano    about 33 GB: tries disk, loader and GPU before the download

Layout, names, shapes, dtypes and sharding are the real ones, with the tensors that generation skips (`lm_head`, action
heads, VAE encoder) included.
"""

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cosmos3_lab.layout import MODEL_INDEX, NANO_SCHEDULER, transformer_json, vae_json, write_json, write_tokenizer, write_weights
from cosmos3_lab.sound_avae import SoundAVAE, SoundAVAEConfig
from cosmos3_lab.towers import Cosmos3Config, Cosmos3Transformer
from cosmos3_lab.video_vae import VideoVAE, VideoVAEConfig


@dataclass(frozen=True)
class Recipe:
    """Configs of a random checkpoint, and how its files are cut.

    Attributes:
        transformer, vae, sound: shapes.
        action: width and number of domains of the (unused) action heads.
        shard_bytes: size at which the transformer's files are cut.
        dtype: of the transformer and the VAE; sound is float32, as released.
        defaults: written to `cosmos3_lab.json`, None for none.
    """

    transformer: Cosmos3Config
    vae: VideoVAEConfig
    sound: SoundAVAEConfig
    action: tuple[int, int]
    shard_bytes: int
    dtype: torch.dtype
    defaults: dict[str, Any] | None


RECIPES: dict[str, Recipe] = {
    # Small widths, real structure; 13 MB in float32, odd numbers where a mix-up of axes would otherwise go unnoticed.
    "tiny": Recipe(
        Cosmos3Config(
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            intermediate_size=96,
            vocab_size=384,
            mrope_section=(4, 2, 2),
            latent_channel=8,
            sound_dim=4,
        ),
        VideoVAEConfig(base_dim=8, decoder_base_dim=16, z_dim=8, latents_mean=(0.1,) * 8, latents_std=(0.9,) * 8),
        SoundAVAEConfig(vocoder_input_dim=4, dec_dim=4),
        action=(6, 4),
        shard_bytes=300_000,
        dtype=torch.bfloat16,
        defaults={"num_frames": 17, "height": 96, "width": 160, "fps": 16, "num_inference_steps": 4},
    ),
    "nano": Recipe(
        Cosmos3Config(),
        VideoVAEConfig(),
        SoundAVAEConfig(),
        action=(64, 32),
        shard_bytes=5_000_000_000,
        dtype=torch.bfloat16,
        defaults=None,
    ),
}


def write_random_checkpoint(
    folder: str | Path,
    size: Literal["tiny", "nano"] = "tiny",
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Path:
    """Write a checkpoint folder.

    Args:
        folder: must not exist, or be empty.
        size: "tiny" (a few MB) or "nano" (about 33 GB).
        seed: of the weights.
        device: where the numbers are drawn; a GPU is much faster for "nano".

    Raises:
        ValueError: no such size, or the folder has something in it.
    """
    if size not in RECIPES:
        raise ValueError(f"got size {size!r}, expected one of {', '.join(RECIPES)}")
    folder, recipe = Path(folder), RECIPES[size]
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name a new folder")
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device("meta"):
        modules = Cosmos3Transformer(recipe.transformer), VideoVAE(recipe.vae), SoundAVAE(recipe.sound)
    shapes = _transformer_shapes(recipe, modules[0]), _named_shapes(modules[1]), _weight_norm_shapes(modules[2])
    dtypes = recipe.dtype, recipe.dtype, torch.float32
    names = "transformer", "vae", "sound_tokenizer"
    configs = transformer_json(recipe.transformer) | _action_json(recipe), vae_json(recipe.vae), asdict(recipe.sound)
    for name, shape, dtype, config in zip(names, shapes, dtypes, configs, strict=True):
        write_json(folder / name / "config.json", config)
        tensors = ((key, _random(key, size, generator).to(dtype)) for key, size in shape)
        write_weights(folder / name, tensors, recipe.shard_bytes if name == "transformer" else None)
    write_json(folder / "scheduler" / "scheduler_config.json", NANO_SCHEDULER)
    write_json(folder / "model_index.json", MODEL_INDEX)
    write_tokenizer(folder / "text_tokenizer", CORPUS * 4, vocab_size=325)
    if recipe.defaults is not None:
        write_json(folder / "cosmos3_lab.json", {"name": f"random-{size}", "defaults": recipe.defaults})
    return folder


Shapes = list[tuple[str, tuple[int, ...]]]


def _named_shapes(module: nn.Module) -> Shapes:
    return [(name, tuple(p.shape)) for name, p in module.named_parameters()]


def _transformer_shapes(recipe: Recipe, transformer: Cosmos3Transformer) -> Shapes:
    """Both towers under the names of the file, ordered by layer, with what generation skips."""
    c, (action_dim, domains) = recipe.transformer, recipe.action
    hidden = c.hidden_size
    shapes = [(name.split(".", 1)[1], shape) for name, shape in _named_shapes(transformer)]
    layer = {name: int(name.split(".")[1]) for name, _ in shapes if name.startswith("layers.")}
    tables = [s for s in shapes if s[0].startswith("embed_tokens.")]
    layers = sorted((s for s in shapes if s[0] in layer), key=lambda s: layer[s[0]])
    heads = [s for s in shapes if s not in tables and s[0] not in layer]
    unused = [
        ("norm.weight", (hidden,)),
        ("lm_head.weight", (c.vocab_size, hidden)),
        ("action_proj_in.fc.weight", (domains, action_dim * hidden)),
        ("action_proj_in.bias.weight", (domains, hidden)),
        ("action_proj_out.fc.weight", (domains, action_dim * hidden)),
        ("action_proj_out.bias.weight", (domains, action_dim)),
        ("action_modality_embed", (hidden,)),
    ]
    return [*tables, *layers, *heads, *unused]


def _weight_norm_shapes(avae: SoundAVAE) -> Shapes:
    shapes: Shapes = []
    for name, shape in _named_shapes(avae):
        if name.endswith(".weight"):
            shapes += [(f"{name}_g", (shape[0], *[1] * (len(shape) - 1))), (f"{name}_v", shape)]
        else:
            shapes.append((name, shape))
    return shapes


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Values that keep activations of order one, so that nothing overflows or saturates."""
    leaf, device = name.rsplit(".", 1)[-1], generator.device
    if leaf in ("alpha", "beta", "bias") and not name.startswith("action"):
        return torch.zeros(shape, device=device)
    if leaf in ("gamma", "weight_g") or (len(shape) == 1 and leaf == "weight"):
        return torch.full(shape, 0.1 if ".res_unit" in name or name == "decoder.conv2.weight_g" else 1.0, device=device)
    fan_in = 1 if "embed" in name else max(1, torch.Size(shape[1:]).numel())
    # Drawn in bfloat16 to halve the memory; the largest tensors are what counts here.
    return torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16) * fan_in**-0.5


def _action_json(recipe: Recipe) -> dict[str, Any]:
    return {"action_gen": True, "action_dim": recipe.action[0], "num_embodiment_domains": recipe.action[1]}


# Enough for a tokenizer to try every code path with.
CORPUS = (
    "The video is 7.9 seconds long and is of 24 FPS. This video is of 720x1280 resolution.",
    "user assistant system A red circle bounces on a blue background; low thuds. A green square slides to the left.",
)


def main() -> None:
    """Command line: `python -m cosmos3_lab.random_checkpoint FOLDER [--size tiny|nano] [--seed N] [--device cpu|cuda]`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--size", choices=sorted(RECIPES), default="tiny")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    print(write_random_checkpoint(a.folder, a.size, seed=a.seed, device=a.device))


if __name__ == "__main__":
    main()
