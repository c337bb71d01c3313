"""What a user of a console may do, and who in a federation may do what."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedsight.deploy.membership.federation import FederationFolder


class Right(IntEnum):
    """What somebody may do; each right includes those before it."""

    NONE = 0
    LOOK = 1  # see every page
    STEER = 2  # pause and stop the runs of a federation
    ALL = 3  # also start and resume runs, and decide for a site

    @property
    def steers(self) -> bool:
        """Whether they may pause and stop runs."""
        return self >= Right.STEER

    @property
    def all(self) -> bool:
        """Whether they may do everything."""
        return self == Right.ALL


Rights = Callable[[str], Right]  # of whom a token is for, by name


def of_token(name: str) -> Right:
    """Where nobody but the console's own user says who may do what: a token gives every right."""
    return Right.ALL


def of_operators(federation: FederationFolder) -> Rights:
    """The rights of a federation's operators, as its records have them now.

    What is started in a console is signed with the key of one operator, so nobody else may start
    anything: sites would take it for a job of that operator. Others who may start runs pause and
    stop them here, and start them with their own key (`fedsight operator run`).
    """
    from fedsight.deploy.membership.operators import Permitted

    permitted, signs = Permitted(federation.folder), federation.operator_name

    def of(name: str) -> Right:
        reads = permitted().get(name)
        if reads is None:
            return Right.NONE
        if reads:
            return Right.LOOK
        return Right.ALL if name == signs else Right.STEER

    return of
