"""Whether Nano's video decoder gets by with so many GiB, weights included, however long the clip is.

    python benchmarks/decode_memory.py [--sizes 720x1280x33,720x1280x189] [--gib 8]

Random weights. PyTorch gets no more than `--gib` (`set_per_process_memory_fraction`). What the gaps of its allocator cost is seen
with PYTORCH_ALLOC_CONF=expandable_segments:True.
"""

import argparse
import os

import torch
from measuring import GIB, Results, peak_gpu
from nano_parts import random_module

from cosmos3_lab.random_checkpoint import RECIPES
from cosmos3_lab.sizes import pixel_to_latent_shape
from cosmos3_lab.video_vae import VideoVAE, iter_decode_video, use_channels_last


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="720x1280x33,720x1280x189")
    parser.add_argument("--gib", type=float, default=8.0)
    parser.add_argument("--out", default="benchmarks/results/decode_memory.json")
    a = parser.parse_args()
    results, recipe = Results(a.out), RECIPES["nano"]
    torch.cuda.set_per_process_memory_fraction(a.gib * GIB / torch.cuda.get_device_properties(0).total_memory)
    vae = random_module(lambda: VideoVAE(recipe.vae, with_encoder=False), torch.device("cuda"), torch.bfloat16)
    use_channels_last(vae)
    allocator = os.environ.get("PYTORCH_ALLOC_CONF", "default allocator")
    for size in a.sizes.split(","):
        height, width, frames = (int(n) for n in size.split("x"))
        z = torch.randn(1, recipe.vae.z_dim, *pixel_to_latent_shape(frames, height, width), device="cuda")
        peak_gpu(reset=True)
        try:
            for _ in iter_decode_video(vae, z):
                pass
            found = {"allocated_reserved_gib": peak_gpu(reset=True)}
        except torch.OutOfMemoryError as error:
            found = {"error": str(error)[:200]}
        results.put(f"{size}/at_most_{a.gib:g}_gib/{allocator}", found)


if __name__ == "__main__":
    main()
