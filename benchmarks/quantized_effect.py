"""What 8-bit layers do to pico: how far each step's velocity is off, and what the judge says of the clips.

    python benchmarks/quantized_effect.py [--count 384] [--prompts 8] [--device auto]

All kinds see the same noisy latents, those of a run in the dtype of the models (bfloat16 on a GPU). Velocities are compared
after guidance: relative error per step, median over the prompts. The scores are those of `cosmos3_lab.pico.score` for one thing.
"""

import argparse
import statistics

from measuring import Results

from cosmos3_lab.checkpoint import load_cosmos3
from cosmos3_lab.denoise import denoise, denoise_step, prepare_denoise
from cosmos3_lab.pico.clips import generate_clips
from cosmos3_lab.pico.score import KINDS, aggregate, judge_pool, read_clips, unseen_prompts
from cosmos3_lab.prepare import prepare_request

KINDS_OF_WEIGHTS = (None, "int8", "fp8")


def away(found, expected):
    pairs = (getattr(found, name) for name in ("video", "sound")), (getattr(expected, name) for name in ("video", "sound"))
    return [float((a - b).norm() / b.norm()) for a, b in zip(*pairs, strict=True)]


def errors_by_step(models, rounded, captions):
    """`[(video, sound)]` for each step, the median over the captions."""
    rows = []
    for caption in captions:
        request = prepare_request(models, caption, with_sound=True)
        inputs, state = prepare_denoise(models, request)
        other, _ = prepare_denoise(rounded, request)
        row = []
        for after, record in denoise(models.transformer, inputs, state):
            guided = denoise_step(rounded.transformer, other, state)[1].velocity.guided
            row.append(away(guided, record.velocity.guided))
            state = after
        rows.append(row)
    steps = zip(*rows, strict=True)
    return [[round(statistics.median(values), 4) for values in zip(*step, strict=True)] for step in steps]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=384, help="clips that are judged")
    parser.add_argument("--prompts", type=int, default=8, help="whose velocities are compared")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", default="benchmarks/results/quantized_effect.json")
    a = parser.parse_args()
    results, prompts = Results(a.out), unseen_prompts(a.count, **KINDS["one thing"])
    captions = [prompt.caption for prompt in prompts]
    with load_cosmos3("pico", device=a.device) as models, judge_pool() as pool:
        for kind in KINDS_OF_WEIGHTS:
            name = kind or str(models.transformer.dtype).removeprefix("torch.")
            with load_cosmos3("pico", device=a.device, quantize=kind) as rounded:
                if kind:
                    errors = errors_by_step(models, rounded, captions[: a.prompts])
                    results.put(f"velocity_error_by_step_video_sound/{name}", errors)
                readings = read_clips(generate_clips(rounded, captions, seeds=range(a.count)), pool)
            scores = aggregate([prompt.scene for prompt in prompts], readings)
            row = {"everything right": scores.followed.value, "in sync": scores.sync.value, "outline": scores.outline.value}
            results.put(f"judge/{name}", {k: round(v, 4) for k, v in row.items() if v is not None} | {"clips": a.count})


if __name__ == "__main__":
    main()
