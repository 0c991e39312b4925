"""Look inside the towers while they run, and reach in: forward hooks that always come off.

    with record(models.transformer, ["gen.layers.*"], reduce="token_rms", inputs=inputs) as seen:
        for state, _ in denoise(models.transformer, inputs, state):
            ...
    seen.stack("gen.layers.5", branch="cond")        # [steps, s_gen]

Names are module paths, which are the checkpoint's tensor names without the last part (see `towers.py`). A value is reduced in the
hook, and the reduced value leaves the GPU when the next pass begins, so that nothing grows with the number of layers but what
was asked for. Recording changes no result; `patch` exists to change one. On a GPU a hook on a part of a layer makes that layer
run plainly (`towers.py`), which differs by rounding: set `COSMOS3_PLAIN=1` for both runs where that matters. With any hook
inside of GEN a small clip does without its graphs (`layer_graphs.py`), which costs time alone.

In split placement UND's layers visit the GPU as copies, which hooks do not see; GEN's are always seen.

Read next: `attention_maps.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import Tensor

from cosmos3_lab.configs import check_choice
from cosmos3_lab.denoise import DenoiseInputs
from cosmos3_lab.latents import Latents
from cosmos3_lab.passes import Branch, Recording, matches, watch
from cosmos3_lab.positions import TokenLayout
from cosmos3_lab.towers import Cosmos3Config, Cosmos3Transformer, Rope
from cosmos3_lab.transformer import Cosmos3Condition, embed_gen_tokens, project_velocity, run_gen_layers

Reduction = Literal["rms", "token_rms", "frame_rms", "mean", "frame_mean", "full"]
SMALL = TokenLayout(s_text=8, video_shape=(3, 4, 4), patch=2, n_sound=4)


# ----------------------------------------------------------------------------------------------------------------- names


def activation_names(transformer: Cosmos3Transformer, layout: TokenLayout = SMALL) -> dict[str, tuple[int, ...]]:
    """Every module that a run calls, by path, with the shape of what it gives for a layout.

    Found by running one layer of each tower on the meta device, where tensors have shapes and no numbers.

    Args:
        transformer: may be closed, or in split placement.
        layout: token counts, such as `inputs.cond.layout`.
    """
    shapes = _one_layer_shapes(transformer.config, layout, with_sound=transformer.with_sound and layout.n_sound > 0)
    found: dict[str, tuple[int, ...]] = {}
    for name, _ in transformer.named_modules():
        parts = name.split(".")
        of_first = ".".join([*parts[:2], "0", *parts[3:]]) if parts[1:2] == ["layers"] and len(parts) > 2 else name
        if of_first in shapes:
            found[name] = shapes[of_first]
    return found


def _one_layer_shapes(config: Cosmos3Config, layout: TokenLayout, *, with_sound: bool) -> dict[str, tuple[int, ...]]:
    config, shapes = replace(config, num_hidden_layers=1), {}
    with torch.device("meta"), torch.no_grad():
        small = Cosmos3Transformer(config, with_sound=with_sound)
        for name, module in small.named_modules():
            module.register_forward_hook(lambda m, args, out, name=name: shapes.update({name: tuple(_tensor(out).shape)}))
        half = config.head_dim // 2
        text, media = (Rope(torch.empty(n, half), torch.empty(n, half)) for n in (layout.s_text, layout.s_gen))
        tokens = small.und.embed_tokens(torch.zeros(layout.s_text, dtype=torch.int64))
        _, kv = small.und.layers[0](tokens, text)
        video = torch.empty(1, config.latent_channel, *layout.video_shape)
        latents = Latents(video, torch.empty(1, layout.n_sound, config.sound_dim) if with_sound else None)
        cond = Cosmos3Condition((kv,), media, layout)
        project_velocity(small, run_gen_layers(small, embed_gen_tokens(small, latents, 0), cond), layout)
    return shapes


def _find(transformer: Cosmos3Transformer, patterns: Sequence[str]) -> list[str]:
    """Names that match, in the order of the run's modules.

    Raises:
        ValueError: a pattern matches none.
    """
    known = list(activation_names(transformer))
    for pattern in patterns:
        if not any(matches(name, pattern) for name in known):
            near = get_close_matches(pattern, known, n=3)
            raise ValueError(
                f"got the name {pattern!r}, expected a module that a run calls, "
                f"{'try ' + ' or '.join(near) if near else 'see activation_names(transformer)'}"
            )
    return [name for name in known if any(matches(name, pattern) for pattern in patterns)]


# ---------------------------------------------------------------------------------------------------------------- record


@contextmanager
def record(
    transformer: Cosmos3Transformer,
    names: Sequence[str],
    *,
    reduce: Reduction | Callable[[Tensor], Tensor] = "rms",
    inputs: DenoiseInputs | None = None,
    branch: Branch | None = None,
    steps: Sequence[int] | None = None,
) -> Iterator[Recording]:
    """Record what modules give, reduced in the hook; results stay the same bit for bit (on a GPU: see the top of this file).

    Args:
        transformer: whose GEN tower will run (UND too, where it is resident).
        names: of `activation_names`; a star stands for one part of a path, as in "gen.layers.*.mlp_moe_gen".
        reduce: "rms" of all numbers; "token_rms" `[tokens]`; "frame_rms" `[t]`; "mean" over the tokens `[d]`; "frame_mean"
            `[t, d]`; "full" keeps everything (0.4 GB for one call on Nano at 720x1280x189); or a function of the module's output
            `[tokens, d]`. The frames are the latent frames of the video tokens.
        inputs: of the run, from `prepare_denoise`: say which step and branch a pass is, and what the frames are.
        branch, steps: of which passes; None for all. They need `inputs`.

    Yields:
        A `Recording`; the values of a pass are in it when the next one begins, and all when the block is left.

    Raises:
        ValueError: an unknown name or reduction, or a choice that needs `inputs` without them.
    """
    if not callable(reduce):
        check_choice("reduce", reduce, Reduction)
    if inputs is None and isinstance(reduce, str) and reduce.startswith("frame_"):
        raise ValueError(f"got reduce={reduce!r} without inputs, which say what the frames are; give inputs=")
    reducer = reduce if callable(reduce) else _reducer(reduce, None if inputs is None else inputs.cond.layout)
    found = _find(transformer, names)
    with watch(transformer, inputs, names=found, branch=branch, steps=steps) as watcher:

        def keep(name: str, out: Any) -> None:  # noqa: ANN401
            if watcher.wanted():
                watcher.keep(name, reducer(_tensor(out).detach()))

        for name in found:
            module = transformer.get_submodule(name)
            watcher.hooks.callback(module.register_forward_hook(lambda m, args, out, name=name: keep(name, out)).remove)
        yield watcher.recording


def _reducer(reduce: Reduction, layout: TokenLayout | None) -> Callable[[Tensor], Tensor]:
    """Sums are taken in float32; no copy of the activation is made for it."""

    def rms(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
        dims = (dim,) if isinstance(dim, int) else dim
        count = torch.Size(x.shape[d] for d in dims).numel()
        return torch.linalg.vector_norm(x, dim=dims, dtype=torch.float32) / count**0.5

    def frames(x: Tensor) -> Tensor:
        if x.ndim < 2 or len(x) < layout.n_video:
            raise ValueError(f"got an activation {list(x.shape)}, whose tokens are not video frames; reduce it otherwise")
        return x[: layout.n_video].unflatten(0, (layout.video_grid[0], -1))

    return {
        "rms": lambda x: rms(x, tuple(range(x.ndim))),
        "token_rms": lambda x: rms(x, tuple(range(1, x.ndim))) if x.ndim > 1 else x.float().abs(),
        "frame_rms": lambda x: rms(frames(x), tuple(range(1, x.ndim + 1))),
        "mean": lambda x: x.mean(dim=0, dtype=torch.float32) if x.ndim > 1 else x.float(),
        "frame_mean": lambda x: frames(x).mean(dim=1, dtype=torch.float32),
        "full": lambda x: x,
    }[reduce]


# ----------------------------------------------------------------------------------------------------------------- patch


@contextmanager
def patch(
    transformer: Cosmos3Transformer,
    name: str,
    fn: Callable[[Tensor], Tensor],
    *,
    inputs: DenoiseInputs | None = None,
    branch: Branch | None = None,
    steps: Sequence[int] | None = None,
) -> Iterator[None]:
    """Replace what modules give by `fn` of it, as long as the block lasts.

    Args:
        transformer, inputs, branch, steps: see `record`.
        name: of `activation_names`, or a pattern with stars.
        fn: takes the module's output `[tokens, d]` and returns a tensor of that shape, dtype and device; must not write into
            its argument.

    Raises:
        ValueError: an unknown name, `branch` or `steps` without `inputs`; in the run, if `fn` gives another shape or dtype.
    """
    found = _find(transformer, [name])
    with watch(transformer, inputs, names=found, branch=branch, steps=steps) as watcher:

        def replaced(name: str, out: Any) -> Any:  # noqa: ANN401
            if not watcher.wanted():
                return out
            before = _tensor(out)
            after = fn(before)
            kinds = [(tuple(x.shape), x.dtype, x.device) if isinstance(x, Tensor) else type(x) for x in (before, after)]
            if kinds[0] != kinds[1]:
                raise ValueError(f"the patch of {name} gives {kinds[1]}, expected {kinds[0]}, as the module does")
            return (after, *out[1:]) if isinstance(out, tuple) else after

        for one in found:
            module = transformer.get_submodule(one)
            watcher.hooks.callback(module.register_forward_hook(lambda m, args, out, n=one: replaced(n, out)).remove)
        yield


def _tensor(out: Any) -> Tensor:  # noqa: ANN401
    """An UND layer gives its K and V too."""
    return out[0] if isinstance(out, tuple) else out
