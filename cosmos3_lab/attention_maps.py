"""Who looks at whom in a GEN layer: exact attention, pooled while it is computed, so that it fits beside a full-size model.

Row by row, `softmax(q k^T / sqrt(d_head))` over text, video and sound. At 720x1280x189 all rows of a layer together would be
270 GB; here they are made for some queries at a time, their sum (as a log-sum-exp) runs over some keys at a time, and what is
kept is pooled: how much each media token gives to each word, and how much each moment gives to each other moment.

    with record_attention(models.transformer, inputs, layers=[3, 5], words=words, steps=[4]) as seen:
        result = list(denoise(models.transformer, inputs, state))
    seen.activations[0].value.on_picture(word=2)     # [heads or 1, t, rows, columns]

q and k are computed anew from the layer's input, so that the run itself stays as it is. (A `patch` of the layer's own projections
does not show here; one of an earlier layer does.)

Read next: `prompt_words.py`. Source of the running sum: Milakov and Gimelshein 2018, arXiv:1805.02867.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from cosmos3_lab.denoise import DenoiseInputs
from cosmos3_lab.layers import apply_rotary
from cosmos3_lab.passes import Branch, Recording, watch
from cosmos3_lab.positions import TokenLayout
from cosmos3_lab.prompt_words import PromptWord, word_of_token
from cosmos3_lab.towers import Cosmos3Transformer, GENLayer, LayerKV, Rope

QUERIES, KEYS = 512, 4096  # tokens at a time: scores of 0.27 GB with 32 heads


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """Attention of one GEN layer in one pass, pooled. Each row is a share of everything that a token looks at.

    Attributes:
        to_words: `[heads or 1, s_gen, words]`, what each media token gives to each word (with all tokens of it); the mean over
            heads where there is one.
        moments: `[heads, t + n_sound, t + n_sound]`, what the tokens of each latent frame, and each sound token, give to all
            tokens of each latent frame and to each sound token; the mean over a frame's tokens, the sum over what they see.
        layout: token counts.
        words: the words, whose tokens are all of the text.
    """

    to_words: Float[Tensor, "maps s_gen words"]
    moments: Float[Tensor, "heads moments moments"]
    layout: TokenLayout
    words: tuple[PromptWord, ...]

    def on_picture(self, word: int) -> Float[Tensor, "maps t rows columns"]:
        """What each video token gives to a word.

        Args:
            word: its place in `words`.
        """
        return self.to_words[:, : self.layout.n_video, word].unflatten(1, self.layout.video_grid)

    def over_frames(self) -> Float[Tensor, "maps t words"]:
        """What each latent frame gives to each word, the mean over its tokens."""
        return self.to_words[:, : self.layout.n_video].unflatten(1, (self.layout.video_grid[0], -1)).mean(2)

    def over_sound(self) -> Float[Tensor, "maps n_sound words"]:
        """What each sound token gives to each word."""
        return self.to_words[:, self.layout.n_video :]

    def sound_to_video(self) -> Float[Tensor, "heads n_sound t"]:
        """What each sound token gives to each latent frame."""
        t = self.layout.video_grid[0]
        return self.moments[:, t:, :t]

    def video_to_sound(self) -> Float[Tensor, "heads t n_sound"]:
        """What each latent frame gives to each sound token."""
        t = self.layout.video_grid[0]
        return self.moments[:, :t, t:]

    def to(self, device: torch.device | str) -> "LayerAttention":
        """The same on another device."""
        return replace(self, to_words=self.to_words.to(device), moments=self.moments.to(device))

    @property
    def nbytes(self) -> int:
        """Of both tensors."""
        return self.to_words.nbytes + self.moments.nbytes

    def __repr__(self) -> str:
        return f"LayerAttention(to_words={list(self.to_words.shape)}, moments={list(self.moments.shape)}, {self.layout})"


# ----------------------------------------------------------------------------------------------------------------- rows


def attention_rows(
    q: Float[Tensor, "s_q heads d_head"],
    k: Float[Tensor, "s_k kv_heads d_head"],
    *,
    groups: Sequence[int] | None = None,
    keys_at_once: int = KEYS,
) -> Float[Tensor, "heads s_q groups"]:
    """`softmax(q k^T / sqrt(d_head))`, summed over groups of keys that follow each other; float32, without a mask.

    Query head j reads key head `j // (heads / kv_heads)`, as in `layers.attention`. Nothing larger than
    `[heads, s_q, keys_at_once]` is made, beside the result.

    Args:
        q, k: after QK norm and rotary embedding.
        groups: number of keys in each group; None gives every key its own.
        keys_at_once: a bound on the scores in memory.

    Raises:
        ValueError: the groups do not add up to the keys.
    """
    groups = [1] * len(k) if groups is None else list(groups)
    if sum(groups) != len(k) or min(groups, default=0) < 1:
        raise ValueError(f"got groups of {sum(groups)} keys in all, expected positive numbers with the sum {len(k)}")
    heads, kv_heads, width = q.shape[1], k.shape[1], q.shape[2]
    queries = (q.float() * width**-0.5).unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)  # kv_heads (rep s_q) d
    keys = k.permute(1, 2, 0)  # kv_heads d s_k
    parts = [_log_sums(queries, keys, start, length, count, keys_at_once) for start, length, count in _runs(groups)]
    logs = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
    rows = logs.sub_(logs.logsumexp(-1, keepdim=True)).exp_()
    return rows.unflatten(1, (heads // kv_heads, -1)).flatten(0, 1)


def _runs(groups: Sequence[int]) -> list[tuple[int, int, int]]:
    """`(first key, keys in a group, number of groups)` of each run of groups of one size."""
    runs: list[tuple[int, int, int]] = []
    start = 0
    for length in groups:
        if runs and runs[-1][1] == length:
            runs[-1] = (*runs[-1][:2], runs[-1][2] + 1)
        else:
            runs.append((start, length, 1))
        start += length
    return runs


def _log_sums(queries: Tensor, keys: Tensor, start: int, length: int, count: int, at_once: int) -> Tensor:
    """Log of the summed exponentials of each of `count` groups of `length` keys."""
    found = []
    if length <= at_once:
        step = at_once // length * length
        for first in range(start, start + length * count, step):
            scores = queries @ keys[..., first : min(first + step, start + length * count)].float()
            found.append(scores if length == 1 else scores.unflatten(-1, (-1, length)).logsumexp(-1))
        return torch.cat(found, dim=-1)
    for first in range(start, start + length * count, length):  # a group of more keys than are looked at at once
        pieces = keys[..., first : first + length].split(at_once, dim=-1)
        sums = torch.stack([(queries @ piece.float()).logsumexp(-1) for piece in pieces])
        found.append(sums.logsumexp(0))
    return torch.stack(found, dim=-1)


# ----------------------------------------------------------------------------------------------------------------- layer


@torch.no_grad()
def layer_attention(
    layer: GENLayer,
    x: Float[Tensor, "s_gen d_model"],
    text: LayerKV,
    rope: Rope,
    layout: TokenLayout,
    words: Sequence[PromptWord],
    *,
    heads: Sequence[int] | None = None,
    per_head: bool = False,
    queries_at_once: int = QUERIES,
    keys_at_once: int = KEYS,
) -> LayerAttention:
    """Attention of one layer from what the layer gets.

    Args:
        layer: of `transformer.gen.layers`.
        x, text, rope: its arguments: residual stream, text K/V, rotation of the media tokens.
        layout: token counts.
        words: from `prompt_words`, of the same prompt.
        heads: which; None for all.
        per_head: keep a map of words for each head, instead of their mean: heads times the memory.
        queries_at_once, keys_at_once: bounds on what is in memory.

    Raises:
        ValueError: words of another prompt, or no such head.
    """
    owner = word_of_token(words, layout.s_text).to(x.device)
    moment, count = (part.to(x.device) for part in _moments(layout))
    attention, (t, rows, columns) = layer.self_attn, layout.video_grid
    width, kv_heads = text.k.shape[-1], text.k.shape[-2]
    of_kv = attention.add_q_proj.weight.shape[0] // width // kv_heads
    heads = _checked_heads(heads, of_kv * kv_heads)

    # Modules are called by `forward`, so that hooks on them, such as those of `record`, see the run and not this.
    def project(part: slice, projection: nn.Module, norm: nn.Module) -> Tensor:
        projected = projection.forward(layer.input_layernorm_moe_gen.forward(x[part]))
        return apply_rotary(norm.forward(projected.unflatten(-1, (-1, width))), rope.cos[part], rope.sin[part])

    k = torch.cat([text.k, *(project(p, attention.add_k_proj, attention.norm_added_k) for p in _parts(len(x), keys_at_once))])
    k = k[:, [head // of_kv for head in heads]] if len(heads) < of_kv * kv_heads else k
    groups = [1] * layout.s_text + [rows * columns] * t + [1] * layout.n_sound
    to_words = torch.zeros(len(heads) if per_head else 1, len(x), len(words), device=x.device)
    moments = torch.zeros(len(heads), len(count), len(count), device=x.device)
    for part in _parts(len(x), queries_at_once):
        q = project(part, attention.add_q_proj, attention.norm_added_q)
        q = q[:, heads] if len(heads) < q.shape[1] else q
        seen = attention_rows(q, k, groups=groups, keys_at_once=keys_at_once)
        to_text, to_media = seen[..., : layout.s_text], seen[..., layout.s_text :]
        to_words[:, part].index_add_(-1, owner, to_text if per_head else to_text.mean(0, keepdim=True))
        moments.index_add_(1, moment[part], to_media)
    return LayerAttention(to_words, moments / count[:, None], layout, tuple(words))


def _checked_heads(heads: Sequence[int] | None, count: int) -> list[int]:
    heads = list(range(count)) if heads is None else list(heads)
    if not heads or len(set(heads)) < len(heads) or not all(0 <= head < count for head in heads):
        raise ValueError(f"got heads {heads}, expected different numbers from 0 to {count - 1}")
    return heads


def _parts(length: int, at_once: int) -> Iterator[slice]:
    return (slice(start, min(start + at_once, length)) for start in range(0, length, at_once))


def _moments(layout: TokenLayout) -> tuple[Int64[Tensor, " s_gen"], Float[Tensor, " moments"]]:
    """Which moment each media token belongs to, latent frames first and then sound tokens; and how many tokens each has."""
    t, rows, columns = layout.video_grid
    counts = torch.tensor([rows * columns] * t + [1] * layout.n_sound)
    return torch.repeat_interleave(torch.arange(len(counts)), counts), counts.float()


# ------------------------------------------------------------------------------------------------------------------- run


@contextmanager
def record_attention(
    transformer: Cosmos3Transformer,
    inputs: DenoiseInputs,
    *,
    words: Sequence[PromptWord],
    layers: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    branch: Branch = "cond",
    heads: Sequence[int] | None = None,
    per_head: bool = False,
) -> Iterator[Recording]:
    """Record a `LayerAttention` for each of some layers, whenever the GEN tower runs; results stay the same bit for bit.

    Args:
        transformer: whose GEN tower will run.
        inputs: of the run, from `prepare_denoise`.
        words: from `prompt_words`, of the branch's prompt.
        layers: numbers of GEN layers; None for all.
        steps: of the schedule; None for all.
        branch: "cond" or "uncond".
        heads, per_head: see `layer_attention`.

    Yields:
        A `Recording`, whose activations are named after the layers, such as "gen.layers.5".

    Raises:
        ValueError: no such layer or head, or words of another prompt.
    """
    count = len(transformer.gen.layers)
    layers = range(count) if layers is None else layers
    if not all(0 <= layer < count for layer in layers):
        raise ValueError(f"got layers {list(layers)}, expected numbers from 0 to {count - 1}")
    condition = inputs.cond if branch == "cond" else inputs.uncond
    if condition is None:
        raise ValueError("got branch='uncond' of a run without guidance, which has no such pass")
    word_of_token(words, condition.layout.s_text)
    _checked_heads(heads, transformer.config.num_attention_heads)
    how = {"heads": heads, "per_head": per_head}
    with watch(transformer, inputs, branch=branch, steps=steps) as watcher:

        def look(layer: GENLayer, args: tuple[Tensor, LayerKV, Rope], name: str) -> None:
            if watcher.wanted():
                watcher.keep(name, layer_attention(layer, *args, condition.layout, words, **how))

        for i in layers:
            layer, name = transformer.gen.layers[i], f"gen.layers.{i}"
            watcher.hooks.callback(layer.register_forward_pre_hook(lambda m, args, n=name: look(m, args, n)).remove)
        yield watcher.recording
