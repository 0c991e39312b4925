"""A folder in the Cosmos3-Nano layout becomes `Cosmos3Models`: the same code for pico and for the 16B model.

    transformer/  vae/  text_tokenizer/      always          scheduler/  assets/  cosmos3_lab.json   where present
    sound_tokenizer/                         for T2AV

Loading is strict (a tensor that is missing, unexpected or misshapen is an error), offline, and reads only what is needed:
no `lm_head`, no action heads, no sound weights for silent runs, no VAE encoder unless asked.

Read next: `denoise.py`.
"""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from cosmos3_lab.configs import read_fields
from cosmos3_lab.memory import Movable, Placement, WeightSizes, choose_placement
from cosmos3_lab.presets import get_preset
from cosmos3_lab.sizes import MediaSpec
from cosmos3_lab.sound_avae import SoundAVAE, SoundAVAEConfig
from cosmos3_lab.towers import Cosmos3Config, Cosmos3Transformer
from cosmos3_lab.video_vae import VideoVAE, VideoVAEConfig
from cosmos3_lab.weights import CheckpointError, find_tensors, load_weights, without

# Prefixes of tensors that the file may hold and that generation never uses. "norm." is UND's final norm, not norm_moe_gen.
SKIP_TRANSFORMER = ("lm_head.", "norm.", "action_")
SKIP_SOUND_HEADS = ("audio_",)
SKIP_VAE_ENCODER = ("encoder.", "quant_conv.")
SKIP_AVAE_ENCODER = ("encoder.",)

COMPONENTS = ("transformer", "vae", "text_tokenizer", "sound_tokenizer", "scheduler")


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
class Cosmos3Models:
    """The weights of one checkpoint, on one device. Use it as a context manager, or call `close()`.

    Attributes:
        transformer: both towers, `.und` and `.gen`.
        vae: video decoder, and its encoder where asked for.
        avae: sound decoder, None for silent runs.
        folder: where it was loaded from.
        media: the checkpoint's units.
        defaults: its default settings.
        scheduler_config: its scheduler file, None where there is none.
        device: where the work happens.
        placement: "resident" or "split".
        load_seconds, load_bytes: how long loading took, and how much was read.
    """

    transformer: Cosmos3Transformer
    vae: VideoVAE
    avae: SoundAVAE | None
    folder: Path
    media: MediaSpec
    defaults: Defaults
    scheduler_config: Mapping[str, Any] | None
    device: torch.device
    placement: Placement
    load_seconds: float = 0.0
    load_bytes: int = 0
    _towers: dict[str, Movable] = field(default_factory=dict, repr=False)

    @property
    def processor_dir(self) -> Path:
        """The tokenizer's folder, for `Cosmos3Processor`."""
        return self.folder / "text_tokenizer"

    @property
    def config(self) -> Cosmos3Config:
        """Shapes of the transformer."""
        return self.transformer.config

    def place(self, stage: Literal["und", "gen", "decode"]) -> None:
        """Bring the tower that `stage` needs to the device and send the other home; nothing to do when resident.

        Args:
            stage: "und" to encode prompts, "gen" to denoise, "decode" for neither.

        Raises:
            ValueError: the models were closed.
        """
        if self.transformer.gen.proj_in.weight.device.type == "meta":
            raise ValueError("these models were closed; load them again with load_cosmos3")
        leaving = [tower for name, tower in self._towers.items() if name != stage]
        for tower in leaving:
            tower.go_home()
        if stage in self._towers:
            self._towers[stage].visit(self.device)

    def close(self) -> None:
        """Give the memory back, even where other names still refer to the modules."""
        for tower in self._towers.values():
            tower.home.clear()
        for module in (self.transformer, self.vae, self.avae):
            if module is not None:
                module.to_empty(device="meta")
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> "Cosmos3Models":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        c = self.config
        sound = "with sound" if self.avae is not None else "silent"
        return (
            f"Cosmos3Models({self.defaults.name}: {c.num_hidden_layers} layers of {c.hidden_size}, {sound}, "
            f"{self.transformer.dtype}, {self.device}, {self.placement})"
        )


@torch.no_grad()
def load_cosmos3(
    folder: str | Path | None = None,
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | Literal["auto"] = "auto",
    load_sound: bool | None = None,
    load_encoder: bool = False,
    placement: Literal["auto", "resident", "split"] = "auto",
    vae_dtype: torch.dtype | None = None,
    sound_dtype: torch.dtype | None = None,
) -> Cosmos3Models:
    """Load a checkpoint folder.

    Args:
        folder: in the Cosmos3-Nano layout; None takes the environment variable COSMOS3_CHECKPOINT.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".
        dtype: of the weights; "auto" is bfloat16 on CUDA and float32 on the CPU. The time embedder stays float32.
        load_sound: whether to read the sound weights; None means where the checkpoint has them.
        load_encoder: whether to read the VAE's encoder, for `encode_video`.
        placement: "resident" keeps both towers on the device, "split" one at a time, "auto" chooses by free memory.
        vae_dtype, sound_dtype: of the two decoders; None means as `dtype`.

    Raises:
        CheckpointError: the folder is not a complete, consistent checkpoint; names the file and what is wrong.
        ValueError: the device or dtype cannot work.
        MemoryError: the weights do not fit the device; names the numbers.
    """
    begin = time.perf_counter()
    folder, device = _resolve_folder(folder), _resolve_device(device)
    dtype = _resolve_dtype(dtype, device)
    configs = read_configs(folder)
    config, vae_config = configs.transformer, configs.vae
    has_sound = config.sound_gen and configs.sound is not None
    if load_sound and not has_sound:
        lack = "sound_gen is false in transformer/config.json" if not config.sound_gen else "there is no sound_tokenizer folder"
        raise CheckpointError(f"got load_sound=True, but {folder} has no sound ({lack}); load it without")
    with_sound = has_sound if load_sound is None else load_sound
    with torch.device("meta"):
        transformer = Cosmos3Transformer(config, with_sound=with_sound)
        vae = VideoVAE(vae_config, with_encoder=load_encoder)
        avae = SoundAVAE(configs.sound) if with_sound else None

    skip_transformer = SKIP_TRANSFORMER + (() if with_sound else SKIP_SOUND_HEADS)
    skip_vae = () if load_encoder else SKIP_VAE_ENCODER
    tensors = {name: find_tensors(folder / name) for name in ("transformer", "vae")}
    tensors |= {"sound_tokenizer": find_tensors(folder / "sound_tokenizer")} if with_sound else {}
    decoder_dtypes = (vae_dtype or dtype, sound_dtype or dtype)
    placement = choose_placement(placement, _sizes(transformer, vae, avae, dtype, decoder_dtypes), device)
    home = device if placement == "resident" else torch.device("cpu")

    load_weights(
        transformer,
        tensors["transformer"],
        component="transformer",
        device=home,
        dtype=dtype,
        skip=skip_transformer,
        sources=lambda name: (name.split(".", 1)[1],),  # without the tower's name
        float32=lambda name: ".time_embedder." in name,
    )
    load_weights(vae, tensors["vae"], component="vae", device=device, dtype=decoder_dtypes[0], skip=skip_vae)
    if avae is not None:
        load_weights(
            avae,
            tensors["sound_tokenizer"],
            component="sound_tokenizer",
            device=device,
            dtype=decoder_dtypes[1],
            skip=SKIP_AVAE_ENCODER,
            sources=_weight_norm_sources,
        )
    skips = {"transformer": skip_transformer, "vae": skip_vae, "sound_tokenizer": SKIP_AVAE_ENCODER}
    read = [info for name, group in tensors.items() for info in without(group.values(), skips[name])]
    towers = {"und": transformer.und, "gen": transformer.gen} if placement == "split" else {}
    return Cosmos3Models(
        transformer=transformer,
        vae=vae,
        avae=avae,
        folder=folder,
        media=media_spec(config, vae_config, configs.sound),
        defaults=configs.defaults,
        scheduler_config=configs.scheduler,
        device=device,
        placement=placement,
        load_seconds=_seconds_since(begin, device),
        load_bytes=sum(info.nbytes for info in read),
        _towers={name: Movable(tower) for name, tower in towers.items()},
    )


@dataclass(frozen=True)
class CheckpointConfigs:
    """The parsed settings of a checkpoint folder.

    Attributes:
        transformer, vae, sound: of the components; `sound` is None without a sound_tokenizer folder.
        scheduler: the raw scheduler file, None where there is none.
        defaults: of `cosmos3_lab.json`, else Nano's.
    """

    transformer: Cosmos3Config
    vae: VideoVAEConfig
    sound: SoundAVAEConfig | None
    scheduler: Mapping[str, Any] | None
    defaults: Defaults


def media_spec(config: Cosmos3Config, vae: VideoVAEConfig, sound: SoundAVAEConfig | None) -> MediaSpec:
    """The checkpoint's units, from its three configs."""
    has_sound = config.sound_gen and sound is not None
    return MediaSpec(
        temporal=vae.scale_factor_temporal,
        spatial=vae.scale_factor_spatial,
        channels=config.latent_channel,
        sampling_rate=sound.sampling_rate if has_sound else MediaSpec.sampling_rate,
        hop_size=sound.hop_size if has_sound else MediaSpec.hop_size,
        sound_dim=config.sound_dim if has_sound else None,
        sound_latent_fps=config.sound_latent_fps,
    )


# ------------------------------------------------------------------------------------------------------------ parts


def _resolve_folder(folder: str | Path | None) -> Path:
    folder = os.environ.get("COSMOS3_CHECKPOINT") if folder is None else folder
    if not folder:
        raise CheckpointError("got no checkpoint, expected a folder or the environment variable COSMOS3_CHECKPOINT")
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder; expected a checkpoint with transformer/, vae/ and text_tokenizer/")
    for component in COMPONENTS[:3]:
        if not (path / component).is_dir():
            raise CheckpointError(f"{path} has no {component}/ folder; copy the whole checkpoint")
    if not (path / "text_tokenizer" / "tokenizer.json").is_file():
        raise CheckpointError(f"{path / 'text_tokenizer'} has no tokenizer.json; copy the whole checkpoint")
    return path


def _resolve_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"got device {device!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"got device {str(device)!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("got device 'cuda', but PyTorch sees no CUDA GPU here; use device='cpu' or install a CUDA build")
        device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"got device {str(device)!r}, but there are only {torch.cuda.device_count()} CUDA GPUs here")
    return device


def _resolve_dtype(dtype: torch.dtype | Literal["auto"], device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"got dtype {dtype}, expected torch.float32, torch.bfloat16 or 'auto'")
    return dtype


def read_configs(folder: Path) -> CheckpointConfigs:
    """Read and check every settings file of a checkpoint folder.

    Raises:
        CheckpointError: a file is missing, broken, or contradicts another; names the folder and the field.
    """
    scheduler = folder / "scheduler" / "scheduler_config.json"
    try:
        vae = VideoVAEConfig.from_dict(_read_json(folder / "vae" / "config.json"))
        transformer = Cosmos3Config.from_dict(
            _read_json(folder / "transformer" / "config.json"), temporal_compression_factor=vae.scale_factor_temporal
        )
        has_sound = (folder / "sound_tokenizer").is_dir()
        sound = SoundAVAEConfig.from_dict(_read_json(folder / "sound_tokenizer" / "config.json")) if has_sound else None
        defaults = _read_defaults(folder / "cosmos3_lab.json")
    except CheckpointError:
        raise
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    pairs = [("vae's z_dim", vae.z_dim, "transformer's latent_channel", transformer.latent_channel)]
    if sound is not None and transformer.sound_gen:
        pairs += [
            ("sound_tokenizer's vocoder_input_dim", sound.vocoder_input_dim, "transformer's sound_dim", transformer.sound_dim)
        ]
    for left, a, right, b in pairs:
        if a != b:
            raise CheckpointError(f"{folder}: the {left} is {a} and the {right} is {b}; the components do not belong together")
    return CheckpointConfigs(transformer, vae, sound, _read_json(scheduler) if scheduler.is_file() else None, defaults)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; copy the whole checkpoint")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); copy it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object; copy it again")
    return value


def _read_defaults(path: Path) -> Defaults:
    if not path.is_file():
        return Defaults()
    file = _read_json(path)
    known = {f.name for f in fields(Defaults)} - {"example_prompts", "name"}
    unknown = sorted(set(file.get("defaults", {})) - known)
    if unknown:
        raise CheckpointError(f"{path} has an unknown default {unknown[0]!r}, expected some of {', '.join(sorted(known))}")
    settings = {"name": path.parent.name, **file, **file.get("defaults", {})}
    defaults = Defaults(**read_fields(Defaults, settings, file=path.name))
    get_preset(defaults.preset)
    return defaults


def _sizes(
    transformer: Cosmos3Transformer,
    vae: VideoVAE,
    avae: SoundAVAE | None,
    dtype: torch.dtype,
    decoder_dtypes: tuple[torch.dtype, torch.dtype],
) -> WeightSizes:
    def size(module: nn.Module | None, dtype: torch.dtype) -> int:
        return 0 if module is None else sum(p.numel() for p in module.parameters()) * dtype.itemsize

    decoders = size(vae, decoder_dtypes[0]) + size(avae, decoder_dtypes[1])
    return WeightSizes(size(transformer.und, dtype), size(transformer.gen, dtype), decoders)


def _weight_norm_sources(name: str) -> tuple[str, ...]:
    """The AVAE's file keeps every convolution's weight as magnitude g and direction v."""
    return (f"{name}_g", f"{name}_v") if name.endswith(".weight") else (name,)


def _seconds_since(begin: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
