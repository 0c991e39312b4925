"""What replaying the GEN layers as CUDA graphs saves: seconds of a step and of a pass, launched from Python and replayed.

    python benchmarks/cuda_graphs.py [--sizes 192x320x5,192x320x25,256x448x25,320x576x25,480x832x49] [--tiny]

Random weights at Nano's shapes, the layers as a GPU runs them (kernels, cuDNN's attention), 200 and 3400 text tokens. Sizes at
which the package would not replay are replayed too.
"""

import argparse
import sys

import torch
from measuring import Results, median_seconds, peak_gpu
from nano_parts import inputs_and_state, random_module

from cosmos3_lab import layer_graphs
from cosmos3_lab.denoise import denoise_step
from cosmos3_lab.random_checkpoint import RECIPES
from cosmos3_lab.sizes import pixel_to_latent_shape, sound_latent_frames
from cosmos3_lab.towers import Cosmos3Transformer
from cosmos3_lab.transformer import embed_gen_tokens, run_gen_layers


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="192x320x5,192x320x25,256x448x25,320x576x25,480x832x49")
    parser.add_argument("--tiny", action="store_true", help="tiny model, to try the script")
    parser.add_argument("--out", default="benchmarks/results/cuda_graphs.json")
    a = parser.parse_args()
    results, recipe = Results(a.out), RECIPES["tiny" if a.tiny else "nano"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layer_graphs.MOST_TOKENS = sys.maxsize
    transformer = random_module(lambda: Cosmos3Transformer(recipe.transformer), device, dtype)
    transformer.gen.time_embedder.float()
    for size in a.sizes.split(","):
        height, width, frames = (int(n) for n in size.split("x"))
        shape, n_sound = pixel_to_latent_shape(frames, height, width), sound_latent_frames(frames, 24.0)
        results.put(size, measure(transformer, *inputs_and_state(transformer, shape, n_sound, device)))


def measure(transformer, inputs, state):
    """Seconds, and MiB of GPU memory that a step takes beside the weights, latents and conditions."""
    tokens = embed_gen_tokens(transformer, state.latents, 500)
    run_layers = {"from Python": run_gen_layers, "replayed": layer_graphs.LayerGraphs()}
    outs, found = [], {"tokens": len(tokens)}
    for name, run in run_layers.items():
        peak_gpu(reset=True)
        before = torch.cuda.memory_reserved() if tokens.is_cuda else 0
        run(transformer, tokens, inputs.cond)  # the next call may record
        outs.append(run(transformer, tokens, inputs.cond))
        found[f"pass, {name}"] = median_seconds(lambda run=run: run(transformer, tokens, inputs.cond), repeats=7, warmup=2)
        step = lambda run=run: denoise_step(transformer, inputs, state, run_layers=run)  # noqa: E731
        found[f"step, {name}"] = median_seconds(step, repeats=5, warmup=3)
        found[f"MiB, {name}"] = (torch.cuda.max_memory_reserved() - before) // 2**20 if tokens.is_cuda else None
    assert torch.equal(*outs), "the graph computes something else"
    ratios = {what: round(found[f"{what}, from Python"] / found[f"{what}, replayed"], 3) for what in ("pass", "step")}
    return found | {"ratio": ratios}


if __name__ == "__main__":
    main()
