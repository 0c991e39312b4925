"""What each stage of a clip costs in FLOPs and in bytes, from the config files alone: the stages run under a `Meter`.

    encode   both prompts through UND, whose K/V stay           (once)
    denoise  both branches through GEN                          (every step)
    decode   VAE and AVAE, chunk by chunk                       (once)

Read next: `plan.py`, which decides with these numbers; `speed.py`, which turns FLOPs into seconds.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cosmos3_lab.checkpoint import plan_components
from cosmos3_lab.latents import Latents
from cosmos3_lab.media import to_uint8_frames
from cosmos3_lab.meter import MIB, Flops, Meter, peak_bytes
from cosmos3_lab.positions import TokenLayout
from cosmos3_lab.settings import CheckpointConfigs, Defaults
from cosmos3_lab.sizes import effective_num_frames, pixel_to_latent_shape, sound_latent_frames
from cosmos3_lab.sound_avae import SoundAVAE, SoundAVAEConfig, decode_sound
from cosmos3_lab.towers import Cosmos3Config, Cosmos3Transformer, LayerKV, Rope
from cosmos3_lab.transformer import Cosmos3Condition, embed_gen_tokens, project_velocity, run_gen_layers
from cosmos3_lab.video_vae import VideoVAE, VideoVAEConfig, iter_decode_video, use_channels_last

# Float32 latents that are alive during a forward pass: four of the solver, one velocity, five of the last step's record.
LIVE_LATENTS = 10
WATCHED_LAYERS = 2  # of GEN; they are all alike
CUBLAS_WORKSPACE = 32 * MIB  # PyTorch's own, on Hopper; less on other GPUs
# Of a convolution's input and output together. Contiguous ones borrowed all of it (fitted to the decoding peaks of
# 821c8e1, which it gives within 0.3 %: 33.64 and 39.10 GiB); channels-last ones a third of that (shared/bench/README.md).
CONVOLUTION_WORKSPACE = 1 / 3


NANO_TEXT_TOKENS = (200, 3400)  # a prompt and the structured negative prompt, as in the references' measurements


def nano_configs() -> CheckpointConfigs:
    """The settings of Cosmos3-Nano, for planning without its folder."""
    defaults = Defaults(name="Cosmos3-Nano")
    return CheckpointConfigs(Path("nano"), Cosmos3Config(), VideoVAEConfig(), SoundAVAEConfig(), None, defaults)


def parse_size(text: str) -> tuple[int, int, int]:
    """`"720x1280x189"` to `(height, width, num_frames)`.

    Raises:
        ValueError: not three whole numbers.
    """
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})x(\d{1,6})", text.strip().lower())
    if found is None:
        raise ValueError(f"got size {text!r}, expected HEIGHTxWIDTHxFRAMES, try 720x1280x189")
    return tuple(int(number) for number in found.groups())


@dataclass(frozen=True)
class Clip:
    """A clip in pixels and in tokens.

    Attributes:
        height, width, num_frames, fps: in pixels, frames and frames a second; `num_frames` is 4k + 1.
        layout: video and sound tokens; its `s_text` is 0.
    """

    height: int
    width: int
    num_frames: int
    fps: float
    layout: TokenLayout

    @property
    def name(self) -> str:
        """As on the command line, `HxWxFRAMES`."""
        return f"{self.height}x{self.width}x{self.num_frames}"

    @property
    def pixels(self) -> int:
        """Of all frames."""
        return self.height * self.width * self.num_frames


def make_clip(configs: CheckpointConfigs, height: int, width: int, num_frames: int, *, with_sound: bool) -> Clip:
    """A clip of this size at the checkpoint's frame rate.

    Args:
        configs: of the checkpoint.
        height, width: in pixels.
        num_frames: rounded down to 4k + 1.
        with_sound: False leaves the sound tokens out.

    Raises:
        ValueError: a size that the VAE cannot make.
    """
    media, fps = configs.media, configs.defaults.fps
    shape = pixel_to_latent_shape(num_frames, height, width, temporal=media.temporal, spatial=media.spatial)
    frames = effective_num_frames(num_frames, temporal=media.temporal)
    rates = {"sampling_rate": media.sampling_rate, "hop_size": media.hop_size}
    sound = sound_latent_frames(frames, fps, **rates) if with_sound else 0
    return Clip(height, width, frames, fps, TokenLayout(0, shape, configs.transformer.latent_patch_size, sound))


@dataclass(frozen=True, eq=False)
class MetaModels:
    """The modules of a run on the meta device: their shapes, their code and none of their numbers."""

    transformer: Cosmos3Transformer
    vae: VideoVAE
    avae: SoundAVAE | None

    @property
    def decoders(self) -> list[nn.Module]:
        """Of video and, with sound, of sound."""
        return [module for module in (self.vae, self.avae) if module is not None]


def meta_models(configs: CheckpointConfigs, *, with_sound: bool, dtype: torch.dtype) -> MetaModels:
    """The modules that `load_cosmos3` would fill.

    Args:
        configs: of the checkpoint.
        with_sound: whether the run makes sound.
        dtype: of the weights; the time embedder stays float32.
    """
    parts = {name: part.module.to(dtype) for name, part in plan_components(configs, with_sound=with_sound).items()}
    parts["transformer"].gen.time_embedder.float()
    use_channels_last(parts["vae"])
    return MetaModels(parts["transformer"], parts["vae"], parts.get("sound_tokenizer"))


@dataclass(frozen=True)
class Cost:
    """Of one stage.

    Attributes:
        flops: of the whole stage; of one step where the stage is denoising.
        events: how its tensors come and go (see `meter.py`), from text K/V and latents to the last activation.
        kept: bytes of those that are there all the time.
        layers: how often a layer of a tower is called.
    """

    flops: Flops
    events: tuple[int, ...] = field(repr=False)
    kept: int
    layers: int = 0


def parameter_bytes(modules: Iterable[nn.Module]) -> list[int]:
    """Bytes of every parameter; as events, that is loading them."""
    return [parameter.nbytes for module in modules for parameter in module.parameters()]


def encode_cost(models: MetaModels, text_tokens: tuple[int, ...]) -> Cost:
    """Prompts through the UND tower, layer by layer.

    Args:
        models: from `meta_models`.
        text_tokens: of the prompt and, where guidance needs it, of the negative prompt.
    """
    meter, d_model = Meter(), models.transformer.config.hidden_size
    with meter.watching():
        texts = [_empty(models, n, d_model) for n in text_tokens]
        ropes, kept = [_rope(models, n) for n in text_tokens], []
        for layer in models.transformer.und.layers:
            for i, rope in enumerate(ropes):
                texts[i], kv = layer(texts[i], rope)
                kept.append(kv)
        nbytes = sum(kv.k.nbytes + kv.v.nbytes for kv in kept)
        del texts, ropes, rope, kept, kv
    return Cost(meter.flops, tuple(meter.events), nbytes, len(models.transformer.und.layers) * len(text_tokens))


def denoise_cost(models: MetaModels, clip: Clip, text_tokens: tuple[int, ...]) -> Cost:
    """One step: the GEN tower for every branch.

    Args:
        models, text_tokens: see `encode_cost`.
        clip: from `make_clip`.
    """
    meter, flops = Meter(), Flops()
    with meter.watching():
        conditions, latents = [_condition(models, clip, n) for n in text_tokens], _latents(models, clip)
        others = [_latents(models, clip) for _ in range(LIVE_LATENTS - 1)]
        kept = peak_bytes(meter.events)
        for condition in conditions:
            flops += _watch_velocity(meter, models.transformer, latents, condition)
        del conditions, condition, latents, others
    return Cost(flops, tuple(meter.events), kept, len(models.transformer.gen.layers) * len(text_tokens))


def _watch_velocity(meter: Meter, transformer: Cosmos3Transformer, latents: Latents, condition: Cosmos3Condition) -> Flops:
    """`predict_velocity` with a few of its layers, and the FLOPs of all: they are alike."""
    count, begin = len(transformer.gen.layers), meter.flops
    watched = min(count, WATCHED_LAYERS)
    tokens = embed_gen_tokens(transformer, latents, 500)
    before = meter.flops
    out = run_gen_layers(transformer, tokens, condition, stop=watched)
    layers = meter.flops - before
    project_velocity(transformer, out, condition.layout)
    return meter.flops - begin + layers * (count / watched - 1)


def decode_cost(models: MetaModels, clip: Clip, text_tokens: tuple[int, ...]) -> Cost:
    """Latents to pixels and waveform; the run still holds the text K/V.

    Args:
        models, text_tokens: see `encode_cost`.
        clip: from `make_clip`.
    """
    meter = Meter(workspace=CONVOLUTION_WORKSPACE)
    with meter.watching():
        conditions, latents = [_condition(models, clip, n) for n in text_tokens], _latents(models, clip)
        kept = peak_bytes(meter.events)
        if models.avae is not None and latents.sound is not None:
            decode_sound(models.avae, latents.sound)
        sound, done = meter.flops, [(0, Flops())]  # frames so far, FLOPs so far
        for pixels in iter_decode_video(models.vae, latents.video):
            done.append((done[-1][0] + len(to_uint8_frames(pixels)), meter.flops - sound))
            if len(done) == 4:  # the first chunk is one frame, the second finds no past; from the third on all are alike
                break
        del pixels, conditions, latents
    return Cost(sound + _whole_clip(done[1:], clip.num_frames), tuple(meter.events), kept)


def _whole_clip(done: list[tuple[int, Flops]], num_frames: int) -> Flops:
    """FLOPs of all frames, where every frame after the first chunk costs the same."""
    (first_frames, first), (frames, flops) = done[0], done[-1]
    if frames == first_frames:
        return first
    return first + (flops - first) * ((num_frames - first_frames) / (frames - first_frames))


def _empty(models: MetaModels, *shape: int) -> Tensor:
    return torch.empty(*shape, dtype=models.transformer.dtype, device="meta")


def _rope(models: MetaModels, tokens: int) -> Rope:
    return Rope(*(_empty(models, tokens, models.transformer.config.head_dim // 2) for _ in range(2)))


def _condition(models: MetaModels, clip: Clip, text_tokens: int) -> Cosmos3Condition:
    """A prompt of so many tokens, encoded: the shapes of it."""
    c = models.transformer.config
    shape = (text_tokens, c.num_key_value_heads, c.head_dim)
    kv = tuple(LayerKV(_empty(models, *shape), _empty(models, *shape)) for _ in range(c.num_hidden_layers))
    return Cosmos3Condition(kv, _rope(models, clip.layout.s_gen), replace(clip.layout, s_text=text_tokens))


def _latents(models: MetaModels, clip: Clip) -> Latents:
    """As the solver keeps them, in float32."""
    c, n_sound = models.transformer.config, clip.layout.n_sound
    video = torch.empty(1, c.latent_channel, *clip.layout.video_shape, device="meta")
    return Latents(video, torch.empty(1, n_sound, c.sound_dim, device="meta") if n_sound else None)
