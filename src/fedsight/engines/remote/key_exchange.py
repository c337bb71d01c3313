"""The coordinator's side of the phases of secure aggregation, over network connections.

A site that fails in a phase has dropped out; the round continues without it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from fedsight.core.errors import SiteError
from fedsight.core.package import installed
from fedsight.engines.remote.conversation import Talk
from fedsight.privacy.secagg.graph import Parameters
from fedsight.privacy.secagg.keys import CHALLENGE, identity_part, is_public, signed
from fedsight.privacy.secagg.masks import Residues, WideResidues
from fedsight.privacy.secagg.messages import Binding
from fedsight.privacy.secagg.server import SecAggServer
from fedsight.program.federation import Federation

Converse = Callable[[Iterable[str], Callable[[Talk], None]], dict[str, str]]
Recognise = Callable[[str, str], None]  # a site's name and its identity key
T = TypeVar("T")


class _Serials:
    """Numbers of attempts, which increase from one process to the next as well."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def __next__(self) -> int:
        with self._lock:
            self._last = max(self._last + 1, time.time_ns() // 1_000_000)
            return self._last


_serials = _Serials()  # of all runs of this process


@dataclass(frozen=True)
class Subject:
    """What keys are made for: the `round`, the digest of the `order`, how it is rounded (`table`),
    and the last round in which each site's reply counted (`accepted`; 0 for others)."""

    round: int
    order: str
    table: Mapping[str, Any]
    accepted: Mapping[str, int] = field(default_factory=dict)


class Exchange:
    """Key exchange for the rounds of one run; `converse` talks to sites and returns failures.

    `recognise` raises SiteError for a site that shows another identity key than before: the other
    sites would refuse a round with it, one by one, and seem to be at fault.
    """

    def __init__(
        self, federation: Federation, run: str, converse: Converse, recognise: Recognise
    ) -> None:
        self._federation = federation
        self._run = run
        self._converse = converse
        self._recognise = recognise
        self._identities: dict[str, str] = {}
        self._lock = threading.Lock()
        self._server: SecAggServer | None = None
        self._numbers: dict[str, int] = {}

    def begin(self, subject: Subject, sites: Sequence[str]) -> dict[str, str]:
        """Run phases 0 to 2 with `sites`; returns the reasons of those that dropped out.

        If a site cannot open the shares that another sealed for it, the phases begin again without
        those that are at fault or as many others: keys that have not been used cost nothing, and
        whoever silences another that way silences itself.

        Raises SiteError when too few are left.
        """
        unknown = [site for site in sites if site not in self._identities]
        problems = self._converse(unknown, self._identify)
        while True:
            failed = self._attempt(subject, sites, problems)
            server = self._current()
            if not server.conflicts:
                _naming(failed, server.check_ready)
                return failed
            complained = {server.binding.name(site) for _, site in server.conflicts}
            problems = {site: why for site, why in failed.items() if site not in complained}
            gone = server.left_out(self._federation.program.secure.corrupt)
            problems |= {site: why for site, why in self._doubts(server).items() if site in gone}

    def _attempt(
        self, subject: Subject, sites: Sequence[str], problems: Mapping[str, str]
    ) -> dict[str, str]:
        """Phases 0 to 2 without the sites in `problems`; the reasons of these and of others that
        dropped out."""
        known = [site for site in sites if site in self._identities and site not in problems]
        sizes = subject.round, len(known), len(sites)
        parameters = _naming(problems, lambda: self._parameters(*sizes))
        binding = Binding(
            self._run,
            self._federation.program.fingerprint,
            installed().sha256,
            subject.round,
            next(_serials),
            subject.order,
            tuple((site, self._identities[site]) for site in known),
            tuple(subject.accepted.get(site, 0) for site in known),
            parameters,
            subject.table,
        )
        server = self._server = SecAggServer(binding)
        self._numbers = {site: number for number, site in enumerate(known)}

        failed = dict(problems)
        failed |= self._phase("advertise", known, lambda _: binding.data, server.advert)
        # Reports too few sites once, here, rather than as a failure of each site.
        _naming(failed, lambda: server.adverts(0))
        left = [site for site in known if site not in failed]
        failed |= self._phase("share", left, server.adverts, server.share)
        _naming(failed, lambda: server.inbox(0))
        left = [site for site in left if site not in failed]
        return failed | self._phase("confirm", left, server.inbox, server.confirm)

    def _parameters(self, round: int, present: int, asked: int) -> Parameters:
        """The graph of a round of so many sites, of those asked; SiteError if they are too few."""
        secure = self._federation.program.secure
        whole = secure.parameters(asked)  # for the whole cohort, including absent sites
        if present < whole.survivors:
            raise SiteError(
                f"only {present} of {asked} sites are present in round {round}, and secure "
                f"aggregation needs {whole.survivors}",
                "check the rejected sites, or raise secure.dropout",
            )
        # Sites that are already missing count towards the permitted drop-outs.
        found = secure.parameters(present)
        return replace(found, survivors=max(found.survivors, whole.survivors))

    def _doubts(self, server: SecAggServer) -> dict[str, str]:
        """The sites that may have cheated, and why, by name."""
        return server.doubts(self._federation.program.secure.corrupt)

    def _current(self) -> SecAggServer:
        assert self._server is not None
        return self._server

    def finish(
        self, sites: Sequence[str], levels: Residues, integers: WideResidues
    ) -> dict[str, str]:
        """Phases 4 and 5: agree that `sites` have survived, and remove the masks from their sum, in
        place. Returns sites whose shares contradict each other, and why. Raises SiteError when too
        few sites are left.
        """
        server = self._current()
        lists = server.lists(self._numbers[site] for site in sites)
        members = [site for site in sites if self._numbers[site] in server.committee]
        # The updates of those lost from here on still count: the others can unmask them.
        lost = self._phase("agree", members, lambda _: lists, server.agree)
        _naming(lost, lambda: server.request(0))
        lost |= self._phase("unmask", sites, server.request, server.answer)
        _naming(lost, lambda: server.unmask(levels, integers))
        return self._doubts(server)

    def _phase(
        self,
        kind: str,
        sites: Iterable[str],
        question: Callable[[int], bytes],
        take: Callable[[int, bytes], None],
    ) -> dict[str, str]:
        """One question to each site, and what is done with the answers; why sites dropped out."""

        def ask(talk: Talk) -> None:
            number = self._numbers[talk.site]
            with self._lock:
                body = question(number)
            _, message = talk.ask(kind, {}, body)
            with self._lock:
                take(number, message)

        return self._converse(sites, ask)

    def _identify(self, talk: Talk) -> None:
        """Ask a site for its identity key, and for a proof that it holds it.

        Every site refuses a roster that has one key twice, so without the proof a site that shows
        another's public key would end every round.
        """
        challenge = secrets.token_bytes(CHALLENGE)
        answer, _ = talk.ask("identify", {"challenge": challenge.hex()})
        key, proof = answer.get("identity"), answer.get("proof")
        content = identity_part(talk.site, challenge)
        if not is_public(key) or not signed(bytes.fromhex(key), _signature(proof), content):
            cause = f"site '{talk.site}' does not prove that it holds the identity key it shows"
            raise SiteError(cause, "run the same FedSight version there; if that is so, it cheats")
        with self._lock:
            if twin := next((s for s, known in self._identities.items() if known == key), None):
                cause = f"site '{talk.site}' has the identity key of site '{twin}'"
                cure = "remove identity.key at one of them: it makes a new one"
                raise SiteError(cause, cure)
            self._recognise(talk.site, key)
            self._identities[talk.site] = key


def _signature(proof: object) -> bytes:
    """A signature in hex as bytes; empty if it is not one."""
    try:
        return bytes.fromhex(proof) if isinstance(proof, str) else b""
    except ValueError:
        return b""


def _naming(problems: Mapping[str, str], do: Callable[[], T]) -> T:
    """The result of `do`; a SiteError that it raises also says why the first site dropped out."""
    try:
        return do()
    except SiteError as error:
        raise SiteError(f"{error.cause}{_first(problems)}", error.cure) from None


def _first(problems: Mapping[str, str]) -> str:
    return f"; the first that dropped out: {next(iter(problems.values()))}" if problems else ""
