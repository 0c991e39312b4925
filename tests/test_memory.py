"""Which weights are where, without a GPU: PyTorch's "meta" device stands for one. What only a GPU has is in test_cuda.py."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cosmos3_lab import encode_condition, generate, layers, load_cosmos3, memory, prepare_request, transfer
from cosmos3_lab.layers import MLP
from cosmos3_lab.memory import Movable, stream_layers
from cosmos3_lab.random_checkpoint import RECIPES
from cosmos3_lab.towers import Cosmos3Transformer, GENTower, UNDLayer
from cosmos3_lab.transfer import copy_tensors, to_device
from cosmos3_lab.transformer import encode_conditions

META = torch.device("meta")
CLIP = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 2, "negative_prompt": "blurry"}


@pytest.fixture
def split(tiny_folder):
    with load_cosmos3(tiny_folder, device="cpu", placement="split") as models:
        yield models


def on_meta(models):
    """Which parts have weights away from home."""
    parts = {"und": models.transformer.und, "gen": models.transformer.gen, "vae": models.vae, "avae": models.avae}
    return {name for name, part in parts.items() if any(p.is_meta for p in part.parameters())}


# ------------------------------------------------------------------------------------------------------------ placement


@pytest.mark.parametrize(
    ("stage", "away"), [("und", {"und"}), ("gen", {"gen"}), ("decode", {"vae", "avae"}), ("stream", set())], ids=lambda x: str(x)
)
@pytest.mark.parametrize("before", ["und", "decode"])
def test_a_stage_has_only_its_weights_on_the_device(split, before, stage, away):
    models = replace(split, device=META)
    models.place(before)
    models.place(stage)
    assert on_meta(models) == away


def test_und_comes_a_layer_at_a_time(split):
    models = replace(split, device=META)
    models.place("decode")
    und = models.transformer.und
    seen = [[layer.self_attn.to_q.weight.is_meta for layer in und.layers] for _ in models.und_layers()]
    assert seen == [[i == j for j in range(3)] for i in range(3)]
    assert not und.embed_tokens.weight.is_meta
    assert on_meta(models) == set()


def test_every_layer_uses_the_same_memory(split, monkeypatch):
    rooms = []

    def watched_copy(sources, targets, *, on_bytes):
        rooms.append([target.untyped_storage()._cdata for target in targets])

    monkeypatch.setattr(memory, "copy_tensors", watched_copy)
    assert len(list(stream_layers(split.transformer.und.layers, META))) == len(rooms) == 3
    assert rooms[0] == rooms[1] == rooms[2]


def test_a_layer_goes_home_when_encoding_fails(split):
    layers = stream_layers(split.transformer.und.layers, META)
    assert next(layers).self_attn.to_q.weight.is_meta
    layers.close()
    assert on_meta(split) == set()


def test_weights_come_home_as_they_were(split):
    before = {name: p.data_ptr() for name, p in split.transformer.named_parameters()}
    part = Movable(split.transformer)
    part.visit(META)
    assert on_meta(split) == {"und", "gen"}
    part.go_home()
    assert {name: p.data_ptr() for name, p in split.transformer.named_parameters()} == before
    assert not any(p.requires_grad for p in split.transformer.parameters())


def test_a_visit_at_home_copies_nothing(split):
    part = Movable(split.vae)
    assert [p.data_ptr() for p in part.visit(torch.device("cpu"))] == [p.data_ptr() for p in split.vae.parameters()]


def test_a_run_has_one_part_away_at_a_time(split, monkeypatch):
    """The whole road of `generate`: who visits, in which order, and never two at once."""
    visits, away = [], set()
    visit, go_home = Movable.visit, Movable.go_home

    def watched_visit(part, device, room=None):
        away.add(part.module)
        visits.append((type(part.module), len(away)))
        return visit(part, device, room)

    def watched_go_home(part):
        away.discard(part.module)
        go_home(part)

    monkeypatch.setattr(Movable, "visit", watched_visit)
    monkeypatch.setattr(Movable, "go_home", watched_go_home)
    generate(split, "a ball bounces", with_sound=True, progress=False, **CLIP)
    # GEN is asked for once more when the steps begin, as they may after a pause; that copies nothing.
    assert visits == [(kind, 1) for kind in (UNDLayer, UNDLayer, UNDLayer, GENTower, GENTower, nn.ModuleList)]


def test_memory_is_handed_back_before_the_next_weights_come(split, monkeypatch):
    events = []
    monkeypatch.setattr("cosmos3_lab.checkpoint.give_back", lambda device: events.append("give back"))
    monkeypatch.setattr(Movable, "visit", lambda part, device, room=None: events.append("visit"))
    monkeypatch.setattr(Movable, "go_home", lambda part: events.append("home"))
    split.place("gen")
    assert events == ["home", "home", "give back", "visit"]


def test_nothing_moves_when_resident(tiny):
    tiny.place("decode")
    assert tiny.und_layers() is tiny.transformer.und.layers
    assert on_meta(tiny) == set()


def test_split_weights_are_the_resident_ones(tiny_folder, split):
    """The decoders too, whose weight norm is folded in and whose convolutions are laid out anew on the way."""
    with load_cosmos3(tiny_folder, device="cpu") as resident:
        for a, b in ((resident.transformer, split.transformer), (resident.vae, split.vae), (resident.avae, split.avae)):
            for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
                assert torch.equal(x, y), name
                assert x.stride() == y.stride(), name


@pytest.mark.parametrize(("free", "expected"), [(15.0, "split"), (22.0, "split"), (31.0, "split"), (79.0, "resident")])
def test_nano_fits_a_card_of_16_gb_in_split_placement(monkeypatch, free, expected):
    """Its weights in bfloat16; what is free is a little less than what is on the box."""
    with META:
        towers = Cosmos3Transformer(RECIPES["nano"].transformer)
    und, gen = (2 * sum(p.numel() for p in tower.parameters()) for tower in (towers.und, towers.gen))
    small = memory.MemoryNeed(und, gen, 2_056_000_000)
    default = replace(small, denoise=3_300_000_000, decode=9_000_000_000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * memory.GIB), 140 * memory.GIB))
    assert memory.choose_placement("auto", small, default, torch.device("cuda")) == expected


# ------------------------------------------------------------------------------------------------------- both prompts at once


def test_prompts_encoded_together_are_those_encoded_alone(tiny):
    request = prepare_request(tiny, "a ball bounces", with_sound=True, **CLIP)
    prompts = [(request.text_ids, request.text_mask), (request.neg_text_ids, request.neg_text_mask)]
    shape = (request.video_shape, request.fps)
    together = encode_conditions(tiny.transformer, prompts, *shape, sound_len=request.sound_frames)
    for (ids, mask), cond in zip(prompts, together, strict=True):
        alone = encode_condition(tiny.transformer, ids, mask, *shape, sound_len=request.sound_frames)
        assert cond.layout == alone.layout
        assert torch.equal(cond.freqs_gen.cos, alone.freqs_gen.cos)
        assert len(cond.cached_kv) == len(alone.cached_kv) == 3
        for a, b in zip(cond.cached_kv, alone.cached_kv, strict=True):
            assert torch.equal(a.k, b.k)
            assert torch.equal(a.v, b.v)
    assert together[0].layout.s_text != together[1].layout.s_text


def test_each_layer_is_asked_for_once_for_both_prompts(tiny):
    request = prepare_request(tiny, "a ball bounces", **CLIP)
    prompts = [(request.text_ids, request.text_mask), (request.neg_text_ids, request.neg_text_mask)]
    asked = []

    def one_by_one():
        for layer in tiny.transformer.und.layers:
            asked.append(layer)
            yield layer

    conditions = encode_conditions(tiny.transformer, prompts, request.video_shape, request.fps, layers=one_by_one())
    assert asked == list(tiny.transformer.und.layers)
    assert [len(cond.cached_kv) for cond in conditions] == [3, 3]


# ------------------------------------------------------------------------------------------------------------------- MLP


def test_a_long_sequence_goes_through_the_mlp_in_parts(monkeypatch):
    mlp, x, rows = MLP(8, 12), torch.randn(2, 10, 8), []
    whole = mlp(x)
    mlp.down_proj.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[1]))
    monkeypatch.setattr(layers, "MLP_TOKENS", 4)
    torch.testing.assert_close(mlp(x), whole)
    assert rows == [4, 4, 2]


def test_the_mlp_in_parts_has_gradients(monkeypatch):
    mlp, x = MLP(8, 12), torch.randn(10, 8)
    (whole,) = torch.autograd.grad(mlp(x).square().sum(), mlp.up_proj.weight)
    monkeypatch.setattr(layers, "MLP_TOKENS", 4)
    (parts,) = torch.autograd.grad(mlp(x).square().sum(), mlp.up_proj.weight)
    torch.testing.assert_close(parts, whole)


# -------------------------------------------------------------------------------------------------------------- transfer


SOURCES = {
    "bfloat16": torch.randn(5, 3).bfloat16(),
    "a number": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    "channels last": torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "channels last 3d": torch.randn(2, 3, 2, 4, 5).contiguous(memory_format=torch.channels_last_3d),
    "transposed": torch.randn(4, 6).T,
    "part of another": torch.arange(20.0)[7:12],
}


def test_copies_are_equal_whatever_the_layout(monkeypatch):
    monkeypatch.setattr(transfer, "PIECE", 7)  # no multiple of any item's size
    sources, arrived = list(SOURCES.values()), []
    targets = [torch.empty_like(source).fill_(-1) for source in sources]
    copy_tensors(sources, targets, on_bytes=arrived.append)
    for name, target in zip(SOURCES, targets, strict=True):
        assert torch.equal(target, SOURCES[name]), name
    assert max(arrived) == 7
    assert sum(arrived) == sum(source.nbytes for source in sources)


def test_nothing_to_copy_is_no_error():
    copy_tensors([], [])
    assert list(to_device([], META)) == []


def test_to_device_keeps_layout_and_dtype():
    for source, there in zip(SOURCES.values(), to_device(list(SOURCES.values()), META), strict=True):
        assert (there.device, there.dtype, there.shape) == (META, source.dtype, source.shape)
        assert source.numel() == 0 or there.stride() == source.stride()


def test_what_stays_on_the_cpu_is_not_copied():
    sources = list(SOURCES.values())
    assert to_device(sources, torch.device("cpu")) is sources
    assert to_device(sources, torch.device("cpu", 0)) is sources  # another name of the same, like "cuda" and "cuda:0"


def test_a_bar_counts_what_arrived_and_shows_only_what_takes_long(monkeypatch, capsys):
    bars, bar = [], memory.transfer_bar
    monkeypatch.setattr(memory, "transfer_bar", lambda *about: bars.append(bar(*about)) or bars[-1])
    mlp = MLP(8, 12)
    Movable(mlp).visit(META)
    assert (bars[0].n, bars[0].total, bars[0].desc) == (3 * 8 * 12 * 4, 3 * 8 * 12 * 4, "MLP to meta")
    assert capsys.readouterr().err == ""
    assert transfer.transfer_bar("MLP", torch.device("cpu"), 100).disable
