"""Numbers in words: each unit, each edge."""

from __future__ import annotations

import math

import pytest

from fedsight.language.message import text_in
from fedsight.report import words


@pytest.mark.parametrize(
    ("got", "wanted"),
    [
        (words.percent(0.8814), "88.1 %"),
        (words.percent(None), "–"),
        (words.percent(math.nan), "not finite"),
        (words.points(0.3304), "+33.0 points"),
        (words.points(-0.003), "−0.3 points"),
        (words.points(-0.00001), "0.0 points"),
        (words.points(None), "–"),
        (words.bare_points(math.inf), "not finite"),
        (words.number(0.12345), "0.123"),
        (words.number(None), "–"),
        (words.number(math.nan), "not finite"),
        (words.count(1234567), "1,234,567"),
        (words.count(None), "–"),
        (words.size(0), "0 bytes"),
        (words.size(999), "999 bytes"),
        (words.size(1000), "1.0 kB"),
        (words.size(999_999), "1.0 MB"),
        (words.size(20_934_290), "20.9 MB"),
        (words.size(523_000_000), "523 MB"),
        (words.size(2.5e12), "2.5 TB"),
        (words.size(None), "–"),
        (words.duration(0.04), "0.0 s"),
        (words.duration(9.94), "9.9 s"),
        (words.duration(9.96), "10 s"),
        (words.duration(59.7), "1 min 0 s"),
        (words.duration(87.4), "1 min 27 s"),
        (words.duration(7260), "2 h 1 min"),
        (words.duration(None), "–"),
        (words.duration(math.inf), "not finite"),
        (words.sites(1), "1 site"),
        (words.sites(1000), "1,000 sites"),
        (words.rounds(10**30), "1e+30 rounds"),
        (words.percent(1e100), "1e+102 %"),
        (words.points(-1e100), "−1e+102 points"),
        (words.number(1e100), "1e+100"),
        (words.count(10**100), "1e+100"),
        (words.size(10**100), "1e+100 bytes"),
        (words.duration(1e100), "1e+100 s"),
        (words.date("2025-11-21T05:40:00"), "21 November 2025, 05:40"),
        (words.date("soon"), "soon"),
        (words.label("a\nb\x00"), "a b"),
        (words.label("lyon\u202e\u2067olso\u200f"), "lyonolso"),
        (words.label("x" * 30, 5), "xxxx…"),
        (words.label("东京大学医院", 7), "东京大…"),
    ],
)
def test_numbers_in_words(got, wanted):
    assert text_in(got, "en").replace("\u00a0", " ") == wanted
