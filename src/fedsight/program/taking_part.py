"""What does not go with who takes part, and when: `[participation]`, `[timing]`, buffered rounds.

Decided from facts of the parts, never from their names. What goes with which protection is in
`rules.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fedsight.algorithms.base import Algorithm
from fedsight.core.errors import Problem
from fedsight.core.layout import Kind
from fedsight.data.partition import Partition
from fedsight.models.base import Network
from fedsight.program import auto_codec, networks

if TYPE_CHECKING:
    from fedsight.program.program import Program

# Also in rules.py: the catalogue of translations follows a name through its own module only.
_SYNCHRONOUS = "set rounds.mode = 'synchronous'"
_TIME = "set timing.images_per_second, timing.bytes_per_second or timing.delay_seconds"


def problems(program: Program) -> Iterator[Problem]:
    """Every problem that can be found without data and network."""
    yield from program.participation.check(program.rounds)
    yield from program.timing.check()
    yield from _of_choice(program)
    if program.rounds.buffered:
        yield from _of_buffer(program)
        yield from _of_algorithm(program.algorithm)


def network_problems(program: Program, network: Network) -> list[Problem]:
    """Problems that can be found once the network is built."""
    if not program.rounds.buffered or not program.layout(network).length(Kind.BUFFER):
        return []
    cause = (
        "running statistics (of BatchNorm or whitening) travel as changes of moments, and changes "
        "of different models may add up to a negative variance"
    )
    cure = (
        "set model.norm = 'group' (the default), or keep the norms at the sites with fedbn; where "
        "the model whitens, set model.whiten = false"
    )
    return [Problem("model.norm", cause, cure)]


def of_sites(program: Program, partition: Partition) -> list[Problem]:
    """Problems that can be found once it is known which sites there are."""
    if not (program.participation.follows_time or program.timing.groups):
        return []
    sites = [partition.name(site) for site in range(len(partition))]
    seed = program.train_seed
    return [
        *program.timing.check_sites(sites),
        *program.participation.check_sites(sites, program.rounds, seed),
    ]


def simulated(program: Program) -> list[Problem]:
    """What only a federation can do, where real time passes."""
    found = list(auto_codec.problems(program))
    if not program.rounds.buffered or program.timing.moves:
        return found
    cause = "the first sites to answer count, and all answer in no time"
    cure = f"{_TIME}; only in a federation, `fedsight check --elsewhere`, does real time pass"
    return [*found, Problem("timing", cause, cure)]


def elsewhere(program: Program) -> list[Problem]:
    """What only a simulation can do, where the sites are on other machines."""
    found = []
    if program.timing.passes:
        cause = "the sites of a federation take the time that they take"
        cure = "leave out [timing]; rounds.deadline and the order of replies are in real time"
        found.append(Problem("timing", cause, cure))
    if not program.participation.accounted:
        cause = "the sites of a federation take part whenever they are connected"
        cure = "leave it out; rounds.cohort draws that many of them"
        found.append(Problem("participation.name", cause, cure))
    return [*found, *networks.elsewhere(program)]


def _of_choice(program: Program) -> Iterator[Problem]:
    chosen = program.participation
    if chosen.follows_time and not program.timing.moves:
        cause = "which sites are there changes with virtual time, and no time passes"
        yield Problem("timing", cause, _TIME)
    yield from _of_masks(program)
    if chosen.asks_loss and not program.algorithm.phases(program.train.length):
        cause = "sites are chosen by their training losses, and this algorithm trains nothing"
        yield Problem("participation.name", cause, "set participation.name = 'uniform'")


def _of_masks(program: Program) -> Iterator[Problem]:
    """The fewest sites that a round may begin with must be enough for secure aggregation."""
    rounds, least = program.rounds, program.rounds.present
    if not program.participation.follows_time or rounds.buffered or least == rounds.cohort:
        return
    if program.secure.check(least, rounds.quorum):
        cause = f"a round may begin with {least} of the sites, too few for secure aggregation"
        yield Problem("rounds.quorum", cause, "raise it, or set rounds.cohort and no quorum")


def _of_buffer(program: Program) -> Iterator[Problem]:
    """What of the program needs rounds in which all train from the same model."""
    if program.timing.partial:
        cause = "a buffered round has no deadline, so no site needs to train for fewer epochs"
        yield Problem("timing.partial", cause, "leave it out")
    if not program.participation.singly:
        cause = (
            "in buffered rounds one site begins when another has answered, and this way to choose "
            "draws several at once"
        )
        cure = f"set participation.name = 'uniform', or {_SYNCHRONOUS}"
        yield Problem("participation.name", cause, cure)


def _of_algorithm(algorithm: Algorithm) -> Iterator[Problem]:
    """What of an algorithm assumes that all sites of a round began with the same model."""
    shares = type(algorithm).shared is not Algorithm.shared
    remembers = type(algorithm).init is not Algorithm.init and algorithm.remembers
    if shares or remembers:
        cause = (
            "its state at the coordinator must stay what the sites remember or are sent (control "
            "variates), and late replies were made with an earlier one"
        )
    elif algorithm.scalars:
        cause = (
            "the numbers that sites send besides the update are of one model, and the replies of a "
            "buffer are of several"
        )
    elif algorithm.derives:
        cause = (
            "the algorithm corrects the mean by products of single updates, which must all be of "
            "one model, and the replies of a buffer are of several"
        )
    elif algorithm.counts:
        cause = "its sums need every site once, and a buffer takes the sites that answer first"
    else:
        return
    cure = f"{_SYNCHRONOUS}, or choose for example fedavg, fedprox or fedadam"
    yield Problem("algorithm.name", cause, cure)
