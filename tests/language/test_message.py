"""Messages: told in either language, with their values; compared, pickled and put together."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsight.language.current import using
from fedsight.language.message import listed, message, plural, sentences, text_in

ROUND = message("round {n}/{all}", n=3, all=20)


def test_a_message_is_told_in_either_language() -> None:
    assert ROUND.text("en") == "round 3/20"
    assert ROUND.text("zh") == "第 3/20 轮"


def test_as_a_string_it_is_in_the_current_language() -> None:
    assert str(ROUND) == f"{ROUND}" == "round 3/20"
    with using("zh"):
        assert str(ROUND) == f"{ROUND}" == "第 3/20 轮"
    assert f"{ROUND:>12}" == "  round 3/20"


def test_a_number_chooses_between_singular_and_plural() -> None:
    def sites(n: int) -> str:
        return plural("{n:,} site", "{n:,} sites", n).text("en")

    assert [sites(n) for n in (0, 1, 2, 1200)] == ["0 sites", "1 site", "2 sites", "1,200 sites"]
    assert plural("{n:,} site", "{n:,} sites", 1200).text("zh") == "1,200 个站点"


def test_a_message_in_a_message_is_told_in_the_same_language() -> None:
    begun = message("{begun}, resumed after round {n}", begun=ROUND, n=3)
    assert begun.text("en") == "round 3/20, resumed after round 3"
    assert begun.text("zh") == "第 3/20 轮，从第 3 轮之后继续"


def test_formats_of_values_hold_in_every_language() -> None:
    share = message("{done:,} of {all:.1%} of {site!r}", done=1200, all=0.25, site="a")
    assert share.text("en") == share.text("zh") == "1,200 of 25.0% of 'a'"


def test_a_sentence_that_the_catalogue_lacks_stays_english() -> None:
    assert message("no such sentence in {place}", place="a book").text("zh").endswith("a book")


@given(st.text())
def test_values_are_never_read_as_fields(value: str) -> None:
    said = message("Wrote {path}", path=value)
    assert said.text("en") == f"Wrote {value}"
    assert said.text("zh") == f"已写入 {value}"


def test_lists_are_joined_as_the_language_does() -> None:
    three = listed(["a", "b", message("yes")])
    assert (text_in(three, "en"), text_in(three, "zh")) == ("a, b and yes", "a、b和是")
    either = listed(["a", "b"], "or")
    assert (text_in(either, "en"), text_in(either, "zh")) == ("a or b", "a或b")
    assert (text_in(listed(["a"]), "en"), text_in(listed([]), "zh")) == ("a", "")


def test_sentences_follow_one_another() -> None:
    both = sentences([message("FedSight can be used here."), "X."])
    assert both.text("en") == "FedSight can be used here. X."
    assert both.text("zh") == "可以在这里使用 FedSight。X."


def test_messages_are_values() -> None:
    assert message("round {n}/{all}", n=3, all=20) == ROUND
    assert len({ROUND, message("round {n}/{all}", n=3, all=20)}) == 1
    assert pickle.loads(pickle.dumps(ROUND)) == ROUND
    with pytest.raises(FrozenInstanceError):
        ROUND.one = "another"  # type: ignore[misc]
