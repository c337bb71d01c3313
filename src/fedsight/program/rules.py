"""Which protections are compatible with which features, decided from facts of the parts.

A program's facts (`Facts`) come from its parts, never from their names: which kinds of slices the
layout has, what a payload consists of, where noise is added, whether single updates are needed. So
a new algorithm with a personal slice, or a new mechanism, is covered without a change here. `check`
enforces the rules, and the compatibility page is generated from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fedsight.compression.base import Packer
from fedsight.compression.pipeline import Pipeline
from fedsight.core.errors import Problem
from fedsight.models.base import Network
from fedsight.privacy.base import Mechanism, mechanisms
from fedsight.program.facts import Facts

if TYPE_CHECKING:
    from fedsight.program.program import Program

Verdict = Literal["sound", "stated", "refused"]  # stated: sound, with a remark in the report
SECURE = "secure aggregation"

PLAIN = "no secure aggregation"
STATISTICS = "running statistics that travel (BatchNorm or whitening)"
KEPT = "running statistics kept at the site (FedBN)"
PERSONAL = "a personal slice or model (FedBN, FedPer, FedRep, Ditto, APFL)"
FROZEN = "a frozen slice"
SEVERAL = "several vectors in a reply (SCAFFOLD)"
SCALARS = "numbers besides the update (FedNova, FedExP, q-FedAvg, AFL)"
BEYOND = "a local loss or gradients of its own (MOON, FedSAM, APFL)"
PRODUCTS = "products of single updates (FedEx-LoRA)"
LOSS = "an update that a site's loss scales (q-FedAvg, AFL)"
WEIGHTING = "weighting by samples, capped or not"
COHORT = "a cohort"
QUORUM = "a quorum"
SHIFT = "a feature shift"
SINGLE = "a rule over single replies (median)"
LOSSY = "a codec of updates"
LINEAR = "a linear codec of updates (random-k, rotate)"
VARYING = "updates of different length (zstd)"
VARYING_MODELS = "models of different length (zstd)"
INTEGERS = "integer statistics (closed forms)"
BOUNDED = "integer statistics that one image changes little (closed forms with a clip)"
SCORES = "sums of scores of public images (FedMD, FedDF)"
LABELS = "a network prepared for the classes of a site (faces)"
MIXED = "images mixed with one another (mixup, CutMix)"
BALANCED = "balanced sampling"
NESTED = "sites with narrower networks (model.groups)"
COUNTED = "class weights or margins from a site's own counts"
CHOSEN = "sites that are not drawn uniformly (coins, a trace, day and night)"
BY_LOSS = "sites that are chosen by their losses (power of choice)"
BUFFERED = "buffered rounds"

FEATURES: dict[str, Callable[[Facts], bool]] = {
    PLAIN: lambda facts: not facts.program.secure.masks,
    SECURE: lambda facts: facts.program.secure.rounds_values,
    STATISTICS: lambda facts: facts.travelling_statistics,
    KEPT: lambda facts: facts.kept_statistics,
    PERSONAL: lambda facts: facts.personal,
    FROZEN: lambda facts: facts.frozen,
    SEVERAL: lambda facts: len(facts.program.algorithm.parts) > 1,
    SCALARS: lambda facts: bool(facts.program.algorithm.scalars),
    BEYOND: lambda facts: facts.program.algorithm.beyond,
    PRODUCTS: lambda facts: facts.program.algorithm.derives,
    LOSS: lambda facts: facts.program.algorithm.asks_loss,
    WEIGHTING: lambda facts: facts.program.rounds.weighting != "uniform",
    COHORT: lambda facts: facts.program.rounds.cohort is not None,
    QUORUM: lambda facts: facts.program.rounds.quorum is not None,
    SHIFT: lambda facts: facts.program.shift.kind != "none",
    SINGLE: lambda facts: facts.program.aggregation.needs_replies,
    LOSSY: lambda facts: _codec(facts, linear=False),
    LINEAR: lambda facts: _codec(facts, linear=True),
    VARYING: lambda facts: _varies(facts.program.codec.up.pipeline),
    VARYING_MODELS: lambda facts: _varies(facts.program.codec.down.pipeline),
    INTEGERS: lambda facts: (
        facts.program.algorithm.counts
        and not facts.program.algorithm.bounds_images
        and not facts.program.algorithm.on_public
    ),
    BOUNDED: lambda facts: facts.program.algorithm.bounds_images,
    SCORES: lambda facts: facts.program.algorithm.on_public,
    LABELS: lambda facts: facts.program.task.prepares,
    MIXED: lambda facts: facts.program.train.mixes,
    BALANCED: lambda facts: facts.program.train.sampling == "balanced",
    COUNTED: lambda facts: facts.program.task.counts_labels,
    CHOSEN: lambda facts: (
        not (facts.program.participation.accounted or facts.program.participation.asks_loss)
    ),
    BY_LOSS: lambda facts: facts.program.participation.asks_loss,
    BUFFERED: lambda facts: facts.program.rounds.buffered,
    NESTED: lambda facts: bool(facts.program.model.groups) and not facts.program.algorithm.equips,
}


def _codec(facts: Facts, linear: bool) -> bool:
    """Whether updates are encoded, by linear steps or by others; what is only packed is not."""
    steps = [one for one in facts.program.codec.up.steps if not isinstance(one, Packer)]
    return bool(steps) and all(step.linear for step in steps) == linear


def _varies(pipeline: Pipeline | None) -> bool:
    return pipeline is not None and pipeline.varies


@dataclass(frozen=True)
class Rule:
    """The verdict on a protection together with a feature."""

    protection: str  # a mechanism's name, or secure aggregation
    feature: str
    verdict: Verdict
    cause: str = ""
    cure: str = ""
    where: str = ""


@dataclass
class _Rules:
    """Collects the rules of one protection."""

    protection: str
    found: list[Rule] = field(default_factory=list)

    def sound(self, feature: str, why: str = "") -> None:
        self.found.append(Rule(self.protection, feature, "sound", why))

    def stated(self, feature: str, what: str, more: str = "") -> None:
        self.found.append(Rule(self.protection, feature, "stated", what, more))

    def refused(self, feature: str, cause: str, cure: str, where: str) -> None:
        self.found.append(Rule(self.protection, feature, "refused", cause, cure, where))


_GROUP = (
    "set model.norm = 'group' (the default), or keep the norms at the sites with fedbn; where the "
    "model whitens, set model.whiten = false"
)
_NO_STATISTICS = (
    "set model.norm = 'group' (the default); where the model whitens, set model.whiten = false"
)
_CLIPPED = (
    "choose another algorithm, or bound what one image changes, with algorithm.clip = 1 if it has "
    "that"
)
_ONE_NETWORK = "leave out [[model.groups]], so that all sites train the same network"
_EXACT = "choose fedavg; with adapter.name = 'ffa-lora' the mean of the adapters is exact too"
_UPDATES = "choose an algorithm that sends vectors only, for example feddyn, scaffold or fedprox"
_SLICE = (
    "the slice of the model, or the whole model, that stays at its site: it is trained without "
    "noise, and epsilon covers what travels"
)


_TELLS = "the length of a message would tell something of what masks hide to whoever sees it"
_FIXED_UPDATES = "leave 'zstd' out of codec.up.steps"
_FIXED_MODELS = "leave 'zstd' out of codec.down.steps"


def rules_of(mechanism: type[Mechanism], name: str) -> list[Rule]:
    """The rules of a privacy mechanism, from its facts."""
    rules = _Rules(name)
    if mechanism.unit == "client":
        _client_rules(rules)
    else:
        _example_rules(rules)
    rules.sound(FROZEN, "Tensors that never change reveal nothing.")
    rules.sound(COHORT, mechanism.with_cohort)
    rules.stated(QUORUM, "which sites failed to answer", mechanism.with_quorum)
    rules.sound(SHIFT)
    rules.sound(SECURE, mechanism.with_masks)
    if mechanism.noise_at in ("coordinator", "shares"):
        cause = "weights would move by products of single updates, to which no noise is added"
    else:
        cause = "the noise in one factor of an update would be multiplied by that in the other"
    rules.refused(PRODUCTS, cause, _EXACT, "algorithm.name")
    if mechanism.noise_at == "shares":
        rules.refused(
            PLAIN,
            "each site adds only a share of the noise, which does not protect its own update",
            "set secure.name = 'secagg', or privacy.name = 'local'",
            "privacy.name",
        )
    else:
        rules.sound(PLAIN, mechanism.without_masks)
    if mechanism.noise_at in ("coordinator", "shares"):
        rules.refused(
            SINGLE,
            "the noise is sized for a sum of clipped updates, which this rule does not form",
            "set aggregation.name = 'mean'",
            "aggregation.name",
        )
        longer = "encoding an update after clipping may make it longer than the clip"
        for feature in (LOSSY, LINEAR):
            rules.refused(feature, longer, "leave out codec.up.steps", "codec.up.steps")
        rules.refused(
            VARYING,
            "the length of an update would tell something of a site's images, before noise is "
            "added",
            _FIXED_UPDATES,
            "codec.up.steps",
        )
    else:
        rules.sound(SINGLE, "The rule sees only noised updates.")
        for feature in (LOSSY, LINEAR):
            rules.sound(feature, "Updates are encoded after the noise.")
        rules.sound(VARYING, "Their length follows from noised values.")
    if mechanism.noise_at == "shares":
        rules.refused(VARYING_MODELS, _TELLS, _FIXED_MODELS, "codec.down.steps")
    else:
        rules.sound(VARYING_MODELS, "Their length follows from noised sums.")
    _integer_rules(rules, mechanism)
    _part_rules(rules, mechanism)
    return rules.found


_UNIFORM = "set participation.name = 'uniform' (the default)"
_SYNCHRONOUS = "set rounds.mode = 'synchronous'"


def _part_rules(rules: _Rules, mechanism: type[Mechanism]) -> None:
    """Rules of who takes part, and when."""
    if mechanism.noise_at in ("coordinator", "shares"):
        drawn = "noise and epsilon are planned for rounds whose sites the mechanism itself draws"
        rules.refused(CHOSEN, drawn, _UNIFORM, "participation.name")
        cure = _SYNCHRONOUS
        if mechanism.noise_at == "coordinator":
            cure = f"{_SYNCHRONOUS}, or privacy.name = 'local' or 'example'"
        cause = f"{drawn}, and a buffer is filled by whoever answers first"
        rules.refused(BUFFERED, cause, cure, "rounds.mode")
    else:
        rules.sound(CHOSEN, "A site is accounted as if it took part in every round.")
        rules.sound(BUFFERED, "A site replies at most once to each model.")
    rules.refused(
        BY_LOSS,
        "sites are chosen by their training losses, to which no noise is added",
        _UNIFORM,
        "participation.name",
    )


def _integer_rules(rules: _Rules, mechanism: type[Mechanism]) -> None:
    """Rules of sums of integers, which no gradient step and no clip of an update sees."""
    if mechanism.covers_integers:
        rules.sound(INTEGERS, "They are bounded and noised.")
    else:
        rules.refused(
            INTEGERS,
            "integer parts are neither clipped nor noised, so epsilon would not cover them",
            _CLIPPED
            if mechanism.covers_bounded_integers
            else "choose another algorithm, or set privacy.name = 'none'",
            "algorithm.name",
        )
    if mechanism.covers_integers or mechanism.covers_bounded_integers:
        rules.sound(BOUNDED, "All parts of a round are noised as one release.")
    else:
        rules.refused(
            BOUNDED,
            "what one image changes in these sums is bounded, but not what all images of a site "
            "do, so epsilon would not cover a site",
            "protect single images, with privacy.name = 'example'",
            "privacy.name",
        )
    if mechanism.noise_at == "steps":
        rules.sound(SCORES, "They follow from noised steps and from images that belong to no site.")
    else:
        rules.refused(
            SCORES,
            "scores of public images are neither clipped nor noised, so epsilon would not cover "
            "them",
            "protect single images, with privacy.name = 'example'",
            "privacy.name",
        )


def _client_rules(rules: _Rules) -> None:
    """Rules of every mechanism that protects a client as a whole."""
    rules.refused(
        STATISTICS,
        "running statistics (of BatchNorm or whitening) are sums over images that clipping does "
        "not bound layer by layer, and a noised variance may be negative",
        _GROUP,
        "model.norm",
    )
    rules.stated(KEPT, _SLICE)
    rules.stated(PERSONAL, _SLICE)
    rules.sound(SEVERAL, "All vectors are clipped jointly.")
    rules.refused(
        SCALARS,
        "a number that is no part of an update would use up the clip, and be shortened with it",
        _UPDATES,
        "algorithm.name",
    )
    rules.refused(
        WEIGHTING,
        "an update's weight would reveal how many images its site has, and let one site change the "
        "sum by more than the clip",
        "set rounds.weighting = 'uniform'",
        "rounds.weighting",
    )
    for feature in (BEYOND, LOSS, LABELS, MIXED, BALANCED, COUNTED):
        rules.sound(feature, "All that a site's images do to its update is clipped.")
    rules.refused(
        NESTED,
        "each value is divided by the number of sites that trained it, and no noise hides that "
        "number",
        _ONE_NETWORK,
        "model.groups",
    )


def _example_rules(rules: _Rules) -> None:
    """Rules of every mechanism that protects a single image."""
    mixes = (
        "running statistics (of BatchNorm or whitening) are means over images, and no noise is "
        "added to them"
    )
    rules.refused(STATISTICS, mixes, _NO_STATISTICS, "model.norm")
    cure = "set model.norm = 'group' (the default); fedbn works with it"
    rules.refused(KEPT, mixes, cure, "model.norm")
    rules.sound(PERSONAL, "What stays at the site is trained by the same noised steps.")
    rules.sound(SEVERAL, "All vectors are computed from noised steps only.")
    rules.sound(
        SCALARS,
        "They follow from noised steps, and from how many images a site has. FedExP refuses "
        "noised updates, because noise would drive its rate.",
    )
    rules.refused(
        BEYOND,
        "DP-SGD clips and noises gradients of the task's loss at the weights of a step, and the "
        "algorithm uses others",
        "choose an algorithm that does not, for example fedprox, feddyn or scaffold",
        "algorithm.name",
    )
    rules.refused(
        LOSS,
        "the loss is a mean over a site's images, and no noise is added to it",
        "choose an algorithm whose updates follow from steps alone, for example fedavg",
        "algorithm.name",
    )
    rules.sound(NESTED, "Each site's steps are those of DP-SGD, on its own network.")
    rules.stated(WEIGHTING, "how many images a site has, which is public")
    rules.stated(
        LABELS,
        "whether a site has any image of a class or person: its head is made for those it has",
    )
    rules.refused(
        MIXED,
        "a mixed image is made of two, so one image changes two gradients, and the clip bounds "
        "what it changes in one",
        "leave mixup and cutmix out of train.augment, or protect whole sites with privacy.name = "
        "'local' or 'central'",
        "train.augment",
    )
    rules.refused(
        BALANCED,
        "DP-SGD is accounted for steps that draw every image with the same probability, and one "
        "image more changes how often the others of its class are drawn",
        "leave it out; public numbers in task.class_weights have the same aim",
        "train.sampling",
    )
    rules.refused(
        COUNTED,
        "weights and margins follow from all of a site's labels, so one image changes the "
        "gradients of all others, which no clip bounds",
        "leave out task.calibration, and write one number for each class in task.class_weights, "
        "not from the sites' images",
        "task.class_weights",
    )


def secure_rules() -> list[Rule]:
    """The rules of secure aggregation."""
    rules = _Rules(SECURE)
    rules.refused(
        STATISTICS,
        "running statistics (of BatchNorm or whitening) change by more than the range in which "
        "updates are rounded",
        _GROUP,
        "model.norm",
    )
    rules.sound(KEPT)
    rules.sound(PERSONAL)
    rules.sound(FROZEN)
    rules.sound(SEVERAL, "Each vector has its own range.")
    rules.refused(
        SCALARS,
        "masked values need a range, and that of such a number is not known",
        _UPDATES,
        "algorithm.name",
    )
    rules.sound(WEIGHTING, "Weights are public, and capped.")
    rules.sound(COHORT, "The size of the cohort determines the bits per value.")
    rules.sound(QUORUM, "It is checked against the number of sites needed for unmasking.")
    rules.sound(SHIFT)
    for feature in (INTEGERS, BOUNDED, SCORES):
        rules.sound(feature, "They are masked modulo 2^64, without clip, rounding or weight.")
    for feature in (BEYOND, LOSS, LABELS, MIXED, BALANCED, COUNTED, CHOSEN):
        rules.sound(feature)
    rules.sound(BY_LOSS, "A site tells its training loss without a mask, as always.")
    rules.refused(
        BUFFERED,
        "a sum is masked for sites that all know of one another, and what is masked cannot be "
        "weighted by staleness",
        _SYNCHRONOUS,
        "rounds.mode",
    )
    rules.refused(
        NESTED,
        "some values are trained by one group of sites only; if that is a single site, the sum "
        "shows its update",
        _ONE_NETWORK,
        "model.groups",
    )
    hidden = "the coordinator needs each site's update, which secure aggregation hides"
    rules.refused(PRODUCTS, hidden, _EXACT, "algorithm.name")
    rules.refused(SINGLE, hidden, "set aggregation.name = 'mean'", "aggregation.name")
    rules.refused(
        LOSSY,
        "masked values cannot be compressed, because all their bits are uniformly random; only "
        "linear steps ('random-k', 'rotate') go before the masks",
        "leave out codec.up.steps",
        "codec.up.steps",
    )
    rules.sound(LINEAR, "All sites encode with the same random bits, before rounding and masks.")
    rules.refused(VARYING, _TELLS, _FIXED_UPDATES, "codec.up.steps")
    rules.refused(VARYING_MODELS, _TELLS, _FIXED_MODELS, "codec.down.steps")
    return rules.found


def rules() -> tuple[Rule, ...]:
    """All rules: of each registered mechanism that protects, then of secure aggregation."""
    found: list[Rule] = []
    for name in mechanisms.names():
        mechanism = mechanisms.get(name)
        if mechanism.unit:
            found += rules_of(mechanism, name)
    return (*found, *secure_rules())


def met(program: Program, network: Network | None = None) -> Iterator[Rule]:
    """The rules of the program's protections whose feature it has."""
    facts = Facts.of(program, network)
    found: list[Rule] = []
    if program.privacy.protects:
        found += rules_of(type(program.privacy), str(program.privacy.registered))
    if program.secure.rounds_values:
        found += secure_rules()
    return (rule for rule in found if FEATURES[rule.feature](facts))


def problems(program: Program, network: Network | None = None) -> list[Problem]:
    """Cause and cure of everything that is refused; equal cures are merged."""
    found: dict[tuple[str, str], Problem] = {}
    for rule in met(program, network):
        if rule.verdict == "refused":
            cause = f"under {_protection_name(rule.protection)}: {rule.cause}"
            found.setdefault((rule.where, rule.cure), Problem(rule.where, cause, rule.cure))
    if program.algorithm.counts and program.aggregation.needs_replies:
        cause = "the algorithm needs sums of integers, and this rule over single replies forms none"
        cure = "set aggregation.name = 'mean'"
        found["aggregation.name", cure] = Problem("aggregation.name", cause, cure)
    if program.algorithm.derives and program.aggregation.needs_replies:
        cause = "the algorithm corrects the mean of the updates, and this rule forms none"
        cure = "set aggregation.name = 'mean', or choose another algorithm"
        found["aggregation.name", cure] = Problem("aggregation.name", cause, cure)
    if program.algorithm.scalars and program.aggregation.needs_replies:
        cause = (
            "the algorithm's step divides by the mean of numbers that sites send, and this rule "
            "takes each value from another site"
        )
        cure = "set aggregation.name = 'mean', or choose another algorithm"
        found["aggregation.name", cure] = Problem("aggregation.name", cause, cure)
    return list(found.values())


def _protection_name(protection: str) -> str:
    return protection if protection == SECURE else f"privacy '{protection}'"


def remarks(program: Program, network: Network | None = None) -> list[str]:
    """What epsilon does not cover in this program."""
    stated = (rule.cause for rule in met(program, network) if rule.verdict == "stated")
    return list(dict.fromkeys(stated))
