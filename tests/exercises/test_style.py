"""What a learner reads when an answer passes has one style: plain sentences about the answer, whatever the notebook."""

from importlib import import_module

import pytest

from cosmos3_lab.exercises import framework


def names():
    for module in framework.MODULES.values():
        import_module(f"cosmos3_lab.exercises.{module}")
    return sorted(framework.EXERCISES)


def test_every_notebook_has_exercises():
    assert {name.split(".")[0] for name in names()} == set(framework.MODULES)


@pytest.mark.parametrize("name", names())
def test_success_is_one_paragraph_that_says_something(name):
    message = framework.find(name).test.__doc__
    assert message[0].isupper() or message[0].isdigit()
    assert message.endswith(".")
    assert "\n" not in message
    assert not message.startswith(("Right", "Correct", "Well done"))  # the verdict has said "passed"


@pytest.mark.parametrize("name", names())
def test_hints_are_sentences(name):
    assert framework.find(name).hint.rstrip().endswith((".", "?"))


def test_code_between_backticks_is_code_in_a_notebook_and_the_rest_is_escaped():
    assert "<code>a &lt; b</code> &amp; c" in framework.Hint("00.1", "`a < b` & c")._repr_html_()
