"""Keep the catalogue in step with the code: `src/fedsight/language/zh.po`, and its compiled form.

    python tools/translations.py

Adds the sentences that the code has and the catalogue lacks, with an empty translation, drops those
that the code no longer has, sorts the file, compiles it, and lists what is still to be translated
(exit code 1 if anything is). Write translations into `zh.po` and run it again. After a merge with
conflicts, keep both sides' entries in `zh.po` and run it; the compiled file is never merged.
"""

from __future__ import annotations

import ast
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import jinja2
from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from jinja2.ext import extract_from_ast

ROOM = Path(__file__).parents[1] / "src" / "fedsight"
PO = ROOM / "language" / "zh.po"
MO = ROOM / "language" / "zh" / "LC_MESSAGES" / "fedsight.mo"
HEADER = """\
# The Chinese of everything that people read; the keys are the English sentences in the code.
# Kept in step by tools/translations.py, sorted by key.
msgid ""
msgstr ""
"Language: zh\\n"
"Content-Type: text/plain; charset=UTF-8\\n"
"Content-Transfer-Encoding: 8bit\\n"
"Plural-Forms: nplurals=1; plural=0;\\n"

"""
Key = tuple[str, ...]  # a sentence, or a sentence for one and a sentence for many
SENTENCES = {"message": 1, "plural": 2}  # function -> how many of its first arguments are sentences


def in_python(code: str, name: str) -> Iterator[Key]:
    """The sentences of a module.

    Raises:
        SyntaxError: a call whose sentence is not a plain string.
    """
    nodes = list(ast.walk(ast.parse(code)))
    imported = {
        alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "fedsight.language.message"
        for alias in node.names
    }
    for node in nodes:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
            continue
        if node.func.id not in imported or (count := SENTENCES.get(node.func.id)) is None:
            continue
        given = [one.value for one in node.args[:count] if isinstance(one, ast.Constant)]
        if len(given) < count or not all(isinstance(one, str) for one in given):
            where = f"{name}, line {node.lineno}"
            raise SyntaxError(f"{where}: {node.func.id}() needs its sentence as a plain string")
        yield tuple(str(one) for one in given)


def in_template(text: str) -> Iterator[Key]:
    """The sentences of a page."""
    parsed = jinja2.Environment().parse(text)
    for _, function, found in extract_from_ast(parsed, tuple(SENTENCES)):
        given = (found,) if isinstance(found, str) else found
        yield tuple(str(one) for one in given[: SENTENCES[function]])


def in_code() -> set[Key]:
    """Every sentence of the package."""
    found: set[Key] = set()
    for path in sorted(ROOM.rglob("*.py")):
        found.update(in_python(path.read_text(encoding="utf-8"), str(path.relative_to(ROOM))))
    for path in sorted(ROOM.rglob("*.html")):
        found.update(in_template(path.read_text(encoding="utf-8")))
    return found


def in_catalogue() -> dict[Key, str]:
    """Every sentence of the catalogue, with its Chinese."""
    found = {}
    for entry in read_po(io.BytesIO(PO.read_bytes()), "zh"):
        if entry.id:
            key = entry.id if isinstance(entry.id, tuple) else (entry.id,)
            found[key] = entry.string[0] if isinstance(entry.string, tuple) else entry.string
    return found


def written(entries: dict[Key, str]) -> tuple[bytes, bytes]:
    """The contents of the catalogue file and of its compiled form."""
    catalog = Catalog("zh", header_comment="")
    for key in sorted(entries):
        translated = entries[key]
        if len(key) == 1:
            catalog.add(key[0], translated)
        else:
            catalog.add(key, (translated,))
    text, compiled = io.BytesIO(), io.BytesIO()
    write_po(text, catalog, width=0, omit_header=True)
    whole = (HEADER.encode() + text.getvalue()).rstrip() + b"\n"
    write_mo(compiled, read_po(io.BytesIO(whole), "zh"))
    return whole, compiled.getvalue()


def main() -> int:
    """Bring the files up to date; 1 if a translation is missing."""
    known = in_catalogue() if PO.exists() else {}
    entries = {key: known.get(key, "") for key in in_code()}
    text, compiled = written(entries)
    PO.write_bytes(text)
    MO.parent.mkdir(parents=True, exist_ok=True)
    MO.write_bytes(compiled)
    missing = sorted(key for key, translated in entries.items() if not translated)
    print(f"{len(entries)} sentences, {len(missing)} without a translation")
    for key in missing:
        print(f"  {key[0]}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
