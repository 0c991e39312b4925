"""Seconds and memory at full Nano size beside diffusers, in one run on one GPU, with random weights made there.

    python benchmarks/nano_h200.py [--sizes 480x832x49,720x1280x93,720x1280x189] [--only plain,lab,...] [--tiny]

    plain             the layers as they are written in towers.py (COSMOS3_PLAIN=1)
    lab               what runs on a GPU: kernels between the products, cuDNN's attention
    lab flashinfer    with the optional extra, where it is installed
    lab fp8, lab fp8 flashinfer      the same with the layers' matrices in fp8 (lossy)
    diffusers

fp8 rows are measured after UND has left the GPU, so that their peaks are lower by its 15 GiB too. T2AV, 200 prompt tokens, 3400
negative tokens, guidance 6. Rows as in the references' measurements: `full_step/SIZE` (both
branches, guidance, solver; ours also with its record), `encode_condition/SIZE` (both prompts), `vae_decode/SIZE`,
`avae_decode/SIZE`. Every repetition's milliseconds are kept, and the peak of each row. diffusers runs through its pipeline's own
call, with steps and decoders timed from its callbacks. Prints one table.
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from contextlib import contextmanager
from dataclasses import asdict

import torch
from measuring import Results, peak_gpu
from nano_parts import inputs_and_state, random_module
from rich.console import Console
from rich.table import Table

from cosmos3_lab import layers
from cosmos3_lab.denoise import denoise_step
from cosmos3_lab.quantized import QuantizedLinear, quantize_tower
from cosmos3_lab.random_checkpoint import RECIPES
from cosmos3_lab.sizes import pixel_to_latent_shape, sound_latent_frames
from cosmos3_lab.sound_avae import SoundAVAE, decode_sound
from cosmos3_lab.towers import Cosmos3Transformer
from cosmos3_lab.video_vae import VideoVAE, iter_decode_video, use_channels_last

PROMPT_TOKENS, NEGATIVE_TOKENS, STEPS, FPS = 200, 3400, 5, 24.0


class Rows:
    """Milliseconds and peaks by row and by who was measured."""

    def __init__(self, results):
        self.results, self.rows = results, {}

    def put(self, key, who, milliseconds, peak):
        found = {
            "ms": [round(ms, 2) for ms in milliseconds],
            "median_ms": round(statistics.median(milliseconds), 2),
            "peak_gib": peak,
        }
        self.rows.setdefault(key, {})[who] = found
        self.results.put(key, self.rows[key])

    def table(self):
        who = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        table = Table("median ms (peak GiB reserved)", *who)
        for key, row in self.rows.items():
            table.add_row(key, *(f"{row[w]['median_ms']:,.1f} ({row[w]['peak_gib'][1]:.1f})" if w in row else "" for w in who))
        return table


@contextmanager
def timed(milliseconds):
    wait()
    begin = time.perf_counter()
    yield
    wait()
    milliseconds.append(1e3 * (time.perf_counter() - begin))


def wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def repeated(rows, key, who, fn, repeats, warmup=1):
    for _ in range(warmup):
        fn()
    milliseconds = []
    peak_gpu(reset=True)
    for _ in range(repeats):
        with timed(milliseconds):
            fn()
    rows.put(key, who, milliseconds, peak_gpu(reset=True))


def shapes(size):
    height, width, frames = (int(n) for n in size.split("x"))
    return pixel_to_latent_shape(frames, height, width), sound_latent_frames(frames, FPS)


# ------------------------------------------------------------------------------------------------------------ ours


WAYS = ("plain", "lab", "lab flashinfer", "lab fp8", "lab fp8 flashinfer")


@contextmanager
def way_of(way):
    """The layers and the attention that a way uses."""
    kept, found = layers.has_flash_attention_3, layers.has_flash_attention_3 if "flashinfer" in way else lambda q: False
    layers.has_flash_attention_3, os.environ["COSMOS3_PLAIN"] = found, "1" if way == "plain" else ""
    try:
        yield
    finally:
        layers.has_flash_attention_3 = kept
        os.environ["COSMOS3_PLAIN"] = ""


def measure_lab(rows, recipe, sizes, device, dtype, ways):
    transformer = random_module(lambda: Cosmos3Transformer(recipe.transformer), device, dtype)
    transformer.gen.time_embedder.float()
    given = {}
    for size in sizes:
        again = lambda size=size: inputs_and_state(transformer, *shapes(size), device)  # noqa: E731
        with way_of("lab"):
            repeated(rows, f"encode_condition/{size}", "lab", again, 2)
        given[size] = again()
    for way in ways:
        if "fp8" in way and not isinstance(transformer.gen.layers[0].mlp_moe_gen.gate_proj, QuantizedLinear):
            transformer.und.to_empty(device="meta")  # both forms of GEN would not fit an H100 beside it
            quantize_tower(transformer.gen, "fp8", device=device, home=device)
        for size, (inputs, state) in given.items():
            with way_of(way):
                for _ in range(2):  # until the history is full: corrector and predictor of order 2
                    state = denoise_step(transformer, inputs, state)[0]
                repeated(rows, f"full_step/{size}", way, lambda i=inputs, s=state: denoise_step(transformer, i, s), 3, warmup=0)


def measure_decoders(rows, recipe, sizes, device, dtype):
    vae = random_module(lambda: VideoVAE(recipe.vae, with_encoder=False), device, dtype)
    use_channels_last(vae)
    avae = random_module(lambda: SoundAVAE(recipe.sound), device, dtype)
    for size in sizes:
        shape, n_sound = shapes(size)
        z = torch.randn(1, recipe.vae.z_dim, *shape, device=device)
        for way in ("plain", "lab"):
            with way_of(way):
                list(iter_decode_video(vae, z[:, :, :3]))
                repeated(rows, f"vae_decode/{size}", way, lambda z=z: [None for _ in iter_decode_video(vae, z)], 2, warmup=0)
        sound = torch.randn(1, n_sound, recipe.transformer.sound_dim, device=device)
        repeated(rows, f"avae_decode/{size}", "lab", lambda s=sound: decode_sound(avae, s), 5)


# ------------------------------------------------------------------------------------------------------- diffusers


class RandomIds:
    """Stands in for the tokenizer: as many ids as the measurement asks for."""

    eos_token_id = 2

    def __init__(self, vocab_size):
        self.vocab_size, self.calls = vocab_size, 0

    def convert_tokens_to_ids(self, token):
        return 3

    def apply_chat_template(self, conversation, **options):
        wanted = (PROMPT_TOKENS, NEGATIVE_TOKENS)[self.calls % 2] - 2  # the pipeline adds two
        self.calls += 1
        return argparse.Namespace(input_ids=torch.randint(4, self.vocab_size, (wanted,)).tolist())


def build_pipeline(recipe, device, dtype):
    import diffusers
    from diffusers.models.autoencoders.autoencoder_cosmos3_audio import Cosmos3AVAEAudioTokenizer

    from cosmos3_lab.layout import NANO_SCHEDULER, transformer_json, vae_json

    def build(kind, config, **options):
        torch.set_default_dtype(dtype)  # or 16B parameters would be made in float32 first
        with torch.device(device):
            module = kind.from_config(json.loads(json.dumps(config)), **options).eval().requires_grad_(False)  # tuples to lists
        torch.set_default_dtype(torch.float32)
        for p in module.parameters():
            p.normal_(0, 0.02) if p.ndim > 1 else p.fill_(1.0)
        return module

    transformer = build(diffusers.Cosmos3OmniTransformer, transformer_json(recipe.transformer))
    transformer.time_embedder.float()
    c, rotary = recipe.transformer, transformer.rotary_emb  # whose table `.to` has rounded; the pipeline's loader keeps it exact
    exponent = torch.arange(0, c.head_dim, 2, dtype=torch.float32, device=device) / c.head_dim
    rotary.inv_freq = c.rope_theta**-exponent
    pipe = diffusers.Cosmos3OmniPipeline(
        transformer=transformer,
        text_tokenizer=RandomIds(c.vocab_size),
        vae=build(diffusers.AutoencoderKLWan, vae_json(recipe.vae)),
        scheduler=diffusers.UniPCMultistepScheduler.from_config(NANO_SCHEDULER),
        sound_tokenizer=build(Cosmos3AVAEAudioTokenizer, asdict(recipe.sound), encoder_enabled=False),
        enable_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def measure_diffusers(rows, recipe, sizes, device, dtype):
    pipe = build_pipeline(recipe, device, dtype)
    decoded = {"vae_decode": [], "avae_decode": []}
    pipe.vae.decode = timing(pipe.vae.decode, decoded["vae_decode"])
    pipe.decode_sound = timing(pipe.decode_sound, decoded["avae_decode"])
    for size in sizes:
        height, width, frames = (int(n) for n in size.split("x"))
        ends, peaks = [], []

        def step_ended(_pipe, _index, _timestep, values, ends=ends, peaks=peaks):
            wait()
            ends.append(time.perf_counter())
            peaks.append(peak_gpu(reset=len(ends) == STEPS))
            return values

        peak_gpu(reset=True)
        pipe(
            "x",
            negative_prompt="y",
            height=height,
            width=width,
            num_frames=frames,
            fps=FPS,
            num_inference_steps=STEPS,
            guidance_scale=6.0,
            enable_sound=True,
            output_type="pt",
            callback_on_step_end=step_ended,
        )
        rows.put(f"full_step/{size}", "diffusers", [1e3 * (b - a) for a, b in zip(ends[1:], ends[2:], strict=False)], peaks[-1])
        for key, milliseconds in decoded.items():
            rows.put(f"{key}/{size}", "diffusers", milliseconds[:], peak_gpu())
            milliseconds.clear()


def timing(decode, milliseconds):
    def timed_decode(*args, **options):
        with timed(milliseconds):
            return decode(*args, **options)

    return timed_decode


# ------------------------------------------------------------------------------------------------------------ main


def machine():
    query = ["nvidia-smi", "--query-gpu=name,clocks.sm,clocks.mem,power.limit,temperature.gpu", "--format=csv,noheader"]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    gpu = subprocess.run(query, capture_output=True, text=True).stdout.strip() if torch.cuda.is_available() else "none"
    return {"gpu, clocks, power limit, temperature": gpu, "commit": commit}


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="480x832x49,720x1280x93,720x1280x189")
    parser.add_argument("--only", default=",".join((*WAYS, "diffusers")))
    parser.add_argument("--tiny", action="store_true", help="tiny model, to try the script")
    parser.add_argument("--out", default="benchmarks/results/nano_h200.json")
    a = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    recipe, results, sizes, only = RECIPES["tiny" if a.tiny else "nano"], Results(a.out), a.sizes.split(","), a.only.split(",")
    rows = Rows(results)
    torch.manual_seed(0)
    results.put("machine", machine())
    ways = [way for way in WAYS if way in only]
    if ways:
        measure_decoders(rows, recipe, sizes, device, dtype)
        measure_lab(rows, recipe, sizes, device, dtype, ways)
    if "diffusers" in only:
        measure_diffusers(rows, recipe, sizes, device, dtype)
    results.put("machine at the end", machine())
    Console(width=140).print(rows.table())


if __name__ == "__main__":
    main()
