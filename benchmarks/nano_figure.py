"""Draws docs/nano_speed.png from nano_h200.json and split_memory.json: seconds of a step and of decoding, and GPU memory.

    python benchmarks/nano_figure.py

The floor is the FLOPs of a step over what one H200 sustains in matrix products and in attention (681 and 654 TFLOP/s).
"""

import json
from pathlib import Path

import torch

from cosmos3_lab.costs import NANO_TEXT_TOKENS, denoise_cost, make_clip, meta_models, nano_configs, parse_size

ROOT = Path(__file__).parents[1]
GEMM, ATTENTION = 681e12, 654e12
PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # under a number, where the floor runs through it
WAYS = {  # Okabe and Ito's colours
    "diffusers": ("diffusers", "#999999"),
    "plain": ("plain layers", "#56B4E9"),
    "lab": ("cosmos3_lab", "#0072B2"),
    "lab flashinfer": ("with FlashInfer", "#009E73"),
    "lab fp8": ("fp8 (lossy)", "#E69F00"),
    "lab fp8 flashinfer": ("fp8 with FlashInfer (lossy)", "#D55E00"),
}


def floors(sizes):
    configs = nano_configs()
    models = meta_models(configs, with_sound=True, dtype=torch.bfloat16)
    found = []
    for size in sizes:
        flops = denoise_cost(models, make_clip(configs, *parse_size(size), with_sound=True), NANO_TEXT_TOKENS).flops
        found.append(flops.linear / GEMM + flops.attention / ATTENTION)
    return found


def bars(axes, groups, rows):
    """One group of bars for each size, as tall as its share of the reference, with the value written on it."""
    for place, row in enumerate(rows):
        ways = [way for way in WAYS if way in row]
        for k, way in enumerate(ways):
            x, width = place + (k - (len(ways) - 1) / 2) * 0.85 / len(ways), 0.8 / len(ways)
            axes.bar(x, row[way] / row["diffusers"], width, color=WAYS[way][1])
            label = f"{row[way]:.2f}"
            axes.text(
                x, row[way] / row["diffusers"] + 0.015, label, rotation=90, ha="center", va="bottom", fontsize=8, bbox=PAPER
            )
    axes.set_xticks(range(len(groups)), groups)
    axes.set(ylim=(0, 1.25), yticks=[0, 0.25, 0.5, 0.75, 1.0])


def main():
    import matplotlib.pyplot as plt

    nano = json.loads((ROOT / "benchmarks/results/nano_h200.json").read_text())
    split = json.loads((ROOT / "benchmarks/results/split_memory.json").read_text())
    sizes = [key.removeprefix("full_step/") for key in nano if key.startswith("full_step/")]
    gpu = nano["environment"]["gpu"].removeprefix("NVIDIA ").replace(" 80GB HBM3", "")
    figure, (steps, decoding, memory) = plt.subplots(
        1, 3, figsize=(13, 4.2), width_ratios=[6, 3, 3], layout="constrained", facecolor="white"
    )
    seconds = [{w: r["median_ms"] / 1e3 for w, r in nano[f"full_step/{size}"].items()} for size in sizes]
    bars(steps, sizes, seconds)
    for place, (row, floor) in enumerate(zip(seconds, floors(sizes), strict=True)):
        line = [floor / row["diffusers"]] * 2
        steps.plot(
            [place - 0.45, place + 0.45],
            line,
            color="black",
            linestyle=":",
            label="" if place else "bf16 FLOPs at an H200's rates",
        )
    steps.set(title=f"seconds of a step on one {gpu}, relative to diffusers", ylabel="of diffusers' time")
    for label, colour in WAYS.values():
        steps.bar(0, 0, color=colour, label=label)
    steps.legend(fontsize=8, ncols=2, loc="upper right", framealpha=0.9)
    steps.set_ylim(0, 1.75)
    bars(decoding, sizes, [{w: r["median_ms"] / 1e3 for w, r in nano[f"vae_decode/{size}"].items()} for size in sizes])
    decoding.set(title="seconds of decoding the video")
    decoding.tick_params(axis="x", labelsize=8)
    draw_memory(memory, nano, split, sizes)
    figure.savefig(ROOT / "docs/nano_speed.png", dpi=130)


def draw_memory(axes, nano, split, sizes):
    """Peak GPU memory of whole runs in split placement, beside diffusers' peak."""
    found = {}
    for key, row in split.items():
        if key.startswith("run/") and isinstance(row, dict) and "split" in key:
            size = "x".join(key.split("/")[1].split("x")[:3])
            found.setdefault(size, {})["fp8" if "/fp8/" in key else "bf16"] = row["peak_reserved_gib"]
    for place, (size, row) in enumerate(found.items()):
        reference = max(nano[f"{part}/{size}"]["diffusers"]["peak_gib"][1] for part in ("full_step", "vae_decode"))
        for k, (label, value, colour) in enumerate(
            (
                ("diffusers", reference, WAYS["diffusers"][1]),
                ("split placement", row["bf16"], WAYS["lab"][1]),
                ("split, fp8", row["fp8"], WAYS["lab fp8"][1]),
            )
        ):
            x = place + (k - 1) * 0.27
            axes.bar(x, value, 0.25, color=colour, label="" if place else label)
            axes.text(x, value + 0.6, f"{value:.1f}", ha="center", fontsize=8)
    axes.set_xticks(range(len(found)), found)
    axes.set(title="peak GPU memory, GiB reserved")
    axes.legend(fontsize=8)


if __name__ == "__main__":
    main()
