"""Flow matching, the whole idea in a few lines: on the straight line from a clip to noise, learn the direction of travel.

    sample = (1 - sigma) x0 + sigma noise          velocity = d sample / d sigma = noise - x0

The network sees the sample, sigma and the prompt, and guesses the velocity; the loss is the squared error, for video and
sound, at one sigma for both. Where x0 could be many things, the best guess is their mean: that is what a sampler follows.

Source: Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003; sigma as in Esser et al. 2024, arXiv:2403.03206.
Read next: `train_transformer.py`.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cosmos3_lab.latents import Latents
from cosmos3_lab.pico.batch import predict_velocities
from cosmos3_lab.schedule import add_noise
from cosmos3_lab.towers import Cosmos3Transformer
from cosmos3_lab.transformer import Cosmos3Condition

TRAINING_SHIFT = 6.0  # leans towards much noise, where the layout of a clip is decided


def flow_matching_loss(
    transformer: Cosmos3Transformer, x0: Latents, noise: Latents, sigma: Float[Tensor, " b"], cond: Cosmos3Condition
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Mean squared error of the predicted velocities, `(video, sound)`; sound is 0 where there is none.

    Args:
        transformer: both towers.
        x0: clean latents.
        noise: standard normal, shaped as `x0`.
        sigma: noise level of each sample, in (0, 1).
        cond: the batch's prompts, encoded.
    """
    sample = x0.map(lambda clean, eps: add_noise(clean, eps, _beside(sigma, clean)), noise)
    velocity = predict_velocities(transformer, sample, timesteps(sigma), cond)
    target = noise.map(torch.sub, x0)
    video = F.mse_loss(velocity.video.float(), target.video)
    return video, F.mse_loss(velocity.sound.float(), target.sound) if x0.sound is not None else torch.zeros_like(video)


def timesteps(sigma: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """What the network is told: `floor(1000 sigma)`, the whole numbers that the schedules hold."""
    return (sigma * 1000).floor()


def draw_sigmas(count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Noise levels to train on: half uniform, half around the middle (logit-normal), then shifted towards noise.

    Args:
        count: how many.
        generator: on the device where they go.
    """
    uniform = torch.rand(count, generator=generator, device=generator.device)
    middle = torch.randn(count, generator=generator, device=generator.device).sigmoid()
    drawn = torch.where(torch.arange(count, device=generator.device) < count // 2, uniform, middle)
    return (TRAINING_SHIFT * drawn / (1 + (TRAINING_SHIFT - 1) * drawn)).clamp(1e-4, 1 - 1e-4)


def _beside(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.view(-1, *[1] * (x.ndim - 1))
