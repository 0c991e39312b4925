"""What SECURITY.md promises: no code from files, no network, no text as HTML, nothing written elsewhere, no paths given away."""

import ast
import dataclasses
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import ipywidgets
import pytest
import torch
from typer.testing import CliRunner

import cosmos3_lab
from cosmos3_lab import Schedule, generate, get_preset, panel_box, prepare_request, widgets
from cosmos3_lab.cli import app
from cosmos3_lab.panel_box import GenerationPanel
from cosmos3_lab.panel_pictures import empty_html, film_html, line_html, player_html, spectrogram_html
from cosmos3_lab.preview import LatentPreview
from cosmos3_lab.reprs import PAGES
from cosmos3_lab.showing import Shown
from cosmos3_lab.widget_box import descendants

ROOT = Path(__file__).parents[1]
PACKAGE = Path(cosmos3_lab.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# ------------------------------------------------------------------------------------------------------------- source

# Modules that run code, open connections or unpickle; their use anywhere in the package would be a mistake.
FORBIDDEN_IMPORTS = (
    {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "copyreg", "code", "codeop", "runpy", "ctypes", "cffi"}
    | {"subprocess", "multiprocessing", "pty", "socket", "socketserver", "ssl", "asyncio", "http", "urllib", "ftplib", "smtplib"}
    | {
        "requests",
        "httpx",
        "aiohttp",
        "urllib3",
        "huggingface_hub",
        "webbrowser",
        "xmlrpc",
        "telnetlib",
        "yaml",
        "tarfile",
        "zipfile",
    }
)
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
FORBIDDEN_ATTRIBUTES = (
    {"system", "popen", "execv", "execve", "spawnl", "fork", "startfile"},  # of os
    {"load", "save", "hub"},  # of torch: pickle, and downloads
)


def dotted(node):
    """`a.b.c` of an expression, "" where it is more than names."""
    if isinstance(node, ast.Attribute):
        before = dotted(node.value)
        return f"{before}.{node.attr}" if before else ""
    return node.id if isinstance(node, ast.Name) else ""


def suspicious(source):
    """Everything in a source that runs code, loads pickles or reaches out, as text."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"import {name}" for name in names if name.split(".")[0] in FORBIDDEN_IMPORTS]
        elif isinstance(node, ast.Call):
            name, keywords = dotted(node.func), {k.arg: k.value for k in node.keywords}
            if name in FORBIDDEN_CALLS:
                found.append(f"{name}(...)")
            if name.endswith(".from_pretrained") and name.startswith("Auto"):
                options = {key: getattr(value, "value", None) for key, value in keywords.items()}
                if options.get("local_files_only") is not True or options.get("trust_remote_code") is not False:
                    found.append(f"{name} that may ask the network")
            if name.endswith("import_module") and isinstance(node.args[0], ast.Name | ast.Attribute | ast.Call):
                found.append("import of a computed name")
            for key in ("shell", "allow_pickle", "trust_remote_code"):
                if key in keywords and getattr(keywords[key], "value", None) is not False:
                    found.append(f"{name}({key}=...)")
        if isinstance(node, ast.Attribute):
            for owner, names in zip(("os", "torch"), FORBIDDEN_ATTRIBUTES, strict=True):
                if dotted(node) in {f"{owner}.{name}" for name in names}:
                    found.append(dotted(node))
    return found


# The scores of pico's training spread over processes of this package's own functions.
EXCUSED = {"pico/score.py": ["import multiprocessing"]}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_source_runs_code_unpickles_or_reaches_out(path):
    assert suspicious(path.read_text(encoding="utf-8")) == EXCUSED.get(path.relative_to(PACKAGE).as_posix(), [])


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from urllib.request import urlopen",
        "def f():\n    import socket",
        "eval('1')",
        "exec(compile('1', 'x', 'exec'))",
        "os.system('ls')",
        "torch.load('x')",
        "torch.hub.load('x')",
        "np.load('x', allow_pickle=True)",
        "AutoTokenizer.from_pretrained('x', local_files_only=True)",
        "AutoTokenizer.from_pretrained('x', trust_remote_code=False)",
        "f(trust_remote_code=True)",
        "import_module(name)",
    ],
)
def test_the_search_finds(source):
    assert suspicious(source)


# ------------------------------------------------------------------------------------------------------------ network

# Every way out of Python is closed, before anything is imported; what tries one dies with its name.
GUARD = """
import sys
def closed(event, args):
    if event.split(".")[0] in ("socket", "subprocess", "urllib", "ftplib", "smtplib", "webbrowser", "pty"):
        if event not in ("socket.__new__", "socket.gethostname"):
            raise PermissionError(f"{event} {args}")
    if event in ("os.system", "os.exec", "os.posix_spawn", "pickle.find_class"):
        raise PermissionError(f"{event} {args}")
sys.addaudithook(closed)
"""


def run_closed(code, folder):
    environment = {**os.environ, "COSMOS3_CHECKPOINT": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", GUARD + code], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )


def test_generate_and_doctor_run_without_a_network(tmp_path):
    small = [
        "--sound",
        "--num-frames",
        "5",
        "--height",
        "32",
        "--width",
        "48",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--out",
        "made",
    ]
    code = f"""
from cosmos3_lab.cli import app
app(["generate", "a red circle", *{small!r}], standalone_mode=False)
app(["doctor", "--device", "cpu"], standalone_mode=False)
"""
    done = run_closed(code, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list((tmp_path / "made").rglob("*.mp4"))
    assert {p.name for p in tmp_path.iterdir()} == {"made"}  # nothing was written elsewhere


def test_the_guard_holds(tmp_path):
    done = run_closed("import socket; socket.create_connection(('127.0.0.1', 9))", tmp_path)
    assert done.returncode != 0
    assert "PermissionError" in done.stderr


# --------------------------------------------------------------------------------------------------------------- HTML

NASTY = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></textarea></title><iframe src=javascript:alert(1)>",
    "&lt;script&gt; &amp;#60;b&amp;#62; <b>bold</b>",
)
HOSTILE = " ".join(NASTY)
OURS = {"div", "span", "b", "i", "br", "p", "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "img", "video"}
OURS |= {"style", "code", "pre", "em", "strong", "small", "ul", "li", "audio", "source", "figure", "figcaption", "a"}


class Page(HTMLParser):
    """Notes tags and attributes that this package never writes, and links that lead somewhere."""

    def __init__(self, html):
        super().__init__()
        self.wrong, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in OURS:
            self.wrong.append(f"<{tag}>")
        for name, value in attrs:
            active = name.startswith("on") or name in ("srcdoc", "formaction", "href")
            if active or (name not in ("alt", "title", "aria-label") and "javascript:" in (value or "").lower()):
                self.wrong.append(f"<{tag} {name}={value!r:.60}>")
            if name == "src" and not (value or "").startswith("data:"):
                self.wrong.append(f"<{tag} src={value!r:.60}>")

    def handle_data(self, data):
        self.text += data


def harmless(html):
    assert Page(html).wrong == []


def test_the_reader_finds_what_is_not_escaped():
    for text in NASTY[:3]:
        assert Page(f"<div>{text}</div>").wrong
    assert Page(f'<div title="{NASTY[2]}">').wrong
    assert Page(f"<div title='{NASTY[3]}'>").wrong


@pytest.fixture(scope="module")
def hostile_run(tiny):
    """Texts of the user, of the checkpoint and of the recipe, all as bad as they can be."""
    preset = dataclasses.replace(get_preset("native"), name=HOSTILE, system_prompt=HOSTILE)
    small = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 2, "progress": False, "keep": "full"}
    run = generate(tiny, HOSTILE, negative_prompt=HOSTILE, with_sound=True, preset=preset, **small)
    return preset, run


def test_records_escape_what_they_show(tiny, hostile_run):
    preset, run = hostile_run
    named = dataclasses.replace(
        tiny, configs=dataclasses.replace(tiny.configs, defaults=dataclasses.replace(tiny.defaults, name=HOSTILE))
    )
    schedule = Schedule(torch.tensor([0.5, 0.0]), torch.tensor([500]), HOSTILE)
    step, inputs = run.records[1], run.inputs
    prompt = cosmos3_lab.Cosmos3TokenizedPrompt(inputs.request.text_ids, inputs.request.text_mask, HOSTILE)
    records = [
        named,
        prompt,
        inputs.request,
        run.latents,
        schedule,
        inputs.cond,
        inputs,
        run.state,
        run.state.video,
        step.velocity,
    ]
    records += [step, run.output, run, dataclasses.replace(run, path=Path(HOSTILE))]
    assert {type(r) for r in records} == set(PAGES)
    for record in records:
        assert isinstance(record, Shown)
        harmless(record._repr_mimebundle_()["text/html"])
    assert "<script>alert(1)</script>" in Page(prompt._repr_mimebundle_()["text/html"]).text  # shown, as text


def everything_in(widget):
    return [widget, *descendants(widget)]


def test_widgets_escape_what_they_show(tiny, hostile_run, monkeypatch, tmp_path):
    for module in ("schedule_widgets", "latent_widgets", "step_widgets", "player_widgets", "sound_widgets", "token_widgets"):
        monkeypatch.setattr(f"cosmos3_lab.{module}.has_front_end", lambda: True)
    preview = LatentPreview(torch.full((2, 3, 8), 0.1), torch.full((2, 3), 0.5), 0.0)
    monkeypatch.setattr(panel_box, "latent_preview", lambda models: preview)
    _, run = hostile_run
    view = widgets.token_view(tiny, HOSTILE, HOSTILE)
    panel = GenerationPanel(tiny, out=tmp_path / "out", keep="x0")
    panel.settings["prompt"].value = HOSTILE
    for name, value in {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 2, "with_sound": True}.items():
        panel.settings[name].value = value
    panel.run.click()
    assert panel.job.join(60.0)
    assert panel.job.error is None
    boxes = [view, panel, widgets.guidance_lens(run.records), widgets.latent_viewer(run.records, preview)]
    shown = [part for box in boxes for part in everything_in(box)]
    pages = [part.value for part in shown if isinstance(part, ipywidgets.HTML)]
    assert len(pages) >= 8
    for html in pages:
        harmless(html)
    listing = next(part for part in shown if isinstance(part, ipywidgets.Select))
    for at in range(0, len(listing.options), 7):  # the page of details for some tokens
        listing.value = at
        for part in everything_in(view):
            if isinstance(part, ipywidgets.HTML):
                harmless(part.value)
    assert not any(getattr(part, "description_allow_html", False) for part in shown)
    names = [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert names
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names), names  # nothing of the prompt is in a file name
    for box in boxes:
        box.close()


@pytest.mark.parametrize("text", NASTY)
def test_pieces_of_pages_escape(text, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"none")
    frames, sound = torch.zeros(2, 4, 4, 3).numpy(), torch.zeros(2, 4000).numpy()
    for html in (line_html(text), line_html(text, alarm=True), empty_html(text, 10), film_html(frames, text)):
        harmless(html)
    harmless(player_html(tmp_path / "clip.mp4", text, 32, 48))
    harmless(spectrogram_html(sound, 16000, text))


# -------------------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["../clip.mp4", "/etc/clip.mp4", "a/b.mp4", "clip.mp4\0", "", ".mp4/..", "clip.exe"])
def test_outputs_stay_in_the_chosen_folder(tiny, tmp_path, name):
    inside = tmp_path / "inside"
    small = {"num_frames": 1, "height": 32, "width": 48, "num_inference_steps": 1, "progress": False}
    with pytest.raises(ValueError, match="file name|null"):
        generate(tiny, "a ball", out=inside, name=name, **small)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_prompt_cannot_draw_in_the_terminal(tiny_folder, tmp_path):
    """rich markup and escape codes in a prompt come out as text."""
    words = "a [bold red]ball[/] [link=file:///etc/passwd]here[/link]"
    arguments = ["--checkpoint", str(tiny_folder), "--num-frames", "1", "--height", "32", "--width", "48", "--steps", "1"]
    ran = CliRunner().invoke(app, ["generate", words, *arguments, "--out", str(tmp_path)])
    assert ran.exit_code == 0, ran.output
    assert words in ran.output


# -------------------------------------------------------------------------------------------------------------- paths

MACHINE = re.compile(r"(?<![\w.}/$-])(/work|/tmp|/root|/home|/Users|/mnt|/private|/var/folders)/|[A-Za-z]:\\\\?Users|\.venv/lib")


def texts_of_the_repository():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [
        ROOT / n
        for n in listed
        if Path(n).suffix in (".ipynb", ".md", ".json", ".py", ".toml", ".yml", ".jinja") and (ROOT / n).exists()
    ]


def test_no_file_names_a_place_on_a_machine():
    here = Path(__file__).name
    found = [
        f"{path.relative_to(ROOT)}: {hit[0]}"
        for path in texts_of_the_repository()
        if path.name not in (here, "mutations.py")
        for hit in [MACHINE.search(path.read_text(encoding="utf-8"))]
        if hit
    ]
    assert found == []


def test_notebooks_keep_no_outputs_and_no_traces():
    paths = [p for p in texts_of_the_repository() if p.suffix == ".ipynb"]
    assert len(paths) > 20
    for path in paths:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}, path
        for cell in notebook["cells"]:
            assert cell.get("outputs", []) == [], path
            assert cell.get("execution_count") is None, path
            assert "<script" not in "".join(cell["source"]), path


def test_what_security_md_names_exists():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|cosmos3_lab)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path


def test_prompts_of_a_request_are_not_kept_in_it(tiny):
    """A request carries ids, not the text: whoever shares its repr shares no prompt."""
    request = prepare_request(tiny, "a secret ball", negative_prompt="", num_frames=1, height=32, width=48)
    assert "secret" not in repr(request)
