"""The AVAE learns to pack 40 ms of stereo sound into one latent of 16 numbers and to unpack it again.

The loss compares the waveforms and, at five resolutions, their spectrograms, for left, right, middle and side. Every clip is
first brought to the same loudness, so that a quiet bell counts as much as a loud drum, and batches hold rare sounds as often
as common ones. Sound latents are not rescaled before denoising, so a penalty keeps their channels at mean 0 and spread 1.

Read next: `flow.py`.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cosmos3_lab.pico.data import SceneBatches, scene_stream
from cosmos3_lab.pico.graphs import LossStep
from cosmos3_lab.pico.optimizers import Trainer
from cosmos3_lab.pico.recipe import Recipe
from cosmos3_lab.pico.world import play
from cosmos3_lab.sound_avae import Snake, SoundAVAE, spectrogram

SOUND_SHARES = {"thud": 0.13, "knock": 0.15, "ping": 0.18, "click": 0.28, "tone": 0.17, "hum": 0.05, "silence": 0.04}
KL, MOMENTS = 2e-4, 0.05
WAVEFORM = 5.0, 10.0  # weights of absolute and squared error
SPECTRUM = 0.5, 4.0, 0.25  # of relative error, absolute error, and error of the logarithm, of magnitudes


def build_avae(recipe: Recipe, device: torch.device) -> SoundAVAE:
    """Untrained AVAE with its encoder."""
    with torch.device(device):
        avae = SoundAVAE(recipe.avae, with_encoder=True)
    if device.type == "cuda":
        for module in avae.modules():
            if isinstance(module, Snake):
                module.compile(dynamic=True)
    return avae


def train_avae(avae: SoundAVAE, trainer: Trainer, recipe: Recipe, *, seed: int, workers: int) -> Iterator[dict[str, Tensor]]:
    """Train from the trainer's step on; yields the numbers of every step.

    Args:
        avae: from `build_avae`.
        trainer: of `avae`.
        recipe: gives batch and crop.
        seed: of scenes, crops and noise.
        workers: processes that make scenes.
    """
    device, hop = avae.decoder.conv1.weight.device, avae.config.hop_size
    batch = recipe.avae_phase.batch
    stream = scene_stream(SceneBatches(seed, batch, first=trainer.step_index, sounds=SOUND_SHARES), workers)
    step = LossStep(avae, lambda *inputs: avae_loss(avae, *inputs))
    while trainer.progress < 1:
        generator = torch.Generator(device).manual_seed(seed + trainer.step_index)
        whole = play(next(stream), samples=recipe.sound_latents * hop, device=device)
        # Crops start on the grid of latents, as every clip does.
        starts = np.random.RandomState(seed + trainer.step_index).randint(recipe.sound_latents - recipe.crop + 1, size=batch)
        crops = torch.stack([w[:, hop * start : hop * (start + recipe.crop)] for w, start in zip(whole, starts, strict=True)])
        noise = torch.randn(batch, recipe.avae.vocoder_input_dim, recipe.crop, generator=generator, device=device)
        ramps = max(0.05, min(1.0, trainer.progress / 0.3)), KL * min(1.0, max(0.0, (trainer.progress - 0.1) / 0.3))
        numbers = step(crops, noise, *torch.tensor(ramps, device=device))
        trainer.step()
        yield numbers


def avae_loss(
    avae: SoundAVAE,
    waveform: Float[Tensor, "b channels samples"],
    noise: Float[Tensor, "b d_sound n_sound"],
    strength: Float[Tensor, ""],
    kl_weight: Float[Tensor, ""],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction error of a batch plus what keeps the latents in shape.

    Args:
        avae: with its encoder.
        waveform: a whole number of latents long.
        noise: standard normal, for the posterior.
        strength: of the noise, 1 for all of it.
        kl_weight: weight of the KL term.
    """
    c = avae.config
    mean, scale = avae.encoder(spectrogram(waveform, c)).chunk(2, dim=1)
    deviation = F.softplus(scale) + 1e-4
    kl = 0.5 * (mean.square() + deviation.square() - 1).mean() - deviation.log().mean()
    moments = mean.mean(dim=(0, 2)).square().mean() + (mean.std(dim=(0, 2)) - 1).square().mean()
    decoded = avae.decoder(mean + strength * deviation * noise)
    weight = _weights(waveform)
    ours, theirs = decoded * weight, waveform * weight
    error = ours - theirs
    shape = kl_weight * kl + MOMENTS * moments
    waveform_error = WAVEFORM[0] * error.abs().mean() + WAVEFORM[1] * error.square().mean()
    loss = waveform_error + _spectral(ours, theirs) + shape
    signal, left = waveform.square().mean().clamp_min(1e-9), (decoded.detach() - waveform).square().mean()
    snr = 10 * torch.log10(signal / left.clamp_min(1e-12))
    return loss, {"loss": loss.detach(), "kl": kl.detach(), "snr": snr, "deviation": deviation.detach().mean()}


def _weights(waveform: Tensor) -> Tensor:
    """Weight of every sample `[b, 1, samples]`: what sounds counts as much in all as what is silent around it, and all clips are
    brought to the same loudness. A click of 20 ms would otherwise be so small a part of a clip that silence is a good guess.
    """
    loud = F.max_pool1d(waveform.abs().amax(dim=1, keepdim=True), 321, stride=1, padding=160)
    sounding = (loud > 0.02).float()
    weight = 0.5 + 0.5 * sounding / sounding.mean(dim=2, keepdim=True).clamp_min(0.04)
    return weight * (0.1 / ((weight * waveform.abs()).mean(dim=(1, 2), keepdim=True) + 0.005)).clamp_max(10)


def _spectral(ours: Tensor, theirs: Tensor) -> Tensor:
    """Distance of spectrograms, averaged over five window lengths."""
    total = ours.new_zeros(())
    lengths = [n for n in (1024, 512, 256, 128, 64) if n <= ours.shape[-1]]
    for n in lengths:
        a, b = _magnitudes(ours, n), _magnitudes(theirs, n)
        convergence = torch.linalg.vector_norm(a - b) / (torch.linalg.vector_norm(b) + 50)  # 50: a silent batch must not explode
        logs = F.l1_loss((a + 3e-3).log(), (b + 3e-3).log())
        total = total + SPECTRUM[0] * convergence + SPECTRUM[1] * F.l1_loss(a, b) + SPECTRUM[2] * logs
    return total / len(lengths)


def _magnitudes(x: Tensor, n: int) -> Tensor:
    left, right = x.unbind(dim=1)
    views = torch.cat([left, right, (left + right) / 2, (left - right) / 2])
    window = torch.hann_window(n, device=x.device)
    transform = torch.stft(views, n, n // 4, window=window, return_complex=True)
    return (transform.real.square() + transform.imag.square() + 1e-8).sqrt()
