"""Receives replies at the coordinator: their length is known, and they are added whole."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any

import torch
from torch import Tensor

from fedsight.aggregation.base import Aggregator
from fedsight.aggregation.mean import decoded
from fedsight.aggregation.secure import SecureSum
from fedsight.algorithms.base import Algorithm
from fedsight.client.dpsgd import local_training
from fedsight.client.pace import Pace
from fedsight.core.errors import EngineError, SiteError
from fedsight.core.types import Batch, Metrics, Order, Payload
from fedsight.data.degraded import DEGRADATIONS
from fedsight.engines.base import Accepted
from fedsight.engines.protected import reply_bytes
from fedsight.engines.remote import messages
from fedsight.engines.remote.conversation import JobEndedError, Talk
from fedsight.privacy.secagg.words import unpacked
from fedsight.program.federation import Federation

CLOSE = 1e-4  # relative difference of a float32 number that was computed on two machines
TINY = 1e-37  # what float32 may show as 0
# Takes whole numbers over at most so many test images: of a view, by its own number, or, where they
# were masked, of all sites together (None).
Take = Callable[[int | None, int, Tensor], None]
_CURE = "run the same FedSight version there; if that is so, it makes it up: revoke it"


def told(
    federation: Federation, client: int, site: str, round: int, answer: Mapping[str, Any]
) -> Accepted:
    """What a site says of its reply in `round`; SiteError if its images cannot have it so."""
    sender = f"site '{site}'"
    answered = messages.whole_number(answer, "round", sender)
    if answered != round:
        raise SiteError(
            f"{sender} answered for round {answered} in round {round}",
            "a late or repeated answer is not counted",
        )
    weight = messages.whole_number(answer, "weight", sender)
    expected = federation.program.rounds.weight(federation.size(client))
    if weight != expected:
        raise SiteError(
            f"{sender} gave its reply the weight {weight:,}, but its declaration implies "
            f"{expected:,}",
            "its images changed during the run, or it cheats: restart the site",
        )
    if answer.get("metrics") == {}:  # a site that protects its images does not report its loss
        return Accepted(client, site, weight, float("nan"))
    found = messages.read_metrics(answer.get("metrics"), {"train_loss": ()}, sender)
    loss = found["train_loss"]
    if not loss.count:
        raise SiteError(f"{sender} sent the training loss of no image", "check its log")
    return Accepted(client, site, weight, loss.mean)


def add(
    federation: Federation,
    total: Aggregator,
    spool: IO[bytes],
    reply: Accepted,
    order: Order,
    factor: float = 1.0,
) -> frozenset[str]:
    """Add the vectors of a reply to `order`, times `factor`; returns the names of its numbers that
    are just what belongs to its vectors and to the site's images.

    Raises SiteError if the aggregator, the mechanism or the algorithm rejects them, and EngineError
    if adding fails for another reason, because the sum may hold part of them.
    """
    data, proven = read(spool), frozenset[str]()
    if isinstance(total, SecureSum):
        words = unpacked(data, total.quantiser)
        if not federation.program.secure.masks:
            _check(federation, total.quantiser.integers.decode(words.integers), reply)
        with _whole(reply.site):
            total.add_words(words, reply.weight, reply.site)
    else:
        payload = _unpacked(federation, data, reply.site)
        mechanism = federation.program.privacy
        if mechanism.noise_at == "coordinator":
            values = decoded(federation.parts, payload, reply.site)
            mechanism.check_reply(values, order.shared, reply.site)
        _check(federation, payload, reply)
        proven = _check_scalars(federation, payload, reply, order.round)
        _check_places(federation, payload, reply)
        with _whole(reply.site):
            total.add(payload, reply.weight, reply.site, factor)
    return proven


def _unpacked(federation: Federation, data: bytearray, site: str) -> Payload:
    """The parts of a reply; SiteError for lengths that are not those of the whole."""
    try:
        return messages.unpack_parts(data, federation.parts)
    except ValueError as error:
        raise SiteError(
            f"the update of site '{site}' cannot be read: {error}",
            "it was cut off or altered, or the site is malicious: look at its log",
        ) from None


def size_of(federation: Federation, total: Aggregator, answer: Mapping[str, Any], site: str) -> int:
    """The bytes of a reply's vectors, as the site's answer states them where they vary.

    Raises SiteError for more than there can be.
    """
    most = reply_bytes(federation, total)
    if not any(spec.varies for spec in federation.parts.values()):
        return most
    stated = messages.whole_number(answer, "bytes", f"site '{site}'")
    if stated > most:
        raise SiteError(
            f"site '{site}' announced a reply of {stated:,} bytes, and {most:,} are the most",
            "it trains another model, or is malicious: compare the fingerprints",
        )
    return stated


@contextlib.contextmanager
def whole_numbers(talk: Talk, answer: Mapping[str, Any], size: int) -> Iterator[IO[bytes]]:
    """Fetch the int64 numbers [size] that a site's answer brings, to a file that lasts as long as
    the context; `as_numbers` reads them. SiteError if they are not as many."""
    with bytes_of(talk, answer, 8 * size) as spool:
        yield spool


@contextlib.contextmanager
def bytes_of(talk: Talk, answer: Mapping[str, Any], due: int) -> Iterator[IO[bytes]]:
    """Fetch the bytes that a site's answer brings, likewise; SiteError if they are not `due`."""
    sender = f"site '{talk.site}'"
    if (stated := messages.whole_number(answer, "bytes", sender)) != due:
        cause = f"{sender} announced sums of {stated:,} bytes, and {due:,} are due"
        raise SiteError(cause, "run the same FedSight version at the site and at the coordinator")
    with tempfile.TemporaryFile(prefix="fedsight-") as spool:
        for piece in talk.fetch(answer["ticket"], due):
            spool.write(piece)
        yield spool


def as_numbers(spool: IO[bytes]) -> Tensor:
    """The int64 numbers of a file."""
    return torch.frombuffer(read(spool), dtype=torch.int64)


def _check(federation: Federation, payload: Payload, reply: Accepted) -> None:
    """Raise SiteError if the site's images cannot have the integer parts of its reply."""
    found = {part: payload[part].view(spec.shape) for part, spec in federation.integers.items()}
    images = federation.size(reply.client)
    if not federation.program.algorithm.is_possible(found, images):
        raise SiteError(
            f"site '{reply.site}' sent statistics that its {images:,} images cannot have",
            "run the same FedSight version there; if that is so, it makes them up: revoke it",
        )


def _check_places(federation: Federation, payload: Payload, reply: Accepted) -> None:
    """Raise SiteError if a site updates what its network does not have: each value is divided by
    the weight of the sites that train it, so it would count for more than it weighs."""
    selection = federation.member(reply.client).selection
    if selection is None:
        return
    rest = decoded(federation.parts, payload, reply.site)["delta"].clone()
    rest[selection.index] = 0
    if bool(rest.any()):
        raise SiteError(
            f"site '{reply.site}' sent an update of values that its network does not have",
            "run the same FedSight version there; if that is so, it makes them up: revoke it",
        )


def _check_scalars(
    federation: Federation, payload: Payload, reply: Accepted, round: int
) -> frozenset[str]:
    """Raise SiteError if a number of the reply is not the one that belongs to its update.

    Returns the names of those for which that one is known. A reply of zeros is that of a protected
    site whose training failed.
    """
    program, parts = federation.program, federation.parts
    if not program.algorithm.scalars:
        return frozenset()
    values = decoded(parts, payload, reply.site)
    if not any(bool(value.any()) for value in values.values()):
        return frozenset()
    learnt = federation.layout.shared.stop  # what follows in an update are running statistics
    exact = {part: value[:learnt] for part, value in values.items() if parts[part].codec is None}
    training = local_training(federation, contextlib.nullcontext, hides=False)
    pace = Pace.of(program, round, training, federation.size(reply.client))
    known = program.algorithm.due(exact, pace.steps, pace.mean)
    for name, due in known.items():
        found = float(values[name])
        if not math.isclose(found, due, rel_tol=CLOSE, abs_tol=TINY):
            raise SiteError(
                f"site '{reply.site}' sent the {name} {found:g} with its update, and {due:g} "
                "belongs to it",
                _CURE,
            )
    _check_bounds(program.algorithm, values, exact, pace, reply.site)
    return frozenset(known)


def _check_bounds(
    algorithm: Algorithm, values: Payload, exact: Payload, pace: Pace, site: str
) -> None:
    """Raise SiteError if one of the numbers in `values` is beyond what belongs to an update whose
    vectors are `exact`, as far as they are known."""
    for name, least in algorithm.least(exact, pace.steps, pace.mean).items():
        found = float(values[name])
        if not found >= least * (1 - CLOSE) - TINY:
            raise SiteError(
                f"site '{site}' sent the {name} {found:g} with its update, to which at least "
                f"{least:g} belongs",
                _CURE,
            )
    for name, most in algorithm.most(exact, pace.steps, pace.mean).items():
        found = float(values[name])
        if not found <= most * (1 + CLOSE):
            raise SiteError(
                f"site '{site}' sent the {name} {found:g} with its update, to which at most "
                f"{most:g} belongs",
                _CURE,
            )


@contextlib.contextmanager
def _whole(site: str) -> Iterator[None]:
    try:
        yield
    except (SiteError, JobEndedError):
        raise
    except Exception as error:
        raise EngineError(
            f"the update of site '{site}' could not be added ({type(error).__name__}: {error})",
            "free some memory, and continue from the last checkpoint with `fedsight resume`",
        ) from error


def read(spool: IO[bytes]) -> bytearray:
    """Everything that was written to `spool`."""
    data = bytearray(spool.tell())
    spool.seek(0)
    spool.readinto(data)  # type: ignore[attr-defined]
    return data


def blank(federation: Federation) -> Metrics:
    """The task's metrics on one black image: the names and shapes of its sums."""
    size, module = federation.dataset.preprocess, federation.network.module
    black = torch.zeros(1, size.channels, size.height, size.width)
    module.eval()
    with torch.inference_mode():
        task, classes = federation.program.task, len(federation.dataset.classes)
        degraded = dict.fromkeys(DEGRADATIONS, black) if federation.degrades else {}
        return task.measure(module, Batch(black, task.blank(classes), degraded=degraded), classes)
