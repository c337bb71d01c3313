"""Who takes part in a run: the sites of a job are asked, and those that can are in its roster."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from fedsight.coordinator.store import RESULTS, RunStore
from fedsight.core import package
from fedsight.core.errors import DeployError, HeldError, RefusedError, SiteError
from fedsight.core.settings import Settings
from fedsight.deploy.costly_sites import costly_sites
from fedsight.deploy.declaration import (
    Declaration,
    disagreeing_sites,
    lone_sites,
    mislabelled_sites,
    oversized_sites,
    read_declaration,
)
from fedsight.deploy.earlier_sites import EarlierSites
from fedsight.deploy.membership.federation import FederationFolder
from fedsight.deploy.membership.requests import is_operators
from fedsight.deploy.membership.revocations import Revocations
from fedsight.deploy.server.server import disable_site
from fedsight.deploy.site.named_files import ELSEWHERE
from fedsight.engines.protected import adopted
from fedsight.engines.remote import messages
from fedsight.engines.remote.conversation import Link, Talk, converse, reason
from fedsight.models.base import Model
from fedsight.program.federation import Federation
from fedsight.program.program import Program


def update_roster(
    folder: FederationFolder,
    store: RunStore,
    program: Program,
    roster: dict[str, Declaration],
    link: Link,
    earlier: EarlierSites | None,
) -> dict[str, str]:
    """Ask the job's sites to take part, and add those that do to `roster`.

    Returns why the others do not. Raises SiteError or DeployError if too few take part: to measure
    a model that is trained, any are enough.
    """
    run = str(store.read_json("run.json")["id"])
    trained = is_trained(store, program)
    late = _too_late(store, program, link, trained)
    revoked = {site: f"site '{site}' was revoked" for site in folder.revoked()}
    shown = folder.revocations
    how = Trained(len(roster)) if trained else None
    found, absent, refused, held = propose(program, run, link, {**late, **revoked}, how, shown)
    require_newest(folder, refused)
    unfit = unfit_sites(program, found, roster, earlier)
    quorum = 1 if trained else program.rounds.quorum
    if unfit and (quorum is None or len(found) - len(unfit) < quorum):
        raise next(iter(unfit.values()))
    for site, error in unfit.items():
        del found[site]
        absent[site] = f"{error.cause}; {error.cure}"
    for site, declared in [*found.items()]:
        if roster.setdefault(site, declared) != declared:
            absent[site] = f"site '{site}' no longer has the images with which it joined this run"
            del found[site]
        else:
            roster[site] = declared  # whether it releases figures may have changed
    for site, why in absent.items():
        folder.log_event("absent", run=store.folder.name, site=site, why=why)
    if trained and not found:
        raise SiteError(
            f"no site is there to measure the trained model: {'; '.join(absent.values())}",
            f"once one is connected, run: fedsight resume {store.folder}",
        )
    if quorum is not None or absent.keys() - late.keys():
        members = max(len(link.sites), len(folder.admitted()))
        _require_enough(absent, refused, held, (len(found), members), quorum)
    return absent


def require_newest(folder: FederationFolder, refused: Mapping[str, object]) -> None:
    """Raise RefusedError if sites hold a list of revocations with names that the list of this
    folder lacks: it was restored from an older backup. They are revoked again, and dropped."""
    found = {site: folder.take_over(evidence) for site, evidence in refused.items()}
    holder = next((site for site, names in found.items() if names is not None), None)
    if holder is None:
        return
    again = sorted({name for names in found.values() for name in names or ()})
    for name in again:
        with contextlib.suppress(DeployError):  # nothing counts from it, connected or not
            if not is_operators(name):
                disable_site(folder, name)
    cure = "they were taken over: continue with `fedsight resume`"
    if not folder.lists_revoked:
        ca = folder.folder / "ca"
        cure = (
            f"they were taken over, but not signed: put the authority's key into {ca}, then "
            "continue with `fedsight resume`"
        )
    names = ", ".join(again) or "none"
    raise RefusedError(
        f"the list of revocations that site '{holder}' holds names some that the list of this "
        f"folder lacks, which was restored from an older backup; revoked again: {names}",
        cure,
    )


def _require_enough(
    absent: Mapping[str, str],
    refused: Collection[str],
    held: Collection[str],
    counts: tuple[int, int],
    quorum: int | None,
) -> None:
    """Raise SiteError, naming all that are absent, if fewer than `quorum` of the sites take part
    (None: if one does not); RefusedError if that stays so whoever else comes, HeldError if nothing
    is missing but the decisions of owners. `counts`: of the sites that take part, and of all."""
    found, members = counts
    if quorum is not None and found >= quorum:
        return
    stays = len(refused) > 0 if quorum is None else members - len(refused) < quorum
    causes = "; ".join(absent.values())
    error = SiteError(
        f"{found} sites take part, and rounds.quorum is {quorum}: {causes}",
        "resolve this with the sites' owners, or lower rounds.quorum",
    )
    if quorum is None:
        error = SiteError(
            f"not every site takes part: {causes}",
            "resolve this with the site's owner, or set rounds.quorum to continue without it",
        )
    undecided = absent.keys() <= set(held) if quorum is None else found + len(held) >= quorum
    if undecided and not stays:
        cure = "once they have decided (fedsight site programs), continue with `fedsight resume`"
        raise HeldError(error.cause, f"ask the sites' owners; {cure}")
    raise RefusedError(error.cause, error.cure) if stays else error


def final_sites(store: RunStore, program: Program) -> frozenset[str] | None:
    """The only sites that can still take part in a run; None: others may join.

    Where the cost of each round depends on the number of clients (`Mechanism.fixes_population`),
    these are the sites that had joined before its first round had a result. Otherwise what was
    released among few would be accounted as if it had been drawn from many. And once the run is
    trained, nobody joins who has had no part in that: its images would only be measured.
    """
    if is_trained(store, program):
        return frozenset(store.read_json("run.json").get("declared", {}))
    begun = any((store.folder / name).exists() for name in RESULTS)
    if not (begun and program.privacy.fixes_population(program.rounds.cohort)):
        return None
    return frozenset(store.read_json("run.json").get("declared", {}))


def is_trained(store: RunStore, program: Program) -> bool:
    """Whether the last round has its result: only figures of the model are missing, if anything."""
    privacy = store.read_json("run.json").get("privacy") or {}
    checkpoint = store.load_checkpoint()
    done = checkpoint.round if checkpoint else 0
    done += store.load_unmeasured(done + 1) is not None
    return done >= int(privacy.get("rounds_within", program.rounds.rounds))


def _too_late(store: RunStore, program: Program, link: Link, trained: bool) -> dict[str, str]:
    """Why sites of this job are not asked to take part, by site."""
    final = final_sites(store, program)
    if trained:
        why = "came after the last round"
    else:
        why = (
            f"came after the first round: under privacy '{program.privacy.registered}' with a "
            "cohort, what each round costs depends on the number of sites"
        )
    return {
        site: f"site '{site}' {why}. It can take part in the next run"
        for site in link.sites
        if final is not None and site not in final
    }


def unfit_sites(
    program: Program,
    found: Mapping[str, Declaration],
    roster: Mapping[str, Declaration],
    earlier: EarlierSites | None = None,
) -> dict[str, DeployError]:
    """The sites in `found` with whose declarations the run cannot go on, and why.

    Each question is asked of the sites that passed those before it: a network, say, is built only
    for a size on which the sites agree.
    """
    unfit = disagreeing_sites(found, roster)

    def others() -> dict[str, Declaration]:
        return {site: one for site, one in found.items() if site not in unfit}

    if earlier is not None:
        unfit |= earlier.misplaced(others())
    unfit |= mislabelled_sites(program, others())
    unfit |= lone_sites(program, others())
    unfit |= oversized_sites(others(), roster)
    return unfit | costly_sites(program, others(), roster)


@dataclass(frozen=True)
class Trained:
    """A run whose last round has its result, by how many sites. Once it is `measured`, too, only
    the model is left to be sent, whatever FedSight a site has by then."""

    sites: int
    measured: bool = False


class Proposed(NamedTuple):
    """The answers of the sites that were asked to take part."""

    found: dict[str, Declaration]  # of those that take part
    absent: dict[str, str]  # why the others do not
    # those of them that refuse, however often they are asked, and what they prove it by
    refused: Mapping[str, object]
    held: frozenset[str]  # those whose owners have not decided yet


def propose(
    program: Program,
    run: str,
    link: Link,
    unasked: Mapping[str, str],
    trained: Trained | None = None,
    shown: Revocations | None = None,
) -> Proposed:
    """Ask every site to take part, except those `unasked`, for the reasons given there.

    `trained`: how the run was, if it is; it goes on, otherwise, with those that are asked. They are
    `shown` the list of revocations.
    """
    found: dict[str, Declaration] = {}
    absent = {site: unasked[site] for site in link.sites if site in unasked}
    sites = [site for site in link.sites if site not in unasked]
    measured = trained is not None and trained.measured
    header = {
        "run": run,
        "program": program_for_sites(program),
        "fingerprint": program.fingerprint,
        "line": None if program.codec.line is None else program.codec.line.table(),
        "sites": len(sites) if trained is None else trained.sites,
        "trained": trained is not None,
        "measured": measured,
        "package": package.installed().table(),
        "revocations": (shown or Revocations()).table(),
    }
    deadline = time.monotonic() + program.rounds.deadline

    def ask(talk: Talk) -> None:
        answer = talk.finish("propose", header)
        if not measured:
            package.require_same(answer.get("package"), talk.site)
        try:
            found[talk.site] = read_declaration(answer.get("declared"), talk.site)
        except DeployError as error:
            raise SiteError(error.cause, error.cure) from None

    failed = converse([Talk(link, site, deadline) for site in sites], ask)
    absent |= {site: reason(error) for site, error in failed.items()}
    refused = {site: one.evidence for site, one in failed.items() if isinstance(one, RefusedError)}
    held = frozenset(site for site, one in failed.items() if isinstance(one, HeldError))
    return Proposed(found, absent, refused, held)


def program_for_sites(program: Program) -> dict[str, Any]:
    """The program in plain values, without the paths of the coordinator's own files."""
    table = program.table()
    for item in fields(program):
        value = getattr(program, item.name)
        if isinstance(value, Settings):
            paths = value.table().keys() - value.meaning().keys()
            if isinstance(value, Model) and value.published is not None:
                paths -= {"weights"}  # a name
            table[item.name] = {**table[item.name], **dict.fromkeys(paths, ELSEWHERE)}
    table["plugins"] = [{"sha256": plugin.sha256} for plugin in program.plugins]
    return table


def send_kept(federation: Federation, link: Link, absent: dict[str, str]) -> None:
    """Send the sites what does not travel every round, if it is from the coordinator's weights.

    These are the personal parameters to begin with, and the frozen ones. They are named by their
    hash, and a site that has them from an earlier job, or has made them of published weights, is
    not sent them. Sites that fail are added to `absent`.
    """
    kept = adopted(federation)
    if kept is None:
        return
    data = messages.pack([kept])
    sha256 = hashlib.sha256(data).hexdigest()

    def send(talk: Talk) -> None:
        answer = talk.finish("adopt", {"sha256": sha256, "mark": 0})
        if answer.get("missing"):
            mark = talk.send("kept", data)
            talk.finish("adopt", {"sha256": sha256, "mark": mark})

    deadline = time.monotonic() + federation.program.rounds.deadline
    budget = messages.Budget()
    talks = [Talk(link, site, deadline, budget=budget) for site in link.sites if site not in absent]
    absent.update({site: reason(error) for site, error in converse(talks, send).items()})
