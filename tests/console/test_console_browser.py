"""The console in a real browser: a run is started, paused, resumed, stopped and killed, and the
page follows by itself; by keyboard alone; on a phone; in both languages.

With FEDSIGHT_SCREENSHOTS=FOLDER the screenshots are kept there.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsers import CLIPPED, NAMELESS, SIZES, becomes, chromium, enter, press, shoot, show, until
from command_line import write_config
from consoles import Client, served
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from fedsight.runs.listing import look


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


def test_a_run_is_started_and_steered_and_the_page_follows(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    # A run that goes on until it is told otherwise.
    config = write_config(tmp_path, "long", rounds={"rounds": 100_000})
    root = tmp_path / "runs"
    root.mkdir()
    with served(root) as client:
        enter(browser, f"{client.origin}{client.console.base}", client.console.sessions.token)
        browser.find_element(By.LINK_TEXT, "New run").send_keys(Keys.ENTER)
        browser.find_element(By.ID, "config").send_keys(str(config), Keys.ENTER)
        until(browser, lambda _: browser.find_elements(By.LINK_TEXT, "long"))
        browser.find_element(By.LINK_TEXT, "long").send_keys(Keys.ENTER)
        becomes(browser, "running")
        until(browser, lambda _: browser.find_elements(By.CSS_SELECTOR, "polyline.line"))
        press(browser, "pause")
        becomes(browser, "paused")
        done = look(root / "long").round
        press(browser, "resume")
        becomes(browser, "running")
        until(browser, lambda _: look(root / "long").round > done + 1)
        process = int(look(root / "long").live["process"])
        os.kill(process, signal.SIGKILL)
        becomes(browser, "interrupted")
        press(browser, "resume")
        becomes(browser, "running")
        press(browser, "stop")
        becomes(browser, "stopped")
        jobs = client.console.queue.jobs
        until(browser, lambda _: all(job.state == "ended" for job in jobs()))
        assert [job.code for job in jobs()] == [-signal.SIGKILL]  # that alone did not end well
        browser.find_element(By.LINK_TEXT, "Report").send_keys(Keys.ENTER)
        until(browser, lambda _: "not finished" in browser.page_source)
        severe = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
        assert severe == []


def test_every_page_fits_a_phone_and_names_what_it_has(
    browser: webdriver.Chrome,
    client: Client,
    make_run: Callable[..., Path],
    tmp_path: Path,
) -> None:
    make_run("first")
    make_run("a-run-with-a-name-that-is-much-longer-than-any-line-of-a-phone-can-ever-be")
    client.console.queue.close()  # what is put in the queue now waits for ever
    enter(browser, f"{client.origin}{client.console.base}", client.console.sessions.token)
    client.post("/new", {"example": "fashion"})
    for language in ("en", "zh"):
        client.post(f"/language/{language}")
        name = "fedsight_language"
        path = client.console.base
        browser.add_cookie({"name": name, "value": language, "path": path})
        for size in SIZES:
            for place in ("/", "/run/first", "/new"):
                show(browser, f"{client.origin}{client.console.base}{place}", size)
                shoot(
                    browser,
                    tmp_path,
                    f"console-{place.strip('/') or 'runs'}-{size}-{language}".replace("/", "-"),
                )
                assert browser.execute_script(CLIPPED) == [], (language, size, place)
                assert browser.execute_script(NAMELESS) == []


def test_a_console_that_is_gone_is_said_to_be(browser: webdriver.Chrome, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs") as client:
        enter(browser, f"{client.origin}{client.console.base}", client.console.sessions.token)
        lost = browser.find_element(By.ID, "lost")
        time.sleep(0.5)
        assert not lost.is_displayed()
    until(browser, lambda _: lost.is_displayed())
