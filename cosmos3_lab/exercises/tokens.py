"""The exercises of notebook 01: your own words among the tokens, the caption, rows of the embedding table.

Read next: `latents.py`, the exercises of notebook 02.
"""

import torch
from torch import Tensor

from cosmos3_lab.captions import cosmos3_generation_caption
from cosmos3_lab.exercises.framework import call, exercise, expect
from cosmos3_lab.prompt import TokenRow

ROWS = (
    TokenRow(0, 7, "<|im_start|>", "template"),
    TokenRow(1, 5, "a", "prompt"),
    TokenRow(2, 9, " red", "prompt"),
    TokenRow(3, 5, " ball", "prompt"),
    TokenRow(4, 4, ".", "metadata"),
    TokenRow(5, 9, "<|vision_start|>", "boundary"),
)


@exercise("01.1", hint="Every row has .id and .role; keep the ids of the rows whose role says that you wrote them.")
def own_words(answer: object) -> None:
    """Only what you wrote; the rest of the prompt comes from the template, the preset and the boundary."""
    found = call(answer, list(ROWS))
    expect(isinstance(found, list | tuple), f"got {type(found).__name__}, expected a list of token ids.")
    found = list(found)
    expect(all(isinstance(i, int) for i in found), f"got {found}, expected integers, the .id of each row.")
    expect(len(found) == 3, f"got {len(found)} tokens of a prompt of 3 (template, metadata and boundary are not yours).")
    expect(found == [5, 9, 5], f"got ids {found}, expected [5, 9, 5], in the order of the prompt and with repeats.")
    expect(list(call(answer, [ROWS[0]])) == [], "rows without a prompt should give an empty list.")


@exercise("01.2", hint='f"{seconds:.1f}" has one decimal; text.rstrip(".") takes full stops from the end; height comes first.')
def caption(answer: object) -> None:
    """The user text as the `native` preset writes it: what the model was told about clips in training, it is told here too."""
    size = {"num_frames": 189, "height": 720, "width": 1280, "fps": 24.0}
    found = call(answer, "a red ball", 189, 720, 1280, 24.0)
    expect(isinstance(found, str), f"got {type(found).__name__}, expected text.")
    expect(found.startswith("a red ball. "), f"got {found[:30]!r}, expected the prompt, a full stop and a space first.")
    expect("7.9 seconds" in found, f"got {found!r}, expected 189 frames at 24 fps to be 7.9 seconds, with one decimal.")
    expect("24 FPS" in found, f"got {found!r}, expected the frame rate as a whole number, 24 FPS.")
    expect("720x1280" in found, f"got {found!r}, expected 720x1280, height first.")
    for prompt in ("a red ball", "a red ball."):
        found, expected = call(answer, prompt, 189, 720, 1280, 24.0), cosmos3_generation_caption(prompt, **size)
        expect(found == expected, f"for {prompt!r} got {found!r}, expected {expected!r}.")


@exercise("01.3", hint="A tensor can be indexed with a tensor of integers: weight[ids] has the shape of ids and one more axis.")
def embedding(answer: object) -> None:
    """An embedding is a look-up: one row of the table for each id, the same row wherever the id stands."""
    weight, ids = torch.arange(30.0).view(10, 3), torch.tensor([[4, 0, 9, 4]])
    found = call(answer, weight, ids)
    expect(isinstance(found, Tensor), f"got {type(found).__name__}, expected a tensor.")
    shape = list(found.shape)
    expect(shape == [4, 3], f"got shape {shape} for 4 ids and rows of 3 numbers, expected [4, 3] (text_ids are [1, S]).")
    expect(torch.equal(found[0], found[3]), "the first and the last id are the same, expected the same row for both.")
    expect(torch.equal(found, weight[ids[0]]), f"got {found.tolist()}, expected rows 4, 0, 9, 4 of the table.")
