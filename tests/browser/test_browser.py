"""What a reader does, in a real JupyterLab with a real browser: run all cells, play the clip, move a slider, stop a run."""

import base64
import shutil
from pathlib import Path

import pytest

from cosmos3_lab import read_mp4

from .lab import CHROMIUM, browser_page, open_notebook, run_all_cells, running_lab, wait_until_run

pytest.importorskip("playwright.sync_api", reason='no playwright here; try pip install "cosmos3-lab[test]"')
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine; try apt-get install chromium")

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SECONDS = 1000  # playwright counts in milliseconds


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab") / "notebooks"
    shutil.copytree(NOTEBOOKS, folder, ignore=shutil.ignore_patterns("outputs", ".ipynb_checkpoints"))
    with running_lab(folder) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    """One page, for one notebook after the other."""
    with browser_page() as page:
        yield page


@pytest.fixture(scope="module")
def quickstart(lab, browser):
    """The first notebook, after Run All Cells."""
    open_notebook(browser, lab, "00_quickstart.ipynb")
    run_all_cells(browser)
    wait_until_run(browser, timeout=90)
    return browser


def check_that_it_plays(page, video, folder):
    """The element has pictures and sound, and its time moves."""
    video.scroll_into_view_if_needed()
    element = video.element_handle()
    page.wait_for_function("video => video.readyState >= 3", arg=element, timeout=20 * SECONDS)
    assert element.evaluate("video => video.error") is None
    element.evaluate("video => video.play()")
    page.wait_for_function("video => video.currentTime > 0.2", arg=element, timeout=20 * SECONDS)
    page.wait_for_function("video => video.webkitVideoDecodedByteCount > 0", arg=element, timeout=20 * SECONDS)
    page.wait_for_function("video => video.webkitAudioDecodedByteCount > 0", arg=element, timeout=20 * SECONDS)
    element.evaluate("video => video.pause()")
    source = element.evaluate("video => video.currentSrc")
    path = folder / "clip.mp4"
    path.write_bytes(base64.b64decode(source.partition(",")[2]))
    clip = read_mp4(path)
    assert len(clip.frames) > 1
    assert abs(clip.waveform).max() > 0.01  # not only a track: something is heard


def test_the_quickstart_plays_a_video_with_sound(quickstart, tmp_path):
    check_that_it_plays(quickstart, quickstart.locator(".jp-OutputArea video").first, tmp_path)


def test_the_panel_runs_stops_and_resumes(quickstart, tmp_path):
    panel = quickstart.locator(".cosmos3-generation-panel")
    run, stop, resume = (panel.locator("button", has_text=name) for name in ("Run", "Stop", "Resume"))
    assert [button.is_enabled() for button in (run, stop, resume)] == [True, False, False]
    panel.get_by_label("Steps").fill("60")  # long enough to be stopped on any machine
    panel.get_by_label("Steps").press("Tab")
    run.click()
    panel.get_by_text("predicted at step").first.wait_for(timeout=30 * SECONDS)  # there is something to see while it runs
    stop.click()
    said = panel.locator("[role=status]", has_text="Stopped after")
    said.wait_for(timeout=15 * SECONDS)
    done = int(said.inner_text().split()[2])
    assert 1 <= done < 60
    assert [button.is_enabled() for button in (run, stop, resume)] == [True, False, True]
    assert panel.locator("video").count() == 0
    resume.press("Enter")  # reachable with the keyboard
    panel.locator("[role=status]", has_text="Done in").wait_for(timeout=60 * SECONDS)
    assert [button.is_enabled() for button in (run, stop, resume)] == [True, False, False]
    check_that_it_plays(quickstart, panel.locator("video"), tmp_path)


def test_what_cannot_work_is_said_in_the_panel(quickstart):
    panel = quickstart.locator(".cosmos3-generation-panel")
    panel.get_by_label("Width").fill("100")
    panel.get_by_label("Width").press("Tab")
    panel.locator("button", has_text="Run").click()
    alert = panel.get_by_role("alert")
    alert.wait_for(timeout=15 * SECONDS)
    assert "100" in alert.inner_text()


def test_a_slider_changes_the_picture(lab, browser):
    open_notebook(browser, lab, "03_sigmas_and_schedules.ipynb")
    run_all_cells(browser)
    wait_until_run(browser, timeout=90)
    widget = browser.locator(".jupyter-widgets", has=browser.locator("[role=slider]")).first
    picture, handle = widget.locator("img").first, widget.locator("[role=slider]").first
    picture.wait_for(timeout=20 * SECONDS)
    before = picture.get_attribute("src")
    handle.scroll_into_view_if_needed()
    handle.focus()
    for _ in range(3):
        handle.press("ArrowRight")
    changed = "([image, before]) => image.isConnected ? image.src !== before : true"
    browser.wait_for_function(changed, arg=[picture.element_handle(), before], timeout=20 * SECONDS)
    assert widget.locator("img").first.get_attribute("src") != before
    assert widget.locator("img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
