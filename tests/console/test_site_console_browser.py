"""The console of a site's owner in a real browser: a program appears by itself, is read and
approved by keyboard alone, another is refused; on a phone; in both languages.

With FEDSIGHT_SCREENSHOTS=FOLDER the screenshots are kept there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from browsers import CLIPPED, NAMELESS, SIZES, becomes, chromium, enter, shoot, show, until, visit
from browsers import state as state_shown
from consoles import served_site
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from site_folders import ask, make_site, some_program, write_log

from fedsight.core import locks
from fedsight.core.errors import StoreError
from fedsight.deploy.site import approvals, state
from fedsight.deploy.site.refusals import Asked
from fedsight.governance.entries import LedgerEntry
from fedsight.governance.ledger import Ledger

OPERATOR = ("operator@fedsight.local",)
LONG = "a-name-that-is-much-longer-than-any-line-of-a-phone-can-ever-be-and-goes-on-and-on-for-ever"
# Headings one under the other, one first heading, and tables whose columns are named.
STRUCTURE = """
const found = [], levels = [...document.querySelectorAll('h1, h2, h3')].map(e => +e.tagName[1]);
if (levels.filter(one => one === 1).length !== 1 || levels[0] !== 1) found.push(`h1: ${levels}`);
levels.forEach((one, at) => { if (at && one > levels[at - 1] + 1) found.push(`jump: ${levels}`) });
for (const e of document.querySelectorAll('th')) if (!e.scope) found.push(e.outerHTML);
for (const e of document.querySelectorAll('[aria-describedby]'))
  if (!document.getElementById(e.getAttribute('aria-describedby'))) found.push(e.outerHTML);
return found;
"""


def does(browser: webdriver.Chrome, name: str, happened: Callable[[], bool]) -> None:
    """Press until it has happened: the page may be renewed just when the key is pressed."""

    def once(_: webdriver.Chrome) -> bool:
        if not happened():
            with contextlib.suppress(WebDriverException):  # it was replaced, or is gone
                browser.find_element(By.ID, name).send_keys(Keys.ENTER)
        return happened()

    until(browser, once)


def furnished(home: Path) -> list[str]:
    """A site with something on every page; pages to look at."""
    program = some_program("lungs", privacy={"name": "local", "noise_multiplier": 4.0})
    ask(home, program)
    approvals.decide(home, program.fingerprint, approve=True)
    ask(home, other := some_program(LONG, seed=3))
    approvals.decide(home, other.fingerprint, approve=False)
    ask(home, waiting := some_program("lungs", train={"lr": 0.3}))
    ask(home, some_program(LONG, seed=4), (f"{LONG}@example.org",))
    event = {"kind": "gaussian", "noise": 4.0, "neighbours": "add_remove"}
    told = {"run": "0123456789abcdef", "program": program.fingerprint, "asked_by": OPERATOR}
    told |= {"data_set": "chest films to 2025"}
    for kind in ("declaration", "update", "released"):
        cost = {"event": event, "enforced": True} if kind == "update" else {}
        Ledger(home).append(LedgerEntry(kind, **told, **cost, round=1, bytes=123_456))  # type: ignore[arg-type]
    state.tell_job(home, Asked("0123456789abcdef", program.fingerprint, "lungs", OPERATOR), 2)
    left = {"run": "0123456789abcdef", "round": 1, "bytes": 123_456, "protections": ["local_dp"]}
    asked = {"program": LONG, "asked_by": list(OPERATOR), "run": "0123456789abcdef"}
    why = "contract.tasks: the contract permits the tasks classify, not detect"
    write_log(
        *(home, {"event": "started", "images": 1200, "classes": 3}, {"event": "update", **left}),
        {"event": "refused", "what": "propose", "why": why, "times": 10, **asked},
    )
    pages = ["/", "/programs", f"/program/{waiting.fingerprint}", "/left", "/ledger"]
    return [*pages, "/contract", "/recognisers", "/health"]


def test_the_owner_reads_approves_and_refuses_programs(tmp_path: Path) -> None:
    home, first, second = make_site(tmp_path / "lyon"), some_program(), some_program(seed=1)
    with chromium(tmp_path / "profile") as browser, served_site(home) as client:
        base = f"{client.origin}{client.console.base}"
        enter(browser, base, client.console.sessions.token)

        for program, what, word in ((first, "approve", "approved"), (second, "refuse", "refused")):
            ask(home, program)  # and the page shows it by itself
            page = f"{base}/program/{program.fingerprint}"
            link = f"program-{program.fingerprint[:16]}"
            does(browser, link, lambda page=page: browser.current_url == page)  # type: ignore[misc]
            becomes(browser, "waits for your approval")
            assert program.fingerprint in browser.page_source
            does(browser, what, lambda word=word: state_shown(browser) == word)  # type: ignore[misc]
            browser.find_element(By.LINK_TEXT, "Now").send_keys(Keys.ENTER)
            until(browser, lambda _: browser.current_url == f"{base}/")
        assert ask(home, first) == ""
        assert "has refused" in ask(home, second)
        does(browser, "drain", lambda: state.is_drained(home))
        does(browser, "drain-end", lambda: not state.is_drained(home))
        # What somebody else decides reaches the page that is open.
        ask(home, third := some_program(seed=2))
        visit(browser, f"{base}/program/{third.fingerprint}")
        becomes(browser, "waits for your approval")
        approvals.decide(home, third.fingerprint, approve=False)
        becomes(browser, "refused")
        assert browser.find_elements(By.ID, "approve") == []

        pages = furnished(home)
        visit(browser, f"{base}/")
        busy = StoreError("the site is running")
        running = locks.hold(home / ".lock", locks.GLANCE, busy)  # as `site start` does
        until(browser, lambda _: "0123456789abcdef" in browser.page_source)
        for language in ("en", "zh"):
            name = "fedsight_language"
            browser.add_cookie({"name": name, "value": language, "path": client.console.base})
            for size in SIZES:
                for page in pages:
                    show(browser, f"{base}{page}", size)
                    label = page.strip("/").partition("/")[0] or "now"
                    shoot(browser, tmp_path, f"site-{label}-{size}-{language}")
                    assert browser.execute_script(CLIPPED) == [], (language, size, page)
                    assert browser.execute_script(NAMELESS) == []
                    assert browser.execute_script(STRUCTURE) == [], page
        running.close()
        severe = [line for line in browser.get_log("browser") if line["level"] == "SEVERE"]
        assert severe == []
