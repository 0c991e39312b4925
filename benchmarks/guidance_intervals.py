"""When does pico need guidance? The judge's scores of clips that were guided in one part of the noise levels only.

    python benchmarks/guidance_intervals.py [--count 16] [--steps 12]

Captions with two things; every part is tried with the same captions and seeds. `passes` is the number of passes through the GEN
tower for one clip. JSON goes to benchmarks/results.
"""

import argparse

from measuring import Results

from cosmos3_lab import GuidanceInterval, Schedule, flow_schedule, load_cosmos3
from cosmos3_lab.guidance_scale import resolve_guidance
from cosmos3_lab.pico.clips import generate_clips
from cosmos3_lab.pico.score import aggregate, judge_pool, read_clips, unseen_prompts

PARTS = {"never": (0, 0), "always": (0, 1), "early": (0.9, 1), "late": (0, 0.9)}


def passes(scale, schedule: Schedule):
    guidance = resolve_guidance(scale, schedule.sigmas[:-1].tolist())
    return schedule.num_steps + sum(guidance.needs_uncond(step) for step in range(schedule.num_steps))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=16, help="captions")
    parser.add_argument("--steps", type=int, default=12)
    a = parser.parse_args()
    results, prompts = Results("benchmarks/results/guidance_intervals.json"), unseen_prompts(a.count, things=2)
    with load_cosmos3("pico") as models, judge_pool() as pool:
        w, schedule = models.defaults.guidance_scale, flow_schedule(a.steps, flow_shift=models.defaults.flow_shift)
        results.put("setting", {"fingerprint": models.fingerprint, "clips": a.count, "steps": a.steps, "guidance_scale": w})
        for name, (low, high) in PARTS.items():
            scale = 1.0 if name == "never" else GuidanceInterval(w, low, high)
            options = {"num_inference_steps": a.steps, "guidance_scale": scale, "batch_size": 8}
            clips = generate_clips(models, [p.caption for p in prompts], seeds=range(a.count), **options)
            scores = aggregate([p.scene for p in prompts], read_clips(clips, pool))
            row = {"sigma": [low, high], "passes": passes(scale, schedule), "followed": scores.followed.value}
            results.put(name, row | {attribute: f.value for attribute, f in scores.right.items()})


if __name__ == "__main__":
    main()
