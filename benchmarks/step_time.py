"""Seconds per denoising step and per decode at full Nano size, random weights made on the GPU (nothing is read from disk).

    python benchmarks/step_time.py [--sizes 480x832x49,720x1280x189] [--profile] [--tiny]

T2AV, 200 prompt tokens, 3400 negative tokens, the setting in which the references were measured.
"""

import argparse

import torch
from measuring import Results, median_seconds, peak_gpu

from cosmos3_lab import Latents, encode_condition, predict_velocity
from cosmos3_lab.denoise import DenoiseInputs, DenoiseState, denoise_step
from cosmos3_lab.presets import PRESETS
from cosmos3_lab.random_checkpoint import RECIPES
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.schedule import flow_schedule
from cosmos3_lab.sizes import pixel_to_latent_shape, sound_latent_frames
from cosmos3_lab.sound_avae import SoundAVAE, decode_sound
from cosmos3_lab.towers import Cosmos3Transformer
from cosmos3_lab.unipc import unipc_init
from cosmos3_lab.video_vae import VideoVAE, iter_decode_video


def random_module(build, device, dtype):
    """Build on meta, allocate on the device, fill with small random numbers."""
    with torch.device("meta"):
        module = build()
    module = module.to(dtype).to_empty(device=device).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(0, 0.02) if parameter.ndim > 1 else parameter.fill_(1.0)
    return module


def inputs_and_state(transformer, shape, n_sound, device):
    c = transformer.config
    ids = [torch.randint(0, c.vocab_size, (1, n), device=device) for n in (200, 3400)]
    masks = [torch.ones_like(i) for i in ids]
    cond, uncond = (encode_condition(transformer, i, m, shape, 24.0, sound_len=n_sound) for i, m in zip(ids, masks, strict=True))
    request = Cosmos3T2VRequest(ids[0], masks[0], ids[1], masks[1], shape, sound_frames=n_sound)
    noise = Latents(torch.randn(1, c.latent_channel, *shape, device=device), torch.randn(1, n_sound, c.sound_dim, device=device))
    inputs = DenoiseInputs(request, flow_schedule(35), cond, uncond, PRESETS["native"])
    return inputs, DenoiseState(unipc_init(noise.video), unipc_init(noise.sound))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="480x832x49,720x1280x93,720x1280x189")
    parser.add_argument("--profile", action="store_true", help="time by kernel, for the conditional pass at the last size")
    parser.add_argument("--tiny", action="store_true", help="tiny model, to try the script")
    parser.add_argument("--out", default="benchmarks/results/step_time.json")
    a = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    recipe, results = RECIPES["tiny" if a.tiny else "nano"], Results(a.out)
    torch.manual_seed(0)

    transformer = random_module(lambda: Cosmos3Transformer(recipe.transformer), device, dtype)
    transformer.gen.time_embedder.float()
    vae = random_module(lambda: VideoVAE(recipe.vae, with_encoder=False), device, dtype)
    avae = random_module(lambda: SoundAVAE(recipe.sound), device, dtype)
    for size in a.sizes.split(","):
        height, width, frames = (int(n) for n in size.split("x"))
        shape, n_sound = pixel_to_latent_shape(frames, height, width), sound_latent_frames(frames, 24.0)
        inputs, state = inputs_and_state(transformer, shape, n_sound, device)
        peak_gpu(reset=True)
        latents, t = state.latents, 500
        for branch, cond in (("cond", inputs.cond), ("uncond", inputs.uncond)):
            results.put(
                f"forward/{size}/{branch}",
                median_seconds(lambda cond=cond: predict_velocity(transformer, latents, t, cond)),
            )
        state = denoise_step(transformer, inputs, state)[0]
        state = denoise_step(transformer, inputs, state)[0]  # history is full: corrector and predictor of order 2
        results.put(f"full_step/{size}", median_seconds(lambda: denoise_step(transformer, inputs, state), warmup=0))
        results.put(f"peak_gib/denoise/{size}", peak_gpu(reset=True))
        if a.profile and size == a.sizes.split(",")[-1]:
            profile(results, lambda: predict_velocity(transformer, latents, t, inputs.cond))
        z = torch.randn(1, recipe.vae.z_dim, *shape, device=device)
        list(iter_decode_video(vae, z[:, :, :3]))
        results.put(f"vae_decode/{size}", median_seconds(lambda: [None for _ in iter_decode_video(vae, z)], warmup=0, repeats=2))
        results.put(f"avae_decode/{size}", median_seconds(lambda: decode_sound(avae, latents.sound)))
        results.put(f"peak_gib/decode/{size}", peak_gpu(reset=True))


def profile(results, fn, key="profile_ms"):
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    on_gpu = torch.cuda.is_available()
    fn()
    with torch_profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as trace:
        fn()
        if on_gpu:
            torch.cuda.synchronize()
    kind = "device" if on_gpu else "cpu"
    rows = sorted(
        ((getattr(e, f"self_{kind}_time_total") / 1e3, e.count, e.key[:110]) for e in trace.key_averages()), reverse=True
    )
    results.put(key, [list(row) for row in rows[:16]])


if __name__ == "__main__":
    main()
