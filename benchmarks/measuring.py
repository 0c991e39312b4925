"""What the benchmark scripts share: the environment, CUDA timing, peak memory, results that survive a killed run."""

import json
import platform
import resource
import statistics
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import torch

GIB = 2**30


class Results:
    """A JSON file that is rewritten after every number, so that a killed run keeps what it measured."""

    def __init__(self, path):
        self.path, self.data = Path(path), {"environment": environment()}
        self.begin = time.perf_counter()

    def put(self, key, value):
        self.data[key] = value
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.data, indent=1) + "\n")
        print(f"[{time.perf_counter() - self.begin:6.1f} s] {key}: {json.dumps(value)}", flush=True)


def environment():
    found = {"python": platform.python_version(), "torch": torch.__version__, "safetensors": version("safetensors")}
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        found |= {"gpu": p.name, "gpu_gib": round(p.total_memory / GIB, 1), "cudnn": torch.backends.cudnn.version()}
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.split()[0]  # a line for each GPU
    return found


def median_seconds(fn, *, repeats=3, warmup=1):
    """Median time of `fn` on the GPU by CUDA events (or on the CPU by the clock), after a warm-up."""
    for _ in range(warmup):
        fn()
    seconds = []
    for _ in range(repeats):
        if not torch.cuda.is_available():
            begin = time.perf_counter()
            fn()
            seconds.append(time.perf_counter() - begin)
            continue
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        fn()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return round(statistics.median(seconds), 6)


def peak_gpu(reset=False):
    """Peak GPU memory in GiB since the last reset: (allocated, reserved)."""
    if not torch.cuda.is_available():
        return 0.0, 0.0
    peaks = torch.cuda.max_memory_allocated() / GIB, torch.cuda.max_memory_reserved() / GIB
    if reset:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return tuple(round(p, 2) for p in peaks)


def host_memory():
    """Host memory of this process in GiB: peak resident (mapped file pages included), and anonymous now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    anonymous = int(status["RssAnon"].split()[0]) * 1024 if "RssAnon" in status else 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_rss_gib": round(peak / GIB, 2), "anonymous_gib": round(anonymous / GIB, 2)}
