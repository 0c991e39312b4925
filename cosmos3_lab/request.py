"""What is asked for, in the model's units: latent frames, rows and columns instead of seconds and pixels.

The record is named as in PhyAI, `Cosmos3T2VRequest`; it carries everything that a run needs besides the weights.

Read next: `presets.py` (which recipe), `latents.py` (where the noise comes from).
"""

import math
from dataclasses import dataclass

from jaxtyping import Int64
from torch import Tensor

from cosmos3_lab.configs import real_number, whole_number
from cosmos3_lab.guidance_scale import Guidance, GuidanceScale, check_guidance, scale_words
from cosmos3_lab.latents import LARGEST_SEED, Latents
from cosmos3_lab.presets import Preset
from cosmos3_lab.prompt import Cosmos3TokenizedPrompt
from cosmos3_lab.schedule import MAX_STEPS
from cosmos3_lab.showing import Shown
from cosmos3_lab.sizes import (
    NANO,
    MediaSpec,
    check_fps,
    effective_num_frames,
    pixel_to_latent_shape,
    sound_latent_frames,
)

LARGEST_CLIP = 2**24  # latent pixels; a hundred times 720x1280x189


@dataclass(frozen=True, eq=False)
class Cosmos3T2VRequest(Shown):
    """One generation: tokens of both prompts, the latent grid, and the sampler's settings.

    Attributes:
        text_ids, text_mask: `[1, S]` int64, the prompt.
        neg_text_ids, neg_text_mask: `[1, S_neg]` int64, the negative prompt.
        video_shape: latent grid `(t, h, w)`, not pixels.
        fps: frames a second, also on the position axis.
        num_inference_steps: solver steps.
        guidance_scale: classifier-free guidance w, `v_uncond + w * (v_cond - v_uncond)`: a number, one for each step, a function
            of (step, sigma), a `GuidanceInterval`, or a `Guidance` with all settings.
        seed: of the initial noise.
        noise: initial noise to use instead of the seed's.
        sound_frames: number of sound latents; None makes a silent video (T2V), a number sound as well (T2AV).
        sound_dim, sound_latent_fps: None means what the checkpoint says (64 and 25.0 on Nano).
        preset: the recipe whose prompt rules made the tokens, None for a request written by hand.

    Raises:
        ValueError: a field is out of range, or a mask does not belong to its ids.
    """

    text_ids: Int64[Tensor, "1 s_text"]
    text_mask: Int64[Tensor, "1 s_text"]
    neg_text_ids: Int64[Tensor, "1 s_neg"]
    neg_text_mask: Int64[Tensor, "1 s_neg"]
    video_shape: tuple[int, int, int]
    fps: float = 24.0
    num_inference_steps: int = 35
    guidance_scale: GuidanceScale | Guidance = 6.0
    seed: int = 42
    noise: Latents | None = None
    sound_frames: int | None = None
    sound_dim: int | None = None
    sound_latent_fps: float | None = None
    preset: Preset | None = None

    def __post_init__(self) -> None:
        for ids, mask in ((self.text_ids, self.text_mask), (self.neg_text_ids, self.neg_text_mask)):
            if ids.shape != mask.shape:
                raise ValueError(f"got {tuple(ids.shape)} token ids and a mask of {tuple(mask.shape)}, expected equal shapes")
        if not isinstance(self.video_shape, tuple | list) or len(self.video_shape) != 3:
            raise ValueError(f"got video_shape {self.video_shape!r}, expected (t, h, w)")
        checked = {
            "video_shape": tuple(whole_number("video_shape", n) for n in self.video_shape),
            "num_inference_steps": whole_number("num_inference_steps", self.num_inference_steps, 1, MAX_STEPS),
            "seed": whole_number("seed", self.seed, 0, LARGEST_SEED),
        }
        for name in ("sound_frames", "sound_dim"):
            if getattr(self, name) is not None:
                checked[name] = whole_number(name, getattr(self, name), 1, LARGEST_CLIP)
        if self.sound_latent_fps is not None and real_number("sound_latent_fps", self.sound_latent_fps) <= 0:
            raise ValueError(f"got sound_latent_fps {self.sound_latent_fps}, expected a number above 0, or None")
        if math.prod(checked["video_shape"]) > LARGEST_CLIP:
            raise ValueError(
                f"got video_shape {self.video_shape}, expected at most {LARGEST_CLIP} latent pixels; ask for a smaller clip"
            )
        checked["guidance_scale"] = check_guidance(self.guidance_scale, checked["num_inference_steps"])
        check_fps(self.fps)
        for name, value in checked.items():  # NumPy's numbers become Python's
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        t, h, w = self.video_shape
        return (
            f"Cosmos3T2VRequest({self.text_ids.shape[1]} + {self.neg_text_ids.shape[1]} text tokens, latent {t}x{h}x{w}, "
            f"sound_frames={self.sound_frames}, fps={self.fps:g}, {self.num_inference_steps} steps, "
            f"guidance_scale={scale_words(self.guidance_scale)}, seed={self.seed})"
        )


def make_request(
    cond: Cosmos3TokenizedPrompt,
    uncond: Cosmos3TokenizedPrompt,
    *,
    num_frames: int = 189,
    height: int = 720,
    width: int = 1280,
    fps: float = 24.0,
    with_sound: bool = False,
    num_inference_steps: int = 35,
    guidance_scale: GuidanceScale | Guidance = 6.0,
    seed: int = 42,
    noise: Latents | None = None,
    media: MediaSpec = NANO,
    preset: Preset | None = None,
) -> Cosmos3T2VRequest:
    """Put tokenized prompts and a size in pixels and seconds into a request.

    Args:
        cond, uncond: the two results of `Cosmos3Processor.tokenize_pair`.
        num_frames, height, width, fps: the clip; see `pixel_to_latent_shape` for what sizes may be.
        with_sound: True asks for T2AV.
        num_inference_steps, guidance_scale, seed, noise: see `Cosmos3T2VRequest`.
        media: the checkpoint's units (`models.media`).
        preset: the recipe whose prompt rules made the tokens; decides how sound latents are counted.

    Raises:
        ValueError: sizes that cannot work, or sound asked of a checkpoint without it.
    """
    if with_sound and media.sound_dim is None:
        raise ValueError(
            "got with_sound=True, but this checkpoint has no sound, or was loaded with load_sound=False; try with_sound=False"
        )
    check_fps(fps)
    video_shape = pixel_to_latent_shape(num_frames, height, width, temporal=media.temporal, spatial=media.spatial)
    frames = effective_num_frames(num_frames, temporal=media.temporal)
    sound_frames = None
    if with_sound:
        rates = {"sampling_rate": media.sampling_rate, "hop_size": media.hop_size}
        sound_frames = sound_latent_frames(frames, fps, rounding=preset.sound_rounding if preset else "integer", **rates)
    return Cosmos3T2VRequest(
        text_ids=cond.text_ids,
        text_mask=cond.text_mask,
        neg_text_ids=uncond.text_ids,
        neg_text_mask=uncond.text_mask,
        video_shape=video_shape,
        fps=fps,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        seed=seed,
        noise=noise,
        sound_frames=sound_frames,
        sound_dim=media.sound_dim if with_sound else None,
        sound_latent_fps=media.sound_latent_fps if with_sound else None,
        preset=preset,
    )
