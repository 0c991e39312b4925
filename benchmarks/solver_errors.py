"""Solvers on pico: how far from the end of the flow each of them ends, by the number of evaluations.

    python benchmarks/solver_errors.py                 # writes benchmarks/results/solver_errors.json
    python benchmarks/solver_errors.py --reference     # writes cosmos3_lab/pico/solver_reference.safetensors: 500 steps of UniPC
    python benchmarks/solver_errors.py --figure-only   # draws the JSON to a PNG beside it

The first also compares the reference with two other long walks; an error below that distance says nothing.
"""

import argparse
import json
from pathlib import Path

import torch
from measuring import Results
from safetensors.torch import save_file

from cosmos3_lab import Solver, denoise, figures, load_cosmos3, prepare_denoise
from cosmos3_lab.files import replacing
from cosmos3_lab.solver_lab import (
    ALL_SOLVERS,
    REFERENCE_FILE,
    REFERENCE_STEPS,
    SolverError,
    load_reference,
    model_errors,
    reference_request,
)

EVALUATIONS = (8, 16, 32, 64, 128)
LONG_WALKS = ((Solver(order=3), REFERENCE_STEPS), (Solver("heun"), REFERENCE_STEPS))
RESULTS = Path(__file__).parent / "results" / "solver_errors.json"


def write_reference(models):
    inputs, state = prepare_denoise(models, reference_request(models), solver=Solver())
    for after, _ in denoise(models.transformer, inputs, state):
        state = after
    tensors = {name: getattr(state.latents, name).cpu().contiguous() for name in ("video", "sound")}
    with replacing(REFERENCE_FILE) as temporary:
        save_file(tensors, temporary, metadata={"fingerprint": models.fingerprint, "steps": str(REFERENCE_STEPS)})
    print(f"{REFERENCE_FILE.name}: {REFERENCE_FILE.stat().st_size} bytes")


def measure(models):
    results, request, reference = Results(RESULTS), reference_request(models), load_reference(models)
    results.put("checkpoint", {"name": models.defaults.name, "fingerprint": models.fingerprint})
    results.put("request", repr(request))
    walks = [(solver, n) for solver in ALL_SOLVERS for n in EVALUATIONS]
    for solver, n in (*walks, *LONG_WALKS):
        (e,) = model_errors(models, request, [solver], [n], reference)
        row = {"steps": e.steps, "evaluations": e.evaluations, "video": e.error, "sound": e.sound_error}
        results.put(f"{solver}/{n}", row)


def draw():
    found = json.loads(RESULTS.read_text())
    rows = [(solver, found[f"{solver}/{n}"]) for solver in ALL_SOLVERS for n in EVALUATIONS]
    errors = [SolverError(solver, row["steps"], row["evaluations"], row["video"], row["sound"]) for solver, row in rows]
    for modality in ("video", "sound"):
        ax = figures.plot_solver_errors(errors, modality=modality, title=f"pico, {modality}")
        ax.figure.savefig(RESULTS.with_name(f"solver_errors_{modality}.png"), dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", action="store_true", help="make the reference anew, and nothing else")
    parser.add_argument("--figure-only", action="store_true", help="draw what was measured before")
    asked = parser.parse_args()
    if asked.figure_only:
        return draw()
    with load_cosmos3("pico", device="cpu", dtype=torch.float32) as models:
        write_reference(models) if asked.reference else measure(models)


if __name__ == "__main__":
    main()
