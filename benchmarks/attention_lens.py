"""What looking inside costs at full Nano size, random weights made on the GPU (nothing is read from disk).

    python benchmarks/attention_lens.py [--size 720x1280x189] [--layer 17] [--tiny]

Seconds and extra memory of a `LayerAttention` for one layer, with 200 and 3400 text tokens; then a whole step ("plain", which
makes its record) beside one without its record, one whose record is kept as a summary, with summaries recorded (of every GEN
layer in three ways, of every GEN module), and with the attention of one layer.
"""

import argparse
import time

import torch
from measuring import GIB, Results, median_seconds, peak_gpu
from nano_parts import inputs_and_state, random_module

from cosmos3_lab.attention_maps import layer_attention, record_attention
from cosmos3_lab.denoise import denoise_step, guided_step
from cosmos3_lab.probe import activation_names, record
from cosmos3_lab.prompt_words import PromptWord
from cosmos3_lab.random_checkpoint import RECIPES
from cosmos3_lab.sizes import pixel_to_latent_shape, sound_latent_frames
from cosmos3_lab.towers import Cosmos3Transformer
from cosmos3_lab.transformer import embed_gen_tokens, predict_velocity, run_gen_layers


def make_words(s_text, tokens_a_word=2):
    starts = range(0, s_text, tokens_a_word)
    return tuple(PromptWord(f"word {i}", start, min(start + tokens_a_word, s_text), "prompt") for i, start in enumerate(starts))


def measure_layer(results, name, transformer, state, cond, layer):
    """Seconds and extra GiB for one layer and one branch."""
    tokens = embed_gen_tokens(transformer, state.latents, 500)
    x = run_gen_layers(transformer, tokens, cond, stop=1)
    words, module = make_words(cond.layout.s_text), transformer.gen.layers[layer]

    def look():
        return layer_attention(module, x, cond.cached_kv[layer], cond.freqs_gen, cond.layout, words)

    results.put(f"attention/{name}/seconds", median_seconds(look))
    if torch.cuda.is_available():
        peak_gpu(reset=True)
        before = torch.cuda.memory_allocated()
        seen = look()
        extra = torch.cuda.max_memory_allocated() - before
        results.put(f"attention/{name}/extra_gib", round(extra / GIB, 3))
        results.put(f"attention/{name}/result_gib", round(seen.nbytes / GIB, 3))


def measure_step(results, transformer, inputs, state, layer):
    """A step alone and under recordings, interleaved, so that a drift of the clock hits all alike."""
    names = [name for name in activation_names(transformer) if name.startswith("gen.")]

    def step():
        denoise_step(transformer, inputs, state)

    def recorded(names, **how):
        with record(transformer, names, inputs=inputs, **how):
            step()

    def attended():
        words = make_words(inputs.cond.layout.s_text)
        with record_attention(transformer, inputs, words=words, layers=[layer]):
            step()

    def bare():
        def predict(cond, latents, i):
            return predict_velocity(transformer, latents, int(inputs.schedule.timesteps[i]), cond).to(torch.float32)

        guided_step(predict, inputs.cond, inputs.uncond, inputs.guidance, inputs.preset, inputs.schedule, state)

    kinds = {
        "without_its_record": bare,
        "plain": step,
        "kept_as_summary": lambda: denoise_step(transformer, inputs, state)[1].keep("summary"),
        "rms_of_layers": lambda: recorded(["gen.layers.*"]),
        "rms_of_all_modules": lambda: recorded(names),
        "token_rms_of_layers": lambda: recorded(["gen.layers.*"], reduce="token_rms"),
        "frame_mean_of_layers": lambda: recorded(["gen.layers.*"], reduce="frame_mean"),
        "attention_of_one_layer": attended,
    }
    step()
    seconds = {name: [] for name in kinds}
    for _ in range(2):
        for name, run in kinds.items():
            seconds[name].append(timed(run))
    best = {name: min(values) for name, values in seconds.items()}
    results.put("step/seconds", {name: [round(v, 3) for v in values] for name, values in seconds.items()})
    results.put("step/share_added", {name: round(value / best["plain"] - 1, 4) for name, value in best.items()})


def timed(fn):
    """Wall-clock seconds until the GPU is done: what a reader waits for, the CPU's part included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    begin = time.perf_counter()
    fn()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="720x1280x189")
    parser.add_argument("--layer", type=int, default=17)
    parser.add_argument("--skip-step", action="store_true", help="only the attention of one layer (a step takes minutes)")
    parser.add_argument("--tiny", action="store_true", help="tiny model and clip, to try the script")
    parser.add_argument("--out", default="benchmarks/results/attention_lens.json")
    a = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    recipe, results = RECIPES["tiny" if a.tiny else "nano"], Results(a.out)
    height, width, frames = (int(n) for n in ("96x160x17" if a.tiny else a.size).split("x"))
    layer = min(a.layer, recipe.transformer.num_hidden_layers - 1)
    torch.manual_seed(0)

    transformer = random_module(lambda: Cosmos3Transformer(recipe.transformer), device, dtype)
    transformer.gen.time_embedder.float()
    shape, n_sound = pixel_to_latent_shape(frames, height, width), sound_latent_frames(frames, 24.0)
    inputs, state = inputs_and_state(transformer, shape, n_sound, device)
    results.put("layout", {"media_tokens": inputs.cond.layout.s_gen, "layer": layer, "size": f"{height}x{width}x{frames}"})
    with torch.no_grad():
        for name, cond in (("200 text tokens", inputs.cond), ("3400 text tokens", inputs.uncond)):
            measure_layer(results, name, transformer, state, cond, layer)
        if not a.skip_step:
            measure_step(results, transformer, inputs, state, layer)


if __name__ == "__main__":
    main()
