"""Lines of growing files are read once."""

from __future__ import annotations

import json

import pytest

from fedsight.core.line_cache import LineCache


def test_a_line_is_read_once_whichever_file_it_is_in() -> None:
    read: list[bytes] = []

    def value(line: bytes) -> object:
        read.append(line)
        return json.loads(line)

    cache = LineCache(value)
    first = cache(b'{"round": 1}')
    assert cache(bytes(bytearray(b'{"round": 1}'))) is first
    assert cache(b'{"round": 2}') == {"round": 2}
    assert read == [b'{"round": 1}', b'{"round": 2}']


def test_what_is_nothing_is_remembered_and_what_fails_is_not() -> None:
    read: list[bytes] = []

    def value(line: bytes) -> None:
        read.append(line)
        if line == b"broken":
            raise ValueError("broken")

    cache = LineCache(value)
    for line in (b"empty", b"empty"):
        assert cache(line) is None
    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            cache(b"broken")
    assert read == [b"empty", b"broken", b"broken"]


def test_only_the_lines_that_were_read_last_are_remembered() -> None:
    read: list[bytes] = []
    cache = LineCache(read.append, most=2)
    for line in (b"a", b"b", b"a", b"c", b"a", b"b"):
        cache(line)
    assert read == [b"a", b"b", b"c", b"b"]
