"""What would make the video decoder faster: latent frames of Nano's VAE, decoded in several ways, each held to the first.

    python benchmarks/decode_variants.py [--sizes 720x1280] [--frames 5] [--profile] [--tiny]

Seconds of a latent frame after the first two (which are still filling the memory), how far the pixels are from the first way's,
and peak memory. What pays goes into the package, what does not into NOTES.md.
"""

import argparse
import os
from contextlib import contextmanager

import torch
from measuring import Results, median_seconds, peak_gpu
from nano_parts import profile, random_module
from torch.nn import functional as F

from cosmos3_lab import vae_blocks
from cosmos3_lab.random_checkpoint import RECIPES
from cosmos3_lab.video_vae import VideoVAE, iter_decode_video, use_channels_last


def plain(vae):
    os.environ["COSMOS3_PLAIN"] = "1"
    return [lambda: os.environ.pop("COSMOS3_PLAIN")]


def as_it_is(vae):
    """With the kernels where there is a GPU."""
    return []


def contiguous(vae):
    """As before the channels went innermost; the convolutions still copy into chunks that have them so."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d):
            module.weight.data = module.weight.data.contiguous()
    return plain(vae)


def two_at_once(vae):
    """Two latent frames in a chunk; see `measure`."""
    return []


def autotuned(vae):
    torch.backends.cudnn.benchmark = True
    return [lambda: setattr(torch.backends.cudnn, "benchmark", False)]


def compiled_norms(vae):
    """Norm and SiLU in one kernel."""
    kept = vae_blocks.ResidualBlock.forward
    activate = torch.compile(lambda norm, x: F.silu(norm(x)), dynamic=True)

    def forward(self, x, memory):
        shortcut = self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        x = self.conv1(activate(self.norm1, x), memory)
        return shortcut + self.conv2(activate(self.norm2, x), memory)

    vae_blocks.ResidualBlock.forward = forward
    return [lambda: setattr(vae_blocks.ResidualBlock, "forward", kept), *plain(vae)]


def compiled_blocks(vae):
    """Whole residual blocks; the memory's dictionary goes through the compiler too."""
    forward = vae_blocks.ResidualBlock.forward
    vae_blocks.ResidualBlock.forward = torch.compile(forward, dynamic=False)
    return [lambda: setattr(vae_blocks.ResidualBlock, "forward", forward), *plain(vae)]


def compiled_upsamplers(vae):
    forward = vae_blocks.UpBlock._shortcut
    vae_blocks.UpBlock._shortcut = torch.compile(forward, dynamic=False)
    return [lambda: setattr(vae_blocks.UpBlock, "_shortcut", forward), *compiled_blocks(vae)]


VARIANTS = {
    f.__name__: f
    for f in (plain, as_it_is, contiguous, two_at_once, autotuned, compiled_norms, compiled_blocks, compiled_upsamplers)
}


@contextmanager
def changed(vae, variant):
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 64
    use_channels_last(vae)
    undo = variant(vae)
    try:
        yield
    finally:
        for step in undo:
            step()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="720x1280")
    parser.add_argument("--frames", type=int, default=5, help="latent frames after the first two")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--profile", action="store_true", help="time by kernel, of the first variant at the last size")
    parser.add_argument("--tiny", action="store_true", help="tiny model, to try the script")
    parser.add_argument("--out", default="benchmarks/results/decode_variants.json")
    a = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    recipe, results = RECIPES["tiny" if a.tiny else "nano"], Results(a.out)
    torch.manual_seed(0)
    vae = random_module(lambda: VideoVAE(recipe.vae, with_encoder=False), device, dtype)
    side = recipe.vae.scale_factor_spatial
    for size in a.sizes.split(","):
        height, width = (int(n) // side for n in size.split("x"))
        z = torch.randn(1, recipe.vae.z_dim, 2 + a.frames, height, width, device=device)
        expected = None
        for name in a.variants.split(","):
            with changed(vae, VARIANTS[name]):
                row = measure(vae, z, expected, 2 if name == "two_at_once" else 1)
                expected = row.pop("last") if expected is None else expected
                row.pop("last", None)
                results.put(f"{size}/{name}", row)
        if a.profile:
            profile(results, lambda z=z: [None for _ in iter_decode_video(vae, z)])


def measure(vae, z, expected, at_once):
    def decode(latents):
        last = None
        for last in iter_decode_video(vae, latents, latents_at_once=at_once):  # noqa: B007
            pass
        return last

    try:
        last = decode(z[:, :, :4]).cpu()
        peak_gpu(reset=True)
        short, whole = (median_seconds(lambda n=n: decode(z[:, :, :n]), repeats=3, warmup=1) for n in (2, z.shape[2]))
    except Exception as error:  # one variant that cannot run here must not cost the figures of the others
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    away = None if expected is None else float((last[:, :, -4:] - expected[:, :, -4:]).abs().max())
    return {
        "s_per_latent_frame": round((whole - short) / (z.shape[2] - 2), 4),
        "max_difference": away,
        "peak_gib": peak_gpu(),
        "last": last,
    }


if __name__ == "__main__":
    main()
