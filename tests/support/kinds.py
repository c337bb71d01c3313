"""What each test needs, told from the code that it runs: processes, or a report that is drawn."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

UNIT, PROCESSES, DEPLOYED, BROWSER = "unit", "processes", "deployed", "browser"
KINDS = (UNIT, PROCESSES, DEPLOYED, BROWSER)  # a test is of the last one that applies
# What a test that starts processes refers to, directly or through fixtures and helpers.
SIGNS = {
    "multiprocessing": PROCESSES,
    "subprocess": PROCESSES,
    "fedsight.engines.pool": PROCESSES,
    "fedsight.engines.workers": PROCESSES,
    "fedsight.deploy.processes": PROCESSES,
    "fedsight.deploy.site.trainer": PROCESSES,
    "fedsight.runs.lifecycle": PROCESSES,
    "site_services.Places": PROCESSES,
    "loopback": DEPLOYED,
    "selenium": BROWSER,
}
COMMANDS = ("cli", "done")  # helpers that run a command of the command line
# Commands that train, with workers unless told otherwise.
TRAINING = {"run", "compare", "sweep", "resume"}
REPORT = "report.html"
TESTS = str(Path(__file__).parents[1])


def kind_of(item: pytest.Function) -> str:
    """The kind of a test: one that it is marked with by hand, else what its code refers to."""
    for kind in KINDS:
        if item.get_closest_marker(kind) is not None:
            return kind
    return max((_facts(one)[0] for one in _functions(item)), key=KINDS.index)


def reads_report(item: pytest.Function) -> bool:
    """Whether the code of a test names the page of a run."""
    return any(_facts(one)[1] for one in _functions(item))


def _functions(item: pytest.Function) -> list[Any]:
    """The function of a test, and those of all fixtures that it needs."""
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    found = [item.obj, *(definition.func for some in fixtures for definition in some)]
    return [_function(one) for one in found]


@cache
def _facts(function: Any) -> tuple[str, bool]:
    """Kind of a function or class, and whether it names a report; all it refers to included."""
    kinds, report, seen, left = [UNIT], False, set(), [function]
    while left:
        one = left.pop()
        if one in seen:
            continue
        seen.add(one)
        for code, names in _codes(one):
            for value in _references(code, names):
                name = _name(value)
                kinds += _signs(name)
                if isinstance(value, FunctionType | type) and _of_the_tests(value):
                    left.append(value)
            words = set(_words(code.co_consts))
            report = report or any(REPORT in word for word in words)
            if TRAINING & words and any(name in COMMANDS for name in code.co_names):
                kinds.append(PROCESSES)
    return max(kinds, key=KINDS.index), report


@cache
def _signs(name: str) -> list[str]:
    """The kinds that the name of a module, class or function is a sign of."""
    return [kind for sign, kind in SIGNS.items() if f"{name}.".startswith(f"{sign}.")]


def _words(constants: Iterable[Any]) -> Iterator[str]:
    for value in constants:
        if isinstance(value, tuple):
            yield from _words(value)
        elif isinstance(value, str):
            yield value


def _codes(value: Any) -> Iterator[tuple[CodeType, dict[str, Any]]]:
    """The code of a function, or of a class's methods, that of inner functions included."""
    members = vars(value).values() if isinstance(value, type) else [value]
    for member in members:
        function = _function(member)
        if isinstance(function, FunctionType):
            left = [function.__code__]
            while left:
                code = left.pop()
                left += [inner for inner in code.co_consts if isinstance(inner, CodeType)]
                yield code, function.__globals__


def _references(code: CodeType, names: dict[str, Any]) -> Iterator[Any]:
    """The global values that code names, and what it names of modules."""
    for name in code.co_names:
        if name in names:
            value = names[name]
            yield value
            if isinstance(value, ModuleType):
                yield from (vars(value)[inner] for inner in code.co_names if inner in vars(value))


def _name(value: Any) -> str:
    """`module.name` of a class or function, the name of a module, else nothing."""
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, FunctionType | type):
        return f"{value.__module__}.{value.__qualname__}"
    return ""


def _of_the_tests(value: FunctionType | type) -> bool:
    module = sys.modules.get(value.__module__)
    return (getattr(module, "__file__", None) or "").startswith(TESTS)


def _function(value: Any) -> Any:
    """The function in a method, a fixture or a decorated function."""
    return inspect.unwrap(getattr(value, "__func__", value))
