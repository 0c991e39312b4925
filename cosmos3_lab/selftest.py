"""Does this machine compute what it should? Every stage of pico, from the same inputs, against numbers that were stored once.

Each stage is fed stored inputs, not what the stage before it made here, so that a wrong one does not hide behind another. The
numbers were made in float32 on a CPU by `python -m cosmos3_lab.selftest`, which writes the file anew (after pico was trained).

Read next: `doctor.py`, which shows the results.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cosmos3_lab.checkpoint import Cosmos3Models, load_cosmos3
from cosmos3_lab.files import replacing
from cosmos3_lab.guidance import classifier_free_guidance
from cosmos3_lab.latents import Latents, init_latents
from cosmos3_lab.prepare import make_processor
from cosmos3_lab.schedule import flow_schedule, karras_schedule
from cosmos3_lab.sound_avae import decode_sound
from cosmos3_lab.towers import LayerKV
from cosmos3_lab.transformer import Cosmos3Condition, encode_condition, predict_velocity
from cosmos3_lab.unipc import unipc_init, unipc_step
from cosmos3_lab.video_vae import decode_video

FILE = Path(__file__).with_name("selftest.safetensors")
PROMPT = "a red circle bounces on a blue background; low thuds \u2014 caf\u00e9"
CLIP = {"num_frames": 5, "height": 32, "width": 48, "fps": 16.0}
VIDEO_SHAPE, SOUND_FRAMES = (2, 4, 6), 8
TEXT_TOKENS = 12  # of the prompt, for UND: its K and V fill most of the file
TIMESTEP, SCALE, STEPS, SHIFT = 900, 3.0, 4, 5.0
PART = 5  # of pixels and samples, every fifth is stored

# Largest distance from the stored numbers, as a share of their size. Measured on a CPU: 4e-7 in float32 with other threads and
# other kernels, 0.013 in bfloat16 (GEN, and the AVAE). A mistake is tenths.
EXACT, FLOAT32, BFLOAT16 = 0.0, 1e-5, 0.05

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """A step of the story that can be tried alone.

    Attributes:
        name: of the stage.
        run: from the models and the stored tensors to the tensors that it makes, by their stored names.
        precision: "exact", "float32" (whatever the weights are), or "model" (the dtype of the weights counts).
    """

    name: str
    run: Callable[[Cosmos3Models, Tensors], Tensors]
    precision: str


@dataclass(frozen=True)
class StageResult:
    """How a stage did.

    Attributes:
        name: of the stage.
        error: distance from the stored numbers, as a share of their size; None where the stage failed.
        allowed: largest error of a healthy machine.
        problem: why the stage failed, "" where it ran.
    """

    name: str
    error: float | None
    allowed: float
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the stage ran and its numbers are near enough."""
        return self.error is not None and self.error <= self.allowed


def self_test(models: Cosmos3Models, stored: Tensors | None = None) -> list[StageResult]:
    """Try every stage and compare.

    Args:
        models: pico, with sound, on the device that is to be tried.
        stored: numbers to compare with; None reads those of this package.

    Raises:
        OSError: the stored numbers are missing.
    """
    if stored is None:
        from safetensors.torch import load_file

        stored = load_file(FILE)
    return [_try(stage, models, stored) for stage in STAGES]


def _try(stage: Stage, models: Cosmos3Models, stored: Tensors) -> StageResult:
    rounded = stage.precision == "model" and models.transformer.dtype == torch.bfloat16
    allowed = EXACT if stage.precision == "exact" else BFLOAT16 if rounded else FLOAT32
    try:
        made = stage.run(models, stored)
        return StageResult(stage.name, max(distance(values, stored[name]) for name, values in made.items()), allowed)
    except Exception as error:
        return StageResult(stage.name, None, allowed, f"{type(error).__name__}: {error}".splitlines()[0][:300])


def distance(made: Tensor, stored: Tensor) -> float:
    """Root mean square of the difference over that of the stored numbers; infinite for another shape or numbers that are none.

    Args:
        made: here.
        stored: what it should be.
    """
    if made.shape != stored.shape:
        return float("inf")
    made, stored = made.detach().cpu().double(), stored.double()
    error = float((made - stored).square().mean().sqrt() / stored.square().mean().sqrt().clamp(min=1e-12))
    return error if error == error else float("inf")


# ------------------------------------------------------------------------------------------------------------- stages


def _tokenize(models: Cosmos3Models, stored: Tensors) -> Tensors:
    cond, uncond = make_processor(models, **CLIP).tokenize_pair(PROMPT)
    return {"tokens.cond": cond.text_ids, "tokens.uncond": uncond.text_ids}


def _noise(models: Cosmos3Models, stored: Tensors) -> Tensors:
    size = {"channels": models.media.channels, "sound_frames": SOUND_FRAMES, "sound_dim": models.media.sound_dim}
    noise = init_latents(VIDEO_SHAPE, **size, device=models.device)
    return {"noise.video": noise.video, "noise.sound": noise.sound}


def _schedule(models: Cosmos3Models, stored: Tensors) -> Tensors:
    flow, karras = flow_schedule(STEPS, flow_shift=SHIFT), karras_schedule(STEPS)
    return {"schedule.flow": flow.sigmas, "schedule.timesteps": flow.timesteps, "schedule.karras": karras.sigmas}


def _condition(models: Cosmos3Models, stored: Tensors) -> Cosmos3Condition:
    ids = stored["tokens.cond"][:, :TEXT_TOKENS].to(models.device)
    sound = {"sound_len": SOUND_FRAMES, "sound_fps": models.media.sound_latent_fps}
    return encode_condition(models.transformer, ids, torch.ones_like(ids), VIDEO_SHAPE, CLIP["fps"], **sound)


def _und(models: Cosmos3Models, stored: Tensors) -> Tensors:
    return {"und.kv": torch.stack([torch.stack([layer.k, layer.v]) for layer in _condition(models, stored).cached_kv])}


def _gen(models: Cosmos3Models, stored: Tensors) -> Tensors:
    made = _condition(models, stored)
    kv = stored["und.kv"].to(models.device, models.transformer.dtype)
    cond = Cosmos3Condition(tuple(LayerKV(k, v) for k, v in kv), made.freqs_gen, made.layout)
    velocity = predict_velocity(models.transformer, _latents("noise", stored, models), TIMESTEP, cond)
    return {"velocity.video": velocity.video, "velocity.sound": velocity.sound}


def _guidance(models: Cosmos3Models, stored: Tensors) -> Tensors:
    cond = _latents("velocity", stored, models)
    guided = classifier_free_guidance(cond, cond.map(lambda v: v.roll(1, -1)), SCALE).guided
    return {"guided.video": guided.video, "guided.sound": guided.sound}


def _unipc(models: Cosmos3Models, stored: Tensors) -> Tensors:
    schedule, result = flow_schedule(STEPS, flow_shift=SHIFT), {}
    for name in ("video", "sound"):
        state, velocity = unipc_init(stored[f"noise.{name}"].to(models.device)), stored[f"guided.{name}"].to(models.device)
        for step in range(STEPS):
            state = unipc_step(state, velocity.roll(step, -1), schedule).state
        result[f"sample.{name}"] = state.sample
    return result


def _vae(models: Cosmos3Models, stored: Tensors) -> Tensors:
    return {"pixels": decode_video(models.vae, stored["sample.video"]).flatten()[::PART]}


def _avae(models: Cosmos3Models, stored: Tensors) -> Tensors:
    return {"waveform": decode_sound(models.avae, stored["sample.sound"]).flatten()[::PART]}


def _latents(name: str, stored: Tensors, models: Cosmos3Models) -> Latents:
    return Latents(*(stored[f"{name}.{kind}"].to(models.device) for kind in ("video", "sound")))


STAGES = (
    Stage("tokenize", _tokenize, "exact"),
    Stage("noise", _noise, "exact"),
    Stage("schedule", _schedule, "float32"),
    Stage("UND (text K/V)", _und, "model"),
    Stage("GEN (velocity)", _gen, "model"),
    Stage("guidance", _guidance, "float32"),
    Stage("UniPC", _unipc, "float32"),
    Stage("VAE decode", _vae, "model"),
    Stage("AVAE decode", _avae, "model"),
)


def make_golden(models: Cosmos3Models) -> dict[str, Tensor]:
    """What the stages make, each from what those before it made.

    Args:
        models: pico in float32 on the CPU.
    """
    stored: dict[str, Tensor] = {}
    for stage in STAGES:
        stored |= {name: values.contiguous().clone() for name, values in stage.run(models, stored).items()}
    return stored


def main() -> None:
    """Command line: `python -m cosmos3_lab.selftest [--out FILE]`."""
    from safetensors.torch import save

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FILE)
    a = parser.parse_args()
    with load_cosmos3("pico", device="cpu") as models, replacing(a.out) as temporary:
        temporary.write_bytes(save(make_golden(models)))
    print(f"{a.out}: {a.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
