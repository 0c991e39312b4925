"""Sound latents to waveform and back: the AVAE, 25 latents a second to 48 kHz stereo on Nano.

Decoder (Oobleck): a convolution widens the latents; each block then multiplies the length by its stride with a transposed
convolution and refines with three dilated residual units; "Snake" activations add a learned sine, which suits periodic
signals. Encoder: a short-time Fourier transform, then ConvNeXt blocks and strided convolutions. Sound latents are not
normalised. Some releases ship the decoder only, which is all that generation needs.

Read next: `media.py`. Source: Cosmos3AVAEAudioTokenizer of diffusers 0.42.1; Snake: Ziyin et al. 2020, arXiv:2006.08195.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cosmos3_lab.configs import read_fields
from cosmos3_lab.fusing import can_fuse


@dataclass(frozen=True)
class SoundAVAEConfig:
    """The keys of `sound_tokenizer/config.json` that matter here, with Nano's values; `enc_*` only matter for encoding."""

    sampling_rate: int = 48000
    hop_size: int = 1920
    vocoder_input_dim: int = 64
    dec_dim: int = 320
    dec_c_mults: tuple[int, ...] = (1, 2, 4, 8, 16)
    dec_strides: tuple[int, ...] = (2, 4, 5, 6, 8)
    dec_out_channels: int = 2
    enc_dim: int = 192
    enc_num_blocks: int = 2
    enc_n_fft: int = 64
    enc_hop_length: int = 16
    enc_latent_dim: int = 128
    enc_c_mults: tuple[int, ...] = (1, 2, 4)
    enc_strides: tuple[int, ...] = (4, 5, 6)
    normalize_volume: bool = True

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> "SoundAVAEConfig":
        """Read `sound_tokenizer/config.json`.

        Raises:
            ValueError: another decoder than Cosmos3's, or a file that contradicts itself.
        """
        for key, supported in SUPPORTED_DECODER.items():
            if config.get(key, supported) != supported:
                raise ValueError(f"sound_tokenizer/config.json has {key} = {config[key]!r}, only {supported!r} is supported")
        required = ("sampling_rate", "hop_size", "vocoder_input_dim", "dec_dim", "dec_c_mults", "dec_strides")
        built = cls(**read_fields(cls, config, file="sound_tokenizer/config.json", required=required))
        if len(built.dec_c_mults) != len(built.dec_strides):
            raise ValueError("sound_tokenizer/config.json: expected as many dec_c_mults as dec_strides")
        if prod(built.dec_strides) != built.hop_size:
            raise ValueError(
                f"sound_tokenizer/config.json: the product of dec_strides is {prod(built.dec_strides)}, expected the "
                f"hop_size {built.hop_size}"
            )
        return built


SUPPORTED_DECODER: dict[str, Any] = {
    "dec_type": "oobleck",
    "dec_use_snake": True,
    "activation": "snakebeta",
    "snake_logscale": True,
    "dec_final_tanh": False,
    "dec_use_tanh_at_final": False,
    "dec_anti_aliasing": False,
    "anti_aliasing": False,
    "dec_use_nearest_upsample": False,
    "causal": False,
    "padding_mode": "zeros",
    "latent_mean": None,
    "latent_std": None,
}


class Snake(nn.Module):
    """`x + sin(exp(alpha) x)^2 / (exp(beta) + 1e-9)`, with alpha and beta learned per channel on a log scale."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1, channels, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1))

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
        if can_fuse(x):
            from cosmos3_lab.vae_kernels import snake  # imports Triton

            with torch.cuda.device_of(x):  # Triton starts kernels on the current GPU
                return snake(x.contiguous(), self.alpha, self.beta)
        return x + torch.sin(self.alpha.exp() * x).square() / (self.beta.exp() + 1e-9)


class ResidualUnit(nn.Module):
    """A dilated convolution and a pointwise one, each after a Snake, added to the input."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.snake1, self.snake2 = Snake(channels), Snake(channels)
        self.conv1 = nn.Conv1d(channels, channels, 7, dilation=dilation, padding=3 * dilation)
        self.conv2 = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class DecoderBlock(nn.Module):
    """`stride` times the length, then three residual units with dilations 1, 3 and 9."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.snake1 = Snake(channels_in)
        # The output padding makes the length exactly stride * n for odd strides too.
        padding = {"padding": -(-stride // 2), "output_padding": stride % 2}
        self.conv_t1 = nn.ConvTranspose1d(channels_in, channels_out, 2 * stride, stride=stride, **padding)
        self.res_unit1 = ResidualUnit(channels_out, 1)
        self.res_unit2 = ResidualUnit(channels_out, 3)
        self.res_unit3 = ResidualUnit(channels_out, 9)

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b d m"]:
        x = self.conv_t1(self.snake1(x))
        return self.res_unit3(self.res_unit2(self.res_unit1(x)))


class SoundDecoder(nn.Module):
    """Latents to waveform (checkpoint keys `decoder.*`, with weight norm folded in by the loader)."""

    def __init__(self, c: SoundAVAEConfig) -> None:
        super().__init__()
        widths = [c.dec_dim * m for m in (1, *c.dec_c_mults)][::-1]
        self.conv1 = nn.Conv1d(c.vocoder_input_dim, widths[0], 7, padding=3)
        self.block = nn.ModuleList(
            DecoderBlock(a, b, stride) for a, b, stride in zip(widths, widths[1:], reversed(c.dec_strides), strict=False)
        )
        self.snake1 = Snake(widths[-1])
        self.conv2 = nn.Conv1d(widths[-1], c.dec_out_channels, 7, padding=3, bias=False)

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b d m"]:
        x = self.conv1(x)
        for block in self.block:
            x = block(x)
        return self.conv2(self.snake1(x))


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, norm over channels, two pointwise layers with a Snake between, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Index 1 in the checkpoint's names; index 0 is the padding, which has no weights.
        self.dwconv = nn.ModuleList([nn.Identity(), nn.Conv1d(channels, channels, 7, padding=3, groups=channels)])
        self.norm = nn.LayerNorm(channels, eps=1e-5, bias=False)
        self.pwconv1, self.pwconv2 = nn.Conv1d(channels, 4 * channels, 1), nn.Conv1d(4 * channels, channels, 1)
        self.act = Snake(4 * channels)

    def forward(self, x: Float[Tensor, "b c n"]) -> Float[Tensor, "b c n"]:
        n = self.dwconv[1](x).transpose(1, 2)
        n = F.layer_norm(n.float(), self.norm.normalized_shape, self.norm.weight.float(), None, self.norm.eps).to(x.dtype)
        return x + self.pwconv2(self.act(self.pwconv1(n.transpose(1, 2))))


class SoundEncoder(nn.Module):
    """Spectrogram to mean and scale (checkpoint keys `encoder.layers.*`)."""

    def __init__(self, c: SoundAVAEConfig) -> None:
        super().__init__()
        widths = [c.enc_dim * m for m in c.enc_c_mults]
        widths += widths[-1:] * (len(c.enc_strides) + 1 - len(widths))
        layers: list[nn.Module] = [nn.Conv1d((c.enc_n_fft + 2) * c.dec_out_channels, widths[0], 1, bias=False)]
        for width, wider, stride in zip(widths, widths[1:], c.enc_strides, strict=False):
            layers += [ConvNeXtBlock(width) for _ in range(c.enc_num_blocks)]
            layers.append(nn.Conv1d(width, wider, 2 * stride, stride=stride, padding=-(-stride // 2)))
        layers.append(nn.Conv1d(widths[-1], c.enc_latent_dim, 1, bias=False))
        self.layers = nn.Sequential(*layers)

    def forward(self, spectrogram: Float[Tensor, "b c n"]) -> Float[Tensor, "b d m"]:
        return self.layers(spectrogram)


class SoundAVAE(nn.Module):
    """Weights of the AVAE.

    Args:
        config: shapes and rates.
        with_encoder: False leaves the encoder out (its weights are then not read); generation only decodes.
    """

    def __init__(self, config: SoundAVAEConfig, *, with_encoder: bool = False) -> None:
        super().__init__()
        self.config = config
        self.decoder = SoundDecoder(config)
        if with_encoder:
            self.encoder = SoundEncoder(config)


@torch.no_grad()
def decode_sound(avae: SoundAVAE, sound: Float[Tensor, "b n_sound d_sound"]) -> Float[Tensor, "b channels samples"]:
    """Sound latents to waveform.

    Args:
        avae: on whatever device; the latents are brought there.
        sound: latents `[b, n_sound, d_sound]` as they come out of denoising.

    Returns:
        float32 in [-1, 1], `[b, channels, hop_size * n_sound]` at `avae.config.sampling_rate`.
    """
    weight = avae.decoder.conv1.weight
    latents = sound.transpose(1, 2).to(weight.device, weight.dtype)  # the convolutions want channels first
    return avae.decoder(latents).float().clamp(-1, 1)


@torch.no_grad()
def encode_sound(avae: SoundAVAE, waveform: Float[Tensor, "b channels samples"]) -> Float[Tensor, "b n_sound d_sound"]:
    """Waveform to sound latents (the posterior's mean); the end is padded with silence to a whole latent.

    Args:
        avae: with its encoder, on whatever device; the waveform is brought there.
        waveform: in [-1, 1] at `avae.config.sampling_rate`, with the decoder's number of channels (2 on Nano).

    Raises:
        ValueError: the AVAE has no encoder (the file may not hold one), or the number of channels differs.
    """
    c = avae.config
    if not hasattr(avae, "encoder"):
        raise ValueError("got an AVAE without its encoder, load it with load_cosmos3(..., load_encoder=True) if its file has one")
    if waveform.shape[1] != c.dec_out_channels:
        raise ValueError(f"got {waveform.shape[1]} channels, expected {c.dec_out_channels}")
    x = waveform.float()
    if c.normalize_volume:
        x = x / (x.abs().amax(dim=(1, 2), keepdim=True) + 1e-5) * 0.95
    x = F.pad(x, (0, -x.shape[-1] % c.hop_size))
    weight = avae.decoder.conv1.weight
    moments = avae.encoder(spectrogram(x, c).to(weight.device, weight.dtype))
    return moments[:, : c.vocoder_input_dim].transpose(1, 2).float()


def spectrogram(x: Float[Tensor, "b channels samples"], c: SoundAVAEConfig) -> Float[Tensor, "b features frames"]:
    """Real and imaginary parts of a short-time Fourier transform, as the encoder expects them.

    Args:
        x: waveform, a whole number of hops long.
        c: gives the transform's length and hop.

    Returns:
        `[b, channels * (n_fft + 2), samples / hop]`, each channel's real parts before its imaginary ones.
    """
    overlap = c.enc_n_fft - c.enc_hop_length
    padded = F.pad(x.flatten(0, 1), (overlap // 2, overlap - overlap // 2))
    window = torch.hann_window(c.enc_n_fft, device=x.device, dtype=x.dtype)
    transform = torch.stft(padded, c.enc_n_fft, c.enc_hop_length, window=window, center=False, return_complex=True)
    return rearrange(torch.view_as_real(transform), "(b channels) f n part -> b (channels part f) n", b=len(x))
