"""The whole road at full Nano size: a random-weight checkpoint on disk in the real layout, loaded, and run to an mp4.

    python benchmarks/full_size.py FOLDER [--runs 480x832x49x10,720x1280x189x35] [--keep] [--tiny]

FOLDER gets about 33 GB (removed at the end unless --keep). T2AV, 200 prompt tokens, 3400 negative tokens, guidance 6.
A small clip first starts the GPU's libraries and compiles the kernels. After the runs in resident placement the first of them is
repeated in split placement, and its latents compared bit for bit.
"""

import argparse
import shutil
import subprocess
import threading
import time
from pathlib import Path

import torch
from measuring import GIB, Results, host_memory, peak_gpu

from cosmos3_lab import Cosmos3TokenizedPrompt, load_cosmos3, make_request, read_mp4, run_request
from cosmos3_lab.random_checkpoint import write_random_checkpoint
from cosmos3_lab.run import INFERENCE_PARTS, PHASES

WARM_UP = "480x832x9x2"


class HostPeak:
    """Peak of this process's anonymous host memory (what is not a mapped file), sampled twenty times a second."""

    def __enter__(self):
        self.peak, self.done = 0.0, threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def _sample(self):
        while not self.done.wait(0.05):
            self.peak = max(self.peak, host_memory()["anonymous_gib"])

    def __exit__(self, *exc):
        self.done.set()
        self.thread.join()


def drop_page_cache():
    """So that loading is timed from the disk; needs root, and says whether it worked."""
    subprocess.run(["sync"], check=False)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def request_of(models, size):
    height, width, frames, steps = (int(n) for n in size.split("x"))
    generator = torch.Generator().manual_seed(0)

    def prompt(tokens):
        ids = torch.randint(0, models.config.vocab_size, (1, tokens), generator=generator)
        return Cosmos3TokenizedPrompt(ids, torch.ones_like(ids))

    return make_request(
        prompt(200),
        prompt(3400),
        num_frames=frames,
        height=height,
        width=width,
        with_sound=True,
        num_inference_steps=steps,
        media=models.media,
    )


def load(results, folder, key, **loading):
    peak_gpu(reset=True)
    with HostPeak() as host:
        models = load_cosmos3(folder, **loading)
    results.put(
        key,
        {
            "seconds": round(models.load_seconds, 2),
            "gb": round(models.load_bytes / 1e9, 3),
            "gb_per_s": round(models.load_bytes / 1e9 / models.load_seconds, 2),
            "peak_gpu_gib_allocated_reserved": peak_gpu(),
            "peak_anonymous_host_gib": host.peak,
            "placement": models.placement,
        },
    )
    return models


def run(results, models, size, out):
    peak_gpu(reset=True)
    with HostPeak() as host:
        result = run_request(models, request_of(models, size), preset="native", flow_shift=10.0, out=out, name=f"{size}.mp4")
    steps = [r.seconds for r in result.records]
    back = read_mp4(result.path)
    row = {
        "timings_s": {p: round(result.timings[p], 2) for p in (*PHASES, *INFERENCE_PARTS)},
        "median_step_s": round(sorted(steps)[len(steps) // 2], 4),
        "slowest_step_s": round(max(steps), 4),
        "peak_gpu_gib_allocated_reserved": peak_gpu(),
        "peak_anonymous_host_gib": host.peak,
        "mp4": {"mb": round(result.path.stat().st_size / 1e6, 1), "read_back": repr(back)},
        "finite": bool(torch.isfinite(result.latents.video).all() and torch.isfinite(result.latents.sound).all()),
        "x0_rms_last": {k: round(v, 4) for k, v in result.records[-1].rms.items() if k.endswith(".x0")},
    }
    results.put(f"run/{size}/{models.placement}", row)
    return result.latents.to("cpu")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", default="480x832x49x10,720x1280x189x35")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="tiny model, to try the script")
    parser.add_argument("--out", default="benchmarks/results/full_size.json")
    a = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results, checkpoint = Results(a.out), a.folder / "checkpoint"
    begin = time.perf_counter()
    write_random_checkpoint(checkpoint, "tiny" if a.tiny else "nano", device=device)
    files = sorted((checkpoint / "transformer").glob("*.safetensors"))
    total = sum(f.stat().st_size for f in checkpoint.rglob("*") if f.is_file())
    results.put(
        "checkpoint",
        {"seconds": round(time.perf_counter() - begin, 1), "gb": round(total / 1e9, 2), "transformer_shards": len(files)},
    )
    if device == "cuda":
        torch.cuda.empty_cache()
    cold = drop_page_cache()
    models = load(results, checkpoint, f"load/resident/{'cold' if cold else 'warm'}", placement="resident")
    run(results, models, WARM_UP, a.folder / "mp4")
    latents = [run(results, models, size, a.folder / "mp4") for size in a.runs.split(",")]
    models.close()
    results.put("gpu_gib_allocated_after_close", round(torch.cuda.memory_allocated() / GIB, 3) if device == "cuda" else 0)

    models = load(results, checkpoint, "load/split/warm", placement="split")
    size = a.runs.split(",")[0]
    again = run(results, models, size, a.folder / "mp4-split")
    same = torch.equal(latents[0].video, again.video) and torch.equal(latents[0].sound, again.sound)
    results.put("split_equals_resident", same)
    models.close()
    if not a.keep:
        shutil.rmtree(checkpoint)


if __name__ == "__main__":
    main()
