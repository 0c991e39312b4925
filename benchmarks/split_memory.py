"""Split placement at full Nano size: GPU memory phase by phase, under a limit, and how fast weights reach the GPU.

    python benchmarks/split_memory.py FOLDER [--runs 480x832x49x4@15,720x1280x189x2@19.5] [--keep] [--tiny]

A run is HEIGHTxWIDTHxFRAMESxSTEPS@GIB, with :fp8 or :int8 behind it where the layers are to be rounded: PyTorch gets no more than
that many GiB (`set_per_process_memory_fraction`). FOLDER gets
a random checkpoint of about 33 GB, unless there is one (removed at the end unless --keep). T2AV, 200 prompt tokens, 3400
negative tokens. The first run is repeated in resident placement, and its latents compared bit for bit.
"""

import argparse
import shutil
import time
from pathlib import Path

import torch
from full_size import HostPeak, request_of
from measuring import GIB, Results, peak_gpu

from cosmos3_lab import decode_latents, denoise, load_cosmos3, prepare_denoise, transfer
from cosmos3_lab.random_checkpoint import write_random_checkpoint

CUDA = torch.cuda.is_available()


class Phases:
    """Seconds, and GPU memory at the peak and at the end, of each phase of a run."""

    def __init__(self):
        self.rows, self.begin = {}, time.perf_counter()

    def end(self, name):
        if CUDA:
            torch.cuda.synchronize()
        allocated, reserved = (round(n / GIB, 2) for n in (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()))
        row = {"seconds": round(time.perf_counter() - self.begin, 2), "peak_gib_allocated_reserved": peak_gpu()}
        if CUDA:
            free, total = torch.cuda.mem_get_info()
            row |= {"end_gib_allocated_reserved": (allocated, reserved), "nvidia_smi_gib": round((total - free) / GIB, 2)}
            torch.cuda.reset_peak_memory_stats()  # not the cache, whose size is what is measured
        self.rows[name], self.begin = row, time.perf_counter()


def limit(gib):
    if CUDA:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib * GIB / total))


def run(models, size, out):
    """The latents, and the phases' rows."""
    peak_gpu(reset=True)
    phases, request = Phases(), request_of(models, size)
    with HostPeak() as host:
        inputs, state = prepare_denoise(models, request, preset="native", flow_shift=10.0)
        phases.end("encode both prompts, bring GEN")
        for number, (after, _) in enumerate(denoise(models.transformer, inputs, state)):
            state = after
            if number == 0:
                phases.end("first step")
        phases.end("other steps")
        decode_latents(models, state.latents, fps=request.fps, mp4=out)
        phases.end("bring and run the decoders, mp4")
    reserved = max(row["peak_gib_allocated_reserved"][1] for row in phases.rows.values())
    return state.latents.to("cpu"), phases.rows | {"peak_reserved_gib": reserved, "peak_anonymous_host_gib": host.peak}


def load_speed(checkpoint, threads):
    """Of the whole checkpoint to the GPU, from a page cache that an earlier run has filled."""
    default, transfer.THREADS = transfer.THREADS, threads
    with load_cosmos3(checkpoint, placement="resident") as models:
        seconds, gb = models.load_seconds, models.load_bytes / 1e9
    transfer.THREADS = default
    return {"seconds": round(seconds, 2), "gb_per_s": round(gb / seconds, 2)}


def limited(results, checkpoint, size, gib, kind, out):
    """The latents of a split run under the limit; where it is not enough, this is written down and the run repeated without."""
    name = f"run/{size}/split" + (f"/{kind}" if kind else "")
    for most in (gib, float("inf")):
        limit(most)
        try:
            with load_cosmos3(checkpoint, placement="split", quantize=kind or None) as models:
                latents, row = run(models, size, out)
        except torch.OutOfMemoryError as error:
            results.put(f"{name}/at_most_{most:g}_gib", str(error)[:300])
            continue
        limit(float("inf"))
        results.put(f"{name}/at_most_{most:g}_gib", row | {"load_seconds": round(models.load_seconds, 2)})
        return latents
    raise MemoryError(f"{size} needs more than this GPU has")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", default="480x832x49x4@15,720x1280x189x2@19.5,480x832x49x4@9:fp8,720x1280x189x2@13:fp8")
    parser.add_argument("--no-resident", action="store_true", help="leave out the resident run, with which the first is compared")
    parser.add_argument("--threads", default="1,4,8,16", help="of the copies, for the table of loading speeds")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="tiny model, to try the script")
    parser.add_argument("--out", default="benchmarks/results/split_memory.json")
    a = parser.parse_args()
    results, checkpoint = Results(a.out), a.folder / "checkpoint"
    if not checkpoint.exists():
        write_random_checkpoint(checkpoint, "tiny" if a.tiny else "nano", device="cuda" if CUDA else "cpu")
    runs = [(size, *limit.partition(":")[::2]) for size, limit in (each.split("@") for each in a.runs.split(","))]

    for threads in (int(n) for n in filter(None, a.threads.split(","))):
        results.put(f"load/warm/{threads}_threads", load_speed(checkpoint, threads))
    out = a.folder / "clip.mp4"
    kept = [limited(results, checkpoint, size, float(gib), kind, out) for size, gib, kind in runs]
    if not a.no_resident:
        compare_with_resident(results, checkpoint, runs[0][0], kept[0], out)
    if not a.keep:
        shutil.rmtree(checkpoint)


def compare_with_resident(results, checkpoint, size, split, out):
    with load_cosmos3(checkpoint, placement="resident") as models:
        latents, row = run(models, size, out)
    results.put(f"run/{size}/resident", row)
    same = torch.equal(latents.video, split.video) and torch.equal(latents.sound, split.sound)
    results.put("split_equals_resident", same)


if __name__ == "__main__":
    main()
