"""Widgets: what they draw follows their controls; what they are without a kernel; what they refuse and leave behind."""

import gc
import inspect
import re
import subprocess
import sys
import wave
import weakref
from base64 import b64decode
from dataclasses import replace
from io import BytesIO

import ipywidgets
import numpy as np
import pytest
import torch
from ipywidgets.widgets.widget import _instances
from PIL import Image

from cosmos3_lab import (
    decode_sound,
    denoise,
    flow_schedule,
    generate,
    karras_schedule,
    load_cosmos3,
    make_processor,
    open_trace,
    prepare_denoise,
    prepare_request,
    trace_steps,
    widgets,
)
from cosmos3_lab.attention_maps import record_attention
from cosmos3_lab.figure_canvas import LabAxes, LabFigure
from cosmos3_lab.figure_style import new_panels
from cosmos3_lab.latent_widgets import video_of
from cosmos3_lab.preview import LatentPreview, latent_preview
from cosmos3_lab.prompt_words import prompt_words
from cosmos3_lab.schedule_widgets import _Curves as Curves
from cosmos3_lab.sound_widgets import _Panes as SoundPanes
from cosmos3_lab.sound_widgets import outline, wav_bytes
from cosmos3_lab.step_widgets import _Maps as StepMaps
from cosmos3_lab.step_widgets import rms_map
from cosmos3_lab.token_widgets import PAGE
from cosmos3_lab.widget_box import LabBox, Picture, descendants
from cosmos3_lab.widget_canvas import Mosaic, MovingFigure, moving_labels
from cosmos3_lab.widget_parts import check_records, round_up

STEPS = 5
MODULES = (
    "lens_widgets",
    "schedule_widgets",
    "latent_widgets",
    "step_widgets",
    "player_widgets",
    "sound_widgets",
    "token_widgets",
    "explore_widgets",
)


@pytest.fixture(scope="module")
def pico():
    with load_cosmos3("pico", device="cpu") as models:
        yield models


@pytest.fixture(scope="module")
def run(pico):
    """Video and sound of 9 frames, every tensor kept."""
    options = {"with_sound": True, "num_frames": 9, "num_inference_steps": STEPS, "keep": "full", "progress": False}
    return generate(pico, pico.defaults.example_prompts[0], **options)


@pytest.fixture(scope="module")
def looked(pico):
    """Attention of two layers at two steps, head by head."""
    size = {"num_frames": 9, "height": 96, "width": 96, "fps": 16.0}
    prompt = pico.defaults.example_prompts[0]
    inputs, state = prepare_denoise(pico, prepare_request(pico, prompt, with_sound=True, num_inference_steps=STEPS, **size))
    words = prompt_words(make_processor(pico, **size), prompt)
    with record_attention(pico.transformer, inputs, words=words, layers=[2, 4], steps=[0, 3], per_head=True) as seen:
        list(denoise(pico.transformer, inputs, state))
    return seen.activations


@pytest.fixture(scope="module")
def trace(pico, run, tmp_path_factory):
    """The same run on disk, with its sound."""
    folder = tmp_path_factory.mktemp("trace")
    inputs, state = prepare_denoise(pico, run.inputs.request)
    options = {"models": pico, "inputs": inputs, "with_sound": True}
    list(trace_steps(denoise(pico.transformer, inputs, state), folder, **options))
    return open_trace(folder)


@pytest.fixture(scope="module")
def makers(pico, run, looked, trace):
    """Every widget, ready to be made."""
    prompt, output = pico.defaults.example_prompts[0], run.output
    made = {
        "attention_lens": lambda: widgets.attention_lens(looked, output.frames, seconds=9 / 16),
        "schedule_explorer": lambda: widgets.schedule_explorer(flow_schedule(8)),
        "latent_viewer": lambda: widgets.latent_viewer(run.records, latent_preview(pico)),
        "denoise_player": lambda: widgets.denoise_player(run.records, pico),
        "guidance_lens": lambda: widgets.guidance_lens(run.records),
        "unipc_lens": lambda: widgets.unipc_lens(run.records),
        "token_view": lambda: widgets.token_view(pico, prompt),
        "sound_view": lambda: widgets.sound_view(output.waveform, output.sample_rate),
        "trace_player": lambda: widgets.trace_player(trace),
    }
    elsewhere = {"generation_panel", "grid_player"}  # test_panel.py, test_grid.py
    assert sorted(made) == sorted(set(widgets.__all__) - elsewhere)
    return made


NAMES = [
    "attention_lens",
    "schedule_explorer",
    "latent_viewer",
    "denoise_player",
    "guidance_lens",
    "unipc_lens",
    "token_view",
    "sound_view",
    "trace_player",
]
by_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def in_kernel(monkeypatch):
    """As if this ran in a notebook."""
    for module in MODULES:
        monkeypatch.setattr(f"cosmos3_lab.{module}.has_front_end", lambda: True)
    yield
    ipywidgets.Widget.close_all()


def inside(widget, kind, description=None):
    """The parts of this kind and with this description."""
    found = [part for part in descendants(widget) if isinstance(part, kind)]
    return [part for part in found if description is None or part.description == description]


def the(widget, kind, description=None):
    (found,) = inside(widget, kind, description)
    return found


def png(widget):
    return b64decode(re.search(r"base64,([^\"]+)", the(widget, Picture).value)[1])


def pixels(widget):
    return np.asarray(Image.open(BytesIO(png(widget))))


def step_slider(widget):
    return the(widget, ipywidgets.IntSlider, "step")


def texts(widget):
    return " ".join(part.value for part in inside(widget, ipywidgets.HTML) if not isinstance(part, Picture))


# ---------------------------------------------------------------------------------------------------------------- all


@by_name
def test_outside_of_a_kernel_it_is_the_figure(name, makers):
    assert isinstance(makers[name](), LabFigure | LabAxes)


@by_name
def test_in_a_kernel_it_is_a_widget_that_a_page_without_one_shows_too(name, makers, in_kernel):
    widget = makers[name]()
    assert isinstance(widget, LabBox)
    bundle = widget._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert name == "token_view" or re.search(r'<img alt="[^"]{20,}" width="1000" height="\d+"', bundle["text/html"])


@by_name
def test_sliders_answer_when_they_are_released(name, makers, in_kernel):
    widget = makers[name]()
    sliders = [part for part in descendants(widget) if hasattr(part, "continuous_update")]
    assert [s.description for s in sliders if s.continuous_update] == []
    assert len(sliders) > 0 or name == "token_view"


@by_name
def test_every_control_changes_something_and_back_again_is_the_same(name, makers, in_kernel):
    widget = makers[name]()
    controls = [part for part in descendants(widget) if hasattr(part, "value") and hasattr(part, "description")]
    sliders = [control for control in controls if isinstance(control, ipywidgets.IntSlider)]
    for control in sliders:
        other = control.min if control.value != control.min else control.max
        assert changes(widget, control, other), control.description
    for control in controls:
        # One step's scale, say, may well be the whole run's, but not every step's.
        if isinstance(control, ipywidgets.ToggleButtons):
            assert any([changes(widget, control, control.options[1][1]) for _ in positions(sliders)]), control.description
    assert len(sliders) >= 1 or any(isinstance(control, ipywidgets.ToggleButtons) for control in controls)


def changes(widget, control, other):
    """Whether something else is shown with the other value; back again, it must be what it was."""
    first, before = control.value, shown(widget)
    control.value = other
    after = shown(widget)
    control.value = first
    assert shown(widget) == before, control.description
    return after != before


def positions(sliders):
    """Move the first slider, if there is one, from where it is through all its values."""
    yield
    for slider in sliders[:1]:
        for value in range(slider.min, slider.max + 1):
            slider.value = value
            yield


def shown(widget):
    return [part.value for part in inside(widget, ipywidgets.HTML)]


@by_name
def test_pictures_keep_their_size(name, makers, in_kernel):
    widget = makers[name]()
    if not inside(widget, Picture):
        assert name == "token_view"
        return
    before = pixels(widget).shape
    for slider in inside(widget, ipywidgets.IntSlider):
        slider.value = slider.max
    assert pixels(widget).shape == before


@by_name
def test_a_closed_widget_leaves_nothing_behind(name, makers, in_kernel):
    before, old = set(_instances), {id(found) for found in moving_figures()}
    widget = makers[name]()
    parts = [weakref.ref(part) for part in descendants(widget)]
    pictures = [weakref.ref(found) for found in moving_figures() if id(found) not in old]
    assert len(pictures) > 0 or name == "token_view"
    widget.close()
    assert set(_instances) <= before
    del widget
    gc.collect()
    assert [part() for part in [*parts, *pictures] if part() is not None] == []


def moving_figures():
    gc.collect()
    return [found for found in gc.get_objects() if isinstance(found, MovingFigure)]


def test_importing_the_widgets_needs_no_ipywidgets_and_making_one_says_how_to_get_it():
    code = """
import sys
sys.modules["ipywidgets"] = None
from cosmos3_lab import schedule_widgets
assert "matplotlib" not in sys.modules
schedule_widgets.has_front_end = lambda: True
try:
    schedule_widgets.schedule_explorer()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == 'widgets need ipywidgets, which is not installed; try pip install "cosmos3-lab[lab]"\n'


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("make", [widgets.latent_viewer, widgets.guidance_lens, widgets.unipc_lens])
def test_records_that_do_not_do_are_refused(make, run):
    with pytest.raises(ValueError, match="got records of none, expected at least one StepRecord, try generate"):
        make([])
    with pytest.raises(ValueError, match=r"got records of the steps \[0, 2, 3, 4\], expected steps that follow"):
        make([run.records[0], *run.records[2:]])
    with pytest.raises(ValueError, match="got records without .*, expected those of a run with keep="):
        make([record.keep("summary") for record in run.records])


def test_other_things_than_records_are_refused():
    with pytest.raises(ValueError, match="got records of int, str, expected at least one StepRecord"):
        inspect.unwrap(check_records)([3, "x"])  # unwrapped: in tests, types are checked before


def test_a_player_needs_open_models_with_sound(run, tmp_path):
    with load_cosmos3("pico", device="cpu") as models:
        pass
    with pytest.raises(ValueError, match="got records with sound and models that were closed or have no AVAE"):
        widgets.denoise_player(run.records, models)


def test_a_lens_on_guidance_needs_guidance(pico):
    options = {"num_frames": 1, "num_inference_steps": 2, "guidance_scale": 1.0, "progress": False, "keep": "full"}
    records = generate(pico, "a red circle", **options).records
    with pytest.raises(ValueError, match="got records of a run without guidance"):
        widgets.guidance_lens(records)


def test_a_lens_on_guidance_shows_the_steps_that_had_it(run, in_kernel):
    skipped = [replace(r, velocity=replace(r.velocity, uncond=None)) for r in run.records]
    slider = step_slider(widgets.guidance_lens([skipped[0], *run.records[1:3], *skipped[3:]]))
    assert (slider.min, slider.max) == (1, 2)
    with pytest.raises(ValueError, match="expected steps that follow each other"):
        widgets.guidance_lens([run.records[0], skipped[1], *run.records[2:]])


def test_other_wrong_input_is_refused(pico, run):
    with pytest.raises(ValueError, match="got a waveform of shape"):
        widgets.sound_view(np.zeros(8), 16000)
    with pytest.raises(ValueError, match="got a sample_rate of 0"):
        widgets.sound_view(np.zeros((1, 64)), 0)
    with pytest.raises(ValueError, match="got an empty prompt"):
        widgets.token_view(pico, " ")
    with pytest.raises(ValueError, match="got a schedule of 101 steps, expected at most 100"):
        widgets.schedule_explorer(flow_schedule(101))
    with pytest.raises(ValueError, match="expected the preview's 5"):
        widgets.latent_viewer(run.records, LatentPreview(torch.zeros(2, 3, 5), torch.zeros(2, 3), 0.0))


# ------------------------------------------------------------------------------------------------------------- records


def test_the_step_slider_names_the_record(makers, run, in_kernel):
    for name in ("latent_viewer", "denoise_player", "guidance_lens", "unipc_lens"):
        widget = makers[name]()
        for record in (run.records[0], run.records[-1]):
            step_slider(widget).value = record.index
            words = f"step {record.index}: \u03c3 = {record.sigma:.4f}, timestep {record.timestep}"
            assert words in texts(widget)
            assert words in the(widget, Picture).value


def test_records_that_start_later_keep_their_numbers(run, in_kernel):
    widget = widgets.unipc_lens(run.records[2:])
    slider = step_slider(widget)
    assert (slider.min, slider.max) == (2, STEPS - 1)
    slider.value = 3
    record = run.records[3]
    assert f"step 3: \u03c3 = {record.sigma:.4f}" in texts(widget)
    assert f"(order {record.order}) by {record.rms['video.predictor_move']:.4f}" in texts(widget)


def test_the_viewer_tells_the_numbers_of_the_chosen_channel(makers, run, in_kernel):
    widget = makers["latent_viewer"]()
    step_slider(widget).value = 3
    the(widget, ipywidgets.IntSlider, "frame").value = 1
    the(widget, ipywidgets.IntSlider, "channel").value = 5
    for kind, tensor in (("x0", run.records[3].x0), ("velocity", run.records[3].velocity.guided)):
        the(widget, ipywidgets.ToggleButtons).value = kind
        values = tensor.video[0, 5, 1].numpy()
        assert f"mean {values.mean():.3f}, std {values.std():.3f}" in texts(widget)


def test_the_sample_is_put_together_again(run):
    noise = run.inputs.request.noise
    assert noise is None
    first = run.records[0]
    assert video_of(first, "sample").std() == pytest.approx(1, abs=0.05)  # nearly all noise
    assert np.sqrt((video_of(first, "sample") ** 2).mean()) == pytest.approx(first.rms["video.sample"], rel=1e-5)


def test_the_player_plays_the_sound_of_the_step(makers, pico, run, in_kernel):
    widget = makers["denoise_player"]()
    for step in (1, STEPS - 1):
        step_slider(widget).value = step
        wanted = decode_sound(pico.avae, run.records[step].x0.sound)[0].numpy()
        rate, heard = read_wav(the(widget, ipywidgets.Audio).value)
        assert rate == pico.avae.config.sampling_rate
        assert np.abs(heard - wanted).max() < 1e-4


def test_the_player_of_a_trace_plays_its_files(makers, trace, in_kernel):
    widget = makers["trace_player"]()
    for step in (1, STEPS - 1):
        step_slider(widget).value = step
        rate, heard = read_wav(the(widget, ipywidgets.Audio).value)
        assert rate == trace.sound(step)[1]
        assert np.abs(heard - trace.sound(step)[0]).max() < 1e-4


def test_a_silent_run_has_no_audio_player(pico, in_kernel):
    options = {"num_frames": 5, "num_inference_steps": 2, "progress": False, "keep": "x0"}
    records = generate(pico, "a red circle", **options).records
    widget = widgets.denoise_player(records, pico)
    assert inside(widget, ipywidgets.Audio) == []
    assert 'alt="Clean video predicted' in the(widget, Picture).value
    before = png(widget)
    step_slider(widget).value = 1
    assert png(widget) != before


def test_maps_are_the_rms_over_channels(run):
    move = run.records[2].predictor_move.video
    assert np.allclose(rms_map(move), move[0].square().mean(dim=0).sqrt(), atol=1e-7)
    assert np.sqrt((rms_map(move) ** 2).mean()) == pytest.approx(run.records[2].rms["video.predictor_move"], rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ schedule


def test_the_explorer_makes_the_schedule_that_it_says(in_kernel):
    widget = widgets.schedule_explorer(flow_schedule(8))
    shift, steps = the(widget, ipywidgets.FloatLogSlider), the(widget, ipywidgets.IntSlider, "steps")
    spacing, recipe = the(widget, ipywidgets.Dropdown, "spacing"), the(widget, ipywidgets.Dropdown, "recipe")
    assert recipe.value == "native"
    shift.value = 3.0
    assert recipe.value == "own"
    sigmas = flow_schedule(8, flow_shift=3.0).sigmas
    assert f"\u03c3 from {sigmas[0]:.4f} to {sigmas[-2]:.4f}" in texts(widget)
    recipe.value = "diffusers"
    assert (spacing.value, shift.disabled) == ("karras", True)
    steps.value = 5
    sigmas = karras_schedule(5).sigmas
    assert f"\u03c3 from {sigmas[0]:.4f} to {sigmas[-2]:.4f}" in texts(widget)
    recipe.value = "phyai"
    assert (spacing.value, shift.value, shift.disabled) == ("phyai-flow", 10.0, False)


def test_kept_curves_stay_and_are_forgotten(in_kernel):
    widget = widgets.schedule_explorer(flow_schedule(8))
    steps = the(widget, ipywidgets.IntSlider, "steps")
    keep, forget = inside(widget, ipywidgets.Button)
    for count in (3, 4, 5, 6):
        steps.value = count
        keep.click()
    steps.value = 9
    alt = the(widget, Picture).value
    assert [n for n in range(3, 10) if f"native-flow, {n} steps" in alt] == [4, 5, 6, 9]  # the oldest made room
    forget.click()
    assert [n for n in range(3, 10) if f"native-flow, {n} steps" in the(widget, Picture).value] == [9]


def test_a_schedule_that_no_slider_makes_is_kept_beside_it(in_kernel):
    odd = karras_schedule(6, rho=3.0)
    assert the(widgets.schedule_explorer(odd), Picture).value.count("karras, 6 steps") == 2
    assert the(widgets.schedule_explorer(karras_schedule(6)), Picture).value.count("karras, 6 steps") == 1


@pytest.mark.parametrize("steps", [3, 40, 41, 100])
def test_the_axes_of_the_explorer_hold_every_schedule_and_are_drawn_when_they_change(steps):
    curves = Curves({"kept": karras_schedule(12)})
    first, _ = curves.show(flow_schedule(35))
    shown, alt = curves.show(flow_schedule(steps))
    assert f"now: native-flow, {steps} steps" in alt
    for ax in curves.moving.figure.axes:
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        for curve in ax.lines:
            x, y = (np.asarray(values)[np.isfinite(curve.get_ydata())] for values in curve.get_data())
            assert left < x.min() <= x.max() < right
            assert low <= y.min() <= y.max() < high
    curves.moving.draw_background()
    assert curves.moving.png() == shown  # nothing of the old axes was left
    assert curves.show(flow_schedule(35))[0] == first


# -------------------------------------------------------------------------------------------------------------- tokens


def test_tokens_are_escaped_and_selectable(pico, in_kernel):
    widget = widgets.token_view(pico, "<b>&amp; a red circle", negative_prompt="blurry")
    assert "<b>" not in shown(widget)[0]
    assert "&lt;" in shown(widget)[0]
    listing = the(widget, ipywidgets.Select)
    ids = [text.rsplit("id ", 1)[1] for text, _ in listing.options]
    listing.value = 7
    assert f">{ids[7]}</td>" in texts(widget)
    assert ".t7 {outline" in texts(widget)
    the(widget, ipywidgets.ToggleButtons).value = "negative"
    assert listing.value == 0
    assert ".t0 {outline" in texts(widget)
    assert "blurry" in "".join(text.split(":  ")[1].split("   id")[0] for text, _ in listing.options)


def test_long_prompts_are_shown_by_the_page(pico, in_kernel):
    widget = widgets.token_view(pico, "a red circle " * 200)
    listing = the(widget, ipywidgets.Select)
    assert len(listing.options) > 2 * PAGE
    assert len(re.findall(r'class="t\d', texts(widget))) == PAGE
    listing.value = PAGE + 3
    assert f"tokens {PAGE} to {2 * PAGE - 1} of" in texts(widget)
    assert f'class="t{PAGE + 3}"' in texts(widget)


# --------------------------------------------------------------------------------------------------------------- sound


def read_wav(data):
    with wave.open(BytesIO(data)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, file.getnchannels()).T
        return file.getframerate(), samples / 32767


def test_a_wav_holds_what_was_given():
    array = np.array([[0.0, 0.5, -0.5, 2.0], [1.0, -1.0, 0.25, -2.0]], np.float32)
    rate, samples = read_wav(wav_bytes(array, 8000))
    assert rate == 8000
    assert np.abs(samples - array.clip(-1, 1)).max() < 1e-4


def test_a_closer_look_tells_the_numbers_of_that_part(in_kernel):
    array = np.concatenate([np.zeros(4000), 0.5 * np.sin(np.arange(4000))])[None]
    widget = widgets.sound_view(array, 8000)
    zoom = the(widget, ipywidgets.FloatRangeSlider)
    before = png(widget)
    zoom.value = (0.0, 0.4)
    assert "peak 0.000" in texts(widget)
    assert png(widget) != before
    zoom.value = (0.6, 0.9)
    assert "peak 0.500, rms -9.0 dB" in texts(widget)
    zoom.value = (0.7, 0.7)  # both handles on one place
    assert "0.70 s to 0.7" in texts(widget)


# -------------------------------------------------------------------------------------------------------------- canvas


def test_a_mosaic_has_each_picture_in_its_place():
    figure, panels = new_panels(1, 1, 4.0, 3.0)
    pictures = np.arange(5 * 3 * 2, dtype=float).reshape(5, 3, 2)
    mosaic = Mosaic(panels[0, 0], pictures, columns=3)
    sheet = mosaic.arranged(pictures)
    for place, picture in enumerate(pictures):
        left, top = mosaic.corner(place)
        assert np.array_equal(sheet[top : top + 3, left : left + 2], picture)
    assert sheet.count() == pictures.size  # nothing else is drawn


def test_what_moves_is_drawn_over_what_stays():
    figure, panels = new_panels(1, 1, 3.0, 2.0)
    ax = panels[0, 0]
    ax.plot([0, 1], [0, 1])
    mark = ax.axvline(0.2)
    moving = MovingFigure(figure, [mark])
    first = moving.png()
    mark.set_xdata([0.8, 0.8])
    second = moving.png()
    mark.set_xdata([0.2, 0.2])
    assert first != second
    assert moving.png() == first
    a, b = (np.asarray(Image.open(BytesIO(data)), int) for data in (first, second))
    columns = np.flatnonzero(np.abs(a - b).sum(axis=(0, 2)))
    assert columns.size <= 12  # only where the line was and is


def test_an_outline_reaches_as_far_as_the_samples():
    samples = np.random.default_rng(0).normal(size=10_001)
    samples[7000] = 9.0
    moments, values = outline(samples, most=100)
    assert len(values) <= 200
    assert (values.min(), values.max()) == (samples.min(), 9.0)
    assert (np.diff(moments) > 0).all()
    assert moments[values.argmax()] == pytest.approx(7000, abs=101)
    assert np.array_equal(outline(samples[:150], most=100)[1], samples[:150])


def test_looking_closer_moves_the_times_and_the_ticks_stay(run, in_kernel):
    panes = SoundPanes(run.output.waveform, run.output.sample_rate, "mel")

    def on_page():
        return np.round([text.get_transform().transform(text.get_position())[0] for text in panes.numbers])

    panes.show(0.1, 0.2)
    assert [text.get_text() for text in panes.numbers] == ["0.100", "0.120", "0.140", "0.160", "0.180", "0.200"]
    before = on_page()
    panes.show(0.1, 0.5)
    assert panes.numbers[-1].get_text() == "0.50"
    assert np.array_equal(on_page(), before)


# ------------------------------------------------------------------------------------------------------------ drawing


def test_what_is_drawn_in_parts_looks_like_the_whole():
    def drawn():
        figure, ((ax,),) = new_panels(1, 1, 4.0, 3.0)
        ax.set_ylim(0, 1.05)
        labels = moving_labels(ax.yaxis, (0.0, 0.5, 1.0), widest="0.00")
        (curve,) = ax.plot([0, 1, 2], [0.1, 0.9, 0.2], label="curve")
        legend = ax.legend(loc="upper right", framealpha=0.5)
        return figure, curve, labels, legend

    figure, curve, labels, legend = drawn()
    parts = MovingFigure(figure, [curve, *labels], above=[legend])
    whole = MovingFigure(drawn()[0], [])
    found, wanted = (np.asarray(Image.open(BytesIO(made.png()))).astype(int) for made in (parts, whole))
    assert np.abs(found - wanted).max() <= 24  # edges that were blended in another order
    assert (found != wanted).any(axis=-1).mean() < 0.02
    labels[1].set_text("0.77")
    assert not np.array_equal(np.asarray(Image.open(BytesIO(parts.png()))), found)


@pytest.mark.parametrize(("value", "wanted"), [(0.13, 0.15), (0.15, 0.15), (0.0081, 0.01), (1.0, 1.0), (9.9, 10.0), (0.0, 1.0)])
def test_scales_end_at_numbers_that_read_well(value, wanted):
    assert round_up(value) == pytest.approx(wanted)


def test_the_numbers_of_a_map_are_those_of_its_step(run, in_kernel):
    maps = np.stack([rms_map(record.predictor_move.video) for record in run.records])
    row = StepMaps(new_panels(1, 1, 8.0, 1.0)[1][0, 0], maps)
    row.show(2, whole_run=False)
    assert [text.get_text() for text in row.numbers] == ["0", f"{maps[2].max() / 2:.2g}", f"{maps[2].max():.2g}"]
    assert row.tiles.image.get_array().max() == pytest.approx(1)
    row.show(2, whole_run=True)
    assert row.numbers[-1].get_text() == f"{maps.max():.2g}"
    assert row.tiles.image.get_array().max() == pytest.approx(maps[2].max() / maps.max())


def test_the_lens_tells_the_numbers_of_layer_head_step_and_word(looked, run, in_kernel):
    widget = widgets.attention_lens(looked, run.output.frames, seconds=9 / 16)
    choices = {c.description: c for c in inside(widget, ipywidgets.Dropdown)}
    choices["layer"].value, choices["head"].value, choices["word"].value = "gen.layers.4", 3, 4
    the(widget, ipywidgets.IntSlider, "step").value = 1
    (value,) = [a.value for a in looked if (a.name, a.at.step) == ("gen.layers.4", 3)]
    share = float(value.over_frames()[3, :, 4].mean())
    assert f"layer 4, head 3, step 3; video gives {float(value.over_frames()[3].sum(-1).mean()):.0%}" in texts(widget)
    assert f"{share:.2%} to \u201cred\u201d" in texts(widget)
    before = png(widget)
    choices["head"].value = -1
    assert "mean of heads" in texts(widget)
    assert png(widget) != before


def test_a_lens_needs_the_attention_of_one_prompt(looked, run):
    for wrong in ([], [*looked, looked[0]]):
        with pytest.raises(ValueError, match="expected those of one run"):
            widgets.attention_lens(wrong, run.output.frames)
