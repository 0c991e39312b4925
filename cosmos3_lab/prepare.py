"""A sentence and some numbers become a request, with the checkpoint's defaults for what is not given.

Works on loaded models, and on the mere settings of a folder, so that a request can be refused before gigabytes are read.

Read next: `generate.py`.
"""

from pathlib import Path

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.configs import real_number
from cosmos3_lab.guidance_scale import Guidance, GuidanceScale
from cosmos3_lab.latents import Latents
from cosmos3_lab.presets import Preset, get_preset
from cosmos3_lab.prompt import Cosmos3Processor
from cosmos3_lab.request import Cosmos3T2VRequest, make_request
from cosmos3_lab.settings import CheckpointConfigs
from cosmos3_lab.sizes import effective_num_frames, pixel_to_latent_shape


def prepare_request(
    checkpoint: Cosmos3Models | CheckpointConfigs,
    prompt: str,
    *,
    negative_prompt: str | None = None,
    with_sound: bool = False,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    fps: float | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: GuidanceScale | Guidance | None = None,
    seed: int = 42,
    noise: Latents | None = None,
    preset: str | Preset | None = None,
) -> Cosmos3T2VRequest:
    """Tokenize the prompts and make the request, with the checkpoint's defaults for what is not given.

    Args:
        checkpoint: loaded models, or only the settings of a folder (`read_configs`), to check a request before loading.
        prompt, negative_prompt, with_sound: see `generate`.
        num_frames, height, width, fps, num_inference_steps, guidance_scale, seed, noise, preset: see `generate`.

    Raises:
        ValueError: an argument cannot work.
    """
    defaults, media = checkpoint.defaults, checkpoint.media
    preset = get_preset(defaults.preset if preset is None else preset)
    frames = defaults.num_frames if num_frames is None else num_frames
    size = {
        "num_frames": effective_num_frames(frames, temporal=media.temporal),
        "height": defaults.height if height is None else height,
        "width": defaults.width if width is None else width,
        "fps": real_number("fps", defaults.fps if fps is None else fps),
    }
    pixel_to_latent_shape(
        size["num_frames"], size["height"], size["width"], temporal=media.temporal, spatial=media.spatial
    )  # refuses a bad size before the tokenizer is loaded
    cond, uncond = make_processor(checkpoint, preset=preset, **size).tokenize_pair(prompt, negative_prompt)
    return make_request(
        cond,
        uncond,
        **size,
        with_sound=with_sound,
        num_inference_steps=defaults.num_inference_steps if num_inference_steps is None else num_inference_steps,
        guidance_scale=defaults.guidance_scale if guidance_scale is None else guidance_scale,
        seed=seed,
        noise=noise,
        media=media,
        preset=preset,
    )


def make_processor(
    checkpoint: Cosmos3Models | CheckpointConfigs,
    *,
    num_frames: int,
    height: int,
    width: int,
    fps: float,
    preset: str | Preset | None = None,
) -> Cosmos3Processor:
    """The checkpoint's `Cosmos3Processor` with the prompt rules of a preset.

    Args:
        checkpoint: loaded models, or only the settings of a folder.
        num_frames, height, width, fps: of the clip, in frames, pixels and frames a second.
        preset: None for the checkpoint's default.
    """
    preset = get_preset(checkpoint.defaults.preset if preset is None else preset)
    size = {"num_frames": num_frames, "height": height, "width": width, "fps": fps}
    return preset_processor(checkpoint.processor_dir, preset, **size, temporal=checkpoint.media.temporal)


def preset_processor(
    tokenizer_dir: Path, preset: Preset, *, num_frames: int, height: int, width: int, fps: float, temporal: int = 4
) -> Cosmos3Processor:
    """The same from a tokenizer alone, for a checkpoint that is still being made.

    Args:
        tokenizer_dir: the checkpoint's `text_tokenizer`.
        preset: whose prompt rules.
        num_frames, height, width, fps: of the clip, in frames, pixels and frames a second.
        temporal: video frames per latent frame.
    """
    num_frames = effective_num_frames(num_frames, temporal=temporal)
    return Cosmos3Processor(
        tokenizer_dir,
        temporal=temporal,
        num_frames=num_frames,
        height=height,
        width=width,
        fps=fps,
        system_prompt=preset.system_prompt_image if num_frames == 1 else preset.system_prompt,
        metadata=preset.metadata,
        negative_metadata=preset.negative_metadata,
        negative_default=preset.negative_default,
    )
