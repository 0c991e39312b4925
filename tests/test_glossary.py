"""The notebooks' README: its path is the folder's, and its glossary is the records' fields, no more and no fewer."""

import dataclasses
import re
from pathlib import Path

import pytest

import cosmos3_lab
from cosmos3_lab import generate, load_cosmos3

FOLDER = Path(__file__).parents[1] / "notebooks"
README = (FOLDER / "README.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"(?ms)^### ([\w.]+)\n(.*?)(?=^##|\Z)", README))
# The records that a reader of the notebooks meets.
RECORDS = [
    "Cosmos3TokenizedPrompt",
    "Cosmos3T2VRequest",
    "Latents",
    "Schedule",
    "Cosmos3Condition",
    "TokenLayout",
    "DenoiseInputs",
    "DenoiseState",
    "UniPCState",
    "GuidedVelocity",
    "StepRecord",
    "Cosmos3GenerationOutput",
    "Generation",
    "Region",
    "RunTree",
    "Branch",
    "CompareGrid",
    "GridCell",
    "Trace",
    "PromptWord",
    "Pass",
    "Activation",
    "LayerAttention",
    "WordEffects",
]
PROPERTY = " *p*"


def cells(text):
    """Rows of the tables in a text, without their heads."""
    lines = text.splitlines()
    heads = {n for i, line in enumerate(lines) if line.startswith("|---") for n in (i - 1, i)}
    return [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for i, line in enumerate(lines)
        if line.startswith("|") and i not in heads
    ]


def entries(record):
    """Names in the first column of a record's table, with whether they are marked as properties."""
    names = [row[0] for row in cells(SECTIONS[record])]
    found = {re.fullmatch(r"`(\w+)`( \*p\*)?", name)[1]: name.endswith(PROPERTY) for name in names}
    assert len(found) == len(names), "a field has two rows"
    return found


def members(record):
    """Public fields and properties of a record, with whether they are properties."""
    made = getattr(cosmos3_lab, record)
    fields = {field.name: False for field in dataclasses.fields(made) if not field.name.startswith("_")}
    return fields | {name: True for name, value in vars(made).items() if isinstance(value, property)}


def test_the_glossary_has_the_records_that_readers_meet():
    after = RECORDS.index("StepRecord") + 1
    assert list(SECTIONS) == [*RECORDS[:after], "StepRecord.rms", *RECORDS[after:]]


@pytest.mark.parametrize("record", RECORDS)
def test_the_glossary_is_the_records_fields(record):
    assert entries(record) == members(record)


def test_the_glossary_has_the_numbers_of_a_step(tiny_folder):
    with load_cosmos3(tiny_folder, device="cpu") as models:
        options = {"num_frames": 5, "height": 48, "width": 80, "num_inference_steps": 2, "guidance_scale": 3.0}
        record = generate(models, "a ball", progress=False, **options).records[-1]
    assert {f"video.{name}" for name in entries("StepRecord.rms")} == set(record.rms)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_entry_says_what_and_where(section):
    for name, shape, meaning, where in cells(SECTIONS[section]):
        assert shape, name
        assert meaning, name
        assert re.fullmatch(r"\[\d\d\]\(\d\d_\w+\.ipynb\)(, \[\d\d\]\(\d\d_\w+\.ipynb\))*", where), name
        for number, target in re.findall(r"\[(\d\d)\]\((\d\d)_", where):
            assert number == target, name


def test_functions_among_the_symbols_exist():
    table = README.split("## Symbols")[1].split("\n## ")[0]
    names = {name for row in cells(table) for name in re.findall(r"`(\w+)`", row[1])}
    fields = {name for record in RECORDS for name in members(record)}
    assert {name for name in names if not hasattr(cosmos3_lab, name)} <= fields
    assert {"log_snr", "velocity_to_x0"} <= names


def test_the_path_is_the_folder():
    path = README.split("## The path")[1].split("\n## ")[0]
    linked = re.findall(r"\]\((\d\d_\w+\.ipynb)\)", path)
    assert linked == sorted(file.name for file in FOLDER.glob("[0-9]*.ipynb"))
    assert [row[0] for row in cells(path)] == [f"{number:02}" for number in range(14)]
    for coming in re.findall(r"`(\d\d_\w+)` \|", path):
        assert not (FOLDER / f"{coming}.ipynb").exists(), "it is here: link it"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_links_lead_somewhere(target):
    assert (FOLDER / target).exists()
