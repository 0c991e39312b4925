"""A folder in the Cosmos3-Nano layout becomes `Cosmos3Models`: the same code for a small one and for the 16B model.

    transformer/  vae/  text_tokenizer/      always          scheduler/  assets/  cosmos3_lab.json   where present
    sound_tokenizer/                         for T2AV

Loading is strict (a tensor that is missing, unexpected or misshapen is an error), offline, and reads only what is needed:
no `lm_head`, no action heads, no sound weights for silent runs, no VAE encoder unless asked.

Read next: `denoise.py`.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from cosmos3_lab.configs import check_choice
from cosmos3_lab.memory import (
    MemoryNeed,
    Movable,
    Placement,
    Stage,
    choose_placement,
    give_back,
    stream_layers,
    working_room,
)
from cosmos3_lab.quantized import Weights, quantize_tower
from cosmos3_lab.settings import CheckpointConfigs, Defaults, read_configs, resolve_folder
from cosmos3_lab.showing import Shown
from cosmos3_lab.sizes import MediaSpec
from cosmos3_lab.sound_avae import SoundAVAE
from cosmos3_lab.towers import Cosmos3Config, Cosmos3Transformer, UNDLayer
from cosmos3_lab.untrusted import CheckpointError
from cosmos3_lab.video_vae import VideoVAE, use_channels_last
from cosmos3_lab.weights import Sources, check_weights, find_tensors, fingerprint, load_weights, without

# Prefixes of tensors that the file may hold and that generation never uses. "norm." is UND's final norm, not norm_moe_gen.
SKIP_TRANSFORMER = ("lm_head.", "norm.", "action_")
SKIP_SOUND_HEADS = ("audio_",)
SKIP_VAE_ENCODER = ("encoder.", "quant_conv.")
SKIP_AVAE_ENCODER = ("encoder.",)
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Cosmos3Models(Shown):
    """The weights of one checkpoint, on one device. Use it as a context manager, or call `close()`.

    Attributes:
        transformer: both towers, `.und` and `.gen`.
        vae: video decoder, and its encoder where asked for.
        avae: sound decoder, None for silent runs.
        configs: the checkpoint's settings.
        fingerprint: of the transformer's files and config (and of their rounding), to recognise them again.
        device: where the work happens.
        placement: "resident" or "split".
        quantized: "int8" or "fp8" where the layers' matrices were rounded to 8 bits, None where they are as stored.
        load_seconds, load_bytes: how long loading took, and how much was read.
    """

    transformer: Cosmos3Transformer
    vae: VideoVAE
    avae: SoundAVAE | None
    configs: CheckpointConfigs
    fingerprint: str
    device: torch.device
    placement: Placement
    quantized: Weights | None = None
    load_seconds: float = 0.0
    load_bytes: int = 0
    _movable: Mapping[str, Movable] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> Path:
        """Where it was loaded from."""
        return self.configs.folder

    @property
    def processor_dir(self) -> Path:
        """The tokenizer's folder, for `Cosmos3Processor`."""
        return self.configs.processor_dir

    @property
    def config(self) -> Cosmos3Config:
        """Shapes of the transformer."""
        return self.transformer.config

    @property
    def media(self) -> MediaSpec:
        """The checkpoint's units."""
        return self.configs.media

    @property
    def defaults(self) -> Defaults:
        """The settings that the checkpoint was made for."""
        return self.configs.defaults

    def place(self, stage: Stage) -> None:
        """Bring to the device what `stage` needs and send all else home; nothing to do when resident.

        Args:
            stage: "gen" to denoise, "decode" for VAE and AVAE, "und" for the whole text tower (see also `und_layers`), "stream"
                for none of them.

        Raises:
            ValueError: the models were closed.
        """
        check_choice("stage", stage, Stage)
        if self.transformer.gen.proj_in.weight.device.type == "meta":
            raise ValueError("these models were closed; load them again with load_cosmos3")
        if self.placement == "resident":
            return
        for name, part in self._movable.items():
            if name != stage:
                part.go_home()
        give_back(self.device)
        if stage in self._movable:
            self._movable[stage].visit(self.device)

    def und_layers(self) -> Iterable[UNDLayer]:
        """The layers of the text tower in order, for `encode_conditions`; in split placement one at a time is on the device.

        Raises:
            ValueError: the models were closed.
        """
        self.place("stream")
        layers = self.transformer.und.layers
        return layers if self.placement == "resident" else stream_layers(layers, self.device)

    def close(self) -> None:
        """Give the memory back, even where other names still refer to the modules."""
        for part in self._movable.values():
            part.home.clear()
        for module in (self.transformer, self.vae, self.avae):
            if module is not None:
                module.to_empty(device="meta")
        give_back(self.device)

    def __enter__(self) -> "Cosmos3Models":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        c = self.config
        sound = "with sound" if self.avae is not None else "silent"
        rounded = f" with layers in {self.quantized} (lossy)" if self.quantized else ""
        return (
            f"Cosmos3Models({self.defaults.name}: {c.num_hidden_layers} layers of {c.hidden_size}, {sound}, "
            f"{self.transformer.dtype}{rounded}, {self.device}, {self.placement})"
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
    quantize: Weights | None = None,
    vae_dtype: torch.dtype | None = None,
    sound_dtype: torch.dtype | None = None,
) -> Cosmos3Models:
    """Load a checkpoint: the small one in this package, or a folder.

    Args:
        folder: in the Cosmos3-Nano layout; None takes the environment variable COSMOS3_CHECKPOINT, and where that is not set,
            pico. "pico" is the checkpoint in this package, whatever the variable says; a folder of that name in the working
            directory is "./pico".
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1".
        dtype: of the weights; "auto" is bfloat16 on CUDA and float32 on the CPU. The time embedder stays float32. (In float32
            on CUDA, PyTorch's convolutions round to TF32 unless `torch.backends.cudnn.allow_tf32` is False.)
        load_sound: whether to read the sound weights; None means where the checkpoint has them.
        load_encoder: whether to read the encoders, for `encode_video` and, where the file has one, `encode_sound`.
        placement: "resident" keeps all weights on the device, "split" only those that are in use; "auto" is resident where
            the checkpoint's default request fits so into free memory, else split.
        quantize: "int8" or "fp8" rounds the matrices of all layers to 8 bits, which halves their memory; the results are then
            not those of the checkpoint. None keeps them as they are.
        vae_dtype, sound_dtype: of the two decoders; None means as `dtype`.

    Raises:
        CheckpointError: the folder is not a complete, consistent checkpoint; names the file and what is wrong.
        ValueError: the device or dtype cannot work.
        MemoryError: the weights do not fit the device; names the numbers.
    """
    begin = time.perf_counter()
    if quantize is not None:
        check_choice("quantize", quantize, Weights)
    folder, device = resolve_folder(folder), _resolve_device(device)
    dtype = _resolve_dtype(dtype, device)
    vae_dtype, sound_dtype = (_resolve_dtype(dtype if d is None else d, device) for d in (vae_dtype, sound_dtype))
    configs = read_configs(folder, with_sound=load_sound is not False)
    if load_sound and not configs.has_sound:
        no_heads = not configs.transformer.sound_gen
        lack = "sound_gen is false in transformer/config.json" if no_heads else "there is no sound_tokenizer folder"
        raise CheckpointError(f"got load_sound=True, but {folder} has no sound ({lack}); load it without")
    with_sound = configs.has_sound if load_sound is None else load_sound
    components = ("transformer", "vae", "sound_tokenizer") if with_sound else ("transformer", "vae")
    tensors = {name: find_tensors(folder / name) for name in components}
    # Some releases ship the AVAE without its encoder; `encode_sound` says so when it is missed.
    has_encoder = any(name.startswith(SKIP_AVAE_ENCODER) for name in tensors.get("sound_tokenizer", ()))
    wanted = {"with_encoder": load_encoder, "with_sound_encoder": load_encoder and has_encoder}
    parts = plan_components(configs, with_sound=with_sound, **wanted)
    for name, part in parts.items():
        check_weights(part.module, tensors[name], component=name, sources=part.sources, skip=part.skip)
    dtypes = {"transformer": dtype, "vae": vae_dtype, "sound_tokenizer": sound_dtype}
    transformer, vae = parts["transformer"].module, parts["vae"].module
    avae = parts["sound_tokenizer"].module if with_sound else None
    placement = choose_placement(placement, *_memory_needs(configs, parts, dtypes, quantize), device)
    cpu = torch.device("cpu")
    home = cpu if placement == "split" else device
    for name, part in parts.items():
        to = cpu if name == "transformer" and quantize else home  # rounded on the way to the device, layer by layer
        load_weights(part.module, tensors[name], sources=part.sources, device=to, dtype=dtypes[name], float32=_is_time_embedder)
    for tower in (transformer.und, transformer.gen) if quantize else ():
        quantize_tower(tower, quantize, device=device, home=home)
    use_channels_last(vae)
    read = [info for name, part in parts.items() for info in without(tensors[name].values(), part.skip)]
    mark = fingerprint(tensors["transformer"].values(), repr(configs.transformer))
    decoders = nn.ModuleList([vae] if avae is None else [vae, avae])
    movable = {"und": transformer.und, "gen": transformer.gen, "decode": decoders} if placement == "split" else {}
    return Cosmos3Models(
        transformer=transformer,
        vae=vae,
        avae=avae,
        configs=configs,
        fingerprint=mark + (f"-{quantize}" if quantize else ""),
        device=device,
        placement=placement,
        quantized=quantize,
        load_seconds=_seconds_since(begin, device),
        load_bytes=sum(info.nbytes for info in read),
        _movable={name: Movable(module) for name, module in movable.items()},
    )


@dataclass(frozen=True)
class Part:
    """A component that is to be loaded.

    Attributes:
        module: on the meta device.
        sources: from a parameter's name to its names in the file.
        skip: prefixes of tensors that are not wanted.
    """

    module: nn.Module
    sources: Sources
    skip: tuple[str, ...]


def plan_components(
    configs: CheckpointConfigs, *, with_sound: bool, with_encoder: bool = False, with_sound_encoder: bool = False
) -> dict[str, Part]:
    """The modules that a run needs, by component, without weights.

    Args:
        configs: of the checkpoint.
        with_sound: whether the sound projections and the AVAE are wanted.
        with_encoder, with_sound_encoder: whether the encoders of the video VAE and of the AVAE are wanted.

    Raises:
        CheckpointError: the configs ask for sizes that no tensor can have.
    """

    def build(component: str, make: Callable[..., M], *args: Any, **options: bool) -> M:  # noqa: ANN401  (a config)
        try:
            with torch.device("meta"):
                return make(*args, **options)
        except (RuntimeError, OverflowError) as error:
            raise CheckpointError(f"{component}/config.json asks for layers that cannot exist: {error}") from error

    transformer = build("transformer", Cosmos3Transformer, configs.transformer, with_sound=with_sound)
    vae = build("vae", VideoVAE, configs.vae, with_encoder=with_encoder)
    avae = build("sound_tokenizer", SoundAVAE, configs.sound, with_encoder=with_sound_encoder) if with_sound else None
    parts = {
        # The file's names lack the tower's name in front.
        "transformer": Part(
            transformer,
            lambda name: (name.split(".", 1)[1],),
            SKIP_TRANSFORMER + (() if with_sound else SKIP_SOUND_HEADS),
        ),
        "vae": Part(vae, lambda name: (name,), () if with_encoder else SKIP_VAE_ENCODER),
    }
    if avae is not None:
        parts["sound_tokenizer"] = Part(avae, weight_norm_sources, () if with_sound_encoder else SKIP_AVAE_ENCODER)
    return parts


# --------------------------------------------------------------------------------------------------- what was asked for


def _resolve_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"got device {device!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
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


def _memory_needs(
    configs: CheckpointConfigs, parts: Mapping[str, Part], dtypes: Mapping[str, torch.dtype], quantize: Weights | None
) -> tuple[MemoryNeed, MemoryNeed]:
    """For a small request, and for the checkpoint's default one."""

    def size(name: str, module: nn.Module) -> int:
        def one(parameter: str, p: nn.Parameter) -> int:
            rounded = quantize is not None and parameter.startswith("layers.") and p.ndim == 2
            return p.numel() * (1 if rounded else dtypes[name].itemsize)

        return sum(one(parameter, p) for parameter, p in module.named_parameters())

    towers = parts["transformer"].module
    decoders = sum(size(name, part.module) for name, part in parts.items() if name != "transformer")
    small = MemoryNeed(size("transformer", towers.und), size("transformer", towers.gen), decoders)
    d, m = configs.defaults, configs.media
    rows, columns = (-(-pixels // (2 * m.spatial)) for pixels in (d.height, d.width))
    media_tokens = (d.num_frames // m.temporal + 1) * rows * columns + round(d.num_frames / d.fps * m.sound_latent_fps)
    denoise, decode = working_room(
        configs.transformer,
        configs.vae,
        media_tokens=media_tokens,
        text_tokens=4000,  # a long prompt and the structured negative one
        frame_pixels=d.height * d.width,
        dtypes=(dtypes["transformer"], dtypes["vae"]),
    )
    return small, replace(small, denoise=denoise, decode=decode)


def _is_time_embedder(name: str) -> bool:
    return ".time_embedder." in name


def weight_norm_sources(name: str) -> tuple[str, ...]:
    """The AVAE's file keeps a convolution's weight as magnitude g and direction v, but for those inside ConvNeXt blocks."""
    in_block = name.startswith("encoder.layers.") and name.count(".") > 3
    return (f"{name}_g", f"{name}_v") if name.endswith(".weight") and not in_block else (name,)


def _seconds_since(begin: float, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
