"""Texts in a CSV or JSONL file, a line each: text, label, and if known site and part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from fedsight.core.errors import DataError
from fedsight.data.assembly import Record, held_out, vocabulary
from fedsight.data.base import Dataset, Location, Part, sources
from fedsight.data.base import Words as Names
from fedsight.data.text.rows import COLUMNS, text_rows
from fedsight.data.text.texts import NO_WORDS, Texts, TextSource


@sources.add("texts", reads="CSV or JSONL with text and label, optionally site and split")
class TextFile(TextSource):
    """Texts with one label each: a CSV with a header (`.csv`), or an object a line (`.jsonl`).

    The columns are `text` and `label`, optionally `site` and `split` (train or test). Without a
    `split`, `test_fraction` of each class is held out.
    """

    path: Location  # the file
    classes: Names | None = None  # the vocabulary, in order; None: all labels, sorted
    test_fraction: float = Field(0.2, gt=0, lt=1)  # held out where the file has no test part
    test_seed: int = 0  # which texts are held out

    def locations(self) -> dict[str, Path]:
        """The file."""
        return {"path": self.path}

    def open(self) -> Dataset:
        """Read the file; DataError names file and line."""
        preprocess = self.numbers()
        records, texts, skipped = self._read()
        if not records:
            raise DataError(f"'{self.path}' has no texts", "add lines with a text and a label")
        sites = None if records[0].site is None else np.array([one.site for one in records])
        for record in records:
            for what in ("site", "test"):
                if (getattr(record, what) is None) != (getattr(records[0], what) is None):
                    key = "split" if what == "test" else what
                    raise DataError(f"{record.where}: all texts have a {key} or none", "fill it in")
        names, labels = vocabulary(records, self.classes)
        if records[0].test is None:
            test = held_out(labels, sites, self.test_fraction, self.test_seed)
        else:
            test = np.array([record.test for record in records])
        parts = []
        for title, mask in (("training", ~test), ("test", test)):
            chosen = np.flatnonzero(mask)
            if not len(chosen):
                raise DataError(f"'{self.path}' has no {title} texts", "add some of each class")
            where = [records[at].where for at in chosen]
            found = Texts.of([texts[at] for at in chosen], where, self.length)
            ids = None if sites is None else sites[chosen].tolist()
            parts.append(Part(found, labels[chosen], ids))
        self._check_training(parts[0], names, sites)
        facts = {"title": self.path.stem}
        return Dataset(parts[0], parts[1], names, preprocess, tuple(skipped), facts)

    def _check_training(self, part: Part, names: tuple[str, ...], sites: Any) -> None:
        counts = np.bincount(part.labels, minlength=len(names))
        if not counts.all():
            cause = f"'{self.path}': class '{names[int(counts.argmin())]}' has no training texts"
            raise DataError(cause, "add some, or take it out of data.classes")
        absent = set() if sites is None else set(sites.tolist()) - set(part.sites or ())
        if absent:
            raise DataError(
                f"'{self.path}': site '{min(absent)}' has no training texts", "add some"
            )

    def _read(self) -> tuple[list[Record], list[list[str | None]], list[str]]:
        """Records, their words, and where texts without a word were left out."""
        records, texts, skipped = [], [], []
        for line, values in text_rows(self.path, ("text", "label")):
            where = f"{self.path}, line {line}"
            found = self.words(values["text"])
            if found:
                records.append(_record(values, where))
                texts.append(found)
            elif self.corrupt == "skip":
                skipped.append(where)
            else:
                cure = 'remove the line, or set data.corrupt = "skip" to leave it out'
                raise DataError(f"{where}: {NO_WORDS}", cure)
        return records, texts, skipped


def _record(values: dict[str, str], where: str) -> Record:
    for key in COLUMNS[1:]:
        if key in values and not values[key].strip():
            raise DataError(f"{where}: '{key}' is empty", "fill it in or remove the line")
    split = values.get("split", "").strip() or None
    if split not in (None, "train", "test"):
        raise DataError(f"{where}: 'split' is '{split}'", "write 'train' or 'test'")
    site = values.get("site")
    return Record(
        path=where,
        label=values["label"].strip(),
        site=None if site is None else site.strip(),
        test=None if split is None else split == "test",
        where=where,
    )
