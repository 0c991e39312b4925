"""Hooks: what they record is what the modules gave, they change nothing, they stay small, and they always come off."""

import gc
import re
from dataclasses import replace

import pytest
import torch

from cosmos3_lab import denoise, load_cosmos3, predict_velocity, prepare_denoise, prepare_request
from cosmos3_lab.positions import TokenLayout
from cosmos3_lab.probe import activation_names, patch, record
from cosmos3_lab.transformer import embed_gen_tokens, run_gen_layers

STEPS = 3
SIZE = {
    "num_frames": 9,
    "height": 48,
    "width": 80,
    "with_sound": True,
    "num_inference_steps": STEPS,
    "guidance_scale": 3.0,
    "negative_prompt": "noise",
}


@pytest.fixture(scope="module")
def pico():
    with load_cosmos3("pico", device="cpu") as models:
        yield models


@pytest.fixture
def prepared(tiny):
    return prepare_denoise(tiny, prepare_request(tiny, "a ball", **SIZE))


def hooks(transformer):
    """All hooks that are on any module."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in transformer.modules())


def finish(transformer, inputs, state):
    for after, _ in denoise(transformer, inputs, state):
        state = after
    return state.latents


# ----------------------------------------------------------------------------------------------------------------- names


def test_names_are_those_of_the_checkpoint_and_have_the_shapes_of_a_run(tiny, prepared):
    inputs, state = prepared
    names = activation_names(tiny.transformer, inputs.cond.layout)
    weights = {name.rpartition(".")[0] for name, _ in tiny.transformer.named_parameters()}
    assert "gen.layers.1.self_attn.add_q_proj" in weights & set(names)
    patterns = ["gen.*", "gen.layers.*", "gen.layers.*.*", "gen.layers.*.*.*"]
    with record(tiny.transformer, patterns, reduce=lambda x: torch.tensor(x.shape)) as got:
        predict_velocity(tiny.transformer, state.latents, 500, inputs.cond)
    seen = {a.name: tuple(a.value.tolist()) for a in got.activations}
    assert seen == {name: shape for name, shape in names.items() if name.startswith("gen.")}
    assert names["und.layers.2.self_attn.to_k"] == (inputs.cond.layout.s_text, 2 * 16)


def test_names_need_no_weights_and_no_sound(tiny):
    silent = activation_names(tiny.transformer, TokenLayout(3, (2, 4, 4), 2, 0))
    assert "gen.audio_proj_in" not in silent
    assert silent["gen.layers.0"] == (8, 64)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("gen.layers.1.attn.add_q_proj", "gen.layers.1.self_attn.add_q_proj"),
        ("layers.1.self_attn.add_q_proj", "gen.layers.1.self_attn.add_q_proj"),
        ("gen.layers.3", "gen.layers.2"),
        ("gen.layers.1.self_attn", "gen.layers.1.self_attn.norm_added_q"),  # never called as a module
        ("gen.layer.*", "activation_names"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(tiny, wrong, near):
    before = hooks(tiny.transformer)
    for probe in (record(tiny.transformer, ["gen.layers.0", wrong]), patch(tiny.transformer, wrong, torch.neg)):
        with pytest.raises(ValueError, match="got the name") as caught, probe:
            pass
        assert wrong in str(caught.value)
        assert near.rpartition(".")[0] in str(caught.value)
    assert hooks(tiny.transformer) == before


# ---------------------------------------------------------------------------------------------------------------- record


def test_recording_leaves_results_bit_equal(pico):
    inputs, state = prepare_denoise(
        pico, prepare_request(pico, "a red ball bounces", num_frames=9, with_sound=True, num_inference_steps=2)
    )
    alone = finish(pico.transformer, inputs, state)
    names = [name for name in activation_names(pico.transformer) if name.startswith("gen.")]
    with record(pico.transformer, names, inputs=inputs), record(pico.transformer, ["gen.layers.*"], reduce="full") as full:
        watched = finish(pico.transformer, inputs, state)
    assert torch.equal(alone.video, watched.video)
    assert torch.equal(alone.sound, watched.sound)
    assert len(full) == 2 * 2 * 8


def test_every_pass_knows_its_step_branch_and_timestep(tiny, prepared):
    inputs, state = prepared
    with record(tiny.transformer, ["gen.proj_in", "gen.layers.1", "gen.proj_out"], inputs=inputs) as seen:
        finish(tiny.transformer, inputs, state)
    for name in ("gen.proj_in", "gen.layers.1", "gen.proj_out"):
        passes = [(a.at.step, a.at.branch, a.at.timestep) for a in seen.select(name)]
        assert passes == [(i, b, int(inputs.schedule.timesteps[i])) for i in range(STEPS) for b in ("uncond", "cond")]
    assert seen.stack("gen.layers.1", branch="cond").shape == (STEPS,)
    assert [a.at.branch for a in seen.select("gen.layers.*", step=2)] == ["uncond", "cond"]


def test_steps_with_one_timestep_are_told_apart(tiny):
    inputs, state = prepare_denoise(tiny, prepare_request(tiny, "a ball", **SIZE | {"num_inference_steps": 5}))
    told = torch.tensor([999, 999, 700, 700, 20])  # as at the ends of a schedule of many steps
    inputs = replace(inputs, schedule=replace(inputs.schedule, timesteps=told))
    with record(tiny.transformer, ["gen.layers.0"], inputs=inputs) as seen:
        finish(tiny.transformer, inputs, state)
    assert [a.at.step for a in seen.activations] == [step for step in range(5) for _ in range(2)]


def test_reductions_are_what_they_say(tiny, prepared):
    inputs, state = prepared
    cond, layout = inputs.cond, inputs.cond.layout
    out = run_gen_layers(tiny.transformer, embed_gen_tokens(tiny.transformer, state.latents, 500), cond, stop=2)
    frames = out[: layout.n_video].unflatten(0, (layout.video_grid[0], -1))
    want = {
        "rms": out.square().mean().sqrt(),
        "token_rms": out.square().mean(-1).sqrt(),
        "frame_rms": frames.square().mean((1, 2)).sqrt(),
        "mean": out.mean(0),
        "frame_mean": frames.mean(1),
        "full": out,
    }
    for reduce, value in want.items():
        with record(tiny.transformer, ["gen.layers.1"], reduce=reduce, inputs=inputs) as seen:
            predict_velocity(tiny.transformer, state.latents, 500, cond)
        assert torch.allclose(seen.activations[0].value, value, atol=1e-6), reduce


def test_only_what_was_asked_for_is_kept(tiny, prepared):
    inputs, state = prepared
    with record(tiny.transformer, ["gen.layers.*"], inputs=inputs, branch="uncond", steps=[1]) as seen:
        finish(tiny.transformer, inputs, state)
    assert {(a.at.step, a.at.branch) for a in seen.activations} == {(1, "uncond")}
    assert len(seen) == 3


def test_a_view_does_not_keep_what_it_was_taken_from(tiny, prepared):
    inputs, state = prepared
    with record(tiny.transformer, ["gen.layers.0.mlp_moe_gen"], reduce=lambda x: x[0, :3]) as seen:
        predict_velocity(tiny.transformer, state.latents, 500, inputs.cond)
    assert seen.nbytes == 12
    assert seen.activations[0].value.untyped_storage().nbytes() == 12


def test_summaries_stay_small_and_no_activation_stays_alive(tiny, prepared):
    """Everything of 3 steps and two branches takes less than one hidden state, and nothing of that size is left after a pass."""
    inputs, state = prepared
    names = [name for name in activation_names(tiny.transformer) if name.startswith("gen.")]
    hidden = inputs.cond.layout.s_gen * 64 * 4
    with record(tiny.transformer, names, inputs=inputs) as seen:
        finish(tiny.transformer, inputs, state)
        gc.collect()
        alive = [x for x in gc.get_objects() if type(x) is torch.Tensor and tuple(x.shape) == (inputs.cond.layout.s_gen, 64)]
        assert alive == []
    assert len(seen) == 2 * STEPS * len(names)
    assert seen.nbytes == 4 * len(seen) < hidden


def test_the_text_tower_is_recorded_too(tiny):
    with record(tiny.transformer, ["und.layers.*"], reduce="token_rms") as seen:
        inputs, _ = prepare_denoise(tiny, prepare_request(tiny, "a ball", **SIZE))
    assert [a.name for a in seen.activations[::2]] == [f"und.layers.{i}" for i in range(3)]  # both prompts in each layer
    assert len(seen.activations[1].value) == inputs.uncond.layout.s_text
    assert seen.activations[0].at.step is None


# ----------------------------------------------------------------------------------------------------------------- patch


def test_a_patch_changes_what_follows_and_nothing_before(tiny, prepared):
    inputs, state = prepared

    def run(**how):
        with record(tiny.transformer, ["gen.layers.*"], reduce="full", inputs=inputs) as seen:
            finish(tiny.transformer, inputs, state)
        return seen

    plain = run()
    with patch(tiny.transformer, "gen.layers.1.mlp_moe_gen", torch.zeros_like, inputs=inputs, branch="cond", steps=[1]):
        patched = run()
    same = [torch.equal(a.value, b.value) for a, b in zip(plain.activations, patched.activations, strict=True)]
    places = [(a.at.step, a.at.branch, a.name[-1]) for a in plain.activations]
    first = places.index((1, "cond", "1"))
    assert same == [i < first for i in range(len(same))]
    assert [torch.equal(a.value, b.value) for a, b in zip(plain.activations, run().activations, strict=True)] == [True] * len(
        same
    )


def test_a_patch_of_the_text_tower_leaves_its_keys(tiny):
    request = prepare_request(tiny, "a ball", **SIZE)
    plain = prepare_denoise(tiny, request)[0].cond
    with patch(tiny.transformer, "und.layers.1", torch.zeros_like):
        patched = prepare_denoise(tiny, request)[0].cond
    assert [torch.equal(a.k, b.k) for a, b in zip(plain.cached_kv, patched.cached_kv, strict=True)] == [True, True, False]


@pytest.mark.parametrize("fn", [lambda x: x[:1], lambda x: x.double(), lambda x: None])
def test_a_patch_of_another_shape_or_dtype_is_refused(tiny, prepared, fn):
    inputs, state = prepared
    with pytest.raises(ValueError, match=r"the patch of gen\.layers\.0 gives"), patch(tiny.transformer, "gen.layers.0", fn):
        predict_velocity(tiny.transformer, state.latents, 500, inputs.cond)


# -------------------------------------------------------------------------------------------------------------- come off


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_hooks_come_off_whatever_happens(tiny, prepared, error):
    inputs, state = prepared
    before = hooks(tiny.transformer)

    def fail(x):
        raise error

    def nested():
        with patch(tiny.transformer, "gen.layers.0", torch.neg), record(tiny.transformer, ["gen.layers.*"]):
            assert hooks(tiny.transformer) > before
            with patch(tiny.transformer, "gen.layers.2", fail):
                finish(tiny.transformer, inputs, state)

    with pytest.raises(error), record(tiny.transformer, ["gen.layers.*"], inputs=inputs) as outer:
        nested()
    assert hooks(tiny.transformer) == before
    assert len(outer) == 3  # what was there before the failure is kept


def test_a_failing_reduction_takes_the_hooks_off_too(tiny, prepared):
    inputs, state = prepared
    recording = record(tiny.transformer, ["gen.time_embedder"], reduce="frame_rms", inputs=inputs)
    with pytest.raises(ValueError, match="not video frames"), recording:
        finish(tiny.transformer, inputs, state)
    assert hooks(tiny.transformer) == 0


def test_the_same_twice_gives_the_same_twice(tiny, prepared):
    inputs, state = prepared
    found = []
    for _ in range(2):
        with (
            record(tiny.transformer, ["gen.layers.*"], inputs=inputs) as a,
            record(tiny.transformer, ["gen.layers.*"], inputs=inputs) as b,
        ):
            finish(tiny.transformer, inputs, state)
        found += [torch.stack([one.value for one in seen.activations]) for seen in (a, b)]
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"reduce": "frame_mean"}, "without inputs"),
        ({"branch": "cond"}, "without inputs"),
        ({"steps": [1]}, "without inputs"),
    ],
)
def test_choices_that_cannot_work_are_refused(tiny, how, words):
    with pytest.raises(ValueError, match=words), record(tiny.transformer, ["gen.layers.0"], **how):
        pass
    assert hooks(tiny.transformer) == 0


@pytest.mark.parametrize(("name", "how"), [("gen.proj_in", {"branch": "cond"}), ("und.layers.0", {"steps": [0]})])
def test_a_branch_or_step_is_refused_for_what_runs_before_it_is_known(tiny, prepared, name, how):
    with pytest.raises(ValueError, match=f"for {re.escape(name)}, which runs before"):
        record(tiny.transformer, [name], inputs=prepared[0], **how).__enter__()
    with record(tiny.transformer, ["gen.proj_in"], inputs=prepared[0], steps=[1]) as seen:
        finish(tiny.transformer, *prepared)
    assert [(a.at.step, a.at.branch) for a in seen.activations] == [(1, "uncond"), (1, "cond")]


def test_a_stack_of_different_shapes_or_of_nothing_is_refused(tiny, prepared):
    inputs, state = prepared
    with record(tiny.transformer, ["gen.layers.0"], inputs=inputs) as seen:
        finish(tiny.transformer, inputs, state)
    with pytest.raises(ValueError, match="no values"):
        seen.stack("gen.layers.1")
    seen.activations[0].value.resize_(2)
    with pytest.raises(ValueError, match=r"shapes \[\(\), \(2,\)\]"):
        seen.stack("gen.layers.0")
