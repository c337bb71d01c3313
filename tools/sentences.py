"""Find every sentence that people read: in calls, in help, in errors, in what rooms say.

`tools/translations.py` makes the catalogue of them. In most calls a sentence stands as it is
(`message("...")`); an error has an f-string, which becomes a sentence with a named field for each
value, as `language/english.py` recognises it. A sentence that is put together from pieces (`a if b
else c`, `+`, a name that was assigned before) is followed through all its variants.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import extract_from_ast

ROOM = Path(__file__).parents[1] / "src" / "fedsight"
Key = tuple[str, ...]  # a sentence, or a sentence for one and a sentence for many
Known = dict[str, list[ast.expr]]  # what names stand for
MESSAGES = {"message": 1, "plural": 2}  # function -> how many of its first arguments are sentences
HEADINGS = ("make_table",)  # functions that take headings
ENDINGS = ("Interrupted", "Paused")  # errors whose names do not say that they are
# Functions that take a line to be shown.
SAYING = ("say", "_say", "notify", "_notify", "progress", "notice", "private")
NOT_SHOWN = ("AssertionError", "AttributeError", "KeyError", "NotImplementedError", "OSError")
TITLES = ("headline_title",)  # class variables that hold a title
ABOUT = ("about", "reads", "note", "images", "texts")  # keywords that describe a part
# Modules in which every string that reads like a sentence is one that people read: notes about
# data and models, reasons, cures. (`*` stands for all modules of a folder.)
SAID_IN = (
    "client/failures.py",
    "coordinator/loop.py", "coordinator/protection.py", "coordinator/trackers.py",
    "coordinator/turns.py",
    "core/errors.py", "core/registry.py", "core/wording.py",
    "data/assembly.py", "data/base.py", "data/class_names.py", "data/columns.py",
    "data/class_map.py", "data/csv_file.py", "data/detection/assembly.py",
    "data/detection/coco_set.py",
    "data/detection/found.py", "data/detection/objects.py", "data/detection/yolo_set.py",
    "data/duplicates/*.py", "data/fetch/cache.py", "data/groups.py", "data/images/depth.py",
    "data/images/formats.py",
    "data/images/mask_values.py", "data/layouts.py", "data/parts.py", "data/passed_over.py",
    "data/repeats.py", "data/segmentation/*.py", "data/sources/boxes.py", "data/sources/coco.py",
    "data/sources/masks.py", "data/text/rows.py", "deploy/monitoring/hooks.py",
    "deploy/processes/spawn.py",
    "deploy/processes/supervisor.py", "deploy/server/scheduler.py", "deploy/server/signs.py",
    "deploy/site/figures.py", "deploy/site/told.py", "deploy/site/unanswered.py",
    "deploy/site/owner.py",
    "deploy/site/release.py", "deploy/site/service.py", "engines/remote/*.py",
    "engines/workers.py", "evaluation/attempts.py", "evaluation/fonts.py", "evaluation/overall.py",
    "evaluation/generalisation/exam.py", "evaluation/shortcuts/measure.py",
    "evaluation/trust/covering*.py", "evaluation/trust/masked.py",
    "evaluation/trust/measure.py", "evaluation/trust/of_noise.py", "evaluation/trust/risk.py",
    "evaluation/trust/of_site.py",
    "evaluation/trust/remote.py", "evaluation/trust/scaling.py", "deploy/site/calibration.py",
    "inference/trusted.py",
    "governance/contract.py", "governance/ledger.py", "inference/drawing.py",
    "inference/inputs.py", "models/adapters/*.py", "models/base.py", "models/origin.py",
    "models/patterns.py", "models/weights.py",
    "privacy/secagg/*.py", "program/config.py", "program/draft/guess.py",
    "program/draft/mask_folders.py", "program/draft/tables.py", "program/grid.py",
    "program/isolation.py",
    "program/keywords.py", "program/lone_image.py", "program/misread.py", "program/objective.py",
    "program/objects.py", "program/plugins.py", "program/rounds.py", "program/rules.py",
    "runs/lifecycle.py",
    "runs/progress.py", "runs/sweeps/plan.py", "tasks/covering/*.py", "tasks/faces/company.py",
)  # fmt: skip
NO_SENTENCE = re.compile(r"[\\|<>%]|^[\W_]*$|\bv\d\b|# ")
MOST_VARIANTS = 12
LEAST_LETTERS = 4


def all_sentences() -> set[Key]:
    """Every sentence of the package."""
    found: set[Key] = {(one,) for one in (*help_texts(), *terms())}
    for path in sorted(ROOM.rglob("*.py")):
        code, place = path.read_text(encoding="utf-8"), path.relative_to(ROOM)
        found.update(in_messages(code, str(place)))
        found.update((one,) for one in in_strings(code))
        if any(place.match(one) for one in SAID_IN):
            found.update((one,) for one in said_in(code))
    for path in sorted(ROOM.rglob("*.html")):
        found.update(in_template(path.read_text(encoding="utf-8")))
    return found


def in_messages(code: str, name: str) -> Iterator[Key]:
    """The sentences that a module gives to `message` and `plural`.

    Raises:
        SyntaxError: a call whose sentence is not a plain string.
    """
    _, nodes = _parsed(code)
    imported = {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "fedsight.language.message"
        for alias in node.names
    }
    for node in nodes:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id not in imported or (count := MESSAGES.get(node.func.id)) is None:
            continue
        given = [one.value for one in node.args[:count] if isinstance(one, ast.Constant)]
        if len(given) < count or not all(isinstance(one, str) for one in given):
            where = f"{name}, line {node.lineno}"
            raise SyntaxError(f"{where}: {node.func.id}() needs its sentence as a plain string")
        yield tuple(str(one) for one in given)


def in_template(text: str) -> Iterator[Key]:
    """The sentences of a page."""
    parsed = jinja2.Environment().parse(text)
    for _, function, found in extract_from_ast(parsed, tuple(MESSAGES)):
        given = (found,) if isinstance(found, str) else found
        yield tuple(str(one) for one in given[: MESSAGES[function]])


def help_texts() -> Iterator[str]:
    """The help of all commands and options, by paragraph, and what Typer adds."""
    import typer.main

    from fedsight.cli.app import app
    from fedsight.cli.language import paragraphs

    def visit(command: Any) -> Iterator[str]:
        yield from paragraphs(command.help or "")
        for parameter in command.params:
            yield from paragraphs(getattr(parameter, "help", None) or "")
        for below in getattr(command, "commands", {}).values():
            yield from visit(below)

    for text in visit(typer.main.get_command(app)):
        if not text.startswith("Example: "):
            yield text


def terms() -> Iterable[str]:
    """What people read of the files of runs, and sentences that rooms put together."""
    from fedsight.language.terms import TERMS

    return TERMS


def in_strings(code: str) -> Iterator[str]:
    """The sentences of a module that are strings: those of errors, of lines said, of parts."""
    for _, own, known in _scopes(code):
        for node in own:
            for text in _strings(node):
                for sentence in variants(text, known):
                    if sum(map(str.isalpha, re.sub(r"\{\w*\}", "", sentence))) >= LEAST_LETTERS:
                        yield sentence.strip()


def said_in(code: str) -> Iterator[str]:
    """Every string of a module that reads like a sentence."""
    for scope, _, known in _scopes(code):
        for node in _texts(scope):
            for sentence in variants(node, known):
                bare = re.sub(r"\{\w*\}", "", sentence)
                words = re.findall(r"[A-Za-z]{2,}", bare)
                if len(words) > 1 and " " in sentence.strip() and not NO_SENTENCE.search(sentence):
                    yield sentence.strip()


def _texts(scope: Any) -> Iterator[ast.expr]:
    """The strings of a function or a module, outermost ones, without docstrings."""
    left: list[ast.AST] = list(scope.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        if isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str)
        ):
            yield node
        elif isinstance(node, ast.Call) and _called(node.func) in MESSAGES:
            left.extend(node.keywords)
        else:
            left.extend(ast.iter_child_nodes(node))


def _strings(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions of a node that people read the value of."""
    if isinstance(node, ast.AnnAssign | ast.Assign) and node.value is not None:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
        if any(isinstance(one, ast.Name) and one.id in TITLES for one in targets):
            yield node.value
    if isinstance(node, ast.ClassDef) and _is_registered(node):
        yield ast.Constant((ast.get_docstring(node) or "").split("\n")[0])
    if not isinstance(node, ast.Call):
        return
    name = _called(node.func)
    if (name.endswith("Error") and name not in NOT_SHOWN) or name in (*ENDINGS, *SAYING):
        yield from node.args
    elif name in ("Problem", "_problem"):
        yield from node.args[1:]
    elif name in HEADINGS:
        for one in node.args:
            yield from _elements(one)
    yield from (one.value for one in node.keywords if one.arg in ABOUT)


def _is_registered(node: ast.ClassDef) -> bool:
    """Whether it is a part: the first line of its docstring is what lists say about it."""
    return any(
        isinstance(one, ast.Call) and _called(one.func) == "add" for one in node.decorator_list
    )


def _elements(node: ast.expr) -> Iterator[ast.expr]:
    if isinstance(node, ast.Starred):
        yield from _elements(node.value)
    elif isinstance(node, ast.Tuple | ast.List):
        yield from node.elts
    else:
        yield node


def _called(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


@lru_cache(maxsize=1)  # a module is looked at in several ways, one after the other
def _parsed(code: str) -> tuple[ast.Module, list[ast.AST]]:
    """A module, and all nodes of it."""
    module = ast.parse(code)
    return module, list(ast.walk(module))


@lru_cache(maxsize=1)
def _scopes(code: str) -> list[tuple[Any, list[ast.AST], Known]]:
    """A module and its functions, each with its own nodes and with the names that it knows."""
    module, nodes = _parsed(code)
    functions = [one for one in nodes if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    own = {scope: list(_own(scope)) for scope in [module, *functions]}
    outside = _assigned(own[module])
    return [(scope, found, _known(scope, found, outside)) for scope, found in own.items()]


def _own(scope: Any) -> Iterator[ast.AST]:
    """The nodes of a function or a module, without those of the functions in it."""
    left: list[ast.AST] = list(scope.body)
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            left.extend(ast.iter_child_nodes(node))


def _known(scope: Any, own: Iterable[ast.AST], outside: Known) -> Known:
    """The names of a function: its own, and those of the module that no parameter hides."""
    found = {**outside, **_assigned(own)}
    if not isinstance(scope, ast.Module):
        for given in [*scope.args.posonlyargs, *scope.args.args, *scope.args.kwonlyargs]:
            found.pop(given.arg, None)
    return found


def _assigned(own: Iterable[ast.AST]) -> Known:
    """The expressions that names stand for which these nodes assign."""
    found: Known = {}
    for node in own:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                _assign(found, target, node.value)
        elif (isinstance(node, ast.AnnAssign) and node.value is not None) or isinstance(
            node, ast.NamedExpr
        ):
            _assign(found, node.target, node.value)
    return found


def _assign(found: Known, target: ast.expr, value: ast.expr) -> None:
    if isinstance(target, ast.Name):
        found.setdefault(target.id, []).append(value)
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for one, its in zip(target.elts, value.elts, strict=False):
            _assign(found, one, its)


def variants(node: ast.expr, known: Known) -> list[str]:
    """All sentences that an expression can give, with fields for its values."""
    return [
        _named(pieces)
        for pieces in itertools.islice(_pieces(node, known, frozenset()), MOST_VARIANTS)
    ]


Pieces = list["str | ast.expr"]


def _pieces(node: ast.expr, known: Known, busy: frozenset[str]) -> Iterator[Pieces]:
    """The variants of an expression, each as its texts and the values between them."""
    if isinstance(node, ast.Constant):
        yield [node.value] if isinstance(node.value, str) else [node]
    elif isinstance(node, ast.JoinedStr):
        parts = [list(_pieces(one, known, busy)) for one in node.values]
        for chosen in itertools.product(*parts):
            yield list(itertools.chain.from_iterable(chosen))
    elif isinstance(node, ast.FormattedValue):
        if node.conversion == -1 and node.format_spec is None:
            yield from _pieces(node.value, known, busy)
        else:
            yield [node.value]
    elif isinstance(node, ast.IfExp):
        yield from _pieces(node.body, known, busy)
        yield from _pieces(node.orelse, known, busy)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        right = list(_pieces(node.right, known, busy))
        for left in _pieces(node.left, known, busy):
            yield from ([*left, *one] for one in right)
    elif isinstance(node, ast.Name) and _are_texts(known.get(node.id)) and node.id not in busy:
        for value in known[node.id]:
            yield from _pieces(value, known, busy | {node.id})
    else:
        yield [node]


def _are_texts(values: list[ast.expr] | None) -> bool:
    return bool(values) and all(_is_text(one) for one in values or ())


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _is_text(node.left) or _is_text(node.right)
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _named(pieces: Pieces) -> str:
    """A sentence of its texts and, for its values, fields with names."""
    names: dict[str, str] = {}
    found = ""
    for piece in pieces:
        if isinstance(piece, str):
            escaped = piece.replace("{", "{{").replace("}", "}}")
            found += re.sub(r"\{\{(\w+)\}\}", r"{\1}", escaped)  # filled in by str.format later
            continue
        source, name = ast.unparse(piece), _name(piece)
        if source not in names:
            taken = set(names.values())
            numbers = itertools.chain([""], map(str, itertools.count(2)))
            names[source] = next(f"{name}{n}" for n in numbers if f"{name}{n}" not in taken)
        found += f"{{{names[source]}}}"
    return found


def _name(node: ast.expr) -> str:
    """What to call the value of an expression."""
    if isinstance(node, ast.Name):
        return node.id.strip("_")
    if isinstance(node, ast.Attribute):
        return node.attr.strip("_")
    if isinstance(node, ast.Call):
        called = _called(node.func)
        if called == "len":
            return "n"
        if called in ("join", "repr", "str", "sorted", "type") and node.args:
            return _name(node.args[0])
        return called.strip("_") or "value"
    if isinstance(node, ast.Subscript):
        key = node.slice
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            return key.value
        return _name(node.value)
    if isinstance(node, ast.GeneratorExp | ast.ListComp):
        return _name(node.generators[0].iter)
    return "value"
