"""The frozen first layers of a network, which give every image the same values in every round.

They are found by running the network, and not by its structure: any module is a place where it may
be cut, if the layers before it are frozen and the answers stay the same, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsight.models.features import TOGETHER, padded
from fedsight.models.norms import still

log = logging.getLogger(__name__)
NONE = (
    "the frozen layers of the network run again in every step: its answers change if they are left "
    "out, so what they make of an image is not kept (speed.cache)"
)
ELSEWHERE = "no frozen layers end where '%s' begins: they are kept from elsewhere (speed.cache_at)"
MOST = 16  # places that are tried
TRIED = 4  # images that a place is tried with


@dataclass(frozen=True)
class Prefix:
    """The layers of a network that run before the module `at`.

    `shape` is that of the input of `at` for one image. `skipped` are the outermost modules that
    need not run, with the shapes of their outputs for one image.
    """

    at: str
    shape: tuple[int, ...]
    skipped: tuple[tuple[str, tuple[int, ...]], ...]
    image: tuple[int, ...]

    def activations(self, module: nn.Module, x: Tensor, together: int = TOGETHER) -> Tensor:
        """The input of `at`, float32 [b, *shape], for images `x` [b, c, h, w].

        As in `features`, the network sees `together` images at a time, whatever b up to that is. It
        is in evaluation mode afterwards, and nothing after `at` has run.
        """
        with torch.no_grad():
            return self._reached(module, padded(x, together))[: len(x)].float()

    def reads(self, module: nn.Module, names: frozenset[str]) -> bool:
        """Whether a parameter in `names` has a part in the activations, whatever the values are.

        How they are computed tells, not what comes out. Values can be chosen so that a parameter
        does not show in any image that is tried.
        """
        before = {value: value.requires_grad for value in module.parameters()}
        try:
            for name, value in module.named_parameters():
                value.requires_grad_(name in names)
            with torch.enable_grad():
                return self._reached(module, torch.zeros(2, *self.image)).requires_grad
        finally:
            for value, learns in before.items():
                value.requires_grad_(learns)

    def _reached(self, module: nn.Module, x: Tensor) -> Tensor:
        """What `at` gets when `module` gets `x`; the rest does not run."""
        module.eval()
        found: list[Tensor] = []

        def stop(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            found.append(given[0])
            raise _ReachedError

        handle = module.get_submodule(self.at).register_forward_pre_hook(stop, prepend=True)
        with handle, suppress(_ReachedError):
            module(x)
        return found[0]

    @contextmanager
    def resumed(self, module: nn.Module) -> Iterator[None]:
        """Within it, `module` takes activations [b, *shape] in place of images.

        The skipped layers return zeros that take no memory, and `at` gets the activations.
        """
        handed: list[Tensor] = []

        def begin(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            handed[:] = [given[0]]
            return (_nothing(given[0], self.image), *given[1:])

        def enter(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (handed.pop(),)

        with ExitStack() as undo:
            for name, shape in self.skipped:
                part: Any = module.get_submodule(name)
                part.forward = _skip(handed, shape)
                undo.callback(delattr, part, "forward")
            handle = module.register_forward_pre_hook(begin, prepend=True)
            undo.callback(handle.remove)
            entry = module.get_submodule(self.at)
            undo.callback(entry.register_forward_pre_hook(enter, prepend=True).remove)
            yield


class _ReachedError(Exception):
    """The forward pass has come to the module that it was to stop at."""


def _nothing(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    return like.new_zeros(()).expand(len(like), *shape)


def _skip(handed: list[Tensor], shape: tuple[int, ...]) -> Callable[..., Tensor]:
    return lambda *given, **named: _nothing(handed[0], shape)


@dataclass(frozen=True)
class _Call:
    """A module that ran: its name, the shape of its only input and output for one image."""

    name: str
    given: tuple[int, ...] | None
    answer: tuple[int, ...] | None
    before: tuple[str, ...]  # modules that had ended when it began
    again: bool  # whether it ran more than once


def find_prefix(
    module: nn.Module,
    image: Sequence[int],
    learns: frozenset[str],
    answers: Callable[[nn.Module, Tensor], Sequence[Tensor]],
    at: str = "",
) -> Prefix | None:
    """The longest prefix of `module` whose values no tensor in `learns` changes, or None.

    `image` is the shape [c, h, w] of one, `answers` what the task makes of a batch, in training or
    evaluation as the module is. A prefix counts only if these have the same bits with it; if its
    values do not depend on the mode, on random draws or on the images beside; and if they stay
    the same when all that learns is changed. The module is left with other modes (`train`), but the
    same values.

    `at` is the module that it is to end before, if that is not to be the last one possible.
    """
    if not any(name not in learns for name, _ in module.named_parameters()):
        return None
    calls = _calls(module, image)
    due = False
    last = next((at for at, call in enumerate(calls) if _own(module, call.name) & learns), None)
    for call in _places(calls[1 : (last or 0) + 1], at):
        prefix = _prefix(module, call, calls, image)
        if prefix is None or not _computes(module, prefix):
            continue
        if not prefix.reads(module, learns) and _holds(module, prefix, learns, answers):
            return prefix
        due = True
    if at:
        log.warning(ELSEWHERE, at)
        return find_prefix(module, image, learns, answers)
    if due:
        log.warning(NONE)
    return None


def _places(calls: Sequence[_Call], at: str) -> list[_Call]:
    """The calls where the network may be cut, the last one first, but a module before those in it:
    what has run before them is the same."""
    if at:
        return [call for call in calls if call.name == at]
    latest = sorted(calls, key=lambda call: -len(call.before))  # stable
    return latest[:MOST]


def _own(module: nn.Module, name: str) -> set[str]:
    """The names of a module's own tensors."""
    part, prefix = module.get_submodule(name), f"{name}." if name else ""
    own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
    return {f"{prefix}{tensor}" for tensor, _ in own}


def _calls(module: nn.Module, image: Sequence[int]) -> list[_Call]:
    """The modules that run, each at its first call, in the order in which they begin."""
    begun: dict[str, tuple[tuple[int, ...] | None, tuple[str, ...]]] = {}
    ended: dict[str, tuple[int, ...] | None] = {}
    again: set[str] = set()

    def shape(value: Any) -> tuple[int, ...] | None:
        batched = isinstance(value, Tensor) and value.dim() > 0 and len(value) == 2
        return tuple(value.shape[1:]) if batched else None

    def begin(name: str, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        if name in begun:
            again.add(name)
        single = len(given) == 1 and not named
        begun.setdefault(name, (shape(given[0]) if single else None, tuple(ended)))

    def end(name: str, answer: Any) -> None:
        ended[name] = shape(answer)

    with ExitStack() as undo, torch.no_grad():
        for name, part in module.named_modules():
            hooks = (
                part.register_forward_pre_hook(
                    lambda _, given, named, name=name: begin(name, given, named), with_kwargs=True
                ),
                part.register_forward_hook(lambda _, given, answer, name=name: end(name, answer)),
            )
            for hook in hooks:
                undo.callback(hook.remove)
        module.eval()(torch.zeros(2, *image))
    return [
        _Call(name, given, ended.get(name), before, name in again)
        for name, (given, before) in begun.items()
    ]


def _prefix(
    module: nn.Module, call: _Call, calls: Sequence[_Call], image: Sequence[int]
) -> Prefix | None:
    """The prefix that ends where `call` begins, or None where more than one tensor goes on.

    A module without weights that also runs later, such as a ReLU that serves several layers, is not
    skipped.
    """
    if call.given is None or call.again:
        return None
    ran = {one.name: one for one in calls}
    ended = set(call.before)
    outermost = [
        name
        for name in call.before
        if not ended & _containing(name)
        if not ran[name].again or any(True for _ in module.get_submodule(name).parameters())
    ]
    skipped = [(name, shape) for name in outermost if (shape := ran[name].answer) is not None]
    if len(skipped) < len(outermost):
        return None
    return Prefix(call.name, call.given, tuple(skipped), tuple(image))


def _containing(name: str) -> set[str]:
    """The names of the modules that contain module `name`."""
    parts = name.split(".")
    return {".".join(parts[:count]) for count in range(1, len(parts))}


def _computes(module: nn.Module, prefix: Prefix) -> bool:
    """Whether there is any weight in it: else there is nothing to save."""
    parts = (module.get_submodule(name) for name, _ in prefix.skipped)
    return any(True for part in parts for _ in part.parameters())


def trial_images(image: Sequence[int]) -> Tensor:
    """The random images [TRIED, c, h, w] that places are tried with; always the same ones."""
    draws = torch.Generator().manual_seed(0)
    return padded(torch.rand(TRIED, *image, generator=draws) * 2 - 1, TRIED)


def _holds(
    module: nn.Module,
    prefix: Prefix,
    learns: frozenset[str],
    answers: Callable[[nn.Module, Tensor], Sequence[Tensor]],
) -> bool:
    """Whether the network answers the same, bit for bit, from these activations."""
    images = trial_images(prefix.image)
    found = prefix.activations(module, images, TRIED)
    kept = laid_out(found.flatten(1), prefix.shape)

    def run(training: bool, seed: int, x: Tensor) -> list[Tensor]:
        module.train(training)
        for part in still(module, lambda name: name not in learns):
            part.eval()
        with _put_back(dict(module.named_buffers())), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            with torch.no_grad():
                return list(answers(module, x))

    for training, seed in ((True, 1), (True, 2), (False, 1)):
        try:
            whole = run(training, seed, images)
            with prefix.resumed(module):
                rest = run(training, seed, kept)
        except Exception:  # the network, or the task, cannot be used like that
            return False
        if not _equal(whole, rest):
            return False
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    learning = {name: tensors[name] for name in learns & tensors.keys()}
    with _put_back(learning), torch.no_grad():
        for value in learning.values():
            value.mul_(1.5).add_(0.25)
        moved = prefix.activations(module, images[TRIED // 2 :].flip(0), TRIED)  # beside black ones
    return torch.equal(moved, found[TRIED // 2 :].flip(0))


@contextmanager
def _put_back(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Afterwards the tensors have the values that they have now."""
    before = {name: value.detach().clone() for name, value in tensors.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in tensors.items():
                value.copy_(before[name])


def _equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def laid_out(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Rows [b, values] as activations [b, *shape], in one memory format wherever they come from."""
    made = rows.reshape(len(rows), *shape)
    return made.contiguous(memory_format=torch.channels_last) if made.dim() == 4 else made
