"""How long pico takes from a prompt to an mp4, and beside it diffusers with the same checkpoint, noise and settings.

    python benchmarks/pico_speed.py [--checkpoint DIR] [--device cpu] [--threads N] [--repeats 5]

Rows: the default clip with sound; a preview of 4 steps; diffusers' clip (float32 as ours, mp4 not counted for either in the
ratio); our clip in bfloat16; the command of `make demo` from start to exit; importing the package, after torch; loading.
Medians, after one run that is not counted; ours and diffusers' clips alternate.
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
from parity import load_diffusers, settings_and_noise, with_diffusers
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


# In a process of its own: seconds that importing the package adds to torch's, and that loading then takes.
IMPORT_AND_LOAD = """
import time, torch
begin = time.perf_counter()
import cosmos3_lab
imported = time.perf_counter()
cosmos3_lab.load_cosmos3({folder!r}, device={device!r})
print(imported - begin, time.perf_counter() - imported)
"""


def import_and_load(models, device):
    script = IMPORT_AND_LOAD.format(folder=str(models.folder), device=device)
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    return dict(zip(("import", "load"), map(float, printed.split()), strict=True))


def beside_diffusers(models, repeats):
    """Seconds of the default clip, ours and diffusers', in turns; and how many times as fast ours is, turn by turn."""
    prompt, pipe = models.defaults.example_prompts[0], load_diffusers(models.folder)
    settings, noise = settings_and_noise(models)

    def ours():
        begin = time.perf_counter()
        generate(models, prompt, **settings, with_sound=True, noise=noise, preset="diffusers", progress=False)
        return time.perf_counter() - begin

    def turn():
        seconds = {"lab": ours(), "diffusers": with_diffusers(pipe, prompt, settings, noise)[-1]}
        return seconds | {"times as fast": seconds["diffusers"] / seconds["lab"]}

    return medians(turn, repeats)


def medians(measure, repeats):
    measure()
    rows = [measure() for _ in range(repeats)]
    return {part: round(statistics.median(row[part] for row in rows), 3) for part in rows[0]}


def report(results, table, name, found):
    results.put(name, found)
    table.add_row(name, *(f"{found[part]:.2f}" if part in found else "" for part in (*PARTS, "all")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="pico")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
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
        for name, steps in STEPS.items():
            report(results, table, name, medians(lambda steps=steps: run(models, steps, folder), a.repeats))
        results.put("beside diffusers", beside_diffusers(models, a.repeats) if a.device == "cpu" else None)
        report(results, table, "command", medians(lambda: command(models, a.device, a.threads, folder), a.repeats))
        results.put("start", medians(lambda: import_and_load(models, a.device), a.repeats))
        with load_cosmos3(models.folder, device=a.device, dtype=torch.bfloat16) as half:
            report(results, table, "default in bfloat16", medians(lambda: run(half, None, folder), a.repeats))
    Console().print(table)


if __name__ == "__main__":
    main()
