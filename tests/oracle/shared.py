"""What the tests against diffusers and their fixtures share: one small clip, its noise, and how far two results are apart."""

import sys
from pathlib import Path

import numpy as np
import torch

# `relative` is that of the benchmark which makes this comparison for any checkpoint.
sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from parity import relative  # noqa: F401

PROMPT, NEGATIVE = "A red kite over a beach.", "blurry"
CLIP = {"num_frames": 9, "height": 48, "width": 80, "fps": 16.0}
STEPS, SEED = 4, 42


def numpy_noise(*shape):
    return torch.from_numpy(np.random.RandomState(SEED).standard_normal(shape).astype(np.float32))
