"""A GEN layer for a GPU: the same layer as `towers.GENLayer.forward`, with fewer passes over memory.

    plain                                            here
    norm of heads, rotation: about ten passes        one kernel
    K and V of text and media concatenated           the media's are written behind the text's
    silu, product: five passes                       one kernel of three
    sums with the residual stream                    inside the matrix products
    MLP in parts, then concatenated                  each part added into the residual stream

Results differ from the plain layer's by rounding alone: what it rounds to bfloat16 after every operation stays in float32
here until the end of a kernel. `GENLayer.forward` chooses; the plain layer is what runs on a CPU, in training, and wherever
a hook wants to look into the layer.

Read next: `kernels.py`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cosmos3_lab.kernels import FP8, Rows8, norm_and_rotate, rms_norm, round_to_fp8, silu_times
from cosmos3_lab.layers import MLP, MLP_TOKENS, RMSNorm, attention
from cosmos3_lab.quantized import QuantizedLinear, multiplies_fp8


def fused_layer(layer: nn.Module, x: Float[Tensor, "s d_model"], text: Any, rope: Any) -> Float[Tensor, "s d_model"]:  # noqa: ANN401
    """What `layer(x, text, rope)` computes.

    Args:
        layer: a `GENLayer` on the GPU.
        x: tokens; left as they are.
        text: `LayerKV` of the UND layer.
        rope: `Rope` of the tokens.
    """
    x = attend(layer, x.contiguous(), text, rope)
    add_mlp(layer.mlp_moe_gen, x, _norm(layer.post_attention_layernorm_moe_gen, x, layer.mlp_moe_gen.gate_proj))
    return x


def attend(layer: nn.Module, x: Float[Tensor, "s d_model"], text: Any, rope: Any) -> Float[Tensor, "s d_model"]:  # noqa: ANN401
    """The tokens plus what attention adds to them.

    Args:
        layer, x, text, rope: see `fused_layer`.
    """
    a, (s_text, *heads) = layer.self_attn, text.k.shape
    n = _norm(layer.input_layernorm_moe_gen, x, a.add_q_proj)
    k, v = (x.new_empty(s_text + len(x), *heads) for _ in "kv")
    k[:s_text], v[:s_text] = text.k, text.v
    v[s_text:] = _product(a.add_v_proj, n, x.dtype).view(len(x), *heads)
    rotated = _product(a.add_k_proj, n, x.dtype).view(len(x), *heads)
    norm_and_rotate(rotated, a.norm_added_k.weight, a.norm_added_k.eps, rope.cos, rope.sin, k[s_text:])
    q = _product(a.add_q_proj, n, x.dtype).view(len(x), -1, heads[-1])
    norm_and_rotate(q, a.norm_added_q.weight, a.norm_added_q.eps, rope.cos, rope.sin, q)
    seen = attention(q, k, v, causal=False)
    del n, q, k, v, rotated
    if type(a.to_add_out) is nn.Linear:
        return torch.addmm(x, seen, a.to_add_out.weight.T)
    return x + _product(a.to_add_out, round_to_fp8(seen) if _multiplies_fp8(a.to_add_out, x.dtype) else seen, x.dtype)


def add_mlp(mlp: MLP, x: Float[Tensor, "s d_model"], n: Float[Tensor, "s d_model"] | Rows8) -> None:
    """Add `mlp(n)` to the tokens, in place, a part of them at a time.

    Args:
        mlp: of the layer.
        x: the residual stream, written to.
        n: the normed tokens.
    """
    fp8 = isinstance(n, Rows8)
    parts = zip(*(t.split(MLP_TOKENS) for t in n), strict=True) if fp8 else n.split(MLP_TOKENS)
    for stream, part in zip(x.split(MLP_TOKENS), parts, strict=True):
        part = Rows8(*part) if fp8 else part
        gate, up = _product(mlp.gate_proj, part, x.dtype), _product(mlp.up_proj, part, x.dtype)
        hidden = silu_times(gate, up, fp8=fp8)
        if type(mlp.down_proj) is nn.Linear:
            stream.addmm_(hidden, mlp.down_proj.weight.T)
        else:
            stream += _product(mlp.down_proj, hidden, x.dtype)


def _norm(norm: RMSNorm, x: Tensor, following: nn.Module) -> Tensor | Rows8:
    """Normed tokens in the form in which the product that follows wants them."""
    return rms_norm(x, norm.weight, norm.eps, fp8=_multiplies_fp8(following, x.dtype))


def _product(linear: nn.Linear | QuantizedLinear, x: Tensor | Rows8, dtype: torch.dtype) -> Tensor:
    """The layer's product, of tokens in either form."""
    return linear.multiply(*x, dtype=dtype) if isinstance(x, Rows8) else linear(x)


def _multiplies_fp8(linear: nn.Module, dtype: torch.dtype) -> bool:
    """Whether the product takes tokens in fp8. Where the GPU cannot multiply them, the layer rounds them itself."""
    return isinstance(linear, QuantizedLinear) and linear.weight.dtype == FP8 and multiplies_fp8(linear.weight.device, dtype)
