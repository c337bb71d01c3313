"""What goes wrong at a site whatever its images are."""

from __future__ import annotations

from fedsight.core.errors import FedSightError


class CausedOutsideError(FedSightError):
    """The coordinator, another job or the machine is why a question was not answered.

    The operator is told, and a protected site makes no zeros instead, as it does where its images
    may be why: those would be an answer at somebody's bidding.
    """
