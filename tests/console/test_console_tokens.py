"""Tokens on file: for whom, for how long, and what each permits."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from command_line import done, refused
from consoles import served
from federation_folders import ANNA, BEN, folder_with_operators

from fedsight.console import sessions as sessions_module
from fedsight.console import tokens
from fedsight.console.rights import Right, of_operators, of_token
from fedsight.console.sessions import Sessions
from fedsight.console.tokens import Known, TokenFile, hash_of
from fedsight.core.errors import DeployError, StoreError
from fedsight.data.fetch.cache import VARIABLE
from fedsight.deploy.membership import operators
from fedsight.deploy.membership.federation import OPERATOR


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at each time."""
    monkeypatch.setattr(tokens, "GLANCE", 0.0)
    monkeypatch.setattr(operators, "GLANCE", 0.0)


@pytest.fixture
def file(tmp_path: Path) -> TokenFile:
    return TokenFile.within(tmp_path)


def right(file: TokenFile, secret: str) -> Right:
    found = Known(file).holder(hash_of(secret))
    return Right.NONE if found is None else found[1]


def test_a_token_is_on_file_as_a_hash_that_only_its_owner_reads(file: TokenFile) -> None:
    secret, made = file.add("anna")
    assert len(secret) >= 43
    assert secret.encode() not in file.path.read_bytes()
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    assert Known(file).holder(hash_of(secret)) == ("anna", Right.ALL)
    assert Known(file).holder(hash_of(made.hash)) is None


def test_each_permits_what_was_said_until_it_is_replaced_or_taken_away(file: TokenFile) -> None:
    first, _ = file.add("anna")
    looks, _ = file.add("ben", read_only=True)
    assert (right(file, first), right(file, looks)) == (Right.ALL, Right.LOOK)
    second, made = file.rotate("ben")
    assert made.read_only
    assert (right(file, looks), right(file, second)) == (Right.NONE, Right.LOOK)
    file.revoke("ben")
    assert (right(file, first), right(file, second)) == (Right.ALL, Right.NONE)
    base = file.read()
    assert base is not None
    assert Known(file).base == base.base  # the address stays


def test_a_token_ends(file: TokenFile, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, made = file.add("anna", days=2)
    known = Known(file)
    monkeypatch.setattr(tokens.time, "time", lambda: made.until - 1)
    assert known.names == ["anna"]
    monkeypatch.setattr(tokens.time, "time", lambda: made.until)
    assert known.holder(hash_of(secret)) is None
    assert known.names == []


def test_a_session_with_a_token_on_file_ends_after_hours_and_with_its_token(
    file: TokenFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, _ = file.add("anna")
    sessions = Sessions(Known(file), own=False)
    assert sessions.enter("") is None  # there is no token of its own
    first = sessions.enter(secret)
    assert first is not None
    assert sessions.who(first) is not None
    file.rotate("anna")
    assert sessions.who(first) is None
    file.revoke("anna")
    secret, _ = file.add("anna")
    monkeypatch.setattr(sessions_module, "HOURS", 0)
    second = sessions.enter(secret)
    assert second is not None
    assert sessions.who(second) is None


def test_one_token_logs_nobody_else_out(file: TokenFile) -> None:
    looks, owns = file.add("anna")[0], file.add("ben")[0]
    sessions = Sessions(Known(file), own=False)
    other = sessions.enter(owns)
    entered = [sessions.enter(looks) for _ in range(sessions_module.MOST_SESSIONS)]
    assert other is not None
    assert sessions.who(other) is not None
    kept = [one for one in entered if one is not None and sessions.who(one) is not None]
    assert kept == entered[-sessions_module.MOST_OF_ONE :]


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ({"name": "anna"}, "has a token already"),
        ({"name": ""}, "printable"),
        ({"name": "a\nb"}, "printable"),
        ({"name": "x" * 81}, "printable"),
        ({"name": "ben", "days": 0}, "days"),
        ({"name": "ben", "days": 367}, "days"),
    ],
)
def test_what_makes_no_token_changes_nothing(
    file: TokenFile, what: dict[str, object], cause: str
) -> None:
    file.add("anna")
    before = file.path.read_bytes()
    with pytest.raises(StoreError, match=cause):
        file.add(**what)  # type: ignore[arg-type]
    for change in (file.rotate, file.revoke):
        with pytest.raises(StoreError, match="has no token"):
            change("nobody")
    assert file.path.read_bytes() == before


def listed(token: dict[str, object]) -> bytes:
    return json.dumps({"base": "/aaaaaaaaaaaa", "tokens": [token]}).encode()


@pytest.mark.parametrize(
    "broken",
    [
        b"", b"[]", b"{}", b"{", b'{"base": "/x", "tokens": []}',
        b'{"base": "//evil.example", "tokens": []}', b'{"base": "/aaaaaaaaaaaa", "tokens": [1]}',
        b'{"base": "/aaaaaaaaaaaa", "tokens": [{"name": "anna"}]}',
        listed({"name": "a", "hash": "00", "read_only": False, "made": 1, "until": 1 << 40}),
        listed({"name": "a", "hash": "0" * 64, "read_only": 0, "made": 1, "until": 1 << 40}),
    ],
)  # fmt: skip
def test_a_broken_list_lets_nobody_in(file: TokenFile, broken: bytes) -> None:
    secret, _ = file.add("anna")
    known = Known(file)
    assert known.holder(hash_of(secret)) is not None
    file.path.write_bytes(broken)
    assert known.holder(hash_of(secret)) is None
    with pytest.raises(StoreError, match="cannot be read"):
        Known(file)
    with pytest.raises(StoreError, match="cannot be read"):
        file.add("ben")


def test_a_list_that_others_can_write_lets_nobody_in(file: TokenFile) -> None:
    secret, _ = file.add("anna")
    known = Known(file)
    file.path.chmod(0o660)
    assert known.holder(hash_of(secret)) is None
    with pytest.raises(DeployError, match="0660"):
        Known(file)


def test_tokens_of_runs_are_in_the_users_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of runs may be from somebody else: a list in it would be theirs."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "own"))
    root = tmp_path / "runs"
    file = TokenFile.of_runs(root)
    assert root not in file.path.parents
    assert file.path.is_relative_to(tmp_path / "own")
    assert TokenFile.of_runs(tmp_path / "others").path != file.path


def test_the_role_in_the_federation_says_what_an_operator_may_do(tmp_path: Path) -> None:
    federation = folder_with_operators(tmp_path / "wards")
    of = of_operators(federation)
    assert of(OPERATOR) is Right.ALL  # in whose name the console starts runs
    assert of(ANNA) is Right.STEER
    assert of(BEN) is Right.LOOK
    assert of("nobody@lyon.example") is Right.NONE
    (federation.folder / "revoked.json").write_text(json.dumps({ANNA: "has left"}))
    assert of(ANNA) is Right.NONE
    (federation.folder / "operators" / f"{BEN}.toml").write_text("read_only = 'no'")
    assert of(OPERATOR) is Right.NONE  # no right follows from a broken record
    assert of_token("anybody") is Right.ALL


def test_a_token_never_gives_an_operator_more_than_their_role(tmp_path: Path) -> None:
    federation = folder_with_operators(tmp_path / "wards")
    file = TokenFile.within(federation.folder)
    full, _ = file.add(BEN)
    narrow, _ = file.add(OPERATOR, read_only=True)
    known = Known(file, of_operators(federation))
    assert known.holder(hash_of(full)) == (BEN, Right.LOOK)
    assert known.holder(hash_of(narrow)) == (OPERATOR, Right.LOOK)


def test_the_commands_make_replace_list_and_take_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "own"))
    federation = folder_with_operators(tmp_path / "wards")
    words = ("--federation", federation.folder)
    said = done("tokens", "add", BEN, "--read-only", "--days", 3, *words).out
    token = next(line.rpartition(" ")[2] for line in said.splitlines() if "Token of" in line)
    known = Known(TokenFile.within(federation.folder), of_operators(federation))
    assert known.holder(hash_of(token)) == (BEN, Right.LOOK)
    rows = json.loads(done("tokens", "list", "--json", *words).out)
    assert [(one["name"], one["read_only"], one["ended"]) for one in rows] == [(BEN, True, False)]
    assert token not in done("tokens", "list", *words).out
    assert token not in done("tokens", "rotate", BEN, *words).out
    assert known.holder(hash_of(token)) is None
    assert "has ended" in done("tokens", "revoke", BEN, *words).out
    assert "is not an operator" in refused(7, "tokens", "add", "eve@evil.example", *words)
    assert "one console" in refused(7, "tokens", "list", *words, "--runs", tmp_path)
    done("tokens", "add", "carl", "--runs", tmp_path / "runs")
    assert "carl" in done("tokens", "list", "--runs", tmp_path / "runs").out


def test_whoever_logs_out_is_out(tmp_path: Path, file: TokenFile) -> None:
    secret, _ = file.add("anna")
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs", sessions=Sessions(Known(file))) as client:
        client.enter(secret)
        page = client.get("/")
        assert page.code == 200
        assert "anna" in page.text
        answer = client.post("/leave")
        assert answer.code == 303
        assert "Max-Age=0" in answer.headers["set-cookie"]
        assert client.get("/?fragment").code == 401
