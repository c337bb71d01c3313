"""Thousands of requests to a console from somebody who may not use it, and what they get.

One process, one event loop: most requests go over a few connections, many at a time, so that ten
thousand take seconds. Meanwhile somebody who may use the console does.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from urllib.parse import quote

import psutil

SCRIPT = "<script>alert(1)</script>"
LINES = 8  # connections that carry most requests
BATCH = 25  # requests at a time on one of them
LOOK = 0.02  # seconds between two looks at the console's process
MIB = 1 << 20
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_ENCODED = (  # `../` and its like, as servers have been seen to decode it
    "../", "..%2f", "%2e%2e/", "%2e%2e%2f", "%2E%2E%5C", "..\\", "..%5c", "....//", "..;/",
    "..%00/", "%252e%252e%252f", "..%252f", "%c0%ae%c0%ae/", "%c0%ae%c0%ae%c0%af", "..%c1%9c",
    "%uff0e%uff0e/", "%e0%80%ae%e0%80%ae/", "\uff0e\uff0e/", "%ef%bc%8e%ef%bc%8e/", "//", "%2f",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A console that is attacked, and what nobody else is to get."""

    port: int
    base: str  # the path of its pages
    cookie: str  # of whoever may use it
    process: psutil.Process
    secrets: tuple[bytes, ...]  # what its pages and the files around hold

    def request(self, place: str, method: str = "GET", body: bytes = b"", **headers: str) -> bytes:
        """A request, as bytes; `place` is below the path of its pages."""
        given = {"host": f"127.0.0.1:{self.port}"} | headers
        if body:
            given |= {"content-length": str(len(body))}
        lines = [f"{method} {self.base}{place} HTTP/1.1"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in given.items()]
        return "\r\n".join([*lines, "", ""]).encode("utf-8") + body


@dataclass
class Outcome:
    """What the attack has led to."""

    requests: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    got: list[str] = field(default_factory=list)  # requests whose answers tell a secret
    failed: list[str] = field(default_factory=list)  # those that were answered with 5xx
    welcome: int = 0  # answers to whoever may use it
    turned_away: int = 0  # of their requests
    raw: bool = False  # whether they were shown a name as HTML
    files: int = 0  # the most that the console had open
    grown: float = 0.0  # MiB, its memory at most over what it was before


Kind = Iterable[bytes]


def kinds(target: Target) -> Sequence[tuple[int, Kind]]:
    """Endless requests of each kind, and how many of a thousand are to be of it."""
    ask, own = target.request, target.cookie
    pages = ("/", "/new", "/run/first", "/report/first", "/sites", "/?fragment", "/nothing")
    forms = ("/do/pause/first", "/do/stop/first", "/new", "/withdraw/1", "/leave")
    guesses = ("fedsight_console=", "fedsight_console=guess", "a@b=1", "=;=;", own[:-1], "\x80" * 9)
    evil = [{"origin": one} for one in ("http://evil.example", "null", "http://127.0.0.1:1", "")]
    rebound = {"host": "evil.example", "origin": "http://evil.example", "cookie": own}
    form = {"content_type": "application/x-www-form-urlencoded"}
    starts = [(start, deep) for start in ("/run/", "/report/", "/static/") for deep in (1, 9)]
    paths = [f"{start}{one * deep}" for one in _ENCODED for start, deep in starts]
    files = ("outside", "outside/run.json", "secret.txt", "etc/passwd")
    html = (quote(SCRIPT), SCRIPT.replace(" ", ""), "%22%3E" + quote(SCRIPT), "%00", "\u202e%0d%0a")
    return [
        (250, (ask(page) for page in pages)),
        (200, (ask(page, cookie=one) for page in pages for one in guesses)),
        (150, (ask(to, "POST", b"a=b", cookie=own, **form, **one) for to in forms for one in evil)),
        (100, (ask(to, how, **rebound) for to in (*pages, *forms) for how in ("GET", "POST"))),
        (200, (ask(f"{one}{file}", cookie=own) for one in paths for file in files)),
        (50, (ask(f"{one}{file}") for one in paths for file in files)),
        (20, (_login(target, one) for one in ("", "guess", own, "x" * 9000, "\u00e9", "a&" * 50))),
        (20, (ask(f"/run/{one}", cookie=own) for one in html)),
        (10, (ask("/session", "POST", b"token=" + quote(one).encode(), **form) for one in html)),
    ]  # fmt: skip


def _login(target: Target, token: str) -> bytes:
    """A guess at the token, from a page of the console's own."""
    given = {"origin": f"http://127.0.0.1:{target.port}"}
    return target.request("/session", "POST", f"token={token}".encode(), **given)


def flood(target: Target, number: int) -> Iterator[bytes]:
    """About so many requests of all kinds, mixed."""
    endless = [(share, cycle(list(kind))) for share, kind in kinds(target)]
    for _ in range(max(1, number // 1000)):
        for share, kind in endless:
            yield from islice(kind, share)


def large(target: Target, mebibytes: int) -> Iterator[bytes]:
    """Requests that are too large, one for each connection."""
    huge = bytes(mebibytes * MIB)
    own = {"origin": f"http://127.0.0.1:{target.port}"}
    yield target.request("/session", "POST", huge, **own)
    yield target.request("/new", "POST", huge, cookie=target.cookie, origin="http://evil.example")
    head = target.request("/session", "POST", transfer_encoding="chunked", **own)
    yield head + b"".join(b"10000\r\n" + bytes(1 << 16) + b"\r\n" for _ in range(16 * mebibytes))
    yield target.request("/", cookie="c" * (mebibytes * MIB))
    yield target.request("/", **{f"x_{at}": "y" * 90 for at in range(10_000 * mebibytes)})
    yield target.request("/" + "p" * (mebibytes * MIB))
    yield target.request("/session", "POST", content_length="9" * 30, **own)


class Attack:
    """An attack with `number` requests, `idle` connections that say nothing, half of a request, or
    that slowly, and `copies` of each request of `mebibytes`."""

    def __init__(
        self, target: Target, number: int, idle: int = 600, copies: int = 4, mebibytes: int = 2
    ) -> None:
        self._target, self._number, self._idle = target, number, idle
        self._large = [one for one in large(target, mebibytes) for _ in range(copies)]
        self.outcome = Outcome()

    def run(self, patience: float) -> Outcome:
        """Attack; the user waits so long for an answer, in seconds, and who sends what is too large
        does."""
        self._patience = patience
        asyncio.run(self._run())
        return self.outcome

    async def _run(self) -> None:
        await self._visit()
        before = _memory(self._target.process)
        async with contextlib.AsyncExitStack() as held:
            meanwhile = [
                asyncio.create_task(one) for one in (self._look(), self._visits(), self._slow(held))
            ]
            await asyncio.sleep(0)
            todo = flood(self._target, self._number)
            await asyncio.gather(*(self._line(todo) for _ in range(LINES)), *self._too_large())
            await self._visit()
            for one in meanwhile:
                one.cancel()
            await asyncio.gather(*meanwhile, return_exceptions=True)
        self.outcome.grown = max(0.0, (_peak(self._target.process) - before) / MIB)

    @contextlib.asynccontextmanager
    async def _connected(
        self,
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection; that it is closed at the other end is no fault."""
        with contextlib.suppress(OSError, EOFError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._target.port)
            try:
                yield reader, writer
            finally:
                writer.transport.abort()

    async def _slow(self, held: contextlib.AsyncExitStack) -> None:
        """Connections that say nothing, or one letter at a time."""
        writers = []
        half = self._target.request("/session")[:-2]
        for at in range(self._idle):
            _, writer = await held.enter_async_context(self._connected())
            writer.write((b"", b"G", half)[at % 3])
            writers.append(writer)
            self.outcome.requests += 1
        while True:
            await asyncio.sleep(0.1)
            for writer in writers[2::3]:
                if not writer.is_closing():
                    writer.write(b"x")

    async def _line(self, todo: Iterator[bytes]) -> None:
        """One connection after another, with many requests at a time."""
        while batch := list(islice(todo, BATCH)):
            async with self._connected() as (reader, writer):
                while batch:
                    writer.write(b"".join(batch))
                    for _ in range(len(batch)):
                        self._judge(batch[0], *await _answer(reader))
                        batch.pop(0)
                        self.outcome.requests += 1
                    batch = list(islice(todo, BATCH))
            self.outcome.requests += len(batch)  # the connection was closed on them

    def _too_large(self) -> Iterator[asyncio.Task[None]]:
        async def send(asked: bytes) -> None:
            self.outcome.requests += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._patience), self._connected() as (reader, writer):
                    writer.write(asked)
                    self._judge(asked, *await _answer(reader))

        return (asyncio.create_task(send(one)) for one in self._large)

    def _judge(self, asked: bytes, code: int, text: bytes) -> None:
        """Note what the attacker was answered."""
        self.outcome.codes[code] += 1
        first = asked[:200].partition(b"\r\n")[0].decode("utf-8", "replace")
        if any(one in text for one in (*self._target.secrets, SCRIPT.encode())):
            self.outcome.got.append(first)
        if code >= 500:
            self.outcome.failed.append(first)

    async def _visits(self) -> None:
        while True:
            await self._visit()
            await asyncio.sleep(LOOK)

    async def _visit(self) -> None:
        """Somebody who may use the console looks at a run."""
        code, text = 0, b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience), self._connected() as (reader, writer):
                writer.write(self._target.request("/run/first", cookie=self._target.cookie))
                code, text = await _answer(reader)
        is_welcome = code == 200 and self._target.secrets[0] in text
        self.outcome.welcome += is_welcome
        self.outcome.turned_away += not is_welcome
        self.outcome.raw |= SCRIPT.encode() in text

    async def _look(self) -> None:
        while True:
            self.outcome.files = max(self.outcome.files, self._target.process.num_fds())
            await asyncio.sleep(LOOK)


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The next answer: its code, and all of its text."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    body = await (reader.readexactly(int(length[1])) if length else reader.read())
    return int(head[9:12]), head + body


def _memory(process: psutil.Process) -> int:
    """What a process holds in memory, and from now on its highest, in bytes."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # proc(5): the peak begins anew
    return int(process.memory_info().rss)


def _peak(process: psutil.Process) -> int:
    """The most that it has held since then, in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
