"""The FLARE adapter: the link passes on any answer, and a site answers only the coordinator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from nvflare.collab.api.context import get_call_context, set_call_context
from nvflare.collab.api.exceptions import CollabCallError

from fedsight.core.errors import SiteError
from fedsight.deploy.flare.components import FlareLink, SiteComponent
from fedsight.engines.remote.conversation import Talk


class Proxy:
    """A site as FLARE presents it to the coordinator, with one answer to every request."""

    name = "north"

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __call__(self, timeout: float) -> Proxy:
        return self

    def message(self, kind: str, header: str, body: bytes) -> Any:
        """The method that the site publishes."""
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize("data", [7, None, "text", [1, 2], np.ones(3), b"\0" * (9 << 20)])
def test_any_answer_is_passed_on(data: Any) -> None:
    link = FlareLink([Proxy(["{}", data])])
    assert link.sites == ["north"]
    text, received = link.ask("north", "train", {}, b"body", 1.0)
    assert text == "{}"
    assert received is data


@pytest.mark.parametrize("answer", [None, 7, "ab", [], ["{}"], ["{}", b"", b""]])
def test_an_answer_that_is_not_a_pair_is_none(answer: Any) -> None:
    assert FlareLink([Proxy(answer)]).ask("north", "train", {}, b"", 1.0) == (None, None)


@pytest.mark.parametrize("data", [7, None, "text", np.ones(3)])
def test_a_site_with_an_invalid_answer_is_named(data: Any) -> None:
    talk = Talk(FlareLink([Proxy([json.dumps({}), data])]), "north", float("inf"))
    with pytest.raises(SiteError, match="'north' sent something other than bytes"):
        talk.ask("train", {})


def test_a_lost_connection_raises_connection_error() -> None:
    error = CollabCallError("north", "message", TimeoutError("nobody answers"))
    with pytest.raises(ConnectionError, match="nobody answers"):
        FlareLink([Proxy(error)]).ask("north", "train", {}, b"", 1.0)


@pytest.fixture
def call_from_a_site() -> Iterator[None]:
    """The context of a call by site-01, as FLARE sets it from the authenticated connection."""
    before = get_call_context()
    set_call_context(SimpleNamespace(caller="site-01", app=SimpleNamespace(name="site-00")))
    yield
    set_call_context(before)


@pytest.mark.usefixtures("call_from_a_site")
@pytest.mark.parametrize("kind", ["propose", "train", "fetch", "piece"])
def test_a_site_answers_only_the_coordinator(kind: str) -> None:
    header, body = SiteComponent().message(kind, "{}", b"")
    assert json.loads(header) == {"error": "this site answers only the coordinator"}
    assert body == b""
