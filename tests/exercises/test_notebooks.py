"""The notebooks have one frame: the story with this notebook's arrow in bold, hints after the exercises, where to go on."""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
STORY = "prompt → token ids → text K/V → noise → (velocity → guidance → solver step) × n → latents → pixels and waveform → mp4"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("[0-9]*.ipynb"))


def sources(path):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def title(path):
    return sources(path)[0].splitlines()[0]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_story_stands_under_the_title_with_an_arrow_in_bold(name):
    story = sources(FOLDER / f"{name}.ipynb")[0].splitlines()[2]
    assert story.replace("*", "") == STORY
    assert re.fullmatch(r"\*[^*].*\*\*.+\*\*.*\*|\*\*\*.+\*\*.*\*", story)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_hints_come_after_the_exercises(name):
    *_, stuck, hint, last = sources(FOLDER / f"{name}.ipynb")
    assert stuck == "Stuck? There is a hint for each:"
    assert hint.startswith(f'hint("{name[:2]}.1")')
    assert last.startswith("## Read next\n")


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_end_leads_to_the_next_notebook_and_the_solutions(name):
    last = sources(FOLDER / f"{name}.ipynb")[-1]
    assert f"[`solutions/{name}`](solutions/{name}.ipynb)" in last
    for following in NOTEBOOKS[NOTEBOOKS.index(name) + 1 :][:1]:
        assert f"[`{following}`]({following}.ipynb)" in last
    for module in re.findall(r"`(cosmos3_lab/[\w/]+\.py)`", last):
        assert (FOLDER.parent / module).is_file()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_named_in_the_text_are_links(name):
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert not re.findall(r"(?<!\[)\b[Nn]otebook \d\d", text)
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (FOLDER / target).exists(), target


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_solutions_say_which_notebook_they_belong_to(name):
    assert re.fullmatch(rf"# Solutions of {name[:2]} · [A-Z].+[^.?]", title(FOLDER / "solutions" / f"{name}.ipynb"))
