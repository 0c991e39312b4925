"""Whether recording the GEN tower's pass as a CUDA graph would pay: seconds of a pass launched from Python, and replayed.

    python benchmarks/cuda_graphs.py [--sizes 192x320x5,192x320x25,256x448x25,480x832x49] [--tiny]

Random weights at Nano's shapes, the layers as a GPU runs them (kernels, cuDNN's attention), 200 text tokens.
"""

import argparse

import torch
from measuring import Results, median_seconds
from nano_parts import inputs_and_state, random_module

from cosmos3_lab.random_checkpoint import RECIPES
from cosmos3_lab.sizes import pixel_to_latent_shape, sound_latent_frames
from cosmos3_lab.towers import Cosmos3Transformer
from cosmos3_lab.transformer import embed_gen_tokens, run_gen_layers


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="192x320x5,192x320x25,256x448x25,480x832x49")
    parser.add_argument("--tiny", action="store_true", help="tiny model, to try the script")
    parser.add_argument("--out", default="benchmarks/results/cuda_graphs.json")
    a = parser.parse_args()
    results, recipe = Results(a.out), RECIPES["tiny" if a.tiny else "nano"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    transformer = random_module(lambda: Cosmos3Transformer(recipe.transformer), device, dtype)
    transformer.gen.time_embedder.float()
    for size in a.sizes.split(","):
        height, width, frames = (int(n) for n in size.split("x"))
        shape, n_sound = pixel_to_latent_shape(frames, height, width), sound_latent_frames(frames, 24.0)
        inputs, state = inputs_and_state(transformer, shape, n_sound, device)
        tokens = embed_gen_tokens(transformer, state.latents, 500)
        found = {"tokens": len(tokens)} | measured(lambda t=tokens, c=inputs.cond: run_gen_layers(transformer, t, c))
        results.put(size, found)


def measured(run):
    plain = median_seconds(run, repeats=7, warmup=3)
    if not torch.cuda.is_available():
        return {"from Python": plain}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    replayed = median_seconds(graph.replay, repeats=7, warmup=3)
    assert torch.equal(out, run()), "the graph computes something else"
    return {"from Python": plain, "replayed": replayed, "ratio": round(plain / replayed, 3)}


if __name__ == "__main__":
    main()
