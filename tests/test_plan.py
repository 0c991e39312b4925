"""Plans: FLOPs as the formulas say, bytes as the allocator deals them out, sizes that fit where one does not."""

import json
import random
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from typer.testing import CliRunner

from cosmos3_lab.cli import app
from cosmos3_lab.costs import (
    NANO_TEXT_TOKENS,
    decode_cost,
    denoise_cost,
    encode_cost,
    make_clip,
    meta_models,
    nano_configs,
    parameter_bytes,
    parse_size,
)
from cosmos3_lab.memory import GIB
from cosmos3_lab.meter import MIB, CachingAllocator, Flops, Meter, peak_bytes
from cosmos3_lab.plan import CONTEXT_ROOM, count_text_tokens, find_machine, plan_run
from cosmos3_lab.settings import read_configs
from cosmos3_lab.speed import H100, Rates, measure_rates, read_rates

RATES = Rates(linear=1e9, attention=1e9, convolution=1e9, transfer=1e9, layer=0.0, source="made up")
SIZES = ["480x832x49", "720x1280x93", "720x1280x189"]


@pytest.fixture(scope="module")
def nano():
    configs = nano_configs()
    return configs, meta_models(configs, with_sound=True, dtype=torch.bfloat16)


@pytest.fixture
def tiny_configs(tiny_folder):
    return read_configs(tiny_folder)


# -------------------------------------------------------------------------------------------------------------- FLOPs

# From shared/bench/flops.py, whose formulas are written by hand: both branches with 200 and 3400 text tokens, as
# [linear and attention of a step, attention of a step, VAE decode, AVAE decode].
REFERENCE = {
    "480x832x49": (184160700858368, 41823811141632, 361828176752640, 1486965309440),
    "720x1280x93": (1243547839889408, 627263584468992, 1581853158604800, 2773762211840),
    "720x1280x189": (3647846724272128, 2415194857930752, 3210523715174400, 5633310883840),
}
TIME_EMBEDDING = 2 * 2 * (256 * 4096 + 4096 * 4096)  # left out there; of both branches


@pytest.mark.parametrize("size", SIZES)
def test_flops_of_nano_are_those_of_the_formulas(nano, size):
    configs, models = nano
    clip = make_clip(configs, *parse_size(size), with_sound=True)
    step, decode = (cost(models, clip, NANO_TEXT_TOKENS).flops for cost in (denoise_cost, decode_cost))
    total, attention, video, sound = REFERENCE[size]
    assert step == Flops(linear=float(total - attention + TIME_EMBEDDING), attention=float(attention))
    # There, attention within the frames of the VAE counts as video; here it has its own kind.
    assert decode.total == pytest.approx(video + sound, rel=1e-3)
    assert decode.convolution > 0.99 * decode.total


def test_flops_of_the_text_tower_are_those_of_the_formulas(nano):
    assert encode_cost(nano[1], NANO_TEXT_TOKENS).flops == Flops(linear=50009525452800.0, attention=3422040883200.0)


def test_tokens_of_nano(nano):
    layout = make_clip(nano[0], 720, 1280, 189, with_sound=True).layout
    assert (layout.n_video, layout.n_sound) == (44160, 197)
    assert make_clip(nano[0], 720, 1280, 191, with_sound=False).layout == replace(layout, n_sound=0)


def test_flops_add_up():
    a, b = Flops(1.0, 2.0, 3.0), Flops(4.0, 5.0, 6.0)
    assert (a + b, b - a, a * 2, b.total) == (Flops(5.0, 7.0, 9.0), Flops(3.0, 3.0, 3.0), Flops(2.0, 4.0, 6.0), 15)


# -------------------------------------------------------------------------------------------------------------- meter


def on_meta(*shape):
    return torch.empty(*shape, device="meta")


def test_products_and_convolutions_are_counted():
    with torch.device("meta"):
        layers = nn.Linear(3, 5), nn.Conv2d(3, 7, 3, padding=1), nn.ConvTranspose1d(4, 6, 2, stride=2)
    meter = Meter()
    with meter.watching():
        layers[0](on_meta(11, 3))
        layers[1](on_meta(1, 3, 10, 20))
        layers[2](on_meta(1, 4, 9))
    assert meter.flops == Flops(linear=2.0 * 11 * 3 * 5, convolution=2.0 * 200 * 7 * 27 + 2 * 9 * 4 * 6 * 2)


@pytest.mark.parametrize(("causal", "pairs"), [(False, 6 * 6), (True, 21)])
def test_attention_is_counted_by_pairs(causal, pairs):
    meter, q = Meter(), on_meta(1, 2, 6, 4)
    with meter.watching():
        F.scaled_dot_product_attention(q, q, q, is_causal=causal)
    assert meter.flops == Flops(attention=2.0 * pairs * (4 + 4) * 2)


def test_views_and_writes_in_place_take_no_memory():
    meter = Meter()
    with meter.watching():
        x = on_meta(256, 256)
        x.view(-1)[3:].add_(1)
        x.t().mul_(x)
    assert meter.events == [x.nbytes]


def test_memory_ends_with_the_last_tensor_that_uses_it():
    meter, size = Meter(), 2**20
    with meter.watching():
        x = on_meta(size // 4)
        part = x[:1]
        del x
        y = on_meta(size // 4)
        del part, y
    assert meter.events == [size, size, -1, -2]
    assert peak_bytes(meter.events) == 2 * size


def test_a_convolution_borrows_its_workspace():
    with torch.device("meta"):
        layer = nn.Conv1d(1, 1, 1, bias=False)
    meter = Meter(workspace=0.5)
    with meter.watching():
        x = on_meta(1, 1, 1000)
        y = layer(x)
    assert meter.events == [4000, 4000, 4000, -3]
    assert y.shape == x.shape


# ---------------------------------------------------------------------------------------------------------- allocator


@pytest.mark.parametrize(
    ("nbytes", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),
        (12 * MIB, 12 * MIB, 12 * MIB),
        (13 * MIB, 14 * MIB, 14 * MIB),
    ],
)
def test_sizes_of_segments_are_pytorchs(nbytes, allocated, reserved):
    memory = CachingAllocator()
    memory.allocate(nbytes)
    assert (memory.allocated, memory.reserved) == (allocated, reserved)


def test_a_rest_of_up_to_a_mib_stays_with_its_block():
    memory = CachingAllocator()
    first = memory.allocate(20 * MIB)
    memory.release(first)
    memory.allocate(19 * MIB)
    assert memory.allocated == 20 * MIB


def test_freed_memory_is_used_again_and_given_back_when_asked():
    memory = CachingAllocator()
    blocks = [memory.allocate(8 * MIB) for _ in range(2)]  # both from one segment of 20 MiB
    for block in blocks:
        memory.release(block)
    memory.allocate(18 * MIB)
    assert memory.reserved == 20 * MIB  # the halves had joined
    memory.release(memory.allocate(30 * MIB))
    memory.empty_cache()
    assert (memory.reserved, memory.peak_reserved) == (20 * MIB, 50 * MIB)


def test_whatever_comes_and_goes_nothing_overlaps_and_nothing_is_lost():
    rng, memory, alive = random.Random(0), CachingAllocator(), []
    for _ in range(2000):
        if alive and rng.random() < 0.5:
            memory.release(alive.pop(rng.randrange(len(alive))))
        else:
            alive.append(memory.allocate(int(2 ** rng.uniform(5, 26))))
        assert memory.allocated == sum(block.size for block in alive) <= memory.reserved
    spans = sorted((block.address, block.address + block.size) for block in alive)
    assert all(end <= begin for (_, end), (begin, _) in zip(spans, spans[1:], strict=False))
    for block in alive:
        memory.release(block)
    memory.empty_cache()
    assert (memory.allocated, memory.reserved) == (0, 0)


# --------------------------------------------------------------------------------------------------------------- plan


def test_memory_of_nano_is_near_what_was_measured(nano):
    """30.63 GiB reserved while denoising, measured at 7530eb7 with all weights on one H100."""
    plan = plan_run(nano[0], [(480, 832, 49)], gpu_memory=141, rates=RATES)
    denoise = plan.clips[0].resident.phases[1]
    assert denoise.peak / GIB == pytest.approx(30.63, rel=0.03)
    assert denoise.weights / GIB == pytest.approx(29.1, rel=0.01)


def test_a_16_gb_card_gets_split_placement():
    plan = plan_run(nano_configs(), [(480, 832, 49)], gpu_memory=16, rates=RATES)
    (clip,) = plan.clips
    assert plan.machine.free == 16 * GIB - CONTEXT_ROOM
    assert clip.chosen is clip.split
    assert clip.split.peak <= plan.machine.free < clip.resident.peak
    assert plan.fits


def test_what_does_not_fit_gets_other_sizes_that_do(tiny_configs):
    card = (CONTEXT_ROOM + 400 * MIB) / GIB
    plan = plan_run(tiny_configs, [(480, 640, 17), (960, 1280, 49)], gpu_memory=card, rates=RATES)
    small, large = plan.clips
    assert small.chosen is not None
    assert small.alternatives == ()
    assert large.chosen is None
    assert large.split.peak > plan.machine.free
    assert not plan.fits
    assert len({other.clip.height for other in large.alternatives}) == len(large.alternatives) > 0
    assert all(other.chosen is not None and other.chosen.peak <= plan.machine.free for other in large.alternatives)
    sizes = [other.clip.pixels for other in large.alternatives]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] < large.clip.pixels


def test_where_nothing_fits_nothing_is_offered():
    (clip,) = plan_run(nano_configs(), [(480, 832, 49)], gpu_memory=8, rates=RATES).clips
    assert clip.chosen is None
    assert clip.alternatives == ()


def test_a_large_gpu_keeps_everything(tiny_configs):
    (clip,) = plan_run(tiny_configs, gpu_memory=80, rates=RATES).clips
    assert clip.chosen is clip.resident
    assert clip.clip.name == "96x160x17"
    assert [phase.stage for phase in clip.resident.phases] == ["encode", "denoise", "decode"]


def test_seconds_are_work_over_rates(tiny_configs):
    (clip,) = plan_run(tiny_configs, gpu_memory=80, num_inference_steps=7, rates=RATES).clips
    denoise = clip.resident.phases[1]
    assert denoise.seconds == pytest.approx(7 * clip.step_flops.total / 1e9) == pytest.approx(7 * clip.step_seconds)
    assert clip.resident.seconds == pytest.approx(sum(phase.flops.total for phase in clip.resident.phases) / 1e9)
    for resident, split in zip(clip.resident.phases, clip.split.phases, strict=True):
        assert resident.moved == 0 < split.moved
        assert split.seconds - resident.seconds == pytest.approx(split.moved / 1e9)


def test_a_layer_has_a_least_time(tiny_configs):
    slow = replace(RATES, linear=1e30, attention=1e30, layer=0.5)
    (clip,) = plan_run(tiny_configs, gpu_memory=80, rates=slow).clips
    assert clip.step_seconds == 0.5 * 3 * 2  # three layers, two branches


def test_split_placement_moves_each_weight_once(tiny_configs):
    (clip,) = plan_run(tiny_configs, gpu_memory=80, rates=RATES).clips
    models = meta_models(tiny_configs, with_sound=True, dtype=torch.bfloat16)
    needed = sum(parameter_bytes([models.transformer.und.layers, models.transformer.gen, *models.decoders]))
    assert sum(phase.moved for phase in clip.split.phases) == needed


def test_silence_costs_less(tiny_configs):
    (heard,), (silent,) = (plan_run(tiny_configs, gpu_memory=80, rates=RATES, with_sound=sound).clips for sound in (True, False))
    assert silent.clip.layout.n_sound == 0
    assert silent.step_flops.total < heard.step_flops.total
    assert silent.resident.peak <= heard.resident.peak


def test_one_prompt_is_half_the_work(tiny_configs):
    (one,), (two,) = (plan_run(tiny_configs, gpu_memory=80, rates=RATES, text_tokens=n).clips for n in ((30,), (30, 30)))
    assert two.step_flops == one.step_flops * 2


def test_text_tokens_are_counted_with_the_checkpoints_tokenizer(tiny_configs):
    prompt, negative = count_text_tokens(tiny_configs)
    assert prompt > 10
    assert negative > 10
    unguided = replace(tiny_configs, defaults=replace(tiny_configs.defaults, guidance_scale=1.0))
    assert count_text_tokens(unguided) == (prompt,)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"sizes": [(97, 160, 17)]}, "multiple of 16"),
        ({"num_inference_steps": 0}, "at least one"),
        ({"text_tokens": ()}, "at least one"),
        ({"gpu_memory": 0}, "above 0"),
        ({"gpu_memory": float("nan")}, "above 0"),
    ],
)
def test_what_cannot_be_planned_is_refused(tiny_configs, asked, message):
    with pytest.raises(ValueError, match=message):
        plan_run(tiny_configs, **({"gpu_memory": 80, "rates": RATES} | asked))


def test_sound_that_is_not_there_is_refused(tiny_folder):
    with pytest.raises(ValueError, match="has none"):
        plan_run(read_configs(tiny_folder, with_sound=False), with_sound=True, gpu_memory=80, rates=RATES)


@pytest.mark.parametrize("text", ["", "720x1280", "720x1280x", "-1x2x3", "720 1280 189", "1e3x2x3", "720x1280x189x2"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="HEIGHTxWIDTHxFRAMES"):
        parse_size(text)


# -------------------------------------------------------------------------------------------------------------- rates


def test_rates_can_be_measured_here(tiny_configs):
    models = meta_models(tiny_configs, with_sound=True, dtype=torch.float32)
    clip = make_clip(tiny_configs, 32, 32, 5, with_sound=True)
    rates = measure_rates(models, clip, (20,), torch.device("cpu"))
    assert min(rates.linear, rates.attention, rates.convolution) > 1e6
    assert 0 < rates.layer < 1
    assert rates.transfer == float("inf")


def test_rates_are_found_in_results(nano, tmp_path):
    """In what the benchmark would have written on a device with these rates."""
    (configs, models), seconds = nano, {}
    for size in ("96x96x9", "480x832x49"):
        clip = make_clip(configs, *parse_size(size), with_sound=True)
        step, decode = denoise_cost(models, clip, NANO_TEXT_TOKENS).flops, decode_cost(models, clip, ()).flops
        seconds |= {f"full_step/{size}": H100.seconds(step), f"vae_decode/{size}": decode.convolution / H100.convolution}
    rows = {key: {"lab": {"median_ms": s * 1e3}, "diffusers": {}} for key, s in seconds.items()}
    (tmp_path / "nano.json").write_text(json.dumps(rows))
    rates = read_rates(tmp_path / "nano.json")
    for rate in ("linear", "attention", "convolution"):
        assert getattr(rates, rate) == pytest.approx(getattr(H100, rate), rel=1e-6)
    assert "nano.json" in rates.source


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"full_step/480x832x49": 1}', '{"full_step/1x1x1": 1, "vae_decode/1x1x1": 1}'])
def test_other_files_hold_no_rates(tmp_path, text):
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(ValueError, match=r"wrong\.json"):
        read_rates(tmp_path / "wrong.json")


# --------------------------------------------------------------------------------------------------------------- here


def test_without_a_gpu_the_cpu_is_planned_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine = find_machine()
    assert (machine.kind, machine.free, machine.dtype) == ("cpu", None, torch.float32)
    card = find_machine(24)
    assert (card.kind, card.device, card.dtype) == ("cuda", None, torch.bfloat16)


@pytest.mark.cuda
@pytest.mark.parametrize("tokens", [2000, 20000])
def test_a_layer_reserves_what_is_planned(monkeypatch, tokens):
    monkeypatch.setenv("COSMOS3_PLAIN", "1")  # it is the plain layers that are planned
    from cosmos3_lab.towers import Cosmos3Config, GENLayer, LayerKV, Rope

    def call(device):
        def make(*shape):
            return torch.empty(*shape, dtype=torch.bfloat16, device=device)

        with torch.device("meta"):  # made in float32 on the GPU, its weights would leave gaps, which the activations would fill
            layer = GENLayer(Cosmos3Config()).to(torch.bfloat16).to_empty(device=device)
        text, rope = LayerKV(make(200, 8, 128), make(200, 8, 128)), Rope(make(tokens, 64), make(tokens, 64))
        return lambda: layer(make(tokens, 4096), text, rope)

    meter, planned, run = Meter(), call("meta"), call("cuda")
    with meter.watching():
        planned()
    with torch.no_grad():
        run()  # cuBLAS takes its workspace
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_reserved()
        run()
    memory = CachingAllocator()
    memory.replay(meter.events)
    assert torch.cuda.max_memory_reserved() - before == pytest.approx(memory.peak_reserved, rel=0.1)


# ------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def call(monkeypatch, tmp_path):
    """The command's exit code and what it printed, in an empty folder and without a GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("COSMOS3_CHECKPOINT", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def run(*arguments):
        result = CliRunner().invoke(app, ["plan", *map(str, arguments)])
        return result.exit_code, re.sub(r"\x1b\[[0-9;]*m", "", result.output)

    return run


def test_the_command_plans_for_this_cpu(call, tiny_folder):
    code, printed = call("--checkpoint", tiny_folder, "--steps", 2)
    assert code == 0
    assert re.search(r"random-tiny: video with sound, 2 steps, [\d,]+ \+ [\d,]+ text tokens, float32, on\s+the\s+CPU", printed)
    assert "96x160x17" in printed
    assert re.search(r"encode.*\n.*denoise.*\n.*decode", printed)
    assert "measured on this CPU" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_the_command_plans_for_a_gpu_that_is_not_here(call, tiny_folder):
    code, printed = call("--checkpoint", tiny_folder, "--gpu-memory", 8, "--silent", "96x160x17", "32x32x1")
    assert code == 0
    assert "silent video" in printed
    assert "as on one H100" in printed
    assert len(re.findall(r"(?m)^ (96x160x17|32x32x1) .* resident", printed)) == 2
    assert "denoise" not in printed  # stages only for one size, or when asked
    assert "denoise" in call("--checkpoint", tiny_folder, "--gpu-memory", 8, "--phases", "96x160x17", "32x32x1")[1]


def test_the_command_says_what_fits_instead(call, tiny_folder):
    card = (CONTEXT_ROOM + 400 * MIB) / GIB
    code, printed = call("--checkpoint", tiny_folder, "--gpu-memory", card, "960x1280x49")
    assert code == 1
    assert "960x1280x49 does not fit, by" in printed
    assert re.search(r"(?m)^ 480x640x\d+ +\d+% .* (split|resident)", printed)


def test_nano_needs_no_folder(call):
    code, printed = call("--checkpoint", "nano", "--gpu-memory", 4, "32x32x1")
    assert code == 1
    assert "Cosmos3-Nano" in printed
    assert "weights alone take 13.0 GiB" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["100x100"], "HEIGHTxWIDTHxFRAMES"),
        (["100x96x9"], "multiple of 16"),
        (["--gpu-memory", "0"], "above 0"),
        (["--steps", "0"], "at least one"),
        (["--measured", "nothing.json"], "got nothing.json, expected JSON of benchmarks/nano_h200.py"),
        (["--checkpoint", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_mistakes_are_one_line(call, tiny_folder, arguments, message):
    code, printed = call("--checkpoint", tiny_folder, *arguments)
    assert code == 2
    assert printed.startswith("error: ")
    assert len(printed.strip().splitlines()) == 1
    assert message in printed
