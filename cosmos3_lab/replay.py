"""Do a run again from its folder, and say whether the same came out.

On one machine with the same versions, latents are the same bit for bit, in either placement and however often the run was
interrupted. On another GPU, with another version of PyTorch or another dtype they are not, and nobody can promise how near they
come: so the distance is measured, and what differs between then and now is named.

Read next: `cli.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from cosmos3_lab.bundle import Bundle
from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import denoise, prepare_denoise
from cosmos3_lab.generate import bundle_inputs
from cosmos3_lab.latents import Latents
from cosmos3_lab.manifest import latents_hashes, machine_manifest, run_manifest
from cosmos3_lab.out_of_memory import freeing_memory

CLOSE = 0.1  # relative distance up to which latents are called close; with pico bfloat16 was within 0.09, another seed beyond 0.6
COMPARED = ("fingerprint", "dtype", "quantized", "device", "placement")
NAMES = {"fingerprint": "weights"}  # the fingerprint is theirs

Verdict = Literal["identical", "close", "different"]


@dataclass(frozen=True, eq=False)
class Replay:
    """A repeated run beside the one that it repeats.

    Attributes:
        verdict: "identical" (bit for bit), "close" (every distance at most `CLOSE`) or "different".
        distances: of "video" and, with sound, "sound": root mean square of the difference over that of the stored latents.
        differences: what was not the same then and now, in words.
        latents: of the repetition, on the CPU.
    """

    verdict: Verdict
    distances: Mapping[str, float]
    differences: tuple[str, ...]
    latents: Latents

    def __repr__(self) -> str:
        if self.verdict == "identical":
            said = "latents are bit-identical"
        else:
            far = ", ".join(f"{name} {distance:.2g}" for name, distance in self.distances.items())
            said = f"latents are {self.verdict} (relative distance: {far})"
        why = "; ".join(self.differences)
        if why:
            return f"{said}; what differs: {why}"
        return said if self.verdict == "identical" else f"{said}, and nothing that the manifest knows of differs"


def replay(folder: str | Path, models: Cosmos3Models, *, progress: bool = True) -> Replay:
    """Repeat the denoising of a finished run, with its own token ids, noise, schedule and recipe; write nothing.

    Args:
        folder: of the run.
        models: from `load_cosmos3`; they may be others than the run's.
        progress: whether to show a tqdm bar.

    Raises:
        ValueError: it is not the folder of a run that got to its latents, it is private, or the models cannot do such a run.
        MemoryError: it did not fit; says what was needed and what would fit.
    """
    bundle = Bundle(Path(folder))
    record = bundle.read_manifest()
    if record["status"] == "denoising":
        raise ValueError(f"{bundle.path} has no latents yet: the run did not end; go on with it first (resume)")
    stored = read_latents(bundle)
    request, schedule, preset = bundle_inputs(bundle, record, models)

    def again() -> tuple[Latents, dict[str, Any], dict[str, str]]:
        from tqdm.auto import tqdm

        inputs, state = prepare_denoise(models, request, preset=preset, schedule=schedule)
        noise = latents_hashes(state.latents)
        steps = denoise(models.transformer, inputs, state)
        for after, _ in tqdm(steps, total=schedule.num_steps, desc="replay", unit="step", disable=not progress):
            state = after
        return state.latents.to("cpu"), run_manifest(models, inputs), noise

    with freeing_memory(models, request, preset):
        latents, settings, noise = again()
    differences = _differences(record, settings, machine_manifest(models), noise)
    if latents_hashes(stored) != record["hashes"].get("latents"):
        differences.insert(0, f"{bundle.latents.name} is not what the run wrote (its hash is another)")
    return _compare(latents, stored, tuple(differences))


def read_latents(bundle: Bundle) -> Latents:
    """The clean latents of a run's folder, on the CPU.

    Args:
        bundle: of the run.

    Raises:
        ValueError: they are not there, or damaged.
    """
    try:
        tensors = load_file(bundle.latents)
        return Latents(tensors["video.sample"], tensors.get("sound.sample"))
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{bundle.latents} holds no latents: {error}") from error


def _compare(latents: Latents, stored: Latents, differences: tuple[str, ...]) -> Replay:
    pairs = {"video": (latents.video, stored.video), "sound": (latents.sound, stored.sound)}
    pairs = {name: pair for name, pair in pairs.items() if pair[0] is not None or pair[1] is not None}
    if any(a is None or b is None or a.shape != b.shape for a, b in pairs.values()):
        return Replay("different", {name: float("inf") for name in pairs}, ("shapes", *differences), latents)
    distances = {name: float((a.double() - b.double()).norm() / b.double().norm()) for name, (a, b) in pairs.items()}
    if all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs.values()):
        return Replay("identical", distances, differences, latents)
    verdict: Verdict = "close" if max(distances.values()) <= CLOSE else "different"
    return Replay(verdict, distances, differences, latents)


def _differences(
    record: Mapping[str, Any], settings: Mapping[str, Any], machine: Mapping[str, Any], noise: Mapping[str, str]
) -> list[str]:
    """Then and now, in words."""
    then, now = dict(record["effective"]), dict(settings)
    pairs = [(NAMES.get(name, name), then.get(name), now[name]) for name in COMPARED]
    old = record["machine"] or {}
    versions = old.get("versions", {})
    pairs += [(name, versions[name], version) for name, version in machine["versions"].items() if name in versions]
    pairs += [(name, old[name], machine[name]) for name in ("device_name", "cuda", "kernels", "system", "threads") if name in old]
    said = [f"{name} {a} then, {b} now" for name, a, b in pairs if a != b]
    if record["hashes"].get("noise") != noise:
        said.insert(0, "the noise (its hash is another)")
    return said
