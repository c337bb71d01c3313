"""Sites that leave before a job with them has started, which then starts for nobody."""

from __future__ import annotations

import time
from collections import Counter

from fedsight.deploy.membership.presence import FREE_RESTARTS, Presence, required_stay

SITE_TIMEOUT = 40.0  # seconds without a heartbeat after which a site counts as gone


def has_gone(before: Presence | None, now: Presence | None) -> bool:
    """Whether a site that was there `before` is gone, or has been in between."""
    if before is None or now is None:
        return False
    return now.state == "leaving" or now.silence > SITE_TIMEOUT or now.since != before.since


class Leavers:
    """Who has left before a start, how often and when last.

    The next jobs wait for such a site at once a few times; then it has to stay for a while before
    it is in one again, for twice as long each time. Otherwise one site could keep all others from
    their rounds.
    """

    def __init__(self) -> None:
        self._times = Counter[str]()
        self._last: dict[str, float] = {}

    def note(self, site: str) -> None:
        """The site has left before a start."""
        self._times[site] += 1
        self._last[site] = time.time()

    def may_join(self, one: Presence) -> bool:
        """Whether the next job may include the site."""
        if one.name not in self._last:
            return True
        often = self._times[one.name] - FREE_RESTARTS
        stayed = time.time() - self._last[one.name]
        return one.settled and (often <= 0 or stayed >= required_stay(often))
