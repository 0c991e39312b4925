"""The fused layers against the plain ones. Without a GPU, Triton's interpreter runs the same kernels (see conftest.py)."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cosmos3_lab import fused, fusing, kernels, layers, load_cosmos3, sound_avae, towers, vae_blocks, vae_kernels
from cosmos3_lab.fusing import can_fuse, kernels_of
from cosmos3_lab.latents import Latents
from cosmos3_lab.layers import apply_rotary
from cosmos3_lab.quantized import QuantizedLinear, quantize_tower, round_rows
from cosmos3_lab.random_checkpoint import RECIPES
from cosmos3_lab.sound_avae import decode_sound
from cosmos3_lab.towers import GENLayer, LayerKV, Rope
from cosmos3_lab.transformer import encode_condition, predict_velocity
from cosmos3_lab.vae_blocks import CausalMemory, UpBlock
from cosmos3_lab.video_vae import decode_video, encode_video, use_channels_last

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONFIG = RECIPES["tiny"].transformer


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def close(found, expected, tolerance=1e-6):
    assert found.shape == expected.shape
    assert float((found - expected).norm() / expected.norm()) < tolerance


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


# ------------------------------------------------------------------------------------------------------ GEN layer


@pytest.mark.parametrize("width", [64, 96, 3000])
def test_norm(width):
    x, weight = random(7, width), random(width, seed=1)
    close(kernels.rms_norm(x, weight, 1e-6), F.rms_norm(x, (width,), weight, 1e-6))


@pytest.mark.parametrize("width", [64, 96, 5000])
def test_gate(width):
    gate, up = random(7, width), random(7, width, seed=1)
    close(kernels.silu_times(gate, up), F.silu(gate) * up)


def test_heads_are_normed_and_rotated_where_they_lie_and_elsewhere():
    x, weight, cos, sin = random(9, 4, 32), random(32, seed=1), random(9, 16, seed=2), random(9, 16, seed=3)
    expected = apply_rotary(F.rms_norm(x, (32,), weight, 1e-6), cos, sin)
    room = torch.zeros(12, 4, 32, device=DEVICE)
    kernels.norm_and_rotate(x, weight, 1e-6, cos, sin, room[3:])
    close(room[3:], expected)
    assert not room[:3].any()
    kernels.norm_and_rotate(x, weight, 1e-6, cos, sin.T.contiguous().T, x)  # in whatever order the angles lie
    close(x, expected)


def attend(q, k, v):
    """`softmax(q k^T / sqrt(d_head)) v` and the logarithm of the softmax's sums, in float64."""
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
    logits = q @ k.mT / q.shape[-1] ** 0.5
    return (logits.softmax(-1) @ v).transpose(0, 1).float(), logits.logsumexp(-1).float()


@pytest.mark.parametrize("more", [1, 13, 128])
@pytest.mark.parametrize("size", [0.1, 1, 30])  # 30: one key is all that matters, among the first or among the others
def test_attention_sees_more_keys(more, size):
    q, k, v = size * random(70, 4, 32), random(50 + more, 2, 32, seed=1), random(50 + more, 2, 32, seed=2)
    seen, lse = attend(q, k[:50], v[:50])
    seen = seen.contiguous()
    kernels.see_more(q, k[50:], v[50:], seen, lse)
    close(seen, attend(q, k, v)[0], 5e-6)


@pytest.mark.parametrize("keys", [300, 257])
def test_attention_in_tiles_is_that_over_all_keys(keys, monkeypatch):
    def of_cudnn(q, k, v, bias, with_lse):
        assert (bias, with_lse, k.shape) == (None, True, (1, 2, 256, 32))
        seen, lse = attend(*(x[0].transpose(0, 1) for x in (q, k, v)))
        return seen.transpose(0, 1)[None], lse[None, :, :, None], None

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", of_cudnn)
    q, k, v = (random(n, heads, 32, seed=heads) for n, heads in ((70, 4), (keys, 2), (keys, 2)))
    close(layers._attention_in_tiles(q, k, v), attend(q, k, v)[0].flatten(1), 5e-6)


@pytest.mark.cuda  # bfloat16 attention of cuDNN
@pytest.mark.parametrize("keys", [5322, 8522])
def test_attention_in_tiles_is_rounded_once_more_than_in_one(keys, monkeypatch):
    q, k, v = (random(n, heads, 128, seed=n).bfloat16() for n, heads in ((5122, 32), (keys, 8), (keys, 8)))
    monkeypatch.setattr(layers, "has_flash_attention_3", lambda q: False)
    assert layers._gains_by_whole_tiles(q, k) == (torch.cuda.get_device_capability() == (9, 0))
    expected = attend(q, k, v)[0].flatten(1)
    found = layers._attention_in_tiles(q, k, v)
    monkeypatch.setattr(layers, "LARGE", 10_000)
    errors = [float((y.float() - expected).norm() / expected.norm()) for y in (found, layers.attention(q, k, v, causal=False))]
    assert errors[0] < 1.5 * errors[1] < 4e-3


def test_tiles_are_for_long_sequences_on_a_hopper_gpu(monkeypatch):
    q, k = (torch.zeros(n, 1, 128, dtype=torch.bfloat16).as_subclass(OnGPU) for n in (4096, 5000))
    capability = [(9, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    monkeypatch.setattr(fusing, "INSTALLED", {"triton"})
    assert layers._gains_by_whole_tiles(q, k)
    for other_q, other_k in ((q[1:], k), (q, k[:4992]), (q, k[:100]), (q[:, None], k), (q.half(), k), (q[..., :64], k)):
        assert not layers._gains_by_whole_tiles(other_q, other_k)
    with torch.enable_grad():
        assert not layers._gains_by_whole_tiles(q, k)
    capability[0] = (8, 9)
    assert not layers._gains_by_whole_tiles(q, k)


@pytest.mark.cuda  # the interpreter cuts bits off where a GPU rounds
@pytest.mark.parametrize("make", ["alone", "with the norm", "with the gate"])
def test_fp8_is_that_of_the_plain_layer(make):
    x = random(7, 96)
    x[3] = 0
    if make == "alone":
        found, expected = kernels.round_to_fp8(x), x
    elif make == "with the norm":
        found, expected = kernels.rms_norm(x, x[0], 1e-6, fp8=True), F.rms_norm(x, (96,), x[0], 1e-6)
    else:
        found, expected = kernels.silu_times(x, x, fp8=True), F.silu(x) * x
    values, scale = round_rows(expected, "fp8")
    close(found.scale, scale)
    # A number halfway between two of fp8's may go either way after a difference in its last bit.
    assert (found.values.float() != values.float()).float().mean() < 0.01


def layer_and_inputs(kind=None, tokens=50, text=11):
    layer = GENLayer(CONFIG)
    for i, p in enumerate(layer.parameters()):
        p.data = random(*p.shape, seed=i) * (0.1 if p.ndim > 1 else 1)
    if kind:
        holder = nn.Module()
        holder.layers = nn.ModuleList([layer])
        quantize_tower(holder, kind, device=torch.device("cpu"), home=torch.device("cpu"))
    heads = CONFIG.num_key_value_heads, CONFIG.head_dim
    angles = 9 * random(tokens, CONFIG.head_dim // 2)
    given = (
        random(tokens, CONFIG.hidden_size),
        LayerKV(random(text, *heads), random(text, *heads, seed=1)),
        Rope(angles.cos(), angles.sin()),
    )
    return layer.to(DEVICE).requires_grad_(False), given


@pytest.mark.parametrize("kind", [None, "int8", "fp8"])
@pytest.mark.parametrize("part", [16, 8192])
def test_the_fused_layer_is_the_plain_one(monkeypatch, kind, part):
    monkeypatch.setattr(layers, "MLP_TOKENS", part)
    monkeypatch.setattr(fused, "MLP_TOKENS", part)
    monkeypatch.setenv("COSMOS3_PLAIN", "1")
    layer, (x, text, rope) = layer_and_inputs(kind)
    before = [t.clone() for t in (x, text.k, text.v)]
    expected = layer(x, text, rope)
    found = fused.fused_layer(layer, x, text, rope)
    close(found, expected, 2e-3 if (kind, DEVICE) == ("fp8", "cuda") else 1e-6)  # fp8: as above
    assert all(torch.equal(a, b) for a, b in zip(before, (x, text.k, text.v), strict=True))
    assert any(isinstance(m, QuantizedLinear) for m in layer.modules()) == bool(kind)


@pytest.mark.cuda  # on a CPU bfloat16 products are rounded in other places
def test_in_bfloat16_the_fused_layer_is_at_least_as_exact(monkeypatch):
    layer, (x, text, rope) = layer_and_inputs(tokens=500)
    exact = layer(x, text, rope)
    half = [t.bfloat16() for t in (x, text.k, text.v, rope.cos, rope.sin)]
    given = half[0], LayerKV(*half[1:3]), Rope(*half[3:])
    found = fused.fused_layer(layer.bfloat16(), *given)
    monkeypatch.setenv("COSMOS3_PLAIN", "1")
    errors = [float((y.float() - exact).norm() / exact.norm()) for y in (found, layer(*given))]
    assert errors[0] < 1.05 * errors[1] < 0.02


def test_a_layer_that_is_watched_inside_is_run_plainly(monkeypatch):
    layer, given = layer_and_inputs()
    monkeypatch.setattr(towers, "can_fuse", lambda x: True)
    monkeypatch.setattr(fused, "fused_layer", lambda layer, x, text, rope: torch.zeros_like(x))
    assert not layer(*given).any()
    handle = layer.register_forward_hook(lambda *args: None)  # what goes in and comes out is there in a fused layer too
    assert not layer(*given).any()
    handle.remove()
    for module in (layer.self_attn.add_q_proj, layer.mlp_moe_gen):
        handle = module.register_forward_hook(lambda *args: None)
        assert layer(*given).any()
        handle.remove()


class OnGPU(torch.Tensor):
    """What `can_fuse` asks of a tensor on a GPU."""

    is_cuda, device = True, torch.device("cuda")


def test_kernels_are_for_gpus_without_gradients(monkeypatch):
    on_gpu = torch.zeros(1).as_subclass(OnGPU)
    found = {"triton", "flashinfer"}
    monkeypatch.setattr(fusing, "INSTALLED", found)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert can_fuse(on_gpu)
    assert kernels_of(on_gpu.device) == "triton and flashinfer"
    assert not can_fuse(torch.zeros(1))
    with torch.enable_grad():
        assert not can_fuse(on_gpu)
    monkeypatch.setenv("COSMOS3_PLAIN", "0")
    assert can_fuse(on_gpu)
    monkeypatch.setenv("COSMOS3_PLAIN", "1")
    assert not can_fuse(on_gpu)
    monkeypatch.delenv("COSMOS3_PLAIN")
    found.remove("flashinfer")
    assert kernels_of(on_gpu.device) == "triton"
    found.clear()
    assert not can_fuse(on_gpu)


def test_tokens_that_do_not_lie_in_a_row(monkeypatch):
    monkeypatch.setenv("COSMOS3_PLAIN", "1")
    layer, (x, text, rope) = layer_and_inputs()
    for odd in (x.T.contiguous().T, x.mean(0, keepdim=True).expand_as(x), torch.cat([x, x], dim=1)[:, : x.shape[1]]):
        close(fused.fused_layer(layer, odd, text, rope), layer(odd, text, rope))


@pytest.mark.parametrize(("heads", "d_head"), [(6, 16), (4, 24)])
def test_heads_that_triton_cannot_count_are_run_plainly(monkeypatch, heads, d_head):
    monkeypatch.setattr(towers, "can_fuse", lambda x: True)
    half = d_head // 2
    config = replace(CONFIG, num_attention_heads=heads, head_dim=d_head, mrope_section=(half - 4, 2, 2))
    assert towers._fuses(GENLayer(CONFIG), torch.zeros(3, 4))
    assert not towers._fuses(GENLayer(config), torch.zeros(3, 4))


@pytest.mark.cuda
def test_a_number_that_is_none_spoils_its_row_in_fp8():
    x = random(3, 96)
    x[1, 5] = float("nan")
    assert kernels.round_to_fp8(x).scale.isnan().flatten().tolist() == [False, True, False]


# ------------------------------------------------------------------------------------------------------ video decoder


@pytest.mark.parametrize("channels", [8, 24, 1024])
def test_channels_are_normed(channels):
    x = random(1, channels, 2, 3, 5).contiguous(memory_format=torch.channels_last_3d)
    gamma, bias = random(channels, 1, 1, 1, seed=1), random(channels, seed=2)
    shifted = x + bias.view(1, -1, 1, 1, 1)
    out = torch.empty_like(x)
    vae_kernels.norm_silu(x, gamma, out, bias=bias)
    close(out, F.silu(shifted * channels**0.5 / shifted.norm(dim=1, keepdim=True) * gamma))


def test_a_pixel_of_zeros_stays_one():
    x = torch.zeros(1, 8, 1, 2, 2, device=DEVICE).contiguous(memory_format=torch.channels_last_3d)
    out = torch.ones_like(x)
    vae_kernels.norm_silu(x, torch.ones(8, device=DEVICE), out)
    assert not out.any()


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("channels", [8, 12])
def test_frames_are_doubled(times, channels):
    x, bias = (
        random(1, times * channels, 2, 3, 5).contiguous(memory_format=torch.channels_last_3d),
        random(times * channels, seed=1),
    )
    shifted = (x + bias.view(1, -1, 1, 1, 1))[0].unflatten(0, (times, channels))
    expected = shifted.permute(2, 0, 1, 3, 4).flatten(0, 1).repeat_interleave(2, -2).repeat_interleave(2, -1)
    assert torch.equal(vae_kernels.double(x, times=times, bias=bias), expected)


@pytest.mark.parametrize("time", [True, False])
@pytest.mark.parametrize("width", [6, 7])
def test_blocks_are_the_plain_ones_chunk_after_chunk(monkeypatch, time, width):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    block = UpBlock(24, 12, blocks=2, upsample=True, time=time).requires_grad_(False)
    for i, p in enumerate(block.parameters()):
        p.data = 0.2 * random(*p.shape, seed=i)
    use_channels_last(block)
    chunks = [random(1, 24, frames, 5, width, seed=frames) for frames in (1, 1, 2)]
    results = []
    for use in (False, True):
        monkeypatch.setattr(vae_blocks, "fuses", lambda block, x, use=use: use)
        memory, found = CausalMemory(), []
        for chunk in chunks:
            found.append(block.to(DEVICE)(chunk, memory))
            memory.first = False
        results.append(torch.cat(found, dim=2))
    close(results[1], results[0])


@pytest.mark.parametrize("samples", [7, 5000])
def test_snake(samples):
    x, (alpha, beta) = random(2, 3, samples), random(2, 1, 3, 1, seed=1)
    close(vae_kernels.snake(x, alpha, beta), x + torch.sin(alpha.exp() * x) ** 2 / (beta.exp() + 1e-9))


def test_two_clips_at_once_are_decoded_plainly(monkeypatch):
    monkeypatch.setattr(vae_blocks, "can_fuse", lambda x: True)
    block = UpBlock(4, 4, blocks=1, upsample=True, time=True)
    assert vae_blocks.fuses(block, torch.zeros(1, 2))
    assert not vae_blocks.fuses(block, torch.zeros(2, 2))
    handle = block.resnets[0].conv1.register_forward_hook(lambda *args: None)
    assert not vae_blocks.fuses(block, torch.zeros(1, 2))
    handle.remove()


# ------------------------------------------------------------------------------------------------------------- all of it


@pytest.fixture(scope="module")
def models(tiny_folder):
    with load_cosmos3(tiny_folder, device=DEVICE, dtype=torch.float32, load_encoder=True) as models:
        yield models


@pytest.fixture
def both(monkeypatch):
    """A computation by the plain layers, then by the kernels; a CPU passes for a GPU."""

    def compute(call):
        monkeypatch.setenv("COSMOS3_PLAIN", "1")
        plain = call()
        monkeypatch.setenv("COSMOS3_PLAIN", "0")
        for module in (towers, vae_blocks, sound_avae):
            monkeypatch.setattr(module, "can_fuse", lambda x: True)
        return plain, call()

    return compute


def test_a_velocity(models, both):
    ids, mask = torch.arange(5, device=DEVICE)[None], torch.ones(1, 5, dtype=torch.int64, device=DEVICE)
    cond = encode_condition(models.transformer, ids, mask, (2, 2, 3), 16.0, sound_len=3)
    latents = Latents(random(1, models.config.latent_channel, 2, 2, 3), random(1, 3, models.config.sound_dim))
    plain, found = both(lambda: predict_velocity(models.transformer, latents, 500, cond))
    assert not torch.equal(found.video, plain.video)  # another order of sums: it really went another way
    close(found.video, plain.video, 1e-5)
    close(found.sound, plain.sound, 1e-5)


def test_pixels_and_back(models, both):
    z = random(1, models.vae.config.z_dim, 2, 2, 3)
    plain, found = both(lambda: decode_video(models.vae, z))
    assert not torch.equal(found, plain)
    assert (found - plain).abs().max() < (1e-5 if DEVICE == "cpu" else 1e-3)  # a GPU's convolutions round to TF32
    plain, found = both(lambda: encode_video(models.vae, plain))
    close(found, plain, 1e-5 if DEVICE == "cpu" else 1e-2)


def test_a_waveform(models, both):
    sound = random(1, 2, models.config.sound_dim)
    plain, found = both(lambda: decode_sound(models.avae, sound))
    assert DEVICE == "cuda" or not torch.equal(found, plain)  # a GPU's sines are the same in both
    close(found, plain, 1e-5 if DEVICE == "cpu" else 1e-2)
