"""What guidance, steps and flow shift do to pico's clips: one of them changed at a time, the others at the defaults.

    python benchmarks/pico_settings.py [--checkpoint DIR] [--count 256] [--device auto] [--figure-only]

Every setting is tried with the same prompts and seeds. JSON goes to benchmarks/results, the figure to docs; --figure-only draws
it again from the JSON.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from measuring import Results

from cosmos3_lab.checkpoint import load_cosmos3
from cosmos3_lab.pico.clips import equal_lengths, generate_clips
from cosmos3_lab.pico.score import aggregate, judge_pool, read_clips, unseen_prompts
from cosmos3_lab.prepare import make_processor

SETTINGS = {
    "guidance_scale": (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0),
    "num_inference_steps": (4, 6, 8, 12, 16, 20, 30, 50),
    "flow_shift": (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0),
}
BATCH = 32

LABELS = {"guidance_scale": "guidance scale", "num_inference_steps": "solver steps", "flow_shift": "flow shift"}
# Okabe and Ito's colours, which colour-blind readers can tell apart; the markers do so in print.
CURVES = {
    "followed": ("everything right", "#0072B2", "o"),
    "sync": ("in sync", "#D55E00", "s"),
    "outline": ("outline (IoU)", "#009E73", "^"),
}


def prompts_in_batches(models, count):
    """Prompts of few token lengths, spread over all of them: a GPU takes as long over a batch of one as over a full one."""
    candidates, d, size = unseen_prompts(8 * count), models.defaults, min(BATCH, count)
    processor = make_processor(models, num_frames=d.num_frames, height=d.height, width=d.width, fps=d.fps)
    lengths = [processor.tokenize(prompt.caption).text_ids.shape[1] for prompt in candidates]
    full = [batch for batch in equal_lengths(lengths, size) if len(batch) == size]
    wanted = count // size
    return [candidates[i] for k in range(wanted) for i in full[k * len(full) // wanted]]


def measure(results, models, count):
    defaults = {name: getattr(models.defaults, name) for name in SETTINGS}
    prompts, rows = prompts_in_batches(models, count), {}
    results.put("checkpoint", {"name": models.defaults.name, "fingerprint": models.fingerprint, "clips": len(prompts)})
    results.put("defaults", defaults)
    with judge_pool() as pool:
        for name, values in SETTINGS.items():
            for value in sorted({*values, defaults[name]}):
                setting = defaults | {name: value}
                key = tuple(setting.values())  # the defaults are a point of every curve, and are measured once
                if key not in rows:
                    rows[key] = row(models, prompts, setting, pool)
                results.put(f"{name}/{value:g}", rows[key])


def row(models, prompts, setting, pool):
    begin = time.perf_counter()
    clips = generate_clips(models, [p.caption for p in prompts], seeds=range(len(prompts)), **setting)
    scores = aggregate([p.scene for p in prompts], read_clips(clips, pool))
    values = {name: getattr(scores, name).value for name in CURVES}
    return values | {name: f.value for name, f in scores.right.items()} | {"seconds": round(time.perf_counter() - begin, 2)}


def draw(data, path):
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    lowest = min(value[curve] for key, value in data.items() if "/" in key for curve in CURVES)
    figure, panels = plt.subplots(1, len(SETTINGS), figsize=(11, 3.6), sharey=True, layout="constrained", facecolor="white")
    for panel, name in zip(panels, SETTINGS, strict=True):
        rows = {float(key.split("/")[1]): value for key, value in data.items() if key.startswith(f"{name}/")}
        for curve, (label, colour, marker) in CURVES.items():
            panel.plot(list(rows), [r[curve] for r in rows.values()], color=colour, marker=marker, markersize=5, label=label)
        panel.axvline(data["defaults"][name], color="0.4", linestyle=":", label="default")
        panel.set(xlabel=LABELS[name], xscale="log", xticks=list(rows), ylim=(lowest - 0.05, 1.01))
        panel.xaxis.set_major_formatter(ScalarFormatter())
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"judge's score, {data['checkpoint']['clips']} clips")
    panels[0].legend(loc="lower right", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="pico")
    parser.add_argument("--count", type=int, default=256, help="prompts for each setting")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--figure-only", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pico_settings.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/pico_settings.png"))
    a = parser.parse_args()
    if not a.figure_only:
        with load_cosmos3(a.checkpoint, device=a.device, dtype=torch.float32) as models:  # as on a laptop
            measure(Results(a.out), models, a.count)
    draw(json.loads(a.out.read_text(encoding="utf-8")), a.figure)


if __name__ == "__main__":
    main()
