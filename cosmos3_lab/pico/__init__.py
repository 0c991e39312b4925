"""Pico: a synthetic world of moving, sounding shapes, and a small Cosmos3 that was trained on it and is judged by it.

    scenes.py   what happens      ->  grammar.py  how it is told,  world.py  how it looks and sounds
    train.py    recipe.py (shapes, lengths)  ->  train_vae.py, train_avae.py, train_transformer.py (with flow.py: the loss)
                on data.py (scenes, captions, encoded clips), optimizers.py, graphs.py, batch.py (the towers on many samples)
                ->  export.py (the folder), pictures.py (curves and sheets)
    score.py    clips.py (many clips at once)  ->  judge.py (what a clip shows)  ->  how well it follows captions it never saw

`checkpoint/` is what `load_cosmos3()` loads, with `TRAINING.json` beside the weights.
"""
