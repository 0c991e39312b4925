"""The loss: many samples at once are those of one at a time, gradients arrive everywhere, and sigmas are spread as told."""

import copy
from statistics import NormalDist

import pytest
import torch

from cosmos3_lab import Latents, encode_condition, predict_velocity
from cosmos3_lab.pico import flow
from cosmos3_lab.pico.batch import encode_prompts, find_places, predict_velocities
from cosmos3_lab.pico.flow import TRAINING_SHIFT, draw_sigmas, flow_matching_loss, timesteps
from cosmos3_lab.pico.graphs import LossStep
from cosmos3_lab.pico.recipe import RECIPES
from cosmos3_lab.pico.train_transformer import build_transformer, loss_of_shape, muon_names, streams

SHAPES = [((3, 6, 4), 7), ((3, 5, 3), 0), ((1, 4, 6), 0), ((1, 3, 4), 5)]  # odd sizes are padded; 0: no sound


def random_latents(count, channels, shape, sound, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    video = torch.randn(count, channels, *shape, generator=generator)
    return Latents(video, torch.randn(count, sound, dim, generator=generator) if sound else None)


def random_ids(count, vocab=768, length=11):
    return torch.randint(vocab, (count, length), generator=torch.Generator().manual_seed(1))


def same(a, b):
    """Equal but for rounding."""
    assert a.shape == b.shape
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def encode(transformer, ids, shape, sound=0):
    return encode_prompts(transformer, ids, find_places(transformer, ids.shape[1], shape, 16.0, sound_len=sound))


def one(latents, i):
    return latents.map(lambda x: x[i : i + 1])


def one_by_one(transformer, latents, times, ids, shape, sound):
    """What the inference code says of every sample."""
    for i, time in enumerate(times):
        row = ids[i : i + 1]
        cond = encode_condition(transformer, row, torch.ones_like(row), shape, 16.0, sound_len=sound or None)
        yield cond, predict_velocity(transformer, one(latents, i), int(time), cond)


@pytest.mark.parametrize(("shape", "sound"), SHAPES)
def test_a_batch_is_its_samples(pico, shape, sound):
    times, ids = (0, 500, 993), random_ids(3)
    latents = random_latents(3, 16, shape, sound, 16)
    cond = encode(pico.transformer, ids, shape, sound)
    velocity = predict_velocities(pico.transformer, latents, torch.tensor(times).float(), cond)
    for i, (alone, expected) in enumerate(one_by_one(pico.transformer, latents, times, ids, shape, sound)):
        assert cond.layout == alone.layout
        assert torch.equal(cond.freqs_gen.cos, alone.freqs_gen.cos)
        for mine, its in zip(cond.cached_kv, alone.cached_kv, strict=True):
            same(mine.k[i], its.k)
            same(mine.v[i], its.v)
        same(velocity.video[i : i + 1], expected.video)
        assert (velocity.sound is None) == (expected.sound is None) == (sound == 0)
        if sound:
            same(velocity.sound[i : i + 1], expected.sound)


# Of UND's last layer only keys and values are read; its output goes nowhere.
PARTS = ("self_attn.to_q", "self_attn.norm_q", "self_attn.to_out", "post_attention_layernorm")
PARTS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
UNREAD = {f"und.layers.7.{part}.weight" for part in PARTS}


@pytest.mark.parametrize("sound", [4, 0])
def test_gradients_reach_every_weight_that_is_used(pico, sound):
    transformer = copy.deepcopy(pico.transformer).requires_grad_(True)
    latents, ids = random_latents(2, 16, (2, 4, 4), sound, 16), random_ids(2)
    cond = encode(transformer, ids, (2, 4, 4), sound)
    velocity = predict_velocities(transformer, latents, torch.tensor([300.0, 900.0]), cond)
    sum(x.square().mean() for x in (velocity.video, velocity.sound) if x is not None).backward()
    grads = {name: p.grad for name, p in transformer.named_parameters()}
    without = {name for name, grad in grads.items() if grad is None}
    assert without == UNREAD | (set() if sound else {name for name in grads if name.startswith("gen.audio_")})
    assert all(grad.any() for grad in grads.values() if grad is not None)
    read = grads["und.embed_tokens.weight"].any(dim=1).nonzero().flatten()
    assert set(read.tolist()) == set(ids.flatten().tolist())


# ------------------------------------------------------------------------------------------------------------------ loss


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    return build_transformer(RECIPES["tiny"], torch.device("cpu"))


@pytest.mark.parametrize("sound", [6, 0])
@torch.no_grad()
def test_untrained_towers_say_zero(untrained, sound):
    x0, noise = (random_latents(5, 4, (2, 4, 4), sound, 4, seed=seed) for seed in (2, 3))
    cond = encode(untrained, random_ids(5), (2, 4, 4), sound)
    video_loss, sound_loss = flow_matching_loss(untrained, x0, noise, torch.linspace(0.1, 0.9, 5), cond)
    assert float(video_loss) == float((noise.video - x0.video).square().mean())
    assert float(sound_loss) == (float((noise.sound - x0.sound).square().mean()) if sound else 0.0)


def test_only_ways_out_of_a_layer_start_at_zero(untrained):
    zero = {name for name, p in untrained.named_parameters() if not p.any()}
    assert {name.rsplit(".", 2)[-2] for name in zero} == {"to_out", "to_add_out", "down_proj", "proj_out", "audio_proj_out"}
    assert {name.split(".")[-2] for name in muon_names(untrained)} == {
        *("to_q", "to_k", "to_v", "to_out", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
        *("gate_proj", "up_proj", "down_proj"),
    }


@torch.no_grad()
def test_the_loss_is_the_error_of_the_velocity(pico):
    """Each sample by hand: mixed with its noise at its sigma, and asked at `floor(1000 sigma)`."""
    shape, sound, sigma = (2, 4, 4), 5, torch.tensor([0.0359, 0.5, 0.9999])
    x0, noise, ids = random_latents(3, 16, shape, sound, 16), random_latents(3, 16, shape, sound, 16, seed=1), random_ids(3)
    mixed = [(1 - s) * one(x0, i).video + s * one(noise, i).video for i, s in enumerate(sigma)]
    mixed_sound = [(1 - s) * one(x0, i).sound + s * one(noise, i).sound for i, s in enumerate(sigma)]
    sample = Latents(torch.cat(mixed), torch.cat(mixed_sound))
    expected = [velocity for _, velocity in one_by_one(pico.transformer, sample, (35, 500, 999), ids, shape, sound)]
    video = torch.cat([v.video for v in expected]) - (noise.video - x0.video)
    heard = torch.cat([v.sound for v in expected]) - (noise.sound - x0.sound)
    cond = encode(pico.transformer, ids, shape, sound)
    video_loss, sound_loss = flow_matching_loss(pico.transformer, x0, noise, sigma, cond)
    assert float(video_loss) == pytest.approx(float(video.square().mean()), rel=1e-4)
    assert float(sound_loss) == pytest.approx(float(heard.square().mean()), rel=1e-4)


def test_the_network_is_told_whole_timesteps(untrained, monkeypatch):
    told, predict = [], flow.predict_velocities
    monkeypatch.setattr(flow, "predict_velocities", lambda *args: told.append(args[2]) or predict(*args))
    sigma = torch.tensor([0.0001, 0.0019, 0.5, 0.7777, 0.9999])
    x0 = random_latents(5, 4, (1, 4, 4), 0, 4)
    flow_matching_loss(untrained, x0, x0, sigma, encode(untrained, random_ids(5), (1, 4, 4)))
    assert told[0].tolist() == timesteps(sigma).tolist() == [0, 1, 500, 777, 999]


def test_sigmas_are_spread_as_told():
    count, draw = 200_000, lambda seed=0: draw_sigmas(200_000, torch.Generator().manual_seed(seed))
    sigma = draw()
    assert torch.equal(sigma, draw())
    assert not torch.equal(sigma, draw(1))
    assert 0 < sigma.min() < 0.001
    assert 0.999 < sigma.max() < 1
    levels = [0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98]
    uniform, normal = torch.tensor(levels), torch.tensor([NormalDist().inv_cdf(q) for q in levels])
    for half, drawn in ((sigma[: count // 2], uniform), (sigma[count // 2 :], normal.sigmoid())):
        expected = TRAINING_SHIFT * drawn / (1 + (TRAINING_SHIFT - 1) * drawn)
        assert (half.quantile(torch.tensor(levels)) - expected).abs().max() < 0.01
    assert sigma.median() == pytest.approx(0.857, abs=0.01)


# ---------------------------------------------------------------------------------------------------------------- graphs


def square_loss(module, x, scale):
    """With a weight that no gradient reaches."""
    out = module[0](x).tanh() * scale
    loss = out.square().mean()
    return loss, {"loss": loss.detach(), "mean": out.detach().mean()}


def check_gradients(device):
    torch.manual_seed(0)
    graphed = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.Linear(2, 2)).to(device)
    plain = copy.deepcopy(graphed)
    step = LossStep(graphed, lambda *inputs: square_loss(graphed, *inputs))
    seen = []
    for factor in (1.0, 2.0, -3.0):
        x, scale = torch.randn(4, 7, device=device), torch.tensor(factor, device=device)
        numbers = step(x, scale)
        loss, expected = square_loss(plain, x, scale)
        loss.backward()
        seen.append(numbers)
        torch.testing.assert_close(numbers, expected)
        for ours, theirs in zip(graphed.parameters(), plain.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad)
        for module in (graphed, plain):  # what a trainer does after it used the gradients
            with torch.no_grad():
                for p in module.parameters():
                    p -= 0.1 * (0 if p.grad is None else p.grad)
            module.zero_grad(set_to_none=True)
    assert len({float(numbers["loss"]) for numbers in seen}) == 3  # not the graph's own memory, which is written again


def test_a_loss_step_is_a_backward_pass():
    check_gradients("cpu")


@pytest.mark.cuda
def test_a_replayed_step_is_a_backward_pass():
    check_gradients("cuda")


def towers_gradients(device):
    """Gradients of the towers from steps of different shapes that share memory, and from plain passes, after each step."""
    graphed = build_transformer(RECIPES["tiny"], torch.device(device)).train().requires_grad_()
    torch.manual_seed(3)
    for p in graphed.parameters():
        torch.nn.init.normal_(p.data, std=0.05)
    plain = copy.deepcopy(graphed)
    steps = {}
    for length, sound in [(11, 3), (14, 3), (11, 0), (11, 3), (14, 3)]:
        x0 = random_latents(4, 4, (2, 4, 4), sound, 4, seed=length).map(lambda x: x.to(device))
        noise = x0.map(torch.randn_like)
        ids, sigma = random_ids(4, length=length).to(device), torch.rand(4, device=device)
        beside = next(iter(steps.values()), None)
        step = steps.setdefault((length, sound), LossStep(graphed, loss_of_shape(graphed, x0, length), beside))
        numbers = step(ids, sigma, *streams(x0), *streams(noise))
        video, heard = flow_matching_loss(plain, x0, noise, sigma, encode(plain, ids, (2, 4, 4), sound))
        (video + heard).backward()
        torch.testing.assert_close(numbers["loss"], (video + heard).detach())
        yield [(a.grad, b.grad) for a, b in zip(graphed.parameters(), plain.parameters(), strict=True)]
        graphed.zero_grad(set_to_none=True)
        plain.zero_grad(set_to_none=True)


def check_towers(device):
    for pairs in towers_gradients(device):
        assert any(ours is not None and ours.abs().max() > 0 for ours, _ in pairs)
        for ours, theirs in pairs:
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()) + 1e-9)


def test_steps_of_several_shapes_are_backward_passes():
    check_towers("cpu")


@pytest.mark.cuda
def test_replayed_steps_of_several_shapes_are_backward_passes():
    check_towers("cuda")
