"""Where a training step of pico's transformer spends its time: milliseconds a step, and the GPU's share by kernel.

    python benchmarks/pico_training.py [--batch 256] [--steps 30] [--device auto] [--rows 15]

The step is the real one (`train_transformer`), on clips that are encoded once with an untrained VAE. Prints a table of kernels,
writes nothing.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from cosmos3_lab.pico.export import write_settings
from cosmos3_lab.pico.optimizers import Trainer
from cosmos3_lab.pico.recipe import RECIPES
from cosmos3_lab.pico.train import DEFAULTS
from cosmos3_lab.pico.train_avae import build_avae
from cosmos3_lab.pico.train_transformer import build_transformer, muon_names, train_transformer
from cosmos3_lab.pico.train_vae import build_vae


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="pico")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=15)
    a = parser.parse_args()
    device, recipe = torch.device(a.device), RECIPES[a.recipe]
    recipe = replace(recipe, pool=1024, transformer_phase=replace(recipe.transformer_phase, batch=a.batch, steps=100_000))
    vae, avae = build_vae(recipe, device), build_avae(recipe, device)
    transformer = build_transformer(recipe, device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    muon = muon_names(transformer)
    trainer = Trainer(transformer, recipe.transformer_phase, dtype=dtype, float32=("gen.time_embedder",), muon=muon)
    with tempfile.TemporaryDirectory() as folder:
        write_settings(Path(folder), recipe, DEFAULTS)
        tokenizer = Path(folder) / "text_tokenizer"
        steps = train_transformer(transformer, trainer, vae, avae, tokenizer, recipe, seed=0, workers=4)
        begin = time.perf_counter()
        list(islice(steps, 40))  # compiles, and meets all lengths of clips
        print(f"first 40 steps: {time.perf_counter() - begin:.1f} s")
        seconds = timed(steps, a.steps, device)
        print(f"{1000 * seconds:.1f} ms a step of {a.batch} clips")
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        with profile(activities=activities) as profiler:
            timed(steps, 10, device)
        for key in ["self_device_time_total"] * (device.type == "cuda") + ["self_cpu_time_total"]:
            print(profiler.key_averages().table(sort_by=key, row_limit=a.rows, max_name_column_width=70))


def timed(steps, count, device):
    begin = time.perf_counter()
    list(islice(steps, count))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / count


if __name__ == "__main__":
    main()
