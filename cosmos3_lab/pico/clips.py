"""Many clips at once: generated from captions, drawn from scenes, or drawn and sent through the VAE and the AVAE.

Prompts of one token length share a batch, and every sample keeps the noise of its own seed, so that each clip is the one that
`generate` makes of that prompt and seed (a test holds both equal).

Read next: `score.py`, which has the clips read and judged.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import DenoiseState, guided_step
from cosmos3_lab.guidance_scale import Guidance, GuidanceScale, resolve_guidance
from cosmos3_lab.latents import Latents, init_latents
from cosmos3_lab.pico.batch import encode_prompts, find_places, predict_velocities
from cosmos3_lab.pico.scenes import Scene
from cosmos3_lab.pico.world import draw, play
from cosmos3_lab.prepare import make_processor, prepare_request
from cosmos3_lab.presets import Preset, get_preset, resolve_schedule
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.schedule import Schedule
from cosmos3_lab.sound_avae import decode_sound, encode_sound
from cosmos3_lab.towers import LayerKV
from cosmos3_lab.transformer import Cosmos3Condition
from cosmos3_lab.unipc import unipc_init
from cosmos3_lab.video_vae import decode_video, encode_video

# Which caption or scene it belongs to, pixels in [0, 1], and the waveform in [-1, 1] (None for a silent clip).
NumberedClip = tuple[int, Float32[np.ndarray, "3 frames height width"], Float32[np.ndarray, "2 samples"] | None]

BATCH_SIZE = 64


@torch.no_grad()
def generate_clips(
    models: Cosmos3Models,
    captions: Sequence[str],
    *,
    seeds: Sequence[int],
    num_inference_steps: int | None = None,
    guidance_scale: GuidanceScale | Guidance | None = None,
    flow_shift: float | None = None,
    preset: str | Preset | None = None,
    negative_prompt: str | None = None,
    with_sound: bool = True,
    batch_size: int = BATCH_SIZE,
) -> Iterator[NumberedClip]:
    """`generate` for many prompts, in the checkpoint's size; yields the clips batch by batch, shortest prompts first.

    Args:
        models: from `load_cosmos3`.
        captions: what to show, at least one.
        seeds: of the noise, one for each caption.
        num_inference_steps, guidance_scale, flow_shift, preset, negative_prompt, with_sound: see `generate`.
        batch_size: the most clips at a time.

    Raises:
        ValueError: an argument cannot work.
    """
    d, preset = models.defaults, get_preset(models.defaults.preset if preset is None else preset)
    # The first request stands for all of them: only the prompt's ids and the noise differ.
    request = prepare_request(
        models,
        captions[0],
        negative_prompt=negative_prompt,
        with_sound=with_sound,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        preset=preset,
    )
    schedule = resolve_schedule(
        request.num_inference_steps,
        preset=preset,
        flow_shift=flow_shift,
        scheduler_config=models.configs.scheduler,
        default_flow_shift=d.flow_shift,
    )
    size = {"num_frames": d.num_frames, "height": d.height, "width": d.width, "fps": d.fps}
    processor = make_processor(models, **size, preset=preset)
    ids = [processor.tokenize(caption).text_ids for caption in captions]
    noise = dict(zip(range(len(captions)), seeds, strict=True))
    models.place("und")
    uncond = None
    guidance = resolve_guidance(request.guidance_scale, schedule.sigmas[:-1].tolist(), with_sound=with_sound)
    if guidance.needs_negative(preset.skip_guidance):
        uncond = _encode(models, request.neg_text_ids, request)
    for numbers in equal_lengths([row.shape[1] for row in ids], batch_size):
        models.place("und")
        cond = _encode(models, torch.cat([ids[i] for i in numbers]), request)
        models.place("gen")
        start = _noise(models, [noise[i] for i in numbers], request, preset)
        branches = cond, None if uncond is None else _repeated(uncond, len(numbers))
        latents = _denoise(models, start, *branches, schedule, guidance, preset)
        models.place("decode")
        waveforms = None if latents.sound is None else decode_sound(models.avae, latents.sound)
        yield from _numbered(numbers, decode_video(models.vae, latents.video), waveforms)


def true_clips(
    scenes: Sequence[Scene], *, device: torch.device | str = "cpu", batch_size: int = BATCH_SIZE
) -> Iterator[NumberedClip]:
    """Ground truth: every scene as the world draws and plays it.

    Args:
        scenes: to draw and play.
        device: where to.
        batch_size: the most clips at a time.
    """
    for numbers in _slices(range(len(scenes)), batch_size):
        some = [scenes[i] for i in numbers]
        yield from _numbered(numbers, draw(some, device=device), play(some, device=device))


def reconstructed_clips(
    models: Cosmos3Models, scenes: Sequence[Scene], *, batch_size: int = BATCH_SIZE
) -> Iterator[NumberedClip]:
    """Ground truth, encoded and decoded: as good as clips can get with this VAE and AVAE.

    Args:
        models: with sound and with encoders (`load_encoder=True`).
        scenes: to draw and play.
        batch_size: the most clips at a time.

    Raises:
        ValueError: the models have no encoders.
    """
    models.place("decode")
    for numbers in _slices(range(len(scenes)), batch_size):
        some = [scenes[i] for i in numbers]
        pixels = decode_video(models.vae, encode_video(models.vae, draw(some, device=models.device)))
        yield from _numbered(
            numbers, pixels, decode_sound(models.avae, encode_sound(models.avae, play(some, device=models.device)))
        )


def equal_lengths(lengths: Sequence[int], batch_size: int) -> Iterator[Sequence[int]]:
    """Which prompts go into a batch together: the numbers of those that have one length, shortest first.

    Args:
        lengths: tokens of each prompt.
        batch_size: the most numbers at a time.
    """
    for _, same in groupby(sorted(range(len(lengths)), key=lengths.__getitem__), key=lengths.__getitem__):
        yield from _slices(list(same), batch_size)


def _slices(numbers: Sequence[int], batch_size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), batch_size):
        yield numbers[start : start + batch_size]


def _encode(models: Cosmos3Models, ids: Tensor, request: Cosmos3T2VRequest) -> Cosmos3Condition:
    size = {"video_shape": request.video_shape, "fps": request.fps, "sound_len": request.sound_frames or 0}
    places = find_places(models.transformer, ids.shape[1], **size)
    return encode_prompts(models.transformer, ids.to(models.device), places)


def _repeated(cond: Cosmos3Condition, count: int) -> Cosmos3Condition:
    """One prompt's condition for `count` samples, without a copy."""
    layers = (LayerKV(*(x.expand(count, -1, -1, -1) for x in (layer.k, layer.v))) for layer in cond.cached_kv)
    return replace(cond, cached_kv=tuple(layers))


def _noise(models: Cosmos3Models, seeds: Sequence[int], request: Cosmos3T2VRequest, preset: Preset) -> Latents:
    media = models.media
    shape = {"channels": media.channels, "sound_frames": request.sound_frames, "sound_dim": media.sound_dim or 0}
    first, *others = (init_latents(request.video_shape, **shape, seed=seed, noise_source=preset.noise_source) for seed in seeds)
    return first.map(lambda *samples: torch.cat(samples).to(models.device), *others)


def _denoise(
    models: Cosmos3Models,
    noise: Latents,
    cond: Cosmos3Condition,
    uncond: Cosmos3Condition | None,
    schedule: Schedule,
    guidance: Guidance,
    preset: Preset,
) -> Latents:
    """`denoise` for a batch, without the records."""
    dtypes = {"float32": torch.float32, "model": models.transformer.dtype}
    noise = noise.to(dtypes[preset.solver_precision])
    state = DenoiseState(*(unipc_init(sample) for sample in noise.tensors()))

    def predict(branch: Cosmos3Condition, latents: Latents, step: int) -> Latents:
        times = schedule.timesteps[step].to(models.device, dtypes[preset.timestep_precision]).expand(len(latents.video))
        return predict_velocities(models.transformer, latents, times, branch).to(dtypes[preset.guidance_precision])

    while state.step_index < schedule.num_steps:
        state, _, _ = guided_step(predict, cond, uncond, guidance, preset, schedule, state)
    return state.latents


def _numbered(numbers: Sequence[int], pixels: Tensor, waveforms: Tensor | None) -> Iterator[NumberedClip]:
    sounds = [None] * len(numbers) if waveforms is None else waveforms.cpu().numpy()
    yield from zip(numbers, pixels.cpu().numpy(), sounds, strict=True)
