"""The exercises of the notebooks: `hint("03.1")` helps, `check("03.1", answer)` says what is right or which property fails.

    check(name, answer)  ->  Verdict: passed or not, one sentence for each property that was looked at
    hint(name)           ->  Hint: how to begin

Every notebook has a module here with its exercises. An exercise is a function that takes the answer, a value or a function of
the learner, and calls `expect` for one property after another; the first that fails ends it.

Read next: `quickstart.py`, the exercises of notebook 00.
"""

from cosmos3_lab.exercises.framework import Hint, Verdict, check, hint

__all__ = ["Hint", "Verdict", "check", "hint"]
