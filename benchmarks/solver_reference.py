"""Where the flow of pico ends: 500 steps of UniPC, written beside the checkpoint for `cosmos3_lab.solver_lab`.

    python benchmarks/solver_reference.py            # writes cosmos3_lab/pico/solver_reference.safetensors
    python benchmarks/solver_reference.py --check    # writes nothing; says how far two other long walks end from the file's

The second line is how good the reference is: below that distance, an error says nothing.
"""

import argparse

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from cosmos3_lab import denoise, load_cosmos3, prepare_denoise
from cosmos3_lab.files import replacing
from cosmos3_lab.solver_lab import REFERENCE_FILE, REFERENCE_STEPS, load_reference, reference_request, relative_error
from cosmos3_lab.solvers import Solver

CHECKS = ((Solver(order=3), REFERENCE_STEPS), (Solver("heun"), REFERENCE_STEPS // 2))


def end_of_walk(models, solver, steps):
    inputs, state = prepare_denoise(models, reference_request(models, num_inference_steps=steps), solver=solver)
    for after, _ in tqdm(denoise(models.transformer, inputs, state), total=steps, desc=str(solver)):
        end = after.latents
    return end.to("cpu")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the file with other long walks")
    check = parser.parse_args().check
    with load_cosmos3("pico", device="cpu", dtype=torch.float32) as models:
        if not check:
            end = end_of_walk(models, Solver(), REFERENCE_STEPS)
            with replacing(REFERENCE_FILE) as temporary:
                tensors = {"video": end.video.contiguous(), "sound": end.sound.contiguous()}
                save_file(tensors, temporary, metadata={"fingerprint": models.fingerprint, "steps": str(REFERENCE_STEPS)})
            print(f"{REFERENCE_FILE.name}: {REFERENCE_FILE.stat().st_size} bytes")
            return
        reference = load_reference(models)
        for solver, steps in CHECKS:
            end = end_of_walk(models, solver, steps)
            errors = [relative_error(getattr(end, name), getattr(reference, name)) for name in ("video", "sound")]
            print(f"{solver}, {steps} steps: video {errors[0]:.2e}, sound {errors[1]:.2e}")


if __name__ == "__main__":
    main()
