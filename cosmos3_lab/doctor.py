"""Is this machine fit for the lab? Driver, versions, memory, disk, widgets, codecs, and every stage of the model tried out.

    for finding in examine():
        print(finding)

Nothing goes over the network, and nothing is left on the disk. Read next: `selftest.py`, where the numbers come from.
"""

import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Literal

import numpy as np
import torch
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.version import Version
from rich.markup import escape
from rich.table import Table

from cosmos3_lab.checkpoint import Cosmos3Models, load_cosmos3
from cosmos3_lab.decode import decode_latents
from cosmos3_lab.denoise import denoise_step, prepare_denoise
from cosmos3_lab.inspection import inspect_checkpoint
from cosmos3_lab.media import Cosmos3GenerationOutput, read_mp4, save_mp4
from cosmos3_lab.memory import GIB
from cosmos3_lab.prepare import prepare_request
from cosmos3_lab.selftest import StageResult, self_test

State = Literal["ok", "note", "bad"]
LEAST_MEMORY = 1.0 * GIB  # a process that makes pico's default clip has 0.6
LEAST_DISK = 0.2 * GIB
NANO_DISK = 36 * GIB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: of it.
        state: "ok", "note" (works, but something is missing or slow), or "bad" (something that is needed does not work).
        text: what was found, and for what is bad what to do.
    """

    name: str
    state: State
    text: str


def examine(checkpoint: str | Path | None = None, *, device: str | torch.device = "auto") -> Iterator[Finding]:
    """Look at one thing after the other; the slow ones come last.

    Args:
        checkpoint: a folder to look into, load and try for one small step besides pico; None and "pico" for pico alone.
        device: where the stages are tried, see `load_cosmos3`.
    """
    for look in (_python, _versions, _gpu, _memory, _disk, _widgets, _codecs):
        yield from _looked(look.__name__.strip("_"), look)
    yield from _looked("self-test", lambda: _self_test(device))
    if checkpoint not in (None, "pico"):
        yield from _looked("checkpoint", lambda: _checkpoint(checkpoint, device))


def verdict(findings: Iterable[Finding]) -> Finding:
    """All findings in one.

    Args:
        findings: of `examine`.
    """
    findings = list(findings)
    bad = [f for f in findings if f.state == "bad"]
    if bad:
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        return Finding("verdict", "bad", f"{bad[0].name}: {bad[0].text}{more}")
    notes = sum(f.state == "note" for f in findings)
    return Finding("verdict", "ok", "healthy" + (f", with {notes} note{'s' if notes > 1 else ''}" if notes else ""))


def findings_table(findings: Iterable[Finding]) -> Table:
    """What the command line prints.

    Args:
        findings: of `examine`.
    """
    look = {"ok": "[green]ok[/green]", "note": "[yellow]note[/yellow]", "bad": "[red]bad[/red]"}
    table = Table("", "state", "found", title="This machine")
    for f in findings:
        table.add_row(escape(f.name), look[f.state], escape(f.text))
    return table


def _looked(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A look that fails is a finding too."""
    try:
        yield from look()
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        yield Finding(name, "bad", f"{type(error).__name__}: {first}"[:400])


# ------------------------------------------------------------------------------------------------------------ machine


def _python() -> Iterator[Finding]:
    old = sys.version_info < (3, 11)
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    yield Finding("Python", "bad" if old else "ok", text + ("; 3.11 or newer is needed" if old else ""))


def _versions() -> Iterator[Finding]:
    """What is installed against what pyproject.toml asks for."""
    try:
        asked = [Requirement(line) for line in metadata.requires("cosmos3-lab") or ()]
    except metadata.PackageNotFoundError:
        yield Finding(
            "versions",
            "note",
            'cosmos3-lab itself is not installed, so nothing says which versions it needs; try pip install -e "."',
        )
        return
    needed = [r for r in asked if r.marker is None or r.marker.evaluate(default_environment() | {"extra": ""})]
    wrong = [text for requirement in needed if (text := _wrong_version(requirement))]
    if wrong:
        yield Finding("versions", "bad", f"{'; '.join(wrong)}; try pip install -U cosmos3-lab, or make lab in the repository")
    else:
        shown = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "safetensors", "av"))
        yield Finding("versions", "ok", f"{shown}, and {len(needed) - 4} more, as asked for")


def _wrong_version(requirement: Requirement) -> str:
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed, needed is {requirement.specifier}"
    fits = requirement.specifier.contains(Version(found).base_version, prereleases=True)
    return "" if fits else f"{requirement.name} is {found}, needed is {requirement.specifier}"


def _gpu(module: Path = Path("/proc/driver/nvidia/version")) -> Iterator[Finding]:
    driver = re.search(r"Module\s.*?(\d+\.\d[\d.]*)", module.read_text()) if module.is_file() else None
    if not torch.cuda.is_available():
        if driver is None:
            yield Finding("GPU", "ok", "none; pico runs on the CPU, Nano needs one NVIDIA GPU")
            return
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for the CPU only"
        hint = "install a PyTorch that fits the driver, or update the driver"
        yield Finding(
            "GPU", "bad", f"driver {driver[1]} is there, but PyTorch {torch.__version__}, {build}, cannot use it; {hint}"
        )
        return
    said = f"driver {driver[1]}, " if driver else ""
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        major, minor = torch.cuda.get_device_capability(index)
        dtypes = ["float32"] + ["bfloat16"] * (major >= 8) + ["float8"] * ((major, minor) >= (8, 9))
        text = f"{torch.cuda.get_device_name(index)}, {said}CUDA {torch.version.cuda}, compute {major}.{minor}"
        text += f" ({', '.join(dtypes)}), {free / GIB:.1f} of {total / GIB:.1f} GiB free"
        slow = "" if major >= 8 else "; older than bfloat16, which it only imitates, slowly"
        yield Finding(f"GPU {index}", "note" if slow else "ok", text + slow)


def _memory() -> Iterator[Finding]:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        yield Finding("memory", "note", "how much is free cannot be seen on this system")
        return
    found = {key: int(kib) * 1024 for key, kib in re.findall(r"(\w+):\s+(\d+) kB", meminfo.read_text())}
    free, total = found["MemAvailable"], found["MemTotal"]
    text = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    yield Finding(
        "memory",
        *(("ok", text) if free >= LEAST_MEMORY else ("bad", f"{text}, needed are {LEAST_MEMORY / GIB}; close something")),
    )


def _disk() -> Iterator[Finding]:
    """Where outputs go, and where temporary files do."""
    for name, folder in (("disk here", Path.cwd()), ("disk for temporary files", None)):
        try:
            with TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
                free = os.fstatvfs(file.fileno()).f_bavail * os.fstatvfs(file.fileno()).f_frsize
        except OSError as error:
            yield Finding(name, "bad", f"nothing can be written ({error.strerror}); go to another folder, or name one with --out")
            continue
        text = f"writable, {free / GIB:.1f} GiB free"
        if free < LEAST_DISK:
            yield Finding(name, "bad", f"{text}, needed are {LEAST_DISK / GIB}; make room")
        else:
            yield Finding(name, "ok", text + (f"; Nano's checkpoint has {NANO_DISK / GIB:.0f}" if free < NANO_DISK else ""))


def _widgets() -> Iterator[Finding]:
    """The Python side, and the part that JupyterLab loads into the page."""
    need = 'pip install "cosmos3-lab[lab]"'
    try:
        version = metadata.version("ipywidgets")
        lab = metadata.version("jupyterlab")
    except metadata.PackageNotFoundError as error:
        yield Finding("widgets", "note", f"{error.name} is not installed; notebooks show still figures instead; try {need}")
        return
    files = [f for f in metadata.files("jupyterlab_widgets") or () if f.name == "package.json" and "labextensions" in f.parts]
    if not any(Path(f.locate()).is_file() for f in files):
        text = f"ipywidgets {version} has no part in JupyterLab (jupyterlab_widgets); widgets will not show; try {need} again"
        yield Finding("widgets", "bad", text)
        return
    yield Finding("widgets", "ok", f"ipywidgets {version} with its extension of JupyterLab {lab}")


def _codecs() -> Iterator[Finding]:
    """Half a second of colours and a tone, written as mp4 and read back."""
    frames = np.zeros((8, 48, 64, 3), np.uint8)
    frames[:, :, :32] = (200, 40, 40)
    tone = np.sin(np.arange(8000, dtype=np.float32) * 0.2)[None].repeat(2, 0) * 0.5
    with TemporaryDirectory() as folder:
        written = save_mp4(Cosmos3GenerationOutput(frames, 16.0, tone, 16000), Path(folder) / "clip.mp4")
        read = read_mp4(written)
    colour = np.abs(read.frames[:, 8:40, 8:24].astype(float).mean((0, 1, 2)) - (200, 40, 40)).max()
    loudness = float(np.sqrt(np.square(read.waveform[:, 2000:6000]).mean()))
    right = read.frames.shape == frames.shape and colour < 12 and 0.25 < loudness < 0.45
    text = f"h264 and AAC, PyAV {metadata.version('av')}: written and read back"
    wrong = f"; but the colours are off by {colour:.0f} of 255 and the tone has {loudness:.2f} instead of 0.35; reinstall av"
    yield Finding("mp4", "ok" if right else "bad", text + ("" if right else wrong))


# -------------------------------------------------------------------------------------------------------------- model


def _self_test(device: str | torch.device) -> Iterator[Finding]:
    with load_cosmos3("pico", device=device) as models:
        where = f"{str(models.transformer.dtype).removeprefix('torch.')} on {models.device}"
        for result in self_test(models):
            yield Finding(result.name, "ok" if result.passed else "bad", _stage_text(result, where))


def _stage_text(result: StageResult, where: str) -> str:
    if result.problem:
        return result.problem
    allowed = "must be equal" if result.allowed == 0 else f"allowed {result.allowed:.0e}"
    if result.passed:
        return f"{'equal' if result.error == 0 else f'off by {result.error:.1e}'} in {where} ({allowed})"
    return f"off by {result.error:.1e} in {where} ({allowed}); this machine computes something else, do not trust its videos"


def _checkpoint(folder: str | Path, device: str | torch.device) -> Iterator[Finding]:
    """What can be known of a checkpoint without numbers to compare with: it is whole, and a small step stays finite."""
    report = inspect_checkpoint(folder)
    for problem in report.problems:
        yield Finding("checkpoint", "bad", problem)
    if report.problems:
        return
    parameters, nbytes = report.needed(with_sound=report.has_sound)
    yield Finding("checkpoint", "ok", f"{report.folder.name}: whole, {parameters:,} parameters, {nbytes / GIB:.1f} GiB")
    with load_cosmos3(folder, device=device) as models:
        yield Finding("one step", "ok", _one_step(models))


@torch.no_grad()
def _one_step(models: Cosmos3Models) -> str:
    side = 2 * models.media.spatial
    size = {"num_frames": 5, "height": side, "width": 2 * side, "num_inference_steps": 2, "negative_prompt": "blurry"}
    prompt = models.defaults.example_prompts[0] if models.defaults.example_prompts else "a ball"
    request = prepare_request(models, prompt, with_sound=models.avae is not None, **size)
    inputs, state = prepare_denoise(models, request)
    _, record = denoise_step(models.transformer, inputs, state)
    output = decode_latents(models, record.x0, fps=request.fps)
    return f"{models!r}: velocity {record.rms['video.velocity']:.2f} rms, {output!r}, all finite"
