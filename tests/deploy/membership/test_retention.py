"""What is kept of jobs and logs: settings of both sides, and what the processes go by."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsight.core.errors import ConfigError
from fedsight.deploy.membership.retention import Keep, SiteKeep
from fedsight.deploy.server.settings import read_server
from fedsight.deploy.site.owner import read_owner


def test_a_server_without_settings_has_the_defaults(tmp_path: Path) -> None:
    assert read_server(tmp_path).keep == Keep()
    (tmp_path / "server.toml").write_text("[keep]\njob_days = 30\nlogs = 9\n")
    assert read_server(tmp_path).keep == Keep(job_days=30, logs=9)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[keep]\njob_days = -1\n", "keep.job_days"),
        ("[keep]\nlogs = 0\n", "keep.logs"),  # logging would then never begin a new file
        ("[keep]\njobs = true\n", "keep.jobs"),
        ("[keep]\naudit_size = 0\n", "keep.audit_size"),
        ("[keep]\nday = 7\n", "keep.day"),
        ("[kept]\njob_days = 7\n", "kept"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(tmp_path: Path, text: str, where: str) -> None:
    (tmp_path / "server.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_server(tmp_path)
    assert [one.where for one in caught.value.problems] == [where]
    (tmp_path / "site.toml").write_text('[data]\nname = "fashion-mnist-12k"\n' + text)
    with pytest.raises(ConfigError) as caught:
        read_owner(tmp_path / "site.toml", None)
    assert [one.where for one in caught.value.problems] == [where]


def test_a_server_keeps_no_memory_of_algorithms(tmp_path: Path) -> None:
    text = "[keep]\nmemory_rounds = 3\n"
    (tmp_path / "server.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_server(tmp_path)
    assert [one.where for one in caught.value.problems] == ["keep.memory_rounds"]
    (tmp_path / "site.toml").write_text('[data]\nname = "fashion-mnist-12k"\n' + text)
    assert read_owner(tmp_path / "site.toml", None).keep.memory_rounds == 3


def test_the_processes_of_a_kit_go_by_what_was_written_or_by_the_defaults(tmp_path: Path) -> None:
    assert Keep.of_kit(tmp_path) == Keep()
    Keep(jobs=4, audit_size=2.5).write(tmp_path)
    assert Keep.of_kit(tmp_path) == Keep(jobs=4, audit_size=2.5)
    SiteKeep(jobs=5, memory_rounds=3).write(tmp_path)
    assert Keep.of_kit(tmp_path) == Keep(jobs=5)
    for text in ("", "[]", '{"jobs": -4}', '{"jobs": 4, "other": 1}'):
        (tmp_path / "keep.json").write_text(text)
        assert Keep.of_kit(tmp_path) == Keep()
