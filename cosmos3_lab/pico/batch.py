"""Many samples in one pass of the towers: what training and scoring need, with the layers that `transformer.py` runs.

The prompts of a batch have one length, so that nothing is padded and nothing masked: all samples share their positions, and
the sums are those of one sample at a time (a test holds both equal). Unlike `transformer.py`, gradients flow.

Read next: `flow.py`, whose loss calls this.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor

from cosmos3_lab.latents import Latents, patchify, unpatchify
from cosmos3_lab.positions import TokenLayout, compute_mrope_position_ids_text
from cosmos3_lab.towers import Cosmos3Transformer, Rope
from cosmos3_lab.transformer import Cosmos3Condition, media_position_ids, sequence_rope


@dataclass(frozen=True)
class Places:
    """Where the tokens of a batch are: the same for every prompt of one length and every clip of one size.

    Attributes:
        layout: how many tokens of what.
        text, media: rotations of the prompt's tokens, and of those of video and sound.
    """

    layout: TokenLayout
    text: Rope
    media: Rope


def find_places(
    transformer: Cosmos3Transformer, s_text: int, video_shape: tuple[int, int, int], fps: float, *, sound_len: int = 0
) -> Places:
    """Positions of all tokens, as rotations.

    Args:
        transformer: gives config, device and dtype.
        s_text: tokens of each prompt.
        video_shape: latent grid `(t, h, w)`.
        fps: frames a second.
        sound_len: number of sound tokens, 0 for silent video.
    """
    c, like = transformer.config, transformer.und.embed_tokens.weight
    layout = TokenLayout(s_text, video_shape, c.latent_patch_size, sound_len)
    positions = media_position_ids(c, layout, fps, c.sound_latent_fps)
    text = sequence_rope(c, compute_mrope_position_ids_text(s_text), like)
    return Places(layout, text, sequence_rope(c, positions, like))


def encode_prompts(transformer: Cosmos3Transformer, ids: Int64[Tensor, "b s_text"], places: Places) -> Cosmos3Condition:
    """`encode_condition` for prompts of equal length; keys and values get the batch as their first axis.

    Args:
        transformer: both towers on the device of `ids`.
        ids: token ids, boundary tokens included.
        places: of `find_places`, for this length of prompt.
    """
    x, cached = transformer.und.embed_tokens(ids), []
    for layer in transformer.und.layers:
        x, kv = layer(x, places.text)
        cached.append(kv)
    return Cosmos3Condition(tuple(cached), places.media, places.layout)


def predict_velocities(
    transformer: Cosmos3Transformer, latents: Latents, timesteps: Float[Tensor, " b"], cond: Cosmos3Condition
) -> Latents:
    """`predict_velocity` for a batch, each sample at its own timestep.

    Args:
        transformer: on the device of the latents.
        latents: noisy; video `[b, C, t, h, w]`, sound `[b, n_sound, d_sound]` or None.
        timesteps: in [0, 1000).
        cond: of `encode_prompts`, for the same batch.

    Returns:
        Velocities in the model's dtype, shaped as `latents`.
    """
    gen, c, layout, dtype = transformer.gen, transformer.config, cond.layout, transformer.dtype
    count = len(latents.video)
    # Patches do not reach across frames, so that the frames of all samples can stand in one row.
    row = rearrange(latents.video, "b c t h w -> 1 c (b t) h w").to(dtype)
    tokens = gen.proj_in(patchify(row, c.latent_patch_size)).unflatten(0, (count, -1))
    if latents.sound is not None:
        sound = gen.audio_proj_in(latents.sound.to(dtype)) + gen.audio_modality_embed
        tokens = torch.cat([tokens, sound], dim=1)
    tokens = tokens + gen.time_embedder(timesteps * c.timestep_scale).to(dtype)[:, None]
    for layer, text in zip(gen.layers, cond.cached_kv, strict=True):
        tokens = layer(tokens, text, cond.freqs_gen)
    tokens = gen.norm_moe_gen(tokens)
    video, sound = tokens[:, : layout.n_video], tokens[:, layout.n_video :]
    t, height, width = layout.video_shape
    row = unpatchify(gen.proj_out(video).flatten(0, 1), (count * t, height, width), c.latent_patch_size)
    velocity = rearrange(row, "1 c (b t) h w -> b c t h w", b=count)
    return Latents(velocity, gen.audio_proj_out(sound) if layout.n_sound else None)
