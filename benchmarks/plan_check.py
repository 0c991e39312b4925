"""How near `cosmos3-lab plan` comes to whole runs that were measured: peak memory and seconds, planned over measured.

    python benchmarks/plan_check.py [benchmarks/results/full_size_h100.json] [--measured benchmarks/results/nano_h200.json]

Reads the JSON of `full_size.py`. On a machine with a GPU the seconds come from the plan's own short measurement there, else from
`--measured`. Wanted: memory within 10 %, seconds within 15 %.
"""

import argparse
import json
from pathlib import Path

import torch
from full_size import WARM_UP
from rich.console import Console
from rich.table import Table

from cosmos3_lab.costs import nano_configs
from cosmos3_lab.memory import GIB
from cosmos3_lab.plan import plan_run
from cosmos3_lab.speed import read_rates

WHOLE_GPU = 80  # GB, of the H100 that the results are from


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="?", default="benchmarks/results/full_size_h100.json")
    parser.add_argument("--measured", default="benchmarks/results/nano_h200.json")
    a = parser.parse_args()
    rates = None if torch.cuda.is_available() else read_rates(a.measured)
    table = Table("run", "GiB\nplanned", "meas-\nured", "ratio", "s\nplanned", "meas-\nured", "ratio")
    table.columns[0].no_wrap = True
    for key, run in json.loads(Path(a.results).read_text()).items():
        if key.startswith("run/") and key.split("/")[1] != WARM_UP:
            table.add_row(key.removeprefix("run/"), *compare(key, run, rates))
    Console().print(table)


def compare(key, run, rates):
    _, size, placement = key.split("/")
    *size, steps = (int(n) for n in size.split("x"))
    plan = plan_run(nano_configs(), [size], num_inference_steps=steps, gpu_memory=WHOLE_GPU, rates=rates)
    option = getattr(plan.clips[0], placement)
    seconds = sum(run["timings_s"][part] for part in ("condition", "denoise", "decode"))
    pairs = ((option.peak / GIB, run["peak_gpu_gib_allocated_reserved"][1]), (option.seconds, seconds))
    return [text for planned, real in pairs for text in (f"{planned:.1f}", f"{real:.1f}", f"{planned / real:.2f}")]


if __name__ == "__main__":
    main()
