"""A run in a worker thread that can be stopped and resumed, so that a notebook stays at hand while it goes on.

    job = Job(models)
    job.start("a red circle bounces on a blue background; low thuds", with_sound=True)
    job.stop()      # ends after the step under way; job.result has what was computed
    job.resume()    # goes on from there, bit for bit
    job.join()

The worker calls the functions that `generate` calls, in the same order: prepare_request, prepare_denoise, denoise_step,
decode_latents, save_mp4. `result` is a frozen record that is replaced as a whole, so whoever reads it never sees half a step.

Read next: `panel.py`, which puts buttons on it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Event, Thread, current_thread
from typing import Any, Literal

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.configs import check_choice
from cosmos3_lab.denoise import Keep, StepRecord, denoise, prepare_denoise
from cosmos3_lab.files import check_writable
from cosmos3_lab.generate import Generation, decode_latents, prompt_manifest, run_manifest, start_timer
from cosmos3_lab.media import save_mp4
from cosmos3_lab.prepare import prepare_request
from cosmos3_lab.presets import Preset
from cosmos3_lab.timing import PhaseTimer

Phase = Literal["idle", "preparing", "denoising", "decoding", "saving"]


class Job:
    """One run at a time in a worker thread.

    Attributes:
        phase: what the worker does now; "idle" where there is none.
        result: the run as far as it got, None before the first; `result.output` is None until it is decoded. A run that could
            not begin leaves the result of the one before.
        error: what ended the last run, None where nothing did; `raise job.error` shows where it came from.
    """

    def __init__(
        self, models: Cosmos3Models, *, keep: Keep = "x0", on_change: Callable[[StepRecord | None], None] | None = None
    ) -> None:
        """A job that waits for `start`.

        Args:
            models: from `load_cosmos3`; in split placement nobody else may use them while a run goes on.
            keep: what the records in `result` hold; see `generate`.
            on_change: called in the worker thread with the full record of every step, and with None when the phase changes.
                The run waits for it, so it should be quick.
        """
        check_choice("keep", keep, Keep)
        self.models, self.keep, self.on_change = models, keep, on_change
        self.phase: Phase = "idle"
        self.result: Generation | None = None
        self.error: Exception | None = None
        self._out: Path | None = None
        self._timer: PhaseTimer | None = None  # of the run in `result`, over all its stops
        self._stop = Event()
        self._thread: Thread | None = None

    # ------------------------------------------------------------------------------------------------------ control

    @property
    def running(self) -> bool:
        """Whether a run is under way."""
        return self.phase != "idle"

    @property
    def can_resume(self) -> bool:
        """Whether there is a run that was ended before it was whole."""
        return not self.running and self.result is not None and self.result.path is None

    @property
    def stopping(self) -> bool:
        """Whether the run will end after the step under way."""
        return self.running and self._stop.is_set()

    def start(self, prompt: str, *, out: str | Path = "outputs", preset: str | Preset | None = None, **options: Any) -> None:  # noqa: ANN401
        """Begin a run and return at once; errors of the run go to `error`.

        Args:
            prompt: see `generate`.
            out: folder for the mp4, which gets a name that is still free there.
            preset: see `generate`.
            options: of `prepare_request`.

        Raises:
            RuntimeError: a run is under way.
        """
        self._launch(lambda: self._begin(prompt, Path(out), preset, options))

    def stop(self) -> None:
        """Ask the run to end after the step (or decoded latent frame) under way, and return at once."""
        self._stop.set()

    def resume(self) -> None:
        """Go on with the run that was ended, with its settings, and return at once.

        Raises:
            RuntimeError: a run is under way, or there is none to go on with.
        """
        if not self.can_resume:
            raise RuntimeError("got resume() without a run that was stopped, expected start() first")
        self._launch(lambda: None)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the worker has ended.

        Args:
            timeout: in seconds; None waits as long as it takes.

        Returns:
            Whether it has.
        """
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    def close(self) -> None:
        """Stop, wait for the worker, and let go of the result."""
        self.stop()
        self.join()
        self.result = self.error = None  # an error's traceback holds the tensors of its run

    # ------------------------------------------------------------------------------------------------------- worker

    def _launch(self, begin: Callable[[], None]) -> None:
        if self.running:
            raise RuntimeError("got a new run while one is under way, expected stop() and join() first")
        if self._thread is not current_thread():
            self.join()  # it may still be telling that it is done
        self._stop.clear()
        self.phase, self.error = "preparing", None
        self._thread = Thread(target=self._work, args=(begin,), name="cosmos3_lab job", daemon=True)
        self._thread.start()

    def _work(self, begin: Callable[[], None]) -> None:
        try:
            self._tell()
            begin()
            self._denoise()
            self._finish()
        except _Stopped:
            pass  # the result has what was computed
        except Exception as error:
            self.error = error
        self.phase = "idle"
        try:
            self._tell()
        except Exception as error:  # of whoever looks on
            self.error = self.error or error

    def _begin(self, prompt: str, out: Path, preset: str | Preset | None, options: dict[str, Any]) -> None:
        check_writable(out)  # before the work, not after
        timer = start_timer(self.models)
        with timer("preprocess"):
            request = prepare_request(self.models, prompt, preset=preset, **options)
        with timer("inference"), timer("condition"):
            inputs, state = prepare_denoise(self.models, request, preset=preset)
        manifest = prompt_manifest(self.models, inputs, prompt, options.get("negative_prompt"))
        manifest |= run_manifest(self.models, inputs)
        self.result = Generation(None, state.latents, (), dict(timer.seconds), inputs, state, manifest)
        self._out, self._timer = out, timer

    def _denoise(self) -> None:
        run, timer = self.result, self._timer
        if run.stopped:
            self._enter("denoising")
            with timer("inference"), timer("condition"):  # a run that goes on may have to fetch the tower
                self.models.place("gen")
        steps = denoise(self.models.transformer, run.inputs, run.state)
        while True:
            self._check_stop()
            with timer("inference"), timer("denoise"):
                step = next(steps, None)
            if step is None:
                break
            state, record = step
            records = run.records if self.keep == "none" else (*run.records, record.keep(self.keep))
            run = replace(run, state=state, latents=state.latents, records=records, timings=dict(timer.seconds))
            self.result = run
            self._tell(record)

    def _finish(self) -> None:
        timer, fps = self._timer, self.result.inputs.request.fps
        if self.result.output is None:
            self._enter("decoding")
            try:
                output = decode_latents(
                    self.models, self.result.latents, fps=fps, on_chunk=lambda _: self._check_stop(), timer=timer
                )
            finally:  # also the time of what a stop throws away
                self.result = replace(self.result, timings=dict(timer.seconds))
            self.result = replace(self.result, output=output)
        self._enter("saving")
        with free_name(self._out) as path, timer("encode"):
            save_mp4(self.result.output, path)
        self.result = replace(self.result, path=path, timings=dict(timer.seconds))

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise _Stopped

    def _enter(self, phase: Phase) -> None:
        self.phase = phase
        self._tell()

    def _tell(self, record: StepRecord | None = None) -> None:
        if self.on_change is not None:
            self.on_change(record)


class _Stopped(Exception):  # noqa: N818  (nothing went wrong)
    """Unwinds the worker where it is."""


@contextmanager
def free_name(folder: Path, *, stem: str = "clip") -> Iterator[Path]:
    """The first of `clip_001.mp4`, `clip_002.mp4`, ... that is neither there nor held by another run, held for the block.

    A hidden file beside it holds the name, whose exclusive creation is one move for the system; after a crash it stays, and its
    number is left out.

    Args:
        folder: may not exist yet.
        stem: of the name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        path = folder / f"{stem}_{number:03}.mp4"
        claim = folder / f".{path.name}.held"
        if path.exists() or not _created(claim):
            continue
        try:
            if not path.exists():  # whoever held it a moment ago may have written it
                yield path
                return
        finally:
            claim.unlink(missing_ok=True)


def _created(path: Path) -> bool:
    """Whether the file is new, and made here."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
