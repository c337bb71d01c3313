"""Print how the house stands: files, functions, imports between rooms.

    python tools/house.py

Names what breaks the rules (a cycle, an import that points upwards, a file or a function that is
too long) and then exits with 1. `tests/test_house.py` keeps the same rules.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1] / "src" / "fedsight"
LONGEST_FILE = 500  # lines
LONGEST_FUNCTION = 60  # lines
MEDIAN_FILE = 120  # lines
MOST_PARAMETERS = 6  # of a function, those by keyword alone included
MANY = ("fedsight.program.sites.sites",)  # the public API: its keywords are what a user chooses

# The rooms from the ground up. A room may import the rooms of the lines before its own, and what
# is named for it in BESIDE.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("language",),
    ("core",),
    ("data", "models", "compression"),
    ("privacy",),
    ("aggregation", "governance", "tasks", "algorithms", "participation"),
    ("program",),
    ("client",),
    ("engines",),
    ("coordinator",),
    ("evaluation",),
    ("inference",),
    ("runs",),
    ("deploy",),
    ("console",),
    ("cli",),
)
BESIDE = {
    "models": {"data"},  # weights that a package ships are fetched as data are
    "console": {"report"},  # its curves and its reports in place
    "runs": {"report"},  # a run in Python shows its progress and writes its report
}
APART = {"report": {"core", "language"}}  # reads run files alone, and imports no torch
ANYTHING = {"cli"}


@cache
def modules() -> dict[str, Path]:
    """All modules of the package by dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    """The syntax tree of a module."""
    return ast.parse(modules()[name].read_text(encoding="utf-8"))


@cache
def imports(name: str, deferred: bool = True) -> frozenset[str]:
    """Modules that `name` imports: in functions too if `deferred`, never for typing alone."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not deferred:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative name"
            module = node.module or ""
            for alias in node.names:
                inner = f"{module}.{alias.name}"
                found.add(inner if inner in modules() else module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree(name))
    return frozenset(found)


def room(module: str) -> str:
    """The room of a module: the second part of its name."""
    return module.split(".")[1] if "." in module else ""


def allowed(name: str) -> set[str]:
    """The rooms that room `name` may import."""
    if name in APART:
        return APART[name] | {name}
    below: set[str] = set()
    for floor in FLOORS:
        if name in floor:
            extra = set(APART) if name in ANYTHING else set()
            return below | BESIDE.get(name, set()) | extra | {name}
        below |= set(floor)
    raise KeyError(f"the room '{name}' has no place in FLOORS (tools/house.py)")


def upward() -> Iterator[str]:
    """Imports that point upwards, as `module -> imported module`."""
    for name in modules():
        if room(name) in ("", "__main__"):
            continue
        for other in sorted(imports(name)):
            if other.startswith("fedsight.") and room(other) not in allowed(room(name)):
                yield f"{name} -> {other}"


def cycles() -> Iterator[str]:
    """Circles of imports, as `a -> b -> a`."""
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> Iterator[str]:
        if name in path:
            yield " -> ".join([*path[path.index(name) :], name])
            return
        if name in done:
            return
        for other in sorted(imports(name, deferred=False) & modules().keys()):
            yield from walk(other, (*path, name))
        done.add(name)

    for name in modules():
        yield from walk(name, ())


def lines(path: Path) -> int:
    """Lines of a file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def functions() -> Iterator[tuple[int, str]]:
    """Every function as (lines, `module.name`)."""
    for name in modules():
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield (node.end_lineno or node.lineno) - node.lineno + 1, f"{name}.{node.name}"


def parameters() -> Iterator[tuple[int, str]]:
    """Every function as (parameters, `module.name`), but commands and the public API.

    A command has an option for each of its parameters; its function is called `..._command`.
    """
    for name in modules():
        for node in ast.walk(tree(name)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            title, given = f"{name}.{node.name}", node.args
            if title in MANY or (room(name) == "cli" and title.endswith("_command")):
                continue
            named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
            yield sum(1 for one in named if one and one.arg not in ("self", "cls")), title


def main() -> int:
    """Print the table; 1 if a rule is broken."""
    sizes = sorted((lines(path), name) for name, path in modules().items())
    full = [size for size, name in sizes if size > 1]
    median = int(statistics.median(full))
    longest, most = max(functions()), max(parameters())
    broken = [*(f"upward: {one}" for one in upward()), *(f"cycle: {one}" for one in cycles())]
    broken += [f"file: {name} has {n} lines" for n, name in sizes if n > LONGEST_FILE]
    broken += [f"function: {name} has {n} lines" for n, name in functions() if n > LONGEST_FUNCTION]
    broken += [f"parameters: {name} has {n}" for n, name in parameters() if n > MOST_PARAMETERS]
    rooms = {room(name) for name in modules()} - {"", "__main__"}
    print(f"files             {len(full)} in {len(rooms)} rooms")
    print(f"lines             {sum(full)}")
    print(f"median file       {median} lines (about {MEDIAN_FILE} at most)")
    print(f"longest file      {sizes[-1][0]} lines, {sizes[-1][1]} (at most {LONGEST_FILE})")
    print(f"longest function  {longest[0]} lines, {longest[1]} (at most {LONGEST_FUNCTION})")
    print(f"most parameters   {most[0]}, {most[1]} (at most {MOST_PARAMETERS})")
    print(f"cycles, upward    {sum(1 for _ in cycles())}, {sum(1 for _ in upward())}")
    for one in broken:
        print(one)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
