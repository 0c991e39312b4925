"""What a notebook shows for a record: true numbers, every field, escaped text, one picture; and that looking changes nothing."""

import dataclasses
import re
import time
from base64 import b64decode
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from torch import Tensor

import cosmos3_lab
from cosmos3_lab import (
    Cosmos3GenerationOutput,
    Cosmos3TokenizedPrompt,
    Guidance,
    Latents,
    Schedule,
    flow_schedule,
    generate,
    load_cosmos3,
    prepare_denoise,
)
from cosmos3_lab.figure_style import MOST_FRAMES, pick_evenly
from cosmos3_lab.repr_html import LONGEST_TEXT, number_text, statistics, tensor_table, text_block
from cosmos3_lab.repr_pictures import (
    cache_picture,
    clip_picture,
    count_text,
    false_colour_basis,
    false_colours,
    latents_picture,
    schedule_picture,
)
from cosmos3_lab.reprs import PAGES, mimebundle
from cosmos3_lab.showing import Shown

NASTY = '<script>alert("1")</script> & <b>bold</b>'
VOID = {"img", "br"}


@pytest.fixture(scope="module")
def pico():
    with load_cosmos3("pico", device="cpu") as models:
        yield models


@pytest.fixture(scope="module")
def records(pico):
    """At least one of every class, of runs with and without sound, guidance and tensors."""
    size = {"num_frames": 9, "height": 48, "width": 64}
    run = generate(pico, NASTY, with_sound=True, num_inference_steps=3, keep="full", progress=False, **size)
    silent = generate(pico, "a ball", num_frames=1, num_inference_steps=2, guidance_scale=1.0, progress=False)
    scales = Guidance([1.0, 3.0, 1.0], sound_scale=2.0, rescale=0.7)
    stepped = generate(pico, "a ball", with_sound=True, num_inference_steps=3, guidance_scale=scales, progress=False, **size)
    early = generate(pico, "a ball", with_sound=True, num_inference_steps=3, should_stop=lambda r: True, progress=False, **size)
    step = run.records[1]
    return {
        "models": pico,
        "prompt": Cosmos3TokenizedPrompt(run.inputs.request.text_ids, run.inputs.request.text_mask, NASTY),
        "request": run.inputs.request,
        "request with noise": dataclasses.replace(run.inputs.request, noise=run.latents),
        "silent request": silent.inputs.request,
        "latents": run.latents,
        "bfloat16 latents": run.latents.to(torch.bfloat16),
        "silent latents": silent.latents,
        "two samples": Latents(torch.randn(2, 4, 3, 5, 6), torch.randn(2, 7, 3)),
        "broken latents": Latents(torch.full((1, 4, 3, 5, 6), torch.nan), torch.full((1, 7, 3), torch.inf)),
        "one channel": Latents(torch.zeros(1, 1, 1, 1, 1)),
        "schedule": run.inputs.schedule,
        "schedule of one step": Schedule(torch.tensor([0.5, 0.0]), torch.tensor([500])),
        "condition": run.inputs.cond,
        "inputs": run.inputs,
        "inputs without guidance": silent.inputs,
        "first state": prepare_denoise(pico, run.inputs.request)[1],
        "state": early.state,
        "silent state": silent.state,
        "solver": early.state.video,
        "velocity": step.velocity,
        "velocity without guidance": dataclasses.replace(step.velocity, uncond=None),
        "first step": run.records[0],
        "step": step,
        "step with x0": step.keep("x0"),
        "step in numbers": step.keep("summary"),
        "silent step": silent.records[0],
        "output": run.output,
        "still": silent.output,
        "generation": run,
        "stopped generation": early,
        "silent generation": silent,
        "inputs with guidance in steps": stepped.inputs,
        "request with guidance in steps": stepped.inputs.request,
        "run with guidance in steps": stepped,
    }


NAMES = [
    "models", "prompt", "request", "request with noise", "silent request", "latents", "bfloat16 latents", "silent latents",
    "two samples", "broken latents", "one channel", "schedule", "schedule of one step", "condition", "inputs",
    "inputs without guidance", "first state", "state", "silent state", "solver", "velocity", "velocity without guidance",
    "first step", "step", "step with x0", "step in numbers", "silent step", "output", "still", "generation",
    "stopped generation", "silent generation", "inputs with guidance in steps", "request with guidance in steps",
    "run with guidance in steps",
]  # fmt: skip
every_record = pytest.mark.parametrize("name", NAMES)
WITHOUT_PICTURE = {
    "prompt",
    "request",
    "request with guidance in steps",
    "silent request",
    "solver",
    "step in numbers",
    "silent step",
}


@pytest.fixture(scope="module")
def bundles(records):
    """Every record's MIME bundle, drawn once."""
    return {name: record._repr_mimebundle_() for name, record in records.items()}


class Reader(HTMLParser):
    """Cells of all tables, texts, pictures; complains where tags are not closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.images, self.styles, self.rows = [], "", [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.styles.append(dict(attrs).get("style", ""))
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def row(self, name):
        (found,) = (row for row in self.rows if row[0] == name)
        return found[1:]


def page(record):
    return Reader(record._repr_mimebundle_()["text/html"])


# -------------------------------------------------------------------------------------------------------- every record


def test_every_class_is_among_the_records(records):
    assert list(records) == NAMES
    assert {type(record) for record in records.values()} == set(PAGES)


def test_every_class_that_shows_itself_has_a_page():
    assert set(Shown.__subclasses__()) == set(PAGES)
    assert all(getattr(cosmos3_lab, made.__name__) is made for made in PAGES)


@every_record
def test_printed_it_stays_its_repr(name, records):
    shown, _ = DisplayFormatter().format(records[name])
    assert shown["text/plain"] == repr(records[name])
    assert shown["text/html"].startswith("<div")
    assert set(shown) == {"text/plain", "text/html"}


@every_record
def test_html_is_well_formed_and_names_every_field(name, records, bundles):
    text = Reader(bundles[name]["text/html"]).text
    for field in dataclasses.fields(records[name]):
        assert field.name.startswith("_") or field.name in text, field.name


@every_record
def test_a_picture_has_words_and_fits_a_notebook(name, bundles):
    images = Reader(bundles[name]["text/html"]).images
    assert len(images) == (0 if name in WITHOUT_PICTURE else 1)
    for image in images:
        assert len(image["alt"]) > 15
        assert int(image["width"]) <= 900
        assert b64decode(image["src"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")


@every_record
def test_text_takes_the_colour_of_the_page(name, bundles):
    for style in Reader(bundles[name]["text/html"]).styles:
        assert "background" not in style
        assert not re.search(r"#[0-9a-fA-F]{3}|rgb|(^|[^-\w])color:", style)


@every_record
def test_no_text_of_the_user_becomes_html(name, bundles):
    html = bundles[name]["text/html"]
    assert "<script" not in html
    assert "<b>bold" not in html


def tensors(value):
    """Every tensor and array below a record."""
    if isinstance(value, Tensor | np.ndarray):
        return [value]
    if dataclasses.is_dataclass(value):
        return [t for f in dataclasses.fields(value) for t in tensors(getattr(value, f.name))]
    return [t for part in value for t in tensors(part)] if isinstance(value, tuple) else []


@every_record
def test_looking_changes_nothing(name, records, bundles):
    record = records[name]
    before, dice = [np.array(torch.as_tensor(t).float()) for t in tensors(record)], torch.get_rng_state()
    again = mimebundle(record)
    after = [np.array(torch.as_tensor(t).float()) for t in tensors(record)]
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), dice)
    assert again == bundles[name]


@every_record
def test_it_is_quick(name, records):
    def seconds():
        begin = time.process_time()
        mimebundle(records[name])
        return time.process_time() - begin

    assert any(seconds() < 0.3 for _ in range(5))


def test_a_record_made_from_another_shows_itself_too():
    class Mine(Latents):
        pass

    assert "Latents" in mimebundle(Mine(torch.zeros(1, 1, 1, 2, 2)))["text/html"]


# ------------------------------------------------------------------------------------------------------------ numbers


def test_statistics_are_those_of_the_values():
    ramp = torch.tensor([0.0, 1.0, 2.0, 5.0])
    asked = [ramp, ramp.bfloat16(), np.array([3, 3], np.uint8), torch.tensor([[7]])]
    assert statistics(asked)[:2] == [pytest.approx((2, np.sqrt(3.5), 0, 5))] * 2
    assert statistics(asked)[2:] == [(3, 0, 3, 3), (7, 0, 7, 7)]


def test_a_row_has_shape_dtype_and_statistics():
    values = torch.tensor([[-1.5, 0.25], [0.5, 1.75]], dtype=torch.bfloat16)
    row = Reader(tensor_table([("x", values, "a thing")])).row("x")
    assert row == [
        "[2, 2]",
        "bfloat16",
        "0.2500",
        number_text(float(values.float().std(correction=0))),
        "\u22121.500",
        "1.750",
        "a thing",
    ]


def test_numbers_that_are_not_finite_are_shown_as_such(records):
    assert page(records["broken latents"]).row("video")[2:6] == ["nan"] * 4
    assert page(records["broken latents"]).row("sound")[4:6] == ["inf"] * 2


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0"), (999.0, "999"), (-0.066221, "\u22120.06622"), (1.11, "1.110"), (2048.6, "2049"), (1e-9, "1.000e\u221209")],
)
def test_numbers_are_short(number, text):
    assert number_text(number) == text


def test_a_step_shows_its_root_mean_squares(records):
    step = records["step"]
    for name in ("sample", "velocity_cond", "guidance", "x0", "corrector_move"):
        shown = page(step).row(name)[:2]
        assert shown == [number_text(step.rms[f"{modality}.{name}"]) for modality in ("video", "sound")]
    assert page(records["silent step"]).row("sample")[:1] == [number_text(records["silent step"].rms["video.sample"])]


def test_a_step_says_what_it_holds(records):
    assert "12 tensors that it holds" in page(records["step"]).text
    assert "10 tensors that it holds" in page(records["first step"]).text  # there is nothing to correct at the first
    dropped = "None here: velocity, x0, corrector_move, predictor_move; generate(..., keep='full') keeps them"
    assert dropped in page(records["step in numbers"]).text
    assert "None here: corrector_move" in page(records["first step"]).text
    assert "keep=" not in page(records["first step"]).text


def test_a_generation_says_where_it_stopped(records):
    assert "Generation \xa0stopped before step 1 of 3" in page(records["stopped generation"]).text
    assert page(records["stopped generation"]).row("output")[0] == "None"
    assert page(records["generation"]).row("stopped")[0] == "False"


def test_closed_models_say_so(tiny_folder):
    models = load_cosmos3(tiny_folder, device="cpu")
    before = page(models).row("transformer.und")
    models.close()
    assert "closed" in page(models).text
    assert page(models).row("transformer.und") == before


# --------------------------------------------------------------------------------------------------------------- text


def test_a_prompt_is_shown_as_it_is(records):
    assert NASTY in page(records["prompt"]).text
    assert NASTY in page(records["generation"]).text


def test_a_very_long_text_is_cut():
    text = "x" * (LONGEST_TEXT + 17)
    shown = Reader(text_block(text, name="text")).text
    assert shown.count("x") == LONGEST_TEXT + 1  # of "text"
    assert "17 more characters" in shown


def test_ids_are_named_from_both_ends():
    ids = torch.arange(100, 120)[None]
    prompt = Cosmos3TokenizedPrompt(ids, torch.ones_like(ids), "a")
    assert page(prompt).row("text_ids")[1] == "token ids: 100, 101, 102, 103, 104 ... 117, 118, 119"
    few = Cosmos3TokenizedPrompt(ids[:, :3], torch.ones_like(ids[:, :3]), "a")
    assert page(few).row("text_ids")[1] == "token ids: 100, 101, 102"


@pytest.mark.parametrize(
    ("number", "text"), [(512, "512"), (310_496, "310,496"), (6_490_000, "6.49 million"), (15e9, "15 billion")]
)
def test_counts_are_words(number, text):
    assert count_text(int(number)) == text


# ----------------------------------------------------------------------------------------------------------- pictures


def images(ax):
    return [np.asarray(image.get_array()) for image in ax.images]


def test_false_colours_tell_apart_what_differs():
    left, right = torch.randn(5), torch.randn(5)
    video = torch.stack([left, right], -1)[None, :, None, None, :].expand(1, 5, 2, 3, 2)  # two columns in all frames
    frames = np.moveaxis(video[0].numpy(), 0, -1)
    colours = false_colours(frames, false_colour_basis(frames))
    assert colours.shape == (2, 3, 2, 3)
    assert np.ptp(colours[:, :, 0], axis=(0, 1)).max() < 1e-6
    assert np.abs(colours[0, 0, 0] - colours[0, 0, 1]).max() == pytest.approx(1)
    assert 0 <= colours.min() <= colours.max() <= 1


def test_a_strip_shows_frames_of_both_ends_in_one_basis():
    video = torch.randn(1, 4, 30, 3, 5)
    figure = latents_picture({"sample": Latents(video), "x0": Latents(2 * video)})
    sample, x0 = figure.axes
    picked = np.moveaxis(video[0, :, pick_evenly(30, MOST_FRAMES)].numpy(), 0, -1)
    basis = false_colour_basis(2 * picked)
    assert np.allclose(images(sample), false_colours(picked, basis))
    assert np.allclose(images(x0), false_colours(2 * picked, basis))
    assert "9 of 30 latent frames" in figure.texts[0].get_text()


def test_sound_latents_run_to_the_right():
    sound = torch.randn(1, 7, 3)
    figure = latents_picture({"x0": Latents(torch.randn(1, 4, 1, 2, 2), sound)})
    assert np.array_equal(images(figure.axes[1])[0], sound[0].T)


def test_only_a_few_frames_are_copied(monkeypatch):
    copied, cpu = [], Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: copied.append(self.numel()) or cpu(self))
    video = torch.zeros(1, 8, 90, 4, 6)
    page(Latents(video))
    assert copied == [video.numel() // 90 * MOST_FRAMES]


def test_a_clip_shows_the_frames_that_are_on_screen(records):
    output = records["output"]
    figure = clip_picture(output)
    shown = images(figure.axes[0])
    assert all(np.array_equal(image, output.frames[i]) for i, image in enumerate(shown))  # 9 frames, 9 places
    assert figure.axes[1].get_xlim() == pytest.approx((0, 9 / output.fps))
    long = dataclasses.replace(output, frames=np.arange(90, dtype=np.uint8)[:, None, None, None].repeat(3, -1), waveform=None)
    assert [int(image[0, 0, 0]) for image in images(clip_picture(long).axes[0])] == [5, 15, 25, 35, 45, 55, 65, 75, 85]


def test_of_a_large_clip_some_frames_are_measured():
    frames = np.zeros((9, 720, 1280, 3), np.uint8)
    frames[::7] = 4  # the first and the eighth
    shown = page(Cosmos3GenerationOutput(frames, 24.0))
    row = shown.row("frames")
    assert row[0] == "[9, 720, 1280, 3]"
    assert row[2:6] == ["4", "0", "4", "4"]  # the others are not looked at
    assert row[-1].endswith("(statistics of 2 frames)")


def test_a_schedule_is_drawn_as_it_is():
    schedule = flow_schedule(5)
    level, clock = schedule_picture(schedule).axes
    assert np.array_equal(level.lines[0].get_ydata(), schedule.sigmas)
    assert np.isfinite(clock.lines[0].get_ydata()).all()
    assert len(clock.lines[0].get_ydata()) == 5


def test_keys_and_values_are_measured_layer_by_layer(records):
    cached = records["condition"].cached_kv
    keys, values = cache_picture(cached).axes[0].lines
    assert keys.get_ydata()[3] == pytest.approx(float(cached[3].k.square().mean().sqrt()), rel=0.2)  # of some tokens
    assert len(values.get_ydata()) == len(cached)
