"""What the JSON files of a checkpoint folder say, read and checked before any weight is.

Read next: `checkpoint.py`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cosmos3_lab.configs import read_fields
from cosmos3_lab.presets import get_preset
from cosmos3_lab.schedule import check_steps
from cosmos3_lab.sizes import MediaSpec, check_fps, pixel_to_latent_shape
from cosmos3_lab.sound_avae import SoundAVAEConfig
from cosmos3_lab.towers import Cosmos3Config
from cosmos3_lab.untrusted import CheckpointError, has_file, has_folder, read_json
from cosmos3_lab.video_vae import VideoVAEConfig

REQUIRED = ("transformer", "vae", "text_tokenizer")
COMPONENTS = (*REQUIRED, "sound_tokenizer", "scheduler")
LONGEST_TEXT = 5000  # characters of a name or an example prompt
PICO = Path(__file__).parent / "pico" / "checkpoint"


@dataclass(frozen=True)
class Defaults:
    """Settings that a checkpoint was made for (`cosmos3_lab.json`); these are Nano's.

    Attributes:
        num_frames, height, width, fps, num_inference_steps, guidance_scale, preset: see `generate`.
        flow_shift: None leaves it to the preset.
        example_prompts: prompts that this checkpoint follows well.
        name: of the checkpoint.
    """

    num_frames: int = 189
    height: int = 720
    width: int = 1280
    fps: float = 24.0
    num_inference_steps: int = 35
    guidance_scale: float = 6.0
    flow_shift: float | None = None
    preset: str = "native"
    example_prompts: tuple[str, ...] = ("A red sports car driving along a coastal road at sunset.",)
    name: str = "Cosmos3"


@dataclass(frozen=True)
class CheckpointConfigs:
    """The parsed settings of a checkpoint folder.

    Attributes:
        folder: of the checkpoint.
        transformer, vae, sound: of the components; `sound` is None without a sound_tokenizer folder.
        scheduler: the raw scheduler file, None where there is none.
        defaults: of `cosmos3_lab.json`, else Nano's.
    """

    folder: Path
    transformer: Cosmos3Config
    vae: VideoVAEConfig
    sound: SoundAVAEConfig | None
    scheduler: Mapping[str, Any] | None
    defaults: Defaults

    @property
    def processor_dir(self) -> Path:
        """The tokenizer's folder, for `Cosmos3Processor`."""
        return self.folder / "text_tokenizer"

    @property
    def has_sound(self) -> bool:
        """Whether T2AV can be asked for: the transformer has sound heads and the AVAE is there."""
        return self.transformer.sound_gen and self.sound is not None

    @property
    def media(self) -> MediaSpec:
        """The checkpoint's units."""
        config, vae, sound = self.transformer, self.vae, self.sound if self.has_sound else None
        return MediaSpec(
            temporal=vae.scale_factor_temporal,
            spatial=vae.scale_factor_spatial,
            channels=config.latent_channel,
            sampling_rate=MediaSpec.sampling_rate if sound is None else sound.sampling_rate,
            hop_size=MediaSpec.hop_size if sound is None else sound.hop_size,
            sound_dim=None if sound is None else config.sound_dim,
            sound_latent_fps=config.sound_latent_fps,
        )


def checkpoint_folder(folder: str | Path | None) -> Path:
    """The checkpoint folder that was asked for, complete or not.

    Args:
        folder: None takes the environment variable COSMOS3_CHECKPOINT, and where that is not set, pico. "pico" is the checkpoint
            in this package, whatever the variable says; a folder of that name in the working directory is "./pico".

    Raises:
        CheckpointError: it is not a folder.
    """
    if folder is None:
        folder = os.environ.get("COSMOS3_CHECKPOINT") or "pico"
    if folder == "pico":  # only as text: Path("./pico") has lost its dot, so a Path is always a folder
        return PICO
    path = Path(os.path.expanduser(folder))  # noqa: PTH111  (Path.expanduser raises on an unknown user)
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; expected a checkpoint with transformer/, vae/ and text_tokenizer/")
    return path


def resolve_folder(folder: str | Path | None) -> Path:
    """The checkpoint folder that was asked for, with everything in it that every run needs.

    Args:
        folder: see `checkpoint_folder`.

    Raises:
        CheckpointError: it is not a folder, or a component is missing.
    """
    path = checkpoint_folder(folder)
    for component in REQUIRED:
        if not has_folder(path / component):
            raise CheckpointError(f"{path} has no {component}/ folder; copy the whole checkpoint")
    if not has_file(path / "text_tokenizer" / "tokenizer.json"):
        raise CheckpointError(f"{path / 'text_tokenizer'} has no tokenizer.json; copy the whole checkpoint")
    return path


def read_configs(folder: Path, *, with_sound: bool = True) -> CheckpointConfigs:
    """Read and check every settings file of a checkpoint folder.

    Args:
        folder: of the checkpoint.
        with_sound: False leaves sound_tokenizer/ unread, as if it were not there.

    Raises:
        CheckpointError: a file is missing, broken, or contradicts another; names the folder and the field.
    """
    scheduler = folder / "scheduler" / "scheduler_config.json"
    try:
        vae = VideoVAEConfig.from_dict(_read_config(folder, "vae"))
        config = _read_config(folder, "transformer")
        transformer = Cosmos3Config.from_dict(config, temporal_compression_factor=vae.scale_factor_temporal)
        has_sound = with_sound and has_folder(folder / "sound_tokenizer")
        sound = SoundAVAEConfig.from_dict(_read_config(folder, "sound_tokenizer")) if has_sound else None
        defaults = _read_defaults(folder / "cosmos3_lab.json", vae)
    except ValueError as error:
        if isinstance(error, CheckpointError) and str(folder) in str(error):  # names its file in full
            raise
        raise CheckpointError(f"{folder}: {error}") from error
    if sound is not None and config.get("sound_gen") is None:
        raise CheckpointError(
            f"{folder}: transformer/config.json does not say sound_gen, and there is a sound_tokenizer folder; set it to true or "
            "false, or copy transformer/config.json again"
        )
    pairs = [("vae's z_dim", vae.z_dim, "transformer's latent_channel", transformer.latent_channel)]
    if sound is not None and transformer.sound_gen:
        rate = sound.sampling_rate / sound.hop_size
        pairs += [
            ("sound_tokenizer's vocoder_input_dim", sound.vocoder_input_dim, "transformer's sound_dim", transformer.sound_dim),
            ("sound_tokenizer's latents a second", rate, "transformer's sound_latent_fps", transformer.sound_latent_fps),
        ]
    for left, a, right, b in pairs:
        if a != b:
            raise CheckpointError(f"{folder}: the {left} is {a} and the {right} is {b}; the components do not belong together")
    scheduler_config = read_json(scheduler) if has_file(scheduler) else None
    return CheckpointConfigs(folder, transformer, vae, sound, scheduler_config, defaults)


# Which of the library's classes each file describes, for whoever has mixed up two folders.
CLASSES = {
    "transformer": "Cosmos3OmniTransformer",
    "vae": "AutoencoderKLWan",
    "sound_tokenizer": "Cosmos3AVAEAudioTokenizer",
}


def _read_config(folder: Path, component: str) -> dict[str, Any]:
    path = folder / component / "config.json"
    config = read_json(path)
    named = config.get("_class_name")
    for other, name in CLASSES.items():
        if named == name and other != component:
            raise CheckpointError(f"{path} is the config of a {other} ({name}); the folders or files were swapped")
    return config


def _read_defaults(path: Path, vae: VideoVAEConfig) -> Defaults:
    if not has_file(path):
        return Defaults(name=path.parent.name)
    file = read_json(path)
    settings, about = file.get("defaults", {}), ("name", "example_prompts")
    unknown = sorted(set(file) - {"defaults", *about})
    if unknown:
        raise CheckpointError(f"{path} has an unknown key {unknown[0]!r}, expected defaults, name and example_prompts")
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} has defaults that are not a JSON object")
    known = {f.name for f in fields(Defaults)} - set(about)
    unknown = sorted(set(settings) - known)
    if unknown:
        raise CheckpointError(f"{path} has an unknown default {unknown[0]!r}, expected some of {', '.join(sorted(known))}")
    given = {"name": path.parent.name} | {key: file[key] for key in about if key in file} | settings
    defaults = Defaults(**read_fields(Defaults, given, file=path.name, signed=("guidance_scale",)))
    for text in (defaults.name, *defaults.example_prompts):
        if not text.isprintable() or len(text) > LONGEST_TEXT:
            raise CheckpointError(
                f"{path} has a name or example that is not a line of at most {LONGEST_TEXT} characters: {text!r}"
            )
    try:
        get_preset(defaults.preset)
        check_fps(defaults.fps)
        check_steps(defaults.num_inference_steps)
        factors = {"temporal": vae.scale_factor_temporal, "spatial": vae.scale_factor_spatial}
        pixel_to_latent_shape(defaults.num_frames, defaults.height, defaults.width, **factors)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return defaults
