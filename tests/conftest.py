"""Small checkpoints that tests share."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels then run on the CPU

from cosmos3_lab import load_cosmos3
from cosmos3_lab.random_checkpoint import write_random_checkpoint

torch.set_num_threads(1)  # small tensors: a second thread only waits, most of all on a busy machine


def pytest_collection_modifyitems(items):
    """Skip GPU tests where there is no GPU, visibly."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU on this machine"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A random checkpoint in the Nano layout; do not write into it."""
    return write_random_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The random checkpoint, loaded in float32 on the CPU."""
    with load_cosmos3(tiny_folder, device="cpu", load_encoder=True) as models:
        yield models
