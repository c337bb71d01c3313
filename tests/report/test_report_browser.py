"""The page in a real browser: phone and desktop, both languages, dark and paper.

With FEDSIGHT_SCREENSHOTS=FOLDER the screenshots are kept there.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browsers
import pytest
from browsers import CLIPPED, SIZES, chromium, shoot
from report_kinds import KINDS
from selenium import webdriver

from fedsight.report.page import build

SMALLEST = """
return Math.min(...[...document.querySelectorAll('svg text')].filter(
  t => t.getBoundingClientRect().width).map(t => parseFloat(getComputedStyle(t).fontSize)
  * Math.hypot(t.getScreenCTM().c, t.getScreenCTM().d)))
"""
# Pairs of ticks on one line that overlap.
CROWDED = """
const seen = [];
for (const line of document.querySelectorAll('.axis')) {
  const ticks = [...line.children].map(t => t.getBoundingClientRect()).filter(b => b.width);
  ticks.sort((a, b) => a.left - b.left);
  for (let i = 1; i < ticks.length; i++)
    if (ticks[i].left < ticks[i - 1].right) seen.push(line.textContent);
}
return seen;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


def show(browser: webdriver.Chrome, path: Path, size: str, scheme: str = "light") -> None:
    browsers.show(browser, path.as_uri(), size, scheme)


def choose(browser: webdriver.Chrome, language: str) -> None:
    """Press the switch, as a reader does."""
    browser.execute_script(f"document.querySelector('label[for=lang-{language}]').click()")


def visible(browser: webdriver.Chrome) -> str:
    return str(browser.execute_script("return document.querySelector('main').innerText"))


@pytest.fixture
def reports(make_run, tmp_path):
    """The report by name: one run of each task, and six runs of three programs."""

    def make(name: str) -> Path:
        if name in KINDS:
            folders = [make_run(name, change=KINDS[name])]
        else:
            kinds = [("even", 10.0, 0.89), ("uneven", 0.3, 0.87), ("very uneven", 0.05, 0.81)]
            folders = [
                make_run(f"{kind}-{seed}".replace(" ", "-"), name=kind, alpha=alpha,
                         top=top + 0.004 * seed, change=with_seed(seed))
                for kind, alpha, top in kinds for seed in (1, 2)
            ]  # fmt: skip
        return build(folders, tmp_path / f"{name}.html")

    return make


def with_seed(seed: int):
    def change(files: dict[str, Any]) -> None:
        files["run.toml"] = files["run.toml"].replace("seed = 7", f"seed = {seed}")

    return change


@pytest.mark.parametrize("name", [*KINDS, "six runs"])
def test_nothing_is_cut_off_in_either_language(browser, reports, tmp_path, name):
    path = reports(name)
    for size in SIZES:
        show(browser, path, size)
        for language in ("en", "zh"):
            choose(browser, language)
            assert browser.execute_script(CLIPPED) == [], (size, language)
            assert browser.execute_script(CROWDED) == [], (size, language)
            assert browser.execute_script(SMALLEST) > (9 if size == "phone" else 10)
            shot = shoot(browser, tmp_path, f"{name.replace(' ', '-')}-{size}-{language}")
            assert shot.stat().st_size > 20_000
        browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = 1")
        assert browser.execute_script(CLIPPED) == [], (size, "details opened")
    pictures = browser.execute_script("return [...document.images].map(i => i.naturalWidth)")
    assert all(width > 0 for width in pictures)
    assert browser.get_log("browser") == []


def test_long_names_and_many_sites_are_not_cut_off(browser, make_run, tmp_path):
    classes = tuple(f"Nonspecific interstitial pneumonia {at}" for at in range(14))
    long = make_run(sites=60, classes=classes, site="university-hospital-of-somewhere-{:02d}")
    path = build([long], tmp_path / "report.html")
    for size in SIZES:
        show(browser, path, size)
        assert browser.execute_script(CLIPPED) == []
        shoot(browser, tmp_path, f"long-{size}")


def test_a_table_with_a_column_for_each_of_many_sites_is_not_cut_off(browser, make_run, tmp_path):
    path = build([make_run(sites=40, change=KINDS["detection"])], tmp_path / "report.html")
    for size in SIZES:
        show(browser, path, size)
        assert browser.execute_script(CLIPPED) == []
        shoot(browser, tmp_path, f"many-{size}")


def test_the_switch_changes_what_is_seen_and_opens_in_the_language_asked_for(
    browser, make_run, tmp_path
):
    path = build([make_run()], tmp_path / "en.html", "en")
    show(browser, path, "desktop")
    english = visible(browser)
    choose(browser, "zh")
    chinese = visible(browser)
    assert "Who gains" in english
    assert "谁受益" not in english
    assert "谁受益" in chinese
    assert "Who gains" not in chinese
    choose(browser, "en")
    assert visible(browser) == english
    show(browser, build([make_run()], tmp_path / "zh.html", "zh"), "desktop")
    assert visible(browser) == chinese
    assert browser.execute_script("return document.documentElement.lang") == "zh-Hans"


def test_contents_lead_to_their_sections(browser, make_run, tmp_path):
    show(browser, build([make_run()], tmp_path / "report.html"), "phone")
    links = browser.execute_script(
        "return [...document.querySelectorAll('.contents a')].map(a => [a.hash, a.innerText,"
        " document.querySelector(a.hash)?.querySelector('h2')?.innerText])"
    )
    assert len(links) >= 6
    assert all(text == heading for _, text, heading in links)


def test_dark_and_light_have_enough_contrast(browser, make_run, tmp_path):
    path = build([make_run()], tmp_path / "report.html")
    seen = {}
    for scheme in ("light", "dark"):
        show(browser, path, "desktop", scheme)
        shoot(browser, tmp_path, f"classification-{scheme}")
        seen[scheme] = browser.execute_script(
            "const s = getComputedStyle(document.documentElement);"
            "return ['--card', '--ink', '--muted', '--bad', '--c1', '--c2', '--c3', '--c4',"
            " '--c5', '--c6'].map(v => s.getPropertyValue(v))"
        )
        ground, *colours = [_luminance(colour.strip()) for colour in seen[scheme]]
        ratios = [(max(ground, c) + 0.05) / (min(ground, c) + 0.05) for c in colours]
        assert min(ratios[:3]) >= 4.5  # text, WCAG 2.1 AA
        assert min(ratios[3:]) >= 3  # lines
    assert seen["light"] != seen["dark"]


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_prints(browser, make_run, tmp_path):
    show(browser, build([make_run()], tmp_path / "report.html"), "desktop", "dark")
    paper = browser.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    pdf = base64.b64decode(paper["data"])
    assert pdf.startswith(b"%PDF")
    assert 3 <= pdf.count(b"/Type /Page\n") <= 12
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script(
        "return getComputedStyle(document.body).backgroundColor === 'rgb(255, 255, 255)' &&"
        " getComputedStyle(document.querySelector('.languages')).display === 'none'"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
