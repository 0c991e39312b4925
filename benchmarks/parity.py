"""One T2AV run of a checkpoint through cosmos3_lab and through diffusers, from the same prompt text and the same noise.

    python benchmarks/parity.py FOLDER [--prompt "..."] [--steps N] [--threads N]

Float32 on the CPU, `preset="diffusers"`. Exit code 1 unless latents agree within 1e-3 (relative to the largest value) and
frames within one level of 255.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    Cosmos3AVAEAudioTokenizer,
    Cosmos3OmniPipeline,
    Cosmos3OmniTransformer,
    UniPCMultistepScheduler,
)
from measuring import Results
from transformers import AutoTokenizer

from cosmos3_lab import generate, init_latents, load_cosmos3, pixel_to_latent_shape, sound_latent_frames

TOLERANCE = 1e-3


def with_diffusers(folder, prompt, settings, noise):
    """Latents, frames and waveform of `Cosmos3OmniPipeline`, and its seconds."""
    pipe = Cosmos3OmniPipeline(
        transformer=Cosmos3OmniTransformer.from_pretrained(folder / "transformer", torch_dtype=torch.float32),
        vae=AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32),
        sound_tokenizer=Cosmos3AVAEAudioTokenizer.from_pretrained(folder / "sound_tokenizer", torch_dtype=torch.float32),
        scheduler=UniPCMultistepScheduler.from_pretrained(folder / "scheduler"),
        text_tokenizer=AutoTokenizer.from_pretrained(folder / "text_tokenizer"),
        enable_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    latents = {}
    decode_video, decode_sound = pipe.vae.decode, pipe.decode_sound
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std))

    def spy_video(z, *args, **kwargs):
        latents["video"] = (z - mean) / std
        return decode_video(z, *args, **kwargs)

    def spy_sound(latent):
        latents["sound"] = latent.T[None]
        return decode_sound(latent)

    pipe.vae.decode, pipe.decode_sound = spy_video, spy_sound
    begin = time.perf_counter()
    result = pipe(
        prompt,
        **settings,
        enable_sound=True,
        latents=noise.video.clone(),
        sound_latents=noise.sound[0].T.contiguous(),
        output_type="pt",
    )
    frames = (result.video.permute(0, 2, 3, 1) * 255).round()
    return latents, frames, result.sound, time.perf_counter() - begin


def relative(a, b):
    return float((a - b).abs().max() / b.abs().max())


def compare(folder, prompt, steps=None):
    """Run both and return the differences."""
    with load_cosmos3(folder, device="cpu") as models:
        d = models.defaults
        settings = {
            "num_frames": d.num_frames,
            "height": d.height,
            "width": d.width,
            "fps": d.fps,
            "num_inference_steps": steps or d.num_inference_steps,
            "guidance_scale": d.guidance_scale,
        }
        m = models.media
        noise = init_latents(
            pixel_to_latent_shape(d.num_frames, d.height, d.width, temporal=m.temporal, spatial=m.spatial),
            channels=m.channels,
            sound_frames=sound_latent_frames(d.num_frames, d.fps, sampling_rate=m.sampling_rate, hop_size=m.hop_size),
            sound_dim=m.sound_dim,
        )
        begin = time.perf_counter()
        ours = generate(models, prompt, **settings, with_sound=True, noise=noise, preset="diffusers", progress=False)
        seconds = time.perf_counter() - begin
    latents, frames, waveform, reference_seconds = with_diffusers(folder, prompt, settings, noise)
    levels = (torch.from_numpy(ours.output.frames).float() - frames).abs()
    return {
        "video_latents": relative(ours.latents.video, latents["video"]),
        "sound_latents": relative(ours.latents.sound, latents["sound"]),
        "frames_max_levels_of_255": float(levels.max()),
        "frames_share_that_differ": float((levels > 0).float().mean()),
        "waveform": relative(torch.from_numpy(ours.output.waveform), waveform.clamp(-1, 1)),
        "seconds_lab_over_diffusers": round(seconds / reference_seconds, 3),
        "seconds": [round(seconds, 2), round(reference_seconds, 2)],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompt", default="a red circle bounces on a blue background; low thuds")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", default="benchmarks/results/parity.json")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    found = compare(a.folder, a.prompt, a.steps)
    Results(a.out).put(f"parity/{a.folder.name}", found)
    same = max(found["video_latents"], found["sound_latents"], found["waveform"]) < TOLERANCE
    sys.exit(0 if same and found["frames_max_levels_of_255"] <= 1 else 1)


if __name__ == "__main__":
    main()
