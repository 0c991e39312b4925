"""Two towers of one shape: UND reads the prompt once, GEN turns noise into a velocity at every step.

    prompt ids ──► UND tower ──► K, V of every layer ──► Cosmos3Condition        once per prompt
    Latents, timestep ──► tokens ──► GEN tower (reads those K, V) ──► velocity   every step, every branch

UND is causal and sees text only: no timestep, no latents. GEN layer i attends, without a mask, to [text K/V of UND layer
i ; its own tokens]. The timestep enters once: its embedding is added to every media token before layer 0.

The weights and the layers are in `towers.py`. Read next: `guidance.py`, `denoise.py`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cosmos3_lab.latents import Latents, patchify, unpatchify
from cosmos3_lab.positions import (
    TokenLayout,
    compute_mrope_position_ids_sound,
    compute_mrope_position_ids_text,
    compute_mrope_position_ids_vision,
    mrope_cos_sin,
)
from cosmos3_lab.showing import Shown
from cosmos3_lab.towers import Cosmos3Config, Cosmos3Transformer, GENLayer, LayerKV, Rope, UNDLayer


@dataclass(frozen=True, eq=False)
class Cosmos3Condition(Shown):
    """What GEN needs to know of a prompt: text K/V of every layer, and where the media tokens stand.

    Attributes:
        cached_kv: one `LayerKV` per layer (147,456 bytes per text token on Nano in bfloat16).
        freqs_gen: rotation of the media tokens `[s_gen, d_head / 2]`; depends on the prompt through its length.
        layout: token counts.
    """

    cached_kv: tuple[LayerKV, ...]
    freqs_gen: Rope
    layout: TokenLayout

    def __repr__(self) -> str:
        return f"Cosmos3Condition({len(self.cached_kv)} layers of {self.layout.s_text} text tokens, {self.layout})"


def encode_condition(
    transformer: Cosmos3Transformer,
    ids: Int64[Tensor, "1 s_text"],
    mask: Int64[Tensor, "1 s_text"],
    video_shape: tuple[int, int, int],
    fps: float,
    *,
    sound_len: int | None = None,
    sound_fps: float | None = None,
) -> Cosmos3Condition:
    """Run the UND tower over a prompt, once. Touches only `transformer.und`.

    Args:
        transformer: its UND tower must be on the device of `ids`.
        ids, mask: `[1, S]` int64; positions with mask 0 are cut off.
        video_shape: latent grid `(t, h, w)`.
        fps: frames a second of the clip.
        sound_len: number of sound tokens, None for a silent video.
        sound_fps: sound latents a second, None for the checkpoint's (25).

    Raises:
        ValueError: an id is beyond the embedding table.
    """
    (cond,) = encode_conditions(transformer, [(ids, mask)], video_shape, fps, sound_len=sound_len, sound_fps=sound_fps)
    return cond


@torch.no_grad()
def encode_conditions(
    transformer: Cosmos3Transformer,
    prompts: Sequence[tuple[Int64[Tensor, "1 _s_text"], Int64[Tensor, "1 _s_text"]]],
    video_shape: tuple[int, int, int],
    fps: float,
    *,
    sound_len: int | None = None,
    sound_fps: float | None = None,
    layers: Iterable[UNDLayer] | None = None,
) -> tuple[Cosmos3Condition, ...]:
    """`encode_condition` for several prompts, each by itself, in one pass over the layers.

    Args:
        transformer: its embedding table may be on another device than `layers`.
        prompts: `(ids, mask)` of each, on the device of `layers`.
        video_shape, fps, sound_len, sound_fps: as in `encode_condition`.
        layers: all of UND's in order, each used before the next is asked for (so that it may leave the device then); None
            takes those of `transformer`.

    Raises:
        ValueError: an id is beyond the embedding table.
    """
    c = transformer.config
    xs = [_embed_text(transformer, ids, mask) for ids, mask in prompts]
    # One tensor for all layers of a prompt: K and V left among the activations would keep their memory from being given back.
    kvs = [x.new_empty(c.num_hidden_layers, 2, len(x), c.num_key_value_heads, c.head_dim) for x in xs]
    ropes = [sequence_rope(c, compute_mrope_position_ids_text(len(x)), x) for x in xs]
    for i, layer in enumerate(transformer.und.layers if layers is None else layers):
        for j, (rope, kv) in enumerate(zip(ropes, kvs, strict=True)):
            xs[j], text = layer(xs[j], rope)  # of the last layer only the K and V are used; its output goes nowhere
            torch.stack([text.k, text.v], out=kv[i])
    sound_fps = c.sound_latent_fps if sound_fps is None else sound_fps
    layouts = [TokenLayout(len(x), video_shape, c.latent_patch_size, sound_len or 0) for x in xs]
    media = [sequence_rope(c, media_position_ids(c, layout, fps, sound_fps), xs[0]) for layout in layouts]
    cached = [tuple(LayerKV(k, v) for k, v in kv) for kv in kvs]
    return tuple(Cosmos3Condition(*parts) for parts in zip(cached, media, layouts, strict=True))


def _embed_text(
    transformer: Cosmos3Transformer, ids: Int64[Tensor, "1 s_text"], mask: Int64[Tensor, "1 s_text"]
) -> Float[Tensor, "s_text d_model"]:
    """Rows of the embedding table (1.2 GB on Nano), looked up where it lies and brought to the device of the ids."""
    kept, table = ids[mask.bool()], transformer.und.embed_tokens
    if len(kept) == 0 or int(kept.max()) >= table.num_embeddings or int(kept.min()) < 0:
        raise ValueError(
            f"got {len(kept)} token ids up to {int(kept.max()) if len(kept) else 'none'}, expected at least one and all "
            f"below the checkpoint's vocab_size {table.num_embeddings}; the tokenizer belongs to another checkpoint"
        )
    return table(kept.to(table.weight.device)).to(ids.device)


def media_position_ids(config: Cosmos3Config, layout: TokenLayout, fps: float, sound_fps: float) -> Float[Tensor, "3 s_gen"]:
    """mRoPE positions of the GEN sequence: video tokens, then sound tokens, both from `s_text + margin`."""
    start = layout.s_text + config.unified_3d_mrope_temporal_modality_margin
    modulate, base_fps = config.enable_fps_modulation, float(config.base_fps)
    rates = {"base_fps": base_fps, "temporal": config.temporal_compression_factor}
    video = compute_mrope_position_ids_vision(layout.video_grid, start, fps=fps if modulate else None, **rates)
    if layout.n_sound == 0:
        return video
    sound_rate = sound_fps if modulate else None
    sound = compute_mrope_position_ids_sound(layout.n_sound, start, sound_fps=sound_rate, base_fps=base_fps)
    return torch.cat([video, sound], dim=1)


@torch.no_grad()
def embed_gen_tokens(
    transformer: Cosmos3Transformer,
    latents: Latents,
    timestep: int,
    *,
    timestep_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "s_gen d_model"]:
    """Noisy latents and the timestep become the GEN tower's input tokens, video first, then sound.

    Args:
        transformer: its GEN tower must be on the latents' device.
        latents: cast to the model's dtype here.
        timestep: integer in [0, 1000), one for both modalities.
        timestep_dtype: of the timestep and its MLP; bfloat16 rounds 993 to 992, as PhyAI does.
    """
    gen, c = transformer.gen, transformer.config
    scaled = torch.tensor(timestep, device=latents.video.device).to(timestep_dtype) * c.timestep_scale
    time = gen.time_embedder(scaled).to(transformer.dtype)
    tokens = gen.proj_in(patchify(latents.video.to(transformer.dtype), c.latent_patch_size))
    if latents.sound is not None:
        sound = gen.audio_proj_in(latents.sound[0].to(transformer.dtype)) + gen.audio_modality_embed
        tokens = torch.cat([tokens, sound])
    return tokens + time


@torch.no_grad()
def run_gen_layers(
    transformer: Cosmos3Transformer,
    tokens: Float[Tensor, "s_gen d_model"],
    cond: Cosmos3Condition,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Float[Tensor, "s_gen d_model"]:
    """The residual stream after GEN layers `start` to `stop - 1`; all layers by default.

    Args:
        transformer: its GEN tower must be on the tokens' device.
        tokens: from `embed_gen_tokens`, or from an earlier call that stopped at `start`.
        cond: of this branch.
        start, stop: layer numbers.

    Raises:
        ValueError: not `0 <= start <= stop <= number of layers`.
    """
    for layer, text in _layers(transformer, cond, start, stop):
        tokens = layer(tokens, text, cond.freqs_gen)
    return tokens


@torch.no_grad()
def project_velocity(transformer: Cosmos3Transformer, tokens: Float[Tensor, "s_gen d_model"], layout: TokenLayout) -> Latents:
    """Final norm and projection back to the shape of the latents, in the model's dtype."""
    gen = transformer.gen
    tokens = gen.norm_moe_gen(tokens)
    video, sound = tokens[: layout.n_video], tokens[layout.n_video :]
    velocity = unpatchify(gen.proj_out(video), layout.video_shape, layout.patch)
    return Latents(velocity, gen.audio_proj_out(sound)[None] if layout.n_sound else None)


# What `run_gen_layers` is, for whoever calls the layers in another way.
RunLayers = Callable[[Cosmos3Transformer, Float[Tensor, "s_gen d_model"], Cosmos3Condition], Float[Tensor, "s_gen d_model"]]


def predict_velocity(
    transformer: Cosmos3Transformer,
    latents: Latents,
    timestep: int,
    cond: Cosmos3Condition,
    *,
    timestep_dtype: torch.dtype = torch.float32,
    run_layers: RunLayers = run_gen_layers,
) -> Latents:
    """One pass of the GEN tower: velocity `noise - x0` for video, and for sound where there is sound.

    Args:
        transformer: its GEN tower must be on the latents' device; UND is not touched.
        latents: video `[1, C, t, h, w]`, sound `[1, n_sound, d_sound]` or None, as `cond.layout` says.
        timestep: integer in [0, 1000).
        cond: of this branch (prompt or negative prompt).
        timestep_dtype: see `embed_gen_tokens`.
        run_layers: calls all layers; `layer_graphs.LayerGraphs()`, one for the steps of a run, replays them.

    Returns:
        Velocities in the model's dtype, shaped as `latents`.

    Raises:
        ValueError: the condition was made for latents of another shape.
    """
    got = (tuple(latents.video.shape[2:]), 0 if latents.sound is None else latents.sound.shape[1])
    want = (cond.layout.video_shape, cond.layout.n_sound)
    if got != want:
        raise ValueError(f"got latents of shape and sound length {got}, but the condition was encoded for {want}")
    tokens = embed_gen_tokens(transformer, latents, timestep, timestep_dtype=timestep_dtype)
    return project_velocity(transformer, run_layers(transformer, tokens, cond), cond.layout)


def _layers(
    transformer: Cosmos3Transformer, cond: Cosmos3Condition, start: int, stop: int | None
) -> Iterator[tuple[GENLayer, LayerKV]]:
    count = len(transformer.gen.layers)
    stop = count if stop is None else stop
    if not 0 <= start <= stop <= count:
        raise ValueError(f"got layers {start} to {stop}, expected 0 <= start <= stop <= {count}")
    return zip(transformer.gen.layers[start:stop], cond.cached_kv[start:stop], strict=True)


def sequence_rope(c: Cosmos3Config, position_ids: Float[Tensor, "3 s"], like: Tensor) -> Rope:
    """Rotation of tokens at these positions, on the device and in the dtype of `like`."""
    shape = {"head_dim": c.head_dim, "rope_theta": c.rope_theta, "mrope_section": c.mrope_section}
    cos_sin = mrope_cos_sin(position_ids.to(like.device, non_blocking=True), **shape, dtype=like.dtype)
    return Rope(*(x.contiguous() for x in cos_sin))  # one token's angles side by side, as every layer reads them
