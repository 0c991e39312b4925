"""Whether the kernels in `kernels.py` and `vae_kernels.py` can be used. They change results by rounding alone.

The environment variable `COSMOS3_PLAIN=1` keeps to the plain layers everywhere: to compare the two, to record inside a layer
without changing a bit of the run, or where Triton cannot compile (it needs a C compiler and Python's headers).
"""

import os
from importlib.util import find_spec

import torch
from torch import Tensor, nn

# Looked up once: it takes as long as starting a few kernels, and every layer asks.
INSTALLED = frozenset(name for name in ("triton", "flashinfer") if find_spec(name))


def can_fuse(x: Tensor) -> bool:
    """Whether there are an NVIDIA GPU and Triton (which comes with PyTorch on Linux), and no gradients are asked for.

    Args:
        x: what a layer is given.
    """
    return x.is_cuda and not torch.is_grad_enabled() and kernels_of(x.device) != "plain"


def is_watched(module: nn.Module) -> bool:
    """Whether somebody has put a hook inside of a module, on parts that its fused form does not call.

    Args:
        module: whose own hooks do not count: what goes in and comes out is the same.
    """
    return any(m._forward_hooks or m._forward_pre_hooks for child in module.children() for m in child.modules())


def kernels_of(device: torch.device) -> str:
    """What a run on this device may use: "plain", "triton" or "triton and flashinfer".

    Args:
        device: of the run.
    """
    if device.type != "cuda" or os.environ.get("COSMOS3_PLAIN", "") not in ("", "0") or "triton" not in INSTALLED:
        return "plain"
    hopper = "flashinfer" in INSTALLED and torch.cuda.get_device_capability(device) == (9, 0)
    return "triton and flashinfer" if hopper else "triton"
