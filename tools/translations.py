"""Keep the catalogue in step with the code: `src/fedsight/language/zh.po`, and its compiled form.

    python tools/translations.py

Adds the sentences that the code has and the catalogue lacks, with an empty translation, drops those
that the code no longer has, sorts the file, compiles it, and lists what is still to be translated
(exit code 1 if anything is). Write translations into `zh.po` and run it again. In a merge with
conflicts in these two files, run it before anything else: it takes the entries of both sides.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po, write_po
from sentences import Key, all_sentences

LANGUAGE = Path(__file__).parents[1] / "src" / "fedsight" / "language"
PO = LANGUAGE / "zh.po"
MO = LANGUAGE / "zh" / "LC_MESSAGES" / "fedsight.mo"
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
FIELD = re.compile(r"\{(\w+)")


class _Undated(Catalog):
    """A catalogue whose header has neither dates nor the version of the tool."""

    mime_headers = [  # noqa: RUF012
        ("Language", "zh"),
        ("Content-Type", "text/plain; charset=UTF-8"),
        ("Content-Transfer-Encoding", "8bit"),
        ("Plural-Forms", "nplurals=1; plural=0;"),
    ]


def in_catalogue(content: bytes | None = None) -> dict[Key, str]:
    """Every sentence of the catalogue, with its Chinese."""
    found = {}
    content = PO.read_bytes() if content is None else content
    for entry in read_po(io.BytesIO(content), "zh"):
        if entry.id:
            key = entry.id if isinstance(entry.id, tuple) else (entry.id,)
            found[key] = entry.string[0] if isinstance(entry.string, tuple) else entry.string
    return found


def written(entries: dict[Key, str]) -> tuple[bytes, bytes]:
    """The contents of the catalogue file and of its compiled form."""
    catalog = _Undated("zh")
    for key in sorted(entries):
        translated = entries[key]
        if len(key) == 1:
            catalog.add(key[0], translated)
        else:
            catalog.add(key, (translated,))
    text, compiled = io.BytesIO(), io.BytesIO()
    write_po(text, catalog, width=0, omit_header=True)
    whole = (HEADER.encode() + text.getvalue()).rstrip() + b"\n"
    write_mo(compiled, catalog)
    return whole, compiled.getvalue()


def both_sides() -> dict[Key, str]:
    """The catalogue; in a merge with conflicts, the entries of both sides."""
    listed = subprocess.run(
        ["git", "ls-files", "--unmerged", PO.name], cwd=PO.parent, capture_output=True, check=False
    )
    found: dict[Key, str] = {}
    for line in listed.stdout.splitlines():
        stage = line.split()[2].decode()
        if stage != "1":  # the common ancestor
            side = ["git", "show", f":{stage}:./{PO.name}"]
            shown = subprocess.run(side, cwd=PO.parent, capture_output=True, check=True)
            found |= {key: told for key, told in in_catalogue(shown.stdout).items() if told}
    return found or (in_catalogue() if PO.exists() else {})


def renamed(known: dict[Key, str], entries: dict[Key, str]) -> None:
    """Keep the translation of a sentence in which only names of fields have changed."""
    gone = {FIELD.sub("{", key[0]): key for key in known.keys() - entries.keys() if known[key]}
    for key, translated in entries.items():
        old = gone.get(FIELD.sub("{", key[0]))
        if translated or old is None or len(old) != len(key):
            continue
        names = dict(zip(FIELD.findall(old[0]), FIELD.findall(key[0]), strict=True))
        entries[key] = FIELD.sub(lambda field, names=names: f"{{{names[field[1]]}", known[old])


def main() -> int:
    """Bring the files up to date; 1 if a translation is missing."""
    known = both_sides()
    entries = {key: known.get(key, "") for key in all_sentences()}
    renamed(known, entries)
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
