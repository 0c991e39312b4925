"""What the generation panel looks like, and what its buttons do.

The user's clicks come in the main thread and only start or stop the job; the worker thread paints what has happened. This module
imports ipywidgets, an optional extra; `panel.py` imports it when the first panel is made.

Read next: `panel_pictures.py`.
"""

import time
from pathlib import Path
from threading import Lock
from typing import Any

from ipywidgets import HTML, Button, Checkbox, Dropdown, FloatText, HBox, IntProgress, IntText, Textarea, VBox

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import DenoiseState, Keep, StepRecord
from cosmos3_lab.job import Job
from cosmos3_lab.lessons import describe_starting_size
from cosmos3_lab.panel_pictures import (
    CAPTION_HEIGHT,
    FILM_HEIGHT,
    SPECTROGRAM_HEIGHT,
    empty_html,
    film_html,
    line_html,
    player_html,
    player_size,
    spectrogram_html,
)
from cosmos3_lab.presets import PRESETS
from cosmos3_lab.preview import LatentPreview, latent_preview
from cosmos3_lab.run import PHASES, Generation
from cosmos3_lab.sound_avae import decode_sound
from cosmos3_lab.widget_box import LabBox
from cosmos3_lab.widget_parts import row

LOOK_SHARE = 0.05  # of the run's time that may go into looking at it
DOING = {
    "idle": "Ready",
    "preparing": "Encoding the prompts",
    "decoding": "Decoding, and writing the mp4",
    "stopping": "Stopping",
}
FIELD_WIDTH = "172px"  # four stand side by side beside an open file browser
NARROW = {"description_width": "66px"}


class GenerationPanel(LabBox):
    """See `generation_panel`.

    Attributes:
        job: the run behind the panel.
        settings: the fields by name, as widgets.
    """

    def __init__(self, models: Cosmos3Models, *, out: str | Path, keep: Keep) -> None:
        self.models, self.out = models, out
        self.job = Job(models, keep=keep, on_change=self._changed)
        size, words = describe_starting_size(models)
        self.settings = _settings(models, size)
        self.run, self.stop, self.resume = _buttons()
        self.bar = IntProgress(max=1, layout={"width": "100%", "height": "18px", "margin": "6px 0 0 0"})
        self.line, self.player, self.film, self.spectrogram = (HTML(layout={"margin": "0"}) for _ in range(4))
        self._preview: LatentPreview | None = None
        self._look_seconds, self._warm = 0.0, False
        self._gone = False
        self._painting = Lock()  # a click in the main thread and the worker may both want to
        self.run.on_click(self._run)
        self.stop.on_click(self._stop)
        self.resume.on_click(self._resume)
        super().__init__(self._children(words))
        self.add_class("cosmos3-generation-panel")
        self._clear_pictures(size["height"], size["width"])
        self._paint()

    @property
    def result(self) -> Generation | None:
        """The run as far as it got, None before the first; while a run goes on, as of its last step."""
        return self.job.result

    @property
    def records(self) -> tuple[StepRecord, ...]:
        """Of the steps done."""
        return () if self.job.result is None else self.job.result.records

    @property
    def state(self) -> DenoiseState | None:
        """After the last step done."""
        return None if self.job.result is None else self.job.result.state

    def close(self) -> None:
        """End the run (after the step under way), let go of what was computed, and take the panel off the page."""
        self._gone = True
        self.job.close()
        super().close()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:  # noqa: ANN401  (IPython's call)
        """Where no widget can be shown, such as on a web page, one line says what this is."""
        note = "A generation panel: run this notebook to use it."
        return super()._repr_mimebundle_(**kwargs) | {"text/plain": note, "text/html": f"<p>{note}</p>"}

    # ------------------------------------------------------------------------------------------------------- clicks

    def _run(self, button: Button) -> None:
        if self.job.running:  # a second click that was on its way before the button was disabled
            return
        values = {name: field.value for name, field in self.settings.items() if name != "example"}
        self._look_seconds, self.bar.value = 0.0, 0
        self.job.start(values.pop("prompt"), out=self.out, **values)

    def _stop(self, button: Button) -> None:
        self.job.stop()
        self._paint()

    def _resume(self, button: Button) -> None:
        if self.job.can_resume:
            self.job.resume()

    # ------------------------------------------------------------------------------------------------------- worker

    def _changed(self, record: StepRecord | None) -> None:
        if self._gone:
            return
        if self._preview is None and self.job.running:
            self._preview = latent_preview(self.models)  # before the towers are placed, for it may need the VAE
        run = self.job.result
        if record is not None and self._look_is_due(run):
            self._look(record, run)
        elif self.job.phase == "denoising" and not run.state.step_index:
            request = run.manifest
            self._clear_pictures(request["height"], request["width"], sound=bool(request["sound_frames"]))
        elif self.job.phase == "idle" and run is not None and run.path is not None and self.job.error is None:
            self._paint()  # first, so that Run is there again whatever happens to the pictures
            self._show_result(run)
        self._paint()

    def _look_is_due(self, run: Generation) -> bool:
        if run.state.step_index in (1, run.inputs.schedule.num_steps) or self.job.stopping:
            return True
        return self._look_seconds <= LOOK_SHARE * run.timings["denoise"]

    def _look(self, record: StepRecord, run: Generation) -> None:
        begin = time.perf_counter()
        when = f"predicted at step {record.index + 1} of {run.inputs.schedule.num_steps}"
        self.film.value = film_html(self._preview.pixels(record.x0.video), f"Video {when}: x0, latent frames in preview colours")
        if record.x0.sound is not None:
            waveform = decode_sound(self.models.avae, record.x0.sound)[0].cpu().numpy()
            self.spectrogram.value = spectrogram_html(
                waveform, self.models.media.sampling_rate, f"Sound {when}: decoded x0, in Hz"
            )
        if self._warm:  # the first look of all loads what the others use
            self._look_seconds += time.perf_counter() - begin
        self._warm = True

    def _show_result(self, run: Generation) -> None:
        self.player.value = player_html(run.path, run.manifest["prompt"], run.manifest["height"], run.manifest["width"])
        if run.output.waveform is not None:
            self.spectrogram.value = spectrogram_html(run.output.waveform, run.output.sample_rate, "Sound of the clip, in Hz")

    # -------------------------------------------------------------------------------------------------------- paint

    def _paint(self) -> None:
        with self._painting:
            self._paint_now()

    def _paint_now(self) -> None:
        job, run = self.job, self.job.result
        self.run.disabled, self.resume.disabled = job.running, not job.can_resume
        self.stop.disabled = job.stopping or job.phase == "idle"
        for button, style in ((self.run, "primary"), (self.stop, "warning")):
            button.button_style = "" if button.disabled else style
        if run is not None and job.phase != "preparing":
            self.bar.max, self.bar.value = run.inputs.schedule.num_steps, run.state.step_index
        done = run is not None and run.path is not None
        self.bar.bar_style = "success" if done and not job.running else "info"
        if job.error and (done or run is None):
            self.bar.value = 0  # the new run did not begin
        self.line.value = line_html(error_words(job.error), alarm=True) if job.error else line_html(run_words(job))

    def _clear_pictures(self, height: int, width: int, *, sound: bool = True) -> None:
        self.player.layout.width = f"{player_size(height, width)[1]}px"
        self.player.value = empty_html("The clip will play here.", player_size(height, width)[0])
        self.film.value = empty_html("What the network predicts at each step will be here.", FILM_HEIGHT + CAPTION_HEIGHT)
        words = "Its sound will be here." if sound else "This clip has no sound."
        self.spectrogram.value = empty_html(words, SPECTROGRAM_HEIGHT + 2 * CAPTION_HEIGHT)

    def _children(self, words: str) -> list[Any]:
        fields = self.settings
        sizes = row(*(fields[name] for name in ("num_frames", "height", "width", "num_inference_steps")))
        others = row(*(fields[name] for name in ("guidance_scale", "seed", "preset", "with_sound")))
        self.spectrogram.layout.flex = "1 1 380px"
        pictures = HBox([self.player, self.spectrogram], layout={"flex_flow": "row wrap", "grid_gap": "12px 20px"})
        hint = HTML(line_html(words), layout={"margin": "2px 0 6px 6px"})
        buttons = row(self.run, self.stop, self.resume)
        return [
            fields["prompt"],
            fields["example"],
            sizes,
            others,
            hint,
            buttons,
            self.bar,
            self.line,
            VBox([self.film, pictures], layout={"grid_gap": "10px"}),
        ]


def run_words(job: Job) -> str:
    """Where a job stands, in one line.

    Args:
        job: of the panel.
    """
    run, phase = job.result, "stopping" if job.stopping else job.phase
    if phase == "denoising":
        return _step_words(run)
    if phase != "idle" or run is None:
        return DOING[phase]
    steps = run.inputs.schedule.num_steps
    if run.path is None:
        return f"Stopped after {run.state.step_index} of {steps} steps. Resume goes on with this run, Run starts a new one."
    seconds = sum(run.timings[phase] for phase in PHASES if phase != "model_load")
    return f"Done in {seconds:.1f} s: {run.path}"


def _step_words(run: Generation) -> str:
    done, steps = run.state.step_index, run.inputs.schedule.num_steps
    now = f"Step {min(done + 1, steps)} of {steps}, sigma {float(run.inputs.schedule.sigmas[done]):.3f}"
    if not done:
        return now
    seconds = (steps - done) * run.timings["denoise"] / done
    return f"{now}, about {f'{seconds:.0f} s' if seconds < 100 else f'{seconds / 60:.0f} min'} left, then decoding"


def error_words(error: Exception) -> str:
    """What went wrong, in one line; what nobody foresaw is named.

    Args:
        error: of a job.
    """
    foreseen = isinstance(error, ValueError | OSError | FloatingPointError | MemoryError)
    return str(error) if foreseen and str(error) else f"{type(error).__name__}: {error}"


def _settings(models: Cosmos3Models, size: dict[str, int | float]) -> dict[str, Any]:
    """The fields, named as in `generate`; "example" fills the prompt."""
    d = models.defaults
    examples = d.example_prompts
    fields = {
        "prompt": Textarea(examples[0], description="Prompt", rows=2, layout={"width": "auto"}, style=NARROW),
        "example": Dropdown(
            options=[("pick one to fill the prompt", ""), *((e, e) for e in examples)],
            description="Examples",
            layout={"width": "100%"},
            style=NARROW,
        ),
        "num_frames": IntText(size["num_frames"], description="Frames"),
        "height": IntText(size["height"], description="Height"),
        "width": IntText(size["width"], description="Width"),
        "num_inference_steps": IntText(d.num_inference_steps, description="Steps"),
        "guidance_scale": FloatText(d.guidance_scale, description="Guidance", step=0.5),
        "seed": IntText(42, description="Seed"),
        "preset": Dropdown(options=list(PRESETS), value=d.preset, description="Preset"),
        "with_sound": Checkbox(models.avae is not None, description="Sound", disabled=models.avae is None),
    }
    for name, field in fields.items():
        if name not in ("prompt", "example"):
            field.layout, field.style = {"width": FIELD_WIDTH}, NARROW
    fields["example"].observe(lambda change: _fill(fields["prompt"], change.new), names="value")
    return fields


def _fill(prompt: Textarea, text: str) -> None:
    if text:
        prompt.value = text


def _buttons() -> tuple[Button, Button, Button]:
    """Run, Stop and Resume."""
    looks = {
        "Run": ("play", "Start a new run with the settings above"),
        "Stop": ("stop", "End the run after the step under way, and keep what was computed"),
        "Resume": ("step-forward", "Go on with the run that was stopped, with its own settings"),
    }
    return tuple(
        Button(description=name, icon=icon, tooltip=tooltip, layout={"width": "110px"}) for name, (icon, tooltip) in looks.items()
    )
