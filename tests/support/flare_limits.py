"""FLARE in a test's process with the limits that every process of ours sets, and without them again
afterwards: what stayed would change what FLARE does in the tests that follow in this process."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from fedsight.deploy.flare.process import set_limits


def _names() -> dict[ModuleType | type, dict[str, Any]]:
    """What each module and class of FLARE's has, by name."""
    modules = [one for name, one in [*sys.modules.items()] if name.partition(".")[0] == "nvflare"]
    classes = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__.partition(".")[0] == "nvflare"
    }
    return {one: dict(vars(one)) for one in (*modules, *classes)}


@contextlib.contextmanager
def limits_set() -> Iterator[None]:
    """Set the limits, and take everything back that they replaced."""
    with taken_back():
        set_limits()
        yield


@contextlib.contextmanager
def taken_back() -> Iterator[None]:
    """Take everything back that is replaced of FLARE's meanwhile."""
    before = _names()
    try:
        yield
    finally:
        for holder, names in before.items():
            now = vars(holder)
            for name, value in names.items():
                if now.get(name) is not value:
                    setattr(holder, name, value)
