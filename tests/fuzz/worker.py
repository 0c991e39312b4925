"""Load damaged checkpoints and say what came of each: `python worker.py FOLDER FIRST COUNT`, one JSON line a case.

Runs in a process of its own, with a limit on memory and time, and with every file, socket, process and import watched.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import torch
from mutations import mutate

import cosmos3_lab
from cosmos3_lab import (
    default_negative_prompt,
    generate,
    inspect_checkpoint,
    load_cosmos3,
    schedule_from_config,
)
from cosmos3_lab.preview import latent_preview
from cosmos3_lab.random_checkpoint import RECIPES, write_random_checkpoint
from cosmos3_lab.sound_avae import SoundAVAEConfig
from cosmos3_lab.video_vae import VideoVAEConfig
from cosmos3_lab.weights import CheckpointError

SECONDS, WAIT = 5, 120  # of computing and by the clock, for one case; a good checkpoint takes a tenth of a second
ROOM = 3 * 2**30  # bytes of address space beyond what the process has when it begins


def write_small(folder: Path) -> Path:
    """A checkpoint with everything in it that a folder can have, as small as it can be."""
    tiny = RECIPES["tiny"]
    RECIPES["fuzz"] = replace(
        tiny,
        transformer=replace(
            tiny.transformer,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=16,
        ),
        vae=VideoVAEConfig(
            base_dim=4,
            decoder_base_dim=4,
            z_dim=8,
            dim_mult=(1, 1, 1, 1),
            num_res_blocks=1,
            latents_mean=(0.1,) * 8,
            latents_std=(0.9,) * 8,
        ),
        sound=SoundAVAEConfig(
            vocoder_input_dim=4, dec_dim=2, dec_c_mults=(1, 1), dec_strides=(4, 5), hop_size=20, sampling_rate=500
        ),
        shard_bytes=20_000,
        defaults={"num_frames": 5, "height": 32, "width": 48, "fps": 16, "num_inference_steps": 1},
    )
    write_random_checkpoint(folder, "fuzz")
    (folder / "assets").mkdir()
    (folder / "assets" / "negative_prompt.json").write_text('{"quality": "blurry", "subjects": [{"pose": "stiff"}]}')
    preview = {"weight": [[[0.1] * 8] * 3] * 2, "bias": [[0.5] * 3] * 2, "r2": 0.5}
    (folder / "assets" / "latent_preview.json").write_text(json.dumps(preview))
    return folder


def observe(folder: Path) -> str:
    """Read everything that can be read of a checkpoint, run it, and name the result."""
    digest = hashlib.sha256()
    with load_cosmos3(folder, device="cpu", load_encoder=True) as models:
        d = models.defaults
        run = generate(
            models,
            "a ball",
            with_sound=models.avae is not None,
            progress=False,
            num_frames=1,
            num_inference_steps=1,
            height=32,
            width=48,
            guidance_scale=2.0,
            seed=1,
            preset="native",
            fps=16,
        )
        preview = latent_preview(models)
        schedule = None
        if models.configs.scheduler is not None:
            schedule = schedule_from_config(models.configs.scheduler, 3)
    for tensor in (
        run.latents.video,
        run.latents.sound,
        *(preview.weight, preview.bias),
        *([] if schedule is None else [schedule.sigmas]),
    ):
        digest.update(b"none" if tensor is None else tensor.numpy().tobytes())
    digest.update(run.output.frames.tobytes() + (b"" if run.output.waveform is None else run.output.waveform.tobytes()))
    digest.update(repr((replace(d, name=""), default_negative_prompt(folder).text)).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


# Families of audit events, and single ones, that reading a checkpoint has no business with.
NEVER = {"subprocess", "socket", "pickle", "shutil", "ftplib", "urllib", "webbrowser"}
NEVER |= {"os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "marshal.load"}
LIBRARIES = (sys.prefix, sys.base_prefix, str(Path(cosmos3_lab.__file__).parent), "/usr", "/proc/self", "/sys")


class Watch:
    """Notes what a checkpoint must not bring about: files written, files read elsewhere, processes, sockets, code.

    What Python itself does is heard. The safetensors library opens files by itself, after their headers were read here.
    """

    def __init__(self) -> None:
        self.on, self.seen, self.folder = False, [], ""
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            path, flags = os.fsdecode(args[0]), args[2] if isinstance(args[2], int) else 0
            inside = path.startswith(self.folder)
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes or not path.startswith((self.folder, *LIBRARIES)) or (inside and path.endswith((".py", ".bin", ".pt"))):
                self.seen.append(f"open {path}")
        elif event in NEVER or event.split(".")[0] in NEVER:
            self.seen.append(f"{event} {str(args)[:80]}")
        elif event == "import" and args[1] is not None and self.folder in str(args[1]):
            self.seen.append(f"import {args[:2]}")

    def try_out(self, folder: Path) -> None:
        """A watch that hears nothing would find nothing."""
        self.folder, self.on = str(folder), True
        (folder / "written").write_text("x")
        Path("/etc/hosts").read_bytes()
        socket.socket().close()
        self.on = False
        assert [said.split()[0] for said in self.seen] == ["open", "open", "socket.__new__"], self.seen


def one(pristine: Path, seed: int, watch: Watch, good: str) -> dict:
    """Damage a copy of the folder, look at it, load it, and tell."""
    room = pristine.parent / f"case-{seed}"
    folder = room / "checkpoint"
    shutil.copytree(pristine, folder, copy_function=os.link)
    (room / "outside.safetensors").write_bytes(b"secret")
    try:
        mutation = mutate(folder, seed)
        told = {
            "seed": seed,
            "kind": mutation.kind,
            "files": mutation.files,
            "detail": mutation.detail[:200],
            "key": mutation.key[:80],
        }
        begin = time.process_time()
        watch.seen.clear()
        watch.folder, watch.on = str(room), True
        signal.alarm(WAIT)
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            problems = inspect_checkpoint(folder).problems
            told["inspected"] = list(problems)[:3]
            told["outcome"] = "same" if observe(folder) == good else "other"
        except CheckpointError as error:
            told["outcome"], told["message"] = "refused", str(error)
        except FloatingPointError as error:
            told["outcome"], told["message"] = "stopped", str(error)
        except BaseException as error:
            told["outcome"], told["message"] = "bug", f"{type(error).__name__}: {error}"[:600]
            told["trace"] = traceback.format_exc()[-1500:]
        finally:
            signal.alarm(0)
            signal.setitimer(signal.ITIMER_PROF, 0)
            watch.on = False
        told["seconds"], told["watched"] = round(time.process_time() - begin, 3), watch.seen[:3]
        told["gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
        return told
    finally:
        shutil.rmtree(room)


def main(work: str, first: int, count: int) -> None:
    """Print a line for each case, and one for the good checkpoint before them."""
    torch.set_num_threads(1)
    pristine = write_small(Path(work) / "good")
    good = observe(pristine)
    inspect_checkpoint(pristine)
    assert observe(pristine) == good
    begin = time.perf_counter()
    assert observe(pristine) == good
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"good": good, "seconds": round(time.perf_counter() - begin, 3), "gib": round(base, 3)}), flush=True)

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s of computing, or {WAIT} s by the clock")

    signal.signal(signal.SIGALRM, late)
    signal.signal(signal.SIGPROF, late)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))
    watch = Watch()
    watch.try_out(Path(work))
    for seed in range(first, first + count):
        print(json.dumps(one(pristine, seed, watch, good)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
