"""What would make a GEN layer faster: one layer at full Nano width, written in several ways, each held to the plain one.

    python benchmarks/layer_variants.py [--sizes 480x832x49,720x1280x189] [--text 200,3400] [--variants plain,...] [--tiny]

Milliseconds of one layer by CUDA events, with what GEMMs and attention alone take in it; how far the result is from the plain
layer's; peak memory. What pays goes into the package, what does not into NOTES.md.
"""

import argparse
import copy
import os
from contextlib import contextmanager

import torch
from measuring import Results, median_seconds, peak_gpu
from nano_parts import profile
from torch import nn
from torch.nn import functional as F

from cosmos3_lab import layers
from cosmos3_lab.layers import apply_rotary, attention
from cosmos3_lab.quantized import quantize_tower
from cosmos3_lab.random_checkpoint import RECIPES
from cosmos3_lab.sizes import pixel_to_latent_shape, sound_latent_frames
from cosmos3_lab.towers import GENLayer, LayerKV, Rope


def plain(layer, x, text, rope):
    return layer(x, text, rope)


@contextmanager
def kernels_of(name):
    """The package's own layer as it is written in towers.py, or as the kernels do it; attention by FlashInfer or by PyTorch."""
    os.environ["COSMOS3_PLAIN"] = "" if "fused" in name.split() else "1"
    found = layers.has_flash_attention_3
    layers.has_flash_attention_3 = lambda q: "flashinfer" in name
    try:
        yield
    finally:
        layers.has_flash_attention_3, os.environ["COSMOS3_PLAIN"] = found, ""


def rounded(layer, kind):
    """A copy whose products are 8-bit ones, made once."""
    if not hasattr(layer, f"as_{kind}"):
        holder = nn.Module()
        holder.layers = nn.ModuleList([copy.deepcopy(layer).cpu()])
        device = next(layer.parameters()).device
        quantize_tower(holder, kind, device=device, home=device)
        object.__setattr__(layer, f"as_{kind}", holder.layers[0])
    return getattr(layer, f"as_{kind}")


def by_hand(layer, x, text, rope, fuse=True):
    """The layer as one function: one product for q, k, v, one for gate and up, residuals added inside the products."""
    a, m = layer.self_attn, layer.mlp_moe_gen
    d, kv, eps = len(a.norm_added_q.weight), text.k.shape[-2], a.norm_added_q.eps
    n = F.rms_norm(x, x.shape[-1:], layer.input_layernorm_moe_gen.weight, eps)
    if fuse:
        q, k, v = F.linear(n, layer.qkv).unflatten(-1, (-1, d)).split([layer.qkv.shape[0] // d - 2 * kv, kv, kv], dim=-2)
    else:
        q, k, v = (p(n).unflatten(-1, (-1, d)) for p in (a.add_q_proj, a.add_k_proj, a.add_v_proj))
    q = apply_rotary(F.rms_norm(q, (d,), a.norm_added_q.weight, eps), rope.cos, rope.sin)
    k = apply_rotary(F.rms_norm(k, (d,), a.norm_added_k.weight, eps), rope.cos, rope.sin)
    seen = attention(q, torch.cat([text.k, k]), torch.cat([text.v, v]), causal=False)
    x = torch.addmm(x, seen, a.to_add_out.weight.t())
    n = F.rms_norm(x, x.shape[-1:], layer.post_attention_layernorm_moe_gen.weight, eps)
    if fuse:
        gate, up = F.linear(n, layer.gate_up).chunk(2, dim=-1)
    else:
        gate, up = m.gate_proj(n), m.up_proj(n)
    return torch.addmm(x, F.silu(gate) * up, m.down_proj.weight.t())


def in_8_bits(kind):
    return lambda layer, *given: rounded(layer, kind)(*given)


def compiled(function, **options):
    def build():
        torch._dynamo.reset()
        return torch.compile(function, dynamic=False, **options)

    return build


def quantized(layer, x, text, rope):
    """Row-wise fp8 in all products; weights are quantized once."""
    a = layer.self_attn
    d, kv, eps = len(a.norm_added_q.weight), text.k.shape[-2], a.norm_added_q.eps
    n = F.rms_norm(x, x.shape[-1:], layer.input_layernorm_moe_gen.weight, eps)
    qkv = product8(n, layer.qkv8).unflatten(-1, (-1, d))
    q, k, v = qkv.split([qkv.shape[-2] - 2 * kv, kv, kv], dim=-2)
    q = apply_rotary(F.rms_norm(q, (d,), a.norm_added_q.weight, eps), rope.cos, rope.sin)
    k = apply_rotary(F.rms_norm(k, (d,), a.norm_added_k.weight, eps), rope.cos, rope.sin)
    seen = attention(q, torch.cat([text.k, k]), torch.cat([text.v, v]), causal=False)
    x = x + product8(seen, layer.out8)
    n = F.rms_norm(x, x.shape[-1:], layer.post_attention_layernorm_moe_gen.weight, eps)
    gate, up = product8(n, layer.gate_up8).chunk(2, dim=-1)
    return x + product8(F.silu(gate) * up, layer.down8)


def rows_as_fp8(x):
    """Each row divided by its scale, and the scales."""
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp_min(1e-12) / 448
    return (x / scale).to(torch.float8_e4m3fn), scale


def product8(x, weight8):
    x8, scale = rows_as_fp8(x)
    w8, w_scale = weight8
    return torch._scaled_mm(x8, w8.t(), scale_a=scale, scale_b=w_scale.t(), out_dtype=x.dtype, use_fast_accum=True)


VARIANTS = {
    "plain": lambda: plain,
    "plain compiled": compiled(plain),
    "by hand": lambda: by_hand,
    "by hand compiled": compiled(by_hand),
    "by hand unfused compiled": compiled(lambda *args: by_hand(*args, fuse=False)),
    "by hand flashinfer": lambda: by_hand,
    "fp8 compiled": compiled(quantized),
    "fused": lambda: plain,
    "fused flashinfer": lambda: plain,
    "fp8": lambda: in_8_bits("fp8"),
    "fp8 fused": lambda: in_8_bits("fp8"),
    "fp8 fused flashinfer": lambda: in_8_bits("fp8"),
    "int8 fused": lambda: in_8_bits("int8"),
}


def build_layer(config, device, dtype):
    with torch.device(device):
        layer = GENLayer(config).to(dtype).requires_grad_(False).eval()
    for p in layer.parameters():
        p.normal_(0, 0.02) if p.ndim > 1 else p.fill_(1.0)
    a, m = layer.self_attn, layer.mlp_moe_gen
    layer.qkv = torch.cat([a.add_q_proj.weight, a.add_k_proj.weight, a.add_v_proj.weight])
    layer.gate_up = torch.cat([m.gate_proj.weight, m.up_proj.weight])
    if torch.device(device).type == "cuda":
        for name, weight in (("qkv8", layer.qkv), ("gate_up8", layer.gate_up)):
            setattr(layer, name, rows_as_fp8(weight))
        layer.out8, layer.down8 = rows_as_fp8(a.to_add_out.weight), rows_as_fp8(m.down_proj.weight)
    return layer


def inputs(config, tokens, text, device, dtype):
    def random(*shape):
        return torch.randn(*shape, device=device, dtype=dtype)

    heads = (config.num_key_value_heads, config.head_dim)
    angles = torch.rand(tokens, config.head_dim // 2, device=device) * 100
    kv = LayerKV(random(text, *heads), random(text, *heads))
    return random(tokens, config.hidden_size), kv, Rope(angles.cos().to(dtype), angles.sin().to(dtype))


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="480x832x49,720x1280x189")
    parser.add_argument("--text", default="200,3400")
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--profile", default="", help="variants whose time by kernel is wanted, at the last size")
    parser.add_argument("--tiny", action="store_true", help="tiny layer, to try the script")
    parser.add_argument("--out", default="benchmarks/results/layer_variants.json")
    a = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    config, results = RECIPES["tiny" if a.tiny else "nano"].transformer, Results(a.out)
    torch.manual_seed(0)
    layer = build_layer(config, device, dtype)
    for size in a.sizes.split(","):
        height, width, frames = (int(n) for n in size.split("x"))
        t, h, w = pixel_to_latent_shape(frames, height, width)
        tokens = t * -(-h // 2) * -(-w // 2) + sound_latent_frames(frames, 24.0)
        for text in (int(n) for n in a.text.split(",")):
            given = inputs(config, tokens, text, device, dtype)
            with kernels_of("plain"):
                expected = plain(layer, *given).float()
            for name in a.variants.split(","):
                with kernels_of(name):
                    results.put(f"{size}/text {text}/{name}", measure(VARIANTS[name](), layer, given, expected))
    for name in filter(None, a.profile.split(",")):
        with kernels_of(name):
            profile(results, lambda name=name: VARIANTS[name]()(layer, *given), key=f"profile_ms/{name}")


def measure(function, layer, given, expected):
    try:
        found = function(layer, *given).float()
        peak_gpu(reset=True)
        seconds = median_seconds(lambda: function(layer, *given), repeats=8, warmup=2)
    except Exception as error:  # one variant that cannot run here must not cost the figures of the others
        return {"error": f"{type(error).__name__}: {error}"[:300]}
    away = float((found - expected).norm() / expected.norm())
    return {"ms": round(1e3 * seconds, 3), "relative difference": float(f"{away:.2g}"), "peak_gib": peak_gpu()}


if __name__ == "__main__":
    main()
