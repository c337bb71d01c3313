"""The consistency round: every site reveals shares for the same survivors, or for none.

A coordinator that tells each site other lists of survivors could collect the secrets of one
site's neighbours and uncover its update. So a committee signs the lists, each member once
(Bonawitz et al. 2017, section 6.2), and a site also sees signed which shares its neighbours
received (the acknowledgements of Bell et al. 2020, section 4). `docs/explanation/
secure-aggregation.md` has the proof.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set

from fedsight.privacy.secagg import messages as m
from fedsight.privacy.secagg.keys import signed


def lists_part(binding: m.Binding, lists: m.Lists) -> bytes:
    """The signed content of an agreement: the round's binding, and the lists."""
    return b"fedsight survivors\0" + binding.digest + lists.digest(len(binding.roster))


def inbox_part(binding: m.Binding, site: int, dealers: Set[int]) -> bytes:
    """The signed content of a confirmation: whose shares site number `site` received."""
    number = site.to_bytes(m.NUMBER, "big")
    whose = m.bit_set(dealers, len(binding.roster))
    return b"fedsight inbox\0" + binding.digest + number + hashlib.sha256(whose).digest()


def objection(binding: m.Binding, number: int, inbox: Set[int], lists: m.Lists) -> str:
    """Why site `number`, which received the shares of `inbox`, must not sign; empty if it may."""
    parameters, survivors = binding.parameters, lists.survivors
    if number not in survivors:
        return "it claims that this site dropped out, but it answered"
    least = max(parameters.survivors, parameters.threshold)
    if len(survivors) < least:
        return f"{len(survivors)} survivors are too few: at least {least}"
    due = _inbox(binding, number, lists)
    if wrong := sorted(due ^ inbox):
        dealt = "dealt no shares to this site" if wrong[0] in due else "dealt shares to this site"
        return f"the lists are not those of its inbox: site '{binding.name(wrong[0])}' {dealt}"
    if binding.graph.thinnest(survivors) < parameters.window:
        return (
            f"too many neighbours dropped out at once: of {parameters.neighbours // 2} consecutive "
            f"sites of the graph, at least {parameters.window} must survive"
        )
    return ""


def unproven(binding: m.Binding, number: int, lists: m.Lists, proof: m.Proof) -> str:
    """Why `proof` does not let site `number` reveal shares for `lists`; empty if it does."""
    needed, members = binding.parameters.signatures, binding.committee
    content, found = lists_part(binding, lists), 0
    for site, signature in proof.agreements.items():
        if site not in members:
            return f"site '{binding.name(site)}' does not belong to the committee"
        if not signed(binding.identity(site), signature, content):
            return f"site '{binding.name(site)}' did not sign these lists"
        found += 1
    if found < needed:
        return f"{found} sites signed the lists, but {needed} signatures are needed"
    for site in sorted(confirming(binding, number, lists)):
        signature = proof.confirmations.get(site, b"")
        content = inbox_part(binding, site, _inbox(binding, site, lists))
        if not signed(binding.identity(site), signature, content):
            return f"site '{binding.name(site)}' did not confirm the shares it should have received"
    return ""


def confirming(binding: m.Binding, number: int, lists: m.Lists) -> set[int]:
    """The sites whose confirmed inboxes site `number` has to see before it reveals their shares.

    In a complete graph the committee is everybody, and its signatures suffice.
    """
    if binding.graph.complete or not binding.parameters.signatures:
        return set()
    return set(binding.graph.of(number)) & lists.survivors


def _inbox(binding: m.Binding, site: int, lists: m.Lists) -> set[int]:
    """Whose shares site `site` received, if these lists are right."""
    return set(binding.graph.of(site)) & (lists.survivors | lists.dropped)


def pick(signatures: Mapping[int, bytes], count: int) -> dict[int, bytes]:
    """The first `count` of some signatures, by site."""
    return {site: signatures[site] for site in sorted(signatures)[:count]}
