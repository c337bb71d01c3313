"""The kind of each test, told from the code that it runs: which processes it may start."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
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
    "tinysites.Places": PROCESSES,
    "loopback": DEPLOYED,
    "selenium": BROWSER,
}
COMMANDS = ("cli", "done")  # helpers that run a command of the command line
TRAINING = {"run", "compare", "resume"}  # commands that train, with workers unless told otherwise
TESTS = Path(__file__).parents[1]


def kind_of(item: pytest.Function) -> str:
    """The kind of a test: one that it is marked with by hand, else what its code refers to."""
    for kind in KINDS:
        if item.get_closest_marker(kind) is not None:
            return kind
    fixtures = item._fixtureinfo.name2fixturedefs.values()
    functions = [item.obj, *(definition.func for found in fixtures for definition in found)]
    return max((_kind(_function(one)) for one in functions), key=KINDS.index)


@cache
def _kind(function: Any) -> str:
    """The kind of a function or class of the tests, all that it refers to included."""
    found, seen, left = [UNIT], set(), [function]
    while left:
        one = left.pop()
        if one in seen:
            continue
        seen.add(one)
        for code, names in _codes(one):
            for value in _references(code, names):
                name = _name(value)
                found += [kind for sign, kind in SIGNS.items() if f"{name}.".startswith(f"{sign}.")]
                if isinstance(value, FunctionType | type) and _of_the_tests(value):
                    left.append(value)
            if _trains(code):
                found.append(PROCESSES)
    return max(found, key=KINDS.index)


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


def _trains(code: CodeType) -> bool:
    """Whether code runs a command that trains."""
    words = {
        word
        for value in code.co_consts
        for word in (value if isinstance(value, tuple) else (value,))
        if isinstance(word, str)
    }
    return bool(TRAINING & words) and any(name in COMMANDS for name in code.co_names)


def _name(value: Any) -> str:
    """`module.name` of a class or function, the name of a module, else nothing."""
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, FunctionType | type):
        return f"{value.__module__}.{value.__qualname__}"
    return ""


def _of_the_tests(value: Callable[..., Any] | type) -> bool:
    try:
        return Path(inspect.getfile(value)).is_relative_to(TESTS)
    except (TypeError, OSError):
        return False


def _function(value: Any) -> Any:
    """The function in a method, a fixture or a decorated function."""
    return inspect.unwrap(getattr(value, "__func__", value))
