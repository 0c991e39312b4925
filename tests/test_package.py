"""The package as a whole: what importing it costs, who imports whom, and what is written down."""

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import cosmos3_lab

FOLDER = Path(cosmos3_lab.__file__).parent
FILES = {".".join(p.relative_to(FOLDER).with_suffix("").parts): p for p in sorted(FOLDER.rglob("*.py"))}
PUBLIC = {
    name: value
    for name, value in vars(cosmos3_lab).items()
    if not name.startswith("_") and not inspect.ismodule(value) and (inspect.isclass(value) or inspect.isfunction(value))
}
by_file = pytest.mark.parametrize("module", FILES)
by_name = pytest.mark.parametrize("name", PUBLIC)


def imports(module, *, nested=True):
    """Every module that this file names in an import, with its full name; `nested` includes those inside of functions."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def our_imports(module):
    """Names of the package's own modules that this file imports."""
    return {name.removeprefix("cosmos3_lab.") for name in imports(module)} & set(FILES)


# ------------------------------------------------------------------------------------------------------------ costs


def test_importing_the_package_is_light():
    code = "import sys, cosmos3_lab; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=FOLDER.parent)
    loaded = set(done.stdout.split())
    assert {"torch", "numpy", "cosmos3_lab"} <= loaded
    assert not loaded & {"diffusers", "transformers", "tokenizers", "accelerate", "av", "IPython", "matplotlib", "ipywidgets"}


def test_loading_is_light():
    """The tokenizer comes with the first prompt, and nothing pulls in PyTorch's compiler, which alone takes a second."""
    code = "import sys, cosmos3_lab; cosmos3_lab.load_cosmos3('pico'); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=FOLDER.parent)
    loaded = set(done.stdout.split())
    assert "safetensors" in loaded
    assert not loaded & {"transformers", "tokenizers", "torch._dynamo", "torch._inductor"}


@by_file
def test_no_module_imports_what_it_should_not(module):
    roots = {name.split(".")[0] for name in imports(module)}
    assert not roots & {"diffusers", "accelerate", "pickle", "cloudpickle", "dill", "marshal", "shelve", "beartype", "pytest"}


# ------------------------------------------------------------------------------------------------------------ graph

# Every module imports only from the rows above its own.
ROWS = [
    {"untrusted"},
    {"configs", "files", "figure_canvas", "showing", "timing", "transfer", "meter", "fusing", "interruption"},
    {"figure_style", "repr_html"},
    {"sizes", "quantized"},
    {"kernels"},
    {"vae_kernels"},
    {"fused_vae"},
    {"vae_blocks"},
    {"captions", "latents", "schedule", "positions", "layers", "video_vae", "sound_avae", "media"},
    {"fused"},
    {"unipc", "guidance_scale"},
    {"solvers"},
    {"prompt", "presets", "guidance", "towers", "weights"},
    {
        "records",
        "request",
        "transformer",
        "settings",
        "memory",
        "layout",
        "scan",
        "prompt_words",
        "bundle",
        "contact_sheet",
        "plain",
    },
    {"checkpoint", "random_checkpoint", "layer_graphs"},
    {"denoise", "inspection", "prepare", "costs", "decode"},
    {"branch", "manifest", "preview", "lessons", "solver_lab", "speed", "selftest", "passes", "edits", "reuse", "walks"},
    {"plan", "run", "probe", "attention_maps", "trace"},
    {"out_of_memory", "word_effects"},
    {"generate", "job", "tree", "grid"},
    {"replay"},
    {"schedule_figures", "latent_figures", "step_figures", "sound_figures", "lesson_figures", "tree_files"},
    {"explore_figures", "grid_sheet", "lens_figures"},
    {"figures", "widget_canvas", "widget_box", "repr_pictures", "panel_pictures"},
    {"widget_parts"},
    {"schedule_widgets", "latent_widgets", "step_widgets", "sound_widgets", "token_widgets", "lens_widgets", "panel_box"},
    {"player_widgets", "panel"},
    {"explore_widgets"},
    {"widgets"},
    {"repr_start"},
    {"repr_run"},
    {"reprs", "plan_table", "doctor"},
    {"cli"},
    {"__main__", "__init__"},
]


def test_the_import_graph_has_no_circle():
    order = list(TopologicalSorter({module: our_imports(module) for module in FILES}).static_order())
    assert set(order) == set(FILES)
    assert len(our_imports("denoise")) > 5  # the graph is really read


@pytest.mark.parametrize("row", range(len(ROWS)))
def test_imports_run_downward(row):
    above = set().union(*ROWS[:row])
    for module in ROWS[row]:
        assert our_imports(module) <= above, module


def test_the_rows_name_modules_that_exist():
    assert set().union(*ROWS) <= set(FILES)


@pytest.mark.parametrize("module", [m for m in FILES if m != "__init__"])
def test_nobody_imports_from_the_table_of_contents(module):
    assert "cosmos3_lab" not in imports(module)


# --------------------------------------------------------------------------------------------------------- docstrings


@by_file
def test_every_module_says_what_it_is(module):
    assert ast.get_docstring(ast.parse(FILES[module].read_text(encoding="utf-8")))


@by_name
def test_every_public_name_has_a_docstring(name):
    value = PUBLIC[name]
    assert "__doc__" in vars(value) if inspect.isclass(value) else value.__doc__
    assert not value.__doc__.startswith(f"{value.__name__}(")  # what a dataclass gets when nobody wrote one
    if inspect.isclass(value):
        members = {n: m.fget if isinstance(m, property) else m for n, m in vars(value).items() if not n.startswith("_")}
        methods = {n: m for n, m in members.items() if inspect.isroutine(m) and n != "forward"}
        assert [n for n, m in methods.items() if not m.__doc__] == []


def annotations(value):
    if dataclasses.is_dataclass(value):
        return [str(field.type) for field in dataclasses.fields(value)]
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        return [str(a) for a in (signature.return_annotation, *(p.annotation for p in signature.parameters.values()))]
    return []


def with_tensors():
    found = {name: [a for a in annotations(value) if re.search(r"\b(Tensor|ndarray)\b", a)] for name, value in PUBLIC.items()}
    return [(name, tensors) for name, tensors in found.items() if tensors]


@pytest.mark.parametrize(("name", "tensors"), with_tensors())
def test_tensors_have_their_shape_written_down(name, tensors):
    in_words = re.search(r"\[[^\]]+\]|shaped as|0-dim", PUBLIC[name].__doc__)
    assert in_words or any("jaxtyping." in a for a in tensors)


def listed_names(value):
    """Names under "Args:" or "Attributes:" of a docstring."""
    section = re.search(r"\n\s*(?:Args|Attributes):\n( +)(.*?)(\n\s*\n|\Z)", value.__doc__, re.DOTALL)
    if section is None:
        return set()
    entries = re.findall(rf"(?m)^{section[1]}([a-z0-9_, ]+):", section[1] + section[2])
    return {name for entry in entries for name in entry.split(", ")}


@pytest.mark.parametrize("name", [name for name, value in PUBLIC.items() if listed_names(value)])
def test_arguments_that_a_docstring_lists_are_all_there(name):
    assert listed_names(PUBLIC[name]) == {p for p in inspect.signature(PUBLIC[name]).parameters if not p.startswith("_")}


@by_file
def test_files_are_a_comfortable_read(module):
    assert len(FILES[module].read_text(encoding="utf-8").splitlines()) <= 400
