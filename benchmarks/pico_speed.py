"""How long pico takes from a prompt to an mp4: the default clip with sound, a preview of 4 steps, and the command of `make demo`.

    python benchmarks/pico_speed.py [--checkpoint DIR] [--device cpu] [--threads N] [--repeats 3]

Medians, after one run that is not counted. The command is timed from start to exit, so it has Python's imports and the loading
in it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from tempfile import TemporaryDirectory

import torch
from measuring import Results
from rich.console import Console
from rich.table import Table

from cosmos3_lab import generate, load_cosmos3

STEPS = {"default": None, "preview of 4 steps": 4}
# What a reader tells apart, and the phases of `Generation.timings` that it is made of.
PARTS = {
    "prompt": ("preprocess", "condition"),
    "denoise": ("denoise",),
    "decode": ("decode", "to_cpu"),
    "mp4": ("encode",),
}


def run(models, steps, folder):
    """Seconds of every part of one clip, and of all of it by the clock."""
    begin = time.perf_counter()
    made = generate(
        models, models.defaults.example_prompts[0], with_sound=True, num_inference_steps=steps, out=folder, progress=False
    )
    seconds = time.perf_counter() - begin
    return {part: sum(made.timings[phase] for phase in phases) for part, phases in PARTS.items()} | {"all": seconds}


def command(models, device, threads, folder):
    """Seconds of `cosmos3-lab generate` in a process of its own."""
    options = ["--sound", "--device", device, "--checkpoint", str(models.folder), "--out", folder]
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "cosmos3_lab", "generate", models.defaults.example_prompts[0], *options],
        env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return {"all": time.perf_counter() - begin}


def medians(measure, repeats):
    measure()
    rows = [measure() for _ in range(repeats)]
    return {part: round(statistics.median(row[part] for row in rows), 3) for part in rows[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="pico")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="benchmarks/results/pico_speed.json")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    results = Results(a.out)
    table = Table("seconds", *PARTS, "all", title=f"{a.device}, {a.threads} threads, median of {a.repeats}")
    with load_cosmos3(a.checkpoint, device=a.device) as models, TemporaryDirectory() as folder:
        about = {"name": models.defaults.name, "fingerprint": models.fingerprint, "steps": models.defaults.num_inference_steps}
        results.put("checkpoint", about | {"load_seconds": round(models.load_seconds, 3)})
        # The load of the machine tells whether others were working on it.
        machine = {"device": a.device, "threads": a.threads, "cores": os.cpu_count(), "load": round(os.getloadavg()[0], 2)}
        results.put("machine", machine)
        measures = {name: lambda steps=steps: run(models, steps, folder) for name, steps in STEPS.items()}
        measures["command"] = lambda: command(models, a.device, a.threads, folder)
        for name, measure in measures.items():
            found = medians(measure, a.repeats)
            results.put(name, found)
            table.add_row(name, *(f"{found[part]:.2f}" if part in found else "" for part in (*PARTS, "all")))
    Console().print(table)


if __name__ == "__main__":
    main()
