"""On a GPU: the same numbers as on the CPU, the same bits in either placement, and memory that comes back."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from cosmos3_lab import generate, load_cosmos3, memory
from cosmos3_lab.layers import attention
from cosmos3_lab.random_checkpoint import RECIPES, write_random_checkpoint
from cosmos3_lab.transfer import PIECE, copy_tensors, to_device

pytestmark = pytest.mark.cuda

MIB = 2**20
RUN = {"prompt": "a red circle bounces", "with_sound": True, "num_inference_steps": 4, "progress": False}


def run(folder, **loading):
    with load_cosmos3(folder, **loading) as models:
        return generate(models, **RUN)


def test_float32_on_the_gpu_equals_the_cpu(tiny_folder):
    gpu = run(tiny_folder, device="cuda", dtype=torch.float32).latents.to("cpu")
    cpu = run(tiny_folder, device="cpu").latents
    for a, b in ((gpu.video, cpu.video), (gpu.sound, cpu.sound)):
        assert (a - b).abs().max() / b.abs().max() < 1e-3


def test_bfloat16_points_the_same_way(tiny_folder):
    gpu = run(tiny_folder, device="cuda")
    assert gpu.manifest["dtype"] == "bfloat16"
    cpu = run(tiny_folder, device="cpu").latents
    cosine = torch.cosine_similarity(gpu.latents.video.cpu().flatten(), cpu.video.flatten(), dim=0)
    assert cosine > 0.99


@pytest.mark.parametrize("folder", ["tiny_folder", "middle_folder"])
def test_split_placement_gives_the_same_bits(folder, request):
    folder = request.getfixturevalue(folder)
    resident = run(folder, device="cuda", placement="resident")
    split = run(folder, device="cuda", placement="split")
    assert split.manifest["placement"] == "split"
    assert torch.equal(resident.latents.video, split.latents.video)
    assert torch.equal(resident.latents.sound, split.latents.sound)
    assert (resident.output.frames == split.output.frames).all()
    assert (resident.output.waveform == split.output.waveform).all()


def devices(models):
    """Of the weights of each part."""
    parts = {"und": models.transformer.und, "gen": models.transformer.gen, "vae": models.vae, "avae": models.avae}
    return {name: {p.device.type for p in part.parameters()} for name, part in parts.items()}


@pytest.mark.parametrize(
    ("stage", "there"), [("und", {"und"}), ("gen", {"gen"}), ("decode", {"vae", "avae"}), ("stream", set())], ids=str
)
def test_split_placement_holds_one_part_at_a_time(tiny_folder, stage, there):
    with load_cosmos3(tiny_folder, device="cuda", placement="split") as models:
        models.place("decode")
        models.place(stage)
        assert {name for name, where in devices(models).items() if where == {"cuda"}} == there
        assert {name for name, where in devices(models).items() if where == {"cpu"}} == {"und", "gen", "vae", "avae"} - there


# Large enough that a tower (0.3 GiB) stands out from what cuBLAS and cuDNN take, small enough to be written in a second.
MIDDLE = replace(
    RECIPES["tiny"],
    transformer=replace(
        RECIPES["tiny"].transformer,
        hidden_size=1024,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=3072,
        mrope_section=(12, 10, 10),
    ),
    vae=replace(RECIPES["tiny"].vae, decoder_base_dim=64),
    shard_bytes=200_000_000,
)


@pytest.fixture(scope="session")
def middle_folder(tmp_path_factory):
    """A random checkpoint of about 0.7 GiB, in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "middle", MIDDLE)
        return write_random_checkpoint(tmp_path_factory.mktemp("middle") / "checkpoint", "middle", device="cuda")


def weights(*modules):
    return sum(p.nbytes for module in modules for p in module.parameters())


def test_split_placement_takes_little_and_gives_it_back(middle_folder):
    """By what PyTorch has reserved, which a smaller card would have to have."""
    ask, seen = RUN | {"negative_prompt": "blurry"}, []
    with load_cosmos3(middle_folder, device="cuda", placement="split") as models:
        generate(models, **ask)  # what the libraries take once and keep is not counted
        models.place("stream")
        gc.collect()
        allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()

        def look(record):
            seen.append((torch.cuda.memory_allocated() - allocated, devices(models)["vae"]))
            return False

        result = generate(models, **ask, should_stop=look)
        peak, decoding = (n - reserved for n in (torch.cuda.max_memory_reserved(), torch.cuda.memory_reserved()))
        models.place("stream")
        after = torch.cuda.memory_reserved() - reserved
        tower, decoders = weights(models.transformer.gen), weights(models.vae, models.avae)
    assert result.output is not None
    assert len(seen) == ask["num_inference_steps"]
    assert all(where == {"cpu"} and tower <= held < tower + 64 * MIB for held, where in seen)
    assert tower < peak < tower + 160 * MIB  # both towers would be 270 MiB more
    assert decoders < decoding < decoders + 160 * MIB
    assert after < 64 * MIB  # text K and V, latents


def test_streaming_takes_one_layer(middle_folder):
    with load_cosmos3(middle_folder, device="cuda", placement="split") as models:
        before, reserved = torch.cuda.memory_allocated(), []
        for layer in models.und_layers():
            assert torch.cuda.memory_allocated() - before <= weights(layer) + 4 * MIB  # each tensor is rounded up a little
            reserved.append(torch.cuda.memory_reserved())
        assert len(set(reserved)) == 1
        assert torch.cuda.memory_allocated() == before


# -------------------------------------------------------------------------------------------------------------- transfer


def test_copies_to_the_gpu_are_equal():
    sources = [
        torch.randn(3 * PIECE // 4 + 5),  # several pieces, the last one odd
        torch.randn(5, 3).bfloat16(),
        torch.tensor(3.5),
        torch.zeros(0, 4),
        torch.randn(64, 32, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d),
        *(torch.full((1000,), float(i)) for i in range(100)),
    ]
    arrived = []
    for source, there in zip(sources, to_device(sources, torch.device("cuda", 0), on_bytes=arrived.append), strict=True):
        assert there.is_cuda
        assert torch.equal(there.cpu(), source)
        assert source.numel() == 0 or there.stride() == source.stride()
    assert sum(arrived) == sum(source.nbytes for source in sources)


def test_copies_wait_for_who_still_reads():
    """The new weights of a layer go where the last ones lay, which kernels that were queued before still read."""
    target = torch.ones(4096, 4096, device="cuda")
    for value in range(2, 6):
        product = target
        for _ in range(30):
            product = (product @ target) / 4096 / target  # stays 1 only while all of `target` holds one value
        copy_tensors([torch.full((4096, 4096), float(value))], [target])
        assert (product - 1).abs().max() < 1e-2
        assert (target == value).all()
        target.fill_(1.0)


def test_copies_work_in_inference_mode():
    with torch.inference_mode():
        (there,) = to_device([torch.arange(5.0)], torch.device("cuda", 0))
    assert there.tolist() == [0, 1, 2, 3, 4]


def test_what_goes_wrong_in_a_thread_is_raised(monkeypatch):
    def fails(target, source):
        raise MemoryError("no room")

    monkeypatch.setattr(np, "copyto", fails)
    with pytest.raises(MemoryError, match="no room"):
        to_device([torch.zeros(3)], torch.device("cuda", 0))


def test_close_gives_the_memory_back(tiny_folder):
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    models = load_cosmos3(tiny_folder, device="cuda")
    assert torch.cuda.memory_allocated() > before
    models.close()
    assert torch.cuda.memory_allocated() == before


def test_time_embedder_stays_in_float32(tiny_folder):
    with load_cosmos3(tiny_folder, device="cuda") as models:
        dtypes = {name: p.dtype for name, p in models.transformer.named_parameters()}
    assert {d for n, d in dtypes.items() if ".time_embedder." in n} == {torch.float32}
    assert {d for n, d in dtypes.items() if ".time_embedder." not in n} == {torch.bfloat16}


def test_what_does_not_fit_names_the_numbers(tiny_folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (2**20, 2**37))
    with pytest.raises(MemoryError, match=r"0\.0 GiB free.*resident.*split"):
        load_cosmos3(tiny_folder, device="cuda")


def test_a_loaded_gpu_chooses_split(tiny_folder, monkeypatch):
    with load_cosmos3(tiny_folder, device="cuda") as models:
        assert models.placement == "resident"
        und, gen = (sum(p.numel() for p in t.parameters()) * 2 for t in (models.transformer.und, models.transformer.gen))
        decoders = sum(p.numel() for m in (models.vae, models.avae) for p in m.parameters()) * 2
    enough_for_one = memory.MemoryNeed(und, gen, decoders).peak("split")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (enough_for_one, 2**37))
    monkeypatch.setattr(memory.MemoryNeed, "peak", lambda need, placement: enough_for_one + (placement == "resident"))
    with load_cosmos3(tiny_folder, device="cuda") as models:
        assert models.placement == "split"
    with pytest.raises(MemoryError, match="GiB free"):
        load_cosmos3(tiny_folder, device="cuda", placement="resident")


def test_attention_in_float32_does_not_build_the_whole_matrix():
    """20,000 queries and keys in 4 heads would be 6.4 GB."""
    q, k, v = (torch.randn(20_000, heads, 64, device="cuda") for heads in (4, 2, 2))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = attention(q, k, v, causal=False)
    assert torch.cuda.max_memory_allocated() - before < 500_000_000
    rows = torch.softmax(q[:5, 3] @ k[:, 1].T / 8, dim=-1) @ v[:, 1]
    assert (out[:5].unflatten(-1, (4, 64))[:, 3] - rows).abs().max() < 1e-4
