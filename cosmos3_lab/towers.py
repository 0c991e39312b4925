"""The weights of both towers, and what one layer does. Nothing else lives in the modules.

A parameter is called in the module as in the checkpoint, behind the tower's name: the file's
`layers.17.self_attn.add_q_proj.weight` is `transformer.gen.layers[17].self_attn.add_q_proj.weight`, and
`layers.17.self_attn.to_q.weight` is `transformer.und.layers[17].self_attn.to_q.weight`.

Read next: `transformer.py`, which runs them. Source: Cosmos3OmniTransformer of diffusers 0.42.1 and PhyAI's Cosmos3 model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cosmos3_lab.configs import read_fields
from cosmos3_lab.fusing import can_fuse, is_watched
from cosmos3_lab.layers import MLP, RMSNorm, TimestepEmbedder, apply_rotary, attention


@dataclass(frozen=True)
class Cosmos3Config:
    """Shape of both towers: the keys of `transformer/config.json` that matter here, with Nano's values.

    `temporal_compression_factor` is not in Nano's file; the loader takes it from `vae/config.json`. `mrope_section` is inside
    the file's `rope_scaling`, or is its `rope_axes_dim` in newer exports.
    """

    hidden_size: int = 4096
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 12288
    vocab_size: int = 151936
    rms_norm_eps: float = 1e-6
    rope_theta: float = 5_000_000.0
    mrope_section: tuple[int, int, int] = (24, 20, 20)
    latent_channel: int = 48
    latent_patch_size: int = 2
    timestep_scale: float = 0.001
    base_fps: float = 24.0
    enable_fps_modulation: bool = True
    temporal_compression_factor: int = 4
    unified_3d_mrope_temporal_modality_margin: int = 15000
    sound_gen: bool = True
    sound_dim: int | None = 64
    sound_latent_fps: float = 25.0

    @property
    def patch_latent_dim(self) -> int:
        """Numbers in one video token, `patch * patch * latent_channel`."""
        return self.latent_patch_size**2 * self.latent_channel

    @classmethod
    def from_dict(cls, config: Mapping[str, Any], *, temporal_compression_factor: int = 4) -> "Cosmos3Config":
        """Read `transformer/config.json`.

        Raises:
            ValueError: the file describes an architecture that is not Cosmos3-Nano's (such as Edge's `relu2`), or
                contradicts itself.
        """
        for key, (supported, meaning) in SUPPORTED_ARCHITECTURE.items():
            if config.get(key) not in (None, supported):
                raise ValueError(
                    f"transformer/config.json has {key} = {config[key]!r} ({meaning}); only {supported!r} is supported, "
                    "the architecture of Cosmos3-Nano"
                )
        rope_scaling = config.get("rope_scaling") or {}
        if not isinstance(rope_scaling, dict) or not rope_scaling.get("mrope_interleaved", True):
            raise ValueError("transformer/config.json has another rope_scaling than the interleaved mRoPE of Cosmos3-Nano")
        given = {k: v for k, v in config.items() if k != "temporal_compression_factor"}
        given["mrope_section"] = config.get("rope_axes_dim") or rope_scaling.get("mrope_section")
        given["sound_gen"] = config.get("sound_gen") or False  # a silent export may leave it out
        optional = ("temporal_compression_factor", "sound_dim", "sound_latent_fps")
        required = tuple(f.name for f in fields(cls) if f.name not in optional)
        known = read_fields(cls, given, file="transformer/config.json", required=required)
        known.setdefault("sound_dim", None)
        built = cls(**known, temporal_compression_factor=temporal_compression_factor)
        built._check(config.get("patch_latent_dim", built.patch_latent_dim))
        return built

    def _check(self, patch_latent_dim: int) -> None:
        if patch_latent_dim != self.patch_latent_dim:
            raise ValueError(
                f"transformer/config.json has patch_latent_dim = {patch_latent_dim}, expected latent_patch_size ** 2 * "
                f"latent_channel = {self.patch_latent_dim}"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"transformer/config.json has {self.num_attention_heads} attention heads and {self.num_key_value_heads} "
                "key/value heads, expected a whole number of query heads for each"
            )
        if len(self.mrope_section) != 3 or sum(self.mrope_section) * 2 != self.head_dim:
            raise ValueError(
                f"transformer/config.json has mRoPE sections {list(self.mrope_section)}, expected three numbers with "
                f"the sum head_dim / 2 = {self.head_dim // 2}"
            )
        if self.sound_gen and self.sound_dim is None:
            raise ValueError("transformer/config.json has sound_gen = true, expected a sound_dim with it")


# Anything else under these keys is another architecture, and would load and then compute nonsense.
SUPPORTED_ARCHITECTURE: dict[str, tuple[Any, str]] = {
    "hidden_act": ("silu", "the MLP's activation; relu2 is the Edge family"),
    "attention_bias": (False, "biases in attention"),
    "qk_norm_for_text": (True, "RMS norm of queries and keys in the text tower"),
    "qk_norm_for_diffusion": (True, "RMS norm of queries and keys in the media tower"),
    "use_und_k_norm_for_gen": (False, "an extra norm of the text keys"),
    "joint_attn_implementation": ("two_way", "how the towers attend to each other"),
    "unified_3d_mrope_reset_spatial_ids": (True, "rows and columns count from zero"),
    "temporal_compression_factor_sound": (1, "sound tokens per sound latent"),
    "position_embedding_type": ("unified_3d_mrope", "how positions enter"),
    "video_temporal_causal": (False, "a causal mask over frames"),
}


@dataclass(frozen=True, eq=False)
class Rope:
    """Cosine and sine `[s, d_head / 2]` of a sequence, in the model's dtype."""

    cos: Float[Tensor, "s half"]
    sin: Float[Tensor, "s half"]


@dataclass(frozen=True, eq=False)
class LayerKV:
    """Keys and values `[s_text, kv_heads, d_head]` of one UND layer, after QK norm and rotary embedding."""

    k: Float[Tensor, "*b s kv_heads d_head"]
    v: Float[Tensor, "*b s kv_heads d_head"]


class UNDAttention(nn.Module):
    """Projections of one UND layer (checkpoint `layers.{i}.self_attn.to_*`, `norm_q`, `norm_k`)."""

    def __init__(self, c: Cosmos3Config) -> None:
        super().__init__()
        width, kv_width = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.to_q = nn.Linear(c.hidden_size, width, bias=False)
        self.to_k = nn.Linear(c.hidden_size, kv_width, bias=False)
        self.to_v = nn.Linear(c.hidden_size, kv_width, bias=False)
        self.to_out = nn.Linear(width, c.hidden_size, bias=False)
        self.norm_q = RMSNorm(c.head_dim, c.rms_norm_eps)
        self.norm_k = RMSNorm(c.head_dim, c.rms_norm_eps)


class GENAttention(nn.Module):
    """Projections of one GEN layer (checkpoint `layers.{i}.self_attn.add_*`, `to_add_out`, `norm_added_*`)."""

    def __init__(self, c: Cosmos3Config) -> None:
        super().__init__()
        width, kv_width = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.add_q_proj = nn.Linear(c.hidden_size, width, bias=False)
        self.add_k_proj = nn.Linear(c.hidden_size, kv_width, bias=False)
        self.add_v_proj = nn.Linear(c.hidden_size, kv_width, bias=False)
        self.to_add_out = nn.Linear(width, c.hidden_size, bias=False)
        self.norm_added_q = RMSNorm(c.head_dim, c.rms_norm_eps)
        self.norm_added_k = RMSNorm(c.head_dim, c.rms_norm_eps)


class UNDLayer(nn.Module):
    """One layer of the text tower."""

    def __init__(self, c: Cosmos3Config) -> None:
        super().__init__()
        self.self_attn = UNDAttention(c)
        self.mlp = MLP(c.hidden_size, c.intermediate_size)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Float[Tensor, "*b s d_model"], rope: Rope) -> tuple[Float[Tensor, "*b s d_model"], LayerKV]:
        attended, kv = self.attend(self.input_layernorm(x), rope)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), kv

    def attend(self, n: Float[Tensor, "*b s d_model"], rope: Rope) -> tuple[Float[Tensor, "*b s d_model"], LayerKV]:
        """Attention alone, of normed tokens to those before them."""
        a = self.self_attn
        q = _heads(a.to_q(n), a.norm_q, rope)
        k = _heads(a.to_k(n), a.norm_k, rope)
        v = a.to_v(n).unflatten(-1, k.shape[-2:])  # values are neither normed nor rotated
        return a.to_out(attention(q, k, v, causal=True)), LayerKV(k, v)


class GENLayer(nn.Module):
    """One layer of the media tower."""

    def __init__(self, c: Cosmos3Config) -> None:
        super().__init__()
        self.self_attn = GENAttention(c)
        self.mlp_moe_gen = MLP(c.hidden_size, c.intermediate_size)
        self.input_layernorm_moe_gen = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm_moe_gen = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x: Float[Tensor, "*b s d_model"], text: LayerKV, rope: Rope) -> Float[Tensor, "*b s d_model"]:
        if _fuses(self, x):
            from cosmos3_lab.fused import fused_layer  # imports Triton

            with torch.cuda.device_of(x):  # Triton starts kernels on the current GPU
                return fused_layer(self, x, text, rope)
        x = x + self.attend(self.input_layernorm_moe_gen(x), text, rope)
        return x + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(x))

    def attend(self, n: Float[Tensor, "*b s d_model"], text: LayerKV, rope: Rope) -> Float[Tensor, "*b s d_model"]:
        """Attention alone, of normed tokens to the text and to each other; its q, k and v are gone when the MLP begins."""
        a = self.self_attn
        q = _heads(a.add_q_proj(n), a.norm_added_q, rope)
        k = _heads(a.add_k_proj(n), a.norm_added_k, rope)
        v = a.add_v_proj(n).unflatten(-1, k.shape[-2:])
        seen = attention(q, torch.cat([text.k, k], dim=-3), torch.cat([text.v, v], dim=-3), causal=False)  # text first
        return a.to_add_out(seen)


def _fuses(layer: "GENLayer", x: Tensor) -> bool:
    """Whether `fused_layer` stands for the layer: one sample on a GPU, and nobody looks inside."""
    a = layer.self_attn
    d_head = len(a.norm_added_q.weight)
    sizes = d_head, *(p.weight.shape[0] // d_head for p in (a.add_q_proj, a.add_k_proj))
    powers_of_two = all(n & (n - 1) == 0 for n in sizes)  # which Triton's blocks are made of
    return x.ndim == 2 and powers_of_two and can_fuse(x) and not is_watched(layer)


class UNDTower(nn.Module):
    """The text tower. Its final norm and `lm_head` exist in the checkpoint and are never used for media."""

    def __init__(self, c: Cosmos3Config) -> None:
        super().__init__()
        # Not nn.Embedding(...), which draws random weights: on the meta device that alone imports torch._dynamo, for a second.
        self.embed_tokens = nn.Embedding.from_pretrained(torch.empty(c.vocab_size, c.hidden_size), freeze=False)
        self.layers = nn.ModuleList(UNDLayer(c) for _ in range(c.num_hidden_layers))


class GENTower(nn.Module):
    """The media tower with its ways in (`proj_in`, `audio_proj_in`, `time_embedder`) and out (`proj_out`, ...)."""

    def __init__(self, c: Cosmos3Config, *, with_sound: bool) -> None:
        super().__init__()
        self.proj_in = nn.Linear(c.patch_latent_dim, c.hidden_size)
        self.proj_out = nn.Linear(c.hidden_size, c.patch_latent_dim)
        self.time_embedder = TimestepEmbedder(c.hidden_size)
        self.layers = nn.ModuleList(GENLayer(c) for _ in range(c.num_hidden_layers))
        self.norm_moe_gen = RMSNorm(c.hidden_size, c.rms_norm_eps)
        if with_sound:
            self.audio_proj_in = nn.Linear(c.sound_dim, c.hidden_size)
            self.audio_proj_out = nn.Linear(c.hidden_size, c.sound_dim)
            self.audio_modality_embed = nn.Parameter(torch.zeros(c.hidden_size))


class Cosmos3Transformer(nn.Module):
    """Both towers, as separate modules: `.und` is idle after the prompt was encoded, `.gen` before.

    Args:
        config: shapes.
        with_sound: False leaves the sound projections out (their weights are then not read).
    """

    def __init__(self, config: Cosmos3Config, *, with_sound: bool = True) -> None:
        super().__init__()
        self.config = config
        self.with_sound = with_sound and config.sound_gen
        self.und = UNDTower(config)
        self.gen = GENTower(config, with_sound=self.with_sound)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights (the time embedder stays float32)."""
        return self.gen.proj_in.weight.dtype


def _heads(projected: Tensor, norm: RMSNorm, rope: Rope) -> Tensor:
    """Split into heads, norm each head, rotate: the order that the cached keys rely on."""
    return apply_rotary(norm(projected.unflatten(-1, (-1, len(norm.weight)))), rope.cos, rope.sin)
