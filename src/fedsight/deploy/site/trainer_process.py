"""The trainer process of a site: a crash here does not end the site's job process.

`deploy/site/trainer.py` starts it as a child of the site's job process, with one end of a pipe as
its argument. It is a module of its own because it is run as `__main__`: the messages must have one
import path in both processes.
"""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch
from torch import Tensor

from fedsight.client.memory import MemoryStore
from fedsight.client.step import Client
from fedsight.core.allocator import keep_freed_memory
from fedsight.core.errors import ConfigError, EngineError, FedSightError, SiteError, StoreError
from fedsight.core.files import write_atomically
from fedsight.core.types import Memory, Metrics, Reply
from fedsight.data.contents import contents, stamp
from fedsight.deploy.declaration import as_built_here, declare, open_site
from fedsight.deploy.site.calibration import PART_TOO_SMALL
from fedsight.deploy.site.figures import FAILED
from fedsight.deploy.site.incoming import lengths_of
from fedsight.deploy.site.job_lease import JobLease
from fedsight.deploy.site.owner import OwnerSettings
from fedsight.deploy.site.trainer import (
    CalibrateStep,
    MeasureStep,
    NotKeptError,
    OpenData,
    Opened,
    TrainedUpdate,
    TrainStep,
    changed_images,
    receive,
    send,
)
from fedsight.evaluation.trust import noised, noised_cover
from fedsight.evaluation.trust.answers import Answers, Respondent
from fedsight.evaluation.trust.cover_sums import CoverSums, Three, tallied_singly
from fedsight.evaluation.trust.images import MOST, divided, pieces, standing, unit_of
from fedsight.evaluation.trust.of_site import room
from fedsight.evaluation.trust.remote import form_of
from fedsight.evaluation.trust.scaling import TemperatureScaling
from fedsight.evaluation.trust.sums import CountSums, FitSums, Sums, flat, read
from fedsight.evaluation.trust.units import fewest, group_count, grouped, one_of_each
from fedsight.governance.charges import charge
from fedsight.privacy.noise import fresh
from fedsight.program import coding, plugins, rules
from fedsight.program.auto_codec import settled
from fedsight.program.facts import Facts
from fedsight.program.federation import Federation
from fedsight.program.site_data import SiteData
from fedsight.tasks.covering.base import Covering

T = TypeVar("T")
DURABLE = ".durable"  # beside what the site remembers: the coordinator's last checkpoint, as told


def permitted(
    federation: Federation, number: int, owner: OwnerSettings
) -> tuple[Federation, Federation]:
    """The whole federation and this site's part of it, as the site trains them, with the network
    built for its images.

    Raises ConfigError if the program does not suit the network, DeployError if it would keep memory
    that the contract does not permit.
    """
    whole = settled(replace(federation, program=as_built_here(federation.program)))
    of = whole.member(number)
    if problems := rules.problems(whole.program, of.network):  # the coordinator may not have asked
        raise ConfigError(problems)
    # A sketch of a network does not show which of its tensors `train.only` names.
    remembers = Facts.of(whole.program, of.network).remembers
    owner.contract.check_memory(whole.program, remembers)
    return whole, of


class SiteTrainer:
    """Trains and measures on the site's images, for one program."""

    def __init__(self, setup: OpenData) -> None:
        torch.set_num_threads(setup.owner.speed.threads)
        self.federation, self.number = open_site(setup.program, setup.owner, setup.name)
        keep_freed_memory()  # from now on: opening images frees what training never needs
        speed = setup.owner.speed.client
        whole, of = permitted(self.federation, self.number, setup.owner)
        program = whole.program
        self._protected = setup.owner.contract.protected
        self.client = Client(of, speed, fresh, deployed=True, hides=self._protected)
        if setup.kept is not None:
            self.client.adopt(setup.kept)
        self.memory = MemoryStore(setup.memory)
        self._rounds_kept = setup.owner.keep.memory_rounds
        self.name = setup.name
        images = self.federation.size(self.number)
        cost = charge(setup.program.privacy, self.federation.plan, images)
        self._remembers = self.client.own.stop > self.client.own.start
        owner = setup.owner
        declared = declare(self.federation, self.number, owner.share, owner.contract.tells_counts)
        # Noise in the steps covers what stays here as well, if there must be enough of it.
        kept_here = self._remembers or self.federation.computes_looks
        bare = kept_here and "example_dp" not in owner.contract.noised(program)
        self._stamp = stamp(self.federation.dataset)  # before what it stands for is read
        self._checked: int | None = None  # the round in which it was compared last
        hashes = contents(self.federation.dataset).hashes
        integers = self.client.federation.integers_of(images)
        layout = whole.layout  # what comes and goes is as long as the whole network, at every site
        state = program.init(whole.initial[layout.shared].clone())
        difference = coding.difference_of(program, layout)
        built = whole.program.model == setup.program.model  # else without the weights
        lengths = lengths_of(layout, program.shared(state).values(), difference)
        texts = room(program, self.client.network, len(self.federation.dataset.classes))
        own = program.differs(self.client.network) or self.federation.computes_looks
        parts = divided(self.federation)
        smallest = fewest(*parts, unit_of(self.federation))
        means = self._covering is not None and not program.task.whole and grouped(parts)
        self.opened = Opened(
            declared, cost, bare, self._remembers, integers, smallest, lengths, hashes, texts,
            own, difference, means,
            whole.initial[layout.travelling] if built else None,
            whole.initial[layout.kept] if built and whole.program.model.pretrains else None,
        )  # fmt: skip

    def train(self, step: TrainStep) -> TrainedUpdate:
        """Take one client step.

        At a protected site nothing that fails shows: the update is then one that says nothing of
        the images, and comes with the reason, which stays at the site. But NotKeptError: whether
        memory can be read and written does not depend on them.
        """
        reply, failure = None, ""
        if not step.blank:
            try:
                reply = self._trained(step)
            except NotKeptError:
                raise
            except Exception as error:
                if not self._protected:
                    raise
                traceback.print_exc()
                failure = str(error) or type(error).__name__
        if reply is None:
            reply = self.client.blank(step.order, self.number, self._memory(step))
        # Also that nothing was learnt: what is kept counts in contract.disk, which is told.
        if reply.memory:
            with _kept():
                self.memory.save(self.name, step.order.round, reply.memory)
        metrics = {} if self._protected else reply.metrics  # no epsilon pays for the loss
        return TrainedUpdate(reply.payload, reply.weight, metrics, failure)

    def _trained(self, step: TrainStep) -> Reply:
        """The client step."""
        self._require_unchanged(step.order.round)
        reply = self.client.step(step.order, self.number, self._memory(step))
        finite = all(bool(torch.isfinite(part).all()) for part in reply.payload.values())
        if self._protected and not finite:  # the coordinator would reject it by name
            raise SiteError("the update is not finite", "lower train.lr, or set train.clip")
        return reply

    def _require_unchanged(self, round: int) -> None:
        """Raise ChangedImagesError if files that are read in each round are not those that were
        opened. A file that was only copied or touched is the same. Each round looks once, until
        that succeeds: files behind a network take time."""
        if round == self._checked:
            return
        if (now := stamp(self.federation.dataset)) != self._stamp:
            if contents(self.federation.dataset).hashes != self.opened.hashes:
                raise changed_images()
            self._stamp = now
        self._checked = round

    def _memory(self, step: TrainStep) -> Memory:
        """What the site remembers; rounds that the coordinator did not accept are forgotten.

        Raises SiteError if the coordinator goes back further than it had said it ever would, to a
        round of which the site has nothing any more; NotKeptError if it cannot be read or written.
        """
        with _kept():
            return self._remembered(step)

    def _remembered(self, step: TrainStep) -> Memory:
        # Never what this round uses: `durable` is not in the keys' binding.
        durable = min(step.durable, step.order.round - 1)
        if self._goes_back(step.accepted, durable) and self.memory.lacks(self.name, step.accepted):
            raise SiteError(
                f"what this site kept in round {step.accepted} is gone: the coordinator was "
                "restored from a backup that is older than its last checkpoint",
                "start the run anew, or restore a newer backup; for next time, the site's owner "
                "can set memory_rounds below [keep] in site.toml",
            )
        self.memory.rewind(step.accepted, self.name)
        self.memory.prune(self.name, durable - self._rounds_kept)
        return self.memory.load(self.name, step.order.round)

    def _goes_back(self, accepted: int, durable: int) -> bool:
        """Whether the coordinator counts less than its checkpoint had, as it has said before."""
        path = self.memory.folder / DURABLE
        before = int(path.read_bytes()) if path.exists() else 0
        if durable > before and path.parent.exists():
            write_atomically(path, str(durable).encode())
        return 0 < accepted < before

    def measure(self, step: MeasureStep) -> Metrics:
        """The sums over all test images of this site's view, added as the simulation adds them."""
        memory = {}
        if self._remembers:
            with _kept():
                memory = self.memory.load(self.name, min(step.round, step.accepted) + 1)
        self.client.load(step.vector, memory)
        if not step.blank:
            self._require_unchanged(step.round)
        seen = self.federation.tested(self.federation.views[0])
        if step.bounds is not None:
            return self.client.measure_each(seen, step.bounds, step.blank)
        return self.client.measure_all(seen)

    def count(self, step: CalibrateStep) -> Metrics:
        """Histograms of all test images, or of one image of each group, each of which adds 1 to one
        number of each; or by how much losses rise, to which each adds at most as much. Which of a
        group's is drawn says nothing of other groups, and is secret.

        Each is asked by itself: one that fails would otherwise change what all others add, and no
        noise is sized for that.
        """
        seen, covering = self.federation.tested(self.federation.views[0]), self._covering
        if step.blank and covering is not None:
            return noised_cover.nothing(group_count(seen.part) or len(seen))
        if step.blank:
            return noised.nothing(group_count(seen.part) or len(seen))
        self._require_unchanged(step.round)
        seen = one_of_each(seen, lambda _: secrets.randbelow)
        self.client.load(step.vector, {})
        if covering is not None:
            tally = tallied_singly(self.client, [seen], covering, covering.parts[0])
            return noised_cover.counted(tally, len(seen))
        classes, method = len(self.federation.dataset.classes), self.federation.program.trust.sets
        asks = Respondent(lambda _: self.client, self.client.network, classes)
        some = pieces(seen, math.ceil(len(seen) / MOST))
        each = [noised.counted(asks.singly(one).finite, method) for one in some]
        return {name: noised.added(each, name) for name in noised.BOUNDS}

    @property
    def _covering(self) -> Covering | None:
        return self.federation.program.task.covering

    def calibrate(self, step: CalibrateStep) -> Tensor | str:
        """The sums over parts of this site's test images, added as the simulation adds them.

        A reason instead if any part has too few images or groups, also one that is not summed: what
        is measured is the sum over all parts, and so the other sums, subtracted from it, tell of
        this one. Or if answers are not finite, of sums that are not masked.
        """
        program, classes = self.federation.program, len(self.federation.dataset.classes)
        if step.blank:
            size = form_of(program, classes, step.temperature).size
            return torch.zeros(size, dtype=torch.int64)
        self._require_unchanged(step.round)
        parts = divided(self.federation)
        if fewest(*parts, unit_of(self.federation)) < step.least:
            return PART_TOO_SMALL
        self.client.load(step.vector, {})
        if self._covering is not None:
            three = ([parts[0]], [parts[1]], [parts[2]])
            return _cover_sums(self.client, self._covering, three, step.masked).flat
        respondent = Respondent(lambda _: self.client, self.client.network, classes)
        asked = [parts[0]]
        if step.temperature is not None:
            asked = [standing(part, self.federation.partition) for part in parts[1:]]
        count = math.ceil(max(map(len, asked)) / MOST)  # so many at a time take little memory
        total = torch.zeros((), dtype=torch.int64)
        for some in zip(*(pieces(part, count) for part in asked), strict=True):
            answers = [_answers(respondent, one, step.masked) for one in some]
            if not all(bool(torch.isfinite(one.logits).all()) for one in answers):
                return FAILED
            total = total + flat(self._summed(answers, step.temperature))
        if step.temperature is None:
            return total
        images = torch.tensor([len(part) for part in parts[1:]])
        return flat(replace(read(CountSums, total, classes), images=images))

    def _summed(self, answers: Sequence[Answers], temperature: float | None) -> Sums:
        """The sums over these images, of the fitted or of the two other parts."""
        if temperature is None:
            return FitSums.of(answers[0])
        scaling, method = TemperatureScaling(temperature), self.federation.program.trust.sets
        return CountSums.of(answers[0], answers[1], scaling, method)


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Memory is read and written: NotKeptError if that fails."""
    try:
        yield
    except StoreError as error:
        raise NotKeptError(error.cause, error.cure) from error
    except OSError as error:
        raise NotKeptError(
            f"what this site remembers of the run cannot be read or written ({error.strerror})",
            "look at the folder `memory` of the site",
        ) from error


def _or_singly(together: Callable[[], T], singly: Callable[[], T]) -> T:
    """What all images give `together`, or, if that fails, each by itself.

    In a masked sum one image that fails must not take the site's others away: by the exact number
    of images one could see which site has it.
    """
    try:
        return together()
    except Exception:
        traceback.print_exc()
    return singly()


def _answers(respondent: Respondent, data: SiteData, masked: bool) -> Answers:
    """The answers to the images, all of them finite in a `masked` sum."""
    if not masked:
        return respondent.answers([data])
    return _or_singly(lambda: respondent.answers([data]), lambda: respondent.singly(data)).finite


def _cover_sums(client: Client, covering: Covering, images: Three, masked: bool) -> CoverSums:
    """What is lost of the images."""

    def of(singly: bool = False) -> CoverSums:
        return CoverSums.of(client, covering, images, singly)

    return _or_singly(of, lambda: of(singly=True)) if masked else of()


class Commands:
    """Answers the commands of one trainer process, for one program after the other."""

    def __init__(self) -> None:
        self._trainer: SiteTrainer | None = None
        self._lease: JobLease | None = None

    def answer(self, command: Any) -> Any:
        """The answer to a command, or the error that it ended with."""
        try:
            return self._answer(command)
        except FedSightError as error:
            return error
        except Exception as error:  # a bug: report it, and continue
            sys.excepthook(*sys.exc_info())
            return EngineError(
                f"its trainer failed ({type(error).__name__})",  # the error's text may name files
                "see trainer.txt at the site; this is a bug in FedSight",
            )

    def close(self) -> None:
        """Release the lease on the memory."""
        if self._lease is not None:
            self._lease.release()
            self._lease = None

    def _answer(self, command: Any) -> Any:
        if isinstance(command, tuple):  # the plug-ins of the program that comes next
            return plugins.activate(command)
        if isinstance(command, OpenData):
            self._trainer = None
            self.close()
            self._lease = JobLease(command.memory, command.token)
            self._trainer = SiteTrainer(command)
            return self._trainer.opened
        if isinstance(command, TrainStep) and self._trainer is not None:
            return self._trainer.train(command)
        if isinstance(command, MeasureStep) and self._trainer is not None:
            return self._trainer.measure(command)
        if isinstance(command, CalibrateStep) and self._trainer is not None:
            if command.noised:
                return self._trainer.count(command)
            return self._trainer.calibrate(command)
        raise EngineError("no images are open", "this is a bug in FedSight")


def serve(pipe: Connection) -> None:
    """Answer commands until the pipe closes."""
    commands = Commands()
    while True:
        send(pipe, commands.answer(receive(pipe)))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)  # the process that answers the coordinator takes precedence
    with contextlib.suppress(EOFError, OSError):  # the site's job has ended
        serve(Connection(int(sys.argv[1])))
