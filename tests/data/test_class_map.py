"""Names of classes at sites become the federation's: synonyms, stated merges, unknown names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import opened_sources
import pytest

from fedsight.core.errors import ConfigError
from fedsight.data.base import Dataset
from fedsight.data.class_map import Name, Naming
from fedsight.data.sources.folder import Folder
from fedsight.deploy.site.owner import parse_owner
from fedsight.program.config import parse

opened = partial(opened_sources.opened, "folder", size=8, channels=1, sites_in_path=True)
refused = partial(opened_sources.refused, "folder", size=8, channels=1, sites_in_path=True)
VOCABULARY = ["melanoma", "nevus", "other"]
LYON = {"MM": "melanoma", "NV": "nevus"}
OSLO = {"malignant": "melanoma", "benign": "nevus"}


def federation(root: Path, sites: Mapping[str, str]) -> Path:
    """A folder for each site, with one for each of its classes, given as a text."""
    rng = np.random.default_rng(0)
    for site, classes in sites.items():
        for name in classes.split(","):
            for number in range(5):
                pixels = rng.integers(0, 256, (8, 8)).astype(np.uint8)
                opened_sources.save(root / site / name / f"{number}.png", pixels)
    return root


def counted(dataset: Dataset, site: str) -> dict[str, int]:
    """How many images of each class a site has, in both parts."""
    found: dict[str, int] = {}
    for part in (dataset.train, dataset.test):
        for label, owner in zip(part.labels.tolist(), part.sites or (), strict=True):
            if owner == site:
                found[dataset.classes[label]] = found.get(dataset.classes[label], 0) + 1
    return found


def test_sites_with_names_of_their_own_share_one_vocabulary(tmp_path: Path) -> None:
    root = federation(tmp_path, {"lyon": "MM,NV", "oslo": "malignant,benign", "turin": "nevus"})
    found = opened(root, classes=VOCABULARY[:2], class_map={"lyon": LYON, "oslo": OSLO})
    assert found.classes == ("melanoma", "nevus")
    for site in ("lyon", "oslo"):
        assert counted(found, site) == {"melanoma": 5, "nevus": 5}
    assert counted(found, "turin") == {"nevus": 5}
    assert "'MM' (5 images at site 'lyon') is read as 'melanoma'" in found.notes


def test_without_a_vocabulary_the_names_that_a_map_gives_are_the_classes(tmp_path: Path) -> None:
    root = federation(tmp_path, {"lyon": "MM,NV", "turin": "melanoma,nevus"})
    assert opened(root, class_map={"lyon": LYON}).classes == ("melanoma", "nevus")


def test_a_map_for_all_sites_may_say_that_two_synonyms_are_one_class(tmp_path: Path) -> None:
    root = federation(tmp_path, {"lyon": "MM,NV", "oslo": "malignant,NV"})
    table = {"MM": "melanoma", "malignant": "melanoma", "NV": "nevus"}
    assert "both read as 'melanoma'" in refused(root, class_map=table).cause
    found = opened(root, class_map=table, merged=["melanoma"])
    assert counted(found, "lyon") == counted(found, "oslo") == {"melanoma": 5, "nevus": 5}


def test_two_meanings_become_one_class_only_where_it_is_said(tmp_path: Path) -> None:
    root = federation(tmp_path, {"lyon": "MM,melanoma,nevus", "oslo": "melanoma,nevus"})
    error = refused(root, class_map={"lyon": {"MM": "melanoma"}})
    assert "(5 images) become the class 'melanoma' at site 'lyon'" in error.cause
    assert 'data.merged = ["melanoma"]' in error.cure
    found = opened(root, class_map={"lyon": {"MM": "melanoma"}}, merged={"lyon": ["melanoma"]})
    assert counted(found, "lyon") == {"melanoma": 10, "nevus": 5}
    elsewhere = {"class_map": {"lyon": {"MM": "melanoma"}}, "merged": {"oslo": ["melanoma"]}}
    assert "nobody called a merge" in refused(root, **elsewhere).cause


def test_unknown_names_are_refused_or_go_to_a_stated_class(tmp_path: Path) -> None:
    root = federation(tmp_path, {"lyon": "MM,nevus,BCC,AK", "oslo": "melanoma,other"})
    given = {"classes": VOCABULARY, "class_map": {"lyon": {"MM": "melanoma"}}}
    error = refused(root, **given)
    assert "is not in data.classes" in error.cause
    assert "data.class_map" in error.cure
    assert "data.unknown_class" in error.cure
    found = opened(root, **given, unknown_class={"lyon": "other"})
    assert counted(found, "lyon") == {"melanoma": 5, "nevus": 5, "other": 10}
    assert "'BCC' (5 images at site 'lyon') is read as 'other'" in found.notes
    one = federation(tmp_path / "two", {"oslo": "melanoma,BCC", "lyon": "nevus,other"})
    assert (
        "'BCC'"
        in refused(one, **given | {"class_map": None}, unknown_class={"lyon": "other"}).cause
    )


def test_a_missing_value_never_becomes_the_class_of_unknown_names(tmp_path: Path) -> None:
    root = federation(tmp_path, {"lyon": "nevus,melanoma,nan"})
    error = refused(root, classes=VOCABULARY, unknown_class="other", missing="allow")
    assert "stands for a missing value" in error.cause


def test_names_nearly_equal_to_those_of_the_map_are_reported(tmp_path: Path) -> None:
    root = federation(tmp_path, {"lyon": "mm ,nevus", "oslo": "melanoma"})
    given = {"classes": VOCABULARY[:2], "class_map": {"lyon": {"MM": "melanoma"}}}
    assert "is nearly equal to 'MM' in data.class_map" in refused(root, **given).cause
    found = opened(root, **given, similar_names="merge")
    assert counted(found, "lyon") == {"melanoma": 5, "nevus": 5}
    assert "is nearly equal" not in refused(root, **given, similar_names="keep").cause


def test_what_the_map_has_and_nobody_uses_is_said(tmp_path: Path) -> None:
    root = federation(tmp_path, {"lyon": "MM,nevus", "oslo": "melanoma"})
    found = opened(root, class_map={"lyon": {"MM": "melanoma", "MN": "nevus"}}, merged=["nevus"])
    assert "data.class_map has 'MN', a name that no image at site 'lyon' has" in found.notes


@pytest.mark.parametrize("setting", ["class_map", "merged", "unknown_class"])
def test_a_site_that_there_is_not_is_refused_with_the_nearest(tmp_path: Path, setting: str) -> None:
    root = federation(tmp_path, {"lyon": "MM,nevus", "oslo": "melanoma"})
    wrong: dict[str, Any] = {"class_map": LYON, "merged": ["nevus"], "unknown_class": "nevus"}
    given = {"class_map": {"lyon": {"MM": "melanoma"}}, setting: {"lyno": wrong[setting]}}
    error = refused(root, classes=VOCABULARY, missing="allow", **given)
    assert f"data.{setting} names 'lyno', which is not a site" in error.cause
    assert "lyon" in error.cure


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"class_map": {"MM": "melanom"}}, "'MM' is read as 'melanom', which is not", "melanoma"),
    ({"class_map": {"MM": "nevus", "NV": "nevus"}}, "'MM' and 'NV' are both", "data.merged"),
    ({"class_map": {"nevus": "melanoma"}}, "'nevus' is a class itself", "data.merged"),
    ({"unknown_class": "others"}, "'others' is not in data.classes", "other"),
    (
        {"merged": {"lyon": ["naevus"]}, "class_map": {"lyon": LYON}},
        "'naevus' is not in data.classes",
        "nevus",
    ),
]


@pytest.mark.parametrize(("given", "cause", "cure"), WRONG)
def test_check_finds_a_wrong_map_before_any_image_is_read(
    tmp_path: Path, given: dict[str, Any], cause: str, cure: str
) -> None:
    source = Folder.model_validate({"path": tmp_path, "classes": VOCABULARY, **given})
    problems = source.check()
    assert len(problems) == 1
    assert cause in problems[0].cause
    assert cure in problems[0].cure
    assert problems[0].where == f"data.{next(iter(given))}"


def test_one_meaning_in_several_spellings_and_two_names_exchanged_are_right() -> None:
    for table in (
        {"Melanoma": "melanoma", "MELANOMA": "melanoma"},
        {"nevus": "other", "other": "nevus"},
    ):
        assert not list(Naming((("", tuple(table.items())),)).problems(VOCABULARY))


def test_exchanged_names_are_read_once_and_not_again() -> None:
    naming = Naming((("", (("nevus", "other"), ("other", "nevus"))),))
    names = [Name("nevus"), Name("other"), Name("melanoma")]
    assert naming.read(names, VOCABULARY, "error")[0] == ["other", "nevus", "melanoma"]


def test_the_settings_survive_their_table_and_mixed_forms_are_refused(tmp_path: Path) -> None:
    forms: list[dict[str, Any]] = [
        {"class_map": LYON, "merged": ["nevus"], "unknown_class": "other", "labelled": ["nevus"]},
        {
            "class_map": {"lyon": LYON}, "merged": {"lyon": ["nevus"]},
            "unknown_class": {"lyon": "other"}, "labelled": {"lyon": ["nevus"]},
        },
    ]  # fmt: skip
    for form in forms:
        source = Folder.model_validate({"path": tmp_path, **form})
        table = source.table()
        assert {key: table[key] for key in form} == form
        assert Folder.model_validate({**form, "path": tmp_path}) == source
    data = {"name": "folder", "path": str(tmp_path), "class_map": {"MM": "melanoma", "lyon": LYON}}
    with pytest.raises(ConfigError, match="not both in one"):
        parse({"data": data}, tmp_path)


def test_a_deployed_site_maps_its_names_in_its_own_file(tmp_path: Path) -> None:
    table = {
        "name": "folder",
        "path": "images",
        "class_map": {"MM": "melanoma"},
        "labelled": ["nevus"],
    }
    owner = parse_owner({"data": table}, tmp_path)
    assert owner.data.table()["class_map"] == {"MM": "melanoma"}
    assert owner.data.labelled == (("", ("nevus",)),)


@pytest.mark.parametrize("key", ["labelled", "merged", "site_mean"])
@pytest.mark.parametrize("wrong", ["nevus", 3, {"nevus": 1}])
def test_what_is_no_list_of_a_site_is_refused_in_words(
    tmp_path: Path, key: str, wrong: Any
) -> None:
    """A text is no list of its letters."""
    table = {"name": "folder", "path": "images", key: {"lyon": wrong}}
    with pytest.raises(ConfigError, match=f"data.{key}"):
        parse_owner({"data": table}, tmp_path)


def test_several_labels_of_an_image_are_read_by_the_map_too(tmp_path: Path) -> None:
    rows = ["path,label,site"]
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8)).astype(np.uint8)
        opened_sources.save(tmp_path / f"{number}.png", pixels)
        rows.append(f"{number}.png,{['EF|NV', 'effusion', ''][number % 3]},{'ab'[number % 2]}")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    found = opened_sources.opened(
        "manifest", tmp_path / "list.csv", size=8, label_separator="|", merged=["effusion"],
        classes=["effusion", "nodule"], class_map={"EF": "effusion", "NV": "nodule"},
    )  # fmt: skip
    assert found.train.targets is not None
    assert found.test.targets is not None
    total = found.train.targets.sum(0) + found.test.targets.sum(0)
    assert total.tolist() == [8.0, 4.0]


def test_the_map_of_a_site_holds_for_all_spellings_that_are_merged(tmp_path: Path) -> None:
    root = federation(tmp_path, {"lyon": "MM,NV", "Lyon": "MM", "turin": "melanoma,nevus"})
    found = opened(root, classes=VOCABULARY[:2], class_map={"lyon": LYON}, similar_sites="merge")
    assert counted(found, "lyon") == {"melanoma": 10, "nevus": 5}
    error = refused(root, classes=VOCABULARY[:2], class_map={"lyon": LYON})
    assert "data.similar_sites" in error.cure


def test_a_class_that_one_site_maps_stays_for_the_others() -> None:
    def mapped(table: Any, *sites: str | None, **more: Any) -> Any:
        return Folder(path=Path(), class_map=table, **more).mapped(["A", "B"], sites)

    assert mapped({"lyon": {"A": "B"}}, "lyon", "oslo") == ("A", "B")
    assert mapped({"lyon": {"A": "C"}, "oslo": {"B": "C"}}, "lyon", "oslo") == ("A", "B", "C")
    assert mapped({"lyon": {"A": "B"}}, "lyon") == ("B",)
    assert mapped({"lyon": {"A": "C"}, "oslo": {"A": "D"}}, "lyon", "oslo") == ("C", "D", "B")
    assert mapped({"lyon": {"A": "B"}}, "lyon", "Lyon", "lyon", similar_sites="merge") == ("B",)
    assert mapped({"A": "B"}, None) == mapped({"A": "B"}, "lyon", "oslo") == ("B",)
    assert mapped(None, "lyon") == ("A", "B")


def test_a_merge_where_no_names_are_mapped_is_refused(tmp_path: Path) -> None:
    (problem,) = Naming(merged=(("", ("melanoma",)),)).problems(None)
    assert problem.where == "data.merged"
    root = federation(tmp_path, {"lyon": "melanoma,nevus"})
    assert "there is no data.class_map" in refused(root, merged=["melanoma"]).cause
