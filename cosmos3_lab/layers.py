"""The small parts that both towers are built from. `attention` is the one place where a kernel is chosen.

Read next: `transformer.py`, which puts them together.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cosmos3_lab.fusing import can_fuse, kernels_of

# Preferred first; PyTorch takes the first that supports the input.
BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

TILE, LARGE = 128, 4096  # keys of a tile of cuDNN's on a Hopper GPU; queries from which on it pays to mind them

MLP_TOKENS = 8192  # at a time: three intermediates of 0.2 GB instead of 1.1 at 720x1280x189, and large enough for any GPU


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight` over the last axis; the mean is taken in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class MLP(nn.Module):
    """SwiGLU: `down(silu(gate x) * up x)`, no biases. A long sequence goes through in parts, whose intermediates are large."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x: Float[Tensor, "*b s d_model"]) -> Float[Tensor, "*b s d_model"]:
        parts = [self.down_proj(F.silu(self.gate_proj(part)) * self.up_proj(part)) for part in x.split(MLP_TOKENS, dim=-2)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


class TimestepEmbedder(nn.Module):
    """Two linear layers over 128 cosines and 128 sines of the timestep (checkpoint key `time_embedder.*`)."""

    frequencies = 256  # diffusers' Timesteps(num_channels=256), cosines first

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(self.frequencies, d_model)
        self.linear_2 = nn.Linear(d_model, d_model)

    def forward(self, timestep: Float[Tensor, "*b"]) -> Float[Tensor, "*b d_model"]:
        """Embed timesteps, already multiplied by `timestep_scale`. Computed in the timestep's dtype."""
        waves = sinusoids(timestep.float(), self.frequencies).to(timestep.dtype)
        return _linear(self.linear_2, F.silu(_linear(self.linear_1, waves)))


def sinusoids(timestep: Float[Tensor, "*b"], width: int) -> Float[Tensor, "*b width"]:
    """`[cos(t f_0) ... cos(t f_127), sin(t f_0) ... sin(t f_127)]` with `f_k = 10000 ** (-k / 128)` for width 256."""
    half = width // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep[..., None] * exponent.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def apply_rotary(
    x: Float[Tensor, "*b s heads d_head"], cos: Float[Tensor, "s half"], sin: Float[Tensor, "s half"]
) -> Float[Tensor, "*b s heads d_head"]:
    """Rotate the pairs (x[k], x[k + d_head / 2]) of every head by that token's angles."""
    cos, sin = cos[:, None], sin[:, None]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention(
    q: Float[Tensor, "*b s_q heads d_head"],
    k: Float[Tensor, "*b s_k kv_heads d_head"],
    v: Float[Tensor, "*b s_k kv_heads d_head"],
    *,
    causal: bool,
) -> Float[Tensor, "*b s_q d_attn"]:
    """`softmax(q k^T / sqrt(d_head)) v`, where query head j reads key/value head `j // (heads / kv_heads)`.

    Args:
        q, k, v: after QK norm and rotary embedding.
        causal: each query sees only keys at or before its own index.

    Returns:
        `[s_q, heads * d_head]`, for each sample of a batch (only training has one).
    """
    if has_flash_attention_3(q):
        from flashinfer import single_prefill_with_kv_cache

        with torch.cuda.device_of(q):
            return single_prefill_with_kv_cache(q, k, v, causal=causal, backend="fa3").flatten(-2)
    if not causal and _gains_by_whole_tiles(q, k):
        return _attention_in_tiles(q, k, v)
    batch = q.shape[:-3]
    q, k, v = (x.view(-1, *x.shape[-3:]).transpose(1, 2) for x in (q, k, v))  # b heads s d_head
    if q.dtype == torch.float32:  # the kernels that save memory in float32 do not share key/value heads themselves
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    # Training meets a new text length at almost every step, for each of which cuDNN would first make a plan.
    with sdpa_kernel(BACKENDS[1:] if q.requires_grad else BACKENDS, set_priority=True):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2).reshape(*batch, q.shape[2], -1)


def has_flash_attention_3(q: Tensor) -> bool:
    """Whether FlashInfer (`pip install cosmos3-lab[flashinfer]`) is there, with a GPU for its version of Flash Attention 3.

    Args:
        q: queries, `[s_q, heads, d_head]`.
    """
    return _is_like_nano(q) and can_fuse(q) and "flashinfer" in kernels_of(q.device)


def _is_like_nano(q: Tensor) -> bool:
    return q.ndim == 3 and q.dtype == torch.bfloat16 and q.shape[-1] == 128


def _gains_by_whole_tiles(q: Tensor, k: Tensor) -> bool:
    """Whether cuDNN is faster with keys that fill its tiles: on Hopper, by 2 to 7 % (`benchmarks/attention_variants.py`)."""
    large = len(q) >= LARGE and len(k) > TILE and len(k) % TILE != 0
    return large and _is_like_nano(q) and can_fuse(q) and torch.cuda.get_device_capability(q.device) == (9, 0)


def _attention_in_tiles(
    q: Float[Tensor, "s_q heads d_head"], k: Float[Tensor, "s_k kv_heads d_head"], v: Float[Tensor, "s_k kv_heads d_head"]
) -> Float[Tensor, "s_q d_attn"]:
    """cuDNN's attention over as many keys as fill its tiles, then ours over the few that are left; rounded once more by that."""
    from cosmos3_lab.kernels import see_more  # imports Triton

    tiles = len(k) // TILE * TILE
    given = (x[None].transpose(1, 2) for x in (q, k[:tiles], v[:tiles]))  # b heads s d_head
    # What `F.scaled_dot_product_attention` calls for cuDNN; it alone gives the sums that the other keys are to be added to.
    seen, lse = torch.ops.aten._scaled_dot_product_cudnn_attention(*given, None, True)[:2]
    seen = seen[0].transpose(0, 1).contiguous()
    with torch.cuda.device_of(q):
        see_more(q.contiguous(), k[tiles:].contiguous(), v[tiles:].contiguous(), seen, lse.view(q.shape[1], -1))
    return seen.flatten(1)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """The layer in the dtype of its input; the time embedder is stored in float32 and one preset runs it in bfloat16."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
