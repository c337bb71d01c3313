"""The catalogue is complete and in step: every sentence of the code, no other, the same fields."""

from __future__ import annotations

import re
import string
from collections.abc import Iterable

import pytest
import sentences
import translations
from sentences import Key

Catalogue = dict[Key, str]


@pytest.fixture(scope="module")
def found() -> set[Key]:
    """Those of the code, which takes seconds to read: not while tests are collected."""
    return sentences.all_sentences()


@pytest.fixture(scope="module")
def chinese() -> Catalogue:
    return translations.in_catalogue()


def fields(text: str) -> list[tuple[str, str]]:
    """The fields of a sentence with their formats, sorted."""
    parsed = string.Formatter().parse(text)
    return sorted((name, spec or "") for _, name, spec, _ in parsed if name is not None)


def named(keys: Iterable[Key]) -> list[str]:
    return sorted(key[0] for key in keys)


def test_every_sentence_has_a_translation(found: set[Key], chinese: Catalogue) -> None:
    assert named(found - chinese.keys()) == [], "run tools/translations.py, and translate these"
    assert named(key for key, translated in chinese.items() if not translated.strip()) == []


def test_no_entry_is_left_over(found: set[Key], chinese: Catalogue) -> None:
    assert named(chinese.keys() - found) == [], "run tools/translations.py"


def test_a_translation_has_the_fields_of_its_sentence(chinese: Catalogue) -> None:
    wrong = {
        key: translated
        for key, translated in chinese.items()
        if set(fields(translated)) != set(fields(key[-1]))
    }
    assert wrong == {}


def test_both_forms_of_a_plural_have_the_same_fields(chinese: Catalogue) -> None:
    forms = [key for key in chinese if len(key) == 2]
    assert forms
    assert [key for key in forms if set(fields(key[0])) - set(fields(key[1]))] == []


def test_fields_are_plain_names(chinese: Catalogue) -> None:
    for key in chinese:
        for sentence in key:
            for name, _ in fields(sentence):
                assert re.fullmatch(r"\w*", name), sentence


def test_the_files_are_as_the_tool_writes_them(chinese: Catalogue) -> None:
    text, compiled = translations.written(chinese)
    assert translations.PO.read_bytes() == text
    assert translations.MO.read_bytes() == compiled


def test_translations_are_chinese(chinese: Catalogue) -> None:
    """A sentence of words is not left in English: names, commands and settings alone may be."""
    same = {key[0] for key, translated in chinese.items() if translated == key[0]}
    assert {one for one in same if len(re.findall(r"[a-z]{2,}", one)) > 4} == set()


@pytest.mark.parametrize("mark", ["：：", "。。", " ，", " 。", "，，", "?", "  "])
def test_chinese_is_punctuated_as_chinese(chinese: Catalogue, mark: str) -> None:
    aligned = ("正常   ", "提示   ", "问题   ")
    wrong = [one for one in chinese.values() if mark in one and one not in aligned]
    assert [one for one in wrong if "\n" not in one] == []


def test_a_sentence_that_is_no_plain_string_is_refused() -> None:
    code = "from fedsight.language.message import message\nmessage(f'{x} is wrong')\n"
    with pytest.raises(SyntaxError, match=r"module.py, line 2: message\(\) needs its sentence"):
        list(sentences.in_messages(code, "module.py"))


def test_the_sentences_of_an_error_are_followed_through_names_and_branches() -> None:
    code = """
def check(path, line):
    where = f"{path}, line {line}"
    more = " and more" if line else ""
    cure = "correct it" + (" now" if line else "")
    raise DataError(f"{where}: '{path.name}' is wrong{more}", cure)
"""
    assert set(sentences.in_strings(code)) == {
        "{path}, line {line}: '{name}' is wrong",
        "{path}, line {line}: '{name}' is wrong and more",
        "correct it",
        "correct it now",
    }


def test_a_parameter_hides_a_name_of_the_module() -> None:
    code = 'path = "path"\ndef f(path):\n    raise DataError(f"{path} is wrong here")\n'
    assert set(sentences.in_strings(code)) == {"{path} is wrong here"}


def test_renamed_fields_keep_their_translation() -> None:
    known = {("there is no {thing} in {place}",): "{place} 中没有 {thing}"}
    entries = {("there is no {name} in {folder}",): ""}
    translations.renamed(known, entries)
    assert entries == {("there is no {name} in {folder}",): "{folder} 中没有 {name}"}
