"""Files that lie, never end, lead elsewhere or fill the memory: one clear line, at once."""

import hashlib
import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from checks import refused
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cosmos3_lab import (
    CheckpointError,
    Cosmos3Processor,
    generate,
    inspect_checkpoint,
    load_cosmos3,
    schedule_from_config,
    weights,
)
from cosmos3_lab.cli import app
from cosmos3_lab.settings import read_configs
from cosmos3_lab.untrusted import LONGEST, MAX_TEXT, has_file, has_folder, one_line, parse_object, read_json, read_text
from cosmos3_lab.weights import INDEX, SINGLE, find_tensors, read_header

SETTINGS = (
    "transformer/config.json",
    "vae/config.json",
    "sound_tokenizer/config.json",
    "scheduler/scheduler_config.json",
    "cosmos3_lab.json",
)


def link_weights(source, target):
    return os.link(source, target) if source.endswith(".safetensors") else shutil.copy2(source, target)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny checkpoint to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint", copy_function=link_weights))


def load(folder, **knobs):
    return load_cosmos3(folder, device="cpu", **knobs)


def rewrite(path, text):
    path.unlink()
    path.write_text(text)


# ----------------------------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize("nasty", ["a\nb", "\x1b[2J", "\r\x07\x00", "\u202egnp.exe", "\ud800", "x" * 10_000, "\u2028"])
def test_messages_are_one_printable_line(nasty):
    message = str(CheckpointError(f"file: tensor {nasty} is wrong; copy it again"))
    assert message.isprintable()
    assert len(message) < 2 * LONGEST
    assert message.startswith("file: tensor ")
    assert message.endswith("; copy it again")
    message.encode()


def test_plain_text_stays_as_it_is():
    assert one_line("ein schöner Ball 日本 🎈, tensor 'a'") == "ein schöner Ball 日本 🎈, tensor 'a'"


def test_names_of_tensors_cannot_draw_in_the_terminal(folder):
    tensors = load_file(folder / "vae" / SINGLE)
    (folder / "vae" / SINGLE).unlink()
    save_file(tensors | {"\x1b[2J\nfine": torch.zeros(1)}, folder / "vae" / SINGLE)
    assert r"\x1b[2J\nfine" in refused("unexpected tensor", call=lambda: load(folder))


# --------------------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("name", [*SETTINGS, f"transformer/{INDEX}"])
def test_a_key_that_stands_twice_is_refused(folder, name):
    text = (folder / name).read_text().rstrip()
    key = list(json.loads(text))[-1]
    rewrite(folder / name, f'{text[:-1]}, "{key}": 5}}')
    refused(str(folder / name), f"the key '{key}' twice", call=lambda: load(folder))


def test_a_tensor_that_stands_twice_in_a_header_is_refused(tmp_path):
    entry = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header = f'{{"a": {entry}, "a": {entry}}}'.encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refused(str(path), "the key 'a' twice", call=lambda: read_header(path))


def test_metadata_of_a_header_must_be_text(tmp_path):
    header = b'{"__metadata__": {"format": 5}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    refused(str(path), "__metadata__", call=lambda: read_header(path))


@pytest.mark.parametrize("axes", [9, 1000])
def test_tensors_of_many_axes_are_refused_at_once(tmp_path, axes):
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**4000] * axes, "data_offsets": [0, 4]}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refused(str(path), "'a'", call=lambda: read_header(path))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_settings_file_without_end_is_refused(folder, name):
    rewrite(folder / name, '{"a": "' + "x" * MAX_TEXT + '"}')
    refused(str(folder / name), f"more than {MAX_TEXT} bytes", call=lambda: load(folder))


@pytest.mark.parametrize("name", [*SETTINGS, "text_tokenizer/tokenizer.json", "assets/negative_prompt.json"])
def test_lfs_pointers_are_called_so(folder, name):
    (folder / name).unlink(missing_ok=True)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 14\n")

    def read():
        with load(folder) as models:
            generate(models, "a ball", num_frames=1, height=32, width=48, num_inference_steps=1, progress=False)

    refused(str(folder / name), "Git LFS pointer", call=read)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 100_000 + "}", "\x00", "{'a': 1}", "NaN", "{} {}"]
)
def test_what_is_no_object_is_refused(text):
    refused("x.json is not", call=lambda: parse_object(text, "x.json"))


# ------------------------------------------------------------------------------------------------------ kinds of files


def make_odd(path, kind):
    path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"loop": path.name, "dangling": "nowhere", "device": "/dev/zero"}[kind])


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "dangling", "device"])
@pytest.mark.parametrize(
    "name", ["scheduler/scheduler_config.json", "cosmos3_lab.json", "vae/config.json", f"vae/{SINGLE}", f"vae/{INDEX}"]
)
def test_what_is_no_file_is_neither_read_nor_taken_for_absent(folder, name, kind):
    make_odd(folder / name, kind)
    refused(str(folder / name), call=lambda: load(folder))
    assert any(str(folder / name) in problem for problem in inspect_checkpoint(folder).problems)


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "dangling", "device"])
def test_the_negative_prompt_must_be_a_file(folder, kind):
    make_odd(folder / "assets" / "negative_prompt.json", kind)
    processor = Cosmos3Processor(folder / "text_tokenizer")
    refused("negative_prompt.json", call=lambda: processor.tokenize_negative(None))


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "x.json").write_text("{}")
    monkeypatch.setattr("builtins.open", denied)
    refused(str(tmp_path / "x.json"), "cannot be read (Permission denied)", call=lambda: read_json(tmp_path / "x.json"))


def test_absent_files_are_absent(tmp_path):
    assert not has_file(tmp_path / "x")
    assert not has_folder(tmp_path / "x")
    refused("is missing", call=lambda: read_text(tmp_path / "x"))


def test_the_layout_of_the_hubs_cache_is_read(folder, tmp_path):
    """`snapshots/<commit>/...` are links to `../../blobs/<hash>`, outside of the folder that is named."""
    snapshot, blobs = tmp_path / "snapshots" / "0123abcd", tmp_path / "blobs"
    blobs.mkdir()
    for file in [p for p in folder.rglob("*") if p.is_file()]:
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy2(file, blob)
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    assert inspect_checkpoint(snapshot, deep=True).problems == ()
    with load(snapshot) as models:
        assert models.avae is not None
    blob = (snapshot / "vae" / SINGLE).resolve()
    content = bytearray(blob.read_bytes())
    content[-3] ^= 1
    blob.write_bytes(content)
    (problem,) = inspect_checkpoint(snapshot, deep=True).problems
    assert f"hub's file has {blob.name}" in problem


@pytest.mark.parametrize(
    "place",
    [
        "../outside.safetensors",
        "/outside.safetensors",
        "sub/x.safetensors",
        "./one.safetensors",
        "..\\outside.safetensors",
        "C:x.safetensors",
    ]
    + [
        "~x.safetensors",
        "config.json",
        "",
        ".",
        "..",
        "one.safetensors\0",
        "a\nb.safetensors",
        "a" * 300 + ".safetensors",
        5,
        None,
        ["one"],
    ],
)
def test_an_index_names_files_of_its_folder_and_nothing_else(tmp_path, place):
    save_file({"a": torch.zeros(1)}, tmp_path / "one.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": place}}))
    refused(str(tmp_path / INDEX), "says that a is in", call=lambda: find_tensors(tmp_path))


# ------------------------------------------------------------------------------------------------------------ weights


def spoil(folder, component, value, *, at=-1):
    """One number of a component's last file; the name of the tensor that it is in, and the file."""
    file = sorted((folder / component).glob("*.safetensors"))[-1]
    tensors = load_file(file)
    name = sorted(n for n in tensors if n.startswith(("decoder.", "audio_", "proj_", "layers.")))[at]
    tensors[name].view(-1)[-1] = value
    file.unlink()
    save_file(tensors, file)
    return name, file


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("component", ["transformer", "vae", "sound_tokenizer"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_are_none_are_found_while_loading(folder, component, value, dtype):
    name, file = spoil(folder, component, value)
    refused(str(file), f"tensor {name}", "NaN or infinity", call=lambda: load(folder, dtype=dtype, sound_dtype=torch.float32))


def test_large_weights_that_stay_on_the_disk_are_scanned_on_request_only(folder, monkeypatch):
    """Full-size weights that are mapped as they are stored would have to be read for it; `inspect --deep` does."""
    name, file = spoil(folder, "transformer", float("nan"))
    monkeypatch.setattr(weights, "ALWAYS_SCANNED", 0)
    with load(folder, dtype=torch.bfloat16):
        pass
    assert inspect_checkpoint(folder).problems == ()
    (problem,) = inspect_checkpoint(folder, deep=True).problems
    assert str(file) in problem
    assert f"tensor {name}" in problem
    ran = CliRunner().invoke(app, ["inspect", str(folder), "--deep"])
    assert ran.exit_code == 1
    assert "NaN or infinity" in ran.output


def test_deep_inspection_compares_with_what_the_hub_noted(folder):
    file = folder / "vae" / SINGLE
    note = folder / ".cache" / "huggingface" / "download" / "vae" / f"{SINGLE}.metadata"
    note.parent.mkdir(parents=True)
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    note.write_text(f"0123abcd\n{right}\n1700000000.0\n")
    assert inspect_checkpoint(folder, deep=True).problems == ()
    note.write_text(f"0123abcd\n{'0' * 64}\n1700000000.0\n")
    (problem,) = inspect_checkpoint(folder, deep=True).problems
    assert right in problem
    assert "0" * 64 in problem
    note.write_text("0123abcd\n0123456789abcdef\n")  # of a small file git's hash is noted, which says nothing here
    assert inspect_checkpoint(folder, deep=True).problems == ()


def test_half_precisions_side_by_side_are_refused(tmp_path):
    """A label of two letters: with the wrong one the numbers would load, and be others."""
    save_file({"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.zeros(2, dtype=torch.float16)}, tmp_path / SINGLE)
    refused(str(tmp_path / SINGLE), "bfloat16", "float16", "mislabelled", call=lambda: find_tensors(tmp_path))


# ------------------------------------------------------------------------------------------------------------- swapped


@pytest.mark.parametrize(("one", "two"), [("transformer", "vae"), ("vae", "sound_tokenizer"), ("transformer", "sound_tokenizer")])
def test_swapped_components_are_called_so(folder, one, two):
    for name in (one, two):
        (folder / name).rename(folder / f"{name}-aside")
    (folder / f"{one}-aside").rename(folder / two)
    (folder / f"{two}-aside").rename(folder / one)
    message = refused("config.json", call=lambda: load(folder))
    assert "swapped" in message or "lacks" in message  # the tiny AVAE's config does not name its class


def test_a_config_in_the_prompts_place_is_refused(folder):
    (folder / "assets").mkdir()
    shutil.copy2(folder / "model_index.json", folder / "assets" / "negative_prompt.json")
    assert "swapped" in " ".join(inspect_checkpoint(folder).problems)


def test_a_config_in_the_schedulers_place_is_refused(folder):
    """With diffusers' defaults for what it lacks it would be a schedule, and not Nano's."""
    shutil.copy2(folder / "model_index.json", folder / "scheduler" / "scheduler_config.json")
    configs = read_configs(folder)
    refused("_class_name", "UniPCMultistepScheduler", call=lambda: schedule_from_config(configs.scheduler, 9))


@pytest.mark.parametrize(
    ("component", "key"), [("transformer", "hidden_size"), ("vae", "base_dim"), ("sound_tokenizer", "dec_dim")]
)
def test_layers_that_cannot_exist_name_the_config(folder, component, key):
    path = folder / component / "config.json"
    rewrite(path, json.dumps(json.loads(path.read_text()) | {key: 2**31}))
    refused(component, call=lambda: load(folder, load_encoder=True))


def test_a_config_in_the_defaults_place_is_refused(folder):
    shutil.copy2(folder / "model_index.json", folder / "cosmos3_lab.json")
    refused("cosmos3_lab.json", "unknown key", call=lambda: load(folder))


@pytest.mark.parametrize(
    "about", [{"name": "\x1b[31mred"}, {"name": "a\nb"}, {"example_prompts": ["fine", "\x1b]0;title\x07"]}, {"name": "x" * 6000}]
)
def test_texts_that_are_shown_must_be_a_line(folder, about):
    path = folder / "cosmos3_lab.json"
    rewrite(path, json.dumps(json.loads(path.read_text()) | about))
    refused(str(path), "a line of at most", call=lambda: load(folder))


# ----------------------------------------------------------------------------------------------------------- templates

GREEDY = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 9999 }}",
    "{{ 9 ** 9999 }}",
    "{{ lipsum(n=9999) }}",
    "{{ '%999999999s' | format('a') }}",
    "{{ '%999999999s' % 'a' }}",
    "{{ 'a'.ljust(9999999999) }}",
    "{{ 'a' | center(9999999999) }}",
    "{#" + "a" * 70_000 + "#}",
)


@pytest.mark.parametrize("template", GREEDY, ids=lambda t: t[:40])
def test_templates_that_fill_the_memory_are_refused_unrun(folder, template):
    file = folder / "text_tokenizer" / "chat_template.jinja"
    rewrite(file, template + file.read_text())
    refused("chat template", call=lambda: Cosmos3Processor(folder / "text_tokenizer"))


def test_a_template_may_not_hide_in_another_file(folder):
    config = folder / "text_tokenizer" / "tokenizer_config.json"
    file = folder / "text_tokenizer" / "chat_template.jinja"
    rewrite(config, json.dumps(json.loads(config.read_text()) | {"chat_template": GREEDY[0] + file.read_text()}))
    file.unlink()
    refused("chat template", "'range'", call=lambda: Cosmos3Processor(folder / "text_tokenizer"))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include 'x' %}",
    ],
)
def test_templates_that_reach_for_python_are_refused(folder, template):
    file = folder / "text_tokenizer" / "chat_template.jinja"
    rewrite(file, template + file.read_text())
    refused("chat template", "does not work", call=lambda: Cosmos3Processor(folder / "text_tokenizer"))


# What Qwen's own templates use: loops over messages, namespaces, filters, tests, string methods, arithmetic on indices.
QWENS = (
    "{%- set count = namespace(value=0) %}{%- for message in messages[::-1] %}"
    "{%- set index = (messages|length - 1) - loop.index0 %}"
    "{%- if message.content is string and index % 2 == 0 "
    "and not message.content.startswith('<tool>') %}{{- '' | trim }}{%- endif %}"
    "{%- endfor %}"
)


def test_templates_as_they_are_in_the_wild_are_run(folder):
    file = folder / "text_tokenizer" / "chat_template.jinja"
    plain = Cosmos3Processor(folder / "text_tokenizer").tokenize("a ball").text_ids
    rewrite(file, QWENS + file.read_text())
    assert torch.equal(Cosmos3Processor(folder / "text_tokenizer").tokenize("a ball").text_ids, plain)
