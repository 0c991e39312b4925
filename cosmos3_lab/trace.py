"""A run on disk, to be looked at without a GPU, a checkpoint, or the hour that it took.

    for state, record in trace_steps(denoise(models.transformer, inputs, state), folder, models=models, inputs=inputs):
        ...                                             # the same pairs as from `denoise`, each on disk when you see it
    trace = open_trace(folder)                          # anywhere, any time; no weights are read
    plot_trace(trace), figures.plot_trajectory(trace.records)

The folder holds `trace.json` (what was run, the preview's linear map) and for each step `steps/000.json` (its numbers), `000.png`
(x0 as a strip of small frames) and, where asked for, `000.safetensors` (x0 itself) and `000.wav` (its sound, decoded). Every file
is whole or not there; a step counts when its JSON is, which comes last. A run that was killed leaves a trace of what it did.

Read next: `explore_figures.py`.
"""

import json
import re
import wave
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import DenoiseInputs, DenoiseState, StepRecord
from cosmos3_lab.files import check_writable, replacing
from cosmos3_lab.latents import Latents
from cosmos3_lab.manifest import run_manifest
from cosmos3_lab.media import wav_bytes
from cosmos3_lab.plain import from_plain, read_json, to_plain
from cosmos3_lab.preview import LatentPreview, latent_preview
from cosmos3_lab.schedule import Schedule
from cosmos3_lab.sound_avae import decode_sound

FORMAT, VERSION = "cosmos3_lab.trace", 1
FILE, CLIP = "trace.json", "clip.mp4"
RECORDS = (LatentPreview, Schedule, StepRecord)
MOST_BYTES = 2 * 1024**3
X0_DTYPE = torch.float16  # to be looked at: 11 bits of a value are more than any picture shows


@dataclass(frozen=True, eq=False)
class Trace:
    """A run as it was written down.

    Attributes:
        folder: where it lies.
        manifest: settings of the run, as plain values, and what the writer added.
        schedule: noise levels of the whole run.
        preview: the linear map that made the small frames.
        records: of the steps that were done, numbers only, or with x0 where `open_trace` was asked for it.
    """

    folder: Path
    manifest: Mapping[str, Any]
    schedule: Schedule
    preview: LatentPreview
    records: tuple[StepRecord, ...]

    @property
    def finished(self) -> bool:
        """Whether the last step of the schedule is in it."""
        return self.records[-1].index == self.schedule.num_steps - 1

    @property
    def clip(self) -> Path | None:
        """The mp4, where somebody put one beside the trace under the name `clip.mp4`."""
        return self.folder / CLIP if (self.folder / CLIP).is_file() else None

    @property
    def with_sound(self) -> bool:
        """Whether each step's sound was decoded and kept."""
        return _step(self.folder, self.records[0].index, "wav").is_file()

    def film(self, step: int) -> Float[np.ndarray, "t h w 3"]:
        """Small frames of the clean video that a step predicted, in [0, 1].

        Args:
            step: `index` of a record.

        Raises:
            ValueError: the picture is missing or damaged.
        """
        from PIL import Image

        path = _step(self.folder, step, "png")
        try:
            with Image.open(path) as picture:
                strip = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
        except OSError as error:
            raise ValueError(f"{path} is missing or damaged: {error}") from error
        return np.stack(np.split(strip, self.manifest["latent_frames"], axis=1))

    def sound(self, step: int) -> tuple[Float[np.ndarray, "channels samples"], int]:
        """Waveform in [-1, 1] and sample rate of the clean sound that a step predicted.

        Args:
            step: `index` of a record.

        Raises:
            ValueError: there is none, or the file is damaged.
        """
        path = _step(self.folder, step, "wav")
        try:
            with wave.open(str(path)) as file:
                rate, channels, data = file.getframerate(), file.getnchannels(), file.readframes(file.getnframes())
        except (OSError, EOFError, wave.Error) as error:
            raise ValueError(f"{path} is missing or damaged ({error}); was the trace written with_sound?") from error
        return np.frombuffer(data, dtype="<i2").reshape(-1, channels).T.astype(np.float32) / 32767, rate

    def __repr__(self) -> str:
        size = f"{len(self.records)} of {self.schedule.num_steps} steps"
        return f"Trace({size}, {'with' if self.with_sound else 'without'} sound, {self.folder})"


def trace_steps(
    steps: Iterable[tuple[DenoiseState, StepRecord]],
    folder: str | Path,
    *,
    models: Cosmos3Models,
    inputs: DenoiseInputs,
    with_x0: bool = False,
    with_sound: bool = False,
    notes: Mapping[str, Any] | None = None,
    most_bytes: int = MOST_BYTES,
) -> Iterator[tuple[DenoiseState, StepRecord]]:
    """Write each step to disk as it goes by, and hand it on.

    Args:
        steps: of `denoise`, or of anything else that yields states and full records.
        folder: for the trace; a trace that was there is replaced.
        models: that make the steps.
        inputs: of the run.
        with_x0: keep x0 itself too, in float16.
        with_sound: decode the sound of each x0 and keep it; the AVAE must be on the device (not in split placement).
        notes: plain values to keep with the settings, such as the prompt.
        most_bytes: size at which to refuse; it is foreseen after the first step.

    Raises:
        ValueError: the trace would become too large, the run has no sound to keep, or the AVAE is elsewhere.
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    if with_sound and (inputs.request.sound_frames is None or models.avae is None or models.placement != "resident"):
        raise ValueError("got with_sound=True, expected a run with sound and models in resident placement; leave it out")
    check_writable(folder)
    for old in [folder / FILE, *folder.glob("steps/*.*")]:
        old.unlink(missing_ok=True)
    preview = latent_preview(models)
    models.place("gen")
    _write_manifest(folder, models, inputs, preview, notes)
    expected = None
    for state, record in steps:
        files = _files(record, preview, models if with_sound else None, with_x0=with_x0)
        if expected is None:
            expected = inputs.schedule.num_steps * sum(len(data) for data in files.values())
            if expected > most_bytes:
                sizes = f"about {expected / 1e6:,.2f} MB, expected at most {most_bytes / 1e6:,.2f}"
                raise ValueError(f"the trace would take {sizes}; leave out x0 or sound, or allow more with most_bytes")
        for kind, data in files.items():  # the JSON comes last: it makes the step count
            with replacing(_step(folder, record.index, kind)) as temporary:
                temporary.write_bytes(data)
        yield state, record


def _write_manifest(
    folder: Path, models: Cosmos3Models, inputs: DenoiseInputs, preview: LatentPreview, notes: Mapping[str, Any] | None
) -> None:
    tensors: dict[str, torch.Tensor] = {}
    plain = to_plain({"preview": preview, "schedule": inputs.schedule}, tensors)
    values = {name: {"dtype": str(t.dtype).removeprefix("torch."), "values": t.tolist()} for name, t in tensors.items()}
    manifest = {**(notes or {}), **run_manifest(models, inputs), "latent_frames": inputs.request.video_shape[0]}
    written = {"format": FORMAT, "version": VERSION, "manifest": manifest, "plain": plain, "tensors": values}
    with replacing(folder / FILE) as temporary:
        temporary.write_text(json.dumps(written, indent=1) + "\n", encoding="utf-8")


def _files(record: StepRecord, preview: LatentPreview, heard: Cosmos3Models | None, *, with_x0: bool) -> dict[str, bytes]:
    """What is written of a step, by the ending of the file's name."""
    from PIL import Image
    from safetensors.torch import save

    strip = np.concatenate(list(preview.pixels(record.x0.video)), axis=1)
    picture = BytesIO()
    Image.fromarray((strip * 255).round().astype(np.uint8)).save(picture, "png")
    files = {"png": picture.getvalue()}
    if with_x0:
        x0 = record.x0.to("cpu", X0_DTYPE)
        sound = {} if x0.sound is None else {"sound": x0.sound.contiguous()}
        files["safetensors"] = save({"video": x0.video.contiguous()} | sound)
    if heard is not None:
        waveform = decode_sound(heard.avae, record.x0.sound)[0].float().cpu().numpy()
        files["wav"] = wav_bytes(waveform, heard.avae.config.sampling_rate)
    plain = {"format": FORMAT, "version": VERSION, "record": to_plain(record.keep("summary"), {})}
    return files | {"json": (json.dumps(plain, indent=1) + "\n").encode()}


def open_trace(folder: str | Path, *, with_x0: bool = False) -> Trace:
    """Read a trace. No models, no checkpoint and no GPU are needed.

    Args:
        folder: that `trace_steps` wrote.
        with_x0: put x0 into the records too (float32 again), for the figures and widgets that ask for it.

    Raises:
        ValueError: it is no such folder, or a file is missing or damaged; says which.
    """
    folder = Path(folder)
    values = read_json(folder / FILE, format=FORMAT, version=VERSION)
    try:
        tensors = {name: torch.tensor(t["values"], dtype=getattr(torch, t["dtype"])) for name, t in values["tensors"].items()}
        made = from_plain(values["plain"], tensors, records=RECORDS)
        manifest, preview, schedule = dict(values["manifest"]), made["preview"], made["schedule"]
        if not isinstance(manifest["latent_frames"], int) or not isinstance(schedule, Schedule):
            raise ValueError("its values are of other kinds")
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder / FILE} is damaged: {type(error).__name__} {error}") from error
    names = sorted(path.name for path in folder.glob("steps/*.json") if re.fullmatch(r"\d{3,}\.json", path.name))
    records = [_read_step(folder / "steps" / name, with_x0=with_x0) for name in names]
    indices = [record.index for record in records]
    if not indices or indices != list(range(indices[0], indices[0] + len(indices))) or indices[-1] >= schedule.num_steps:
        raise ValueError(f"{folder} holds the steps {indices}, expected at least one and none left out")
    return Trace(folder, manifest, schedule, preview, tuple(records))


def _read_step(path: Path, *, with_x0: bool) -> StepRecord:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        record = from_plain(read_json(path, format=FORMAT, version=VERSION).get("record"), {}, records=RECORDS)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(record, StepRecord) or record.index != int(path.stem):
        raise ValueError(f"{path} is damaged: it holds no record of step {int(path.stem)}")
    if not with_x0:
        return record
    latents = path.with_suffix(".safetensors")
    try:
        tensors = load(latents.read_bytes())
        x0 = Latents(tensors["video"], tensors.get("sound")).to(torch.float32)
    except (SafetensorError, OSError, KeyError) as error:
        raise ValueError(f"{latents} is missing or damaged ({error}); was the trace written with_x0?") from error
    return replace(record, x0=x0)


def _step(folder: Path, index: int, kind: str) -> Path:
    return folder / "steps" / f"{index:03}.{kind}"
