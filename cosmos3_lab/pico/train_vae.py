"""The video VAE learns to pack four frames into one latent frame and to unpack them again.

The loss compares pixels, more strictly where something happens: at the things (and where they just were, so that ghosts
count), and most at their outlines, with the same total weight for small and large things. A little KL keeps latents near a
normal distribution; noise added to them makes the decoder forgive the small errors that the transformer will make.

Read next: `train_avae.py`.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos3_lab.pico.data import SceneBatches, scene_stream
from cosmos3_lab.pico.graphs import LossStep
from cosmos3_lab.pico.optimizers import Trainer
from cosmos3_lab.pico.recipe import Recipe
from cosmos3_lab.pico.world import FRAMES, draw
from cosmos3_lab.vae_blocks import CausalMemory, ChannelNorm
from cosmos3_lab.video_vae import VideoVAE, VideoVAEConfig

KL = 2e-4
NOISE = 0.08  # of a latent channel's spread, on top of the posterior's own


def build_vae(recipe: Recipe, device: torch.device) -> VideoVAE:
    """Untrained VAE with its encoder; on a GPU in the memory layout in which its convolutions are fast."""
    with torch.device(device):
        vae = VideoVAE(recipe.vae, with_encoder=True)
    if device.type == "cuda":
        for p in vae.parameters():
            if p.ndim >= 4:
                p.data = p.data.to(memory_format=torch.channels_last if p.ndim == 4 else torch.channels_last_3d)
        for module in vae.modules():
            if isinstance(module, ChannelNorm):
                module.compile(dynamic=True)
    return vae


def train_vae(vae: VideoVAE, trainer: Trainer, recipe: Recipe, *, seed: int, workers: int) -> Iterator[dict[str, Tensor]]:
    """Train from the trainer's step on; yields the numbers of every step.

    Args:
        vae: from `build_vae`; computes in the trainer's dtype.
        trainer: of `vae`.
        recipe: gives length and batch.
        seed: of scenes and noise.
        workers: processes that make scenes.
    """
    device = vae.quant_conv.weight.device
    while trainer.progress < 1:
        frames, batch = stage(trainer.progress, recipe)
        stream = scene_stream(SceneBatches(seed, batch, first=trainer.step_index), workers)
        step = LossStep(vae, lambda *inputs: vae_loss(vae, *inputs))
        while trainer.progress < 1 and stage(trainer.progress, recipe) == (frames, batch):
            generator = torch.Generator(device).manual_seed(seed + trainer.step_index)
            rng = np.random.RandomState(seed + trainer.step_index)
            scenes = next(stream)
            starts = rng.randint(FRAMES - frames + 1, size=batch).tolist()  # every part of a motion is seen, in short clips too
            pixels = draw(scenes, frames=frames, side=recipe.side, starts=starts, device=device)
            backgrounds = torch.tensor([scene.background_rgb for scene in scenes], device=device)
            shape = (2, batch, recipe.vae.z_dim, (frames - 1) // 4 + 1, *[recipe.side // recipe.vae.scale_factor_spatial] * 2)
            noise = torch.randn(shape, generator=generator, device=device)
            extra = torch.tensor(NOISE * min(1.0, trainer.progress / 0.3), device=device)
            numbers = step(pixels, backgrounds, noise, extra)
            trainer.step()
            yield numbers


def stage(progress: float, recipe: Recipe) -> tuple[int, int]:
    """Frames and clips of a batch: short clips first, whole ones at the end, about as many pixels in each."""
    batch = recipe.vae_phase.batch
    if progress < 0.10 or recipe.frames == 9:
        return 9, 2 * batch
    return (17, batch) if progress < 0.78 else (recipe.frames, batch // 2)


def vae_loss(
    vae: VideoVAE,
    pixels: Float[Tensor, "b 3 frames height width"],
    backgrounds: Float[Tensor, "b 3"],
    noise: Float[Tensor, "2 b c t h w"],
    extra: Float[Tensor, ""],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction error of a batch plus KL.

    Args:
        vae: with its encoder.
        pixels: in [0, 1].
        backgrounds: colour of each clip's background, to know where things are.
        noise: standard normal, for the posterior and for what is added on top.
        extra: size of the latter, in units of each latent channel's spread.
    """
    target = pixels * 2 - 1
    mean, log_variance = encode(vae, target)
    log_variance = log_variance.clamp(-20, 10)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    spread = mean.detach().std(dim=(0, 2, 3, 4), keepdim=True)
    error = decode(vae, mean + (0.5 * log_variance).exp() * noise[0] + extra * spread * noise[1]) - target
    weight = _weights(pixels, backgrounds)
    # Edges are where the eye looks: the error's own edges count once more.
    edges = [(weight.narrow(d, 1, error.shape[d] - 1) * error.diff(dim=d).abs()).mean() for d in (3, 4)]
    loss = (weight * error.abs()).mean() + 2 * (weight * error.square()).mean() + 0.3 * sum(edges) + KL * kl
    near = (weight > 2).float().expand_as(error)
    squared = error.detach().square()
    whole, around = squared.mean(), (squared * near).sum() / near.sum().clamp_min(1)
    return loss, {"loss": loss.detach(), "kl": kl.detach(), "psnr": _psnr(whole), "psnr_near": _psnr(around)}


def encode(vae: VideoVAE, target: Float[Tensor, "b 3 frames height width"]) -> tuple[Tensor, Tensor]:
    """Mean and log-variance of the latents: the first frame, then all others at once, which is what chunks give too."""
    p = vae.config.patch_size
    x = rearrange(target, "b c t (h p) (w q) -> b (c q p) t h w", p=p, q=p).to(vae.quant_conv.weight.dtype)
    moments = vae.quant_conv(_in_two_chunks(vae.encoder, x))
    return moments.float().chunk(2, dim=1)


def decode(vae: VideoVAE, latent: Float[Tensor, "b c t h w"]) -> Float[Tensor, "b 3 frames height width"]:
    """Pixels in about [-1, 1]."""
    p = vae.config.patch_size
    z = vae.post_quant_conv(latent.to(vae.quant_conv.weight.dtype))
    return rearrange(_in_two_chunks(vae.decoder, z).float(), "b (c q p) t h w -> b c t (h p) (w q)", p=p, q=p)


def _in_two_chunks(module: nn.Module, x: Tensor) -> Tensor:
    memory = CausalMemory()
    first = module(x[:, :, :1], memory)
    memory.first = False
    return torch.cat([first, module(x[:, :, 1:], memory)], dim=2)


def _weights(pixels: Tensor, backgrounds: Tensor) -> Tensor:
    """Weight of every pixel `[b, 1, frames, height, width]`."""
    mask = ((pixels - backgrounds[:, :, None, None, None]).abs().amax(dim=1) > 0.06).float()
    wide = F.max_pool2d(mask, 7, stride=1, padding=3)
    wide = F.max_pool3d(wide[:, None], (3, 1, 1), stride=1, padding=(1, 0, 0))[:, 0]  # a frame before and after, too
    rim = F.max_pool2d(mask, 5, stride=1, padding=2) + F.max_pool2d(-mask, 5, stride=1, padding=2)
    strength = (0.8 / rim.mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-3)).clamp_max(25)
    return (1 + 2 * wide + strength * rim)[:, None]


def _psnr(mean_square: Tensor) -> Tensor:
    return 10 * torch.log10(4 / mean_square.clamp_min(1e-9))  # values span 2


@torch.no_grad()
def measure_statistics(vae: VideoVAE, recipe: Recipe, *, seed: int, clips: int = 256) -> VideoVAEConfig:
    """The config with mean and spread of every latent channel, over fresh clips: what `normalize` uses from then on.

    Args:
        vae: trained.
        recipe: gives the length of clips.
        seed: of the scenes.
        clips: how many.
    """
    device, found = vae.quant_conv.weight.device, []
    stream = scene_stream(SceneBatches(seed, 16), workers=0)
    for _ in range(-(-clips // 16)):
        pixels = draw(next(stream), frames=recipe.frames, side=recipe.side, device=device)
        found.append(encode(vae, pixels * 2 - 1)[0])
    latents = torch.cat(found)
    mean, std = (f(dim=(0, 2, 3, 4)).tolist() for f in (latents.mean, latents.std))
    return replace(vae.config, latents_mean=tuple(round(x, 5) for x in mean), latents_std=tuple(round(x, 5) for x in std))
