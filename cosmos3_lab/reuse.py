"""Encode each text once: runs that share their prompts share the K/V too.

    encode = encode_once()
    inputs, state = prepare_denoise(models, request, encode=encode)      # as often as you like

Read next: `grid.py`, `tree_files.py`.
"""

from functools import partial

from cosmos3_lab.checkpoint import Cosmos3Models
from cosmos3_lab.denoise import Encode, encode_prompts, needs_negative
from cosmos3_lab.presets import Preset
from cosmos3_lab.request import Cosmos3T2VRequest
from cosmos3_lab.transformer import Cosmos3Condition

Pair = tuple[Cosmos3Condition, Cosmos3Condition | None]


def encode_once() -> Encode:
    """A function like `encode_prompts` that remembers, as long as it lives, what it encoded."""
    return partial(_encode, {})  # an argument, which `freeing_memory` can clear with its frame, unlike what a closure holds


def _encode(known: dict[tuple[object, ...], Pair], models: Cosmos3Models, request: Cosmos3T2VRequest, preset: Preset) -> Pair:
    # Everything that the K/V and the places of the media tokens depend on.
    texts = (request.text_ids, request.text_mask, request.neg_text_ids, request.neg_text_mask)
    size = (request.video_shape, float(request.fps), request.sound_frames, request.sound_latent_fps)
    key = (models.fingerprint, *size, *(tuple(text.flatten().tolist()) for text in texts))
    needed = needs_negative(request, preset)
    if key not in known or (needed and known[key][1] is None):
        known[key] = encode_prompts(models, request, preset)
    models.place("gen")
    cond, uncond = known[key]
    return cond, uncond if needed else None
