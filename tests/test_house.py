"""The plan of the house, kept: who may import whom, and how large a file may grow."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import fedsight

ROOT = Path(fedsight.__file__).parent
MOST_LINES = 300
PARTS: dict[str, set[str]] = {
    "core": set(),
    "fetch": {"core"},
    "data": {"core", "fetch"},
    "models": {"core", "fetch"},
    "aggregate": {"core"},
    "privacy": {"core", "aggregate"},
    "tasks": {"core", "data", "models"},
    "algorithms": {"core", "models"},
    "report": {"core"},
}
BELOW_PROGRAM = {"core", "fetch", "data", "models", "aggregate", "privacy", "tasks", "algorithms"}
BELOW_ENGINE = BELOW_PROGRAM | {"run.program"}
BELOW_DEPLOY = BELOW_ENGINE | {"engine", "run"}
BELOW_CLI = BELOW_DEPLOY | {"report", "deploy"}


@cache
def modules() -> dict[str, Path]:
    """All modules of the package by dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(name: str, deferred: bool = True) -> frozenset[str]:
    """Modules that `name` imports: in functions too if `deferred`, never for typing alone."""
    tree = ast.parse(modules()[name].read_text())
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not deferred:
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative name"
            module = node.module or ""
            found.update(
                inner if inner in modules() else module
                for alias in node.names
                for inner in [f"{module}.{alias.name}"]
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return frozenset(found)


def within(module: str, rooms: set[str]) -> bool:
    return any(
        module == f"fedsight.{room}" or module.startswith(f"fedsight.{room}.") for room in rooms
    )


def may_import(module: str) -> set[str]:
    """The rooms (or single modules) that `module` may import."""
    room = module.split(".")[1]
    if module in ("fedsight.run.program", "fedsight.run.config"):
        return BELOW_PROGRAM | {"run.program"}
    if room == "engine":
        return BELOW_ENGINE | {"engine"}
    if room == "run":
        return BELOW_ENGINE | {"engine", "run"}
    if room == "deploy":
        return BELOW_DEPLOY | {"deploy"}
    if room in ("cli", "__main__"):
        return BELOW_CLI | {"cli"}
    return PARTS[room] | {room}


@pytest.mark.parametrize("module", [name for name in modules() if name.count(".")])
def test_module_imports_only_the_rooms_below_it(module: str) -> None:
    ours = {name for name in imports(module) if name.split(".")[0] == "fedsight"}
    strangers = {name for name in ours - {"fedsight"} if not within(name, may_import(module))}
    assert not strangers


def test_modules_import_one_another_without_a_cycle() -> None:
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"cycle: {' -> '.join([*path, name])}"
        if name in done:
            return
        for other in imports(name, deferred=False) & modules().keys():
            walk(other, (*path, name))
        done.add(name)

    for name in modules():
        walk(name, ())


def reach(name: str) -> set[str]:
    """All that is imported when `name` is, packages' __init__ included."""
    seen: set[str] = set()
    left = [name]
    while left:
        module = left.pop()
        if module in seen:
            continue
        seen.add(module)
        if module in modules():
            left += imports(module, deferred=False)
            left += [parent for parent in [module.rpartition(".")[0]] if parent]
    return seen


@pytest.mark.parametrize("module", [name for name in modules() if within(name, {"report"})])
def test_report_needs_no_torch(module: str) -> None:
    assert not {name for name in reach(module) if name.split(".")[0] in ("torch", "timm")}


def test_importing_the_package_alone_is_light() -> None:
    assert reach("fedsight") & {"torch", "timm", "torchvision", "matplotlib"} == set()


def test_only_the_adapter_and_the_clerk_know_nvflare() -> None:
    knows = {name for name in modules() if any(i.split(".")[0] == "nvflare" for i in imports(name))}
    assert knows == {"fedsight.deploy.flare", "fedsight.deploy.clerk"}


def test_only_the_command_line_knows_deployment() -> None:
    knows = {name for name in modules() if any(within(i, {"deploy"}) for i in imports(name))}
    assert {name for name in knows if not within(name, {"deploy", "cli"})} == set()


@pytest.mark.parametrize("suffix", [".py", ".html", ".toml"])
def test_no_file_is_longer_than_one_can_read(suffix: str) -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in ROOT.rglob(f"*{suffix}")}
    assert {str(path): n for path, n in lengths.items() if n > MOST_LINES} == {}


def test_half_of_the_modules_are_short() -> None:
    lengths = sorted(len(path.read_text().splitlines()) for path in modules().values())
    assert lengths[len(lengths) // 2] < 150


@pytest.mark.parametrize("module", list(modules()))
def test_every_module_opens_with_a_sentence(module: str) -> None:
    text = ast.get_docstring(ast.parse(modules()[module].read_text()))
    assert text, f"{module} has no docstring"
    assert text.split("\n\n")[0].rstrip().endswith((".", ":")), f"{module}: {text!r}"
