"""The exercises of notebook 04: the size of what the text leaves, the tokens of a frame, a read-out after some layers.

Read next: `guidance.py`, the exercises of notebook 05.
"""

from collections.abc import Callable
from typing import Any

import torch

from cosmos3_lab.exercises.framework import call, exercise, expect
from cosmos3_lab.latents import Latents, init_latents
from cosmos3_lab.positions import TokenLayout
from cosmos3_lab.towers import Cosmos3Config, Cosmos3Transformer, LayerKV, Rope
from cosmos3_lab.transformer import (
    Cosmos3Condition,
    embed_gen_tokens,
    encode_condition,
    predict_velocity,
    project_velocity,
    run_gen_layers,
)

SMALL = Cosmos3Config(
    hidden_size=16,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=8,
    intermediate_size=32,
    vocab_size=20,
    mrope_section=(2, 1, 1),
    latent_channel=4,
    sound_dim=4,
)


@exercise(
    "04.1",
    hint="Every entry of cond.cached_kv has two tensors, k and v, of shape [s_text, kv_heads, d_head]. A tensor knows its size "
    "in bytes as tensor.nbytes.",
)
def text_memory(kv_bytes: Callable[[Cosmos3Condition], int]) -> None:
    """Keys and values of every layer, and nothing else, are what GEN needs to know of the prompt at every step."""
    for layers, s_text, kv_heads, d_head, dtype in ((1, 1, 1, 8, torch.float32), (3, 7, 2, 16, torch.bfloat16)):
        shape, width = (s_text, kv_heads, d_head), torch.empty((), dtype=dtype).element_size()
        cond = _condition(layers, shape, dtype)
        want, got = 2 * layers * s_text * kv_heads * d_head * width, int(call(kv_bytes, cond))
        size = f"{layers} layers of k and v {list(shape)} in {dtype}"
        expect(got != want // 2, f"only half of {size} was counted: {got} bytes, expected {want}; there are keys and values.")
        expect(got != want // layers or layers == 1, f"only one layer of {size} was counted: {got} bytes, expected {want}.")
        expect(got * width != want, f"numbers were counted, not bytes: {got} for {size}, expected {want}.")
        expect(got == want, f"the number of bytes is wrong: {got} for {size}, expected {want}.")


def _condition(layers: int, shape: tuple[int, int, int], dtype: torch.dtype) -> Cosmos3Condition:
    kv = tuple(LayerKV(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in range(layers))
    angles = torch.zeros(5, shape[-1] // 2)
    return Cosmos3Condition(kv, Rope(angles, angles), TokenLayout(shape[0], (5, 2, 2), 2, 0))


@exercise(
    "04.2",
    hint="Video tokens come first, ordered frame, row, column: latent frame f is one block of rows * columns tokens. "
    "layout.video_grid is (frames, rows, columns) in tokens.",
)
def tokens_of_a_frame(frame_tokens: Callable[[TokenLayout, int], slice]) -> None:
    """With this slice you can look at, or exchange, the tokens of one latent frame anywhere in the GEN tower."""
    for layout in (TokenLayout(54, (9, 12, 12), 2, 52), TokenLayout(8, (3, 5, 6), 2, 0), TokenLayout(8, (2, 3, 4), 1, 5)):
        grid = torch.arange(layout.n_video).unflatten(0, layout.video_grid)
        for frame in range(layout.video_grid[0]):
            found = torch.arange(layout.s_gen)[call(frame_tokens, layout, frame)].tolist()
            want = grid[frame].flatten().tolist()
            where = f"latent frame {frame} of {layout}"
            expect(
                len(found) == len(want),
                f"the number of tokens is wrong: {len(found)} for {where}, expected {len(want)}; odd sizes are rounded up.",
            )
            expect(
                found == want,
                f"the tokens stand elsewhere: {found[0]} to {found[-1]} for {where}, expected {want[0]} to {want[-1]}.",
            )


@exercise(
    "04.3",
    hint="embed_gen_tokens, then run_gen_layers(..., stop=layers), then project_velocity with cond.layout: the three calls of "
    "the notebook, with fewer layers.",
)
def early_exit(velocity_after: Callable[..., Latents]) -> None:
    """The residual stream can be read out after any layer, because every layer only adds to it."""
    transformer, cond, latents = _small_case()
    tokens = embed_gen_tokens(transformer, latents, 700)
    full = predict_velocity(transformer, latents, 700, cond)
    for layers in (SMALL.num_hidden_layers, 0, 1):
        found = call(velocity_after, transformer, latents, 700, cond, layers)
        expect(isinstance(found, Latents), f"it gives {_kind(found)}, expected Latents, as project_velocity does.")
        want = project_velocity(transformer, run_gen_layers(transformer, tokens, cond, stop=layers), cond.layout)
        name = "all layers" if layers == SMALL.num_hidden_layers else f"{layers} layers"
        away = max(float((a - b).abs().max()) for a, b in ((found.video, want.video), (found.sound, want.sound)))
        ignores = layers < SMALL.num_hidden_layers and torch.equal(found.video, full.video)
        expect(not ignores, f"the number of layers changes nothing: {name} give the velocity of all {SMALL.num_hidden_layers}.")
        expect(away < 1e-4, f"the velocity after {name} is off by up to {away:.2g}, expected less than 0.0001.")


def _small_case() -> tuple[Cosmos3Transformer, Cosmos3Condition, Latents]:
    """A transformer of three small random layers, a prompt of four tokens, and noise with sound."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = Cosmos3Transformer(SMALL)
    ids = torch.arange(4)[None]
    cond = encode_condition(transformer, ids, torch.ones_like(ids), (2, 4, 4), 24.0, sound_len=3)
    return transformer, cond, init_latents((2, 4, 4), channels=4, sound_frames=3, sound_dim=4, seed=0)


def _kind(value: Any) -> str:  # noqa: ANN401
    return type(value).__name__
