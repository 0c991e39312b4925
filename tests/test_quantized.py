"""Layers in 8 bits: how the rows are rounded, and that what is rounded still makes clips, close to those that are not."""

import inspect

import pytest
import torch

from cosmos3_lab import generate, load_cosmos3, prepare_denoise, prepare_request
from cosmos3_lab.denoise import denoise_step
from cosmos3_lab.quantized import EIGHT_BITS, QuantizedLinear, round_rows

KINDS = tuple(EIGHT_BITS)
ASK = {"prompt": "a red ball bounces", "num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 2, "with_sound": True}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def first_velocity(models):
    inputs, state = prepare_denoise(models, prepare_request(models, **ASK))
    return denoise_step(models.transformer, inputs, state)[1].velocity.guided


@pytest.fixture(params=KINDS)
def rounded(request, tiny_folder):
    with load_cosmos3(tiny_folder, device="cpu", quantize=request.param) as models:
        yield models


def test_int8_is_at_most_half_a_level_away():
    x = random(5, 64)
    rows, scale = round_rows(x, "int8")
    assert (rows.dtype, scale.shape) == (torch.int8, (5, 1))
    assert rows.abs().amax(dim=1).tolist() == [127] * 5
    assert ((rows * scale - x).abs() <= 0.5001 * scale).all()


def test_fp8_is_at_most_a_sixteenth_away():
    """Three bits after the point: steps of an eighth, but near zero, where they are fixed."""
    x = random(5, 64)
    rows, scale = round_rows(x, "fp8")
    away = (rows.float() * scale - x).abs()
    assert (away <= torch.maximum(x.abs() / 16, scale * 2**-10)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_stays_zero(kind):
    rows, scale = round_rows(torch.zeros(2, 4), kind)
    assert not (rows.float() * scale).any()
    assert scale.isfinite().all()


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.01), ("fp8", 0.05)])
def test_a_product_is_close_to_the_exact_one(kind, tolerance):
    x, weight = random(3, 7, 128, seed=1), random(16, 128)
    found = QuantizedLinear(weight, kind)(x)
    assert found.shape == (3, 7, 16)
    assert 0 < relative(found, x @ weight.T) < tolerance


def test_the_matrices_of_the_layers_are_in_8_bits_and_nothing_else_is(rounded, tiny):
    dtype = EIGHT_BITS[rounded.quantized][0]
    exact = dict(tiny.transformer.named_parameters())
    for name, p in rounded.transformer.named_parameters():
        if name.endswith(".scale"):
            assert p.dtype == torch.float32
        else:
            assert p.dtype == (dtype if ".layers." in name and p.ndim == 2 else exact[name].dtype), name


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.05), ("fp8", 0.3)])
def test_velocities_are_near_those_of_the_checkpoint_and_not_equal(tiny, tiny_folder, kind, tolerance):
    wanted = first_velocity(tiny)
    with load_cosmos3(tiny_folder, device="cpu", quantize=kind) as models:
        found = first_velocity(models)
    assert 0 < relative(found.video, wanted.video) < tolerance
    assert 0 < relative(found.sound, wanted.sound) < tolerance


def test_split_placement_gives_the_same_bits(rounded, tiny_folder):
    with load_cosmos3(tiny_folder, device="cpu", placement="split", quantize=rounded.quantized) as split:
        a, b = (generate(models, progress=False, **ASK) for models in (rounded, split))
    assert torch.equal(a.latents.video, b.latents.video)
    assert torch.equal(a.latents.sound, b.latents.sound)


def test_models_and_manifest_say_that_something_was_lost(rounded, tiny):
    assert f"layers in {rounded.quantized} (lossy)" in repr(rounded)
    assert rounded.fingerprint != tiny.fingerprint  # a run is not continued with other weights
    assert generate(rounded, progress=False, **ASK).manifest["quantized"] == rounded.quantized
    assert tiny.quantized is None
    assert "lossy" not in repr(tiny)


def test_a_word_that_is_none_of_them_is_an_error(tiny_folder):
    load = inspect.unwrap(load_cosmos3)  # as users have it, without the tests' checks of types
    with pytest.raises(ValueError, match="int4.*int8.*fp8"):
        load(tiny_folder, quantize="int4")


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_multiplies_what_the_cpu_does(kind):
    x, weight = random(5, 7, 128, seed=1).bfloat16(), random(32, 128).bfloat16()
    on_cpu, on_gpu = QuantizedLinear(weight, kind), QuantizedLinear(weight.cuda(), kind)
    assert relative(on_gpu(x.cuda()).float().cpu(), on_cpu(x).float()) < 0.01
