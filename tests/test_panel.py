"""The generation panel and the run in a worker thread behind it."""

import re
import threading
import time

import numpy as np
import pytest
import torch

from cosmos3_lab import generate, panel_box, read_mp4
from cosmos3_lab import run as run_module
from cosmos3_lab.job import Job
from cosmos3_lab.panel import PanelNote, generation_panel
from cosmos3_lab.panel_box import GenerationPanel
from cosmos3_lab.panel_pictures import spectrogram_html
from cosmos3_lab.preview import LatentPreview
from cosmos3_lab.sound_figures import spectrogram_db
from cosmos3_lab.timing import PhaseTimer

PROMPT = "a <b>red</b> ball & a box"
SMALL = {"num_frames": 5, "height": 48, "width": 64, "num_inference_steps": 4, "seed": 7, "with_sound": True}
SOON = 30.0  # seconds that nothing here should take


@pytest.fixture
def job(tiny, tmp_path):
    made = Job(tiny)
    made.out = tmp_path / "outputs"
    yield made
    made.close()


@pytest.fixture(autouse=True)
def quick_preview(monkeypatch):
    """The tiny checkpoint brings no map from latents to colours, and fitting one takes seconds."""
    flat = LatentPreview(torch.full((2, 3, 8), 0.1), torch.full((2, 3), 0.5), 0.0)
    monkeypatch.setattr(panel_box, "latent_preview", lambda models: flat)


@pytest.fixture
def panel(tiny, tmp_path):
    made = GenerationPanel(tiny, out=tmp_path / "outputs", keep="x0")
    for name, value in SMALL.items():
        made.settings[name].value = value
    made.settings["prompt"].value = PROMPT
    yield made
    made.close()


@pytest.fixture
def gate(monkeypatch):
    """Steps that wait: `gate.step()` lets one through."""
    return Gate(monkeypatch)


class Gate:
    def __init__(self, monkeypatch):
        self.begun, self.free = threading.Semaphore(0), threading.Semaphore(0)
        plain = run_module.denoise

        def denoise(*args, **kwargs):
            steps = plain(*args, **kwargs)
            while True:
                self.begun.release()
                assert self.free.acquire(timeout=SOON)
                try:
                    step = next(steps)
                except StopIteration:
                    return
                yield step

        monkeypatch.setattr(run_module, "denoise", denoise)

    def wait(self):
        """Until a step is under way."""
        assert self.begun.acquire(timeout=SOON)

    def open(self, steps=1000):
        self.free.release(steps)


def equal(a, b):
    return torch.equal(a.video, b.video) and torch.equal(a.sound, b.sound)


# -------------------------------------------------------------------------------------------------------------- job


@pytest.mark.parametrize("preset", ["native", "phyai"])
def test_a_job_gives_the_bits_of_generate(job, tiny, preset):
    job.start(PROMPT, out=job.out, preset=preset, **SMALL)
    assert job.join(SOON)
    assert job.error is None
    expected = generate(tiny, PROMPT, preset=preset, keep="x0", progress=False, **SMALL)
    assert equal(job.result.latents, expected.latents)
    assert np.array_equal(job.result.output.frames, expected.output.frames)
    assert np.array_equal(job.result.output.waveform, expected.output.waveform)
    assert job.result.manifest == expected.manifest
    assert [r.index for r in job.result.records] == [0, 1, 2, 3]
    assert all(equal(ours.x0, theirs.x0) for ours, theirs in zip(job.result.records, expected.records, strict=True))
    assert set(job.result.timings) == set(expected.timings)
    assert read_mp4(job.result.path).sample_rate == expected.output.sample_rate


def test_stop_ends_after_the_step_under_way_and_resume_gives_the_same_bits(job, tiny, gate):
    job.start(PROMPT, out=job.out, **SMALL)
    gate.wait()
    gate.open(1)
    gate.wait()  # the second step is under way
    job.stop()
    assert job.stopping
    gate.open(1)
    assert job.join(SOON)
    assert (job.result.state.step_index, len(job.result.records)) == (2, 2)
    assert (job.running, job.can_resume, job.error, job.result.output) == (False, True, None, None)
    gate.open()
    job.resume()
    assert job.join(SOON)
    expected = generate(tiny, PROMPT, keep="x0", progress=False, **SMALL)
    assert equal(job.result.latents, expected.latents)
    assert np.array_equal(job.result.output.frames, expected.output.frames)
    assert [r.index for r in job.result.records] == [0, 1, 2, 3]
    assert not job.can_resume
    with pytest.raises(RuntimeError, match="expected start"):
        job.resume()


def test_stop_ends_the_decoding_too_and_resume_decodes(tiny, tmp_path):
    phases = []

    def stop_when_decoding(record):
        phases.append(job.phase)
        if job.phase == "decoding" and phases.count("decoding") == 1:
            job.stop()

    job = Job(tiny, on_change=stop_when_decoding)
    job.start(PROMPT, out=tmp_path, **SMALL)
    assert job.join(SOON)
    assert job.result.output is None
    assert (job.result.stopped, job.can_resume) == (False, True)
    job.resume()
    assert job.join(SOON)
    assert read_mp4(job.result.path).frames.shape == (5, 48, 64, 3)
    # a step and the first chunk are told about
    assert [p for i, p in enumerate(phases) if i == 0 or p != phases[i - 1]] == [
        *("preparing", "denoising", "decoding", "idle"),
        *("preparing", "decoding", "idle"),
    ]


def test_a_stop_before_the_first_step_can_be_resumed(job, tiny, gate):
    job.start(PROMPT, out=job.out, **SMALL)
    job.stop()
    assert job.join(SOON)
    assert job.result.state.step_index == 0
    gate.open()
    job.resume()
    assert job.join(SOON)
    assert equal(job.result.latents, generate(tiny, PROMPT, progress=False, **SMALL).latents)


def test_one_run_at_a_time(job, gate):
    job.start(PROMPT, out=job.out, **SMALL)
    gate.wait()
    for again in (lambda: job.start(PROMPT, out=job.out), job.resume):
        with pytest.raises(RuntimeError, match=r"expected (stop|start)"):
            again()
    job.stop()
    gate.open()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"height": 50}, "50"), ({"num_inference_steps": 0}, "num_inference_steps"), ({"preset": "none"}, "preset 'none'")],
)
def test_a_run_that_cannot_begin_says_why_and_keeps_the_one_before(job, wrong, said):
    job.start(PROMPT, out=job.out, **SMALL)
    assert job.join(SOON)
    before = job.result
    job.start(PROMPT, out=job.out, **SMALL | wrong)
    assert job.join(SOON)
    assert isinstance(job.error, ValueError)
    assert said in str(job.error)
    assert job.result is before


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(job, tmp_path):
    (tmp_path / "file").write_text("")
    job.start(PROMPT, out=tmp_path / "file" / "outputs", **SMALL)
    assert job.join(SOON)
    assert isinstance(job.error, OSError)
    assert job.result is None


def test_whoever_looks_on_cannot_kill_the_worker(tiny, tmp_path):
    def fail(record):
        raise ValueError("cannot look")

    job = Job(tiny, on_change=fail)
    job.start("a", out=tmp_path)
    assert job.join(60.0)
    assert not job.running
    assert str(job.error) == "cannot look"
    job.close()
    assert job.error is None


def test_two_jobs_at_once_have_a_folder_each(tiny, tmp_path):
    jobs = [Job(tiny), Job(tiny)]
    for one in jobs:
        one.start(PROMPT, out=tmp_path, **SMALL)
    assert all(one.join(SOON) for one in jobs)
    assert sorted(one.result.bundle.name for one in jobs) == ["run_001", "run_002"]
    assert all(read_mp4(one.result.path).frames.shape == (5, 48, 64, 3) for one in jobs)
    for one in jobs:
        one.close()


def test_a_stopped_job_can_be_gone_on_with_from_its_folder(job, tiny, gate):
    job.start(PROMPT, out=job.out, **SMALL)
    gate.wait()
    job.stop()
    gate.open()
    assert job.join(SOON)
    assert job.result.state.step_index == 1
    result = generate(tiny, resume=job.result.bundle, progress=False)
    assert equal(result.latents, generate(tiny, PROMPT, progress=False, **SMALL).latents)
    assert result.manifest == job.result.manifest


# ------------------------------------------------------------------------------------------------------------ times


def test_a_timer_waits_for_the_gpu_at_both_ends_and_counts_what_failed(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    timer = PhaseTimer(torch.device("cuda", 1), seconds={"decode": 100.0})
    with pytest.raises(KeyError, match="1"), timer("decode"):  # it waited once before the block
        raise KeyError(len(waited))
    assert waited == [torch.device("cuda", 1)] * 2
    assert 100 < timer.seconds["decode"] < 101
    with PhaseTimer()("decode"), PhaseTimer(torch.device("cpu"))("decode"):
        pass
    assert len(waited) == 2


def test_a_job_waits_for_the_device_of_its_models(job, tiny, monkeypatch):
    waited = []
    monkeypatch.setattr(PhaseTimer, "_wait", lambda timer: waited.append(timer.device))
    job.start(PROMPT, out=job.out, **SMALL)
    assert job.join(SOON)
    assert set(waited) == {tiny.device}


def test_every_phase_of_a_job_is_timed(job, tiny):
    job.start(PROMPT, out=job.out, **SMALL)
    assert job.join(SOON)
    timings = job.result.timings
    assert all(seconds > 0 for seconds in timings.values())
    assert timings["model_load"] == tiny.load_seconds
    assert timings["inference"] >= timings["denoise"] + timings["decode"]


def test_the_times_of_a_run_that_goes_on_add_up(tiny, tmp_path):
    def stop_in(phase):
        return lambda record: job.stop() if job.phase == phase else None

    job = Job(tiny, on_change=stop_in("denoising"))
    job.start(PROMPT, out=tmp_path, **SMALL)
    assert job.join(SOON)
    first = job.result.timings
    assert first["decode"] == 0
    job.on_change = stop_in("decoding")
    job.resume()
    assert job.join(SOON)
    second = job.result.timings
    assert job.result.output is None
    assert second["decode"] > 0  # the time of what a stop threw away
    job.on_change = None
    job.resume()
    assert job.join(SOON)
    third = job.result.timings
    assert third["preprocess"] == second["preprocess"] == first["preprocess"]
    assert third["denoise"] >= second["denoise"] > first["denoise"]
    assert third["decode"] > second["decode"]
    assert third["inference"] >= third["condition"] + third["denoise"] + third["decode"]
    job.close()


# ------------------------------------------------------------------------------------------------------------ panel


def said(panel):
    return re.sub(r"<[^>]*>", "", panel.line.value)


def buttons(panel):
    """Which buttons can be pressed."""
    return [b.description for b in (panel.run, panel.stop, panel.resume) if not b.disabled]


def test_run_shows_the_clip_and_keeps_the_result(panel, tiny):
    assert (buttons(panel), said(panel)) == (["Run"], "Ready")
    assert panel.result is None
    assert (panel.records, panel.state) == ((), None)
    panel.run.click()
    assert panel.job.join(SOON)
    assert buttons(panel) == ["Run"]
    assert re.fullmatch(r"Done in [\d.]+ s: .*run_001/video\.mp4", said(panel))
    assert (panel.bar.value, panel.bar.max) == (4, 4)
    assert panel.film.value.count("<img") == 2  # latent frames
    assert "Sound of the clip" in panel.spectrogram.value
    assert equal(panel.result.latents, generate(tiny, PROMPT, progress=False, **SMALL).latents)
    assert (len(panel.records), panel.state.step_index) == (4, 4)
    assert "<video controls" in panel.player.value


def test_the_prompt_is_escaped(panel):
    panel.run.click()
    assert panel.job.join(SOON)
    assert "&lt;b&gt;red&lt;/b&gt; ball &amp; a box" in panel.player.value
    assert "<b>" not in panel.player.value


def test_buttons_follow_the_run(panel, gate):
    panel.run.click()
    gate.wait()
    assert buttons(panel) == ["Stop"]
    assert "Step 1 of 4, sigma 1" in said(panel)
    panel.run.click()  # on its way before the button was disabled
    gate.open(1)
    gate.wait()
    assert "predicted at step 1 of 4" in panel.film.value
    panel.stop.click()
    assert (buttons(panel), said(panel)) == ([], "Stopping")
    gate.open(1)
    assert panel.job.join(SOON)
    assert buttons(panel) == ["Run", "Resume"]
    assert "Stopped after 2 of 4 steps" in said(panel)
    assert "predicted at step 2 of 4" in panel.film.value  # the last look is at what was kept
    gate.open()
    panel.settings["seed"].value = 8
    panel.resume.click()
    assert panel.job.join(SOON)
    assert panel.result.manifest["seed"] == 7  # the run's own settings
    assert len(panel.records) == 4
    panel.run.click()
    assert panel.job.join(SOON)
    assert panel.result.manifest["seed"] == 8


@pytest.mark.parametrize(("field", "value", "words"), [("width", 50, "50"), ("prompt", "  ", "prompt"), ("seed", -1, "seed -1")])
def test_what_cannot_work_is_one_line_in_the_panel(panel, field, value, words):
    panel.settings[field].value = value
    panel.run.click()
    assert panel.job.join(SOON)
    assert words in said(panel)
    assert 'role="alert"' in panel.line.value
    assert "\n" not in panel.line.value
    assert "Traceback" not in panel.line.value
    assert buttons(panel) == ["Run"]
    panel.settings[field].value = SMALL.get(field, PROMPT)
    panel.run.click()
    assert panel.job.join(SOON)
    assert "Done" in said(panel)


def test_what_nobody_foresaw_is_named(panel, monkeypatch):
    def broken(*args, **kwargs):
        raise KeyError("<i>lost</i>")

    monkeypatch.setattr(run_module, "decode_latents", broken)
    panel.run.click()
    assert panel.job.join(SOON)
    assert "KeyError: &#x27;&lt;i&gt;lost&lt;/i&gt;&#x27;" in panel.line.value
    assert buttons(panel) == ["Run", "Resume"]
    monkeypatch.undo()
    panel.resume.click()
    assert panel.job.join(SOON)
    assert "Done" in said(panel)


def test_close_ends_the_worker_and_lets_go(tiny, tmp_path, gate):
    panel = GenerationPanel(tiny, out=tmp_path, keep="x0")
    for name, value in SMALL.items():
        panel.settings[name].value = value
    panel.run.click()
    gate.wait()
    closing = threading.Thread(target=panel.close)
    closing.start()
    begin = time.monotonic()
    while not panel.job.stopping and time.monotonic() - begin < SOON:
        time.sleep(0.001)
    gate.open()
    closing.join(SOON)
    assert panel.job.join(0.0)
    assert panel.result is None
    assert "cosmos3_lab job" not in {thread.name for thread in threading.enumerate()}
    kept = ["manifest.json", "state.safetensors"]  # it was not decoded, and can be gone on with
    assert sorted(path.name for path in (tmp_path / "run_001").iterdir()) == kept


def test_a_silent_run_has_no_sound(panel):
    panel.settings["with_sound"].value = False
    panel.run.click()
    assert panel.job.join(SOON)
    assert "no sound" in panel.spectrogram.value
    assert read_mp4(panel.result.path).sample_rate is None


def test_the_spectrogram_and_its_axis_have_the_same_ends():
    rate = 16_000
    wave = np.sin(2 * np.pi * 1000 * np.arange(rate) / rate)[None]
    html = spectrogram_html(wave, rate, "a tone")
    left, width = (float(re.search(rf"{name}: (-?[\d.]+)%; (?:width|max)", html)[1]) for name in ("left", "width"))
    levels, hop = spectrogram_db(wave, rate, scale="mel")
    assert left == pytest.approx(-100 * hop / 2, abs=0.01)  # the first moment is in the middle of its column
    assert width == pytest.approx(100 * hop * levels.shape[1], abs=0.01)
    tick = float(re.search(r"bottom: ([\d.]+)%[^>]*>1k<", html)[1]) / 100
    assert tick == pytest.approx((levels.mean(axis=1).argmax() + 0.5) / len(levels), abs=0.51 / len(levels))


def test_an_example_fills_the_prompt(panel, tiny):
    panel.settings["example"].value = tiny.defaults.example_prompts[0]
    assert panel.settings["prompt"].value == tiny.defaults.example_prompts[0]


def test_pictures_are_drawn_within_their_share(panel, monkeypatch):
    """Looks are rationed: after a slow one, steps pass before the next."""
    looked = []

    def slow(record, run):
        looked.append(record.index)
        panel._look_seconds += 1e6

    monkeypatch.setattr(panel, "_look", slow)
    panel.settings["num_inference_steps"].value = 6
    panel.run.click()
    assert panel.job.join(SOON)
    assert looked == [0, 5]  # the first and the last


def test_without_a_notebook_there_is_a_note(tiny):
    note = generation_panel(tiny)
    assert isinstance(note, PanelNote)
    assert "generate(models, prompt" in repr(note)
    assert note._repr_html_().startswith("<p>")


def test_a_web_page_gets_a_line(panel):
    assert "run this notebook" in panel._repr_mimebundle_()["text/html"]
