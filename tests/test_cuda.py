"""On a GPU: the same numbers as on the CPU, the same bits in either placement, and memory that comes back."""

import gc

import pytest
import torch

from cosmos3_lab import generate, load_cosmos3, memory
from cosmos3_lab.layers import attention

pytestmark = pytest.mark.cuda

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


def test_split_placement_gives_the_same_bits(tiny_folder):
    resident = run(tiny_folder, device="cuda", placement="resident")
    split = run(tiny_folder, device="cuda", placement="split")
    assert split.manifest["placement"] == "split"
    assert torch.equal(resident.latents.video, split.latents.video)
    assert torch.equal(resident.latents.sound, split.latents.sound)
    assert (resident.output.frames == split.output.frames).all()


def test_split_placement_holds_one_tower_at_a_time(tiny_folder):
    with load_cosmos3(tiny_folder, device="cuda", placement="split") as models:
        devices = []
        for stage in ("und", "gen", "decode"):
            models.place(stage)
            devices.append([next(t.parameters()).device.type for t in (models.transformer.und, models.transformer.gen)])
    assert devices == [["cuda", "cpu"], ["cpu", "cuda"], ["cpu", "cpu"]]


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
