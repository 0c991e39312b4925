"""Pico: a synthetic world of moving, sounding shapes, and what it takes to train and judge a small Cosmos3 on it.

`scenes.py` (what happens) -> `grammar.py` (how it is told) and `world.py` (how it looks and sounds) -> `judge.py` (what a clip
shows). `checkpoint/` is what `load_cosmos3()` loads. The training is still to come.
"""
