"""The console over TLS in a real browser, for operators in each role: what they see and can press,
and that a page in the hands of somebody who was revoked shows nothing more.

With FEDSIGHT_SCREENSHOTS=FOLDER the screenshots are kept there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browsers import (
    CLIPPED,
    NAMELESS,
    SIZES,
    chromium,
    entered,
    press,
    shoot,
    show,
    until,
    visit,
)
from consoles import Client, secured, served
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from federation_folders import ANNA, BEN, folder_with_run
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from fedsight.console.door import Door
from fedsight.console.rights import of_operators
from fedsight.console.sessions import Sessions
from fedsight.console.tokens import Known, TokenFile
from fedsight.coordinator.asked import asked
from fedsight.coordinator.folders import LOCK
from fedsight.core import locks
from fedsight.deploy.membership.federation import OPERATOR, FederationFolder


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Door:
    return secured(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def browser(door: Door, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser whose user has compared the certificate's key, and trusts it."""
    assert door.certificate is not None
    found = x509.load_pem_x509_certificate(door.certificate.path.read_bytes())
    der, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    digest = hashlib.sha256(found.public_key().public_bytes(der, form)).digest()
    flag = f"--ignore-certificate-errors-spki-list={base64.b64encode(digest).decode()}"
    with chromium(tmp_path_factory.mktemp("profile"), flag) as chrome:
        yield chrome


@pytest.fixture
def federation(tmp_path: Path) -> FederationFolder:
    return folder_with_run(tmp_path / "wards")


@pytest.fixture
def client(federation: FederationFolder, door: Door) -> Iterator[Client]:
    known = Known(TokenFile.within(federation.folder), of_operators(federation))
    sessions = Sessions(known, own=False)
    with (
        served(federation.runs, federation, sessions, door) as found,
        locks.hold(federation.runs / "first" / LOCK, 1.0, ValueError()),  # it goes on
    ):
        yield found


def log_in(
    browser: webdriver.Chrome, client: Client, federation: FederationFolder, name: str
) -> None:
    """As the user does: the address, and the token into its field."""
    token, _ = TokenFile.within(federation.folder).add(name)
    browser.delete_all_cookies()
    visit(browser, f"{client.origin}{client.console.base}/session")
    browser.find_element(By.ID, "token").send_keys(token, Keys.ENTER)
    entered(browser, f"{client.origin}{client.console.base}")
    assert token not in browser.page_source
    assert token not in browser.current_url


def buttons(browser: webdriver.Chrome) -> set[str]:
    """In one go: the page may be renewed at any time."""
    found = "return [...document.querySelectorAll('button[id]')].map(one => one.id)"
    return set(browser.execute_script(found))


def test_who_looks_on_finds_nothing_to_press_and_is_out_once_revoked(
    browser: webdriver.Chrome, client: Client, federation: FederationFolder, tmp_path: Path
) -> None:
    log_in(browser, client, federation, BEN)
    for size in SIZES:
        for place in ("/", "/run/first", "/sites"):
            show(browser, f"{client.origin}{client.console.base}{place}", size)
            assert buttons(browser) == {"leave"}
            assert BEN in browser.find_element(By.CSS_SELECTOR, ".who").text
            assert browser.execute_script(CLIPPED) == [], (size, place)
            assert browser.execute_script(NAMELESS) == []
            shoot(browser, tmp_path, f"looks-on-{place.strip('/').replace('/', '-')}-{size}")
    # A script in the page has the cookie sent along, and does not see it.
    assert browser.execute_script("return document.cookie") == ""
    answered = browser.execute_async_script(
        "fetch(arguments[0], {method: 'POST'}).then(a => arguments[1](a.status))",
        f"{client.console.base}/do/stop/first",
    )
    assert answered == 403
    assert asked(federation.runs / "first") is None
    visit(browser, f"{client.origin}{client.console.base}/run/first")
    (federation.folder / "revoked.json").write_text(json.dumps({BEN: "has left"}))
    until(browser, lambda _: browser.current_url.endswith("/session"))  # by itself
    assert "first" not in browser.page_source
    shoot(browser, tmp_path, "revoked")


def test_who_starts_runs_elsewhere_pauses_here_and_logs_out(
    browser: webdriver.Chrome, client: Client, federation: FederationFolder
) -> None:
    log_in(browser, client, federation, ANNA)
    assert "New run" not in browser.page_source
    visit(browser, f"{client.origin}{client.console.base}/run/first")
    assert buttons(browser) == {"leave", "pause", "stop"}
    press(browser, "pause")
    until(browser, lambda _: asked(federation.runs / "first") == "pause")
    kept = {one["name"]: one for one in browser.get_cookies()}
    cookie = kept["__Secure-fedsight_console"]
    assert cookie["secure"]
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    press(browser, "leave")
    until(browser, lambda _: browser.current_url.endswith("/session"))
    assert browser.get_cookies() == []
    visit(browser, f"{client.origin}{client.console.base}/run/first")
    assert browser.current_url.endswith("/session")


def test_who_has_the_consoles_key_starts_runs(
    browser: webdriver.Chrome, client: Client, federation: FederationFolder
) -> None:
    log_in(browser, client, federation, OPERATOR)
    assert "New run" in browser.page_source
    visit(browser, f"{client.origin}{client.console.base}/new")
    assert browser.find_elements(By.ID, "config")
