"""A conversation with one site: asked again while the line is broken, never for ever."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from site_services import Clock

from fedsight.core.errors import SiteError
from fedsight.engines.remote import conversation, messages
from fedsight.engines.remote.conversation import Silent, Talk, converse, reason


@dataclass
class Script:
    """A line that answers as a function says."""

    reply: Callable[[str, Mapping[str, Any], bytes], tuple[Any, Any]]
    asked: list[tuple[str, dict[str, Any], bytes]] = field(default_factory=list)
    sites: tuple[str, ...] = ("ward",)

    def ask(
        self, site: str, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        assert site == "ward"
        assert timeout > 0
        self.asked.append((kind, dict(header), bytes(body)))
        return self.reply(kind, header, body)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock().rule(monkeypatch)


def fields(**values: Any) -> tuple[str, bytes]:
    return json.dumps(values), b""


def test_an_answer_is_its_fields_and_bytes(clock: Clock) -> None:
    line = Script(lambda *_: ('{"a": 1}', memoryview(b"xy")))
    assert Talk(line, "ward", 9).ask("hold", {"round": 3}, b"z") == ({"a": 1}, b"xy")
    assert line.asked == [("hold", {"round": 3}, b"z")]


def test_a_question_is_asked_again_until_the_line_is_whole(clock: Clock) -> None:
    def reply(*_: Any) -> tuple[str, bytes]:
        if len(line.asked) < 5:
            raise ConnectionError
        return fields(a=1)

    line = Script(reply)
    assert Talk(line, "ward", 99).ask("hold", {}) == ({"a": 1}, b"")
    assert len(line.asked) == 5


def broken(*_: Any) -> Any:
    raise ConnectionError


def test_a_site_that_never_answers_is_given_up_before_the_deadline(clock: Clock) -> None:
    line = Script(broken)
    with pytest.raises(Silent, match="site 'ward' has stopped answering"):
        Talk(line, "ward", 1e6).ask("hold", {})
    assert conversation.SILENCE <= clock.monotonic() < conversation.SILENCE + 2


def test_a_vectors_piece_may_take_longer(clock: Clock) -> None:
    with pytest.raises(Silent):
        Talk(Script(broken), "ward", 1e6).send("vector", messages.pack([torch.ones(2)]))
    assert conversation.PIECE_TIMEOUT <= clock.monotonic() < conversation.PIECE_TIMEOUT + 2


def test_the_deadline_is_named(clock: Clock) -> None:
    with pytest.raises(SiteError, match=r"^site 'ward' did not answer within rounds\.deadline"):
        Talk(Script(broken), "ward", 10).ask("hold", {})
    assert clock.monotonic() <= 10


def test_a_site_that_is_never_done_meets_the_deadline(clock: Clock) -> None:
    def reply(kind: str, header: Mapping[str, Any], body: bytes) -> tuple[str, bytes]:
        clock.sleep(conversation.LONG_POLL)
        return fields(ticket=1, done=False)

    with pytest.raises(SiteError, match=r"rounds\.deadline"):
        Talk(Script(reply), "ward", 60).finish("train", {})


def test_an_answer_that_trickles_in_does_not_outlast_the_deadline(clock: Clock) -> None:
    """A line goes by its own clock: FLARE's begins anew with every byte."""
    hangs = threading.Event()

    def reply(*_: Any) -> tuple[str, bytes]:
        clock.sleep(10)
        hangs.wait(60)
        return fields()

    line = Script(reply)
    try:
        with pytest.raises(SiteError, match=r"^site 'ward' did not answer within rounds\.deadline"):
            Talk(line, "ward", 9).ask("train", {})
    finally:
        hangs.set()
    assert len(line.asked) == 1


@pytest.mark.parametrize(
    ("takes", "pause"),
    [(0.0, conversation.MIN_POLL), (conversation.LONG_POLL, conversation.LONG_POLL)],
)
def test_a_site_that_is_not_done_is_asked_again_without_haste(
    clock: Clock, takes: float, pause: float
) -> None:
    """And one that takes its time to say so is asked again at once."""
    when: list[float] = []

    def reply(*_: Any) -> tuple[str, bytes]:
        when.append(clock.monotonic())
        assert len(when) < 100
        clock.sleep(takes)
        return fields(ticket=1, done=False)

    with pytest.raises(SiteError, match=r"rounds\.deadline"):
        Talk(Script(reply), "ward", 20).finish("train", {})
    assert when == [pause * number for number in range(int(20 / pause))]


def test_sites_that_hang_do_not_hold_the_others_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "OVERDUE", 0.2)
    monkeypatch.setattr(messages, "PIECE", 8)
    monkeypatch.setattr(messages, "IN_FLIGHT", 24)
    hangs, full, hanging = threading.Event(), threading.Event(), set()
    done = {site: threading.Event() for site in ("a", "b", "c", "d")}

    class Line(Script):
        def ask(self, site: str, *_: Any) -> tuple[Any, Any]:
            if site not in done:
                hanging.add(site)
                if len(hanging) == 3:  # they have used up the room
                    full.set()
                hangs.wait(120)
                return fields(error="it hung")
            return fields()

    def one(with_site: Talk) -> None:
        if with_site.site in done:
            assert full.wait(60)
        with_site.send("vector", memoryview(bytes(16)))
        done[with_site.site].set()

    line, budget = Line(lambda *_: fields()), messages.Budget()
    end = time.monotonic() + 120
    talks = [Talk(line, site, end, budget=budget) for site in ("x", "y", "z", *done)]
    failed: dict[str, SiteError | Silent] = {}
    talking = threading.Thread(target=lambda: failed.update(converse(talks, one)))
    talking.start()
    try:
        assert all(event.wait(30) for event in done.values())
    finally:
        hangs.set()
        talking.join()
    assert failed.keys() == {"x", "y", "z"}


def test_a_site_whose_turn_does_not_come_is_not_blamed(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget, full, over = messages.Budget(), threading.Event(), threading.Event()
    monkeypatch.setattr(messages, "OVERDUE", 1e6)

    def hold() -> None:
        with budget.take(messages.IN_FLIGHT):
            full.set()
            over.wait(30)

    holding = threading.Thread(target=hold)
    holding.start()
    full.wait(30)
    line = Script(lambda *_: fields())
    why = r"^site 'ward' was not served within rounds\.deadline: transfers of other"
    try:
        with pytest.raises(SiteError, match=why):
            Talk(line, "ward", 0.05, budget=budget).send("vector", memoryview(bytes(8)))
        with pytest.raises(SiteError, match=why):
            list(Talk(line, "ward", 0.05, budget=budget).fetch(1, 8))
    finally:
        over.set()
        holding.join()
    assert line.asked == []


def test_a_site_that_has_left_is_not_waited_for() -> None:
    hangs = threading.Event()
    line = Script(lambda *_: (hangs.wait(60), fields())[1])
    try:
        with pytest.raises(Silent, match="site 'ward' has left"):
            Talk(line, "ward", 1e9, lambda site: site == "ward").ask("hold", {})
    finally:
        hangs.set()


@pytest.mark.parametrize("error", [ZeroDivisionError("a mistake"), MemoryError(), TimeoutError()])
def test_an_answer_that_cannot_be_read_is_its_senders_failure(
    clock: Clock, error: Exception
) -> None:
    def reply(*_: Any) -> tuple[str, bytes]:
        raise error

    with pytest.raises(SiteError, match=f"^site 'ward' .*cannot be read .{type(error).__name__}"):
        Talk(Script(reply), "ward", 9).ask("hold", {})


def test_this_machines_own_errors_end_all_conversations(clock: Clock) -> None:
    def fail(talk: Talk) -> None:
        raise OSError(28, "no space left on device")

    with pytest.raises(OSError, match="no space"):
        converse([Talk(Script(lambda *_: fields()), "ward", 9)], fail)


def test_a_defect_while_an_answer_is_used_is_its_senders_failure(clock: Clock) -> None:
    def one(talk: Talk) -> None:
        if talk.site == "ward":
            raise MemoryError

    talks = [Talk(Script(lambda *_: fields()), site, 9) for site in ("lab", "ward")]
    failed = converse(talks, one)
    assert list(failed) == ["ward"]
    assert "site 'ward'" in reason(failed["ward"])


def test_an_error_is_told_in_the_sites_words_but_not_too_many(clock: Clock) -> None:
    line = Script(lambda *_: fields(error="no room " * 1000, cure={"a": 1}))
    with pytest.raises(SiteError, match=r"^site 'ward': no room no") as caught:
        Talk(line, "ward", 9).ask("hold", {})
    assert len(caught.value.cause) < 600
    assert caught.value.cure == ""


def test_an_error_cannot_act_on_a_terminal(clock: Clock) -> None:
    line = Script(lambda *_: fields(error="\x1b[2Jdone\nsite 'lab': ", cure="\ud800\u202e"))
    with pytest.raises(SiteError) as caught:
        Talk(line, "ward", 9).ask("hold", {})
    assert caught.value.cause == r"site 'ward': \u001b[2Jdone\u000asite 'lab': "
    assert caught.value.cure == r"\ud800\u202e"


@pytest.mark.parametrize("text", [None, 7, b"{}", "", "[]", '{"a": 1', {"a": 1}])
def test_garbage_is_refused(clock: Clock, text: Any) -> None:
    with pytest.raises(SiteError, match="site 'ward' sent a message"):
        Talk(Script(lambda *_: (text, b"")), "ward", 9).ask("hold", {})


@pytest.mark.parametrize("data", [None, "text", 7, [1, 2], {"a": 1}])
def test_a_body_that_is_no_bytes_is_refused(clock: Clock, data: Any) -> None:
    with pytest.raises(SiteError, match="site 'ward' sent something other than bytes"):
        Talk(Script(lambda *_: ("{}", data)), "ward", 9).ask("hold", {})


@pytest.mark.parametrize("ticket", [None, -1, 1.5, True, "1", 2**41])
def test_a_ticket_that_is_none_is_refused(clock: Clock, ticket: Any) -> None:
    with pytest.raises(SiteError, match="site 'ward' sent ticket"):
        Talk(Script(lambda *_: fields(ticket=ticket)), "ward", 9).finish("train", {})


@pytest.mark.parametrize("done", [None, "yes", 1, 0, [], {}])
def test_a_site_that_does_not_say_whether_it_is_done_is_refused(clock: Clock, done: Any) -> None:
    line = Script(lambda kind, *_: fields(ticket=1, done=done))
    with pytest.raises(SiteError, match="site 'ward' did not say whether it is done"):
        Talk(line, "ward", 9).finish("train", {})


def test_conversations_end_each_in_its_own_way(clock: Clock) -> None:
    errors = {"a": SiteError("no", "yes"), "b": Silent("gone")}
    both = threading.Barrier(3)  # met only if all of them are held at once

    def one(with_site: Talk) -> None:
        both.wait(60)
        if with_site.site in errors:
            raise errors[with_site.site]

    line = Script(lambda *_: fields())
    failed = converse([Talk(line, site, 9) for site in "abc"], one)
    assert failed == errors
    assert {site: reason(error) for site, error in failed.items()} == {"a": "no", "b": "gone"}
    assert converse([], one) == {}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "PIECE", 8)


def test_a_vector_travels_in_pieces(clock: Clock, small_pieces: None) -> None:
    data = bytes(range(20))
    line = Script(lambda kind, header, body: fields())
    Talk(line, "ward", 9).send("vector", memoryview(data))
    assert [header["start"] for _, header, _ in line.asked] == [0, 8, 16]
    assert b"".join(body for *_, body in line.asked) == data
    line = Script(lambda kind, header, body: ("{}", data[header["start"] : header["stop"]]))
    assert b"".join(Talk(line, "ward", 9).fetch(3, 20)) == data
    assert all(header["ticket"] == 3 for _, header, _ in line.asked)


def fast() -> messages.Sizers:
    """A connection that has carried pieces in no time; thirty bytes may travel along."""
    made = messages.Sizers(30)
    made.down.fast = made.up.fast = True
    return made


def test_nothing_travels_along_before_the_line_is_known_to_be_fast(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "time", clock)
    sizers, seconds = messages.Sizers(30), 0.0

    def reply(kind: str, header: Mapping[str, Any], body: bytes) -> tuple[str, bytes]:
        clock.sleep(seconds)
        if kind == "fetch":
            return "{}", bytes(header["stop"] - header["start"])
        return json.dumps({"ticket": 3, "done": True}), bytes(header.get("room", 0))

    def kinds() -> list[str]:
        line = Script(reply)
        talk = Talk(line, "ward", 99, sizers=sizers)
        talk.send("vector", memoryview(b"1234"))
        assert b"".join(talk.fetch(talk.finish("train", {}, size=8)["ticket"], 8)) == bytes(8)
        return [kind for kind, *_ in line.asked]

    assert kinds() == ["piece", "train", "fetch"]
    assert kinds() == ["train"]
    sizers.shrink()
    seconds = 2 * messages.FAST
    assert kinds() == kinds() == ["piece", "train", "fetch"]
    seconds = 0.0
    sizers.down.fast = True  # and what the site sends is not known to be
    assert kinds() == ["train", "fetch"]
    assert kinds() == ["train"]


def test_what_does_not_come_through_along_travels_by_itself(clock: Clock) -> None:
    """And a site that is silent is given up as soon as with nothing that travels."""

    def reply(kind: str, header: Mapping[str, Any], body: bytes) -> tuple[str, bytes]:
        if "piece" in header or header.get("room"):
            clock.sleep(conversation.SILENCE / 3)
            raise ConnectionError
        return json.dumps({"ticket": 3, "done": kind == "wait"}), b""

    line = Script(reply)
    talk = Talk(line, "ward", 1e6, sizers=fast())
    talk.send("vector", memoryview(b"1234"))
    assert talk.finish("train", {}, size=8)["ticket"] == 3
    asked = [(kind, body) for kind, _, body in line.asked]
    assert asked == [("train", b"1234"), ("piece", b"1234"), ("train", b""), ("wait", b"")]
    assert line.asked[-1][1]["room"] == 0
    began = clock.monotonic()
    talk = Talk(Script(broken), "ward", 1e6, sizers=fast())
    with pytest.raises(Silent):
        talk.finish("train", {}, size=8)
    assert conversation.SILENCE <= clock.monotonic() - began < conversation.SILENCE + 3


@pytest.mark.parametrize(("kind", "size"), [("train", 30), ("measure", 0)])
@pytest.mark.parametrize("done", [True, False])
def test_more_than_there_is_room_for_is_refused_at_once(
    clock: Clock, kind: str, size: int, done: bool
) -> None:
    line = Script(lambda *_: (json.dumps({"ticket": 3, "done": done}), bytes(size + 1)))
    with pytest.raises(SiteError, match=f"sent {size + 1} bytes instead of {size}"):
        Talk(line, "ward", 9, sizers=fast()).finish(kind, {}, size=size)
    assert len(line.asked) == 1


def test_bytes_of_what_is_not_done_are_not_kept(clock: Clock) -> None:
    def reply(kind: str, header: Mapping[str, Any], body: bytes) -> tuple[str, bytes]:
        return json.dumps({"ticket": 3, "done": kind == "wait"}), b"x" * (kind != "wait")

    talk = Talk(Script(reply), "ward", 9, sizers=fast())
    talk.finish("train", {}, size=8)
    with pytest.raises(SiteError, match="sent 0 bytes instead of 8"):
        list(talk.fetch(3, 8))


def test_what_fits_travels_with_the_question_and_its_answer(clock: Clock) -> None:
    data, reply = bytes(range(20)), bytes(range(30))
    answer = json.dumps({"ticket": 3, "done": True})
    line = Script(lambda kind, header, body: (answer, reply[: header["room"]]))
    talk = Talk(line, "ward", 9, sizers=fast())
    mark = talk.send("vector", memoryview(data))
    assert line.asked == []
    ticket = talk.finish("train", {"vector": mark}, size=30)["ticket"]
    assert b"".join(talk.fetch(ticket, 30)) == reply
    ((kind, header, body),) = line.asked
    assert (kind, body, header["room"]) == ("train", data, 30)
    assert header["piece"] == {"name": "vector", "mark": mark, "start": 0, "total": 20}
    talk.finish("train", {})
    assert "piece" not in line.asked[-1][1]
    assert line.asked[-1][2] == b""


def test_the_last_piece_alone_travels_with_the_question(clock: Clock, small_pieces: None) -> None:
    line = Script(lambda *_: fields(ticket=3, done=True))
    talk = Talk(line, "ward", 9, sizers=fast())
    talk.send("vector", memoryview(bytes(20)))
    talk.send("extras", memoryview(bytes(3)))
    talk.finish("train", {}, size=9)  # more than a piece: it is fetched
    kinds = [(kind, len(body)) for kind, _, body in line.asked]
    assert kinds == [("piece", 8), ("piece", 8), ("piece", 4), ("train", 3)]
    assert line.asked[-1][1]["room"] == 0


def test_what_takes_long_to_come_is_waited_for_with_the_same_room(clock: Clock) -> None:
    def reply(kind: str, header: Mapping[str, Any], body: bytes) -> tuple[str, bytes]:
        text = json.dumps({"ticket": 3, "done": kind == "wait"})
        return text, bytes(header["room"]) if kind == "wait" else b""

    line = Script(reply)
    talk = Talk(line, "ward", 9, sizers=fast())
    talk.send("vector", memoryview(b"1234"))
    assert talk.finish("train", {}, size=8)["ticket"] == 3
    assert [(kind, body) for kind, _, body in line.asked] == [("train", b"1234"), ("wait", b"")]
    assert list(talk.fetch(3, 8)) == [bytes(8)]


@pytest.mark.parametrize(("came", "due"), [(0, 30), (29, 30), (30, 0), (30, 16)])
def test_a_vector_of_another_length_that_comes_with_an_answer_is_refused(
    clock: Clock, came: int, due: int
) -> None:
    line = Script(lambda *_: (json.dumps({"ticket": 3, "done": True}), bytes(came)))
    talk = Talk(line, "ward", 9, sizers=fast())
    talk.finish("train", {}, size=30)
    with pytest.raises(SiteError, match=f"site 'ward' sent {came} bytes instead of {due}"):
        list(talk.fetch(3, due))
    assert len(line.asked) == 1


def test_over_a_line_that_breaks_less_travels_at_a_time(clock: Clock) -> None:
    sizers, broken = messages.Sizers(), iter([True, True, False])

    def reply(*_: Any) -> tuple[str, bytes]:
        if next(broken):
            raise ConnectionError
        return fields()

    before = sizers.up.size
    Talk(Script(reply), "ward", 9, sizers=sizers).ask("hold", {})
    assert sizers.up.size == sizers.down.size == before // 4
    for _ in range(20):
        sizers.shrink()
    assert sizers.up.size == sizers.down.size == messages.MIN_PIECE


@pytest.mark.parametrize("more", [-1, 1, 100, -8])
def test_a_piece_of_another_length_is_refused(clock: Clock, small_pieces: None, more: int) -> None:
    line = Script(lambda kind, header, body: ("{}", bytes(8 + more)))
    with pytest.raises(SiteError, match=r"site 'ward' sent [\d,]+ bytes instead of 8"):
        list(Talk(line, "ward", 9).fetch(1, 16))
