"""Texts: numbers of words, the source of text files, and the presidents' addresses."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsight.core.errors import DataError
from fedsight.data.base import Readable
from fedsight.data.fetch.packages import find
from fedsight.data.sources.sotu import StateOfTheUnion
from fedsight.data.sources.texts import TextFile
from fedsight.data.text.texts import FIRST, GAP, NUMBERS, PADDING, Texts, number, row, words

# Words


def test_words_are_told_from_punctuation() -> None:
    text = "Fellow-Citizens: in 1790, it’s the PEOPLE's_house—naïve!"
    assert words(text) == [
        *("fellow", "citizens", "in", "1790", "it's", "the", "people's", "house", "naïve")
    ]
    assert words(" ... —_— ") == []


@given(st.text(min_size=1))
def test_a_word_has_one_number_that_float32_holds(word: str) -> None:
    value = number(word)
    assert FIRST <= value < FIRST + NUMBERS
    assert int(torch.tensor(float(value), dtype=torch.float32)) == value == number(word)


def test_numbers_never_change() -> None:
    assert (number("peace"), number("war")) == (1383497, 1240371)


@given(st.lists(st.none() | st.text(min_size=1), max_size=9), st.integers(1, 9))
def test_rows_have_one_length(text: list[str | None], length: int) -> None:
    found = row(text, length)
    assert len(found) == length
    assert [value == GAP for value in found[: len(text)]] == [w is None for w in text[:length]]
    assert set(found[len(text) :]) <= {PADDING}


def test_texts_are_read_as_images_and_by_people() -> None:
    texts = Texts.of([["a", None, "b", "c"], ["d"]], ["one", "two"], 3)
    assert isinstance(texts, Readable)
    expected = [[number("a"), GAP, number("b")], [number("d"), PADDING, PADDING]]
    read = texts.read(torch.tensor([0, 1]))
    assert read.dtype == torch.float32
    assert read.tolist() == [[[expected[0]]], [[expected[1]]]]
    assert (texts.excerpt(0), texts.name(1), len(texts)) == ("a ____ b", "two", 2)


# A file of texts


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(f"{json.dumps(one)}\n" for one in rows), encoding="utf-8")
    return path


def lines(n: int = 20, **more: str) -> list[dict[str, str]]:
    return [{"text": f"text {i}", "label": "ab"[i % 2], **more} for i in range(n)]


def test_csv_and_jsonl_say_the_same(tmp_path: Path) -> None:
    rows = [{**one, "site": "xyz"[i % 3]} for i, one in enumerate(lines(30))]
    jsonl = TextFile(path=write(tmp_path / "a.jsonl", rows), length=4).open()
    body = "".join(f'"{one["text"]}",{one["label"]},{one["site"]}\n' for one in rows)
    (tmp_path / "a.csv").write_text(f"text,label,site\n{body}")
    table = TextFile(path=tmp_path / "a.csv", length=4).open()
    for opened in (jsonl, table):
        assert opened.classes == ("a", "b")
        assert (len(opened.train), len(opened.test)) == (24, 6)
        assert (opened.preprocess.height, opened.preprocess.width) == (1, 4)
        assert set(opened.train.sites or ()) == {"x", "y", "z"}
    for one, other in ((jsonl.train, table.train), (jsonl.test, table.test)):
        every = torch.arange(len(one))
        assert torch.equal(one.images.read(every), other.images.read(every))
        assert np.array_equal(one.labels, other.labels)


def test_a_given_split_is_kept(tmp_path: Path) -> None:
    rows = [*lines(4, split="train"), *lines(2, split="test")]
    opened = TextFile(path=write(tmp_path / "a.jsonl", rows)).open()
    assert (len(opened.train), len(opened.test)) == (4, 2)


def test_an_empty_text_is_named_or_skipped_and_counted(tmp_path: Path) -> None:
    rows = lines()
    rows[6]["text"] = " ... "
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"a\.jsonl, line 7: the text has no words"):
        TextFile(path=path).open()
    opened = TextFile(path=path, corrupt="skip").open()
    assert opened.skipped == (f"{path}, line 7",)
    assert len(opened.train) + len(opened.test) == 19


BROKEN = {
    "line 2: Expecting": '{"text": "a", "label": "b"}\n{"text"\n',
    "line 1: maximum recursion": "[" * 100_000,
    "line 1: expected an object with 'text' and 'label'": '{"label": "b"}\n',
    "line 1: expected an object": '["text", "label"]\n',
    "all of them strings": '{"text": 1, "label": "b"}\n',
    "line 1: 'label' is empty": '{"text": "a", "label": " "}\n',
    "line 1: 'split' is 'dve'": '{"text": "a", "label": "b", "split": "dve"}\n',
    "has no texts": "",
    "line 2: some texts have a site and others do not": '{"text": "a", "label": "b"}\n'
    '{"text": "a", "label": "b", "site": "c"}\n',
    "has no test texts": '{"text": "a", "label": "b"}\n',
    "class 'c' has no training": '{"text": "a", "label": "b", "split": "train"}\n'
    '{"text": "a", "label": "c", "split": "test"}\n',
    "site 'y' has no training": '{"text": "a", "label": "b", "site": "x", "split": "train"}\n'
    '{"text": "a", "label": "b", "site": "y", "split": "test"}\n',
}


@pytest.mark.parametrize("cause", BROKEN)
def test_a_broken_jsonl_is_named_by_line(tmp_path: Path, cause: str) -> None:
    (tmp_path / "a.jsonl").write_text(BROKEN[cause])
    with pytest.raises(DataError, match=cause):
        TextFile(path=tmp_path / "a.jsonl").open()


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"words,label\na,b\n", "line 1: there is no column 'text'"),
        (b"text,label\na,b\na\n", "line 3 has fewer values than the first line"),
        (b'text,label\na,"b\n', "line [23]: unexpected end of data"),
        (b"text,label\n\xff,b\n", "is not UTF-8"),
    ],
)
def test_a_broken_csv_is_named_by_line(tmp_path: Path, content: bytes, cause: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError, match=cause):
        TextFile(path=tmp_path / "a.csv").open()


def test_a_missing_file_and_brightness_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        TextFile(path=tmp_path / "none.csv").open()
    with pytest.raises(DataError, match="brightness"):
        TextFile(path=write(tmp_path / "a.jsonl", lines()), mean=(0.5,)).open()


# The presidents' addresses

NOUNS = ("people", "peace", "war")
PRESIDENTS = {"Ada": range(1800, 1808), "Bob": range(1808, 1810), "Cy": range(1810, 1811)}


@pytest.fixture
def addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eleven small addresses in the cache."""
    monkeypatch.setenv("FEDSIGHT_CACHE", str(tmp_path))
    folder = tmp_path / "sotu"
    folder.mkdir()
    for name, years in PRESIDENTS.items():
        for year in years:
            text = f"In {year} the people want peace, not war. " * 3
            entry = {"year": year, "name": name, "party": "none", "text": text}
            (folder / f"{year}_{name}.json").write_text(json.dumps(entry))
    receipt = {"sha256": find("sotu").sha256, "files": {}}
    (folder / ".fetched").write_text(json.dumps(receipt))
    return folder


def years(part: object) -> set[int]:
    images = part.images  # type: ignore[attr-defined]
    return {int(images.name(at).split(",")[0].split()[-1]) for at in range(len(images))}


def test_each_noun_becomes_a_gap_and_whole_addresses_are_tested(addresses: Path) -> None:
    opened = StateOfTheUnion(nouns=NOUNS, length=6).open()
    assert years(opened.train) & years(opened.test) == set()
    assert years(opened.train) | years(opened.test) == set(range(1800, 1811))
    assert Counter(opened.test.sites or ()) == {"Ada": 2 * 9, "Bob": 9}  # Cy gave one only
    nouns = [opened.classes[label] for label in opened.train.labels[:3]]
    assert nouns == ["people", "peace", "war"]
    images = opened.train.images
    assert isinstance(images, Readable)
    assert images.excerpt(0).split()[2:] == ["the", "____", "want", "peace"]
    assert images.read(torch.tensor([0]))[0, 0, 0, 3] == GAP
    assert images.excerpt(1) == "the people want ____ not war"
    assert images.name(0).endswith("word 4")
    gaps = (images.read(torch.arange(len(images))) == GAP).flatten(1).sum(1)
    assert gaps.tolist() == [1] * len(images)


def test_a_text_is_asked_about_as_it_was_trained_on(addresses: Path) -> None:
    source = StateOfTheUnion(nouns=NOUNS, length=6)
    images = source.open().train.images
    shown = images.read(torch.tensor([1]))[0, 0, 0].tolist()
    assert row(source.words("In 1802: The people want ____, not war. In 1802"), 6) == shown
    assert source.words("____ first") == ["", "", "", None, "first"]
    with pytest.raises(DataError, match="no gap") as caught:
        source.words("nothing is missing")
    assert "____" in caught.value.cure


def test_other_nouns_can_be_asked_for(addresses: Path) -> None:
    opened = StateOfTheUnion(nouns=("war", "peace")).open()
    assert opened.classes == ("war", "peace")
    assert set(opened.train.labels.tolist()) == {0, 1}


def test_an_empty_address_is_named_or_skipped(addresses: Path) -> None:
    path = addresses / "1803_Ada.json"
    path.write_text(json.dumps({"year": 1803, "name": "Ada", "text": " - "}))
    with pytest.raises(DataError, match=r"1803_Ada\.json' has no words"):
        StateOfTheUnion().open()
    opened = StateOfTheUnion(nouns=NOUNS, corrupt="skip").open()
    assert opened.skipped == (str(path),)
    path.write_text("{}")
    with pytest.raises(DataError, match=r"1803_Ada\.json' is not an address"):
        StateOfTheUnion().open()


def test_nouns_that_nobody_said_are_named(addresses: Path) -> None:
    with pytest.raises(DataError, match="'xylophone' does not occur in any training address"):
        StateOfTheUnion(nouns=("peace", "xylophone")).open()
