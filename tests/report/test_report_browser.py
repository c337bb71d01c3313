"""The page in a real browser: desktop, phone, dark and paper; screenshots are kept."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from fedsight.report.page import build

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
VIEWS = {"desktop": (1280, 800, "light"), "phone": (360, 740, "light"), "dark": (1280, 800, "dark")}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert binary, "install Debian's packages chromium and chromium-driver"
    assert driver, "install Debian's packages chromium and chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    yield chrome
    chrome.quit()


def show(browser: webdriver.Chrome, path: Path, view: str) -> None:
    width, height, scheme = VIEWS[view]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": view == "phone"},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    browser.get(path.as_uri())


def shoot(browser: webdriver.Chrome, folder: Path, name: str) -> Path:
    folder = Path(os.environ.get("FEDSIGHT_SCREENSHOTS", folder))
    folder.mkdir(parents=True, exist_ok=True)
    width, height = browser.execute_script(
        "const d = document.documentElement; return [d.clientWidth, d.scrollHeight]"
    )
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot: dict[str, Any] = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
    )
    path = folder / f"{name}.png"
    path.write_bytes(base64.b64decode(shot["data"]))
    return path


@pytest.mark.parametrize("view", list(VIEWS))
@pytest.mark.parametrize("runs", [1, 3])
def test_the_page_fits_and_shows_everything(browser, make_run, tmp_path, view, runs):
    folders = [make_run(f"r{at}", top=0.88 - 0.01 * at) for at in range(runs)]
    path = build(folders, tmp_path / "report.html")
    show(browser, path, view)
    wide = browser.execute_script(
        "const d = document.documentElement;"
        "return [d.scrollWidth, d.clientWidth, document.body.scrollWidth]"
    )
    assert max(wide) == VIEWS[view][0]
    images = browser.execute_script(
        "return [...document.images].map(i => [i.complete, i.naturalWidth])"
    )
    assert len(images) == 24 * runs
    assert all(complete and width > 0 for complete, width in images)
    assert browser.execute_script(
        "return [...document.querySelectorAll('svg')].every(s =>"
        "  s.getBoundingClientRect().width > 200 && s.getBoundingClientRect().height > 100)"
    )
    smallest = browser.execute_script(
        "return Math.min(...[...document.querySelectorAll('svg text')].map(t =>"
        "  parseFloat(getComputedStyle(t).fontSize) *"
        "  Math.hypot(t.getScreenCTM().c, t.getScreenCTM().d)))"
    )
    assert smallest > (8 if view == "phone" else 9)
    outside = browser.execute_script(
        "return [...document.querySelectorAll('svg text')].filter(t => {"
        "  const a = t.getBoundingClientRect(),"
        "    b = t.ownerSVGElement.getBoundingClientRect();"
        "  return a.left < b.left - 2 || a.right > b.right + 2;"
        "}).map(t => t.textContent)"
    )
    assert outside == []
    assert browser.get_log("browser") == []
    assert shoot(browser, tmp_path, f"report-{view}-{runs}").stat().st_size > 20_000


def test_dark_and_light_have_enough_contrast(browser, make_run, tmp_path):
    path = build([make_run()], tmp_path / "report.html")
    seen = {}
    for view in ("desktop", "dark"):
        show(browser, path, view)
        seen[view] = browser.execute_script(
            "const s = getComputedStyle(document.documentElement);"
            "return ['--card', '--ink', '--muted', '--bad', '--c1', '--c2', '--c3', '--c4',"
            " '--c5', '--c6'].map(v => s.getPropertyValue(v))"
        )
        ground, *colours = [_luminance(colour.strip()) for colour in seen[view]]
        ratios = [(max(ground, c) + 0.05) / (min(ground, c) + 0.05) for c in colours]
        assert min(ratios[:3]) >= 4.5  # text, WCAG 2.1 AA
        assert min(ratios[3:]) >= 3  # lines
    assert seen["desktop"] != seen["dark"]


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_prints(browser, make_run, tmp_path):
    path = build([make_run()], tmp_path / "report.html")
    show(browser, path, "dark")
    paper = browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    pdf = base64.b64decode(paper["data"])
    assert pdf.startswith(b"%PDF")
    assert 3 <= pdf.count(b"/Type /Page\n") <= 12
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script(
        "return getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)' &&"
        " getComputedStyle(document.querySelector('.scroll')).overflowX === 'visible'"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
