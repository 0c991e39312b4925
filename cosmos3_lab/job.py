"""A run in a worker thread that can be stopped and resumed, so that a notebook stays at hand while it goes on.

    job = Job(models)
    job.start("a red circle bounces on a blue background; low thuds", with_sound=True)
    job.stop()      # ends after the step under way; job.result has what was computed
    job.resume()    # goes on from there, bit for bit
    job.join()

The worker drives a `Run` as `generate` does, so a run that was stopped can be gone on with here or, from its folder, elsewhere.
`result` is a frozen record that is replaced as a whole, so whoever reads it never sees half a step.

Read next: `panel.py`, which puts buttons on it.
"""

from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread, current_thread
from typing import Any, Literal

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.configs import check_choice
from cosmos3_lab.denoise import Keep, StepRecord, resolve_run
from cosmos3_lab.files import check_writable
from cosmos3_lab.out_of_memory import freeing_memory
from cosmos3_lab.prepare import prepare_request
from cosmos3_lab.presets import Preset
from cosmos3_lab.run import Generation, Run, begin_run, start_timer

Phase = Literal["idle", "preparing", "denoising", "decoding"]
RECIPE = ("schedule", "flow_shift", "use_karras_sigmas", "solver")  # choices that `resolve_run` makes


class Job:
    """One run at a time in a worker thread.

    Attributes:
        phase: what the worker does now; "idle" where there is none.
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
        self.error: Exception | None = None
        self._run: Run | None = None
        self._stop = Event()
        self._thread: Thread | None = None

    # ------------------------------------------------------------------------------------------------------ control

    @property
    def result(self) -> Generation | None:
        """The run as far as it got, None before the first; `result.output` is None until it is decoded.

        A run that could not begin leaves the result of the one before.
        """
        return None if self._run is None else self._run.result

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
            out: folder in which the run gets a folder of its own; see `generate`.
            preset: see `generate`.
            options: of `prepare_request` and of `prepare_denoise`.

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
        self._run = self.error = None  # an error's traceback holds the tensors of its run

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
            with freeing_memory(self.models, self.result.inputs.request, self.result.inputs.preset), self._run.kept():
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
        requested = {"prompt": prompt, "preset": preset, **options}
        timer = start_timer(self.models)
        with timer("preprocess"):
            asked = {name: value for name, value in options.items() if name not in RECIPE}
            request = prepare_request(self.models, prompt, preset=preset, **asked)
        recipe = {name: options[name] for name in RECIPE if name in options}
        request, schedule, preset = resolve_run(self.models.configs, request, preset=preset, **recipe)
        run = {"timer": timer, "keep": self.keep, "out": out, "requested": requested}
        with freeing_memory(self.models, request, preset):
            self._run = begin_run(self.models, request, schedule=schedule, preset=preset, **run)

    def _denoise(self) -> None:
        if self.result.stopped:
            self._enter("denoising")
        steps = self._run.steps()
        while True:
            self._check_stop()
            record = next(steps, None)
            if record is None:
                return
            self._tell(record)

    def _finish(self) -> None:
        self._enter("decoding")
        self._run.finish(on_chunk=lambda _: self._check_stop())

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
