"""A real browser, headless: Debian's chromium. With FEDSIGHT_SCREENSHOTS=FOLDER the screenshots are
kept there."""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
SIZES = {"phone": (390, 844), "desktop": (1280, 800)}
# What reaches out of the page, out of its drawing, or is cut off or behind a scroll.
CLIPPED = """
const found = [], root = document.documentElement;
if (Math.max(root.scrollWidth, document.body.scrollWidth) > root.clientWidth)
  found.push(`page ${root.scrollWidth} > ${root.clientWidth}`);
for (const e of document.querySelectorAll('main *')) {
  const box = e.getBoundingClientRect();
  if (!box.width || !box.height || e.closest('.unseen') || e.closest('.pick')) continue;
  if (e.closest('details:not([open])') && !e.closest('summary')) continue;
  if (e.closest('.stack thead') && getComputedStyle(e.closest('thead')).position === 'absolute')
    continue;
  if (box.left < -1 || box.right > root.clientWidth + 1)
    found.push(`${e.tagName}.${e.className.baseVal ?? e.className} ${box.left} to ${box.right}: `
      + e.textContent.slice(0, 60));
  if (!e.ownerSVGElement && e.scrollWidth > e.clientWidth + 1 && e.clientWidth
      && getComputedStyle(e).display !== 'inline' && !e.closest('.axis'))
    found.push(`${e.tagName}.${e.className} holds ${e.scrollWidth} in ${e.clientWidth}`);
  if (e.tagName === 'text') {
    const own = e.ownerSVGElement.getBoundingClientRect();
    if (box.left < own.left - 1 || box.right > own.right + 1 || box.top < own.top - 1
        || box.bottom > own.bottom + 1) found.push(`drawing cuts ${e.textContent}`);
  }
}
return found;
"""
PATIENCE = 200  # seconds; only a hang is judged by it
WHOLE = "document.readyState === 'complete'"  # the page: what is looked for in it is there
# What a screen reader could not tell: fields without a label, buttons and links without a name.
NAMELESS = """
const found = document.querySelectorAll('input, select, textarea, button, a, progress');
return [...found].filter(e => !(e.labels?.length || e.textContent.trim()
  || e.getAttribute('aria-label'))).map(e => e.outerHTML);
"""


@contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[webdriver.Chrome]:
    """The browser, with an own and empty profile."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert binary, "install Debian's packages chromium and chromium-driver"
    assert driver, "install Debian's packages chromium and chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, *flags, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    try:
        yield chrome
    finally:
        chrome.quit()


def show(browser: webdriver.Chrome, address: str, size: str, scheme: str = "light") -> None:
    width, height = SIZES[size]
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"},
    )
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    visit(browser, address)


def visit(browser: webdriver.Chrome, address: str) -> None:
    """Go to an address, and wait until its page is whole: on a busy machine `get` may return while
    the page before is still there, or the new one has only begun. It is for other pages: an address
    that differs from the present one in its fragment alone loads none, and this waits in vain."""
    browser.execute_script("window.before = true")
    browser.get(address)
    until(browser, lambda _: browser.execute_script(f"return {WHOLE} && !window.before"))


def enter(browser: webdriver.Chrome, base: str, token: str) -> None:
    """Open a console whose pages are below `base` by the link with its token; and wait until the
    page that this leads to is whole, and has forgotten the token."""
    visit(browser, f"{base}/session#{token}")
    entered(browser, base)
    assert token not in browser.page_source


def entered(browser: webdriver.Chrome, base: str) -> None:
    """Wait until the console's first page, to which a session leads, is whole."""
    until(browser, lambda _: browser.current_url == f"{base}/")
    until(browser, lambda _: browser.execute_script(f"return {WHOLE}"))


def shoot(browser: webdriver.Chrome, folder: Path, name: str) -> Path:
    folder = Path(os.environ.get("FEDSIGHT_SCREENSHOTS", folder))
    folder.mkdir(parents=True, exist_ok=True)
    width, height = browser.execute_script(
        "const d = document.documentElement; return [d.clientWidth, d.scrollHeight]"
    )
    clip = {"x": 0, "y": 0, "width": width, "height": min(height, 16_000), "scale": 1}
    shot: dict[str, Any] = browser.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip}
    )
    path = folder / f"{name}.png"
    path.write_bytes(base64.b64decode(shot["data"]))
    return path


def until(browser: webdriver.Chrome, happened: Callable[[webdriver.Chrome], object]) -> None:
    """Wait until something has happened."""
    WebDriverWait(browser, PATIENCE, 0.1).until(happened)


def state(browser: webdriver.Chrome) -> str:
    """The state that the page shows."""
    return str(browser.execute_script("return document.querySelector('.badge')?.innerText ?? ''"))


def becomes(browser: webdriver.Chrome, word: str) -> None:
    """Wait until the page shows the state by itself: it is never loaded again here."""
    until(browser, lambda _: state(browser) == word)


def press(browser: webdriver.Chrome, name: str) -> None:
    """Press a button by the keyboard. The page may be renewed between finding and pressing."""

    def pressed(_: webdriver.Chrome) -> bool:
        try:
            browser.find_element(By.ID, name).send_keys(Keys.ENTER)
        except Exception:  # it was replaced just then, or is not there yet
            return False
        return True

    until(browser, pressed)
