"""What several test files check in the same way."""

import pytest

from cosmos3_lab import CheckpointError


def refused(*words, call):
    """The message of the one CheckpointError that `call` raises: a single line with all the words."""
    with pytest.raises(CheckpointError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message
