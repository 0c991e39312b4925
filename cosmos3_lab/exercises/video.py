"""The exercises of notebook 08: a loop that guides only at first, the number of tokens, the request for a still image.

Read next: `sound.py`, the exercises of notebook 09.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from cosmos3_lab.checkpoint import load_cosmos3
from cosmos3_lab.denoise import DenoiseInputs, DenoiseState, denoise, prepare_denoise
from cosmos3_lab.exercises.framework import call, exercise, expect
from cosmos3_lab.prepare import prepare_request
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.settings import read_configs, resolve_folder
from cosmos3_lab.towers import Cosmos3Transformer

STEPS = 4
PROMPT = "a red circle bounces on a blue background; low thuds"
TOKENS = {(1, 32, 32): 1, (5, 64, 96): 12, (49, 480, 832): 5070, (189, 720, 1280): 44160}
IMAGE = (64, 96)  # height and width of the still image


@exercise(
    "08.1",
    hint="`while state.step_index < inputs.schedule.num_steps:`, and in it `state, record = lab.denoise_step(transformer, ..., "
    "state)` with `inputs` or with its copy that has no `uncond`.",
)
def finish(answer: Callable[[Cosmos3Transformer, DenoiseInputs, DenoiseState, float], DenoiseState]) -> None:
    """The loop is yours, and each step without guidance costs half."""
    with load_cosmos3("pico", device="cpu", load_sound=False) as models:
        size = {"num_frames": 5, "height": 32, "width": 32, "num_inference_steps": STEPS}
        inputs, state = prepare_denoise(models, prepare_request(models, PROMPT, **size))
        sigmas = inputs.schedule.sigmas
        cases = {
            "until = 0 should guide every step, as `denoise` does": (0.0, STEPS),
            "until = 2 should guide no step, as sigma is never above 1": (2.0, 0),
            "until between the second and the third sigma should guide two steps": (float(sigmas[1] + sigmas[2]) / 2, 2),
            "a step whose sigma is exactly until should be guided": (float(sigmas[1]), 2),
        }
        for says, (until, guided_steps) in cases.items():
            after = call(answer, models.transformer, inputs, state, until)
            expect(isinstance(after, DenoiseState), f"got {type(after).__name__}, expected the final DenoiseState.")
            done = after.step_index
            expect(done == STEPS, f"the state is at step {done} of {STEPS}, expected the schedule's end.")
            same = torch.equal(after.latents.video, _expected(models.transformer, inputs, state, guided_steps))
            expect(same, f"{says}; the latents are others.")


def _expected(transformer: Cosmos3Transformer, inputs: DenoiseInputs, state: DenoiseState, guided_steps: int) -> torch.Tensor:
    for after, _ in denoise(transformer, inputs, state, stop=guided_steps):
        state = after
    for after, _ in denoise(transformer, replace(inputs, uncond=None), state):
        state = after
    return state.latents.video


@exercise("08.2", hint="Latent frames times rows of patches times columns of patches; `-(-a // b)` rounds up.")
def video_tokens(answer: Callable[[int, int, int], int]) -> None:
    """So many tokens look at each other in each of Nano's 36 layers, at every step."""
    one = call(answer, 1, 32, 32)
    expect(one == 1, f"one frame of 32x32 pixels gives {one}, expected one token: 2x2 latent pixels of 16x16 pixels.")
    long, longer = call(answer, 5, 32, 32), call(answer, 9, 32, 32)
    expect((long, longer) == (2, 3), f"5 and 9 frames of 32x32 give {long} and {longer}, expected 2 and 3: the first is alone.")
    odd = call(answer, 1, 48, 32)
    expect(odd == 2, f"48x32 pixels give {odd}, expected 2: the second row of patches is half empty, and counts.")
    for clip, expected in TOKENS.items():
        found = call(answer, *clip)
        expect(found == expected, f"{clip[0]} frames of {clip[1]}x{clip[2]} give {found}, expected {expected}.")


@exercise("08.3", hint="As in the notebook, with `lab.pixel_to_latent_shape(1, 64, 96, **units)` as video_shape.")
def still(answer: object) -> None:
    """A picture is a clip of one latent frame; the same towers and the same decoder make it."""
    expect(isinstance(answer, Cosmos3T2VRequest), f"got {type(answer).__name__}, expected a Cosmos3T2VRequest.")
    t, h, w = answer.video_shape
    expect(t == 1, f"got {t} latent frames, expected 1.")
    packed = read_configs(resolve_folder(None), with_sound=False).media.spatial  # of the checkpoint that the notebooks load
    rows, columns = IMAGE[0] // packed, IMAGE[1] // packed
    expect(
        (h, w) == (rows, columns),
        f"got a latent grid of {h}x{w}, expected {rows}x{columns}, as this VAE packs {packed}x{packed} pixels; is height before "
        "width, and are **units there?",
    )
    steps = answer.num_inference_steps
    expect(steps == 8, f"got {steps} steps, expected 8.")
    expect(answer.guidance_scale == 1, f"got guidance_scale {answer.guidance_scale:g}, expected 1, which is no guidance.")
    expect(answer.seed == 7, f"got seed {answer.seed}, expected 7.")
    expect(answer.sound_frames is None, f"got {answer.sound_frames} sound latents, expected None.")
