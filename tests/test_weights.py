"""Damaged and hostile tensor files: each is refused with one line that names the file, before a byte of data is used."""

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from checks import refused
from safetensors.torch import save_file
from torch import nn

from cosmos3_lab.weights import INDEX, SINGLE, check_weights, find_tensors, load_weights, read_header, without

CPU = torch.device("cpu")
GOOD = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


def write_raw(path, header, data=b""):
    """A file with any header: bytes as they are, everything else as JSON."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def sharded(tmp_path):
    """A component of two shards and an index."""
    folder = tmp_path / "component"
    folder.mkdir()
    for file, name in (("one.safetensors", "a"), ("two.safetensors", "b")):
        save_file({name: GOOD[name]}, folder / file)
    write_index(folder, {"a": "one.safetensors", "b": "two.safetensors"})
    return folder


# ------------------------------------------------------------------------------------------------------------ headers


def test_header_says_what_is_in_the_file(tmp_path):
    tensors = GOOD | {"half": torch.zeros(3, dtype=torch.float16), "scalar": torch.tensor(1.0)}
    save_file(tensors, tmp_path / SINGLE, {"format": "pt"})
    found = {info.name: info for info in read_header(tmp_path / SINGLE)}
    assert {n: (i.dtype, i.shape) for n, i in found.items()} == {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()}
    assert {n: (i.parameters, i.nbytes) for n, i in found.items()} == {n: (t.numel(), t.nbytes) for n, t in tensors.items()}


def test_cut_anywhere_is_refused(tmp_path):
    save_file(GOOD, tmp_path / "whole")
    whole, cut = (tmp_path / "whole").read_bytes(), tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        refused(str(cut), call=lambda: read_header(cut))


def test_bytes_behind_the_end_are_refused(tmp_path):
    save_file(GOOD, tmp_path / "whole")
    (tmp_path / "whole").write_bytes((tmp_path / "whole").read_bytes() + b"\0")
    refused(str(tmp_path / "whole"), "damaged", call=lambda: read_header(tmp_path / "whole"))


@pytest.mark.parametrize("length", [0, 1, 99, 100_000_001, 2**40, 2**63, 2**64 - 1])
def test_absurd_header_lengths_are_refused(tmp_path, length):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + b"\0" * 50)
    refused(str(path), "complete", call=lambda: read_header(path))


def test_git_lfs_pointer_is_called_so(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1409400600\n")
    refused(str(path), "Git LFS", "git lfs pull", call=lambda: read_header(path))


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (b"not json", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": \xff\xfe}', "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b'{"a":' * 200_000, "not JSON"),
        ([], "not a JSON object"),
        (None, "not a JSON object"),
        ("text", "not a JSON object"),
        (17, "not a JSON object"),
    ],
    ids=["text", "Python", "no UTF-8", "deep list", "deep object", "list", "null", "string", "number"],
)
def test_headers_that_are_no_json_object_are_refused(tmp_path, header, word):
    path = write_raw(tmp_path / "x.safetensors", header)
    refused(str(path), word, call=lambda: read_header(path))


@pytest.mark.parametrize(
    "broken",
    [
        entry(dtype="F8_E4M3", shape=[4]),
        entry(dtype="I32"),
        entry(dtype="f32"),
        entry(dtype=None),
        entry(shape=[-1]),
        entry(shape=[-1, -1]),
        entry(shape=[1.0]),
        entry(shape=[True]),
        entry(shape=["1"]),
        entry(shape="1"),
        entry(shape=None),
        entry(shape=[2]),
        entry(shape=[2**70]),
        entry(offsets=[0]),
        entry(offsets=[0, 4, 4]),
        entry(offsets=[0.0, 4.0]),
        entry(offsets=[-4, 0]),
        entry(offsets=[4, 0]),
        entry(offsets=[0, 3]),
        entry(offsets=[1, 5]),
        entry(offsets=[4, 8]),
        entry(offsets=[2**63, 2**63 + 4]),
        entry(offsets={"begin": 0, "end": 4}),
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "data_offsets": [0, 4]},
        {"shape": [1], "data_offsets": [0, 4]},
        "text",
        None,
        [0, 4],
    ],
    ids=str,
)
def test_broken_entries_name_the_tensor(tmp_path, broken):
    path = write_raw(tmp_path / "x.safetensors", {"the.tensor": broken}, bytes(4))
    refused(str(path), "the.tensor", call=lambda: read_header(path))


@pytest.mark.parametrize(
    ("second", "size"),
    [((0, 4), 4), ((0, 4), 8), ((2, 6), 8), ((6, 10), 10), ((4, 8), 12)],
    ids=["same place", "same place and a gap", "overlap", "gap", "unused end"],
)
def test_tensors_must_fill_the_file_exactly(tmp_path, second, size):
    path = write_raw(tmp_path / "x.safetensors", {"a": entry(), "b": entry(offsets=second)}, bytes(size))
    refused(str(path), call=lambda: read_header(path))


@pytest.mark.parametrize("numbers", [2, 2**40, 10**30])
def test_a_header_that_asks_for_more_than_the_file_holds_is_refused(tmp_path, numbers):
    path = write_raw(tmp_path / "x.safetensors", {"a": entry(shape=[numbers], offsets=(0, 4 * numbers))}, bytes(4))
    refused(str(path), "cut short", call=lambda: read_header(path))


def test_the_same_two_tensors_side_by_side_are_fine(tmp_path):
    path = write_raw(tmp_path / "x.safetensors", {"b": entry(offsets=(4, 8)), "a": entry()}, bytes(8))
    assert [info.name for info in read_header(path)] == ["a", "b"]


# ------------------------------------------------------------------------------------------------------- find_tensors


def test_shards_are_found_through_the_index(sharded):
    found = find_tensors(sharded)
    assert {name: info.file.name for name, info in found.items()} == {"a": "one.safetensors", "b": "two.safetensors"}


def test_files_that_the_index_does_not_list_are_ignored(sharded):
    save_file({"a": torch.zeros(9)}, sharded / "another-revision.safetensors")
    (sharded / "broken.safetensors").write_bytes(b"")
    assert find_tensors(sharded)["a"].shape == (2, 3)


def test_the_single_file_goes_before_others(tmp_path):
    save_file(GOOD, tmp_path / SINGLE)
    save_file({"a": torch.zeros(9)}, tmp_path / "ema.safetensors")
    assert find_tensors(tmp_path)["a"].shape == (2, 3)


def test_without_an_index_every_file_is_read(sharded):
    (sharded / INDEX).unlink()
    assert sorted(find_tensors(sharded)) == ["a", "b"]


def test_symlinked_shards_are_read(sharded, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"  # the layout of a Hugging Face cache
    sharded.rename(blobs)
    snapshot.mkdir()
    for i, file in enumerate(sorted(blobs.iterdir())):
        file.rename(blobs / str(i))
        (snapshot / file.name).symlink_to(Path("../blobs") / str(i))
    assert sorted(find_tensors(snapshot)) == ["a", "b"]
    module = nn.ParameterDict({"a": torch.empty(2, 3, device="meta"), "b": torch.empty(4, device="meta")})
    load_weights(module, find_tensors(snapshot), sources=own_name, device=CPU, dtype=torch.float32)
    assert torch.equal(module["a"], GOOD["a"])


@pytest.mark.parametrize("indexed", [True, False])
def test_a_tensor_in_two_shards_is_refused(sharded, indexed):
    save_file(GOOD, sharded / "two.safetensors")
    if not indexed:
        (sharded / INDEX).unlink()
    refused("tensor a ", "one.safetensors", "two.safetensors", call=lambda: find_tensors(sharded))


def test_a_missing_shard_is_named(sharded):
    (sharded / "two.safetensors").unlink()
    refused(str(sharded / "two.safetensors"), "missing", call=lambda: find_tensors(sharded))


def test_a_dangling_link_is_a_missing_shard(sharded):
    (sharded / "two.safetensors").unlink()
    (sharded / "two.safetensors").symlink_to("nowhere")
    refused(str(sharded / "two.safetensors"), "missing", call=lambda: find_tensors(sharded))


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "two.safetensors", "b": "two.safetensors"},
        {"a": "two.safetensors", "b": "one.safetensors"},
        {"a": "one.safetensors", "b": "two.safetensors", "a.gone": "two.safetensors"},
    ],
    ids=["only listed shard lacks it", "swapped", "in no shard"],
)
def test_an_index_that_is_wrong_about_a_tensor_is_refused(sharded, weight_map):
    write_index(sharded, weight_map)
    refused(str(sharded / INDEX), "says that a", call=lambda: find_tensors(sharded))


@pytest.mark.parametrize("place", ["../outside.safetensors", "sub/../../outside.safetensors", "absolute"])
def test_an_index_that_points_outside_is_refused(sharded, tmp_path, place):
    save_file(GOOD, tmp_path / "outside.safetensors")
    place = str(tmp_path / "outside.safetensors") if place == "absolute" else place
    write_index(sharded, {"a": place, "b": "two.safetensors"})
    refused(str(sharded / INDEX), "outside its folder", call=lambda: find_tensors(sharded))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"weight_map": null}',
        '{"weight_map": ["one.safetensors"]}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": null}}',
        '{"a": ' * 200_000,
    ],
    ids=lambda text: text[:30],
)
def test_broken_indexes_are_refused(sharded, content):
    (sharded / INDEX).write_text(content)
    refused(str(sharded / INDEX), call=lambda: find_tensors(sharded))


def test_an_index_that_names_its_own_folder_is_refused(sharded):
    write_index(sharded, {"a": ""})
    refused(str(sharded), call=lambda: find_tensors(sharded))


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.pt", "model.safetensors.bin"])
def test_pickles_are_never_opened(tmp_path, name):
    marker = tmp_path / "executed"
    (tmp_path / name).write_bytes(pickle.dumps(_Bomb(str(marker))))
    refused(str(tmp_path), "safetensors", "run code", call=lambda: find_tensors(tmp_path))
    assert not marker.exists()


def test_a_pickle_called_safetensors_is_refused(tmp_path):
    marker = tmp_path / "executed"
    (tmp_path / SINGLE).write_bytes(pickle.dumps(_Bomb(str(marker))))
    refused(str(tmp_path / SINGLE), call=lambda: find_tensors(tmp_path))
    assert not marker.exists()


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


def test_a_missing_folder_is_named(tmp_path):
    refused(str(tmp_path / "vae"), "missing", call=lambda: find_tensors(tmp_path / "vae"))


# ----------------------------------------------------------------------------------------- check_weights, load_weights


@pytest.fixture
def layer():
    with torch.device("meta"):
        return nn.Linear(3, 2)


def own_name(name):
    return (name,)


def load(layer, folder, tensors, *, component="vae", skip=(), sources=own_name, dtype=torch.float32, **knobs):
    save_file(tensors, folder / SINGLE)
    found = find_tensors(folder)
    check_weights(layer, found, component=component, sources=sources, skip=skip)
    load_weights(layer, found, sources=sources, device=CPU, dtype=dtype, **knobs)


LINEAR = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor([1.0, 2.0])}


def test_loaded_weights_are_the_files(layer, tmp_path):
    load(layer, tmp_path, LINEAR)
    assert torch.equal(layer.weight, LINEAR["weight"])
    assert torch.equal(layer.bias, LINEAR["bias"])
    assert not layer.training
    assert not layer.weight.requires_grad


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"weight": LINEAR["weight"]}, ["vae lacks tensor bias"]),
        ({"other": LINEAR["weight"]}, ["vae lacks tensor bias and 1 more"]),
        (LINEAR | {"extra": torch.zeros(1)}, ["vae has unexpected tensor extra"]),
        (LINEAR | {"weight2": torch.zeros(1), "weight1": torch.zeros(1)}, ["unexpected tensor weight1 and 1 more"]),
        (LINEAR | {"weight": torch.zeros(3, 2)}, [SINGLE, "tensor weight", "[3, 2]", "[2, 3]"]),
        (LINEAR | {"bias": torch.zeros(2, 1)}, [SINGLE, "tensor bias", "[2, 1]", "[2]"]),
    ],
    ids=["missing", "two missing", "unexpected", "two unexpected", "transposed", "one axis too many"],
)
def test_wrong_tensors_are_named_before_anything_is_read(layer, tmp_path, tensors, words):
    refused(*words, call=lambda: load(layer, tmp_path, tensors))
    assert layer.weight.device.type == "meta"


def test_skipped_tensors_may_be_there_or_not(layer, tmp_path):
    extra = LINEAR | {"norm.weight": torch.zeros(1)}
    similar = extra | {"norm_moe_gen.weight": torch.zeros(1)}
    load(layer, tmp_path, extra, skip=("norm.",))
    load(layer, tmp_path, LINEAR, skip=("norm.",))
    refused("norm_moe_gen.weight", call=lambda: load(layer, tmp_path, similar, skip=("norm.",)))


def test_a_skipped_prefix_does_not_excuse_a_needed_tensor(layer, tmp_path):
    refused("lacks tensor bias", call=lambda: load(layer, tmp_path, {"weight": LINEAR["weight"]}, skip=("bias",)))


def test_without_drops_prefixes(tmp_path):
    save_file({"norm.weight": torch.zeros(1), "norm_moe_gen.weight": torch.zeros(1)}, tmp_path / SINGLE)
    assert [t.name for t in without(find_tensors(tmp_path).values(), ("norm.",))] == ["norm_moe_gen.weight"]


def test_float32_holds_against_the_dtype(layer, tmp_path):
    load(layer, tmp_path, LINEAR, dtype=torch.bfloat16, float32=lambda name: name == "bias")
    assert (layer.weight.dtype, layer.bias.dtype) == (torch.bfloat16, torch.float32)


def test_weight_norm_is_folded_in(layer, tmp_path):
    v, g = torch.randn(2, 3), torch.tensor([[2.0], [3.0]])
    pair = {"weight_g": g, "weight_v": v, "bias": LINEAR["bias"]}
    load(layer, tmp_path, pair, sources=weight_norm)
    assert torch.allclose(layer.weight, g * v / v.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("name", ["weight_g", "weight_v"])
def test_misshapen_weight_norm_is_named(layer, tmp_path, name):
    pair = {"weight_g": torch.ones(2, 1), "weight_v": LINEAR["weight"], "bias": LINEAR["bias"]} | {name: torch.ones(1, 3)}
    refused(f"tensor {name}", "[1, 3]", call=lambda: load(layer, tmp_path, pair, sources=weight_norm))


def weight_norm(name):
    return (f"{name}_g", f"{name}_v") if name == "weight" else (name,)


def test_a_file_that_shrinks_while_loading_is_named(layer, tmp_path):
    save_file(LINEAR, tmp_path / SINGLE)
    tensors = find_tensors(tmp_path)
    (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:-1])
    refused(str(tmp_path / SINGLE), call=lambda: load_weights(layer, tensors, sources=own_name, device=CPU, dtype=torch.float32))


def test_a_layer_split_over_two_shards_is_loaded(layer, tmp_path):
    for name, tensor in LINEAR.items():
        save_file({name: tensor}, tmp_path / f"{name}.safetensors")
    write_index(tmp_path, {name: f"{name}.safetensors" for name in LINEAR})
    load_weights(layer, find_tensors(tmp_path), sources=own_name, device=CPU, dtype=torch.float32)
    assert torch.equal(layer.weight, LINEAR["weight"])
