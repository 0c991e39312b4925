"""What tests of pico share."""

import pytest

from cosmos3_lab import load_cosmos3


@pytest.fixture(scope="session")
def pico():
    """The checkpoint in the package, loaded in float32 on the CPU; do not change it."""
    with load_cosmos3("pico", device="cpu", load_encoder=True) as models:
        yield models
