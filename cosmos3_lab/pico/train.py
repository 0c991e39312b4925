"""Train pico from nothing: `python -m cosmos3_lab.pico.train OUT`.

    video VAE, AVAE  ->  transformer  ->  scores  ->  OUT/checkpoint, a folder in the Nano layout

One command does all on one GPU. Each phase saves its state in OUT/state as it goes, with loss curves and a sheet of clips to
look at: the same command again continues where it was stopped. With two GPUs, train VAE and AVAE side by side (`--phase`),
and start the transformer with `torchrun`. `--recipe tiny` runs in half a minute on a laptop.

Read next: `train_vae.py`, `train_avae.py`, `train_transformer.py`.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from cosmos3_lab.checkpoint import load_cosmos3
from cosmos3_lab.files import replacing
from cosmos3_lab.layout import write_json
from cosmos3_lab.pico.clips import generate_clips
from cosmos3_lab.pico.export import (
    read_autoencoders,
    read_transformer,
    write_avae,
    write_settings,
    write_transformer,
    write_vae,
)
from cosmos3_lab.pico.flow import TRAINING_SHIFT
from cosmos3_lab.pico.optimizers import Trainer
from cosmos3_lab.pico.pictures import draw_curves, draw_sheet, draw_sounds, save_figure
from cosmos3_lab.pico.recipe import RECIPES, Recipe
from cosmos3_lab.pico.score import as_json, measure, unseen_prompts
from cosmos3_lab.pico.train_avae import build_avae, train_avae
from cosmos3_lab.pico.train_transformer import GROUPS, build_transformer, muon_names, train_transformer
from cosmos3_lab.pico.train_vae import build_vae, measure_statistics, train_vae
from cosmos3_lab.pico.world import draw, play
from cosmos3_lab.sound_avae import SoundAVAE, decode_sound, encode_sound
from cosmos3_lab.video_vae import VideoVAE, decode_video, encode_video

MODELS = ("vae", "avae", "transformer")
PHASES = (*MODELS, "score")
DEFAULTS = {"num_inference_steps": 30, "guidance_scale": 2.5, "flow_shift": 10.0, "preset": "native"}
SAVE_EVERY = 120.0  # seconds
SHEET = 8  # rows of a sheet


@dataclass(frozen=True)
class Job:
    """What the command line asked for.

    Attributes:
        out: folder of the run.
        recipe: shapes and lengths.
        seed: of everything random.
        device: to train on.
        workers: processes that make scenes.
        minutes: fit each phase into this time by changing its number of steps, None for the recipe's.
        start_from: checkpoint whose transformer is trained further, None to begin from nothing.
        rate_share: of the transformer's learning rates. Further training begins with less than the first, and falls at once.
        count: prompts of each kind that the result is scored on.
    """

    out: Path
    recipe: Recipe
    seed: int
    device: torch.device
    workers: int
    minutes: float | None = None
    start_from: Path | None = None
    rate_share: float = 1.0
    count: int = 384

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
        if job.start_from is not None:  # whose token ids mean what its transformer has learned
            tokenizer = Path("text_tokenizer")
            shutil.copytree(job.start_from / tokenizer, job.checkpoint / tokenizer, dirs_exist_ok=True)
    if dist.is_initialized():
        dist.barrier()  # nobody reads the tokenizer before it is there
    for phase in phases:
        torch.manual_seed(job.seed)
        {"vae": _vae, "avae": _avae, "transformer": _transformer, "score": _score}[phase](job)


def is_first_process() -> bool:
    """Whether this process writes files and shows progress; the only one, unless started with `torchrun`."""
    return int(os.environ.get("RANK", "0")) == 0


def process_count() -> int:
    """How many train together: one, unless started with `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _vae(job: Job) -> None:
    vae = build_vae(job.recipe, job.device)
    trainer = Trainer(vae, job.recipe.vae_phase, dtype=_fast_dtype(job.device))

    def show() -> Figure:
        averaged = trainer.averaged()
        averaged.config = measure_statistics(averaged, job.recipe, seed=job.seed + 1)
        write_vae(job.checkpoint, averaged)
        return draw_sheet(_through_vae(averaged, job))

    _train(job, "vae", trainer, train_vae(vae, trainer, job.recipe, seed=job.seed, workers=job.workers), show)


def _avae(job: Job) -> None:
    avae = build_avae(job.recipe, job.device)
    trainer = Trainer(avae, job.recipe.avae_phase, betas=(0.8, 0.99))

    def show() -> Figure:
        averaged = trainer.averaged()
        write_avae(job.checkpoint, averaged)
        return draw_sounds(*_through_avae(averaged, job), job.recipe.avae.sampling_rate)

    _train(job, "avae", trainer, train_avae(avae, trainer, job.recipe, seed=job.seed, workers=job.workers), show)


def _transformer(job: Job) -> None:
    autoencoders = read_autoencoders(job.checkpoint, job.device)  # as they ship, rounded to bfloat16
    transformer = build_transformer(job.recipe, job.device)
    if job.start_from is not None:
        read_transformer(job.start_from, transformer)
    options = {"float32": ("gen.time_embedder",), "betas": (0.9, 0.98), "weight_decay": 0.0, "rate_share": job.rate_share}
    phase, dtype = job.recipe.transformer_phase, _fast_dtype(job.device)
    if job.start_from is not None:
        phase = replace(phase, flat=0.0)
    trainer = Trainer(transformer, phase, dtype=dtype, muon=muon_names(transformer), **options)

    def show() -> Figure:
        write_transformer(job.checkpoint, trainer.averaged())
        with load_cosmos3(job.checkpoint, device=job.device) as models:
            prompts = models.defaults.example_prompts[:SHEET]
            clips = sorted(generate_clips(models, prompts, seeds=range(SHEET)), key=lambda clip: clip[0])
        return draw_sheet([(prompts[i], pixels, waveform) for i, pixels, waveform in clips])

    tokenizer, more = job.checkpoint / "text_tokenizer", {"seed": job.seed, "workers": job.workers}
    numbers = train_transformer(transformer, trainer, *autoencoders, tokenizer, job.recipe, **more)
    clips = phase.batch * max(GROUPS, process_count()) // GROUPS
    settings = {"clips_a_step": clips, "rate_share": job.rate_share, "sigma_shift": TRAINING_SHIFT}
    _train(job, "transformer", trainer, numbers, show, settings)


def _score(job: Job) -> None:
    if is_first_process():
        # float32, as on a laptop
        with load_cosmos3(job.checkpoint, device=job.device, dtype=torch.float32, load_encoder=True) as models:
            write_json(job.out / "scores.json", as_json(measure(models, job.count)))
        write_json(job.checkpoint / "TRAINING.json", about(job))


def about(job: Job) -> dict[str, Any]:
    """What is written beside the weights: settings, curves, scores, and on what the training ran.

    Args:
        job: that is done.
    """
    phases = {phase: _summary(json.loads((job.out / f"{phase}.json").read_text())) for phase in MODELS}
    if job.start_from is not None:
        earlier = json.loads((job.start_from / "TRAINING.json").read_text())
        phases["transformer"]["before"] = earlier["phases"]["transformer"]
    device = torch.cuda.get_device_name(job.device) if job.device.type == "cuda" else "cpu"
    return {
        "seed": job.seed,
        "machine": {"device": device, "processes": process_count(), "torch": torch.__version__},
        "phases": phases,
        "recipe": asdict(job.recipe),
        "scores": json.loads((job.out / "scores.json").read_text()),
    }


def _summary(log: dict[str, Any]) -> dict[str, Any]:
    curve = [{name: float(f"{value:.4g}") for name, value in row.items()} for row in log["curve"] if "loss" in row]
    how = {"steps": log["steps"], "seconds": log["seconds"], **log.get("settings", {})}
    return {**how, "last": curve[-1], "curve": curve[:: max(1, len(curve) // 100)]}


def _through_vae(vae: VideoVAE, job: Job) -> list[tuple[str, np.ndarray, None]]:
    """Clips above what the VAE makes of them."""
    scenes = [prompt.scene for prompt in unseen_prompts(SHEET // 2)]
    pixels = draw(scenes, frames=job.recipe.frames, side=job.recipe.side, device=job.device)
    rebuilt = decode_video(vae, encode_video(vae, pixels))
    pairs = zip(pixels.cpu().numpy(), rebuilt.cpu().numpy(), strict=True)
    return [row for a, b in pairs for row in (("drawn", a, None), ("through the VAE", b, None))]


def _through_avae(avae: SoundAVAE, job: Job) -> tuple[list[str], np.ndarray, np.ndarray]:
    """One waveform of every kind of sound, and what the AVAE makes of it."""
    scenes = {prompt.scene.sound: prompt.scene for prompt in unseen_prompts(200)}
    waveform = play(list(scenes.values()), samples=job.recipe.sound_latents * job.recipe.avae.hop_size, device=job.device)
    return list(scenes), waveform.cpu().numpy(), decode_sound(avae, encode_sound(avae, waveform)).cpu().numpy()


def _fast_dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _train(
    job: Job,
    phase: str,
    trainer: Trainer,
    numbers: Iterator[dict[str, Any]],
    show: Callable[[], Figure],
    settings: dict[str, Any] | None = None,
) -> None:
    """Run a phase to its end. Now and then and at the end, save its state, export what it has learned and draw a sheet.

    The settings, which the recipe does not have, go into the phase's log.
    """
    file, log = job.state_file(phase), job.out / f"{phase}.json"
    past = json.loads(log.read_text()) if log.is_file() else {"seconds": 0.0, "curve": []}
    curve = past["curve"]
    if file.is_file():
        trainer.restore(load_file(file, device=str(job.device)))
    begin = saved = time.monotonic()
    recent: dict[str, list[Any]] = {}
    paces: list[tuple[float, int]] = []
    every = max(1, trainer.phase.steps // 200)
    bar = {"total": trainer.phase.steps, "initial": trainer.step_index, "desc": phase, "disable": not is_first_process()}

    def save() -> None:
        if is_first_process():
            with replacing(file) as temporary:
                save_file(trainer.state(), temporary)
            seconds = past["seconds"] + time.monotonic() - begin
            write_json(log, {"seconds": seconds, "steps": trainer.phase.steps, "settings": settings or {}, "curve": curve})
            save_figure(draw_curves({phase: curve}), job.out / f"{phase}.png")
            save_figure(show(), job.out / f"{phase}_sheet.png")

    with tqdm(**bar, mininterval=5, maxinterval=60) as progress:
        for step in numbers:
            for name, value in step.items():
                recent.setdefault(name, []).append(value)
            progress.update()
            if trainer.step_index % every:
                continue
            means = {name: float(torch.stack(values).float().mean()) for name, values in recent.items()}
            curve.append({"step": trainer.step_index} | means)
            progress.set_postfix({name: f"{value:.4g}" for name, value in means.items()}, refresh=False)
            recent, now = {}, time.monotonic()
            if now - saved > SAVE_EVERY:
                save()
                saved = time.monotonic()
            if job.minutes is not None:
                # What the time allows at this pace; the first steps, which compile, say nothing about it.
                paces.append((now, trainer.step_index))
                steps = _fitting_steps(paces[-10:], begin - past["seconds"] + 60 * job.minutes)
                trainer.phase = replace(trainer.phase, steps=_same_everywhere(steps, job.device))
                progress.total = trainer.phase.steps
    save()


def _fitting_steps(paces: list[tuple[float, int]], end: float) -> int:
    """Steps that will be done at the time `end`, judged by the latest `(time, step)` pairs."""
    (before, first), (now, last) = paces[0], paces[-1]
    if last == first:
        return 2 * last + 1000  # unknown yet
    return last + int(max(0.0, end - now) * (last - first) / (now - before))


def _same_everywhere(number: int, device: torch.device) -> int:
    """The first process decides: all must do the same number of steps, or some would wait for gradients for ever."""
    if dist.is_initialized():
        shared = torch.tensor(number, device=device)
        dist.broadcast(shared, src=0)
        return int(shared)
    return number


def main() -> None:
    """Command line: `python -m cosmos3_lab.pico.train OUT [--recipe pico|tiny] [--phase ...] [--seed N] [--minutes M]`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the run; an interrupted run in it is continued")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="pico")
    parser.add_argument("--phase", choices=PHASES, action="append", help="only this phase; may be given twice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=min(12, (os.cpu_count() or 1) - 1))
    parser.add_argument("--minutes", type=float, help="fit each phase into this time, instead of the recipe's number of steps")
    parser.add_argument("--start-from", type=Path, help="checkpoint whose transformer is trained further")
    parser.add_argument("--rate-share", type=float, default=1.0, help="of the transformer's learning rates, such as 0.5 to go on")
    parser.add_argument("--count", type=int, default=384, help="prompts of each kind to score the result on")
    a = parser.parse_args()
    recipe = RECIPES[a.recipe]
    if "LOCAL_RANK" in os.environ:  # started with torchrun
        a.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(a.device)
        dist.init_process_group("nccl")
    job = Job(a.out, recipe, a.seed, torch.device(a.device), a.workers, a.minutes, a.start_from, a.rate_share, a.count)
    run(job, tuple(a.phase or PHASES))


if __name__ == "__main__":
    main()
