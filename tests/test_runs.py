"""Whole runs: sizes and settings, stopping and continuing, saving and loading, forking; the same bits where that is promised."""

import errno
import math
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmos3_lab import (
    PRESETS,
    Latents,
    Schedule,
    decode_latents,
    denoise,
    denoise_step,
    embed_gen_tokens,
    flow_schedule,
    fork,
    generate,
    init_latents,
    load_cosmos3,
    load_state,
    make_processor,
    predict_velocity,
    prepare_denoise,
    prepare_request,
    project_velocity,
    read_mp4,
    run_gen_layers,
    run_request,
    save_mp4,
    save_state,
    sound_latent_frames,
)
from cosmos3_lab.random_checkpoint import write_random_checkpoint
from cosmos3_lab.run import PHASES

STEPS = 4
CLIP = {"num_frames": 5, "height": 32, "width": 48, "fps": 16.0}
ASK = {"prompt": "a red ball bounces", "negative_prompt": "blurry", "num_inference_steps": STEPS, **CLIP}
ONE_FRAME = ASK | {"num_frames": 1, "height": 32, "width": 32, "num_inference_steps": 1}


def run(models, **changes):
    return generate(models, **{"progress": False, **ASK, **changes})


def a_request(models, **changes):
    return prepare_request(models, **{**ASK, **changes})


def tokens(models, prompt):
    """A new prompt and its negative, tokenized for the same clip."""
    return make_processor(models, **CLIP).tokenize_pair(prompt, "blurry")


def steps(models, inputs, state, stop=None):
    """The state before step `stop`, or at the end."""
    for after, _ in denoise(models.transformer, inputs, state, stop=stop):
        state = after
    return state


def same(a, b):
    """Whether two latents are equal bit for bit, in all that they have."""
    if (a.sound is None) != (b.sound is None):
        return False
    return torch.equal(a.video, b.video) and (a.sound is None or torch.equal(a.sound, b.sound))


def tensors_of(state):
    solvers = [s for s in (state.video, state.sound) if s is not None]
    return [t for s in solvers for t in (s.sample, s.last_sample, *s.x0_history) if t is not None]


def files_in(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture(scope="module", params=[False, True], ids=["silent", "with sound"])
def parent(tiny, request):
    """Inputs, first state and uninterrupted result of a run."""
    inputs, state = prepare_denoise(tiny, prepare_request(tiny, with_sound=request.param, **ASK))
    return inputs, state, steps(tiny, inputs, state).latents


@pytest.fixture(scope="module")
def av_run(tiny, tmp_path_factory):
    """A finished run with sound and an mp4."""
    return run(tiny, with_sound=True, keep="full", out=tmp_path_factory.mktemp("out"))


# --------------------------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize(("asked", "frames"), [(1, 1), (4, 1), (5, 5), (8, 5), (9, 9), (100, 97)])
def test_frames_are_rounded_down_and_said_so(tiny, asked, frames):
    result = run(tiny, **ONE_FRAME | {"num_frames": asked})
    assert result.output.frames.shape == (frames, 32, 32, 3)
    assert result.manifest["num_frames"] == frames
    assert result.latents.video.shape == (1, 8, (frames - 1) // 4 + 1, 2, 2)


@pytest.mark.parametrize(("asked", "frames", "preset"), [(7, 5, "native"), (4, 1, "native"), (4, 1, "diffusers")])
def test_the_prompt_states_the_effective_number_of_frames(tiny, asked, frames, preset):
    requests = [a_request(tiny, num_frames=n, preset=preset) for n in (asked, frames, 17)]
    rounded, exact, longer = (r.text_ids for r in requests)
    assert torch.equal(rounded, exact)
    assert not torch.equal(rounded, longer)


@pytest.mark.parametrize("fps", [1.0, 16.0, 24.0, 29.97, 240.0])
def test_sound_is_as_long_as_the_clip(tiny, fps):
    result = run(tiny, with_sound=True, num_inference_steps=1, fps=fps)
    n = sound_latent_frames(5, fps)
    assert result.latents.sound.shape == (1, n, 4)
    assert result.output.waveform.shape == (2, 1920 * n)
    assert 5 / fps * 48000 - 1 < 1920 * n < 5 / fps * 48000 + 1920
    assert result.output.sample_rate == 48000
    assert abs(result.output.waveform).max() <= 1


def test_the_checkpoints_defaults_are_used(tiny):
    manifest = generate(tiny, "a ball", negative_prompt="blurry", progress=False).manifest
    settings = ("num_frames", "height", "width", "fps", "num_inference_steps", "guidance_scale", "seed", "preset")
    assert [manifest[name] for name in settings] == [17, 96, 160, 16.0, 4, 6.0, 42, "native"]


def test_the_manifest_is_what_was_done(tiny):
    manifest = run(tiny, num_frames=7, guidance_scale=1.0, flow_shift=3.0, seed=7, with_sound=True).manifest
    expected = {
        "checkpoint": "random-tiny",
        "prompt": ASK["prompt"],
        "negative_prompt": None,
        "num_frames": 5,
        "height": 32,
        "width": 48,
        "fps": 16.0,
        "sound_frames": 8,
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "negative_text_tokens": None,
        "schedule": "native-flow",
        "flow_shift": 3.0,
        "preset": "native",
        "seed": 7,
        "dtype": "float32",
        "device": "cpu",
        "placement": "resident",
    }
    assert {name: manifest[name] for name in expected} == expected
    assert manifest["text_tokens"] > 10


def test_the_mp4_is_the_output(av_run):
    back = read_mp4(av_run.path)
    assert av_run.path.name == "video.mp4"
    assert back.frames.shape == av_run.output.frames.shape == (5, 32, 48, 3)
    assert back.fps == 16.0
    assert back.waveform.shape[0] == 2
    assert abs(back.waveform.shape[1] - av_run.output.waveform.shape[1]) <= 2048
    assert av_run.path.parent == av_run.bundle
    assert files_in(av_run.bundle) == ["contact_sheet.png", "latents.safetensors", "manifest.json", "video.mp4"]


def test_every_phase_is_timed(tiny, av_run):
    assert set(av_run.timings) == {*PHASES, "condition", "denoise", "decode"}
    assert PHASES == ("model_load", "preprocess", "inference", "to_cpu", "encode")
    assert all(seconds > 0 for seconds in av_run.timings.values())
    assert av_run.timings["model_load"] == tiny.load_seconds
    assert av_run.timings["inference"] >= av_run.timings["denoise"] + av_run.timings["decode"]
    assert run(tiny, **ONE_FRAME).timings["encode"] == 0


def test_run_request_is_the_rest_of_generate(tiny, av_run):
    result = run_request(tiny, a_request(tiny, with_sound=True), progress=False)
    assert same(result.latents, av_run.latents)
    assert (result.output.frames == av_run.output.frames).all()
    assert result.timings["preprocess"] == 0
    assert "prompt" not in result.manifest


def test_latents_decode_to_the_output(tiny, av_run):
    output = decode_latents(tiny, av_run.latents, fps=16.0)
    assert (output.frames == av_run.output.frames).all()
    assert (output.waveform == av_run.output.waveform).all()
    assert decode_latents(tiny, av_run.records[0].x0, fps=16.0).frames.shape == output.frames.shape
    silent = decode_latents(tiny, Latents(av_run.latents.video), fps=16.0)
    assert (silent.waveform, silent.sample_rate) == (None, None)


def test_decoding_writes_the_mp4_of_its_output(tiny, av_run, tmp_path):
    output = decode_latents(tiny, av_run.latents, fps=16.0, mp4=tmp_path / "a.mp4")
    streamed, saved = read_mp4(tmp_path / "a.mp4"), read_mp4(save_mp4(output, tmp_path / "b.mp4"))
    assert (streamed.fps, streamed.sample_rate, streamed.waveform.shape) == (16.0, saved.sample_rate, saved.waveform.shape)
    assert streamed.frames.shape == output.frames.shape
    lost = [np.abs(found.frames.astype(float) - output.frames).mean() for found in (streamed, saved)]
    assert lost[0] == pytest.approx(lost[1], abs=0.5)  # x264's bits are not the same every time


def test_decoding_that_is_ended_leaves_no_mp4(tiny, av_run, tmp_path):
    def end(_frames):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_latents(tiny, av_run.latents, fps=16.0, mp4=tmp_path / "a.mp4", on_chunk=end)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("preset", "schedule"), [("native", "native-flow"), ("phyai", "phyai-flow"), ("diffusers", "karras")], ids=str
)
@pytest.mark.parametrize("with_sound", [False, True])
def test_presets_run(tiny, preset, schedule, with_sound):
    result = run(tiny, preset=preset, with_sound=with_sound)
    assert (result.manifest["preset"], result.manifest["schedule"]) == (preset, schedule)
    assert result.latents.video.isfinite().all()
    assert result.output.frames.std() > 0


def test_presets_differ(tiny):
    names = ("native", "phyai", "diffusers")
    results = [run(tiny, preset=name, negative_prompt=None, num_frames=1).latents for name in names]
    assert not any(same(a, b) for a, b in zip(results, results[1:] + results[:1], strict=True))


# ------------------------------------------------------------------------------------------------------ seeds and noise


def test_a_seed_is_its_bits(tiny):
    first, again, other = (run(tiny, with_sound=True, seed=seed) for seed in (1, 1, 2))
    assert same(first.latents, again.latents)
    assert (first.output.frames == again.output.frames).all()
    assert (first.output.waveform == again.output.waveform).all()
    assert not torch.equal(first.latents.video, other.latents.video)
    assert not torch.equal(first.latents.sound, other.latents.sound)


def test_noise_is_used_in_place_of_the_seed(tiny):
    noise = init_latents((2, 2, 3), channels=8, sound_frames=8, sound_dim=4, seed=7)
    given, seeded = run(tiny, with_sound=True, noise=noise), run(tiny, with_sound=True, seed=7)
    assert same(given.latents, seeded.latents)
    assert (given.manifest["seed"], seeded.manifest["seed"]) == (None, 7)


def test_the_noise_is_left_as_it_was(tiny):
    noise = init_latents((2, 2, 3), channels=8, seed=7)
    before = noise.video.clone()
    run(tiny, noise=noise)
    assert torch.equal(noise.video, before)


VIDEO, SOUND = torch.zeros(1, 8, 2, 2, 3), torch.zeros(1, 8, 4)


@pytest.mark.parametrize(
    ("noise", "with_sound"),
    [
        (Latents(torch.zeros(1, 8, 2, 3, 2)), False),
        (Latents(torch.zeros(1, 4, 2, 2, 3)), False),
        (Latents(torch.zeros(1, 8, 5, 2, 3)), False),
        (Latents(VIDEO, SOUND), False),
        (Latents(VIDEO), True),
        (Latents(VIDEO, torch.zeros(1, 9, 4)), True),
        (Latents(VIDEO, torch.zeros(1, 4, 8)), True),
    ],
    ids=["transposed", "channels", "frames", "sound too much", "sound missing", "sound too long", "sound channel-major"],
)
def test_noise_of_another_shape_is_refused(tiny, noise, with_sound):
    with pytest.raises(ValueError, match=r"got noise of shapes .* expected .*\(1, 8, 2, 2, 3\)"):
        run(tiny, noise=noise, with_sound=with_sound)


# -------------------------------------------------------------------------------------------------------------- records


@pytest.mark.parametrize("keep", ["none", "summary", "x0", "full"])
def test_keeping_records_changes_nothing(tiny, av_run, keep):
    result = run(tiny, with_sound=True, keep=keep)
    assert same(result.latents, av_run.latents)
    assert len(result.records) == (0 if keep == "none" else STEPS)
    for i, record in enumerate(result.records):
        assert (record.index, record.sigma) == (i, float(result.inputs.schedule.sigmas[i]))
        assert record.timestep == int(result.inputs.schedule.timesteps[i])
        assert record.rms["sound.x0"] > 0
        assert (record.x0 is not None) == (keep in ("x0", "full"))
        assert (record.velocity is not None) == (record.predictor_move is not None) == (keep == "full")


def test_records_hold_what_the_step_did(av_run):
    first, *later = av_run.records
    assert [r.order for r in av_run.records] == [1, 2, 2, 1]
    assert first.corrector_move is None
    assert all(r.corrector_move is not None for r in later)
    for r in av_run.records:
        v = r.velocity
        assert torch.allclose(v.guided.video, v.uncond.video + 6 * (v.cond.video - v.uncond.video), atol=1e-5)
        assert math.isclose(r.rms["sound.velocity"], v.guided.sound.square().mean().sqrt().item(), rel_tol=1e-5)
    assert same(later[-1].x0, av_run.latents)  # the last step goes all the way


# ---------------------------------------------------------------------------------------------- who works, and how often


@contextmanager
def called(transformer):
    """Names of the towers, in the order in which their first layers run."""
    calls = []
    towers = {"und": transformer.und, "gen": transformer.gen}
    hooks = [t.layers[0].register_forward_hook(lambda *_, name=name: calls.append(name)) for name, t in towers.items()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize(("guidance", "passes"), [(6.0, 2), (1.0, 1), (0.0, 2), (0.5, 2)])
@pytest.mark.parametrize("with_sound", [False, True])
def test_the_text_tower_runs_before_the_loop_only(tiny, guidance, passes, with_sound):
    with called(tiny.transformer) as calls:
        run(tiny, guidance_scale=guidance, with_sound=with_sound)
    assert calls == ["und"] * passes + ["gen"] * passes * STEPS


def test_phyai_skips_guidance_below_one(tiny):
    with called(tiny.transformer) as calls:
        run(tiny, guidance_scale=0.5, preset="phyai")
    assert calls == ["und"] + ["gen"] * STEPS


def test_without_guidance_the_negative_prompt_is_idle(tiny):
    results = [run(tiny, guidance_scale=1.0, negative_prompt=text).latents for text in ("blurry", "a cat")]
    assert same(*results)
    assert not same(results[0], run(tiny, guidance_scale=2.0).latents)


@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_layers_may_be_run_in_two_parts(tiny, parent, cut):
    inputs, state, _ = parent
    embedded = embed_gen_tokens(tiny.transformer, state.latents, 900)
    whole = run_gen_layers(tiny.transformer, embedded, inputs.cond)
    half = run_gen_layers(tiny.transformer, embedded, inputs.cond, stop=cut)
    assert torch.equal(half, embedded) == (cut == 0)
    assert torch.equal(run_gen_layers(tiny.transformer, half, inputs.cond, start=cut), whole)
    velocity = project_velocity(tiny.transformer, whole, inputs.cond.layout)
    assert same(velocity, predict_velocity(tiny.transformer, state.latents, 900, inputs.cond))


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 4), (2, 1), (4, 4)])
def test_layers_that_are_not_there_are_refused(tiny, parent, start, stop):
    inputs, state, _ = parent
    embedded = embed_gen_tokens(tiny.transformer, state.latents, 900)
    with pytest.raises(ValueError, match="expected 0 <= start <= stop <= 3"):
        run_gen_layers(tiny.transformer, embedded, inputs.cond, start=start, stop=stop)


# ---------------------------------------------------------------------------------------------------- stop and continue


@pytest.mark.parametrize("stop_after", [0, 1, 2])
def test_a_stopped_run_keeps_its_latents_and_continues(tiny, av_run, tmp_path, stop_after):
    seen = []
    stopped = run(
        tiny, with_sound=True, out=tmp_path, should_stop=lambda record: seen.append(record) or record.index == stop_after
    )
    assert stopped.stopped
    assert (stopped.output, stopped.path) == (None, None)
    assert files_in(tmp_path) == ["run_001/manifest.json", "run_001/state.safetensors"]
    assert len(stopped.records) == len(seen) == stopped.state.step_index == stop_after + 1
    assert all(record.velocity is not None for record in seen)  # the full record, whatever keep is
    assert same(stopped.latents, stopped.state.latents)
    end = steps(tiny, stopped.inputs, stopped.state)
    assert same(end.latents, av_run.latents)
    assert (decode_latents(tiny, end.latents, fps=16.0).frames == av_run.output.frames).all()


def test_stopping_at_the_last_step_is_finishing(tiny):
    result = run(tiny, should_stop=lambda record: record.index == STEPS - 1)
    assert not result.stopped
    assert result.output is not None


def test_the_timings_of_a_stopped_run_say_that_nothing_was_decoded(tiny):
    timings = run(tiny, should_stop=lambda record: True).timings
    assert timings["denoise"] > 0
    assert (timings["decode"], timings["to_cpu"], timings["encode"]) == (0, 0, 0)


@pytest.mark.parametrize("stop", range(STEPS + 1))
def test_denoise_stops_and_continues_anywhere(tiny, parent, stop):
    inputs, state, end = parent
    paused = steps(tiny, inputs, state, stop=stop)
    assert paused.step_index == stop
    assert same(steps(tiny, inputs, paused).latents, end)
    assert state.step_index == 0


def test_abandoning_the_generator_is_pausing(tiny, parent):
    inputs, state, end = parent
    for after, _ in denoise(tiny.transformer, inputs, state):
        if after.step_index == 2:
            break
    assert same(steps(tiny, inputs, after).latents, end)


def test_there_is_no_step_behind_the_end(tiny, parent):
    inputs, state, _ = parent
    end = steps(tiny, inputs, state, stop=99)
    assert end.step_index == STEPS
    with pytest.raises(ValueError, match="no step left"):
        denoise_step(tiny.transformer, inputs, end)


# -------------------------------------------------------------------------------------------------------- save and load


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_a_saved_run_continues_bit_for_bit(tiny, parent, tmp_path, step):
    inputs, state, end = parent
    paused = steps(tiny, inputs, state, stop=step)
    path = save_state(tmp_path / "run.safetensors", inputs, paused)
    fresh, _ = prepare_denoise(tiny, inputs.request)
    loaded = load_state(path, fresh)
    assert loaded.step_index == step
    assert len(tensors_of(loaded)) == len(tensors_of(paused))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(loaded), tensors_of(paused), strict=True))
    assert same(steps(tiny, fresh, loaded).latents, end)
    assert files_in(tmp_path) == ["run.safetensors"]


def test_saving_again_replaces_the_file(tiny, parent, tmp_path):
    inputs, state, _ = parent
    save_state(tmp_path / "new" / "run.safetensors", inputs, state)
    path = save_state(tmp_path / "new" / "run.safetensors", inputs, steps(tiny, inputs, state, stop=2))
    assert load_state(path, inputs).step_index == 2


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A run with sound, paused before step 2 and saved."""
    inputs, state = prepare_denoise(tiny, a_request(tiny, with_sound=True))
    path = tmp_path_factory.mktemp("saved") / "run.safetensors"
    return save_state(path, inputs, steps(tiny, inputs, state, stop=2)), inputs


def differing(path, inputs):
    """What `load_state` says differs."""
    with pytest.raises(ValueError, match="belongs to another run") as caught:
        load_state(path, inputs)
    message = str(caught.value)
    assert str(path) in message
    return message.split("another run: ")[1].split(" differ;")[0].split(", ")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"prompt": "a blue ball bounces"}, "prompt"),
        ({"negative_prompt": "sharp"}, "negative prompt"),
        ({"guidance_scale": 5.0}, "guidance_scale"),
        ({"guidance_scale": 1.0}, "negative prompt"),
        ({"num_inference_steps": 5}, "schedule"),
        ({"fps": 24.0}, "fps"),
        ({"height": 48}, "latent shape"),
        ({"width": 32}, "latent shape"),
        ({"num_frames": 9}, "latent shape"),
        ({"with_sound": False}, "latent shape"),
    ],
    ids=str,
)
def test_a_state_of_another_request_is_refused(tiny, saved, changes, name):
    path, _ = saved
    inputs, _ = prepare_denoise(tiny, a_request(tiny, **{"with_sound": True, **changes}))
    assert name in differing(path, inputs)


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ({"flow_shift": 5.0}, ["schedule"]),
        ({"schedule": "karras"}, ["schedule"]),
        ({"preset": "phyai"}, ["schedule", "preset"]),
    ],
    ids=str,
)
def test_a_state_of_another_recipe_is_refused(tiny, saved, choice, names):
    path, _ = saved
    inputs, _ = prepare_denoise(tiny, a_request(tiny, with_sound=True), **choice)
    assert differing(path, inputs) == names


def test_a_state_of_another_checkpoint_is_refused(saved, tmp_path):
    path, _ = saved
    with load_cosmos3(write_random_checkpoint(tmp_path / "other", seed=1), device="cpu") as other:
        inputs, _ = prepare_denoise(other, a_request(other, with_sound=True))
        assert differing(path, inputs) == ["the checkpoint's weights"]


def test_cut_state_files_are_refused(saved, tmp_path):
    path, inputs = saved
    whole, cut = path.read_bytes(), tmp_path / "cut.safetensors"
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cut.safetensors is not a readable state file"):
            load_state(cut, inputs)


def test_foreign_files_are_refused(saved, tiny_folder, tmp_path):
    _, inputs = saved
    (tmp_path / "text").write_text("hello " * 99)
    for path in (tiny_folder / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "text", tmp_path / "missing"):
        with pytest.raises(ValueError, match=path.name):
            load_state(path, inputs)


def full_disk(*args, **kwargs):
    """Stands for a writer that fills the disk half-way."""
    path = next(a for a in args if not isinstance(a, dict))
    with open(path, "wb") as file:
        file.write(b"half")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_failed_save_leaves_the_old_state(tiny, parent, tmp_path, monkeypatch):
    inputs, state, end = parent
    path = save_state(tmp_path / "run.safetensors", inputs, state)
    later = steps(tiny, inputs, state, stop=2)
    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    with pytest.raises(OSError, match=r"could not write .*run\.safetensors: No space left on device") as caught:
        save_state(path, inputs, later)
    assert caught.value.errno == errno.ENOSPC
    assert files_in(tmp_path) == ["run.safetensors"]
    assert same(steps(tiny, inputs, load_state(path, inputs)).latents, end)


def test_a_state_cannot_be_saved_over_a_folder(parent, tmp_path):
    inputs, state, _ = parent
    (tmp_path / "run.safetensors").mkdir()
    with pytest.raises(OSError, match=r"run\.safetensors"):
        save_state(tmp_path / "run.safetensors", inputs, state)
    assert files_in(tmp_path) == []


def test_a_state_cannot_be_saved_below_a_file(parent, tmp_path):
    inputs, state, _ = parent
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        save_state(tmp_path / "file" / "run.safetensors", inputs, state)
    assert (tmp_path / "file").read_text() == "mine"


# ----------------------------------------------------------------------------------------------------------------- fork


def test_an_unchanged_fork_is_the_run(tiny, parent):
    inputs, state, end = parent
    forked = fork(tiny, inputs, steps(tiny, inputs, state, stop=2))
    assert same(steps(tiny, *forked).latents, end)


FORKS = {
    "guidance": lambda models: {"guidance_scale": 2.0},
    "no guidance": lambda models: {"guidance_scale": 1.0},
    "prompt": lambda models: {"prompt": tokens(models, "a blue square slides to the left, slowly")[0]},
    "negative": lambda models: {"negative_prompt": tokens(models, "a ball bounces, sharp")[0]},
    "schedule": lambda models: {"schedule": flow_schedule(2 * STEPS)},
}


@pytest.mark.parametrize("name", FORKS)
def test_a_fork_at_the_start_is_a_run_of_its_own(tiny, parent, name):
    inputs, state, end = parent
    changes = FORKS[name](tiny)
    asked = dict(changes)
    if "prompt" in asked:
        asked = {"text_ids": asked["prompt"].text_ids, "text_mask": asked["prompt"].text_mask}
    if "negative_prompt" in asked:
        asked = {"neg_text_ids": asked["negative_prompt"].text_ids, "neg_text_mask": asked["negative_prompt"].text_mask}
    if "schedule" in asked:
        asked = {"num_inference_steps": asked["schedule"].num_steps}
    expected = steps(tiny, *prepare_denoise(tiny, replace(inputs.request, **asked))).latents
    assert same(steps(tiny, *fork(tiny, inputs, state, **changes)).latents, expected)
    assert not same(expected, end)


@pytest.mark.parametrize("name", FORKS)
def test_a_fork_half_way_leaves_its_parent_alone(tiny, parent, name):
    inputs, state, end = parent
    paused = steps(tiny, inputs, state, stop=2)
    before = [t.clone() for t in tensors_of(paused)]
    forked_inputs, forked = fork(tiny, inputs, paused, **FORKS[name](tiny))
    assert same(forked.latents, paused.latents)
    assert (forked.video.last_sample, forked.video.x0_history) == (None, ())
    assert not same(steps(tiny, forked_inputs, forked).latents, end)
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(paused), before, strict=True))
    assert same(steps(tiny, inputs, paused).latents, end)


def test_guidance_can_be_switched_on_and_off(tiny):
    inputs, state = prepare_denoise(tiny, a_request(tiny, guidance_scale=1.0))
    assert inputs.uncond is None
    on, _ = fork(tiny, inputs, state, guidance_scale=6.0)
    assert on.uncond is not None
    off, _ = fork(tiny, on, state, guidance_scale=1.0)
    assert off.uncond is None
    assert (off.guidance_scale, off.request.guidance_scale) == (1.0, 1.0)
    assert same(steps(tiny, on, state).latents, run(tiny).latents)


def test_guidance_may_keep_the_history(tiny, parent):
    inputs, state, _ = parent
    paused = steps(tiny, inputs, state, stop=2)
    kept, forgotten = (fork(tiny, inputs, paused, guidance_scale=2.0, restart=restart) for restart in (False, True))
    assert len(kept[1].video.x0_history) == 2
    assert not same(steps(tiny, *kept).latents, steps(tiny, *forgotten).latents)


def test_another_schedule_goes_on_from_the_same_sigma(tiny, parent):
    inputs, state, _ = parent
    paused = steps(tiny, inputs, state, stop=2)
    finer = flow_schedule(2 * STEPS)
    forked_inputs, forked = fork(tiny, inputs, paused, schedule=finer)
    assert forked.step_index == 4
    assert torch.isclose(finer.sigmas[4], inputs.schedule.sigmas[2])
    assert forked_inputs.request.num_inference_steps == 8
    assert steps(tiny, forked_inputs, forked).step_index == 8


def test_a_home_made_schedule_may_be_forked_to(tiny, parent):
    inputs, state, end = parent
    paused, old = steps(tiny, inputs, state, stop=3), inputs.schedule
    sigmas = torch.cat([old.sigmas[3:4], old.sigmas[3:4] / 2, torch.zeros(1)])
    schedule = Schedule(sigmas, (sigmas[:-1] * 1000).long())
    forked = fork(tiny, inputs, paused, schedule=schedule)
    assert forked[1].step_index == 0
    assert not same(steps(tiny, *forked).latents, end)


def test_a_schedule_without_the_sigma_is_refused(tiny, parent):
    inputs, state, _ = parent
    paused = steps(tiny, inputs, state, stop=2)
    sigma = float(inputs.schedule.sigmas[2])
    with pytest.raises(ValueError, match=f"sigma {sigma:.6f}, which the new schedule does not contain"):
        fork(tiny, inputs, paused, schedule=flow_schedule(5))


@pytest.mark.parametrize("name", ["prompt", "negative", "schedule"])
def test_what_needs_a_restart_cannot_go_without(tiny, parent, name):
    inputs, state, _ = parent
    with pytest.raises(ValueError, match="restart=False"):
        fork(tiny, inputs, state, restart=False, **FORKS[name](tiny))


def test_an_edit_survives_only_with_a_restart(tiny, parent):
    inputs, state, end = parent
    paused = steps(tiny, inputs, state, stop=2)
    edited = paused.latents.map(lambda x: x + 0.5)
    ends = {r: steps(tiny, *fork(tiny, inputs, paused, latents=edited, restart=r)).latents for r in (None, True, False)}
    assert same(ends[None], ends[True])
    moved = {restart: (latents.video - end.video).abs().mean() for restart, latents in ends.items()}
    assert moved[True] > 3 * moved[False]
    assert same(steps(tiny, inputs, paused).latents, end)


def test_an_edit_without_restart_keeps_the_history(tiny, parent):
    inputs, state, _ = parent
    paused = steps(tiny, inputs, state, stop=2)
    edited = paused.latents.map(torch.neg)
    _, kept = fork(tiny, inputs, paused, latents=edited, restart=False)
    _, forgotten = fork(tiny, inputs, paused, latents=edited)
    assert same(kept.latents, edited)
    assert same(forgotten.latents, edited)
    assert kept.video.last_sample is paused.video.last_sample
    assert forgotten.video.last_sample is None


@pytest.mark.parametrize("edit", ["shape", "sound"])
def test_an_edit_of_another_shape_is_refused(tiny, parent, edit):
    inputs, state, _ = parent
    sound = state.latents.sound
    other = torch.zeros(1, 8, 4) if sound is None else None
    latents = Latents(state.latents.video[..., :-1], sound) if edit == "shape" else Latents(state.latents.video, other)
    with pytest.raises(ValueError, match="got edited latents of shapes"):
        fork(tiny, inputs, state, latents=latents)


@pytest.mark.parametrize("guidance", [-1.0, math.nan, math.inf])
def test_a_fork_to_impossible_guidance_is_refused(tiny, parent, guidance):
    inputs, state, _ = parent
    with pytest.raises(ValueError, match="guidance_scale"):
        fork(tiny, inputs, state, guidance_scale=guidance)


# ----------------------------------------------------------------------------------------------------------- bad inputs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 100}, "height 100.*try 96 or 112"),
        ({"height": 0}, "height 0.*try 16"),
        ({"width": -16}, "width -16"),
        ({"width": 8}, "width 8.*try 16"),
        ({"num_frames": 0}, "num_frames 0"),
        ({"num_frames": -5}, "num_frames -5"),
        ({"fps": 0.0}, "fps 0"),
        ({"fps": -24.0}, "fps -24"),
        ({"fps": math.nan}, "fps nan"),
        ({"fps": math.inf}, "fps inf"),
        ({"fps": 1e9}, "fps 1000000000"),
        ({"num_inference_steps": 0}, "num_inference_steps 0"),
        ({"num_inference_steps": -1}, "num_inference_steps -1"),
        ({"num_inference_steps": 1001}, "num_inference_steps 1001"),
        ({"guidance_scale": math.nan}, "guidance_scale nan"),
        ({"guidance_scale": math.inf}, "guidance_scale inf"),
        ({"guidance_scale": -1.0}, "guidance_scale -1"),
        ({"prompt": ""}, "empty prompt"),
        ({"prompt": " \n\t"}, "empty prompt"),
        ({"seed": -1}, "seed -1"),
        ({"seed": 2**32}, "seed 4294967296"),
        ({"preset": "nativ"}, "preset 'nativ'"),
        ({"flow_shift": 0.0}, "flow_shift 0"),
        ({"flow_shift": -1.0}, "flow_shift -1"),
        ({"flow_shift": math.nan}, "flow_shift nan"),
        ({"flow_shift": 1e12}, "smaller flow shift"),
        ({"flow_shift": 5.0, "schedule": "karras"}, "no shift"),
        ({"flow_shift": 5.0, "schedule": "auto"}, "no shift"),
        ({"use_karras_sigmas": True, "schedule": "native-flow"}, "disagree"),
        ({"schedule": flow_schedule(5)}, "5 steps and num_inference_steps=4"),
        ({"schedule": flow_schedule(STEPS), "flow_shift": 5.0}, "one of the two"),
    ],
    ids=str,
)
def test_what_cannot_work_is_one_value_error(tiny, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        run(tiny, out=tmp_path / "out", **changes)
    assert "\n" not in str(caught.value)
    assert files_in(tmp_path) == []


def test_a_schedule_brings_its_number_of_steps(tiny):
    result = run(tiny, schedule=flow_schedule(3), num_inference_steps=None)
    assert result.manifest["num_inference_steps"] == len(result.records) == 3


def test_an_empty_negative_prompt_is_fine(tiny):
    assert not same(run(tiny, negative_prompt="").latents, run(tiny).latents)


@pytest.mark.parametrize("place", ["file", "below a file"])
def test_an_output_folder_that_cannot_be_is_refused_before_the_work(tiny, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" if place == "file" else tmp_path / "file" / "deeper"
    with called(tiny.transformer) as calls, pytest.raises(OSError, match="file"):
        run(tiny, out=out)
    assert calls == []
    assert files_in(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_the_check_of_the_output_folder_leaves_nothing(tiny, tmp_path):
    run(tiny, out=tmp_path / "a" / "b", should_stop=lambda record: True)
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["run_001"]


@pytest.mark.parametrize("old", [None, b"an older video"])
def test_a_full_disk_leaves_no_half_mp4(av_run, tmp_path, monkeypatch, old):
    path = tmp_path / "video.mp4"
    if old is not None:
        path.write_bytes(old)
    monkeypatch.setattr("av.open", full_disk)
    with pytest.raises(OSError, match=r"could not write .*video\.mp4: No space left on device") as caught:
        save_mp4(av_run.output, path)
    assert caught.value.errno == errno.ENOSPC
    assert files_in(tmp_path) == ([] if old is None else ["video.mp4"])
    assert old is None or path.read_bytes() == old


@pytest.mark.parametrize("limit", [0, 100, 5000])
def test_a_file_that_may_not_grow_leaves_no_half_mp4(av_run, tmp_path, limit):
    """The operating system stops the writer; unlike above, nothing is pretended."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    frames = torch.randint(0, 256, (9, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    failure = None
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        save_mp4(replace(av_run.output, frames=frames), tmp_path / "video.mp4")
    except OSError as error:
        failure = error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failure is not None
    assert "could not write" in str(failure)
    assert files_in(tmp_path) == []


def test_an_mp4_needs_its_name(av_run, tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.mp4"):
        save_mp4(av_run.output, tmp_path / "video.avi")
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("part", ["proj_out", "audio_proj_out"])
def test_numbers_that_are_not_finite_stop_the_run(tiny_folder, tmp_path, part):
    with load_cosmos3(tiny_folder, device="cpu") as models:
        getattr(models.transformer.gen, part).weight.data[0, 0] = float("nan")
        with pytest.raises(FloatingPointError, match="step 0: .*not finite"):
            generate(models, "a ball", with_sound=True, num_inference_steps=2, progress=False, out=tmp_path)
    assert files_in(tmp_path) == ["run_001/manifest.json", "run_001/state.safetensors"]


def test_a_state_is_not_continued_with_other_media_weights(tiny, tiny_folder, tmp_path):
    inputs, state = prepare_denoise(tiny, prepare_request(tiny, "a ball", num_frames=1, num_inference_steps=3))
    path = save_state(tmp_path / "run.safetensors", inputs, state)
    other = replace(inputs, checkpoint="another")
    with pytest.raises(ValueError, match="the checkpoint's weights differ"):
        load_state(path, other)


def test_a_state_whose_noise_was_bfloat16_can_be_saved(tiny, tmp_path):
    request = prepare_request(tiny, "a ball", num_frames=1, num_inference_steps=2)
    inputs, state = prepare_denoise(tiny, request)
    again = replace(request, noise=state.latents.to(torch.bfloat16))
    inputs, state = prepare_denoise(tiny, again)
    assert load_state(save_state(tmp_path / "run.safetensors", inputs, state), inputs).step_index == 0


def test_a_condition_of_another_shape_is_refused(tiny):
    request = prepare_request(tiny, "a ball", num_frames=1, height=32, width=64)
    inputs, _ = prepare_denoise(tiny, request)
    turned = Latents(torch.zeros(1, 8, 1, 4, 2))
    with pytest.raises(ValueError, match="condition was encoded for"):
        predict_velocity(tiny.transformer, turned, 500, inputs.cond)


def test_a_request_brings_its_recipe(tiny):
    request = prepare_request(tiny, "a ball", num_frames=1, preset="phyai")
    assert prepare_denoise(tiny, request)[0].preset.name == "phyai"
    assert prepare_denoise(tiny, request, preset="native")[0].preset.name == "native"


def test_the_manifest_says_which_choices_were_made(tiny):
    own = replace(PRESETS["native"], metadata="none")
    result = generate(tiny, "a ball", num_frames=1, num_inference_steps=1, preset=own, progress=False)
    assert result.manifest["choices"]["metadata"] == "none"
    assert result.manifest["negative_prompt_source"] == "the lab's own structured negative prompt"


@pytest.mark.parametrize("name", ["clip.avi", "clip", "../clip.mp4"])
def test_a_bad_file_name_is_found_before_the_run(tiny, tmp_path, name):
    with pytest.raises(ValueError, match="file name that ends in .mp4"):
        generate(tiny, "a ball", out=tmp_path, name=name, progress=False)


def test_solver_order_comes_from_the_preset(tiny):
    orders = []
    for order in (1, 2, 3):
        preset = replace(PRESETS["native"], solver_order=order)
        result = generate(tiny, "a ball", num_frames=1, num_inference_steps=6, preset=preset, progress=False)
        orders.append([(r.order, r.corrector_order) for r in result.records])
    assert orders[0] == [(1, 0)] + [(1, 1)] * 5
    assert orders[1] == [(1, 0), (2, 1), (2, 2), (2, 2), (2, 2), (1, 2)]
    assert orders[2] == [(1, 0), (2, 1), (3, 2), (3, 3), (2, 3), (1, 2)]


@pytest.mark.parametrize("decoder", ["vae", "avae"])
def test_decoded_numbers_that_are_not_finite_are_an_error(tiny_folder, tmp_path, decoder):
    with load_cosmos3(tiny_folder, device="cpu") as models:
        last = models.vae.decoder.conv_out if decoder == "vae" else models.avae.decoder.conv2
        last.weight.data[0, 0] = float("nan")
        with pytest.raises(FloatingPointError, match="decoded .* not finite"):
            generate(models, "a ball", with_sound=True, num_inference_steps=2, num_frames=1, progress=False, out=tmp_path)
    assert files_in(tmp_path) == ["run_001/latents.safetensors", "run_001/manifest.json"]


def test_a_state_knows_the_config_and_the_sound_noise(tiny, tmp_path):
    request = prepare_request(tiny, "a ball", num_frames=1, num_inference_steps=2, with_sound=True)
    inputs, state = prepare_denoise(tiny, request)
    noise = state.latents
    inputs, state = prepare_denoise(tiny, replace(request, noise=noise))
    path = save_state(tmp_path / "run.safetensors", inputs, state)
    other = replace(inputs, request=replace(inputs.request, noise=Latents(noise.video, noise.sound + 1)))
    with pytest.raises(ValueError, match="seed or noise"):
        load_state(path, other)


def test_the_fingerprint_depends_on_the_config(tiny_folder, tmp_path, tiny):
    import json
    import shutil

    folder = shutil.copytree(tiny_folder, tmp_path / "copy")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rope_theta": 10_000.0}))
    with load_cosmos3(folder, device="cpu") as models:
        assert models.fingerprint != tiny.fingerprint


def test_the_manifest_keeps_the_prompt_rules_of_the_request(tiny):
    request = prepare_request(tiny, "a ball", num_frames=1, num_inference_steps=1, preset="phyai")
    manifest = run_request(tiny, request, preset="native", progress=False).manifest
    assert manifest["choices"]["negative_metadata"] == "none"
    assert manifest["choices"]["solver_precision"] == "float32"


@pytest.mark.parametrize(
    "change",
    [{"video_shape": (0, 3, 3)}, {"video_shape": (3, 3)}, {"sound_latent_fps": 0.0}, {"num_inference_steps": 0}, {"seed": -1}],
)
def test_requests_that_cannot_work_are_refused_at_once(tiny, change):
    request = prepare_request(tiny, "a ball", num_frames=1)
    with pytest.raises(Exception, match=next(iter(change))):  # ValueError, or beartype's where it looks first
        replace(request, **change)
