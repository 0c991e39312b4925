"""Two of pico's 64 heads keep sound and picture together: blinded, or shown the frame before, and what the judge says of it.

    python benchmarks/pico_heads.py [--count 16] [--steps 14]

Captions that training never saw, one thing with event sounds. For each kind of patch: F1 of impacts seen and onsets heard,
milliseconds from each impact to the nearest onset, and the share of clips in which each attribute is right. Notebook 11 does the
same with two prompts.
"""

import argparse
from contextlib import ExitStack

import numpy as np
from measuring import Results

from cosmos3_lab import decode_latents, denoise, load_cosmos3, prepare_denoise, prepare_request
from cosmos3_lab.pico.judge import judge, read_clip
from cosmos3_lab.pico.score import unseen_prompts
from cosmos3_lab.probe import patch

LAYER, HEADS, GROUP = 4, [2, 3], 1  # the group of heads that own_moment of notebook 11 finds
ATTENTION = f"gen.layers.{LAYER}.self_attn"


def blind(heads, n_video, count):
    """The sound's queries of these heads become zero."""

    def fn(q):
        q = q.clone().unflatten(-1, (count, -1))
        q[n_video:, heads] = 0
        return q.flatten(-2)

    return fn


def late(group, latent_frames, n_video, per_frame, count):
    """What the video tokens say to a group of heads comes from an earlier latent frame (or, below 0, a later one)."""

    def fn(v):
        v = v.clone().unflatten(-1, (count, -1))
        v[:n_video, group] = v[:n_video, group].roll(per_frame * latent_frames, dims=0)
        return v.flatten(-2)

    return fn


def measure(models, prompts, patches, steps):
    """Means over the clips of the prompts."""
    sync, right, apart = [], {}, []
    for i, prompt in enumerate(prompts):
        request = prepare_request(models, prompt.caption, with_sound=True, num_inference_steps=steps, seed=100 + i)
        with ExitStack() as on:
            for name, fn in patches:
                on.enter_context(patch(models.transformer, name, fn))
            *_, (state, _) = denoise(models.transformer, *prepare_denoise(models, request))
        clip = decode_latents(models, state.latents, fps=models.defaults.fps)
        frames = np.moveaxis(clip.frames, -1, 0) / 255
        reading = read_clip(frames, clip.waveform, fps=clip.fps, sample_rate=clip.sample_rate)
        verdict = judge(prompt.scene, reading)
        sync.append(verdict.sync)
        for name, ok in verdict.right.items():
            right.setdefault(name, []).append(ok)
        inside = (0.2, reading.seconds - 0.26)  # a sound may be up to a latent frame late and still be heard
        events = [e for e in (reading.things[0].events if reading.things else ()) if inside[0] < e < inside[1]]
        apart += [
            min((o - e for o in reading.onsets), key=abs) for e in events if reading.onsets and 0.2 < e < reading.seconds - 0.26
        ]
    low, middle, high = np.percentile(apart, [25, 50, 75]) * 1000
    onset = {"median": round(float(middle)), "quartiles": [round(float(low)), round(float(high))], "impacts": len(apart)}
    return {
        "synchrony": round(float(np.mean(sync)), 3),
        "onset_after_impact_ms": onset,
        "right": {name: round(float(np.mean(values)), 3) for name, values in right.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--out", default="benchmarks/results/pico_heads.json")
    a = parser.parse_args()
    models, results = load_cosmos3("pico"), Results(a.out)
    sounding = (p for p in unseen_prompts(8 * a.count, things=1) if p.scene.sound in ("thud", "knock", "ping"))
    prompts = [p for p in sounding if p.scene.events][: a.count]
    c, grid = models.config, (9, 6, 6)
    n_video, per_frame = grid[0] * grid[1] * grid[2], grid[1] * grid[2]
    turn = {"n_video": n_video, "per_frame": per_frame, "count": c.num_key_value_heads}
    others = [h for h in range(c.num_attention_heads) if h not in HEADS]
    kinds = {
        "as it is": [],
        "blind: the two heads": [(f"{ATTENTION}.add_q_proj", blind(HEADS, n_video, c.num_attention_heads))],
        "blind: the other six heads of the layer": [(f"{ATTENTION}.add_q_proj", blind(others, n_video, c.num_attention_heads))],
        "one latent frame late": [(f"{ATTENTION}.add_v_proj", late(GROUP, 1, **turn))],
        "one latent frame early": [(f"{ATTENTION}.add_v_proj", late(GROUP, -1, **turn))],
        "another group one latent frame late": [(f"{ATTENTION}.add_v_proj", late(0, 1, **turn))],
    }
    results.put("setting", {"clips": len(prompts), "steps": a.steps, "layer": LAYER, "heads": HEADS})
    for name, patches in kinds.items():
        results.put(name, measure(models, prompts, patches, a.steps))


if __name__ == "__main__":
    main()
