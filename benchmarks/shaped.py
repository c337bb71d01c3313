"""A slow and lossy line between two network namespaces, packet by packet.

Two tunnel devices, one in each namespace, whose packets a thread carries over: at a bounded rate,
after a delay, and some never. Needs root, `ip` and /dev/net/tun; the kernel's own shaper (netem)
is missing in many containers.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SPACES = ("fedsight-server", "fedsight-site")
ADDRESSES = ("10.77.31.1", "10.77.31.2")
HOST = "fedserver"  # the first space's name
_SETIFF, _TUN, _NO_INFO = 0x400454CA, 0x0001, 0x1000
_QUEUE = 1.0  # seconds of packets that wait for the line; more are dropped, as a router would


@dataclass
class Line:
    """The line: bits a second, seconds one way, share of packets lost."""

    rate: float
    delay: float
    loss: float
    fds: tuple[int, int]
    is_cut: bool = False
    over: bool = False
    carried: list[int] = field(default_factory=lambda: [0, 0])  # bytes, each way
    lost: int = 0

    def carry(self) -> None:
        """Carry packets until it is over."""
        rng, free = random.Random(0), [0.0, 0.0]
        waiting: list[tuple[float, int, int, bytes]] = []
        number = 0
        while not self.over:
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, to, packet = heapq.heappop(waiting)
                with contextlib.suppress(OSError):
                    os.write(self.fds[to], packet)
            patience = min(0.2, waiting[0][0] - now) if waiting else 0.2
            ready, _, _ = select.select(self.fds, [], [], max(0.0, patience))
            for fd in ready:
                packet, side = os.read(fd, 65536), self.fds.index(fd)
                now = time.monotonic()
                starts = max(now, free[side])
                if self.is_cut or rng.random() < self.loss or starts - now > _QUEUE:
                    self.lost += 1
                    continue
                free[side] = starts + 8 * len(packet) / self.rate
                self.carried[side] += len(packet)
                number += 1
                heapq.heappush(waiting, (free[side] + self.delay, number, 1 - side, packet))

    def cut(self, seconds: float) -> None:
        """Lose everything for a while."""
        self.is_cut = True
        time.sleep(seconds)
        self.is_cut = False


@contextlib.contextmanager
def line(mbit: float, delay_ms: float, loss: float) -> Iterator[Line]:
    """Two namespaces and the line between them; `delay_ms` there and back, `loss` in percent."""
    fds, made = [], []
    try:
        for number, space in enumerate(SPACES):
            _ip("netns", "add", space)
            made.append(space)
            folder = Path("/etc/netns") / space
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{ADDRESSES[0]} {HOST}\n")
            fds.append(os.open("/dev/net/tun", os.O_RDWR))
            device = f"fs{number}"
            fcntl.ioctl(fds[-1], _SETIFF, struct.pack("16sH", device.encode(), _TUN | _NO_INFO))
            _ip("link", "set", device, "netns", space)
            peer = ADDRESSES[1 - number]
            _ip("-n", space, "addr", "add", ADDRESSES[number], "peer", peer, "dev", device)
            _ip("-n", space, "link", "set", device, "up")
            _ip("-n", space, "link", "set", "lo", "up")
        found = Line(mbit * 1e6, delay_ms / 2000, loss / 100, (fds[0], fds[1]))
        thread = threading.Thread(target=found.carry, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            found.over = True
            thread.join()
    finally:
        for fd in fds:
            os.close(fd)
        for space in made:
            _ip("netns", "del", space)
            shutil.rmtree(Path("/etc/netns") / space, ignore_errors=True)


def fedsight(space: str, home: Path, *words: object) -> subprocess.Popen[bytes]:
    """`fedsight WORDS` in a namespace, as a process that ends with this one."""
    spawn = [sys.executable, "-m", "fedsight.deploy.processes.spawn"]
    command = ["ip", "netns", "exec", space, *spawn, "fedsight", *map(str, words)]
    with (home / "said.txt").open("ab") as said:
        return subprocess.Popen(command, stdout=said, stderr=said)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ip {' '.join(words)}: {done.stderr.strip()} (are you root?)")
