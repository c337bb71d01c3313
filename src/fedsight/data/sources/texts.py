"""Texts in a CSV or JSONL file, a line each: text, label, and if known site and part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import Field

from fedsight.core.errors import DataError
from fedsight.data.assembly import Collection, Labels, Loaded, Record, opened_whole
from fedsight.data.base import Dataset, Indices, Location, sources
from fedsight.data.base import Words as Names
from fedsight.data.class_map import MappedClasses
from fedsight.data.class_names import Similar
from fedsight.data.columns import unread_beside
from fedsight.data.duplicates.counts import Handling
from fedsight.data.groups import Overlap, is_pattern
from fedsight.data.parts import part_stated
from fedsight.data.single_draws import content_key
from fedsight.data.site_names import settled_sites, site_names
from fedsight.data.text.rows import COLUMNS, text_rows
from fedsight.data.text.texts import NO_WORDS, Texts, TextSource


@sources.add("texts", reads="CSV or JSONL with text and label, optionally site and split")
class TextFile(MappedClasses, TextSource):
    """Texts with labels: a CSV with a header (`.csv`), or an object a line (`.jsonl`).

    The columns are `text` and `label`, optionally `site` and `split` (train, val or test). Without
    a `split`, `test_fraction` of each class is held out.
    """

    path: Location  # the file
    classes: Names | None = None  # the vocabulary, in order; None: all labels, sorted
    label_separator: str | None = Field(None, min_length=1)  # between several labels of a text
    # what to do with class names that differ only in case, blanks, Unicode form or the like
    similar_names: Similar = "error"
    similar_sites: Similar = "error"  # the same for names of sites
    delimiter: str = Field(",", min_length=1, max_length=1)  # of a CSV
    # texts that are equal in all their words
    duplicates: Handling = "report"
    group: str | None = Field(None, min_length=1)  # the column or key of what is held out whole
    group_overlap: Overlap = "error"  # groups that the file puts into two parts
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
        for record in records:
            for what, key in (("site", "site"), ("part", "split")):
                if (getattr(record, what) is None) != (getattr(records[0], what) is None):
                    cause = f"{record.where}: some texts have a {key} and others do not"
                    raise DataError(cause, f"fill in the {key} of every text")
        separator, similar, naming = self.label_separator, self.similar_names, self.naming
        labels = Labels.in_cells(records, self.classes, separator, similar, naming)
        records, said = settled_sites(records, self.similar_sites, "texts")
        sites = site_names([record.site for record in records], str(self.path))

        def load(chosen: Indices) -> Loaded:
            where = [records[at].where for at in chosen]
            found = Texts.of([texts[at] for at in chosen], where, self.length)
            return found, np.arange(len(chosen)), []

        found = Collection(str(self.path), labels, sites, None, load, said)
        opened = opened_whole(found, records, preprocess, self, skipped)
        found.check(opened, "error", "texts")
        beside = unread_beside(self.path) if records[0].part is None else ()
        return replace(opened, facts={"title": self.path.stem}, notes=(*beside, *opened.notes))

    def _read(self) -> tuple[list[Record], list[list[str | None]], list[str]]:
        """Records, their words, and where texts without a word were left out."""
        records, texts, skipped = [], [], []
        if is_pattern(self.group):
            cause = f"data.group = '{self.group}' is a pattern over paths, and texts have none"
            raise DataError(cause, "name the column or the key of the group")
        rows = text_rows(self.path, ("text", "label"), self.delimiter, self.group)
        for line, values in rows:
            where = f"{self.path}, line {line}"
            found = self.words(values["text"])
            if found:
                record = _record(values, where, self.label_separator is not None)
                group = values[self.group].strip() or None if self.group else None
                key = "" if group else content_key(values["text"].encode(errors="surrogatepass"))
                records.append(replace(record, group=group, key=key))
                texts.append(found)
            elif self.corrupt == "skip":
                skipped.append(where)
            else:
                cure = 'remove the line, or set data.corrupt = "skip" to leave it out'
                raise DataError(f"{where}: {NO_WORDS}", cure)
        return records, texts, skipped


def _record(values: dict[str, str], where: str, unlabelled: bool) -> Record:
    for key in COLUMNS[1:]:
        if key in values and not values[key].strip() and not (unlabelled and key == "label"):
            raise DataError(f"{where}: '{key}' is empty", "fill it in or remove the line")
    part = part_stated(values.get("split", "").strip() or None, where)
    site = values.get("site")
    label = values["label"].strip()
    return Record(where, label, None if site is None else site.strip(), part, where)
