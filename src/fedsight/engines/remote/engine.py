"""The coordinator's engine for sites on other machines, reached over a network connection.

The coordinator asks and a site answers, never the other way round. A site that stops answering is
given up long before the round's deadline. A reply is checked before anything is added, and replies
are spooled to disk and added one at a time, so memory use does not grow with the cohort.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import IO, Any, ClassVar

from torch import Tensor

from fedsight.aggregation.mean import ExactMean
from fedsight.aggregation.secure import SecureSum
from fedsight.core.errors import EngineError, SiteError
from fedsight.core.types import Metrics, Order
from fedsight.engines.base import Accepted, Arrival, Buffer, Earlier, Outcome, Rejected, Work
from fedsight.engines.protected import adopted, aggregator_of, order_digest, reply_bytes
from fedsight.engines.remote import messages, replies
from fedsight.engines.remote.buffered import Answered, Assignment, BufferedRounds
from fedsight.engines.remote.conversation import Link, Silent, Talk, converse, reason
from fedsight.engines.remote.figures import FigureReader
from fedsight.engines.remote.key_exchange import Exchange, Recognise, Subject
from fedsight.engines.remote.messages import Sizers
from fedsight.engines.remote.models import Model
from fedsight.engines.remote.outliers import outliers
from fedsight.engines.remote.sums import Asking, Declared, Noised, SiteSums, SumQuestion
from fedsight.privacy.noised_sums import Bounds
from fedsight.program.federation import Federation

ATTEMPTS = 2  # to get a round's quorum; then the round has failed
# Numbers of questions, larger than those of any earlier process: a site refuses a question that
# comes with other content under the same number.
_numbers = itertools.count(int(time.time() * 100))


def _nobody(site: str) -> bool:
    return False


def _never() -> bool:
    return False


def _anybody(site: str, key: str) -> None:
    pass


@dataclass(frozen=True)
class RunRecord:
    """What the coordinator knows of a run beyond its program.

    `absent` are sites of the federation that cannot take part, with the reason; `accepted` is the
    round of the order that each site's last counted reply answered, from the run's history;
    `durable` returns the round of the last checkpoint, `gone` whether a site is known to have left;
    `id` is the run's identity, as proposed to the sites. `withheld` says why sites have declared
    that they release no figures; those are not asked for any. The sites `noised` have declared that
    they add noise to theirs, and all others that they do not. `recognise` raises SiteError for a
    site whose identity key is another than before. `tests` and `groups`: see `Declared`.
    """

    absent: Mapping[str, str]
    accepted: Mapping[str, int]
    durable: Callable[[], int]
    gone: Callable[[str], bool] = _nobody
    id: str = ""
    withheld: Mapping[str, str] = field(default_factory=dict)
    recognise: Recognise = _anybody
    noised: Collection[str] = ()
    tests: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)


class RemoteEngine:
    """Has client steps and measurements done by the sites at the other end of a link."""

    validates: ClassVar[bool] = False  # nothing new may leave a site
    overlaps: ClassVar[bool] = False  # joining sites are admitted between two rounds

    def __init__(self, federation: Federation, link: Link, record: RunRecord) -> None:
        self.federation = federation
        self._link = link
        self.absent = dict(record.absent)
        self.withheld = dict(record.withheld)  # why sites have released no figures, so far
        # why others are not in the figures of the last model that was measured
        self.unmeasured: dict[str, str] = {}
        self._without_figures = frozenset(record.withheld)
        self._accepted = dict(record.accepted)
        self._pending: dict[str, int] = {}  # as `_accepted`, of the round in progress
        self._answered = Answered(record.accepted)
        self._durable = record.durable
        self._gone = record.gone
        self._figures = FigureReader(federation, record.noised)
        self._personal = federation.keeps
        self._total = aggregator_of(federation, max(federation.terms, 1))
        self._exchange = Exchange(federation, record.id, self._converse_briefly, record.recognise)
        asking = Asking(self._converse_briefly, self._asked, self._askable, self._why_absent)
        known = Declared(record.tests, record.noised, self.withheld, record.groups)
        self.site_sums = SiteSums(federation, self._exchange, asking, known)
        self._proven: set[str] = set()  # the numbers of a reply that are known to be what they must
        self._held: dict[str, int] = {}  # the round of the model that each site holds
        self._whole: set[str] = set()  # those that were sent all of a model since the last round
        along = messages.ALONG // max(1, len(link.sites))
        self._sizers = defaultdict[str, Sizers](lambda: Sizers(along))
        self._lock = threading.Lock()
        self._budget = messages.Budget()
        self._buffered = BufferedRounds(
            federation, self._hold, self._add_buffered, lambda site: site in self.present()
        )

    def submit(self, order: Order, cohort: Sequence[int], earlier: Sequence[Earlier] = ()) -> Work:
        """Start a round of local training; a late or invalid reply is rejected.

        Raises EngineError for `earlier` models: real time decides who trains from these.
        """
        if earlier:
            cause = "at the sites of a federation no virtual time passes"
            raise EngineError(cause, "leave out [timing]")
        outcome = self._begun(len(cohort))
        clients = {self.federation.name(client): client for client in cohort}
        came: queue.SimpleQueue[Arrival | BaseException | None] = queue.SimpleQueue()

        def run() -> None:
            try:
                self._round(order, clients, came.put)
                came.put(None)
            except BaseException as error:  # raised again where the replies are awaited
                came.put(error)

        def arrivals() -> Iterator[Arrival]:
            while (one := came.get()) is not None:
                if isinstance(one, BaseException):
                    raise one
                yield one

        def settle() -> None:
            self._settle(outcome, {one.site: order.round for one in outcome.accepted})
            quorum = self.federation.program.rounds.needed(len(cohort))
            if not self.federation.program.secure.masks or len(outcome.accepted) < quorum:
                return
            if isinstance(self._total, SecureSum):
                words, sites = self._total.words, [one.site for one in outcome.accepted]
                outcome.doubts |= self._exchange.finish(sites, words.levels, words.integers)

        threading.Thread(target=run, name=f"round {order.round}", daemon=True).start()
        return Work(outcome, arrivals(), settle)

    def fill(
        self, order: Order, free: Sequence[int], earlier: Sequence[Earlier], buffer: Buffer
    ) -> Work:
        """A buffered round: it takes the first replies to come; see `RealTimeEngine`."""
        outcome = self._begun(buffer.replies)

        def settle() -> None:
            course = outcome.course
            assert course is not None
            answered = {site: version + 1 for site, version in course.began.items()}
            for site, of in answered.items():
                self._answered.note(site, order.round, of)
            self._settle(outcome, answered)

        return Work(outcome, self._buffered.arrivals(order, free, earlier, buffer, outcome), settle)

    def abandon(self) -> None:
        """Wait for no site any more: no round follows."""
        self._buffered.abandon()

    def _begun(self, replies: int) -> Outcome:
        """The outcome of a round that begins, of at most so many replies."""
        self._accepted.update(self._pending)
        self._pending = {}
        self._total.clear(replies)
        return Outcome(self._total)

    def _settle(self, outcome: Outcome, answered: dict[str, int]) -> None:
        """Record the orders, by site, that a round's replies answered."""
        self._pending = answered
        outcome.whole, self._whole = self._whole, set()
        if isinstance(self._total, ExactMean):
            outcome.doubts |= outliers(self._total.peaks, self._proven)

    def _round(
        self, order: Order, clients: Mapping[str, int], put: Callable[[Arrival], None]
    ) -> None:
        """Ask the sites of `clients` (name to number), again if the quorum is missed."""
        program, total = self.federation.program, self._total
        refused: dict[str, str] = {}
        if program.secure.masks and isinstance(total, SecureSum):
            digest, table = order_digest(order, adopted(self.federation)), total.quantiser.table()
            about = Subject(order.round, digest, table, self._accepted)
            refused = self._exchange.begin(about, list(clients))
            for site, cause in refused.items():
                put(Rejected(clients[site], site, cause))
        model = Model(self.federation, order.round - 1, order.vector, order.difference)
        extras = messages.pack(order.shared.values())
        accepted: list[str] = []

        def one(attempt: int, talk: Talk) -> None:
            header = {
                **self._order_header(order, talk, self._connected(clients), self._durable()),
                "attempt": attempt,
                "mark": talk.send("extras", extras) if extras else 0,
            }
            answer = self._asked(talk, model, "train", header)
            arrival, spool = self._fetch_reply(order, clients[talk.site], talk, answer)
            with spool:
                self._add(order, arrival, spool)
            accepted.append(talk.site)
            put(arrival)

        deadline, left = self._deadline(), [site for site in clients if site not in refused]
        for _ in range(ATTEMPTS):
            problems = self._converse(left, partial(one, next(_numbers)), deadline)
            for site, cause in problems.items():
                put(Rejected(clients[site], site, cause))
            if len(accepted) >= program.rounds.needed(len(clients)):
                break
            left = [site for site in problems if site in self.present()]  # these may succeed now

    def _hold(self, one: Assignment) -> None:
        """Have a site train in a buffered round, and fetch its reply."""
        order, number = one.order, next(_numbers)
        most = self.federation.program.rounds.replies(self.federation.population)
        sites = min(most, self._connected(self._link.sites))

        model = Model(self.federation, one.version, order.vector, order.difference)

        def ask(talk: Talk) -> None:
            durable = self._answered.durable(one.site, self._durable())
            told = self._order_header(order, talk, sites, durable)
            answer = self._asked(talk, model, "train", {**told, "attempt": number, "mark": 0})
            one.reply, one.spool = self._fetch_reply(order, one.client, talk, answer)

        stopped, deadline = one.stopped.is_set, self._deadline()
        one.cause = self._converse([one.site], ask, deadline, stopped).get(one.site, "")
        one.overdue = time.monotonic() >= deadline

    def _add_buffered(self, one: Assignment, factor: float) -> None:
        """Add the reply of an assignment; SiteError if it is not valid, or the site has left."""
        assert one.reply is not None
        assert one.spool is not None
        try:
            self._add(one.order, one.reply, one.spool, factor)
        except Silent as error:
            self.absent[one.site] = str(error)
            raise SiteError(str(error), "start it again") from None

    def _connected(self, sites: Iterable[str]) -> int:
        present = set(self.present())
        return sum(site in present for site in sites)

    def _order_header(
        self, order: Order, talk: Talk, sites: int, durable: int
    ) -> dict[str, object]:
        """What a site is told with an order: `sites` make a sum together."""
        total = self._total
        return {
            "round": order.round,
            "sites": sites,
            "accepted": self._accepted.get(talk.site, 0),
            "durable": min(durable, order.round - 1),
            "extras": {name: value.numel() for name, value in order.shared.items()},
            "quantiser": total.quantiser.table() if isinstance(total, SecureSum) else None,
        }

    def _fetch_reply(
        self, order: Order, client: int, talk: Talk, answer: dict[str, Any]
    ) -> tuple[Accepted, IO[bytes]]:
        """Fetch the reply of a site that has trained: what is known of it, and a file of the
        vectors."""
        arrival = replies.told(self.federation, client, talk.site, order.round, answer)
        size = replies.size_of(self.federation, self._total, answer, talk.site)
        with contextlib.ExitStack() as failing:
            spool = failing.enter_context(tempfile.TemporaryFile(prefix="fedsight-"))
            for piece in talk.fetch(answer["ticket"], size):
                spool.write(piece)
            failing.pop_all()
        return replace(arrival, bytes=size), spool

    def _add(self, order: Order, reply: Accepted, spool: IO[bytes], factor: float = 1.0) -> None:
        """Add a reply, times `factor`; SiteError if it is not valid."""
        with self._lock:  # only one whole reply is in memory at a time
            if self._gone(reply.site):  # for example revoked while it answered
                raise Silent(f"site '{reply.site}' has left")
            self._proven |= replies.add(self.federation, self._total, spool, reply, order, factor)

    def measure(
        self,
        vector: Tensor,
        round: int,
        validation: bool = False,
        difference: Tensor | None = None,
    ) -> list[Metrics]:
        """The sums of each view, summed whole by one site; empty for a view that was not measured.

        A site's own view is measured by that site; the common test part of a public sample by one
        of the sites, which take turns. Nothing in the question selects images. A site whose model
        is its own is asked only once it has trained: before, its personal slice is nobody's.
        Nor is a site that trains in a buffered round, which would interrupt it.
        Raises SiteError when no site is left to ask, but not when sites withhold their figures:
        `withheld` then says why.
        """
        model = Model(self.federation, round, vector, difference)
        views, number = self.federation.views, 0
        done: dict[int, Metrics] = {}
        # This round's replies already count: the personal parts that they left are measured.
        accepted = {**self._accepted, **self._pending}
        wanted = {
            number: view.site
            for number, view in enumerate(views)
            if not self._personal or self.federation.name(view.site or 0) in accepted
        }

        def one(talk: Talk, view: int) -> None:
            header = {"round": round, "attempt": number, "accepted": accepted.get(talk.site, 0)}
            limits = messages.HEADER.with_sums(self._figures.shapes, 1)
            answer = self._asked(talk, model, "measure", header, limits)
            if self.federation.program.rounds.ema is not None:
                # What was measured is not what the next round trains from.
                self._held.pop(talk.site, None)
            with self._lock:
                if "withheld" in answer:
                    self.withheld[talk.site] = messages.read_reason(answer["withheld"])
                    tried.add(talk.site)
                else:
                    done[view] = self._figures.checked(answer, talk.site, len(views[view].indices))
                    self.withheld.pop(talk.site, None)

        tried: set[str] = set()
        problems: dict[str, str] = {}
        while asked := self._askable(round, wanted, {*done}, tried):
            number = next(_numbers)
            failed = self._converse(asked, lambda t: one(t, asked[t.site]), self._deadline())
            problems |= failed
            tried |= failed.keys()
        if wanted and not done and not self.withheld.keys() & tried and not self._buffered.busy:
            raise SiteError(
                f"no site is left to measure the model after round {round}",
                "check the sites' machines and network connections. The last checkpoint is intact",
            )
        missing = [site for number, site in wanted.items() if number not in done]
        self.unmeasured = self._why_unmeasured(missing, problems)
        return [done.get(view, {}) for view in range(len(views))]

    def add_up(
        self, model: tuple[Tensor, int], question: SumQuestion, take: replies.Take
    ) -> dict[str, str]:
        """Have `take` add up whole numbers about the final model, its vector after a round: those
        of each view, or, in a program with secure aggregation, of all sites together. Returns why
        others have sent none, by site."""
        return self.site_sums.add_up(
            Model(self.federation, model[1], model[0], None), question, take
        )

    def noised_sums(
        self, model: tuple[Tensor, int], bounds: Bounds, shapes: messages.Shapes
    ) -> Noised:
        """Sums with noise about the final model, its vector after a round, by site. They have these
        shapes, and an image's share these bounds. And why others have sent none."""
        return self.site_sums.noised(
            Model(self.federation, model[1], model[0], None), bounds, shapes
        )

    def _why_unmeasured(
        self, missing: Iterable[int | None], problems: Mapping[str, str]
    ) -> dict[str, str]:
        """Why the sites `missing` (by number) from the figures, which withhold none, are missing,
        by name."""
        names = [self.federation.name(site) for site in missing if site is not None]

        def why(site: str) -> str:
            if site in problems or site in self.absent:
                return problems.get(site) or self.absent[site]
            return (
                f"site '{site}' was training" if site in self.present() else self._why_absent(site)
            )

        return {site: why(site) for site in names if site not in self.withheld}

    def deliver(self, vector: Tensor, round: int, counted: Mapping[str, int]) -> dict[str, str]:
        """Send the sites the model that training ended with, after `round`.

        They tell whether they have it, and nothing of what they make of it. `counted`: in how many
        rounds each site's reply counted. Returns why others have not got it, by site.
        """
        data = messages.pack([vector])
        digest = order_digest(Order(round, vector), adopted(self.federation))
        accepted = {**self._accepted, **self._pending}

        def one(talk: Talk) -> None:
            header = {
                "round": round,
                "digest": digest,
                "accepted": accepted.get(talk.site, 0),
                "counted": counted.get(talk.site, 0),
            }
            if talk.finish("deliver", {**header, "vector": 0}).get("missing"):
                talk.finish("deliver", {**header, "vector": talk.send("vector", data)})

        sites = [self.federation.name(site) for site in range(self.federation.population)]
        untrained = [site for site in sites if self._personal and site not in accepted]
        never = "it has never trained, and so has no part of the model that would be its own"
        problems = dict.fromkeys(untrained, never)
        asked = [site for site in sites if site not in problems]
        return problems | self._converse(asked, one, self._deadline())

    def _askable(
        self, round: int, wanted: Mapping[int, int | None], done: set[int], tried: set[str]
    ) -> dict[str, int]:
        """The sites to ask for the views that are left of `wanted` (view to site), each for one."""
        out = {*tried, *self._without_figures, *self._buffered.busy}
        sites = [site for site in self.present() if site not in out]
        asked: dict[str, int] = {}
        for number, owner in wanted.items():
            if number in done or not sites:
                continue
            site = sites[round % len(sites)] if owner is None else self.federation.name(owner)
            if site in sites:
                asked[site] = number
        return asked

    def close(self) -> None:
        """End the conversations; no connection stays open between them."""
        self._buffered.abandon(wait=False)

    def present(self) -> list[str]:
        """The sites of the federation that still answer."""
        return [site for site in self._link.sites if site not in self.absent]

    def _converse(
        self,
        sites: Iterable[str],
        one: Callable[[Talk], None],
        deadline: float,
        stopped: Callable[[], bool] = _never,
    ) -> dict[str, str]:
        """Talk to all sites at once; returns the reasons of those that failed, by site.

        Once it has `stopped`, nobody wants to know, and it says nothing of the sites.
        """

        def gone(site: str) -> bool:
            return stopped() or self._gone(site)

        problems = {site: self._why_absent(site) for site in sites if site not in self.present()}
        talks = [
            Talk(self._link, site, deadline, gone, self._sizers[site], self._budget)
            for site in sites
            if site not in problems
        ]
        for site, error in converse(talks, one).items():
            problems[site] = reason(error)
            if stopped():
                self._held.pop(site, None)
            elif isinstance(error, Silent):
                self.absent[site] = problems[site]
            else:
                self._held.pop(site, None)  # it may have restarted
        return problems

    def _converse_briefly(
        self, sites: Iterable[str], one: Callable[[Talk], None]
    ) -> dict[str, str]:
        """Talk to all sites at once about something that needs no training."""
        return self._converse(list(sites), one, self._deadline())

    def _deadline(self) -> float:
        return time.monotonic() + self.federation.program.rounds.deadline

    def _why_absent(self, site: str) -> str:
        return self.absent.get(site, f"site '{site}' is not connected")

    def _asked(
        self,
        talk: Talk,
        model: Model,
        kind: str,
        header: Mapping[str, object],
        limits: messages.HeaderLimits = messages.HEADER,
    ) -> dict[str, Any]:
        """Have a site finish what it is to do with `model`, of which it is sent what it lacks."""
        size = reply_bytes(self.federation, self._total) if kind == "train" else 0

        def ask(sent: Mapping[str, object]) -> dict[str, Any]:
            return talk.finish(kind, {**header, **sent}, limits, size)

        answer = model.asked(talk, self._held.get(talk.site), self._whole, ask)
        self._held[talk.site] = model.round
        return answer
