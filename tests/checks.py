"""What several test files check in the same way."""

import weakref

import pytest
import torch

from cosmos3_lab import CheckpointError, reuse


def refused(*words, call):
    """The message of the one CheckpointError that `call` raises: a single line with all the words."""
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


def only_one_prompt_fits(monkeypatch):
    """Encoding runs out of memory at the second prompt; gives a list with a weak reference to the first one's K/V."""
    held, encode = [], reuse.encode_prompts

    def fill(*args):
        if held:
            raise torch.OutOfMemoryError("CUDA out of memory")
        cond, uncond = encode(*args)
        held.append(weakref.ref(cond))
        return cond, uncond

    monkeypatch.setattr(reuse, "encode_prompts", fill)
    return held
