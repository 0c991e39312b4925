"""How weights move: Muon, the schedule, float32 weights behind the module's, averages, and going on after a stop."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cosmos3_lab.pico.optimizers import CLIP, Muon, Trainer, learning_rate, orthogonalize
from cosmos3_lab.pico.recipe import Phase

PHASE = Phase(steps=100, batch=1, rate=0.01, warmup=10, flat=0.6, ema=0.6)
MUON = ("wide.weight", "tall.weight", "spare.weight")


class Net(nn.Module):
    """`spare` and `rest` are used only where they are asked for."""

    def __init__(self):
        super().__init__()
        self.wide, self.tall = nn.Linear(6, 3), nn.Linear(3, 8)
        self.spare, self.rest = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)

    def forward(self, x, *, spare):
        y = self.tall(torch.tanh(self.wide(x)))
        return self.rest(self.spare(y)) if spare else y


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


def backward(module, number, *, spare=True, scale=1.0):
    """Gradients that depend on the number of the step."""
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(number)).to(module.wide.weight.dtype)
    (scale * (module(x, spare=spare) - 1).square().mean()).backward()


def train(trainer, steps):
    for number in steps:
        backward(trainer.module, number, spare=number % 3 != 2)
        trainer.step()


# ------------------------------------------------------------------------------------------------------------------ Muon


@pytest.mark.parametrize("shape", [(4, 48, 16), (4, 16, 48), (4, 24, 24), (1, 3, 3)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_are_pushed_towards_one(shape, scale):
    generator = torch.Generator().manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    spectrum = torch.logspace(0, -1.5, min(shape[1:]))
    pushed = orthogonalize(scale * (u * spectrum) @ v)
    assert pushed.shape == shape
    values = torch.linalg.svdvals(pushed)
    assert values.min() > 0.67
    assert values.max() < 1.21
    # The directions stay: what is pushed is the size alone.
    along = u.mT @ pushed @ v.mT
    assert (along - torch.diag_embed(along.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3


def test_every_matrix_moves_as_it_would_alone():
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 16), (16, 8), (8, 16), (12, 12), (8, 16), (16, 8)]
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    together = [p.clone() for p in start]
    optimizer = Muon(together)
    apart = [p.clone() for p in start]
    optimizers = [Muon([p]) for p in apart]
    for number in range(3):
        for i, (p, q) in enumerate(zip(together, apart, strict=True)):
            skipped = (number, i) == (1, 2)  # one without a gradient
            p.grad = None if skipped else torch.randn(p.shape, generator=generator) * 10.0**i
            q.grad = None if skipped else p.grad.clone()
        optimizer.step()
        for each in optimizers:
            each.step()
    assert all(torch.equal(p, q) for p, q in zip(together, apart, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(together, start, strict=True))


@pytest.mark.parametrize(("shape", "factor"), [((16, 4), 2.0), ((4, 16), 1.0), ((6, 6), 1.0)])
def test_a_step_of_muon_by_hand(shape, factor):
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(shape, generator=generator)
    expected, average, optimizer = p.clone(), torch.zeros(shape), Muon([p], lr=0.1, momentum=0.9, weight_decay=0.5)
    for _ in range(3):
        p.grad = torch.randn(shape, generator=generator)
        average = 0.9 * average + 0.1 * p.grad
        move = orthogonalize((0.1 * p.grad + 0.9 * average)[None])[0]
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * factor * move
        optimizer.step()
    torch.testing.assert_close(p, expected)


# -------------------------------------------------------------------------------------------------------------- schedule


@pytest.mark.parametrize(
    ("step", "share"), [(0, 0.1), (4, 0.5), (9, 1), (10, 1), (35, 1), (60, 1), (80, 0.5), (99, 0.025), (100, 0), (105, 0)]
)
def test_learning_rate(step, share):
    assert learning_rate(step, PHASE) == pytest.approx(share)


# --------------------------------------------------------------------------------------------------------------- trainer


def test_a_trainer_is_adamw_with_schedule_and_clipping():
    module, by_hand = net(), net()
    trainer = Trainer(module, PHASE, betas=(0.8, 0.95), weight_decay=0.1)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=PHASE.rate, betas=(0.8, 0.95), weight_decay=0.1)
    for number in range(12):
        scale = 50.0 if number % 2 else 0.01  # above and below the limit
        for m in (module, by_hand):
            backward(m, number, scale=scale)
        norm = torch.nn.utils.clip_grad_norm_(by_hand.parameters(), CLIP)
        assert (norm > CLIP) == (number % 2 == 1)
        optimizer.param_groups[0]["lr"] = PHASE.rate * learning_rate(number, PHASE)
        optimizer.step()
        optimizer.zero_grad()
        trainer.step()
        assert all(p.grad is None for p in module.parameters())
    assert trainer.progress == 0.12
    for ours, theirs in zip(module.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_muon_follows_the_schedule_too():
    """At the end of the schedule nothing moves any more; before, the matrices of Muon move by its rate."""
    trainer = Trainer(net(), PHASE, muon=MUON)
    moved = []
    for trainer.step_index in (0, 9, 100):
        before = trainer.master["spare.weight"].clone()
        backward(trainer.module, 0)
        trainer.step()
        moved.append(float(torch.linalg.matrix_norm(trainer.master["spare.weight"] - before)))
    assert moved[1] == pytest.approx(10 * moved[0], rel=0.2)
    assert moved[2] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("muon", [(), MUON])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path, dtype, muon):
    options = {"dtype": dtype, "muon": muon, "float32": ("wide",) if dtype == torch.float32 else ()}
    whole, first = Trainer(net(), PHASE, **options), Trainer(net(), PHASE, **options)
    train(whole, range(9))
    train(first, range(4))
    save_file(first.state(), tmp_path / "state.safetensors")
    later = Trainer(net(seed=1), PHASE, **options)
    later.restore(load_file(tmp_path / "state.safetensors"))
    assert later.step_index == 4
    for now, then in zip(later.module.parameters(), first.module.parameters(), strict=True):
        assert torch.equal(now, then)
    train(later, range(4, 9))
    expected, state = whole.state(), later.state()
    assert expected.keys() == state.keys()
    assert {"optimizer1.spare.weight.average"} & expected.keys() == ({"optimizer1.spare.weight.average"} if muon else set())
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []
    for now, then in zip(later.module.parameters(), whole.module.parameters(), strict=True):
        assert torch.equal(now, then)


def test_the_number_of_steps_is_part_of_the_state():
    """`--minutes` changes it on the way; a continued run must end where the first one would have."""
    phase = Phase(steps=10, batch=1, rate=1e-2, warmup=1, flat=0.5, ema=0.9)
    first = Trainer(net(), phase)
    first.phase = replace(phase, steps=30)
    train(first, range(12))
    again = Trainer(net(1), phase)
    again.restore(first.state())
    assert again.phase == first.phase
    assert again.progress == first.progress == 12 / 30


def test_a_saved_state_does_not_change_with_further_training(tmp_path):
    trainer = Trainer(net(), PHASE, muon=MUON)
    train(trainer, range(2))
    save_file(trainer.state(), tmp_path / "state")
    other = Trainer(net(), PHASE, muon=MUON)
    loaded = load_file(tmp_path / "state")
    kept = {name: value.clone() for name, value in loaded.items()}
    other.restore(loaded)
    train(other, range(2, 5))
    assert all(torch.equal(loaded[name], value) for name, value in kept.items())


@pytest.mark.parametrize("muon", [(), MUON])
def test_what_has_no_gradient_stays(muon):
    trainer = Trainer(net(), PHASE, muon=muon, weight_decay=0.5)
    names = ("spare.weight", "rest.weight")
    train(trainer, range(2))
    before = {name: (trainer.master[name].clone(), trainer.params[name].detach().clone()) for name in names}
    used = trainer.master["wide.weight"].clone()
    for number in range(2):
        backward(trainer.module, number, spare=False)
        trainer.step()
    for name in names:
        assert torch.equal(trainer.master[name], before[name][0])
        assert torch.equal(trainer.params[name], before[name][1])
    assert not torch.equal(trainer.master["wide.weight"], used)


def test_averages_by_hand():
    trainer = Trainer(net(), PHASE)
    expected = {name: p.clone() for name, p in trainer.master.items()}
    for number in range(25):
        train(trainer, [number])
        decay = min(0.6, (1 + number) / (10 + number))
        expected = {name: decay * value + (1 - decay) * trainer.master[name] for name, value in expected.items()}
    averaged = dict(trainer.averaged().named_parameters())
    assert averaged.keys() == expected.keys()
    for name, p in averaged.items():
        torch.testing.assert_close(p, expected[name])
        assert not torch.equal(p, trainer.master[name])


def test_averaging_leaves_the_module_alone():
    trainer = Trainer(net(), PHASE, dtype=torch.bfloat16)
    train(trainer, range(3))
    before = copy.deepcopy(trainer.module.state_dict())
    averaged = trainer.averaged()
    assert {p.dtype for p in averaged.parameters()} == {torch.float32}
    assert not averaged.training
    assert not any(p.requires_grad for p in averaged.parameters())
    assert trainer.module.training
    assert all(p.requires_grad and p.dtype == torch.bfloat16 for p in trainer.module.parameters())
    kept = copy.deepcopy(averaged.state_dict())
    assert all(torch.equal(p, before[name]) for name, p in trainer.module.state_dict().items())
    train(trainer, range(3, 6))  # and what was given out does not move any more
    assert all(torch.equal(p, kept[name]) for name, p in averaged.state_dict().items())


def test_small_steps_are_not_lost_in_bfloat16():
    """Steps far below the distance of two bfloat16 numbers add up in the float32 weights behind the module."""
    phase = Phase(steps=1000, batch=1, rate=1e-5, warmup=1, flat=0.9, ema=0.9)
    module = net()
    trainer = Trainer(module, phase, dtype=torch.bfloat16, float32=("tall",), weight_decay=0.0)
    assert {name: p.dtype for name, p in module.named_parameters()} == {
        name: torch.float32 if name.startswith("tall") else torch.bfloat16 for name in trainer.params
    }
    start = trainer.master["wide.weight"].clone()
    for _ in range(200):
        for p in module.parameters():
            p.grad = torch.ones_like(p)
        trainer.step()
    moved = start - trainer.master["wide.weight"]
    assert moved.mean() == pytest.approx(200 * 1e-5, rel=0.05)
    assert trainer.master["wide.weight"].dtype == torch.float32
    for name, p in module.named_parameters():
        assert torch.equal(p, trainer.master[name].to(p.dtype))
    assert not torch.equal(module.wide.weight, start.bfloat16())
