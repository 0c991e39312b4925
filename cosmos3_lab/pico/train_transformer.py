"""Both towers learn to turn noise into clips: flow matching on latents of video and sound together.

Clips come from a pool of encoded ones. A step draws a length of clip (whole, half, a still image), whether there is sound,
two groups of clips with captions of one token length each, and for some groups no caption but the negative prompt, so that
the same network also learns the branch that guidance pushes away from.

Read next: `score.py`, which says what came of it.
"""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cosmos3_lab.latents import Latents
from cosmos3_lab.pico.batch import encode_prompts, find_places
from cosmos3_lab.pico.data import UNCONDITIONAL_SHARES, Pool, TokenizedScenes, TokenTable, scene_stream, unconditional_ids
from cosmos3_lab.pico.flow import draw_sigmas, flow_matching_loss
from cosmos3_lab.pico.graphs import LossStep
from cosmos3_lab.pico.optimizers import Trainer
from cosmos3_lab.pico.recipe import Recipe
from cosmos3_lab.pico.scenes import Scene
from cosmos3_lab.pico.world import FPS, draw, play
from cosmos3_lab.sound_avae import SoundAVAE, encode_sound
from cosmos3_lab.towers import Cosmos3Transformer
from cosmos3_lab.video_vae import VideoVAE, encode_video

DROP_PROMPT = 0.12  # of the groups learn the unconditional branch
SILENT = 0.12  # of the groups have no sound tokens, for T2V
GROUPS = 2  # in a step, or as many as there are GPUs; each has its half of the recipe's batch
FIRST_FILL, REFILL_EVERY = 8192, 25  # clips in the pool at the start, and steps until some are replaced


def clip_lengths(recipe: Recipe) -> dict[int, float]:
    """Lengths of clips in frames, and how often each is trained on."""
    return {recipe.frames: 0.80, (recipe.frames - 1) // 8 * 4 + 1: 0.13, 1: 0.07}


def build_transformer(recipe: Recipe, device: torch.device) -> Cosmos3Transformer:
    """Untrained towers. What leads out of a layer starts at zero, so that every layer begins as the identity."""
    with torch.device(device):
        transformer = Cosmos3Transformer(recipe.transformer)
    for name, p in transformer.named_parameters():
        if name.endswith(("to_out.weight", "to_add_out.weight", "down_proj.weight", "proj_out.weight", "proj_out.bias")):
            nn.init.zeros_(p)
        elif name.endswith(("embed_tokens.weight", "audio_modality_embed")):
            nn.init.normal_(p, std=0.5)
    return transformer


def muon_names(transformer: Cosmos3Transformer) -> tuple[str, ...]:
    """The matrices inside the layers."""
    return tuple(name for name, p in transformer.named_parameters() if ".layers." in name and p.ndim == 2)


def train_transformer(
    transformer: Cosmos3Transformer,
    trainer: Trainer,
    vae: VideoVAE,
    avae: SoundAVAE,
    tokenizer_dir: Path,
    recipe: Recipe,
    *,
    seed: int,
    workers: int,
) -> Iterator[dict[str, Tensor]]:
    """Train from the trainer's step on; yields the numbers of every step.

    Args:
        transformer: from `build_transformer`.
        trainer: of `transformer`.
        vae, avae: trained, with their encoders.
        tokenizer_dir: the checkpoint's `text_tokenizer`.
        recipe: gives batch, clips and pool.
        seed: of clips, captions, noise and sigmas.
        workers: processes that make scenes and captions.
    """
    device, lengths = transformer.gen.proj_in.weight.device, clip_lengths(recipe)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    groups = max(1, GROUPS // world)  # of this process
    if device.type == "cuda":
        for layer in [*transformer.und.layers, *transformer.gen.layers]:
            layer.compile(dynamic=True)  # one text length after another, without compiling again
    if trainer.progress >= 1:
        return  # before the pool is filled for nothing
    encoders = copy.deepcopy(vae).to(transformer.dtype), avae
    first = trainer.step_index + rank * 1_000_000  # batches that no other process makes
    scenes = TokenizedScenes(seed, recipe.fresh, tokenizer_dir, tuple(lengths), recipe.side, first=first)
    stream = scene_stream(scenes, workers)
    shapes = (recipe.vae.z_dim, recipe.latent_frames, *[recipe.side // recipe.vae.scale_factor_spatial] * 2)
    pool_shapes = shapes, (recipe.sound_latents, recipe.avae.vocoder_input_dim)
    pool = Pool(recipe.pool, pool_shapes, tuple(lengths), device, transformer.dtype)
    while pool.filled < min(recipe.pool, FIRST_FILL):
        _refill(pool, next(stream), *encoders, recipe, device)
    nothing = {n: [ids.to(device) for ids in unconditional_ids(tokenizer_dir, n, recipe.side)] for n in lengths}
    steps: dict[tuple[int, bool, int], LossStep] = {}
    while trainer.progress < 1:
        common = np.random.RandomState([seed, trainer.step_index])  # the same in every process, so that gradients match
        own = np.random.RandomState([seed, trainer.step_index, rank])
        generator = torch.Generator(device).manual_seed(int(own.randint(2**31)))
        length = int(common.choice(list(lengths), p=list(lengths.values())))
        with_sound = length > 1 and common.rand() >= SILENT
        numbers: list[dict[str, Tensor]] = []
        for _ in range(groups):
            count = trainer.phase.batch // GROUPS
            x0, ids = pool.draw(own, count, length)
            if own.rand() < DROP_PROMPT:
                ids = nothing[length][own.choice(len(UNCONDITIONAL_SHARES), p=UNCONDITIONAL_SHARES)].expand(count, -1)
            x0 = Latents(x0.video.float(), x0.sound.float() if with_sound else None)
            noise = x0.map(lambda x: torch.randn(x.shape, generator=generator, device=device))  # noqa: B023 (called at once)
            kind = length, with_sound, ids.shape[1]
            if kind not in steps:
                loss, beside = loss_of_shape(transformer, x0, ids.shape[1]), next(iter(steps.values()), None)
                steps[kind] = LossStep(transformer, loss, beside)
            numbers.append(steps[kind](ids, draw_sigmas(count, generator), *streams(x0), *streams(noise)))
            trainer.collect(share=1 / groups)
        trainer.step()
        if trainer.step_index % REFILL_EVERY == 0:
            _refill(pool, next(stream), *encoders, recipe, device)
        means = {name: torch.stack([n[name] for n in numbers]).mean() for name in numbers[0]}
        yield means if length == recipe.frames else {}


def loss_of_shape(transformer: Cosmos3Transformer, like: Latents, s_text: int) -> Callable[..., tuple[Tensor, dict[str, Tensor]]]:
    """The loss of batches of one shape, as a function of tensors: ids, sigmas, streams of x0, streams of noise.

    Args:
        transformer: both towers.
        like: latents of such a batch.
        s_text: tokens of each prompt.
    """
    n_sound = 0 if like.sound is None else like.sound.shape[1]
    places = find_places(transformer, s_text, tuple(like.video.shape[2:]), FPS, sound_len=n_sound)

    def loss(ids: Tensor, sigma: Tensor, *streams: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        half = len(streams) // 2
        x0, noise = Latents(*streams[:half]), Latents(*streams[half:])
        video, sound = flow_matching_loss(transformer, x0, noise, sigma, encode_prompts(transformer, ids, places))
        total = video + sound
        heard = {"sound": sound.detach()} if n_sound else {}
        return total, {"loss": total.detach(), "video": video.detach()} | heard

    return loss


def streams(latents: Latents) -> list[Tensor]:
    """Video, and sound where there is some."""
    return [x for x in (latents.video, latents.sound) if x is not None]


@torch.no_grad()
def _refill(
    pool: Pool,
    made: tuple[list[Scene], dict[int, TokenTable]],
    vae: VideoVAE,
    avae: SoundAVAE,
    recipe: Recipe,
    device: torch.device,
) -> None:
    scenes, captions = made
    video = encode_video(vae, draw(scenes, frames=recipe.frames, side=recipe.side, device=device))
    sound = encode_sound(avae, play(scenes, samples=recipe.sound_latents * recipe.avae.hop_size, device=device))
    pool.add(Latents(video, sound), captions)
