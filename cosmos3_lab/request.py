"""What is asked for, in the model's units: latent frames, rows and columns instead of seconds and pixels.

The record is named as in PhyAI, `Cosmos3T2VRequest`; it carries everything that a run needs besides the weights.

Read next: `presets.py` (which recipe), `latents.py` (where the noise comes from).
"""

from dataclasses import dataclass

from jaxtyping import Int64
from torch import Tensor

from cosmos3_lab.guidance_scale import Guidance, GuidanceScale, check_guidance, scale_words
from cosmos3_lab.latents import Latents
from cosmos3_lab.presets import Preset
from cosmos3_lab.prompt import Cosmos3TokenizedPrompt
from cosmos3_lab.showing import Shown
from cosmos3_lab.sizes import (
    NANO,
    MediaSpec,
    check_fps,
    effective_num_frames,
    pixel_to_latent_shape,
    sound_latent_frames,
)


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
        shape = tuple(self.video_shape)
        if len(shape) != 3 or not all(isinstance(n, int) and n >= 1 for n in shape):
            raise ValueError(f"got video_shape {self.video_shape}, expected (t, h, w) with every number at least 1")
        object.__setattr__(self, "video_shape", shape)
        for name in ("num_inference_steps", "seed"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"got {name} {getattr(self, name)!r}, expected a whole number")
        if self.sound_latent_fps is not None and not self.sound_latent_fps > 0:
            raise ValueError(f"got sound_latent_fps {self.sound_latent_fps}, expected a number above 0, or None")
        if self.num_inference_steps < 1:
            raise ValueError(f"got num_inference_steps {self.num_inference_steps}, expected at least 1")
        object.__setattr__(self, "guidance_scale", check_guidance(self.guidance_scale, self.num_inference_steps))
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"got seed {self.seed}, expected an integer from 0 to 4294967295")
        if self.sound_frames is not None and self.sound_frames < 1:
            raise ValueError(f"got sound_frames {self.sound_frames}, expected at least 1, or None for a silent video")
        check_fps(self.fps)

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
