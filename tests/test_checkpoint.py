"""A checkpoint folder becomes models, strictly and reading no more than it needs; whatever is wrong is one clear error."""

import json
import os
import re
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checks import refused
from safetensors.torch import load_file, save_file

from cosmos3_lab import (
    decode_latents,
    encode_sound,
    fork,
    generate,
    inspect_checkpoint,
    load_cosmos3,
    prepare_denoise,
)
from cosmos3_lab.generate import prepare_request
from cosmos3_lab.memory import MemoryNeed, choose_placement, working_room
from cosmos3_lab.random_checkpoint import RECIPES, write_random_checkpoint
from cosmos3_lab.weights import INDEX, SINGLE

RUN = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 2, "negative_prompt": "blurry", "progress": False}
ABSENT = object()
COMPONENTS = ("transformer", "vae", "sound_tokenizer")


def link_weights(source, target):
    """Copy small files; weights are hard links, so replace them (`rewrite`), never write into them."""
    return os.link(source, target) if source.endswith(".safetensors") else shutil.copy2(source, target)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny checkpoint to damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "checkpoint", copy_function=link_weights))


def rewrite(path, content):
    path.unlink()
    path.write_bytes(content)


def edit(path, **changes):
    """Change keys of a JSON file; ABSENT removes one."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not ABSENT}))


def stored(component):
    """Every tensor of a component, read with the safetensors library."""
    return {name: t for file in sorted(component.glob("*.safetensors")) for name, t in load_file(file).items()}


def restore(component, tensors):
    """Replace a component's files by a single one."""
    for file in [*component.glob("*.safetensors"), component / INDEX]:
        file.unlink(missing_ok=True)
    save_file(tensors, component / SINGLE)


def load(folder, **knobs):
    return load_cosmos3(folder, device="cpu", **knobs)


# ------------------------------------------------------------------------------------------------------ what is loaded


def test_every_weight_is_the_files(tiny, tiny_folder):
    transformer, vae = stored(tiny_folder / "transformer"), stored(tiny_folder / "vae")
    for name, parameter in tiny.transformer.named_parameters():
        assert torch.equal(parameter, transformer[name.split(".", 1)[1]].float()), name
    for name, parameter in tiny.vae.named_parameters():
        assert torch.equal(parameter, vae[name].float()), name


def test_sound_weight_norm_is_folded_in(tiny, tiny_folder):
    file = stored(tiny_folder / "sound_tokenizer")
    for name, parameter in tiny.avae.named_parameters():
        if name.endswith(".weight"):
            g, v = file[f"{name}_g"], file[f"{name}_v"]
            assert torch.allclose(parameter, g * v / v.flatten(1).norm(dim=1).view(-1, 1, 1), atol=1e-6), name
        else:
            assert torch.equal(parameter, file[name]), name


def test_weights_are_frozen(tiny):
    for module in (tiny.transformer, tiny.vae, tiny.avae):
        assert not module.training
        assert not any(p.requires_grad or p.is_meta for p in module.parameters())


@pytest.mark.parametrize("skipped", ["lm_head.", "norm.", "action_"])
def test_skipped_tensors_may_be_missing(folder, skipped):
    tensors = stored(folder / "transformer")
    kept = {n: t for n, t in tensors.items() if not n.startswith(skipped)}
    assert len(kept) < len(tensors)
    restore(folder / "transformer", kept)
    assert load(folder).avae is not None


@pytest.mark.parametrize("name", ["norm_moe_gen.weight", "embed_tokens.weight", "layers.2.self_attn.add_q_proj.weight"])
def test_a_missing_tensor_is_named(folder, name):
    tensors = stored(folder / "transformer")
    del tensors[name]
    restore(folder / "transformer", tensors)
    refused("transformer", f"lacks tensor {name}", call=lambda: load(folder))


@pytest.mark.parametrize("name", ["norm_extra.weight", "layers.0.self_attn.bias", "lm_head_2.weight", "embed_action.weight"])
def test_an_unexpected_tensor_is_named(folder, name):
    restore(folder / "transformer", stored(folder / "transformer") | {name: torch.zeros(1)})
    refused("transformer", f"unexpected tensor {name}", call=lambda: load(folder))


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_misshapen_tensor_is_named(folder, component):
    tensors = stored(folder / component)
    name = next(n for n in sorted(tensors) if n.startswith(("decoder.conv_in.", "decoder.conv1.", "proj_in.")))
    restore(folder / component, tensors | {name: torch.zeros(3, 1)})
    refused(str(folder / component / SINGLE), f"tensor {name}", "[3, 1]", call=lambda: load(folder))


def test_a_tensor_in_another_layers_place_is_not_taken(folder):
    tensors = stored(folder / "transformer")
    tensors["layers.7.mlp.up_proj.weight"] = tensors.pop("layers.0.mlp.up_proj.weight")
    restore(folder / "transformer", tensors)
    refused("lacks tensor layers.0.mlp.up_proj.weight", call=lambda: load(folder))


# --------------------------------------------------------------------------------------------------------------- sound


@pytest.mark.parametrize(("load_sound", "with_sound"), [(None, True), (True, True), (False, False)])
def test_load_sound(tiny_folder, load_sound, with_sound):
    with load(tiny_folder, load_sound=load_sound) as models:
        assert (models.avae is not None) == models.transformer.with_sound == with_sound
        assert any("audio_" in name for name, _ in models.transformer.named_parameters()) == with_sound
        assert models.media.sound_dim == (4 if with_sound else None)


def test_silent_runs_never_read_the_sound_file(folder):
    damaged = folder / "sound_tokenizer" / SINGLE
    rewrite(damaged, b"damaged")
    with load(folder, load_sound=False) as models:
        assert models.avae is None
    refused(str(damaged), call=lambda: load(folder))


def test_silent_runs_do_not_need_the_sound_heads(folder):
    silent = {n: t for n, t in stored(folder / "transformer").items() if not n.startswith("audio_")}
    restore(folder / "transformer", silent)
    assert load(folder, load_sound=False).avae is None
    refused("transformer lacks tensor audio_modality_embed", call=lambda: load(folder, load_sound=True))


def test_a_folder_without_sound_is_silent(folder):
    shutil.rmtree(folder / "sound_tokenizer")
    with load(folder) as models:
        assert models.avae is None
        assert models.media.sound_dim is None
        assert generate(models, "a ball", **RUN).output.waveform is None
        with pytest.raises(ValueError, match="has no sound"):
            generate(models, "a ball", with_sound=True, **RUN)
    refused("load_sound=True", "no sound_tokenizer folder", call=lambda: load(folder, load_sound=True))


def test_a_transformer_without_sound_is_silent(folder):
    edit(folder / "transformer" / "config.json", sound_gen=False)
    assert load(folder).avae is None
    refused("load_sound=True", "sound_gen is false", call=lambda: load(folder, load_sound=True))


def test_sound_of_models_that_were_loaded_silent_is_refused(tiny_folder):
    with load(tiny_folder, load_sound=False) as models, pytest.raises(ValueError, match="load_sound=False"):
        generate(models, "a ball", with_sound=True, **RUN)


def test_a_sound_file_with_its_encoder_is_accepted(folder):
    path = folder / "sound_tokenizer"
    restore(path, stored(path) | {"encoder.layers.0.weight": torch.zeros(3)})
    assert load(folder).load_bytes == inspect_checkpoint(folder).needed(with_sound=True)[1]


# ------------------------------------------------------------------------------------------------------------- encoder


def test_the_encoder_is_read_on_request_only(folder):
    with_encoder, without = load(folder, load_encoder=True), load(folder)
    tensors = stored(folder / "vae")
    encoder = {n: t for n, t in tensors.items() if n.startswith(("encoder.", "quant_conv."))}
    assert with_encoder.load_bytes - without.load_bytes == sum(t.nbytes for t in encoder.values()) > 0
    assert not hasattr(without.vae, "encoder")
    restore(folder / "vae", {n: t for n, t in tensors.items() if n not in encoder})
    assert load(folder).load_bytes == without.load_bytes
    refused("vae lacks tensor encoder.", call=lambda: load(folder, load_encoder=True))


# ----------------------------------------------------------------------------------------------------- dtype and device


def test_bfloat16_keeps_the_time_embedder_in_float32(tiny_folder):
    with load(tiny_folder, dtype=torch.bfloat16) as models:
        dtypes = {name: p.dtype for name, p in models.transformer.named_parameters()}
        decoders = {p.dtype for module in (models.vae, models.avae) for p in module.parameters()}
        output = generate(models, "a ball", with_sound=True, **RUN).output
    assert {d for n, d in dtypes.items() if ".time_embedder." in n} == {torch.float32}
    assert {d for n, d in dtypes.items() if ".time_embedder." not in n} == decoders == {torch.bfloat16}
    assert output.frames.shape == (5, 32, 48, 3)
    assert output.waveform.dtype.name == "float32"


def test_decoders_may_have_their_own_dtype(tiny_folder):
    with load(tiny_folder, dtype=torch.bfloat16, vae_dtype=torch.float32, sound_dtype=torch.float32) as models:
        assert models.transformer.dtype == torch.bfloat16
        assert {p.dtype for module in (models.vae, models.avae) for p in module.parameters()} == {torch.float32}


def test_the_cpu_default_is_float32(tiny):
    assert {p.dtype for p in tiny.transformer.parameters()} == {torch.float32}
    assert str(tiny.device) == "cpu"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int8])
def test_other_dtypes_are_refused(tiny_folder, dtype):
    with pytest.raises(ValueError, match=str(dtype)):
        load(tiny_folder, dtype=dtype)


# An id of just "cuda" would count as the marker that conftest.py skips.
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7", torch.device("cuda")], ids=lambda d: f"device {d!r}")
def test_cuda_without_a_gpu_is_refused(tiny_folder, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA GPU here; use device='cpu'"):
        load_cosmos3(tiny_folder, device=device)


@pytest.mark.parametrize("device", ["", "gpu", "cpu:x", "cuda:-1", "meta", "mps", "CPU"])
def test_nonsense_devices_are_refused(tiny_folder, device):
    with pytest.raises(ValueError, match="expected 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        load_cosmos3(tiny_folder, device=device)


def test_auto_without_a_gpu_is_the_cpu(tiny_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with load_cosmos3(tiny_folder) as models:
        assert (models.device.type, models.placement) == ("cpu", "resident")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_weights_of_the_stored_dtype_stay_mapped(tiny_folder):
    """Of the towers; the VAE's convolutions are laid out anew."""
    with load(tiny_folder, dtype=torch.bfloat16, sound_dtype=torch.float32) as models:
        regions = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
        spans = [[int(x, 16) for x in r[0].split("-")] for r in regions if r[-1].strip().endswith(".safetensors")]
        copied = [
            name
            for name, p in models.transformer.named_parameters()
            if not any(begin <= p.data_ptr() < end for begin, end in spans)
        ]
    assert all(".time_embedder." in name for name in copied)
    assert len(copied) == 4


# ---------------------------------------------------------------------------------------------- placement, life and death


@pytest.fixture(scope="module")
def resident_run(tiny):
    return generate(tiny, "a ball bounces", with_sound=True, **RUN)


def test_split_placement_gives_the_same_bits(tiny_folder, resident_run):
    with load(tiny_folder, placement="split") as models:
        split = generate(models, "a ball bounces", with_sound=True, **RUN)
        again = generate(models, "a ball bounces", with_sound=True, **RUN)
    assert split.manifest["placement"] == "split"
    for run in (split, again):
        assert torch.equal(run.latents.video, resident_run.latents.video)
        assert torch.equal(run.latents.sound, resident_run.latents.sound)
        assert (run.output.frames == resident_run.output.frames).all()


def test_the_folder_may_come_from_the_environment(tiny_folder, monkeypatch):
    monkeypatch.setenv("COSMOS3_CHECKPOINT", str(tiny_folder))
    with load(None) as models:
        assert models.folder == tiny_folder


def test_a_folder_in_the_environment_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("COSMOS3_CHECKPOINT", str(tmp_path / "gone"))
    refused(str(tmp_path / "gone"), "not a folder", call=lambda: load(None))


def test_models_know_where_they_come_from(tiny, tiny_folder):
    assert tiny.folder == tiny_folder
    assert tiny.processor_dir == tiny_folder / "text_tokenizer"
    assert tiny.configs.scheduler["use_karras_sigmas"] is True
    assert tiny.load_seconds > 0
    assert "random-tiny: 3 layers of 64, with sound, torch.float32, cpu, resident" in repr(tiny)


@pytest.mark.parametrize("placement", ["resident", "split"])
def test_closed_models_hold_nothing_and_say_so(tiny_folder, placement):
    with load(tiny_folder, placement=placement) as models:
        request = prepare_request(models, "a ball", **{k: v for k, v in RUN.items() if k != "progress"})
        inputs, state = prepare_denoise(models, request)
    assert {p.device.type for m in (models.transformer, models.vae, models.avae) for p in m.parameters()} == {"meta"}
    for use in (
        lambda: generate(models, "a ball", **RUN),
        lambda: prepare_denoise(models, request),
        lambda: decode_latents(models, state.latents, fps=24.0),
        lambda: fork(models, inputs, state, negative_prompt=_tokens(request)),
    ):
        with pytest.raises(ValueError, match="these models were closed"):
            use()
    models.close()  # twice does no harm


def _tokens(request):
    from cosmos3_lab import Cosmos3TokenizedPrompt

    return Cosmos3TokenizedPrompt(request.text_ids, request.text_mask)


def test_models_are_closed_when_the_block_fails(tiny_folder):
    with pytest.raises(KeyError), load(tiny_folder) as models:
        raise KeyError
    assert models.vae.post_quant_conv.weight.is_meta


# ------------------------------------------------------------------------------------------------------------ settings


def test_defaults_come_from_the_checkpoint(tiny):
    d = tiny.defaults
    assert (d.num_frames, d.height, d.width, d.fps, d.num_inference_steps) == (17, 96, 160, 16.0, 4)
    assert (d.guidance_scale, d.flow_shift, d.preset, d.name) == (6.0, None, "native", "random-tiny")


def test_without_defaults_they_are_nanos(folder):
    (folder / "cosmos3_lab.json").unlink()
    d = load(folder).defaults
    assert (d.num_frames, d.height, d.width, d.fps, d.num_inference_steps) == (189, 720, 1280, 24.0, 35)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"defaults": {"num_frame": 17}}, ["cosmos3_lab.json", "num_frame", "num_frames"]),
        ({"defaults": {"num_frames": "17"}}, ["cosmos3_lab.json", "num_frames", "'17'", "int"]),
        ({"defaults": {"num_frames": 17.0}}, ["cosmos3_lab.json", "num_frames", "int"]),
        ({"defaults": {"height": True}}, ["cosmos3_lab.json", "height", "int"]),
        ({"defaults": {"fps": "24"}}, ["cosmos3_lab.json", "fps", "float"]),
        ({"defaults": {"preset": "nativ"}}, ["nativ", "native, phyai, diffusers"]),
        ({"defaults": {"preset": 1}}, ["cosmos3_lab.json", "preset", "str"]),
        ({"example_prompts": "a ball"}, ["cosmos3_lab.json", "example_prompts", "list"]),
        ({"example_prompts": ["a ball", 1]}, ["cosmos3_lab.json", "example_prompts", "str"]),
        ({"name": 5}, ["cosmos3_lab.json", "name", "str"]),
    ],
    ids=lambda x: json.dumps(x) if isinstance(x, dict) else "",
)
def test_broken_defaults_are_refused(folder, changes, words):
    edit(folder / "cosmos3_lab.json", **changes)
    refused(str(folder), *words, call=lambda: load(folder))


ROPE = {"mrope_interleaved": True, "rope_type": "default"}


@pytest.mark.parametrize(
    ("component", "changes", "words"),
    [
        ("transformer", {"hidden_act": "relu2"}, ["hidden_act", "relu2", "Edge"]),
        ("transformer", {"attention_bias": True}, ["attention_bias"]),
        ("transformer", {"qk_norm_for_text": False}, ["qk_norm_for_text"]),
        ("transformer", {"qk_norm_for_diffusion": False}, ["qk_norm_for_diffusion"]),
        ("transformer", {"joint_attn_implementation": "one_way"}, ["joint_attn_implementation", "two_way"]),
        ("transformer", {"unified_3d_mrope_reset_spatial_ids": False}, ["unified_3d_mrope_reset_spatial_ids"]),
        ("transformer", {"temporal_compression_factor_sound": 2}, ["temporal_compression_factor_sound"]),
        ("transformer", {"video_temporal_causal": True}, ["video_temporal_causal"]),
        ("transformer", {"use_und_k_norm_for_gen": True}, ["use_und_k_norm_for_gen"]),
        ("transformer", {"rope_scaling": ROPE | {"mrope_section": [4, 2, 1]}}, ["[4, 2, 1]", "8"]),
        ("transformer", {"rope_scaling": ABSENT}, ["lacks mrope_section"]),
        ("transformer", {"sound_gen": ABSENT}, ["does not say sound_gen", "sound_tokenizer"]),
        ("transformer", {"rope_axes_dim": [24, 20, 20]}, ["[24, 20, 20]"]),
        ("transformer", {"patch_latent_dim": 192}, ["patch_latent_dim", "192", "32"]),
        ("transformer", {"latent_patch_size": 4}, ["patch_latent_dim", "128"]),
        ("transformer", {"num_key_value_heads": 3}, ["4 attention heads", "3 key/value"]),
        ("transformer", {"num_hidden_layers": 0}, ["num_hidden_layers", "above 0"]),
        ("transformer", {"hidden_size": -64}, ["hidden_size", "-64"]),
        ("transformer", {"hidden_size": "64"}, ["hidden_size", "'64'", "int"]),
        ("transformer", {"hidden_size": 64.0}, ["hidden_size", "64.0", "int"]),
        ("transformer", {"rms_norm_eps": "small"}, ["rms_norm_eps", "float"]),
        ("transformer", {"sound_gen": 1}, ["sound_gen", "bool"]),
        ("transformer", {"enable_fps_modulation": "yes"}, ["enable_fps_modulation", "bool"]),
        ("transformer", {"latent_channel": 4, "patch_latent_dim": 16}, ["z_dim is 8", "latent_channel is 4"]),
        ("transformer", {"sound_dim": 64}, ["vocoder_input_dim is 4", "sound_dim is 64"]),
        ("transformer", {"num_hidden_layers": 2}, ["unexpected tensor layers.2."]),
        ("transformer", {"num_hidden_layers": 4}, ["lacks tensor layers.3."]),
        ("transformer", {"intermediate_size": 97}, ["gate_proj", "[96, 64]", "[97, 64]"]),
        ("vae", {"is_residual": False}, ["Wan 2.2"]),
        ("vae", {"is_residual": ABSENT}, ["Wan 2.2"]),
        ("vae", {"attn_scales": [1.0]}, ["Wan 2.2"]),
        ("vae", {"z_dim": 16}, ["16 numbers"]),
        ("vae", {"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, ["z_dim is 4", "latent_channel is 8"]),
        ("vae", {"latents_mean": [0.0] * 7}, ["8 numbers"]),
        ("vae", {"latents_std": ["one"] * 8}, ["latents_std", "float"]),
        ("vae", {"latents_std": 1.0}, ["latents_std", "list"]),
        ("vae", {"temperal_downsample": [True, True]}, ["temperal_downsample"]),
        ("vae", {"temperal_downsample": [True, True, True]}, ["8x in time", "4x"]),
        ("vae", {"patch_size": 4, "in_channels": 48, "out_channels": 48}, ["32x in space", "16x"]),
        ("vae", {"in_channels": 24}, ["in_channels", "12"]),
        ("vae", {"scale_factor_spatial": 8}, ["16x in space", "8x"]),
        ("vae", {"decoder_base_dim": "16"}, ["decoder_base_dim", "int"]),
        ("vae", {"decoder_base_dim": 32}, [SINGLE, "decoder.conv_in.weight"]),
        ("sound_tokenizer", {"hop_size": 960}, ["dec_strides is 1920", "960"]),
        ("sound_tokenizer", {"dec_strides": [2, 4, 5, 6, 4]}, ["dec_strides is 960", "1920"]),
        ("sound_tokenizer", {"dec_c_mults": [1, 2]}, ["dec_c_mults", "dec_strides"]),
        ("sound_tokenizer", {"dec_type": "vocos"}, ["dec_type", "vocos"]),
        ("sound_tokenizer", {"dec_final_tanh": True}, ["dec_final_tanh"]),
        ("sound_tokenizer", {"latent_mean": [0.0]}, ["latent_mean"]),
        ("sound_tokenizer", {"sampling_rate": "48k"}, ["sampling_rate", "int"]),
        ("sound_tokenizer", {"vocoder_input_dim": 8}, ["vocoder_input_dim is 8", "sound_dim is 4"]),
    ],
    ids=lambda x: str(x)[:60] if isinstance(x, dict) else x if isinstance(x, str) else "",
)
def test_configs_of_another_architecture_are_refused(folder, component, changes, words):
    edit(folder / component / "config.json", **changes)
    refused(component, *words, call=lambda: load(folder))


def test_mrope_sections_may_be_written_flat(folder):
    edit(folder / "transformer" / "config.json", rope_scaling=ABSENT, rope_axes_dim=[4, 2, 2])
    assert load(folder).config.mrope_section == (4, 2, 2)


CONFIGS = [f"{component}/config.json" for component in COMPONENTS]
SETTINGS = [*CONFIGS, "scheduler/scheduler_config.json", "cosmos3_lab.json"]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 200_000], ids=lambda b: repr(b[:4]))
def test_settings_that_are_no_json_object_are_named(folder, name, content):
    (folder / name).write_bytes(content)
    refused(str(folder / name), "JSON", call=lambda: load(folder))


@pytest.mark.parametrize("name", CONFIGS)
def test_missing_configs_are_named(folder, name):
    (folder / name).unlink()
    refused(str(folder / name), "missing", call=lambda: load(folder))


@pytest.mark.parametrize("name", ["transformer", "vae", "text_tokenizer"])
def test_missing_components_are_named(folder, name):
    shutil.rmtree(folder / name)
    refused(str(folder), f"no {name}/ folder", call=lambda: load(folder))


def test_a_missing_tokenizer_is_named(folder):
    (folder / "text_tokenizer" / "tokenizer.json").unlink()
    refused(str(folder / "text_tokenizer"), "tokenizer.json", call=lambda: load(folder))


@pytest.mark.parametrize("name", ["scheduler", "model_index.json", "cosmos3_lab.json"])
def test_what_is_not_needed_may_be_missing(folder, name):
    path = folder / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with load(folder) as models:
        assert generate(models, "a ball", **RUN).output is not None


def test_without_a_scheduler_file_auto_says_so(folder):
    shutil.rmtree(folder / "scheduler")
    with load(folder) as models, pytest.raises(ValueError, match="scheduler_config.json, which this checkpoint lacks"):
        generate(models, "a ball", schedule="auto", **RUN)


def test_a_file_is_no_folder(tiny_folder):
    refused("model_index.json", "not a folder", call=lambda: load(tiny_folder / "model_index.json"))


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_cut_weights_name_the_file(folder, component, kept):
    file = sorted((folder / component).glob("*.safetensors"))[-1]
    rewrite(file, file.read_bytes()[:kept])
    refused(str(file), call=lambda: load(folder))


# ------------------------------------------------------------------------------------------------------------- inspect


def data_bytes(file):
    """Bytes of tensors in a safetensors file: what is behind the header."""
    content = file.read_bytes()
    return len(content) - 8 - struct.unpack("<Q", content[:8])[0]


def test_inspect_counts_what_the_files_hold(tiny_folder):
    report = inspect_checkpoint(tiny_folder)
    assert report.problems == ()
    assert report.present == ("transformer", "vae", "text_tokenizer", "sound_tokenizer", "scheduler")
    tensors = [t for component in COMPONENTS for t in stored(tiny_folder / component).values()]
    assert sum(g.nbytes for g in report.groups) == sum(map(data_bytes, tiny_folder.glob("*/*.safetensors")))
    assert sum(g.parameters for g in report.groups) == sum(t.numel() for t in tensors)
    assert sum(g.tensors for g in report.groups) == len(tensors)
    assert report.defaults.num_frames == 17


def test_inspect_sorts_tensors_by_purpose(tiny_folder):
    groups = inspect_checkpoint(tiny_folder).groups
    assert len({g.name for g in groups}) == len(groups) == 11
    by_use = {(g.t2v, g.t2av): sorted(x.tensors for x in groups if (x.t2v, x.t2av) == (g.t2v, g.t2av)) for g in groups}
    assert by_use == {
        (True, True): [1, 9, 33, 33, 110],  # embeddings; ways in and out; UND; GEN; VAE decoder
        (False, True): [5, 182],  # sound projections; AVAE decoder
        (False, False): [1, 1, 5, 86],  # lm_head; UND's final norm; action heads; VAE encoder
    }
    dtypes = {g.tensors: g.dtypes for g in groups}
    assert (dtypes[33], dtypes[182]) == (("bfloat16",), ("float32",))


@pytest.mark.parametrize("with_sound", [False, True])
def test_inspect_says_what_a_run_reads(tiny_folder, with_sound):
    with load(tiny_folder, load_sound=with_sound) as models:
        parameters, nbytes = inspect_checkpoint(tiny_folder).needed(with_sound=with_sound)
        assert nbytes == models.load_bytes
        counted = sum(p.numel() for m in (models.transformer, models.vae) for p in m.parameters())
    if with_sound:
        file = stored(tiny_folder / "sound_tokenizer")
        counted += sum(t.numel() for t in file.values())  # g and v, not the folded weight
    assert parameters == counted


@pytest.mark.parametrize("name", ["transformer", "vae", "text_tokenizer"])
def test_inspect_lists_a_missing_component(folder, name):
    shutil.rmtree(folder / name)
    report = inspect_checkpoint(folder)
    assert name not in report.present
    assert any(name in problem and "missing" in problem for problem in report.problems)


@pytest.mark.parametrize("component", COMPONENTS)
def test_inspect_lists_a_damaged_shard(folder, component):
    file = sorted((folder / component).glob("*.safetensors"))[-1]
    rewrite(file, file.read_bytes()[:-1])
    report = inspect_checkpoint(folder)
    assert [problem for problem in report.problems if str(file) in problem]
    whole = [f for name in COMPONENTS if name != component for f in (folder / name).glob("*.safetensors")]
    assert sum(g.nbytes for g in report.groups) == sum(map(data_bytes, whole))


@pytest.mark.parametrize("name", SETTINGS)
def test_inspect_lists_a_broken_config(folder, name):
    (folder / name).write_text("{")
    report = inspect_checkpoint(folder)
    assert any(str(folder / name) in problem for problem in report.problems)
    assert report.defaults is None


def test_inspect_lists_a_wrong_architecture(folder):
    edit(folder / "transformer" / "config.json", hidden_act="relu2")
    assert any("relu2" in problem for problem in inspect_checkpoint(folder).problems)


def test_inspect_of_an_empty_folder_is_all_problems(tmp_path):
    report = inspect_checkpoint(tmp_path)
    assert (report.present, report.groups) == ((), ())
    assert [p for p in report.problems if "is missing" in p][:3] == [
        f"{name}/ is missing" for name in ("transformer", "vae", "text_tokenizer")
    ]
    assert report.needed(with_sound=True) == (0, 0)


def test_inspect_refuses_what_is_no_folder(tmp_path):
    refused(str(tmp_path / "gone"), "not a folder", call=lambda: inspect_checkpoint(tmp_path / "gone"))


def test_inspect_notes_what_is_worth_knowing(folder):
    notes = " ".join(inspect_checkpoint(folder).notes)
    assert "karras" in notes
    assert "the lab's own structured negative prompt" in notes
    assert "no sound" not in notes
    shutil.rmtree(folder / "sound_tokenizer")
    shutil.rmtree(folder / "scheduler")
    (folder / "assets").mkdir()
    (folder / "assets" / "negative_prompt.json").write_text('{"bad": "blurry"}')
    report = inspect_checkpoint(folder)
    notes = " ".join(report.notes)
    assert report.problems == ()
    assert "no sound" in notes
    assert "no scheduler file" in notes
    assert "the checkpoint's assets/negative_prompt.json (17 characters, not the text of" in notes


# --------------------------------------------------------------------------------------------------- random checkpoints

LAYER = (
    *(f"self_attn.{n}.weight" for n in ("to_q", "to_k", "to_v", "to_out", "norm_q", "norm_k")),
    *(f"self_attn.{n}.weight" for n in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k")),
    *(f"{n}{tower}.weight" for n in ("input_layernorm", "post_attention_layernorm") for tower in ("", "_moe_gen")),
    *(f"mlp{tower}.{n}_proj.weight" for n in ("gate", "up", "down") for tower in ("", "_moe_gen")),
)
TOP = {
    "embed_tokens.weight": (384, 64),
    "lm_head.weight": (384, 64),
    "norm.weight": (64,),
    "norm_moe_gen.weight": (64,),
    "proj_in.weight": (64, 32),
    "proj_in.bias": (64,),
    "proj_out.weight": (32, 64),
    "proj_out.bias": (32,),
    "time_embedder.linear_1.weight": (64, 256),
    "time_embedder.linear_1.bias": (64,),
    "time_embedder.linear_2.weight": (64, 64),
    "time_embedder.linear_2.bias": (64,),
    "audio_proj_in.weight": (64, 4),
    "audio_proj_in.bias": (64,),
    "audio_proj_out.weight": (4, 64),
    "audio_proj_out.bias": (4,),
    "audio_modality_embed": (64,),
    "action_proj_in.fc.weight": (4, 6 * 64),
    "action_proj_in.bias.weight": (4, 64),
    "action_proj_out.fc.weight": (4, 6 * 64),
    "action_proj_out.bias.weight": (4, 6),
    "action_modality_embed": (64,),
}


def test_random_checkpoints_have_the_released_names(tiny_folder):
    """The table of 22 tensors a layer and 22 at the top, at the tiny sizes."""
    tensors = stored(tiny_folder / "transformer")
    expected = {f"layers.{i}.{leaf}" for i in range(3) for leaf in LAYER} | TOP.keys()
    assert (len(LAYER), len(TOP)) == (22, 22)
    assert tensors.keys() == expected
    assert {name: tuple(tensors[name].shape) for name in TOP} == TOP
    for leaf, shape in {"to_q": (64, 64), "add_k_proj": (32, 64), "to_add_out": (64, 64), "norm_added_q": (16,)}.items():
        assert tuple(tensors[f"layers.2.self_attn.{leaf}.weight"].shape) == shape
    assert tuple(tensors["layers.1.mlp_moe_gen.down_proj.weight"].shape) == (64, 96)
    assert {t.dtype for t in tensors.values()} == {torch.bfloat16}


def test_random_checkpoints_have_both_halves_of_the_vae(tiny_folder):
    names = stored(tiny_folder / "vae").keys()
    count = {p: sum(n.startswith(p) for n in names) for p in ("decoder.", "post_quant_conv.", "encoder.", "quant_conv.")}
    assert count == {"decoder.": 108, "post_quant_conv.": 2, "encoder.": 84, "quant_conv.": 2}
    assert len(names) == 196


def test_random_checkpoints_have_the_sound_decoder(tiny_folder):
    tensors = stored(tiny_folder / "sound_tokenizer")
    assert len(tensors) == 182
    assert all(name.startswith("decoder.") for name in tensors)
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    for name, g in tensors.items():
        if name.endswith("_g"):  # length of axis 0 of v: input channels for transposed convolutions
            assert tuple(g.shape) == (tensors[f"{name[:-1]}v"].shape[0], 1, 1)


def test_random_checkpoints_are_sharded_by_size(tiny_folder):
    index = json.loads((tiny_folder / "transformer" / INDEX).read_text())
    files = sorted((tiny_folder / "transformer").glob("*.safetensors"))
    assert len(files) > 1
    assert all(re.fullmatch(rf"diffusion_pytorch_model-\d{{5}}-of-{len(files):05d}\.safetensors", f.name) for f in files)
    assert set(index["weight_map"].values()) == {f.name for f in files}
    assert index["metadata"]["total_size"] == sum(map(data_bytes, files))
    assert all(data_bytes(f) <= RECIPES["tiny"].shard_bytes for f in files)
    shards = [set(load_file(f)) for f in files]
    assert all(index["weight_map"][name] == f.name for f, shard in zip(files, shards, strict=True) for name in shard)


def test_random_checkpoints_are_their_seed(tmp_path, tiny_folder):
    same, other = (stored(write_random_checkpoint(tmp_path / str(seed), seed=seed) / "transformer") for seed in (0, 1))
    tensors = stored(tiny_folder / "transformer")
    assert all(torch.equal(same[name], t) for name, t in tensors.items())
    assert not torch.equal(other["proj_in.weight"], tensors["proj_in.weight"])


def test_random_checkpoints_go_into_empty_folders_only(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ValueError, match="not empty"):
        write_random_checkpoint(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("component", "changes", "words"),
    [
        ("transformer", {"rope_theta": ABSENT}, ["lacks rope_theta"]),
        ("transformer", {"unified_3d_mrope_temporal_modality_margin": ABSENT}, ["margin"]),
        ("transformer", {"rope_scaling": "abc"}, ["rope_scaling"]),
        ("transformer", {"rope_scaling": [1]}, ["rope_scaling"]),
        ("transformer", {"rope_scaling": {"mrope_interleaved": False, "mrope_section": [4, 2, 2]}}, ["rope_scaling"]),
        ("transformer", {"hidden_size": 10**12}, ["hidden_size"]),
        ("transformer", {"vocab_size": 10**30}, ["vocab_size"]),
        ("transformer", {"rms_norm_eps": float("nan")}, ["rms_norm_eps"]),
        ("transformer", {"rope_theta": float("inf")}, ["rope_theta"]),
        ("transformer", {"position_embedding_type": "learned"}, ["position_embedding_type"]),
        ("vae", {"latents_std": ABSENT}, ["lacks latents_std"]),
        ("vae", {"latents_std": [0.0] * 8}, ["latents_std"]),
        ("vae", {"latents_mean": ABSENT}, ["lacks latents_mean"]),
        ("vae", {"base_dim": -8}, ["base_dim"]),
        ("vae", {"decoder_base_dim": 2**30}, [""]),
        ("sound_tokenizer", {"dec_strides": [-2, -4, 5, 6, 8]}, ["dec_strides"]),
        ("sound_tokenizer", {"sampling_rate": 0}, ["sampling_rate"]),
    ],
)
def test_hostile_and_incomplete_configs_are_refused(folder, component, changes, words):
    edit(folder / component / "config.json", **changes)
    refused(*words, call=lambda: load(folder))
    assert inspect_checkpoint(folder).problems


def test_inspect_compares_weights_with_configs(folder):
    edit(folder / "transformer" / "config.json", num_hidden_layers=4)
    assert "layers.3" in " ".join(inspect_checkpoint(folder).problems)


def test_inspect_misses_the_tokenizer(folder):
    (folder / "text_tokenizer" / "tokenizer.json").unlink()
    assert inspect_checkpoint(folder).problems == ("text_tokenizer/tokenizer.json is missing",)


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe"])
def test_inspect_lists_a_broken_negative_prompt(folder, content):
    (folder / "assets").mkdir()
    (folder / "assets" / "negative_prompt.json").write_bytes(content)
    assert "negative_prompt.json" in " ".join(inspect_checkpoint(folder).problems)


def test_a_half_copied_sound_folder_does_not_stop_silent_runs(folder):
    (folder / "sound_tokenizer" / "config.json").unlink()
    with load(folder, load_sound=False) as models:
        assert models.avae is None
    refused("sound_tokenizer", call=lambda: load(folder))


def test_the_fingerprint_knows_one_changed_tower(folder, tmp_path):
    with load(folder) as models:
        before = models.fingerprint
    with load(folder) as models:
        assert models.fingerprint == before
    tensors = stored(folder / "transformer")
    restore(folder / "transformer", {n: t * 1.5 if "_moe_gen" in n else t for n, t in tensors.items()})
    with load(folder) as models:
        assert models.fingerprint != before


GIB = 2**30


@pytest.mark.parametrize(
    ("free", "asked", "expected"),
    [
        (60, "auto", "resident"),
        (30, "auto", "split"),
        (20, "auto", "split"),
        (60, "split", "split"),
        (40, "resident", "resident"),
    ],
)
def test_placement_by_free_memory(monkeypatch, free, asked, expected):
    """Weights of 14 + 14 + 2 GiB; the default request needs 6 GiB to denoise and 9 to decode."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GIB, 140 * GIB))
    small = MemoryNeed(14 * GIB, 14 * GIB, 2 * GIB)
    default = replace(small, denoise=6 * GIB, decode=9 * GIB)
    assert choose_placement(asked, small, default, torch.device("cuda")) == expected


@pytest.mark.parametrize(("free", "asked"), [(15, "auto"), (15, "split"), (30, "resident")])
def test_what_does_not_fit_names_the_numbers(monkeypatch, free, asked):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free * GIB, 140 * GIB))
    need = MemoryNeed(14 * GIB, 14 * GIB, 2 * GIB)
    with pytest.raises(MemoryError, match=rf"{free}\.0 GiB free.*31\.4 GiB resident, 15\.4 GiB split.*UND 14\.0, GEN 14\.0"):
        choose_placement(asked, need, need, torch.device("cuda"))


def test_working_room_at_full_size_is_near_what_was_measured():
    """39.09 GiB while decoding was measured, over 30 GiB of weights.

    While denoising it was 35.36 when the whole MLP came at once and q, k and v stayed beside it; tensors counted on the meta
    device give 2.4 GiB beside the text K and V since.
    """
    nano, sizes = RECIPES["nano"], {"media_tokens": 44_357, "text_tokens": 3600, "frame_pixels": 720 * 1280}
    denoise, decode = working_room(nano.transformer, nano.vae, **sizes, dtypes=(torch.bfloat16, torch.bfloat16))
    assert 2.5 < denoise / GIB < 4.0
    assert 8.5 < decode / GIB < 10
    assert working_room(nano.transformer, nano.vae, **sizes, dtypes=(torch.float32,) * 2) == (2 * denoise, 2 * decode)


@pytest.mark.parametrize("bad", [{"height": 100}, {"fps": 500}, {"num_inference_steps": 5000}, {"preset": "nativ"}])
def test_defaults_that_cannot_work_are_found_at_once(folder, bad):
    edit(folder / "cosmos3_lab.json", defaults=bad)
    refused("cosmos3_lab.json", call=lambda: load(folder))
    assert "cosmos3_lab.json" in " ".join(inspect_checkpoint(folder).problems)


def test_sound_rates_that_disagree_are_refused(folder):
    edit(folder / "sound_tokenizer" / "config.json", sampling_rate=24000)
    refused("12.5", "25.0", call=lambda: load(folder))


def test_inspect_reports_weights_and_negative_prompt_both(folder):
    (folder / "assets").mkdir()
    (folder / "assets" / "negative_prompt.json").write_text("[]")
    edit(folder / "transformer" / "config.json", intermediate_size=128)
    problems = inspect_checkpoint(folder).problems
    assert len(problems) == 2
    assert "negative_prompt.json" in problems[1]


def test_inspect_says_when_auto_does_not_work(folder):
    edit(folder / "scheduler" / "scheduler_config.json", solver_type="bh1")
    report = inspect_checkpoint(folder)
    assert not report.problems
    assert 'schedule "auto" is not available: ' in " ".join(report.notes)


def test_a_home_that_does_not_exist_is_one_error():
    for call in (lambda: load("~nobody-of-this-name/x"), lambda: inspect_checkpoint("~nobody-of-this-name/x")):
        refused("not a folder", call=call)


def test_an_avae_without_encoder_says_so(tiny):
    """The tiny checkpoint has only the decoder, as the first releases of Nano; asking for encoders is fine all the same."""
    with pytest.raises(ValueError, match="AVAE without its encoder"):
        encode_sound(tiny.avae, torch.zeros(1, 2, 1920))
