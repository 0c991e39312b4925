"""A JupyterLab on a free port and a page in the system's Chromium."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)

# All cells in the page, and nobody asked anything.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@contextmanager
def running_lab(folder: Path, *, timeout: float = 60.0, theme: str = "JupyterLab Light"):
    """The address of a JupyterLab that serves `folder`; it and its kernels are gone afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = folder / ".jupyter-home"  # settings, runtime files and workspaces of nobody
    homes = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    _write_settings(home, SETTINGS | {"apputils-extension/themes": {"theme": theme}})
    environment = (
        os.environ | homes | {"OMP_NUM_THREADS": "1", "COSMOS3_CHECKPOINT": "pico", "JUPYTERLAB_WORKSPACES_DIR": str(home)}
    )
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(home)}
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    options += ["--ServerApp.token=", "--ServerApp.disable_check_xsrf=True", f"--notebook-dir={folder}"]
    log = (folder / ".jupyter.log").open("w")
    command = [sys.executable, "-m", "jupyterlab", *options]
    server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"http://127.0.0.1:{port}/api", server, timeout, folder / ".jupyter.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGTERM)  # shuts its kernels down
        with suppress(subprocess.TimeoutExpired):
            server.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # whatever is left of its session
        server.wait()
        log.close()


def _write_settings(home: Path, settings: dict[str, dict]) -> None:
    for name, values in settings.items():
        path = home / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values), encoding="utf-8")


def _wait_for(url: str, server: subprocess.Popen, timeout: float, log: Path) -> None:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        assert server.poll() is None, f"JupyterLab ended: {log.read_text()[-2000:]}"
        try:
            with urlopen(url, timeout=5):
                return
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"JupyterLab did not answer in {timeout:g} s: {log.read_text()[-2000:]}")


@contextmanager
def browser_page(*, height: int = 1000, scheme: str = "light"):
    """A page 1200 pixels wide."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--mute-audio"])
        try:
            yield browser.new_page(viewport={"width": 1200, "height": height}, color_scheme=scheme)
        finally:
            browser.close()


def open_notebook(page, address: str, name: str) -> None:
    """Open a notebook alone (no other tabs) and wait for its kernel."""
    accept = page.locator(".jp-Dialog .jp-mod-accept")
    page.add_locator_handler(accept, lambda button: button.click())  # such as the choice of a kernel, whenever it comes
    page.goto(f"{address}/lab/workspaces/{Path(name).stem}/tree/{name}")  # one of its own: no other tabs
    page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=60_000)
    page.get_by_text("(ipykernel) | Idle").wait_for(timeout=60_000)  # the status bar; other signs are there before the kernel is


def run_all_cells(page) -> None:
    """The menu's "Run All Cells"."""
    page.locator(".lm-MenuBar-itemLabel", has_text="Run").first.click()
    page.locator(".lm-Menu-itemLabel", has_text="Run All Cells").first.click()


def wait_until_run(page, *, timeout: float) -> None:
    """Until every code cell has a number, and none of them an error."""
    done = """() => {
        const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent.trim());
        return prompts.length > 0 && prompts.every(text => /^\\[\\d+\\]:?$/.test(text));
    }"""
    page.wait_for_function(done, timeout=timeout * 1000)
    errors = page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr'], .jp-RenderedText .ansi-red-fg")
    assert errors.all_inner_texts() == []
