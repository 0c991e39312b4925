"""Whatever is given as prompt, size, request or schedule: a right result, or one clear ValueError. Inputs drawn by hypothesis.

The type checks that pytest puts around every function (jaxtyping, beartype) are off here: users do not have them.
"""

import json
import math

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cosmos3_lab import (
    PRESETS,
    Cosmos3Processor,
    Cosmos3T2VRequest,
    cosmos3_generation_caption,
    effective_num_frames,
    flow_schedule,
    get_preset,
    init_latents,
    karras_schedule,
    make_request,
    pixel_to_latent_shape,
    schedule_from_config,
    sound_latent_frames,
    token_table,
)
from cosmos3_lab.presets import resolve_schedule
from cosmos3_lab.settings import PICO

pytestmark = pytest.mark.usefixtures("_as_a_user_has_it")
quick = settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def _as_a_user_has_it():
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def result_or_error(call):
    """What the call gives, or None where it raises a ValueError with a clear message; everything else fails the test."""
    try:
        return call()
    except ValueError as error:
        message = str(error)
        kind = type(error).__name__
    assert kind in ("ValueError", "CheckpointError"), message  # no UnicodeError or JSONDecodeError
    assert 10 < len(message) < 1000, message
    assert "\n" not in message
    return None


# Numbers that are none, that are nearly some, and that only look like some.
ODD_NUMBERS = st.one_of(
    st.sampled_from([None, True, False, "24", "", b"1", [], [1], {}, (), object(), 1j, 10**400, -(10**400), 2**63, 2**64]),
    st.sampled_from([np.int64(7), np.int32(-1), np.uint8(3), np.float32(24), np.float64("nan"), np.bool_(True), np.array(5)]),
    st.sampled_from(
        [np.array([1, 2]), np.array([]), torch.tensor(4), torch.tensor(2.5), torch.tensor([1, 2]), torch.tensor(True)]
    ),
    st.floats(),
    st.integers(),
    st.integers(-5, 300),
)
# Text of all of Unicode with halves of surrogate pairs, control characters, JSON, and long runs of one character.
TEXTS = st.one_of(
    st.text(st.characters(codec=None), max_size=60),
    st.text(st.sampled_from('\x00\x07\x1b\n\r\t\u202e\u2028\ud800\udfff\ufeff.{}[]",:\\ <|im_end|>'), max_size=40),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
        max_leaves=12,
    ).map(json.dumps),
    st.builds(lambda c, n: c * n, st.sampled_from(["a", ".", " ", "é", "🎈", '{"a":', "[", "1"]), st.sampled_from([100, 3000])),
)
NOT_TEXT = st.sampled_from([None, 5, 1.5, b"bytes", ["a"], {"a": 1}, object(), True])


@pytest.fixture(scope="module")
def processor():
    return Cosmos3Processor(PICO / "text_tokenizer", num_frames=33, height=96, width=96, fps=16)


# ------------------------------------------------------------------------------------------------------------ prompts


@quick
@given(TEXTS | NOT_TEXT, st.sampled_from(["inject", "sentences", "none", "Inject", None, 3]))
@example('{"a":' * 400 + "1" + "}" * 400, "inject")
@example('{"a":' * 990 + "1" + "}" * 990, "inject")
@example('{"a": 1e999, "b": NaN, "c": "\\ud800"}', "inject")
def test_captions(prompt, metadata):
    clip = {"num_frames": 33, "height": 96, "width": 64, "fps": 16.0}
    caption = result_or_error(lambda: cosmos3_generation_caption(prompt, **clip, metadata=metadata))
    if caption is None:
        good = isinstance(prompt, str) and metadata in ("inject", "sentences", "none")
        assert not good or any("\ud800" <= c <= "\udfff" for c in prompt) or prompt.count("{") > 300
        return
    if metadata == "none":
        assert caption == prompt
    elif metadata == "inject" and caption.startswith("{") and caption.endswith("}"):
        given_fields, made = json.loads(prompt), json.loads(caption)
        assert made["resolution"] == {"H": 96, "W": 64}
        assert made["duration"] == "2s"
        assert list(made)[: len(given_fields)] == list(given_fields)  # keys keep their place
    else:
        assert caption.endswith("of 16 FPS. This video is of 96x64 resolution.")
        assert prompt.strip().rstrip(".").strip() in caption


@quick
@given(TEXTS | NOT_TEXT)
@example("a" * 30_000)
@example("a" * 100_001)
def test_tokens(processor, prompt):
    made = result_or_error(lambda: processor.tokenize(prompt))
    if made is None:
        bad = not isinstance(prompt, str) or not prompt.strip() or len(prompt) > 100_000
        assert bad or any("\ud800" <= c <= "\udfff" for c in prompt) or prompt.count("{") > 300
        return
    ids = made.text_ids[0].tolist()
    assert ids[-2:] == list(processor.boundary_ids)
    assert 0 <= min(ids) <= max(ids) < 768  # pico's vocab_size
    assert made.text_mask.shape == made.text_ids.shape
    if len(prompt) < 200:
        rows = token_table(processor, prompt)
        assert [row.id for row in rows] == ids
        chat = f"<|im_start|>user\n{made.text}<|im_end|>\n<|im_start|>assistant\n<|im_end|><|vision_start|>"
        assert "".join(row.string for row in rows) == chat


@quick
@given(TEXTS | NOT_TEXT)
def test_negative_tokens(processor, prompt):
    made = result_or_error(lambda: processor.tokenize_negative(prompt))
    if made is None:
        assert not isinstance(prompt, str) or any("\ud800" <= c <= "\udfff" for c in prompt)
    elif prompt is not None:
        assert made.text.startswith(prompt.strip().rstrip(".")) or not prompt.strip()


@settings(quick, max_examples=20)
@given(ODD_NUMBERS, ODD_NUMBERS, ODD_NUMBERS, ODD_NUMBERS, TEXTS | NOT_TEXT)
def test_processors(num_frames, height, width, fps, system):
    clip = {"num_frames": num_frames, "height": height, "width": width, "fps": fps, "system_prompt": system}
    for name, value in clip.items():  # one odd argument at a time, so that each is really reached
        made = (
            result_or_error(lambda changed={name: value}: Cosmos3Processor(PICO / "text_tokenizer", **changed))
            if is_odd(value)
            else None
        )
        assert made is None or "Cosmos3Processor(" in repr(made)


def is_odd(value):
    """All but plain finite numbers, of which a few are enough: a processor takes a while to make."""
    return not isinstance(value, int | float) or isinstance(value, bool) or value != value


# -------------------------------------------------------------------------------------------------- sizes and requests


@quick
@given(ODD_NUMBERS)
def test_frames(num_frames):
    made = result_or_error(lambda: effective_num_frames(num_frames))
    assert made is None or (type(made) is int and made % 4 == 1 and 0 <= int(num_frames) - made < 4)


@quick
@given(ODD_NUMBERS, ODD_NUMBERS, ODD_NUMBERS)
def test_sizes(num_frames, height, width):
    for arguments in ((num_frames, 96, 160), (5, height, 160), (5, 96, width)):
        made = result_or_error(lambda arguments=arguments: pixel_to_latent_shape(*arguments))
        if made is not None:
            t, h, w = made
            assert [type(n) for n in made] == [int] * 3
            assert (h * 16, w * 16) == tuple(int(n) for n in arguments[1:])
            assert 4 * (t - 1) + 1 <= int(arguments[0]) < 4 * t + 1


@quick
@given(ODD_NUMBERS, ODD_NUMBERS)
def test_sound_frames(num_frames, fps):
    for frames, rate in ((num_frames, 24.0), (33, fps)):
        made = result_or_error(lambda frames=frames, rate=rate: sound_latent_frames(frames, rate))
        if made is not None and int(frames) < 10**6:
            assert made * 1920 >= int(int(frames) / float(rate) * 48000) > (made - 1) * 1920


REQUEST_FIELDS = ("fps", "num_inference_steps", "guidance_scale", "seed", "sound_frames", "sound_dim", "sound_latent_fps")


@quick
@given(st.sampled_from(REQUEST_FIELDS), ODD_NUMBERS)
@example("guidance_scale", 10**400)
@example("seed", np.int64(7))
def test_requests(field, value):
    ids = torch.ones(1, 3, dtype=torch.int64)
    made = result_or_error(lambda: Cosmos3T2VRequest(ids, ids, ids, ids, (2, 3, 4), **{field: value}))
    if made is not None and value is not None:
        kept = getattr(made, field)
        assert math.isfinite(kept)
        assert kept == value
        assert not isinstance(value, bool | np.bool_ | str)
        assert "Cosmos3T2VRequest(" in repr(made)


@quick
@given(st.one_of(ODD_NUMBERS, st.lists(ODD_NUMBERS, max_size=4), st.tuples(ODD_NUMBERS, ODD_NUMBERS, ODD_NUMBERS)))
@example((2**20, 2**20, 2**20))
@example([np.int64(2), 3, 4])
def test_latent_grids(shape):
    ids = torch.ones(1, 3, dtype=torch.int64)
    made = result_or_error(lambda: Cosmos3T2VRequest(ids, ids, ids, ids, shape))
    assert made is None or (len(made.video_shape) == 3 and all(type(n) is int and n >= 1 for n in made.video_shape))


@quick
@given(st.sampled_from(["num_frames", "height", "width", "fps", "num_inference_steps", "guidance_scale", "seed"]), ODD_NUMBERS)
def test_made_requests(processor, field, value):
    cond = uncond = processor.tokenize("a red circle")
    sizes = {"num_frames": 5, "height": 96, "width": 96, "fps": 16.0, "with_sound": True}
    made = result_or_error(lambda: make_request(cond, uncond, **sizes | {field: value}))
    assert made is None or made.sound_frames >= 1


@quick
@given(ODD_NUMBERS, st.sampled_from(["numpy", "torch", "Numpy", None, 1]))
def test_noise(seed, source):
    made = result_or_error(lambda: init_latents((1, 2, 2), channels=3, seed=seed, noise_source=source))
    if made is not None:
        again = init_latents((1, 2, 2), channels=3, seed=int(seed), noise_source=source)
        assert made.video.equal(again.video)
        assert made.video.isfinite().all()


# ---------------------------------------------------------------------------------------------------------- schedules


def check_schedule(made, n):
    assert made.sigmas.dtype == torch.float32
    assert made.num_steps == int(n)
    assert 0 < float(made.sigmas[0]) < 1
    assert float(made.sigmas[-1]) == 0
    assert (made.sigmas.diff() < 0).all()
    assert ((made.timesteps >= 0) & (made.timesteps < 1000)).all()


@quick
@given(
    ODD_NUMBERS | st.integers(1, 1000),
    ODD_NUMBERS | st.floats(1e-6, 1e6),
    st.sampled_from(["native-flow", "phyai-flow", "diffusers-flow", "x", None]),
)
@example(5, 1.7e308, "native-flow")
@example(5, 5e-324, "diffusers-flow")
def test_flow_schedules(n, shift, variant):
    for steps, s in ((n, 5.0), (7, shift)):
        made = result_or_error(lambda steps=steps, s=s: flow_schedule(steps, flow_shift=s, variant=variant))
        if made is not None:
            check_schedule(made, steps)


@quick
@given(ODD_NUMBERS, ODD_NUMBERS | st.floats(1e-300, 1e13), ODD_NUMBERS | st.floats(1e-3, 1e13), ODD_NUMBERS | st.floats(0.4, 101))
@example(5, 0.147, 1e308, 0.5)
@example(5, 5e-324, 200.0, 0.5)
@example(5, 0.147, 200.0, 0)
def test_karras_schedules(n, low, high, rho):
    standard = {"n": 7, "sigma_min": 0.147, "sigma_max": 200.0, "rho": 7.0}
    for name, value in (("n", n), ("sigma_min", low), ("sigma_max", high), ("rho", rho)):
        options = standard | {name: value}
        made = result_or_error(lambda options=options: karras_schedule(**options))
        if made is not None:
            check_schedule(made, options["n"])


JSON_VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({}) | st.just([1])
)
SCHEDULER_KEYS = [
    "prediction_type",
    "use_flow_sigmas",
    "solver_order",
    "sigma_min",
    "sigma_max",
    "flow_shift",
    "use_karras_sigmas",
    "x",
]


@quick
@given(st.dictionaries(st.sampled_from(SCHEDULER_KEYS), JSON_VALUES, max_size=4))
@example({"use_karras_sigmas": True, "sigma_min": 1e-9, "sigma_max": 2.0**31})
def test_scheduler_files(config):
    made = result_or_error(lambda: schedule_from_config(config, 9))
    if made is not None:
        check_schedule(made, 9)


@quick
@given(
    ODD_NUMBERS,
    ODD_NUMBERS,
    st.sampled_from([True, False, None, "preset", "yes", 3, []]),
    st.sampled_from([None, "karras", "auto", "x", 5]),
)
def test_ways_to_ask_for_a_schedule(n, shift, karras, name):
    for steps, s in ((n, None), (5, shift)):
        options = {"flow_shift": s, "use_karras_sigmas": karras, "schedule": name, "scheduler_config": {}}
        made = result_or_error(lambda steps=steps, options=options: resolve_schedule(steps, preset=PRESETS["native"], **options))
        if made is not None:
            check_schedule(made, steps)


@quick
@given(ODD_NUMBERS | TEXTS)
def test_names_of_presets(name):
    made = result_or_error(lambda: get_preset(name))
    assert (made is not None) == (isinstance(name, str) and name in PRESETS)
