"""Guidance as a schedule: what may be asked, the numbers that come of it, skipped passes, refinements, and whole runs."""

import math

import pytest
import torch

from cosmos3_lab import (
    Guidance,
    GuidanceInterval,
    Latents,
    Schedule,
    denoise,
    flow_schedule,
    fork,
    generate,
    guidance_saving,
    load_state,
    make_processor,
    optimized_scale,
    prepare_denoise,
    prepare_request,
    rescale_guided,
    save_state,
    zero_init,
)
from cosmos3_lab.guidance import classifier_free_guidance, guide
from cosmos3_lab.guidance_scale import carry_guidance, guidance_settings, resolve_guidance, scale_words
from cosmos3_lab.records import StepRecord

STEPS = 4
CLIP = {"num_frames": 5, "height": 32, "width": 48, "fps": 16.0}
ASK = {"prompt": "a red ball bounces", "negative_prompt": "blurry", "with_sound": True, "num_inference_steps": STEPS, **CLIP}
SIGMAS = [0.9, 0.6, 0.3, 0.1]


def prepared(models, *, preset=None, solver=None, schedule=None, **changes):
    request = prepare_request(models, **{**ASK, **changes}, preset=preset)
    return prepare_denoise(models, request, preset=preset, solver=solver, schedule=schedule)


def walk(models, inputs, state, stop=None):
    """The last state, and the records in full."""
    records = []
    for after, record in denoise(models.transformer, inputs, state, stop=stop):
        state = after
        records.append(record)
    return state, records


def end(models, **changes):
    return walk(models, *prepared(models, **changes))[0].latents


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


def velocities(dtype=torch.float64):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        video = torch.randn(1, 2, 3, 4, 5, dtype=dtype, generator=generator)
        return Latents(video, torch.randn(1, 6, 7, dtype=dtype, generator=generator))

    return draw(0), draw(1)


# --------------------------------------------------------------------------------------------------- numbers per step


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        (6, (6, 6, 6, 6)),
        ([1, 2.5, 1, 0], (1, 2.5, 1, 0)),
        ((3.0, 3.0, 3.0, 3.0), (3, 3, 3, 3)),
        (lambda step, sigma: step + sigma, (0.9, 1.6, 2.3, 3.1)),
        (GuidanceInterval(5.0, low=0.1, high=0.6), (1, 5, 5, 1)),  # low is outside, high inside
        (GuidanceInterval(5.0, low=0.0, high=1.0), (5, 5, 5, 5)),
    ],
)
def test_every_way_to_ask_becomes_a_number_for_each_step(asked, numbers):
    resolved = resolve_guidance(asked, SIGMAS)
    assert resolved.scale == pytest.approx(numbers, abs=1e-12)
    assert all(type(w) is float for w in resolved.scale)
    assert resolved.sound_scale is None
    assert resolve_guidance(resolved, SIGMAS) == resolved
    sound = resolve_guidance(Guidance(2.0, sound_scale=asked), SIGMAS)
    assert (sound.scale, sound.sound_scale) == ((2, 2, 2, 2), resolved.scale)
    assert resolve_guidance(Guidance(2.0, sound_scale=asked), SIGMAS, with_sound=False).sound_scale is None


@pytest.mark.parametrize("asked", [-1.0, math.nan, math.inf, [1, 2, -3, 4], [1, 2, math.nan, 4]])
def test_impossible_scales_are_refused_when_they_are_given(asked):
    with pytest.raises(ValueError, match="got guidance_scale .*expected a .*number of at least 0"):
        Guidance(asked)
    with pytest.raises(ValueError, match="got sound's guidance_scale"):
        Guidance(1.0, sound_scale=asked)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuidanceInterval(-1.0, 0.2, 0.8), "guidance_scale -1"),
        (lambda: GuidanceInterval(6.0, 0.8, 0.2), "from 0.8 to 0.2, expected 0 <= low < high <= 1"),
        (lambda: GuidanceInterval(6.0, 0.28, 2.9), "from 0.28 to 2.9"),
        (lambda: Guidance(6.0, rescale=1.5), "rescale 1.5"),
        (lambda: Guidance(6.0, rescale=math.nan), "rescale nan"),
        (lambda: Guidance(6.0, zero_steps=-1), "zero_steps -1"),
        (lambda: resolve_guidance([6.0] * 3, SIGMAS), "got 3 numbers as guidance_scale for 4 steps"),
        (lambda: resolve_guidance(lambda step, sigma: sigma - 0.5, SIGMAS), "guidance_scale -0.2"),
        (lambda: resolve_guidance(lambda step, sigma: None, SIGMAS), "guidance_scale None"),
    ],
)
def test_what_cannot_work_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([6.0] * 3, "got 3 numbers as guidance_scale for 4 steps, expected one for each step"),
        (Guidance(6.0, sound_scale=[6.0] * 5), "got 5 numbers as sound's guidance_scale for 4 steps"),
        (Guidance(6.0, zero_steps=4), "zero_steps 4 of 4 steps"),
        ([1.0, -1.0, 1.0, 1.0], "guidance_scale -1"),
    ],
)
def test_a_request_finds_what_does_not_fit_its_steps(tiny, asked, message):
    with pytest.raises(ValueError, match=message):
        prepare_request(tiny, **ASK, guidance_scale=asked)


def test_a_function_is_called_once_for_each_step_and_not_kept(tiny):
    calls = []

    def scale(step, sigma):
        calls.append((step, sigma))
        return 2.0

    inputs, state = prepared(tiny, guidance_scale=scale)
    walk(tiny, inputs, state)
    assert calls == list(enumerate(inputs.schedule.sigmas[:-1].tolist()))
    assert inputs.guidance.scale == inputs.request.guidance_scale.scale == (2.0,) * STEPS
    assert inputs.guidance_scale == 2.0


def test_a_list_given_to_a_request_may_be_changed_afterwards(tiny):
    scale = [2.0] * STEPS
    request = prepare_request(tiny, **ASK, guidance_scale=scale)
    scale[0] = -1.0
    assert request.guidance_scale == (2.0,) * STEPS


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (6, "6"),
        ((6.0, 6.0), "6"),
        ((1.0, 1.0, 6.0), "1 to step 1, 6 to 2"),
        (tuple(float(i) for i in range(9)), "0 to 8 over 9 steps"),
        (lambda step, sigma: 1.0, "a function of (step, sigma)"),
        (Guidance((1.0, 6.0), sound_scale=2, rescale=0.7), "Guidance(1 to step 0, 6 to 1, sound_scale=2, rescale=0.7)"),
        (GuidanceInterval(6, 0.2, 0.8), "GuidanceInterval(scale=6.0, low=0.2, high=0.8)"),
    ],
)
def test_guidance_in_words(scale, words):
    assert scale_words(scale) == words


def test_requests_say_what_guidance_they_have(tiny):
    assert "guidance_scale=6, seed" in repr(prepare_request(tiny, **ASK))
    assert "guidance_scale=1 to step 0, 6 to 3, seed" in repr(prepare_request(tiny, **ASK, guidance_scale=[1, 6, 6, 6]))


# ------------------------------------------------------------------------------------------------------- on velocities


def test_guide_is_plain_guidance_where_nothing_is_asked():
    cond, uncond = velocities(torch.float32)
    plain = classifier_free_guidance(cond, uncond, 6.0)
    for guidance in (Guidance((1.0, 6.0)), Guidance((1.0, 6.0), sound_scale=(2.0, 6.0))):
        assert same(guide(cond, uncond, guidance, 1).guided, plain.guided)
    assert guide(cond, None, Guidance((6.0,)), 0).guided is cond


@pytest.mark.parametrize(("skip", "w"), [("at 1", 1.0), ("up to 1", 1.0), ("up to 1", 0.5)])
def test_a_modality_without_guidance_is_exactly_the_prompts(skip, w):
    cond, uncond = velocities(torch.float32)
    v = guide(cond, uncond, Guidance((6.0,), sound_scale=(w,)), 0, skip_guidance=skip)
    assert torch.equal(v.guided.sound, cond.sound)
    assert torch.equal(v.guided.video, classifier_free_guidance(cond, uncond, 6.0).guided.video)


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_rescaling_moves_the_std_and_not_the_direction(rescale):
    cond, uncond = (v.video for v in velocities())
    guided = uncond + 6 * (cond - uncond)
    result = rescale_guided(guided, cond, rescale)
    expected = (1 - rescale) * guided.std() + rescale * cond.std()
    torch.testing.assert_close(result.std(), expected, atol=0, rtol=1e-12)
    torch.testing.assert_close(result / result.norm(), guided / guided.norm(), atol=1e-12, rtol=0)


def test_the_optimized_scale_leaves_nothing_of_uncond_in_the_difference():
    cond, uncond = (torch.cat([v.video, 3 * v.video.flip(2) + 1]) for v in velocities())
    scale = optimized_scale(cond, uncond)
    assert scale.shape == (2, 1, 1, 1, 1)
    rest = cond - scale * uncond
    for sample in range(2):
        assert abs(float((rest[sample] * uncond[sample]).sum())) < 1e-6
        assert rest[sample].norm() < (cond[sample] - 1.1 * scale[sample] * uncond[sample]).norm()
    assert torch.allclose(optimized_scale(2.5 * uncond, uncond), torch.tensor(2.5, dtype=torch.float64), atol=1e-8)


@pytest.mark.parametrize("guidance", [Guidance((1.0,), rescale=0.7), Guidance((1.0,), optimized=True)], ids=repr)
def test_refinements_change_nothing_without_guidance(guidance):
    cond, uncond = velocities()
    assert same(guide(cond, uncond, guidance, 0).guided, cond)


def test_refinements_are_done_in_their_order():
    cond, uncond = velocities()
    guidance = Guidance((6.0,), sound_scale=(2.0,), rescale=0.7, optimized=True)
    guided = guide(cond, uncond, guidance, 0).guided
    for name, w in (("video", 6.0), ("sound", 2.0)):
        c, u = getattr(cond, name), getattr(uncond, name)
        s = optimized_scale(c, u)
        expected = rescale_guided(s * u + w * (c - s * u), c, 0.7)
        torch.testing.assert_close(getattr(guided, name), expected, atol=1e-12, rtol=0)


def test_zero_init_ends_after_its_steps():
    cond, _ = velocities()
    assert all(not tensor.any() for tensor in zero_init(cond, 1, 2).tensors())
    assert zero_init(cond, 2, 2) is cond


# ---------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("preset", ["native", "phyai", "diffusers"])
@pytest.mark.parametrize("w", [0.5, 1.0, 6.0])
def test_a_list_of_equal_numbers_is_the_number(tiny, preset, w):
    expected = end(tiny, preset=preset, guidance_scale=w)
    assert same(end(tiny, preset=preset, guidance_scale=[w] * STEPS), expected)
    assert same(end(tiny, preset=preset, guidance_scale=Guidance(w, sound_scale=w)), expected)


def test_skipped_passes_give_what_all_passes_give(tiny, monkeypatch):
    asked = {"guidance_scale": [1.0, 6.0, 1.0, 3.0]}
    skipped, records = walk(tiny, *prepared(tiny, **asked))
    assert [r.passes for r in records] == [1, 2, 1, 2]
    monkeypatch.setattr(Guidance, "needs_uncond", lambda *args: True)
    full, records = walk(tiny, *prepared(tiny, **asked))
    assert [r.passes for r in records] == [2, 2, 2, 2]
    assert same(skipped.latents, full.latents)
    assert not same(skipped.latents, end(tiny, guidance_scale=6.0))


def test_steps_follow_their_own_number(tiny):
    """Each step of a run with a list is the step that a run with that number alone would do from there."""
    scales = [1.0, 6.0, 0.0, 2.5]
    inputs, state = prepared(tiny, guidance_scale=scales)
    for i, w in enumerate(scales):
        alone, _ = prepared(tiny, guidance_scale=w)
        expected, _ = walk(tiny, alone, state, stop=i + 1)
        state, _ = walk(tiny, inputs, state, stop=i + 1)
        assert same(state.latents, expected.latents)


def test_the_second_pass_follows_the_presets_rule(tiny):
    asked = {"guidance_scale": [0.5, 1.0, 1.5, 0.0]}
    passes = {p: [r.passes for r in walk(tiny, *prepared(tiny, preset=p, **asked))[1]] for p in ("native", "phyai")}
    assert passes == {"native": [2, 1, 2, 2], "phyai": [1, 1, 2, 1]}


def test_records_say_whether_the_second_pass_ran(tiny):
    _, records = walk(tiny, *prepared(tiny, guidance_scale=[1.0, 6.0, 6.0, 1.0]))
    assert [r.second_pass for r in records] == [False, True, True, False]
    assert [r.velocity.uncond is not None for r in records] == [False, True, True, False]
    assert ["video.velocity_uncond" in r.rms for r in records] == [False, True, True, False]
    assert [r.keep("summary").second_pass for r in records] == [False, True, True, False]


@pytest.mark.parametrize(
    ("guidance", "needed"),
    [
        (1.0, False),
        ([1.0] * STEPS, False),
        (GuidanceInterval(6.0, 0.0, 1e-6), False),
        ([1.0, 1.0, 1.0, 1.5], True),
        (Guidance(1.0, sound_scale=[1.0, 1.0, 2.0, 1.0]), True),
    ],
    ids=str,
)
def test_the_negative_prompt_is_encoded_only_where_a_step_needs_it(tiny, guidance, needed):
    inputs, _ = prepared(tiny, guidance_scale=guidance)
    assert (inputs.uncond is not None) is needed


def test_sound_may_have_a_scale_of_its_own(tiny):
    """After one step only the sound differs; a scale of 1 for both is no guidance at all."""
    one, same_for_both = (
        walk(tiny, *prepared(tiny, guidance_scale=g), stop=1)[0].latents for g in (Guidance(6.0, sound_scale=2.0), 6.0)
    )
    assert torch.equal(one.video, same_for_both.video)
    assert not torch.equal(one.sound, same_for_both.sound)
    two = walk(tiny, *prepared(tiny, guidance_scale=2.0), stop=1)[0].latents
    assert torch.equal(one.sound, two.sound)


def test_a_silent_run_has_no_sound_scale(tiny):
    inputs, _ = prepared(tiny, with_sound=False, guidance_scale=Guidance(1.0, sound_scale=6.0))
    assert inputs.guidance.sound_scale is None
    assert inputs.uncond is None


@pytest.mark.parametrize("solver", ["unipc", "euler", "heun"])
def test_zero_init_is_a_later_start_with_the_same_noise(tiny, solver):
    inputs, state = prepared(tiny, solver=solver, guidance_scale=Guidance(6.0, zero_steps=2))
    after, records = walk(tiny, inputs, state, stop=2)
    assert same(after.latents, state.latents)
    assert [r.second_pass for r in records] == [False, False]
    assert all(not r.velocity.guided.video.any() for r in records)
    rest = Schedule(inputs.schedule.sigmas[2:], inputs.schedule.timesteps[2:])
    late = end(tiny, solver=solver, schedule=rest, num_inference_steps=2)
    assert same(walk(tiny, inputs, after)[0].latents, late)


@pytest.mark.parametrize(
    "guidance",
    [Guidance(6.0, rescale=0.7), Guidance(6.0, optimized=True), Guidance(6.0, zero_steps=1), Guidance(6.0, sound_scale=1.0)],
    ids=repr,
)
def test_every_setting_reaches_the_run_and_the_state_goes_on_bit_for_bit(tiny, tmp_path, guidance):
    inputs, state = prepared(tiny, guidance_scale=guidance)
    paused, _ = walk(tiny, inputs, state, stop=2)
    whole = walk(tiny, inputs, paused)[0].latents
    assert not same(whole, end(tiny, guidance_scale=6.0))
    path = save_state(tmp_path / "state.safetensors", inputs, paused)
    again, _ = prepared(tiny, guidance_scale=guidance)
    assert same(walk(tiny, again, load_state(path, again))[0].latents, whole)
    other, _ = prepared(tiny, guidance_scale=6.0)
    with pytest.raises(ValueError, match="guidance_scale differ"):
        load_state(path, other)


def test_a_saved_run_may_be_continued_however_its_numbers_were_asked_for(tiny, tmp_path):
    inputs, state = prepared(tiny, guidance_scale=lambda step, sigma: 6.0)
    path = save_state(tmp_path / "state.safetensors", inputs, state)
    assert load_state(path, prepared(tiny, guidance_scale=6.0)[0]).step_index == 0


def test_the_manifest_has_the_effective_scales(tiny):
    def manifest(guidance):
        return generate(tiny, **ASK, guidance_scale=guidance, progress=False).manifest

    plain = manifest([6.0] * STEPS)
    assert (plain["guidance_scale"], plain["sound_guidance_scale"]) == (6.0, None)
    assert (plain["guidance_rescale"], plain["guidance_optimized"], plain["guidance_zero_steps"]) == (0.0, False, 0)
    asked = Guidance(lambda step, sigma: 1.0 + step, sound_scale=2.0, rescale=0.7, optimized=True, zero_steps=1)
    found = manifest(asked)
    assert (found["guidance_scale"], found["sound_guidance_scale"]) == ([1.0, 2.0, 3.0, 4.0], 2.0)
    assert (found["guidance_rescale"], found["guidance_optimized"], found["guidance_zero_steps"]) == (0.7, True, 1)
    again = Guidance(found["guidance_scale"], found["sound_guidance_scale"], 0.7, optimized=True, zero_steps=1)
    assert guidance_settings(resolve_guidance(again, SIGMAS)).items() <= found.items()


# -------------------------------------------------------------------------------------------------------- time saved


def record(index, seconds, *, evaluations=1, second=True):
    passes = evaluations * (1 + second)
    return StepRecord(index, 1, 0, 0.5, 500, seconds, {}, evaluations=evaluations, passes=passes)


def test_saved_time_is_counted_and_estimated():
    records = [record(0, 9.0), record(1, 2.0), record(2, 2.0), record(3, 1.25, second=False), record(4, 1.25, second=False)]
    saving = guidance_saving(records)
    assert (saving.skipped, saving.evaluations, saving.seconds) == (2, 5, pytest.approx(1.5))
    assert str(saving) == "2 of 5 second passes skipped, about 1.50 s saved (estimated from the steps of this run)"
    heun = [record(0, 4.0, evaluations=2), record(1, 2.0, evaluations=2, second=False), record(2, 1.0, second=False)]
    assert guidance_saving(heun).skipped == 3
    assert guidance_saving(heun).seconds == pytest.approx(3.0)


def test_nothing_is_estimated_without_steps_of_both_kinds():
    for second in (True, False):
        assert guidance_saving([record(i, 1.0, second=second) for i in range(3)]).seconds is None
    assert str(guidance_saving([record(0, 1.0)])) == "0 of 1 second passes skipped"


# --------------------------------------------------------------------------------------------------------------- fork


def test_guidance_goes_over_to_another_schedule_by_sigma():
    guidance = Guidance((1.0, 2.0, 3.0, 4.0), sound_scale=(5.0, 6.0, 7.0, 8.0), zero_steps=2)
    finer = carry_guidance(guidance, SIGMAS, [0.95, 0.9, 0.75, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05])
    assert finer.scale == (1, 1, 1, 2, 2, 3, 3, 4, 4)
    assert finer.sound_scale == (5, 5, 5, 6, 6, 7, 7, 8, 8)
    assert finer.zero_steps == 5
    assert carry_guidance(guidance, SIGMAS, SIGMAS) == guidance


@pytest.fixture(scope="module")
def parent(tiny):
    """A run that was paused before step 2."""
    inputs, state = prepared(tiny, guidance_scale=[2.0, 3.0, 4.0, 5.0])
    return inputs, walk(tiny, inputs, state, stop=2)[0]


@pytest.mark.parametrize(
    ("asked", "scale", "sound"),
    [
        (6.0, (6, 6, 6, 6), None),
        ([1.0, 7.0], (2, 3, 1, 7), None),
        (lambda step, sigma: 10.0 * step, (2, 3, 20, 30), None),
        (GuidanceInterval(6.0, 0.0, 1.0), (2, 3, 6, 6), None),
        (Guidance([1.0, 7.0], sound_scale=0.0), (2, 3, 1, 7), (2, 3, 0, 0)),
    ],
    ids=["number", "list", "function", "interval", "sound"],
)
def test_a_fork_takes_guidance_for_the_steps_that_are_left(tiny, parent, asked, scale, sound):
    inputs, paused = parent
    before = walk(tiny, inputs, paused)[0].latents
    forked, state = fork(tiny, inputs, paused, guidance_scale=asked)
    assert (forked.guidance.scale, forked.guidance.sound_scale) == (scale, sound)
    assert (state.video.last_sample, state.video.x0_history) == (None, ())
    as_asked, _ = prepared(tiny, guidance_scale=Guidance(scale, sound_scale=sound))
    assert same(walk(tiny, forked, state)[0].latents, walk(tiny, as_asked, state)[0].latents)
    assert same(walk(tiny, inputs, paused)[0].latents, before)


def test_a_fork_to_another_schedule_keeps_guidance_at_its_sigmas(tiny, parent):
    inputs, paused = parent
    forked, state = fork(tiny, inputs, paused, schedule=flow_schedule(2 * STEPS))
    assert state.step_index == 4
    assert forked.guidance.scale == (2, 2, 3, 3, 4, 4, 5, 5)
    both, _ = fork(tiny, inputs, paused, schedule=flow_schedule(2 * STEPS), guidance_scale=[9.0] * 4)
    assert both.guidance.scale == (2, 2, 3, 3, 9, 9, 9, 9)


def test_a_fork_encodes_the_negative_prompt_for_the_steps_that_are_left(tiny, parent):
    inputs, paused = parent
    off, state = fork(tiny, inputs, paused, guidance_scale=[1.0, 1.0])
    assert off.uncond is None
    on, _ = fork(tiny, off, state, guidance_scale=[1.0, 3.0])
    assert on.uncond is not None
    words = make_processor(tiny, **CLIP).tokenize_pair("a ball", "sharp")[1]
    assert fork(tiny, off, state, negative_prompt=words)[0].uncond is None


@pytest.mark.parametrize("asked", [[1.0] * STEPS, [1.0, -1.0], Guidance([1.0, 2.0], sound_scale=[1.0])], ids=str)
def test_a_fork_refuses_guidance_that_does_not_fit(tiny, parent, asked):
    with pytest.raises(ValueError, match="guidance_scale"):
        fork(tiny, *parent, guidance_scale=asked)
