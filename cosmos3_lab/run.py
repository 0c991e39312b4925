"""A run under way: what it has computed so far, kept in its folder often enough to lose little.

`generate` and the panel's `Job` both drive a `Run`: they take its steps, then ask for the clip. `run.result` is a frozen record
that is replaced as a whole after every step, so whoever looks at it, and whatever interrupts, finds the last whole step.

With a folder (`bundle.py`) the state is saved when the run begins, when it ends early for whatever reason, and in between as
often as costs a hundredth of its time: a save is due once that share of the seconds so far would pay for all saves and
one more.

Read next: `generate.py`.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cosmos3_lab.branch import save_state, without_history
from cosmos3_lab.bundle import FORMAT, VERSION, Bundle, check_video_name, create_bundle
from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.contact_sheet import write_contact_sheet
from cosmos3_lab.decode import decode_latents
from cosmos3_lab.denoise import DenoiseInputs, DenoiseState, Keep, StepRecord, denoise, prepare_denoise
from cosmos3_lab.latents import Latents
from cosmos3_lab.manifest import (
    ids_manifest,
    inputs_manifest,
    latents_hashes,
    machine_manifest,
    package_version,
    peak_memory,
    plain,
    prompt_manifest,
    reset_peak_memory,
    run_manifest,
    sha256_of,
)
from cosmos3_lab.media import Cosmos3GenerationOutput
from cosmos3_lab.presets import Preset
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.schedule import Schedule
from cosmos3_lab.showing import Shown
from cosmos3_lab.timing import PhaseTimer

PHASES = ("model_load", "preprocess", "inference", "to_cpu", "encode")
INFERENCE_PARTS = ("condition", "denoise", "decode")
SAVE_SHARE = 0.01  # of the time of the steps, for saving them
TEXTS = ("prompt", "negative_prompt", "negative_prompt_source")


@dataclass(frozen=True, eq=False)
class Generation(Shown):
    """What a run gave.

    Attributes:
        output: frames and waveform; None where the run was stopped early.
        latents: the last ones, clean unless the run was stopped early.
        records: one per step, with what `keep` asked for; in a run that went on after a crash, of the steps since.
        timings: seconds of PhyAI's phases `model_load, preprocess, inference, to_cpu, encode` (phases that did not happen are
            0; model_load is that of the models, also in their later runs; encode is what mp4, contact sheet and hashes take after
            the last frame), and of `condition` (encoding the prompts), `denoise` and `decode` within inference.
        inputs, state: to look at, continue (`denoise`) or fork.
        manifest: the effective settings, as plain values.
        path: of the mp4, None where none was written.
        bundle: folder of the run, None where none was asked for.
    """

    output: Cosmos3GenerationOutput | None
    latents: Latents
    records: tuple[StepRecord, ...]
    timings: dict[str, float]
    inputs: DenoiseInputs
    state: DenoiseState
    manifest: dict[str, Any]
    path: Path | None = None
    bundle: Path | None = None

    @property
    def stopped(self) -> bool:
        """Whether the run was stopped before the schedule's end."""
        return self.state.step_index < self.inputs.schedule.num_steps

    def __repr__(self) -> str:
        result = f"stopped before step {self.state.step_index}" if self.stopped else repr(self.output)
        return f"Generation({result}, {sum(self.timings[p] for p in PHASES[1:]):.1f} s, path={self.path})"


def start_timer(models: Cosmos3Models) -> PhaseTimer:
    """A timer of a run's phases and parts, all of them at 0 but the loading of the models.

    Args:
        models: from `load_cosmos3`.
    """
    zero = dict.fromkeys((*PHASES, *INFERENCE_PARTS), 0.0)
    return PhaseTimer(models.device, seconds=zero | {"model_load": models.load_seconds})


class Run:
    """One run; see above.

    Attributes:
        models: from `load_cosmos3`.
        result: the run as far as it got; `result.output` is None until it is decoded.
    """

    def __init__(
        self,
        models: Cosmos3Models,
        inputs: DenoiseInputs,
        state: DenoiseState,
        *,
        manifest: Mapping[str, Any],
        timer: PhaseTimer,
        keep: Keep = "summary",
        bundle: Bundle | None = None,
        record: dict[str, Any] | None = None,
        save_every: int | None = None,
        saved: int | None = None,
    ) -> None:
        """A run that stands before the state's step.

        Args:
            models: from `load_cosmos3`.
            inputs, state: from `prepare_denoise` or `load_state`.
            manifest: of `Generation`.
            timer: counts its phases.
            keep: what the records hold; see `generate`.
            bundle: its folder, new or of an earlier session; None keeps nothing on disk.
            record: the folder's manifest.
            save_every: steps between two saves; None as often as costs `SAVE_SHARE`.
            saved: step of the state that the folder has.
        """
        self.models, self.keep, self.save_every, self._timer = models, keep, save_every, timer
        self._bundle, self._record = bundle, dict(record or {})
        self._saved = saved
        self._save_seconds, self._last_save = 0.0, 0.0
        folder = None if bundle is None else bundle.path
        self.result = Generation(
            None, state.latents, (), dict(timer.seconds), inputs, state, dict(manifest), path=None, bundle=folder
        )

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A block in which the run goes on: if it ends early, in whatever way, the state is saved and the error says what then.

        Raises:
            ValueError: another process works on the same folder.
        """
        if self._bundle is None:
            yield
            return
        with self._bundle.locked():
            self._bundle.remove_leftovers()
            reset_peak_memory(self.models.device)
            try:
                if self._record["status"] == "denoising" and self._saved is None:
                    self.save()
                yield
            except BaseException as error:
                error.add_note(self._keep_what_there_is())
                raise

    def _keep_what_there_is(self) -> str:
        """Save, and say how to go on; what went wrong before must not be hidden by a disk that is full as well."""
        failed = ""
        try:
            self.pause()
        except OSError as error:
            failed = f"; saving it now failed ({error})"
        done, steps = self._saved, self.result.inputs.schedule.num_steps
        kept = f"{done} of {steps} steps are" if done != steps else "the latents are"
        if self._record["status"] == "finished":
            return f"The run is finished in {self._bundle.path}"
        if done is None:
            return f"Nothing is saved yet in {self._bundle.path}{failed}"
        return f"{kept} saved in {self._bundle.path}; go on with: {resume_words(self._bundle.path)}{failed}"

    def steps(self) -> Iterator[StepRecord]:
        """Do the steps that are left, one for each record asked for."""
        run, timer = self.result, self._timer
        if run.stopped:
            with timer("inference"), timer("condition"):  # a run that goes on may have to fetch the tower
                self.models.place("gen")
        steps = denoise(self.models.transformer, run.inputs, run.state)
        while True:
            with timer("inference"), timer("denoise"):
                step = next(steps, None)
            if step is None:
                return
            state, record = step
            records = run.records if self.keep == "none" else (*run.records, record.keep(self.keep))
            run = replace(run, state=state, latents=state.latents, records=records, timings=dict(timer.seconds))
            self.result = run
            if not run.stopped or self._save_is_due():
                self.save()
            yield record

    def _save_is_due(self) -> bool:
        if self._bundle is None:
            return False
        if self.save_every is not None:
            return self.result.state.step_index % self.save_every == 0
        return self._save_seconds + self._last_save <= SAVE_SHARE * self.result.timings["denoise"]

    def save(self) -> None:
        """Write the state, or the latents once they are clean, unless they are on disk; nothing to do without a folder.

        Raises:
            OSError: it cannot be written; what was there is still there.
        """
        run, bundle, begin = self.result, self._bundle, time.perf_counter()
        if bundle is None or (self._saved == run.state.step_index if run.stopped else self._record["status"] != "denoising"):
            return
        if run.stopped:
            save_state(bundle.state, run.inputs, run.state)
        else:
            save_state(bundle.latents, run.inputs, without_history(run.state))
            self._write_record("decoding", latents=latents_hashes(run.latents))
            bundle.state.unlink(missing_ok=True)
        self._saved = run.state.step_index
        self._last_save = time.perf_counter() - begin
        self._save_seconds += self._last_save

    def pause(self) -> None:
        """Save where the run is, and its seconds so far; nothing to do without a folder.

        Raises:
            OSError: see `save`.
        """
        self.save()
        if self._bundle is not None and self._record["status"] != "finished":
            self._write_record(self._record["status"])

    def finish(self, on_chunk: Callable[[int], None] | None = None) -> Generation:
        """Decode the clean latents and, where there is a folder, write mp4, contact sheet and manifest.

        Args:
            on_chunk: called with the number of frames decoded so far; what it raises ends the decoding.

        Returns:
            The finished `result`.
        """
        self.save()
        run, bundle, timer = self.result, self._bundle, self._timer
        path = None if bundle is None else bundle.path / self._record["video"]
        try:
            output = decode_latents(
                self.models,
                run.latents,
                fps=run.inputs.request.fps,
                mp4=path,
                on_chunk=on_chunk,
                timer=timer,
                tags=None if bundle is None else self._tags(),
            )
            if bundle is not None:
                with timer("encode"):
                    write_contact_sheet(output, bundle.contact_sheet)
                    hashes = {"frames": sha256_of(output.frames)}
                    hashes |= {} if output.waveform is None else {"waveform": sha256_of(output.waveform)}
                self._write_record("finished", output=hashes)
        finally:  # also the time of what a stop throws away
            self.result = replace(run, timings=dict(timer.seconds))
        self.result = replace(self.result, output=output, path=path)
        return self.result

    def _write_record(self, status: str, **hashes: dict[str, str]) -> None:
        """Bring the folder's manifest up to date."""
        record = self._record | {"status": status, "timings": dict(self._timer.seconds)}
        if record["private"] and status == "finished":
            record["texts"] = None  # there until now, so that the run could go on
        record |= {"peak_memory": peak_memory(self.models.device), "hashes": self._record["hashes"] | hashes}
        self._bundle.write_manifest(record)
        self._record = record

    def _tags(self) -> dict[str, str]:
        """Of the mp4; none in a private run."""
        if self._record["private"]:
            return {}
        settings = self.result.manifest
        comment = f"cosmos3_lab {package_version()}, {settings['checkpoint']}, seed {settings['seed']}"
        return {"comment": comment} | ({"title": str(settings["prompt"])} if settings.get("prompt") else {})


def resume_words(folder: Path) -> str:
    """The command that goes on with a run.

    Args:
        folder: of the run.
    """
    import shlex

    return f"cosmos3-lab generate --resume {shlex.quote(str(folder))}"


def begin_run(
    models: Cosmos3Models,
    request: Cosmos3T2VRequest,
    *,
    schedule: Schedule,
    preset: Preset,
    timer: PhaseTimer,
    keep: Keep = "summary",
    save_every: int | None = None,
    requested: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    name: str = "video.mp4",
    private: bool = False,
) -> Run:
    """Encode the prompts, draw the noise and, where there is to be a folder, make it: a run before its first step.

    Args:
        models: from `load_cosmos3`.
        request, schedule, preset: from `resolve_run`.
        timer, keep, save_every: see `Run`.
        requested: the arguments of `generate`, with "prompt"; None where the texts are not known.
        out: where the run's folder is made; None keeps nothing on disk.
        name: of the mp4.
        private: leaves out the prompts and the machine, and token ids once it is finished.

    Raises:
        ValueError: the request does not fit the checkpoint.
        OSError: the folder cannot be written.
    """
    with timer("inference"), timer("condition"):
        inputs, state = prepare_denoise(models, request, schedule=schedule, preset=preset)
    settings, texts, asked = run_manifest(models, inputs), {}, None
    if requested is not None:
        texts = prompt_manifest(models, inputs, requested["prompt"], requested.get("negative_prompt"))
        asked = {key: plain(value) for key, value in requested.items() if key not in TEXTS}
    run = {"manifest": texts | settings, "timer": timer, "keep": keep, "save_every": save_every}
    if out is None:
        return Run(models, inputs, state, **run)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "status": "denoising",
        "private": private,
        "video": check_video_name(name),
        "texts": ({} if private else texts) | ids_manifest(inputs.request),
        "requested": asked,
        "effective": plain(settings),
        **inputs_manifest(inputs),
        "machine": None if private else machine_manifest(models),
        "hashes": {"noise": latents_hashes(state.latents)},
        "timings": {},
        "peak_memory": {},
    }
    return Run(models, inputs, state, bundle=create_bundle(out, record, noise=inputs.request.noise), record=record, **run)
