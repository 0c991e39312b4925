"""Train pico from nothing: `python -m cosmos3_lab.pico.train OUT`.

    video VAE, AVAE  ->  transformer  ->  OUT/checkpoint, a folder in the Nano layout

One command does all three on one GPU. Each phase saves its state in OUT/state as it goes: the same command again continues
where it was stopped. With two GPUs, train VAE and AVAE side by side (`--phase`), and start the transformer with `torchrun`.
`--recipe tiny` runs in half a minute on a laptop.

Read next: `train_vae.py`, `train_avae.py`, `train_transformer.py`.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from cosmos3_lab.files import replacing
from cosmos3_lab.layout import write_json
from cosmos3_lab.pico.export import (
    read_autoencoders,
    read_transformer,
    write_avae,
    write_settings,
    write_transformer,
    write_vae,
)
from cosmos3_lab.pico.optimizers import Trainer
from cosmos3_lab.pico.recipe import RECIPES, Recipe
from cosmos3_lab.pico.train_avae import build_avae, train_avae
from cosmos3_lab.pico.train_transformer import build_transformer, muon_names, train_transformer
from cosmos3_lab.pico.train_vae import build_vae, measure_statistics, train_vae

PHASES = ("vae", "avae", "transformer")
DEFAULTS = {"num_inference_steps": 30, "guidance_scale": 3.0, "flow_shift": 5.0, "preset": "native"}
SAVE_EVERY = 120.0  # seconds


@dataclass(frozen=True)
class Job:
    """What the command line asked for.

    Attributes:
        out: folder of the run.
        recipe: shapes and lengths.
        seed: of everything random.
        device: to train on.
        workers: processes that make scenes.
        minutes: after which a phase saves and stops, None for as long as it takes.
        start_from: checkpoint whose transformer is trained further, None to begin from nothing.
    """

    out: Path
    recipe: Recipe
    seed: int
    device: torch.device
    workers: int
    minutes: float | None = None
    start_from: Path | None = None

    @property
    def checkpoint(self) -> Path:
        """Folder of the checkpoint that is being made."""
        return self.out / "checkpoint"

    def state_file(self, phase: str) -> Path:
        """Where a phase keeps its state."""
        return self.out / "state" / f"{phase}.safetensors"


def run(job: Job, phases: tuple[str, ...]) -> None:
    """Train the given phases, in order; the transformer needs both others done.

    Args:
        job: what to do, and where.
        phases: of `PHASES`.

    Raises:
        CheckpointError: the transformer was asked for before the others were trained.
    """
    torch.backends.cuda.matmul.allow_tf32 = True
    if is_first_process():
        write_settings(job.checkpoint, job.recipe, DEFAULTS)
    for phase in phases:
        torch.manual_seed(job.seed)
        {"vae": _vae, "avae": _avae, "transformer": _transformer}[phase](job)


def is_first_process() -> bool:
    """Whether this process writes files and shows progress; the only one, unless started with `torchrun`."""
    return int(os.environ.get("RANK", "0")) == 0


def _vae(job: Job) -> None:
    vae = build_vae(job.recipe, job.device)
    trainer = Trainer(vae, job.recipe.vae_phase, dtype=_fast_dtype(job.device))
    _train(job, "vae", trainer, train_vae(vae, trainer, job.recipe, seed=job.seed, workers=job.workers))
    vae.config = measure_statistics(vae, job.recipe, seed=job.seed + 1)
    write_vae(job.checkpoint, vae)


def _avae(job: Job) -> None:
    avae = build_avae(job.recipe, job.device)
    trainer = Trainer(avae, job.recipe.avae_phase, betas=(0.8, 0.99))
    _train(job, "avae", trainer, train_avae(avae, trainer, job.recipe, seed=job.seed, workers=job.workers))
    write_avae(job.checkpoint, avae)


def _transformer(job: Job) -> None:
    autoencoders = read_autoencoders(job.checkpoint, job.device)  # as they ship, rounded to bfloat16
    transformer = build_transformer(job.recipe, job.device)
    if job.start_from is not None:
        read_transformer(job.start_from, transformer)
    options = {"float32": ("gen.time_embedder",), "betas": (0.9, 0.98), "weight_decay": 0.0}
    phase, dtype = job.recipe.transformer_phase, _fast_dtype(job.device)
    trainer = Trainer(transformer, phase, dtype=dtype, muon=muon_names(transformer), **options)
    tokenizer = job.checkpoint / "text_tokenizer"
    more = {"seed": job.seed, "workers": job.workers}
    _train(job, "transformer", trainer, train_transformer(transformer, trainer, *autoencoders, tokenizer, job.recipe, **more))
    if is_first_process():
        write_transformer(job.checkpoint, transformer)


def _fast_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _train(job: Job, phase: str, trainer: Trainer, numbers: Iterator[dict[str, Any]]) -> None:
    """Run a phase to its end or to the time limit, with its state saved now and then; the module is left averaged."""
    file, log = job.state_file(phase), job.out / f"{phase}.json"
    curve = json.loads(log.read_text())["curve"] if log.is_file() else []
    if file.is_file():
        trainer.restore(load_file(file, device=str(job.device)))
    begin = saved = time.monotonic()
    before = json.loads(log.read_text())["seconds"] if log.is_file() else 0.0
    recent: dict[str, list[Any]] = {}
    every = max(1, trainer.phase.steps // 200)
    show = {"total": trainer.phase.steps, "initial": trainer.step_index, "desc": phase, "disable": not is_first_process()}

    def save() -> None:
        if is_first_process():
            with replacing(file) as temporary:
                save_file(trainer.state(), temporary)
            write_json(log, {"seconds": before + time.monotonic() - begin, "curve": curve})

    with tqdm(**show, mininterval=5, maxinterval=60) as bar:
        for step in numbers:
            for name, value in step.items():
                recent.setdefault(name, []).append(value)
            bar.update()
            if trainer.step_index % every:
                continue
            means = {name: float(torch.stack(values).float().mean()) for name, values in recent.items()}
            curve.append({"step": trainer.step_index} | means)
            bar.set_postfix({name: f"{value:.4g}" for name, value in means.items()})
            recent, now = {}, time.monotonic()
            if now - saved > SAVE_EVERY:
                save()
                saved = now
            if _anyone(job.minutes is not None and now - begin > 60 * job.minutes, job.device):
                break
    save()
    trainer.averaged()


def _anyone(stop: bool, device: torch.device) -> bool:
    """Whether any process wants to stop: all stop together, or some would wait for gradients for ever."""
    if not dist.is_initialized():
        return stop
    flag = torch.tensor(float(stop), device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return bool(flag)


def main() -> None:
    """Command line: `python -m cosmos3_lab.pico.train OUT [--recipe pico|tiny] [--phase ...] [--seed N] [--minutes M]`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the run; an interrupted run in it is continued")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="pico")
    parser.add_argument("--phase", choices=PHASES, action="append", help="only this phase; may be given twice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=min(12, (os.cpu_count() or 1) - 1))
    parser.add_argument("--minutes", type=float, help="save and stop each phase after this long")
    parser.add_argument("--start-from", type=Path, help="checkpoint whose transformer is trained further")
    parser.add_argument("--steps", type=int, help="of the phases, instead of the recipe's")
    a = parser.parse_args()
    recipe = RECIPES[a.recipe]
    if a.steps:
        recipe = replace(recipe, **{f"{p}_phase": replace(getattr(recipe, f"{p}_phase"), steps=a.steps) for p in PHASES})
    if "LOCAL_RANK" in os.environ:  # started with torchrun
        a.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(a.device)
        dist.init_process_group("nccl")
    job = Job(a.out, recipe, a.seed, torch.device(a.device), a.workers, a.minutes, a.start_from)
    run(job, tuple(a.phase or PHASES))


if __name__ == "__main__":
    main()
