"""Whether the names of classes are stated, where a site must not read them from its labels."""

from __future__ import annotations

from fedsight.core.errors import DeployError
from fedsight.deploy.site.owner import OwnerSettings
from fedsight.governance.contract import Contract
from fedsight.program.program import Program


def require_stated(program: Program, owner: OwnerSettings) -> None:
    """Raise DeployError, naming the clause, for a program under which the site would find out from
    its labels which classes there are, if the owner has not stated them either.

    A declaration lists the classes. One image with a label of its own would add one to them, in the
    owner's words, give those after it other numbers, and the network another output: no noise hides
    that. Nothing of the images is looked at here.
    """
    setting, clause = owner.data.vocabulary, _clause(owner.contract)
    if not (setting and clause) or owner.share:
        return
    given, own = (getattr(data, setting, None) for data in (program.data, owner.data))
    if own if given is None else given:  # an empty list states nothing, and takes the owner's place
        return
    raise DeployError(
        f"contract.{clause}: the program does not set data.{setting}, and this site must not tell "
        "which classes its labels name",
        f"set data.{setting} in the program; or the site's owner states it below [data] in "
        "site.toml",
    )


def _clause(contract: Contract) -> str:
    """The clause for which the site's own labels must not decide; empty if they may."""
    if contract.epsilon is not None:
        return "epsilon"
    if contract.hides_images:
        return "figures" if contract.release == "noised" else "require"
    if not contract.tells_counts:
        return "counts"
    return "" if contract.announces else "announce"
