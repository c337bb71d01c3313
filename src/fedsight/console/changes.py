"""Tells the browsers what has changed, as server-sent events (HTML Standard, section 9.2).

One thread looks at files while anybody listens; each listener gets the names of what has changed
since it last heard.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from fedsight.coordinator.asked import ASKED
from fedsight.coordinator.folders import CARRIED, LOCK
from fedsight.coordinator.live import LIVE
from fedsight.core import locks
from fedsight.runs.listing import folders

WATCHED = (
    "run.json",
    "history.jsonl",
    "summary.json",
    "comparison.partial.json",
    "job.json",
    LIVE,
    ASKED,
)
INTERVAL = 0.5  # seconds between two looks
# Seconds until the next one where something has changed: each browser asks for its page again then,
# and where a round takes less than a second, all these pages would slow the rounds down.
PAUSE = 1.0
ALIVE = 15.0  # seconds after which an idle connection is told that it is one
GLANCE = 1.0  # seconds after which it is asked again whether somebody may still listen

EVERYTHING = "*"

Signature = tuple[object, ...]
Look = Callable[[], dict[str, Signature]]


class Changes:
    """What the listeners hear. `look` gives what tells that something has changed, by its name."""

    def __init__(self, look: Look) -> None:
        self._look = look
        # Each listener's queue, and whether it has been told to look. None in it: the end.
        self._listeners: dict[asyncio.Queue[list[str] | None], bool] = {}
        self._task: asyncio.Task[None] | None = None

    async def events(self, permitted: Callable[[], bool]) -> AsyncIterator[str]:
        """The events for one listener, until it goes, or is not `permitted` to listen any more."""
        queue: asyncio.Queue[list[str] | None] = asyncio.Queue()
        self._listeners[queue] = False
        if self._task is None:
            self._task = asyncio.create_task(self._watch())
        try:
            yield "retry: 2000\n\n"
            idle = 0.0
            while permitted():
                try:
                    changed = await asyncio.wait_for(queue.get(), GLANCE)
                except TimeoutError:
                    idle += GLANCE
                    if idle >= ALIVE:
                        idle = 0.0
                        yield ": still here\n\n"
                    continue
                if changed is None or not permitted():
                    return
                idle = 0.0
                yield f"data: {json.dumps(changed)}\n\n"
        finally:
            del self._listeners[queue]
            if not self._listeners and self._task is not None:
                self._task.cancel()
                self._task = None

    def end(self) -> None:
        """Let all listeners go: the console ends."""
        for queue in self._listeners:
            queue.put_nowait(None)

    async def _watch(self) -> None:
        before, changed = await self._seen({}), list[str]()
        while True:
            self._greet()
            await asyncio.sleep(PAUSE if changed else INTERVAL)
            now = await self._seen(before)
            names = before.keys() | now.keys()
            changed = sorted(name for name in names if before.get(name) != now.get(name))
            before = now
            for queue in self._listeners if changed else ():
                queue.put_nowait(changed)

    async def _seen(self, before: dict[str, Signature]) -> dict[str, Signature]:
        """What a look shows; as before where a file vanished meanwhile: the next look shows it."""
        try:
            return await asyncio.to_thread(self._look)
        except OSError:
            return before

    def _greet(self) -> None:
        """Tell new listeners to look at everything once: what they have seen before may be older
        than the state with which the next one is compared."""
        for queue, greeted in self._listeners.items():
            if not greeted:
                queue.put_nowait([EVERYTHING])
                self._listeners[queue] = True


def look_at_runs(root: Path, *others: Path) -> Look:
    """Runs, by their names, and everything else, by ""; `others`: folders whose files concern every
    page."""

    def look() -> dict[str, Signature]:
        found = {
            str(folder.relative_to(root)): tuple(_signature(folder)) for folder in folders(root)
        }
        found[""] = tuple(
            part
            for folder in others
            for path in sorted(folder.glob("*.json"))
            for part in stamp(path)
        )
        return found

    return look


def _signature(folder: Path) -> Iterator[object]:
    for name in WATCHED:
        yield from stamp(folder / name)
    yield locks.held(folder / LOCK) or locks.held(folder / CARRIED)


def stamp(path: Path) -> tuple[object, ...]:
    """What tells that a file has changed, or is gone."""
    try:
        stat = path.stat()
    except OSError:
        return (None,)
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
