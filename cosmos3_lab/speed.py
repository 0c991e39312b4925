"""How fast a device is, as four rates: measured in a second or two, or taken from an earlier run.

FLOPs divided by these rates are the seconds of a plan. The rate of the linear layers carries everything else that costs
time per token (norms, rotations, copies), so it is below what the device can do in a matrix product.

Read next: `plan.py`.
"""

import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cosmos3_lab.costs import (
    NANO_TEXT_TOKENS,
    Clip,
    MetaModels,
    decode_cost,
    denoise_cost,
    make_clip,
    meta_models,
    nano_configs,
    parse_size,
)
from cosmos3_lab.fusing import kernels_of
from cosmos3_lab.layer_graphs import Recorder, is_room
from cosmos3_lab.layers import attention
from cosmos3_lab.memory import give_back
from cosmos3_lab.meter import Flops, Meter
from cosmos3_lab.towers import LayerKV, Rope
from cosmos3_lab.transfer import to_device
from cosmos3_lab.video_vae import BUSY, iter_decode_video

MEASURE_SECONDS = 0.5  # each of the measurements, once it has found its size
FIRST_TOKENS, FIRST_SIDE, LAST_SIDE = 256, 4, 32  # sides of the decoded frame in latent pixels; 32 x 32 keep a large GPU busy
TRANSFER_BYTES = 2**29


@dataclass(frozen=True)
class Rates:
    """Of one device and dtype.

    Attributes:
        linear, attention, convolution: FLOPs a second in the layers of both towers, in their attention, in the decoders.
        transfer: bytes a second from host memory, for the weights that split placement moves.
        layer: seconds that a layer takes at the least, however short the sequence: on a GPU replayed, as GEN's are then.
        source: where the numbers come from, in words.
    """

    linear: float
    attention: float
    convolution: float
    transfer: float
    layer: float
    source: str

    def seconds(self, flops: Flops, *, layers: int = 0) -> float:
        """Time for so much work, in so many calls of a layer."""
        towers = flops.linear / self.linear + flops.attention / self.attention
        return max(towers, layers * self.layer) + flops.convolution / self.convolution


# For machines without a GPU: by `read_rates` from benchmarks/results/nano_h200.json; transfer as in the split run of
# full_size_h100.json (the machine of split_memory.json copied at 13 GB/s); layer from cuda_graphs.json (a replayed step over
# 126 tokens is 72 of them).
H100 = Rates(
    linear=606e12,
    attention=654e12,
    convolution=605e12,
    transfer=17e9,
    layer=3.4e-4,
    source="as on one H100",
)


# ----------------------------------------------------------------------------------------------------------- measure


@torch.no_grad()
def measure_rates(models: MetaModels, clip: Clip, text_tokens: tuple[int, ...], device: torch.device) -> Rates:
    """Time a GEN layer, its attention, the video decoder and a copy on the device, with random weights of the model's shapes.

    Layer and decoder start small and grow towards the clip's own size for as long as they are quick.

    Args:
        models: shapes and dtypes.
        clip: the largest that is planned.
        text_tokens: of the prompts; the longest is used.
        device: where to measure. It needs room for one layer, the video decoder and their activations.
    """
    linear, attending, least = _measure_layer(models, clip.layout.s_gen, max(text_tokens), device)
    convolution = _measure_decoder(models, clip.layout.video_shape, device)
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"this CPU with {torch.get_num_threads()} of its cores"
    )
    transfer = _measure_transfer(device)
    give_back(device)
    return Rates(linear, attending, convolution, transfer, least, f"measured on {name}")


def _measure_layer(models: MetaModels, s_gen: int, s_text: int, device: torch.device) -> tuple[float, float, float]:
    """FLOPs a second in all but the attention of a layer and in its attention, and the seconds of a layer on one token."""
    on_meta, tokens = models.transformer.gen.layers[0], min(FIRST_TOKENS, s_gen)
    layer = _randomised(on_meta, device)
    shortest = _layer_call(models, layer, 1, 1, device)
    if kernels_of(device) != "plain":
        shortest()  # which compiles
        with torch.cuda.device(device):
            if is_room():
                recorded = Recorder().record(shortest)  # as `denoise` does for short sequences
                shortest = recorded.replay
    least = _time(shortest, device, seconds=MEASURE_SECONDS / 10)
    while tokens < s_gen and _time(_layer_call(models, layer, tokens, s_text, device), device) < MEASURE_SECONDS / 8:
        tokens = min(s_gen, 4 * tokens)  # takes four to sixteen times as long
    whole = _time(_layer_call(models, layer, tokens, s_text, device), device, seconds=MEASURE_SECONDS)
    alone = _time(_attention_call(models, tokens, s_text, device), device, seconds=MEASURE_SECONDS)
    meter, nowhere = Meter(), torch.device("meta")
    with meter.watching():
        _layer_call(models, on_meta, tokens, s_text, nowhere)()
    return meter.flops.linear / max(whole - alone, whole / 100), meter.flops.attention / alone, least


def _layer_call(models: MetaModels, layer: nn.Module, tokens: int, s_text: int, device: torch.device) -> Callable[[], object]:
    c, make = models.transformer.config, _maker(models, device)
    kv = make(s_text, c.num_key_value_heads, c.head_dim)
    x, text = make(tokens, c.hidden_size), LayerKV(kv, kv)
    rope = Rope(make(tokens, c.head_dim // 2), make(tokens, c.head_dim // 2))
    return lambda: layer(x, text, rope)


def _attention_call(models: MetaModels, tokens: int, s_text: int, device: torch.device) -> Callable[[], object]:
    c, make = models.transformer.config, _maker(models, device)
    q, kv = make(tokens, c.num_attention_heads, c.head_dim), make(s_text + tokens, c.num_key_value_heads, c.head_dim)
    return lambda: attention(q, kv, kv, causal=False)


def _measure_decoder(models: MetaModels, shape: tuple[int, int, int], device: torch.device) -> float:
    """Convolution FLOPs a second of the video decoder, in the first chunks of a clip."""
    vae, side = _randomised(models.vae, device), FIRST_SIDE

    def decode(vae: nn.Module, where: torch.device) -> Callable[[], object]:
        rows, columns = min(side, shape[1]), min(side, shape[2])
        chunk = max(2, BUSY // (rows * columns))  # latent frames that are decoded together; two chunks where one is short
        latents = torch.randn(1, vae.config.z_dim, min(1 + chunk, shape[0]), rows, columns, device=where)
        return lambda: [None for _ in iter_decode_video(vae, latents)]

    while side < min(LAST_SIDE, max(shape[1:])) and _time(decode(vae, device), device) < MEASURE_SECONDS / 2:
        side *= 2
    meter = Meter()
    with meter.watching():
        decode(models.vae, torch.device("meta"))()
    return meter.flops.convolution / _time(decode(vae, device), device, seconds=MEASURE_SECONDS)


def _measure_transfer(device: torch.device) -> float:
    """Bytes a second from host memory; without end where the weights need not move."""
    if device.type != "cuda":
        return float("inf")
    host = torch.zeros(TRANSFER_BYTES, dtype=torch.uint8)
    return TRANSFER_BYTES / _time(lambda: to_device([host], device), device, seconds=MEASURE_SECONDS)


def _randomised(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy on the device whose activations stay near 1: numbers that die out are slow on a CPU (denormals)."""
    made = copy.deepcopy(module).to_empty(device=device)
    for parameter in made.parameters():
        inputs = parameter.numel() // len(parameter)
        parameter.data.normal_(0, inputs**-0.5) if inputs > 1 else parameter.data.fill_(1.0)
    return made


def _maker(models: MetaModels, device: torch.device) -> Callable[..., Tensor]:
    return lambda *shape: torch.randn(*shape, dtype=models.transformer.dtype, device=device)


def _time(call: Callable[[], object], device: torch.device, *, seconds: float = 0.02) -> float:
    """Seconds of one call after a warm-up: the median of the later half of as many as fit into `seconds`, at least one."""

    def once() -> float:
        begin = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begin

    warm_up, times = once(), [once()]
    del warm_up
    while sum(times) < seconds:
        times.append(once())
    return statistics.median(times[len(times) // 2 :])


# ------------------------------------------------------------------------------------------------------ earlier runs


def read_rates(path: str | Path) -> Rates:
    """The rates of the device that a benchmark measured.

    Args:
        path: JSON of `benchmarks/nano_h200.py`.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
        return rates_from_results(results, source=f"from {Path(path).name}")
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(
            f"got {path}, expected JSON of benchmarks/nano_h200.py, with full_step/SIZE and vae_decode/SIZE of "
            f"two sizes ({error})"
        ) from error


def rates_from_results(results: Mapping[str, Any], *, source: str) -> Rates:
    """Fit the rates to the measured seconds of steps and decodes of Nano: every size weighs the same.

    Args:
        results: rows `full_step/SIZE` and `vae_decode/SIZE` of `benchmarks/nano_h200.py`, whose "lab" is taken.
        source: for `Rates.source`.

    Raises:
        ValueError: fewer than two sizes, or times that no rates explain.
    """
    configs = nano_configs()
    models = meta_models(configs, with_sound=True, dtype=torch.bfloat16)
    steps, decodes = [], []
    for size in (key.removeprefix("full_step/") for key in results if key.startswith("full_step/")):
        clip = make_clip(configs, *parse_size(size), with_sound=True)
        flops, seconds = denoise_cost(models, clip, NANO_TEXT_TOKENS).flops, _lab_seconds(results[f"full_step/{size}"])
        steps.append([flops.linear / seconds, flops.attention / seconds])
        decodes.append(decode_cost(models, clip, ()).flops.convolution / _lab_seconds(results[f"vae_decode/{size}"]))
    if len(steps) < 2:
        raise ValueError(f"found {len(steps)} sizes, at least two are needed")
    matrix = torch.tensor(steps, dtype=torch.float64)  # times 1 / rate, each row should be 1
    per_flop = torch.linalg.lstsq(matrix, torch.ones(len(steps), 1, dtype=torch.float64)).solution[:, 0]
    if not bool((per_flop > 0).all()):
        raise ValueError("the times of the sizes contradict each other")
    linear, attending = (1 / per_flop).tolist()
    return Rates(linear, attending, statistics.fmean(decodes), H100.transfer, H100.layer, source)


def _lab_seconds(row: Mapping[str, Any]) -> float:
    return row["lab"]["median_ms"] / 1e3
