"""Every stage beside diffusers 0.42.1: same weights, same inputs, float32, CPU. Tolerances are relative to the largest value."""

from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, UniPCMultistepScheduler
from diffusers.guiders.classifier_free_zero_star_guidance import ClassifierFreeZeroStarGuidance
from diffusers.guiders.guider_utils import rescale_noise_cfg
from shared import CLIP, NEGATIVE, PROMPT, SEED, STEPS, numpy_noise, relative

from cosmos3_lab import (
    Latents,
    decode_sound,
    denoise,
    encode_condition,
    encode_sound,
    encode_video,
    flow_schedule,
    iter_decode_video,
    karras_schedule,
    make_request,
    predict_velocity,
    prepare_denoise,
    schedule_from_config,
    unipc_init,
    unipc_step,
)
from cosmos3_lab.guidance import guide, rescale_guided
from cosmos3_lab.guidance_scale import Guidance
from cosmos3_lab.layout import NANO_SCHEDULER
from cosmos3_lab.prepare import make_processor
from cosmos3_lab.schedule import schedule_from_sigmas
from cosmos3_lab.solver_lab import walk
from cosmos3_lab.solvers import Solver
from cosmos3_lab.transformer import media_position_ids

STAGE = 1e-5
RUN = 1e-3
SOUND = [False, True]


def latents(with_sound):
    return Latents(numpy_noise(1, 8, 3, 3, 5), numpy_noise(4, 15).T[None].contiguous() if with_sound else None)


def branch(recorded, index):
    """Inputs and outputs of the transformer's call number `index` (0 conditional, 1 unconditional, of step 0)."""
    kwargs, (video, sound, _) = recorded.calls[index]
    return kwargs, Latents(video, None if sound is None else sound.T[None])


def condition(models, kwargs, with_sound):
    ids = kwargs["input_ids"][None]
    return encode_condition(
        models.transformer, ids, torch.ones_like(ids), (3, 3, 5), CLIP["fps"], sound_len=15 if with_sound else None
    )


def test_the_recordings_have_both_branches_and_sound(record):
    assert len(record(sound=True).calls) == 2 * STEPS
    assert len(record(guidance_scale=1.0).calls) == STEPS
    assert record(sound=True).sound is not None


# ------------------------------------------------------------------------------------------------------------- text


@pytest.mark.parametrize("prompt", [PROMPT, "wait...", "Stop!", "  hi...  ", "", '{"fps": 3, "a": "é"}', "naïve 日本語 🎈\n two"])
@pytest.mark.parametrize("negative", [None, "", "blurry", "blurry."])
@pytest.mark.parametrize("num_frames", [1, 9, 189])
def test_token_ids_equal(models, pipe, prompt, negative, num_frames):
    clip = CLIP | {"num_frames": num_frames}
    cond, uncond = pipe.tokenize_prompt(prompt, negative, **clip, use_system_prompt=True)
    processor = make_processor(models, **clip, preset="diffusers")
    if prompt:  # the lab refuses an empty prompt; diffusers does not
        assert processor.tokenize(prompt).text_ids[0].tolist() == cond
    assert processor.tokenize_negative(negative).text_ids[0].tolist() == uncond


def test_token_ids_equal_without_system_prompt(models, record):
    from cosmos3_lab import PRESETS

    preset = replace(PRESETS["diffusers"], system_prompt=None)
    cond, uncond = make_processor(models, **CLIP, preset=preset).tokenize_pair(PROMPT, NEGATIVE)
    recorded = record()
    assert cond.text_ids[0].tolist() == recorded.calls[0][0]["input_ids"].tolist()
    assert uncond.text_ids[0].tolist() == recorded.calls[1][0]["input_ids"].tolist()


# --------------------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 35, 50, 200])
@pytest.mark.parametrize(
    ("ours", "settings"),
    [
        (lambda n: flow_schedule(n, flow_shift=10.0, variant="diffusers-flow"), {"flow_shift": 10.0, "use_karras_sigmas": False}),
        (lambda n: flow_schedule(n, flow_shift=5.0, variant="diffusers-flow"), {"flow_shift": 5.0, "use_karras_sigmas": False}),
        (karras_schedule, {}),
        (lambda n: schedule_from_config(NANO_SCHEDULER, n), {}),
        (
            lambda n: schedule_from_config(NANO_SCHEDULER | {"use_karras_sigmas": False, "flow_shift": 3.0}, n),
            {"flow_shift": 3.0, "use_karras_sigmas": False},
        ),
    ],
    ids=["flow-10", "flow-5", "karras", "file-karras", "file-flow"],
)
def test_schedules_equal(steps, ours, settings):
    scheduler = UniPCMultistepScheduler(**{k: v for k, v in NANO_SCHEDULER.items() if k != "_class_name"} | settings)
    scheduler.set_timesteps(steps)
    made = ours(steps)
    assert torch.equal(made.sigmas, scheduler.sigmas)
    assert torch.equal(made.timesteps, scheduler.timesteps)


def test_native_schedule_equals_the_pipelines(record):
    recorded, made = record(), flow_schedule(STEPS, flow_shift=10.0)
    assert torch.equal(made.timesteps, recorded.timesteps)
    assert (made.sigmas - recorded.sigmas).abs().max() < 1e-7  # one rounding of float32


# ------------------------------------------------------------------------------------------------------------ towers


@pytest.mark.parametrize("with_sound", SOUND)
@pytest.mark.parametrize("index", [0, 1], ids=["cond", "uncond"])
def test_positions_equal(models, record, with_sound, index):
    kwargs, _ = branch(record(sound=with_sound), index)
    layout = condition(models, kwargs, with_sound).layout
    ours = media_position_ids(models.config, layout, CLIP["fps"], models.config.sound_latent_fps)
    assert torch.equal(ours, kwargs["position_ids"][:, layout.s_text :].float())


@pytest.mark.parametrize("with_sound", SOUND)
@pytest.mark.parametrize("index", [0, 1], ids=["cond", "uncond"])
def test_velocity_matches(models, record, with_sound, index):
    recorded = record(sound=with_sound)
    kwargs, expected = branch(recorded, index)
    cond = condition(models, kwargs, with_sound)
    velocity = predict_velocity(models.transformer, latents(with_sound), int(recorded.timesteps[0]), cond)
    assert relative(velocity.video, expected.video) < STAGE
    if with_sound:
        assert relative(velocity.sound, expected.sound) < STAGE


def test_velocity_with_one_frame(models, pipe):
    """A single frame has no frame rate, which is a branch of its own in the positions."""
    calls = []
    hook = pipe.transformer.register_forward_hook(lambda m, a, k, out: calls.append((k, out[0][0])), with_kwargs=True)
    noise = numpy_noise(1, 8, 1, 3, 5)
    clip = CLIP | {"num_frames": 1}
    pipe(PROMPT, **clip, num_inference_steps=1, guidance_scale=1.0, latents=noise.clone(), output_type="latent")
    hook.remove()
    kwargs, expected = calls[0]
    ids = kwargs["input_ids"][None]
    cond = encode_condition(models.transformer, ids, torch.ones_like(ids), (1, 3, 5), CLIP["fps"])
    timestep = int(kwargs["vision_timesteps"][0])
    assert relative(predict_velocity(models.transformer, Latents(noise), timestep, cond).video, expected) < STAGE


# ------------------------------------------------------------------------------------------------------------ solver


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 10, 35])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("karras", [False, True])
def test_unipc_trajectory_matches(steps, order, karras):
    """The same velocity field through both solvers: 0.05 x + 0.3 sin(t / 1000) - 0.1, on a sample of order one."""
    settings = {k: v for k, v in NANO_SCHEDULER.items() if k != "_class_name"}
    settings |= {"use_karras_sigmas": karras, "flow_shift": 10.0, "solver_order": order}
    scheduler = UniPCMultistepScheduler(**settings)
    scheduler.set_timesteps(steps)
    schedule = karras_schedule(steps) if karras else flow_schedule(steps, flow_shift=10.0, variant="diffusers-flow")
    theirs, state = numpy_noise(1, 2, 3, 4), unipc_init(numpy_noise(1, 2, 3, 4))
    for t in scheduler.timesteps:
        theirs = scheduler.step(0.05 * theirs + 0.3 * torch.sin(t / 1000) - 0.1, t, theirs, return_dict=False)[0]
        velocity = 0.05 * state.sample + 0.3 * torch.sin(t / 1000) - 0.1
        state = unipc_step(state, velocity, schedule, solver_order=order).state
        assert relative(state.sample, theirs) < STAGE


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_euler_trajectory_matches(steps, shift):
    scheduler = FlowMatchEulerDiscreteScheduler()
    schedule = flow_schedule(steps, flow_shift=shift)
    scheduler.set_timesteps(sigmas=schedule.sigmas[:-1].tolist())
    assert torch.equal(scheduler.sigmas, schedule.sigmas)
    assert relative(*walked(scheduler, schedule, Solver("euler"), calls=steps)) < STAGE


@pytest.mark.parametrize("shift", [1.0, 5.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_heun_trajectory_matches(steps, shift):
    scheduler = FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    schedule = schedule_from_sigmas(scheduler.sigmas.unique().flip(0))  # theirs has each sigma between the ends twice
    assert schedule.num_steps == steps
    # Theirs goes through x0 and divides by sigma, which is 0.001 at the end and costs three of float32's digits.
    assert relative(*walked(scheduler, schedule, Solver("heun"), calls=2 * steps - 1)) < 1e-4


def walked(scheduler, schedule, solver, *, calls):
    """The end of our walk and of theirs, down the velocity field sin(3 x) - sigma x."""
    ours, evaluations = walk(lambda x, sigma: torch.sin(3 * x) - sigma * x, numpy_noise(1, 2, 3, 4), schedule, solver)
    theirs = numpy_noise(1, 2, 3, 4)
    assert evaluations == len(scheduler.timesteps) == calls
    for t in scheduler.timesteps:
        theirs = scheduler.step(torch.sin(3 * theirs) - t / 1000 * theirs, t, theirs, return_dict=False)[0]
    return ours, theirs


# ---------------------------------------------------------------------------------------------------------- guidance


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_rescaled_guidance_matches(rescale):
    guided, cond = numpy_noise(2, 3, 4, 5, 6), 0.3 * numpy_noise(2, 3, 4, 5, 6).flip(-1) + 0.1
    assert relative(rescale_guided(guided, cond, rescale), rescale_noise_cfg(guided, cond, rescale)) < STAGE


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_cfg_zero_star_matches(step, rescale):
    """Both parts of it, and rescaling after them; theirs divides by zero where it rescales a velocity of zero."""
    cond, uncond = numpy_noise(1, 3, 4, 5, 6), numpy_noise(1, 3, 4, 5, 6).flip(-1) + 0.2
    theirs = ClassifierFreeZeroStarGuidance(6.0, zero_init_steps=1, guidance_rescale=rescale if step else 0.0)
    theirs.set_state(step=step, num_inference_steps=3, timestep=torch.tensor(500))
    expected = theirs.forward(cond, uncond).pred
    guidance = Guidance((6.0,) * 3, rescale=rescale, optimized=True, zero_steps=1)
    ours = guide(Latents(cond), Latents(uncond), guidance, step).guided.video
    assert torch.equal(ours, expected) if step == 0 else relative(ours, expected) < STAGE


# ---------------------------------------------------------------------------------------------------------- decoders


@pytest.mark.parametrize("at_once", [1, 3, None])
@pytest.mark.parametrize("t", [1, 2, 5])
def test_video_decoder_matches(models, pipe, t, at_once):
    z = numpy_noise(1, 8, t, 3, 5)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std))
    with torch.no_grad():
        expected = (pipe.vae.decode(z * std + mean).sample + 1) / 2
    pixels = torch.cat(list(iter_decode_video(models.vae, z, latents_at_once=at_once)), dim=2)
    assert pixels.shape == (1, 3, 4 * (t - 1) + 1, 48, 80)
    assert expected.min() > 0.01  # the clamp hides nothing
    assert expected.max() < 0.99
    assert relative(pixels, expected) < STAGE


@pytest.mark.parametrize("frames", [1, 5, 9, 12])
def test_video_encoder_matches(models, pipe, frames):
    pixels = torch.rand(1, 3, frames, 48, 80, generator=torch.Generator().manual_seed(0))
    kept = (frames - 1) // 4 * 4 + 1
    with torch.no_grad():
        expected = pipe._encode_video(pixels[:, :, :kept] * 2 - 1)
    assert relative(encode_video(models.vae, pixels), expected) < STAGE


@pytest.mark.parametrize("n_sound", [1, 15])
def test_sound_decoder_matches(models, pipe, n_sound):
    latent = numpy_noise(4, n_sound)
    with torch.no_grad():
        expected = pipe.decode_sound(latent)
    waveform = decode_sound(models.avae, latent.T[None].contiguous())[0]
    assert waveform.shape == (2, 1920 * n_sound)
    assert expected.abs().max() < 1  # the clamp hides nothing
    assert relative(waveform, expected) < STAGE


@pytest.mark.parametrize("samples", [1920, 5000])
def test_sound_encoder_matches(models, pipe, samples):
    waveform = 0.3 * torch.randn(1, 2, samples, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = pipe.sound_tokenizer.encode(waveform).latent_dist.mode().transpose(1, 2)
    latents = encode_sound(models.avae, waveform)
    assert latents.shape == (1, -(-samples // 1920), 4)
    assert relative(latents, expected) < STAGE


# -------------------------------------------------------------------------------------------------------- whole runs


def request_like(models, recorded, *, guidance_scale, with_sound):
    """A request from diffusers' own token ids, so that text rules play no part."""
    from cosmos3_lab import Cosmos3TokenizedPrompt

    def prompt(index):
        ids = recorded.calls[index][0]["input_ids"][None]
        return Cosmos3TokenizedPrompt(ids, torch.ones_like(ids))

    uncond = prompt(1 if guidance_scale != 1 else 0)
    return make_request(
        prompt(0),
        uncond,
        **CLIP,
        with_sound=with_sound,
        num_inference_steps=STEPS,
        guidance_scale=guidance_scale,
        seed=SEED,
        media=models.media,
    )


@pytest.mark.parametrize("with_sound", SOUND)
@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
@pytest.mark.parametrize("karras", [False, True])
def test_whole_run_matches(models, record, with_sound, guidance_scale, karras):
    recorded = record(sound=with_sound, guidance_scale=guidance_scale, karras=karras)
    request = request_like(models, recorded, guidance_scale=guidance_scale, with_sound=with_sound)
    inputs, state = prepare_denoise(models, request, use_karras_sigmas=karras)
    assert (inputs.uncond is None) == (guidance_scale == 1)
    for expected, (after, _) in zip(recorded.trajectory, denoise(models.transformer, inputs, state), strict=True):
        state = after
        assert relative(state.latents.video, expected) < RUN
    assert relative(state.latents.video, recorded.video) < RUN
    if with_sound:
        assert relative(state.latents.sound, recorded.sound.T[None]) < RUN
        assert relative(decode_sound(models.avae, state.latents.sound)[0], recorded.waveform) < RUN


def test_the_diffusers_preset_is_diffusers(models, pipe, record):
    """From the prompt's text to the latents with the preset alone: system prompt, sentences, Karras from the file."""
    recorded = record(karras=True, flow_shift=1.0, sound=True, system_prompt=True)
    from cosmos3_lab import generate

    noise = latents(with_sound=True)
    result = generate(
        models,
        PROMPT,
        negative_prompt=NEGATIVE,
        with_sound=True,
        **CLIP,
        num_inference_steps=STEPS,
        guidance_scale=6.0,
        noise=noise,
        preset="diffusers",
        progress=False,
    )
    assert result.manifest["schedule"] == "karras"
    assert relative(result.latents.video, recorded.video) < RUN
    assert relative(result.latents.sound, recorded.sound.T[None]) < RUN


def test_torch_noise_is_the_pipelines(models, pipe):
    """One generator, video first, then sound channel-major."""
    from cosmos3_lab import init_latents

    generator = torch.Generator().manual_seed(SEED)
    video = torch.randn(1, 8, 3, 3, 5, generator=generator)
    sound = torch.randn(4, 15, generator=generator)
    noise = init_latents((3, 3, 5), channels=8, sound_frames=15, sound_dim=4, seed=SEED, noise_source="torch")
    assert torch.equal(noise.video, video)
    assert torch.equal(noise.sound, sound.T[None])
