"""One T2AV run of a checkpoint through cosmos3_lab and through diffusers, from the same prompt text and the same noise.

    python benchmarks/parity.py [FOLDER] [--prompt "..."] [--steps N] [--threads N]

FOLDER is one that diffusers reads as a whole; without it, pico. Float32 on the CPU, `preset="diffusers"`. Exit code 1 unless
the token ids are equal, latents and sound agree within 1e-3 (relative to the largest value) and frames within one level of 255.
The test of the checkpoint in the package (tests/oracle/test_pico.py) is this run with few steps.
"""

import argparse
import sys
import time

import torch
from diffusers import Cosmos3OmniPipeline
from measuring import Results

from cosmos3_lab import generate, init_latents, load_cosmos3, pixel_to_latent_shape, sound_latent_frames

TOLERANCE = 1e-3


def load_diffusers(folder):
    """The folder as a whole, as its users load it, but for the dtype: every weight in float32."""
    pipe = Cosmos3OmniPipeline.from_pretrained(folder, dtype=torch.float32, enable_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def with_diffusers(pipe, prompt, settings, noise):
    """Token ids of both branches, latents, frames and waveform of `Cosmos3OmniPipeline`, and its seconds."""
    ids, latents = [], {}
    decode_video, decode_sound = pipe.vae.decode, pipe.decode_sound
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std))

    def spy_text(_module, _args, kwargs):
        ids.append(kwargs["input_ids"].tolist())

    def spy_video(z, *args, **kwargs):
        latents["video"] = (z - mean) / std
        return decode_video(z, *args, **kwargs)

    def spy_sound(latent):
        latents["sound"] = latent.T[None]
        return decode_sound(latent)

    pipe.transformer.register_forward_pre_hook(spy_text, with_kwargs=True)
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
    seconds = time.perf_counter() - begin
    frames = (result.video.permute(0, 2, 3, 1) * 255).round()
    return ids[:2], latents, frames, result.sound.clamp(-1, 1), seconds


def settings_and_noise(models, steps=None):
    """The checkpoint's defaults under the names that `generate` and diffusers share, and noise of their size."""
    d, m = models.defaults, models.media
    settings = {
        "num_frames": d.num_frames,
        "height": d.height,
        "width": d.width,
        "fps": d.fps,
        "num_inference_steps": steps or d.num_inference_steps,
        "guidance_scale": d.guidance_scale,
    }
    noise = init_latents(
        pixel_to_latent_shape(d.num_frames, d.height, d.width, temporal=m.temporal, spatial=m.spatial),
        channels=m.channels,
        sound_frames=sound_latent_frames(d.num_frames, d.fps, sampling_rate=m.sampling_rate, hop_size=m.hop_size),
        sound_dim=m.sound_dim,
    )
    return settings, noise


def relative(a, b):
    """Largest difference, in units of the largest value of the reference `b`."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max() / b.abs().max())


def compare(folder="pico", prompt=None, steps=None):
    """Run both and return the differences.

    Args:
        folder: of the checkpoint.
        prompt: None for the checkpoint's first example.
        steps: None for the checkpoint's default.
    """
    with load_cosmos3(folder, device="cpu", dtype=torch.float32) as models:
        d, folder = models.defaults, models.folder
        prompt = d.example_prompts[0] if prompt is None else prompt
        settings, noise = settings_and_noise(models, steps)
        ours = generate(models, prompt, **settings, with_sound=True, noise=noise, preset="diffusers", progress=False)
    ids, latents, frames, waveform, _ = with_diffusers(load_diffusers(folder), prompt, settings, noise)
    request = ours.inputs.request
    levels = (torch.from_numpy(ours.output.frames).float() - frames).abs()
    return {
        "checkpoint": d.name,
        "fingerprint": models.fingerprint,
        "settings": settings,
        "token_ids_equal": ids == [request.text_ids[0].tolist(), request.neg_text_ids[0].tolist()],
        "video_latents": relative(ours.latents.video, latents["video"]),
        "sound_latents": relative(ours.latents.sound, latents["sound"]),
        "frames_max_levels_of_255": float(levels.max()),
        "frames_share_that_differ": float((levels > 0).float().mean()),
        "waveform": relative(torch.from_numpy(ours.output.waveform), waveform),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="pico")
    parser.add_argument("--prompt", help="the checkpoint's first example, where none is given")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", default="benchmarks/results/parity.json")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    found = compare(a.folder, a.prompt, a.steps)
    Results(a.out).put(f"parity/{found['checkpoint']}", found)
    same = found["token_ids_equal"] and max(found[k] for k in ("video_latents", "sound_latents", "waveform")) < TOLERANCE
    sys.exit(0 if same and found["frames_max_levels_of_255"] <= 1 else 1)


if __name__ == "__main__":
    main()
