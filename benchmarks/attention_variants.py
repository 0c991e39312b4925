"""Whether the layout of queries, keys and values changes what PyTorch's attention takes, and the MLP's product in parts.

    python benchmarks/attention_variants.py [--tokens 44357,5122] [--text 3400]

Nano's heads (32 of queries, 8 of keys and values, width 128) in bfloat16, milliseconds by CUDA events, after a warm-up.
"""

import argparse

import torch
from measuring import Results, median_seconds
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cosmos3_lab import layers


def variants(q, k, v):
    strided = [x[None].transpose(1, 2) for x in (q, k, v)]
    contiguous = [x.contiguous() for x in strided]
    repeated = [contiguous[0], *(x.repeat_interleave(4, 1) for x in contiguous[1:])]
    padded = [F.pad(contiguous[0], (0, 0, 0, -len(q) % 256)), *contiguous[1:]]
    whole = len(k) // 128 * 128
    folded = q.view(len(q), 8, 4, 128).permute(1, 0, 2, 3).reshape(1, 8, -1, 128)
    return {
        "cudnn, heads strided": (SDPBackend.CUDNN_ATTENTION, strided, True),
        "cudnn, heads contiguous": (SDPBackend.CUDNN_ATTENTION, contiguous, True),
        "cudnn, keys and values repeated": (SDPBackend.CUDNN_ATTENTION, repeated, False),
        "cudnn, queries padded to 256": (SDPBackend.CUDNN_ATTENTION, padded, True),
        "cudnn, query heads in the sequence": (SDPBackend.CUDNN_ATTENTION, [folded, *contiguous[1:]], False),
        "cudnn, keys cut to whole tiles of 128": (
            SDPBackend.CUDNN_ATTENTION,
            [strided[0], *(x[:, :, :whole] for x in strided[1:])],
            True,
        ),
        "flash": (SDPBackend.FLASH_ATTENTION, strided, True),
    }


def in_parts(q, k, v):
    """Fewer heads or queries at a time, so that their keys and values might stay in the GPU's cache."""
    q, k, v = (x[None].transpose(1, 2) for x in (q, k, v))

    def by_heads(n):
        pairs = zip(q.split(4 * n, 1), k.split(n, 1), v.split(n, 1), strict=True)
        return [F.scaled_dot_product_attention(*pair, enable_gqa=True) for pair in pairs] and None

    def by_queries(n):
        return [F.scaled_dot_product_attention(part, k, v, enable_gqa=True) for part in q.split(n, 2)] and None

    return {
        "cudnn, one head of keys at a time": lambda: by_heads(1),
        "cudnn, two heads of keys at a time": lambda: by_heads(2),
        "cudnn, 8448 queries at a time": lambda: by_queries(8448),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="44357,5122")
    parser.add_argument("--text", type=int, default=3400)
    parser.add_argument("--out", default="benchmarks/results/attention_variants.json")
    a = parser.parse_args()
    results, make = Results(a.out), {"device": "cuda", "dtype": torch.bfloat16}
    for tokens in (int(n) for n in a.tokens.split(",")):
        q, k, v = (torch.randn(n, heads, 128, **make) for n, heads in ((tokens, 32), *[(tokens + a.text, 8)] * 2))
        for name, (backend, inputs, grouped) in variants(q, k, v).items():
            with sdpa_kernel([backend]):
                call = lambda inputs=inputs, grouped=grouped: F.scaled_dot_product_attention(*inputs, enable_gqa=grouped)  # noqa: E731
                results.put(f"{tokens}/{name}", 1e3 * median_seconds(call, repeats=4, warmup=2))
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION]):
            for name, call in in_parts(q, k, v).items():
                results.put(f"{tokens}/{name}", 1e3 * median_seconds(call, repeats=4, warmup=2))
        with torch.no_grad():
            ours = lambda q=q, k=k, v=v: layers._attention_in_tiles(q, k, v)  # noqa: E731
            results.put(f"{tokens}/cudnn in whole tiles, then the other keys", 1e3 * median_seconds(ours, repeats=4, warmup=2))
        x, weight = torch.randn(tokens, 4096, **make), torch.randn(12288, 4096, **make)
        for part in (4096, 8192, 16384, tokens):
            product = lambda x=x, w=weight, n=part: [piece @ w.T for piece in x.split(n)] and None  # noqa: E731
            results.put(f"{tokens}/product of the MLP in parts of {part}", 1e3 * median_seconds(product, repeats=4, warmup=2))


if __name__ == "__main__":
    main()
