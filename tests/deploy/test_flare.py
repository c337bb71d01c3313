"""The coordinator's line hands on whatever a site answers: it is judged elsewhere, by its name."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from nvflare.collab.api.exceptions import CollabCallError

from fedsight.core.errors import SiteError
from fedsight.deploy.flare import FlareLink
from fedsight.engines.remote.conversation import Talk


class Proxy:
    """A site as the engine shows it to the coordinator, with one answer to everything."""

    name = "north"

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __call__(self, timeout: float) -> Proxy:
        return self

    def message(self, kind: str, header: str, body: bytes) -> Any:
        """What the site publishes."""
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


@pytest.mark.parametrize("data", [7, None, "text", [1, 2], np.ones(3), b"\0" * (9 << 20)])
def test_any_answer_is_handed_on(data: Any) -> None:
    link = FlareLink([Proxy(["{}", data])])
    assert link.sites == ["north"]
    text, came = link.ask("north", "train", {}, b"body", 1.0)
    assert text == "{}"
    assert came is data


@pytest.mark.parametrize("answer", [None, 7, "ab", [], ["{}"], ["{}", b"", b""]])
def test_what_is_no_pair_is_no_answer(answer: Any) -> None:
    assert FlareLink([Proxy(answer)]).ask("north", "train", {}, b"", 1.0) == (None, None)


@pytest.mark.parametrize("data", [7, None, "text", np.ones(3)])
def test_a_site_that_answers_nonsense_is_named(data: Any) -> None:
    talk = Talk(FlareLink([Proxy([json.dumps({}), data])]), "north", float("inf"))
    with pytest.raises(SiteError, match="'north' sent no bytes"):
        talk.ask("train", {})


def test_a_broken_line_is_a_broken_line() -> None:
    error = CollabCallError("north", "message", TimeoutError("nobody answers"))
    with pytest.raises(ConnectionError, match="nobody answers"):
        FlareLink([Proxy(error)]).ask("north", "train", {}, b"", 1.0)
