"""Whether the kernels in `kernels.py` and `vae_kernels.py` can be used. They change results by rounding alone.

The environment variable `COSMOS3_PLAIN=1` keeps to the plain layers everywhere, to compare the two.
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor


def can_fuse(x: Tensor) -> bool:
    """Whether there are an NVIDIA GPU and Triton (which comes with PyTorch on Linux), and no gradients are asked for.

    Args:
        x: what a layer is given.
    """
    wanted = x.is_cuda and not torch.is_grad_enabled() and os.environ.get("COSMOS3_PLAIN", "") in ("", "0")
    return wanted and find_spec("triton") is not None
