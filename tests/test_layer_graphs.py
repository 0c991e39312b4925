"""Replayed layers: the same bits as layers called one by one, and only where nobody would miss a call."""

import pytest
import torch

from cosmos3_lab import denoise, denoise_step, layer_graphs, load_cosmos3, prepare_denoise, prepare_request
from cosmos3_lab.layer_graphs import MOST_TOKENS, LayerGraphs, Recorded, Recorder
from cosmos3_lab.transformer import run_gen_layers

PROMPT, SETTINGS = "a red circle bounces", {"with_sound": True, "num_inference_steps": 5}


def begin(models, **settings):
    return prepare_denoise(models, prepare_request(models, PROMPT, **SETTINGS | settings))


def one_by_one(transformer, inputs, state):
    while state.step_index < inputs.schedule.num_steps:
        state, _ = denoise_step(transformer, inputs, state)
    return state.latents


def last(steps):
    *_, (state, _) = steps
    return state.latents


def equal(a, b):
    return torch.equal(a.video, b.video) and torch.equal(a.sound, b.sound)


@pytest.fixture
def recorded(monkeypatch):
    """Recordings of a GPU that the CPU stands for: a list of how often each was replayed."""
    counts = []

    def record(_, run):
        at = len(counts)
        counts.append(0)
        with torch.inference_mode(False):
            out = torch.zeros_like(run())

        def replay():
            counts[at] += 1
            out.copy_(run())

        return Recorded(replay, out, run)

    monkeypatch.setattr(Recorder, "__init__", lambda _: None)
    monkeypatch.setattr(Recorder, "record", record)
    monkeypatch.setattr(layer_graphs, "can_fuse", lambda x: True)
    monkeypatch.setattr(layer_graphs, "is_room", lambda: True)
    return counts


def test_both_branches_are_recorded_at_their_second_step_and_replayed_from_then_on(tiny, recorded):
    inputs, state = begin(tiny)
    assert equal(last(denoise(tiny.transformer, inputs, state)), one_by_one(tiny.transformer, inputs, state))
    assert recorded == [4, 4]  # of five steps


def test_a_result_outlives_the_next_replay(tiny, recorded):
    inputs, _ = begin(tiny)
    graphs, (first, second) = LayerGraphs(), (torch.randn(inputs.cond.layout.s_gen, tiny.config.hidden_size) for _ in "ab")
    for _ in range(2):
        out = graphs(tiny.transformer, first, inputs.cond)
    graphs(tiny.transformer, second, inputs.cond)
    assert recorded == [2]
    assert torch.equal(out, run_gen_layers(tiny.transformer, first, inputs.cond))


def test_long_sequences_are_not_recorded(tiny, recorded, monkeypatch):
    inputs, state = begin(tiny)
    monkeypatch.setattr(layer_graphs, "MOST_TOKENS", inputs.cond.layout.s_gen - 1)
    last(denoise(tiny.transformer, inputs, state))
    assert recorded == []
    assert inputs.cond.layout.s_gen < MOST_TOKENS


def test_the_cpu_records_nothing(tiny, monkeypatch):
    monkeypatch.setattr(layer_graphs, "Recorder", None)
    inputs, state = begin(tiny)
    assert equal(last(denoise(tiny.transformer, inputs, state)), one_by_one(tiny.transformer, inputs, state))


@pytest.mark.parametrize("name", ["layers.1", "layers.0.mlp_moe_gen.up_proj", "proj_out"])
def test_whoever_watches_is_called_at_every_step(tiny, recorded, name):
    inputs, state = begin(tiny)
    calls = []
    handle = tiny.transformer.gen.get_submodule(name).register_forward_hook(lambda *args: calls.append(args))
    last(denoise(tiny.transformer, inputs, state))
    handle.remove()
    assert len(calls) == 2 * SETTINGS["num_inference_steps"]
    assert recorded == []


def test_where_weights_have_moved_the_rest_is_called(tiny_folder, recorded):
    with load_cosmos3(tiny_folder, device="cpu") as models:
        inputs, state = begin(models)
        expected, steps = one_by_one(models.transformer, inputs, state), denoise(models.transformer, inputs, state)
        next(steps), next(steps)
        weight = models.transformer.gen.layers[0].mlp_moe_gen.up_proj.weight
        weight.data = weight.data.clone()
        assert equal(last(steps), expected)
    assert recorded == [1, 1]


def test_without_room_nothing_is_recorded(tiny, recorded, monkeypatch):
    asked = []
    monkeypatch.setattr(layer_graphs, "is_room", lambda: asked.append(1))
    inputs, state = begin(tiny)
    assert equal(last(denoise(tiny.transformer, inputs, state)), one_by_one(tiny.transformer, inputs, state))
    assert (recorded, asked) == ([], [1])


def test_steps_may_leave_inference_mode(tiny, recorded):
    inputs, state = begin(tiny)
    expected, steps = one_by_one(tiny.transformer, inputs, state), denoise(tiny.transformer, inputs, state)
    with torch.inference_mode():
        next(steps), next(steps)
    assert equal(last(steps), expected)
    assert recorded == [4, 4]


@pytest.mark.parametrize(
    ("free", "reserved", "kept", "fraction", "room"),
    [
        (1.0, 0, 0, 1, True),
        (0.4, 0, 0, 1, False),
        (0.4, 1.0, 0.2, 1, True),
        (9.0, 4.0, 0, 0.42, False),
        (9.0, 4.0, 0.6, 0.42, True),
    ],
)
def test_room_is_what_the_gpu_and_the_limit_leave(monkeypatch, free, reserved, kept, fraction, room):
    """GiB of a GPU of 10; `kept`: what PyTorch gives back."""
    back = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int((free + sum(back)) * 2**30), 10 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: int((reserved - sum(back)) * 2**30))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: fraction)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: back.append(kept))
    assert layer_graphs.is_room() == room


# ------------------------------------------------------------------------------------------------------------ GPU


@pytest.mark.cuda
@pytest.mark.parametrize(
    "loading", [{}, {"placement": "split"}, {"quantize": "int8"}, {"quantize": "fp8"}, {"dtype": torch.float32}]
)
def test_the_same_bits_on_a_gpu(tiny_folder, loading, monkeypatch):
    recorded, record = [], Recorder.record
    monkeypatch.setattr(Recorder, "record", lambda self, run: recorded.append(run) or record(self, run))
    with load_cosmos3(tiny_folder, device="cuda", **loading) as models:
        inputs, state = begin(models)
        assert equal(last(denoise(models.transformer, inputs, state)), one_by_one(models.transformer, inputs, state))
        assert len(recorded) == 2


@pytest.mark.cuda
def test_what_cannot_be_recorded_says_why_and_leaves_the_gpu_usable():
    def fail():
        x.add_(1)  # never done
        raise ArithmeticError("mine")

    x = torch.ones(3, device="cuda")
    with pytest.raises(ArithmeticError, match="mine"):
        Recorder().record(fail)
    recorded = Recorder().record(lambda: 2 * x)
    x.fill_(4)
    recorded.replay()
    assert recorded.out.tolist() == [8, 8, 8]


@pytest.mark.cuda
def test_a_gpu_without_room_goes_on_without(tiny_folder, monkeypatch):
    monkeypatch.setattr(Recorder, "record", None)
    with load_cosmos3(tiny_folder, device="cuda") as models:
        inputs, state = begin(models)
        expected = one_by_one(models.transformer, inputs, state)
        room, total = torch.cuda.memory_reserved() + 2**26, torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(room / total)
        try:
            assert equal(last(denoise(models.transformer, inputs, state)), expected)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
