"""Data declarations of sites, the federation built from them, and the owner's settings."""

from __future__ import annotations

import copy
import itertools
import json
import tracemalloc
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import site_services
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedsight.coordinator.session import Session
from fedsight.core.errors import ConfigError, DataError, DeployError
from fedsight.data.base import (
    PROGRAM_KEYS,
    Dataset,
    Location,
    Preprocess,
    SizedSource,
    Source,
    sources,
)
from fedsight.data.look import Look
from fedsight.deploy.declaration import (
    MAX_CLASSES,
    MAX_SITE_IMAGES,
    MAX_TOTAL_IMAGES,
    Declaration,
    declare,
    disagreeing_sites,
    gather,
    merge_sources,
    open_site,
    read_declaration,
)
from fedsight.deploy.site.owner import (
    TEMPLATE,
    Contract,
    OwnerSettings,
    SpeedSettings,
    data_section,
    figure_rules,
    parse_owner,
    read_owner,
)
from fedsight.evaluation.description import describe
from fedsight.evaluation.figures import Evaluator
from fedsight.models.base import Network
from fedsight.program import config
from fedsight.program.federation import Federation
from fedsight.program.program import Program

SIZE = Preprocess(1, 8, 8, "stretch", (0.5,), (0.25,))
SOUND = Declaration((6, 4, 4), 5, False, site_services.CLASSES, SIZE)
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def sent(table: Any) -> Any:
    """The table after a transfer as JSON."""
    return json.loads(json.dumps(table))


def test_a_declaration_is_transferred_unchanged() -> None:
    assert read_declaration(sent(SOUND.table()), "a") == SOUND


@given(JUNK)
def test_junk_is_not_a_declaration(table: Any) -> None:
    with pytest.raises(DeployError, match="site 'a' sent an invalid data declaration"):
        read_declaration(sent(table), "a")


@pytest.mark.parametrize("key", ["dicom", "modality"])
@pytest.mark.parametrize("junk", [[], 7, "smell", {"a": 1}])
def test_invalid_preprocessing_is_refused(key: str, junk: Any) -> None:
    table = sent(SOUND.table())
    table["preprocess"][key] = junk
    with pytest.raises(DeployError, match="site 'a' sent an invalid data declaration"):
        read_declaration(table, "a")


@given(st.data())
def test_a_declaration_with_any_value_in_it_is_valid_or_refused(data: st.DataObject) -> None:
    table = sent(SOUND.table())
    inner = table["preprocess"] if data.draw(st.booleans()) else table
    inner[data.draw(st.sampled_from(list(inner)))] = data.draw(JUNK)
    try:
        found = read_declaration(sent(table), "a")
    except DeployError:
        return
    assert read_declaration(sent(found.table()), "a") == found
    if inner.get("dicom") != {}:  # whose settings all have defaults
        assert sent(found.table()) == sent(table)


WRONG: dict[str, tuple[str, Any]] = {
    "a fractional count": ("labels", [6.0, 4, 4]),
    "a textual count": ("labels", ["6", 4, 4]),
    "a boolean count": ("labels", [True, 4, 4]),
    "a negative count": ("labels", [6, -4, 4]),
    "no images": ("labels", [0, 0, 0]),
    "too many images": ("labels", [MAX_SITE_IMAGES, 1, 0]),
    "an infinite count": ("labels", [float("inf"), 4, 4]),
    "too few counts": ("labels", [6, 4]),
    "too many test images": ("test", MAX_SITE_IMAGES + 1),
    "far too many test images": ("test", 1 << 27),
    "no test count": ("test", None),
    "too many classes": ("many", MAX_CLASSES + 1),
    "a class twice": ("classes", ["ant", "ant", "bee"]),
    "classes that are not texts": ("classes", [1, 2, 3]),
    "share is not a boolean": ("share", 1),
    "negative skipped": ("skipped", -1),
    "no size": ("preprocess.height", 0),
    "a huge width": ("preprocess.width", 2**40),
    "a huge area": ("preprocess", {**asdict(SIZE), "width": 8192, "height": 8193}),
    "too many values": (
        "preprocess",
        {**asdict(Preprocess(16, 4096, 4096, "stretch", (0.5,) * 16, (0.25,) * 16))},
    ),
    "a fractional channel count": ("preprocess.channels", 1.0),
    "more channels than means": ("preprocess.channels", 3),
    "a textual mean": ("preprocess.mean", ["0.5"]),
    "a NaN mean": ("preprocess.mean", [float("nan")]),
    "a zero deviation": ("preprocess.std", [0.0]),
    "an unknown fit": ("preprocess.fit", "squeeze"),
    "an unhashable fit": ("preprocess.fit", []),
    "an unknown setting": ("preprocess.path", "/etc"),
}


@pytest.mark.parametrize(("where", "value"), WRONG.values(), ids=WRONG.keys())
def test_an_implausible_declaration_is_refused(where: str, value: Any) -> None:
    table = copy.deepcopy(sent(SOUND.table()))
    if where == "many":
        table |= {"labels": [1] * value, "classes": [str(label) for label in range(value)]}
        where, value = "test", 5
    *section, key = where.split(".")
    (table[section[0]] if section else table)[key] = value
    with pytest.raises(DeployError, match=r"^site 'a' sent an invalid data") as caught:
        read_declaration(table, "a")
    assert len(str(caught.value)) < 500


# -- the coordinator's federation ------------------------------------------------------------------


@pytest.fixture
def program(site_images: Path) -> Program:
    return site_services.program(site_images)


def test_sites_that_disagree_with_the_roster_or_the_majority() -> None:
    other = replace(SOUND, classes=("x", "y", "z"))
    assert disagreeing_sites({}, {}) == {}
    assert disagreeing_sites({"a": SOUND, "b": SOUND}, {}) == {}
    found = disagreeing_sites({"a": other, "b": SOUND, "c": SOUND}, {})
    assert list(found) == ["a"]
    assert "site 'a' has the classes x, y, z, and site" in found["a"].cause
    assert list(disagreeing_sites({"a": SOUND, "b": other}, {})) == ["b"]
    # a majority of new sites does not overrule the roster
    assert list(disagreeing_sites({"a": other, "b": other, "c": SOUND}, {"c": SOUND})) == ["a", "b"]


def test_why_a_site_disagrees_is_short_however_long_its_template_is() -> None:
    """A site's reason goes to the server's event log, which keeps its newest mebibyte."""
    steps = tuple(step / 4095 for step in range(4096))
    long = replace(SOUND, preprocess=replace(SIZE, look=Look("histogram", steps)))
    read = read_declaration(sent(long.table()), "a")
    assert read == long
    (why,) = disagreeing_sites({"a": read, "b": SOUND, "c": SOUND}, {}).values()
    assert "prepares images as" in why.cause
    assert len(why.cause) < 1000


def test_a_federation_has_its_sites_in_the_order_of_names(program: Program) -> None:
    found = gather(program, {"b": SOUND, "a": replace(SOUND, labels=(1, 2, 0), test=3)})
    assert [found.name(site) for site in range(2)] == ["a", "b"]
    assert [found.size(site) for site in range(2)] == [3, 14]
    assert [len(view.indices) for view in found.views] == [3, 5]
    with pytest.raises(DataError, match="stay at its sites"):
        found.client(0).pixels(found.client(0).indices)
    assert found.dataset.train.images.name(0) == "remote image"


DIFFERENT = {
    "share": (replace(SOUND, share=True), "has a share of a sample", "share of the same"),
    "classes": (replace(SOUND, classes=("ant", "bee", "dog")), "the classes ant", "data.classes"),
    "size": (replace(SOUND, preprocess=replace(SIZE, height=9)), "prepares images", "data.size"),
    "mean": (replace(SOUND, preprocess=replace(SIZE, mean=(0.1,))), "prepares", "data.mean"),
}


@pytest.mark.parametrize(("other", "why", "cure"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_a_site_that_disagrees_is_named(
    program: Program, other: Declaration, why: str, cure: str
) -> None:
    with pytest.raises(DeployError, match=r"^site 'b' .*, and site 'a'") as caught:
        gather(program, {"a": SOUND, "b": other, "c": SOUND})
    assert why in caught.value.cause
    assert cure in caught.value.cure


def test_declared_test_images_cost_a_number_each(program: Program) -> None:
    """A site may declare many: that takes 8 bytes for each, not a name for each."""
    many = 1 << 18
    long = "a" * 63
    tracemalloc.start()
    try:
        found = gather(program, {"b": SOUND, long: replace(SOUND, test=many)})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 40 * many  # bytes; a list of names would take more than 250 for each
    sites = found.dataset.test.sites
    assert sites is not None
    assert (sites[0], sites[many - 1], sites[many], sites[-1]) == (long, long, "b", "b")
    assert [len(view.indices) for view in found.views] == [many, 5]
    assert found.views[1].indices.tolist() == list(range(many, many + 5))


def test_the_total_number_of_declared_images_is_limited(program: Program) -> None:
    much = replace(SOUND, labels=(MAX_SITE_IMAGES, 0, 0), test=0)
    declared = {f"s{number}": much for number in range(MAX_TOTAL_IMAGES // MAX_SITE_IMAGES)}
    with pytest.raises(DeployError, match=r"site 'c' declares the most, 16,777,221\n"):
        gather(program, {"a": SOUND, **declared, "c": replace(much, test=5)})


def test_the_programs_demands_on_the_population_are_checked(site_images: Path) -> None:
    wants = site_services.program(site_images, rounds={"cohort": 3})
    with pytest.raises(ConfigError, match=r"rounds\.cohort"):
        gather(wants, {"a": SOUND, "b": SOUND})
    shifted = site_services.program(site_images, shift={"kind": "noise", "strength": 0.1})
    with pytest.raises(ConfigError, match=r"remove \[shift\]"):
        gather(shifted, {"a": SOUND})


# -- who decides which setting ---------------------------------------------------------------------


def test_sites_without_any_test_images_are_refused_before_training(program: Program) -> None:
    without = replace(SOUND, test=0)
    assert len(gather(program, {"a": without, "b": SOUND}).views) == 1
    with pytest.raises(ConfigError, match="no site has test images"):
        gather(program, {"a": without, "b": without})


def test_the_program_decides_preparation_and_the_owner_the_files(tmp_path: Path) -> None:
    folder = sources.get("folder")
    wanted = folder(
        path=tmp_path / "wanted",
        size=64,
        channels=1,
        classes=("a", "b"),
        test_fraction=0.3,
        test_seed=7,
        mean=(0.1,),
        std=(0.2,),
        fit="crop",
        sites_in_path=True,
        corrupt="error",
    )
    own = folder(
        path=tmp_path / "own",
        **{"size": 9, "corrupt": "skip", "in_memory": False, "verify": False, "test_seed": 3},
    )
    found = merge_sources(wanted, own)
    assert found == own.model_copy(
        update={
            "missing": "allow",
            **{key: getattr(wanted, key) for key in ("size", "channels", "classes", "fit")},
            **{key: getattr(wanted, key) for key in ("mean", "std")},
        }
    )


@pytest.mark.parametrize("label", ["one", "several"])
def test_no_program_changes_which_images_of_a_site_are_tested_on(
    tmp_path: Path, label: str
) -> None:
    """Neither by the settings of the test part nor by the order of the classes, nor by where it
    cuts the labels: figures over two test parts would differ by a few images."""
    lines = ["path,label"]
    for number in range(30):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.full((4, 4), 8 * number, np.uint8)).save(path)
        word = "abc"[number % 3]
        lines.append(f"{path.name},{word if label == 'one' else word + '|' + 'abc'[number % 2]}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    separator = None if label == "one" else "|"
    manifest = sources.get("manifest")
    own = manifest(path=tmp_path / "list.csv", label_separator=separator, test_seed=5)
    parts = []
    cuts = (separator, "a", "b", None if separator else "|")
    for classes in itertools.permutations("abc"):
        for fraction, seed, cut in ((0.2, 0, separator), *((0.01, 9, cut) for cut in cuts)):
            wanted = manifest(
                **{"path": tmp_path, "size": 4, "channels": 1, "classes": classes},
                **{"test_fraction": fraction, "test_seed": seed, "label_separator": cut},
            )
            test = merge_sources(wanted, own).open().test
            parts.append([test.images.name(at) for at in range(len(test))])
    assert len(parts[0]) == 6
    assert all(part == parts[0] for part in parts)


@pytest.mark.parametrize(
    ("contract", "line"),
    [
        (Contract(), "figures: exact"),
        (Contract(require=("secure_aggregation",)), "figures: none"),
        (Contract(test_images=99), "figures: none leave the site, because it has fewer than"),
        (Contract(counts=False), "figures: none leave the site, because exact ones would tell"),
        (
            Contract(epsilon=1.0, figures="noised"),
            "figures: noised (noise 5), at most 100 over all runs",
        ),
    ],
)
def test_a_site_says_what_holds_about_figures(contract: Contract, line: str) -> None:
    data = sources.get("folder")(path=Path(), test_fraction=0.3)
    tested, figures = figure_rules(OwnerSettings(data, contract, SpeedSettings()), 30)
    assert tested.endswith("held out with test_fraction = 0.3, test_seed = 0")
    assert figures.startswith(line)


def test_the_owner_decides_columns_and_files(tmp_path: Path) -> None:
    manifest = sources.get("manifest")
    wanted = manifest(path=tmp_path / "w.csv", size=16, label_column="diagnosis", delimiter=";")
    own = manifest(path=tmp_path / "o.csv", path_column="file", label_column="finding")
    found = merge_sources(wanted, own)
    assert (found.path_column, found.label_column, found.delimiter) == ("file", "finding", ",")
    assert (found.path, found.size) == (tmp_path / "o.csv", 16)
    idx = sources.get("idx")
    wanted = idx(path=tmp_path, train_images="../../secret", classes=("a", "b"))
    found = merge_sources(wanted, idx(path=tmp_path / "own"))
    assert found == idx(path=tmp_path / "own", classes=("a", "b"))


# What the owner of a site decides; see `PROGRAM_KEYS`.
OWNED = {
    *("path", "images", "test_path"),  # where the files are
    *("train_images", "train_labels", "test_images", "test_labels"),
    # which of them are images, and of which part
    *("corrupt", "pixelless", "nameless", "unpaired", "missing", "frames", "verify", "in_memory"),
    *("test_fraction", "test_seed", "unseen", "held_out_by", "validation"),
    *("train_part", "test_part", "split_column", "group", "group_overlap"),
    *("duplicates", "near_duplicates"),
    # how they are laid out, and what their labels are
    *("format", "delimiter", "path_column", "label_column", "label_separator", "image_column"),
    *("site_column", "site_key", "sites_in_path", "similar_names", "similar_sites", "names"),
    *("mask_column", "mask_suffix", "values", "colours", "ignored"),
    *("first_label", "first_pixel", "transpose"),
    *("labelled", "class_map", "merged", "unknown_class", "outside", "no_area", "unknown"),
    *("site_mean", "site_std"),  # what images look like there
}


def test_every_setting_of_a_source_is_the_owners_or_the_programs() -> None:
    """A new setting is decided here: what selects images or labels is never the program's."""
    own = {
        key
        for name in sources.names()
        for fields in [sources.get(name).model_fields]
        if any(is_location(field.annotation) for field in fields.values())  # others are samples
        for key in fields
    }
    assert own == OWNED | PROGRAM_KEYS
    assert not OWNED & PROGRAM_KEYS


def is_location(kind: Any) -> bool:
    return kind is Path or Path in get_args(kind)


class Rows(SizedSource):
    """A source from a plug-in."""

    path: Location
    last: int = 10

    def open(self) -> Dataset:
        raise NotImplementedError


def test_a_setting_of_a_plug_in_is_the_owners(tmp_path: Path) -> None:
    found = merge_sources(Rows(path=tmp_path, last=1, size=16), Rows(path=tmp_path / "own"))
    assert (found.last, found.size, found.path) == (10, 16, tmp_path / "own")


def test_the_owner_decides_what_the_program_leaves_open(tmp_path: Path) -> None:
    folder = sources.get("folder")
    own = folder(path=tmp_path, classes=("x", "y"), mean=(0.3,) * 3)
    found = merge_sources(folder(path=tmp_path), own)
    assert (found.classes, found.mean) == (("x", "y"), (0.3,) * 3)


def test_the_kind_of_source_may_differ(tmp_path: Path) -> None:
    wanted = sources.get("folder")(path=tmp_path, size=48, sites_in_path=True)
    own = sources.get("manifest")(path=tmp_path / "o.csv")
    assert merge_sources(wanted, own).size == 48


# -- the owner's file ------------------------------------------------------------------------------


def test_all_problems_of_an_owners_file_are_reported_at_once(tmp_path: Path) -> None:
    table = {
        "data": {"name": "foldr"},
        "contract": {"sites": 0, "task": ["classify"]},
        "speed": {"threads": 0},
        "sped": {},
    }
    with pytest.raises(ConfigError) as caught:
        parse_owner(table, tmp_path)
    assert {problem.where for problem in caught.value.problems} == {
        *("data.name", "contract.sites", "contract.task", "speed.threads", "sped")
    }


def test_an_owners_file_without_data_is_told_both_ways_to_name_the_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_owner({"data": {}, "contract": {"sites": 0}}, tmp_path)
    first, second = caught.value.problems
    assert first.where == "data"
    assert "--data" in first.cure
    assert second.where == "contract.sites"


@pytest.mark.parametrize("sample", [True, False])
def test_a_source_without_a_path_is_the_sites_own_unless_it_is_a_sample(
    monkeypatch: pytest.MonkeyPatch, sample: bool
) -> None:
    """Images that an installed part reads from elsewhere were divided by the program's split, so
    that a site trained on the share that the coordinator's program chose for it."""

    class Archive(Source):
        dsn: str

        def open(self) -> Dataset:
            raise NotImplementedError

    sources.add("archive")(Archive)
    try:
        assert not Archive.sample
        monkeypatch.setattr(Archive, "sample", sample)  # as it was taken for, having no path
        table = {"data": {"name": "archive", "dsn": "pacs"}}
        assert parse_owner(table, Path()).share is sample
    finally:
        sources.remove("archive")


def test_samples_are_the_sources_that_need_no_path() -> None:
    found = {name for name in sources.names() if sources.get(name).sample}
    assert found == {
        name for name in sources.names() if "path" not in sources.get(name).model_fields
    }


def test_a_path_is_relative_to_the_file_and_means_images_of_the_sites_own(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('[data]\nname = "folder"\npath = "images"\n[contract]\nsites = 3\n')
    owner = read_owner(path, None)
    assert owner.data.path == tmp_path / "images"
    assert (owner.share, owner.contract.sites, owner.speed.threads) == (False, 3, 1)
    assert read_owner(path, "fashion-mnist-12k").share
    with pytest.raises(ConfigError):
        read_owner(tmp_path / "none.toml", None)


def test_a_site_chooses_its_own_device(tmp_path: Path) -> None:
    table = {"data": {"name": "fashion-mnist-12k"}, "contract": {}}
    owner = parse_owner({**table, "speed": {"device": "cuda:9", "precision": "tf32"}}, tmp_path)
    assert (owner.speed.client.device, owner.speed.client.precision) == ("cuda:9", "tf32")
    with pytest.raises(ConfigError) as caught:
        owner.speed.check()  # when the site starts
    assert "no device 'cuda:9'" in caught.value.problems[0].cause
    owner = parse_owner({**table, "speed": {"device": "cpu", "precision": "tf32"}}, tmp_path)
    with pytest.raises(ConfigError, match="only NVIDIA's GPUs compute in TF32"):
        owner.speed.check()


def test_the_template_lacks_only_the_images(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text(TEMPLATE)
    with pytest.raises(ConfigError, match="data: nothing says"):
        read_owner(path, None)
    assert read_owner(path, "fashion-mnist-12k").contract == Contract()


def test_the_kind_of_source_follows_from_the_path(tmp_path: Path) -> None:
    assert data_section("fashion-mnist-12k") == {"name": "fashion-mnist-12k"}
    kinds = {"a.npz": "medmnist", "b.JSON": "coco", "c.csv": "manifest"}
    for name, kind in kinds.items():
        (tmp_path / name).touch()
        assert data_section(str(tmp_path / name)) == {"name": kind, "path": str(tmp_path / name)}
    assert data_section(str(tmp_path)) == {"name": "folder", "path": str(tmp_path)}
    (tmp_path / "d.txt").touch()
    for data in (tmp_path / "d.txt", tmp_path / "none", "mnist"):
        with pytest.raises(ConfigError, match="--data"):
            data_section(str(data))


# -- a site's federation ---------------------------------------------------------------------------


def owner(**data: Any) -> OwnerSettings:
    return parse_owner({"data": data}, Path("/"))


def test_images_of_its_own_all_belong_to_the_site(program: Program, site_images: Path) -> None:
    own = owner(name="folder", path=str(site_images / "west"))
    federation, number = open_site(program, own, "west")
    assert (federation.name(number), federation.size(number)) == ("west", 9)
    found = declare(federation, number, own.share)
    assert found == Declaration((5, 4, 0), 3, False, site_services.CLASSES, SIZE)


def test_a_shift_is_not_simulated_on_real_images(site_images: Path) -> None:
    shifted = site_services.program(site_images, shift={"kind": "noise", "strength": 0.1})
    own = owner(name="folder", path=str(site_images / "west"))
    with pytest.raises(DeployError, match="simulates a noise shift"):
        open_site(shifted, own, "west")


def test_a_site_opens_no_public_images_that_a_coordinator_names(site_images: Path) -> None:
    """Neither where it has images of its own nor where it has a share of a sample."""
    source = {"name": "folder", "path": str(site_images / "west")}
    sections = {"algorithm": {"name": "fedmd"}, "public": {"source": source}}
    named = site_services.program(site_images, **sections)
    owners = owner(name="folder", path=str(site_images / "west")), owner(name="fashion-mnist-12k")
    for own in owners:
        with pytest.raises(ConfigError, match="built-in"):
            open_site(named, own, "west")


def test_a_share_of_a_sample_is_without_its_public_images() -> None:
    table = {
        "data": {"name": "fashion-mnist-12k"},
        "split": {"name": "iid", "sites": 2},
        "algorithm": {"name": "fedmd"},
        "public": {"images": 9000},
    }
    program, _ = config.parse(table, Path("/"))
    shared = owner(name="fashion-mnist-12k")
    found = {}
    for name in ("site-00", "site-01"):
        federation, number = open_site(program, shared, name)
        found[name] = declare(federation, number, shared.share)
    assert sum(one.train for one in found.values()) == 1000
    assert gather(program, found).publics == 9000


def test_a_shared_sample_is_divided_by_name_and_needs_no_pretrained_weights() -> None:
    table = {
        "data": {"name": "fashion-mnist-12k"},
        "split": {"name": "virtual", "sites": 4, "samples": 20},
        "model": {"name": "small_cnn", "weights": "/nowhere/w.safetensors", "sha256": "0" * 64},
    }
    program, _ = config.parse(table, Path("/"))
    shared = owner(name="fashion-mnist-12k")
    federation, number = open_site(program, shared, "site-02")
    assert number == 2
    assert federation.program == program
    found = declare(federation, number, shared.share)
    assert (found.train, found.test, found.share) == (20, 2000, True)
    with pytest.raises(
        DeployError, match="has no site 'ward'; its sites are site-00, site-01, site-02"
    ):
        open_site(program, shared, "ward")


def test_the_coordinator_builds_the_network_once(
    site_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be large, and its file of weights is hashed each time."""
    build, built = Federation.build, []

    def counted(self: Federation) -> Network:
        built.append(self)
        return build(self)

    monkeypatch.setattr(Federation, "build", counted)
    federation = gather(site_services.program(site_images), {"a": SOUND, "b": SOUND})
    assert len(federation.initial) == federation.layout.size
    assert len(built) == 1


def test_a_site_that_does_not_tell_its_classes_counts_declares_their_sum(
    site_images: Path, tmp_path: Path
) -> None:
    """Nothing is shown for them, least of all a guess."""
    program = site_services.program(site_images)
    found = {}
    for name in ("north", "south"):
        data = {"name": "folder", "path": str(site_images / name)}
        owner = parse_owner({"data": data}, tmp_path)
        federation, number = open_site(program, owner, name)
        found[name] = declare(federation, number, False, counts=name == "north")
    quiet = found["south"]
    assert (quiet.labels, quiet.total, quiet.train, quiet.skipped) == ((), 11, 11, 0)
    assert read_declaration(json.loads(json.dumps(quiet.table())), "south") == quiet
    gathered = gather(program, found)
    assert [gathered.size(site) for site in range(2)] == [14, 11]
    assert gathered.dataset.untold == ("south",)
    assert Evaluator(gathered).mix(0) is not None
    assert Evaluator(gathered).mix(1) is None
    described = describe(Session(gathered), "run")["sites"]
    assert [(site["samples"], site["labels"]) for site in described] == [(14, [6, 4, 4]), (11, [])]


@pytest.mark.parametrize("spoilt", [{"total": 3}, {"labels": [], "total": None}, {"total": -1}])
def test_a_declaration_has_the_counts_of_classes_or_their_sum(spoilt: dict[str, Any]) -> None:
    table = Declaration(
        (6, 4, 4), 5, False, ("a", "b", "c"), Preprocess(1, 8, 8, "stretch", (0.5,), (0.25,))
    ).table()
    with pytest.raises(DeployError, match="sent an invalid data declaration"):
        read_declaration({**table, **spoilt}, "north")


def test_images_and_classes_of_another_kind_than_the_earlier_runs_do_not_join_it(
    site_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sums of an earlier run, to which these would be added, are not theirs."""
    known = {"preprocess": asdict(SOUND.preprocess), "classes": list(SOUND.classes)}
    (tmp_path / "run.json").write_text(json.dumps(known))
    (tmp_path / "checkpoint.safetensors").touch()
    earlier = {"earlier": str(tmp_path / "checkpoint.safetensors"), "earlier_sha256": "0" * 64}
    program = site_services.program(
        site_images, algorithm={"name": "ridge", **earlier}, rounds={"rounds": 1}
    )
    turned = replace(SOUND, classes=SOUND.classes[::-1])
    darker = replace(SOUND, preprocess=replace(SOUND.preprocess, mean=(0.4,)))
    gather(program, {"a": SOUND, "b": SOUND})
    with pytest.raises(ConfigError, match="the same in another order"):
        gather(program, {"a": turned, "b": turned})
    with pytest.raises(ConfigError, match="have another mean"):
        gather(program, {"a": darker, "b": darker})
    monkeypatch.setattr(type(program.algorithm), "check_data", lambda self, dataset: [])
    gather(program, {"a": turned, "b": turned})  # without a word
