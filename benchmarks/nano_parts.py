"""What the benchmarks at full Nano size share: modules with random weights made on the GPU, a run's inputs, a profile."""

import torch

from cosmos3_lab import Latents, encode_condition
from cosmos3_lab.denoise import DenoiseInputs, DenoiseState
from cosmos3_lab.presets import PRESETS
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.schedule import flow_schedule
from cosmos3_lab.unipc import unipc_init


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
