"""Lines are measured as they are, also long ones, and by sites that do not do their part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from site_services import Clock

from fedsight.core.errors import SiteError
from fedsight.deploy.server import lines
from fedsight.deploy.server.lines import measured

SEGMENT = 14_600  # bytes that TCP sends at first before it waits for the other end


class SlowLink:
    """A line of a site to virtual time: `rate` bytes a second both ways, and a delay.

    As with TCP each delay carries twice the bytes of the one before, up to what the line can.
    `extra` seconds come on top of single transfers, by their number.
    """

    def __init__(self, clock: Clock, rate: float, delay: float) -> None:
        self._clock, self._rate, self._delay = clock, rate, delay
        self._window: dict[str, int] = {"up": SEGMENT, "down": SEGMENT}
        self.extra: dict[int, float] = {}
        self.broken = False
        self.sizes: list[int] = []

    @property
    def sites(self) -> list[str]:
        return ["north"]

    def ask(
        self, site: str, kind: str, header: Mapping[str, Any], body: bytes, timeout: float
    ) -> tuple[Any, Any]:
        asked = header["bytes"]
        self.sizes.append(asked + len(body))
        if self.broken and self.sizes[-1]:
            self._clock.sleep(timeout)
            raise ConnectionError
        self._clock.sleep(self._delay + self.extra.get(len(self.sizes), 0.0))
        self._carry("up", asked)
        self._carry("down", len(body))
        return json.dumps({}), bytes(asked)

    def _carry(self, way: str, left: int) -> None:
        self._clock.sleep(left / self._rate)
        while left > self._window[way]:  # and waits in between
            left -= self._window[way]
            if self._window[way] < self._rate * self._delay:
                self._clock.sleep(self._delay)
                self._window[way] *= 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock().rule(monkeypatch)
    monkeypatch.setattr(lines, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


@pytest.mark.parametrize(
    ("bits", "delay"), [(1e9, 0.1), (1e9, 0.001), (1e8, 0.3), (2e6, 0.05), (2e4, 0.5)]
)
def test_a_line_has_its_bits_however_long_it_is(clock: Clock, bits: float, delay: float) -> None:
    link = SlowLink(clock, bits / 8, delay)
    found = measured(link)["north"]
    assert found.uplink == pytest.approx(bits, rel=0.1)
    assert found.downlink == pytest.approx(bits, rel=0.1)
    assert clock.monotonic() < lines.PATIENCE


def test_one_transfer_that_had_to_wait_does_not_count(clock: Clock) -> None:
    link = SlowLink(clock, 1e6 / 8, 0.05)
    link.extra = {2: 5.0, 8: 5.0}  # the second without bytes, and one that counts
    assert measured(link)["north"].uplink == pytest.approx(1e6, rel=0.1)


def test_a_site_whose_bytes_do_not_come_counts_as_slow(clock: Clock) -> None:
    """It may be the slowest of all; and it holds up the run for a while, not for a whole round."""
    link = SlowLink(clock, 1e6, 0.05)
    link.broken = True
    found = measured(link)["north"]
    assert 0 < found.uplink == found.downlink < 1e4
    assert clock.monotonic() <= lines.PATIENCE + 1


def test_nobody_to_measure_is_an_error(clock: Clock) -> None:
    link = SlowLink(clock, 1e6, 2 * lines.PATIENCE)
    with pytest.raises(SiteError, match="no site's line could be measured"):
        measured(link)
