"""The coordinator's engine: the sites are elsewhere, and answer over a line.

The coordinator asks and a site answers, never the other way round. A site that does not answer is
given up long before the round's deadline, a reply is checked before anything is added, and replies
wait on the disk and are added one by one as they come, so memory does not grow with the cohort.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from fedsight.aggregation.secure import SecureSum
from fedsight.client.step import chunk
from fedsight.core.errors import SiteError
from fedsight.core.types import Metrics, Order, Sum
from fedsight.engines.base import Accepted, Arrival, Outcome, Rejected, Work
from fedsight.engines.in_process import by_view, chunks
from fedsight.engines.protected import aggregator_of, reply_bytes
from fedsight.engines.remote import messages, replies
from fedsight.engines.remote.conversation import Link, Silent, Talk, converse, reason
from fedsight.engines.remote.key_exchange import Exchange
from fedsight.program.federation import Federation

ATTEMPTS = 2  # to get a round's quorum; then the round has failed


class RemoteEngine:
    """Client steps and measurements by sites at the other end of a link.

    `absent` are sites of the federation that cannot take part, with the reason; `accepted` is the
    last round in which each site's reply was counted, from the run's history; `durable` tells the
    round of the last checkpoint, `gone` whether a site is known to have left; `run` is the run's
    identity, as it was proposed to the sites.
    """

    overlaps: ClassVar[bool] = False  # a site that joins is taken in between two rounds

    def __init__(
        self,
        federation: Federation,
        link: Link,
        absent: Mapping[str, str],
        accepted: Mapping[str, int],
        durable: Callable[[], int],
        gone: Callable[[str], bool] = lambda _: False,
        run: str = "",
    ) -> None:
        self.federation = federation
        self._link = link
        self.absent = dict(absent)
        self._accepted = dict(accepted)
        self._pending: list[str] = []
        self._durable = durable
        self._gone = gone
        self._due = {name: s.total.shape for name, s in replies.blank(federation).items()}
        self._total = aggregator_of(federation, max(federation.terms, 1))
        self._exchange = Exchange(federation, run, self._brief)
        self._held: dict[str, int] = {}  # the round after which each site's vector is
        self._strides: defaultdict[str, messages.Stride] = defaultdict(messages.Stride)
        self._lock = threading.Lock()
        self._budget = messages.Budget()

    def submit(self, order: Order, cohort: Sequence[int]) -> Work:
        """One round of local training; a reply that is late or faulty is rejected, not added."""
        self._accepted.update(dict.fromkeys(self._pending, order.round - 1))
        self._total.clear(len(cohort))
        outcome = Outcome(self._total)
        clients = {self.federation.name(client): client for client in cohort}
        came: queue.SimpleQueue[Arrival | BaseException | None] = queue.SimpleQueue()

        def run() -> None:
            try:
                self._round(order, clients, came.put)
                came.put(None)
            except BaseException as error:  # belongs to whoever waits for the replies
                came.put(error)

        def arrivals() -> Iterator[Arrival]:
            while (one := came.get()) is not None:
                if isinstance(one, BaseException):
                    raise one
                yield one

        def settle() -> None:
            self._pending = [one.site for one in outcome.accepted]
            quorum = self.federation.program.rounds.quorum or len(cohort)
            if not self.federation.program.secure.masks or len(outcome.accepted) < quorum:
                return
            if isinstance(self._total, SecureSum):
                self._exchange.finish(outcome, self._total)

        threading.Thread(target=run, name=f"round {order.round}", daemon=True).start()
        return Work(outcome, arrivals(), settle)

    def _round(
        self, order: Order, clients: Mapping[str, int], put: Callable[[Arrival], None]
    ) -> None:
        """Ask the sites of `clients` (name to number), a second time if the quorum is missed."""
        program, total = self.federation.program, self._total
        refused: dict[str, str] = {}
        if program.secure.masks and isinstance(total, SecureSum):
            refused = self._exchange.begin(order, list(clients), total)
            for site, cause in refused.items():
                put(Rejected(clients[site], site, cause))
        vector, extras = messages.pack([order.vector]), messages.pack(order.shared.values())
        accepted: list[str] = []

        def one(attempt: int, talk: Talk) -> None:
            header = {
                **self._order_header(order, talk, clients),
                "vector": self._bring(talk, order.round - 1, vector),
                "attempt": attempt,
                "mark": talk.send("extras", extras) if extras else 0,
            }
            arrival = self._fetch_reply(order, clients[talk.site], talk, header)
            accepted.append(talk.site)
            put(arrival)

        deadline, left = self._deadline(), [site for site in clients if site not in refused]
        for attempt in range(ATTEMPTS):
            problems = self._converse(left, partial(one, attempt), deadline)
            for site, cause in problems.items():
                put(Rejected(clients[site], site, cause))
            if len(accepted) >= (program.rounds.quorum or len(clients)):
                break
            left = [site for site in problems if site in self.present()]  # they may do better

    def _order_header(
        self, order: Order, talk: Talk, clients: Mapping[str, int]
    ) -> dict[str, object]:
        total = self._total
        return {
            "round": order.round,
            "sites": sum(site in self.present() for site in clients),
            "accepted": self._accepted.get(talk.site, 0),
            "durable": min(self._durable(), order.round - 1),
            "extras": {name: value.numel() for name, value in order.shared.items()},
            "quantiser": total.quantiser.table() if isinstance(total, SecureSum) else None,
        }

    def _fetch_reply(
        self, order: Order, client: int, talk: Talk, header: dict[str, object]
    ) -> Accepted:
        """Have a site train, fetch its reply, and add it."""
        total, masks = self._total, self.federation.program.secure.masks
        answer = talk.finish("train", header, self._exchange.inbox(talk.site) if masks else b"")
        self._held[talk.site] = order.round - 1
        arrival = self._checked_reply(client, talk.site, order.round, answer)
        with tempfile.TemporaryFile(prefix="fedsight-") as spool:
            for piece in talk.fetch(answer["ticket"], reply_bytes(self.federation, total)):
                spool.write(piece)
            with self._lock:  # one reply at a time is held whole
                if self._gone(talk.site):  # revoked while it answered, say
                    raise Silent(talk.site)
                replies.add(self.federation, total, spool, arrival)
        return arrival

    def measure(self, vector: Tensor, round: int) -> list[Metrics]:
        """The sums of each view; nothing for a view that only an absent site could measure.

        Raises SiteError when nobody is left to measure the others.
        """
        data = messages.pack([vector])
        jobs = chunks(self.federation)
        done: dict[int, Metrics] = {}
        # The replies of this round count already: the personal parts that they left are measured.
        accepted = {**self._accepted, **dict.fromkeys(self._pending, round)}

        def one(talk: Talk, mine: Sequence[int]) -> None:
            header = {
                "vector": self._bring(talk, round, data),
                "round": round,
                "accepted": accepted.get(talk.site, 0),
                "jobs": [[self._own(jobs[job][0]), jobs[job][1]] for job in mine],
            }
            answer = talk.finish("measure", header)
            self._held[talk.site] = round
            found = answer.get("metrics")
            if not isinstance(found, list) or len(found) != len(mine):
                cause = f"site '{talk.site}' measured something else than it was asked to"
                raise SiteError(cause, "let it run the same FedSight version")
            with self._lock:
                for job, table in zip(mine, found, strict=True):
                    done[job] = self._checked_sums(jobs[job], talk.site, table)

        failed: set[str] = set()
        while shares := self._shares(jobs, done, failed):
            failed |= self._converse(
                shares, lambda talk: one(talk, shares[talk.site]), self._deadline()
            ).keys()
        left = [view for job, (view, _) in enumerate(jobs) if job not in done]
        if (jobs and not done) or not all(map(self._own, left)):
            raise SiteError(
                f"no site is left to measure the model after round {round}",
                "look at the sites' machines and lines. The last checkpoint is intact",
            )
        return by_view(self.federation, jobs, [done.get(job, {}) for job in range(len(jobs))])

    def close(self) -> None:
        """Nothing is kept open between conversations."""

    def present(self) -> list[str]:
        """The sites of the federation that still answer."""
        return [site for site in self._link.sites if site not in self.absent]

    def _own(self, view: int) -> bool:
        """Whether a view is of one site's own test images, or as only that site sees them."""
        return self.federation.views[view].site is not None

    def _shares(
        self, jobs: Sequence[tuple[int, int]], done: Mapping[int, Metrics], failed: set[str]
    ) -> dict[str, list[int]]:
        """Who measures what is left: a site its own view, all together what anybody can."""
        present = [site for site in self.present() if site not in failed]
        shares: dict[str, list[int]] = {}
        for job, (view, _) in enumerate(jobs):
            if job in done or not present:
                continue
            owner = self.federation.views[view].site
            site = present[job % len(present)] if owner is None else self.federation.name(owner)
            if site in present:
                shares.setdefault(site, []).append(job)
        return shares

    def _converse(
        self,
        sites: Iterable[str],
        one: Callable[[Talk], None],
        deadline: float,
    ) -> dict[str, str]:
        """Talk to all sites at once; the reasons of those that failed."""
        problems = {site: self._why_absent(site) for site in sites if site not in self.present()}
        talks = [
            Talk(self._link, site, deadline, self._gone, self._strides[site], self._budget)
            for site in sites
            if site not in problems
        ]
        for site, error in converse(talks, one).items():
            problems[site] = reason(error)
            if isinstance(error, Silent):
                self.absent[site] = problems[site]
            else:
                self._held.pop(site, None)  # it may have been started anew
        return problems

    def _brief(self, sites: Iterable[str], one: Callable[[Talk], None]) -> dict[str, str]:
        """Talk to all sites at once about what takes no training."""
        return self._converse(list(sites), one, self._deadline())

    def _deadline(self) -> float:
        return time.monotonic() + self.federation.program.rounds.deadline

    def _why_absent(self, site: str) -> str:
        return self.absent.get(site, f"site '{site}' is not connected")

    def _bring(self, talk: Talk, round: int, data: memoryview) -> int:
        """The mark under which the model after `round` came; 0 if the site has it from before."""
        return 0 if self._held.get(talk.site) == round else talk.send("vector", data)

    def _checked_reply(
        self, client: int, site: str, round: int, answer: dict[str, Any]
    ) -> Accepted:
        sender = f"site '{site}'"
        told = messages.whole_number(answer, "round", sender)
        if told != round:
            raise SiteError(
                f"{sender} answered for round {told} in round {round}",
                "a late or repeated answer is not counted",
            )
        weight = messages.whole_number(answer, "weight", sender)
        due = self.federation.size(client)
        due = due if self.federation.program.rounds.weighting == "samples" else 1
        if weight != due:
            raise SiteError(
                f"{sender} weighs its reply {weight:,}, but declared images for {due:,}",
                "its images changed while the run went on, or it cheats: start it again",
            )
        if self.federation.program.privacy.protects:  # no site tells it
            return Accepted(client, site, weight, float("nan"))
        loss = messages.read_metrics(answer.get("metrics"), sender).get("train_loss")
        if loss is None or not loss.count or loss.total.shape:
            raise SiteError(f"{sender} sent no training loss", "look at its log")
        return Accepted(client, site, weight, loss.mean)

    def _checked_sums(self, job: tuple[int, int], site: str, table: Any) -> dict[str, Sum]:
        """The sums of one chunk: those of the task, in their shapes, over that many images."""
        found = messages.read_metrics(table, f"site '{site}'")
        view, start = job
        held = len(self.federation.views[view].indices)
        images = min(chunk(self.federation, held), held - start)
        shapes = {name: one.total.shape for name, one in found.items()}
        if shapes != self._due or any(one.count != images for one in found.values()):
            cause = f"site '{site}' sent figures of another task, or over other images"
            raise SiteError(cause, "let it run the same FedSight version, on the same images")
        return found
