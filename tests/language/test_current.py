"""The current language: chosen, or that of the environment, or another one for a while."""

from __future__ import annotations

import threading

import pytest

from fedsight.language.current import choose, current_language, environment_language, using


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW"}, "zh"),
        ({"LANG": "zh"}, "zh"),
        ({"LANG": "zh-Hans"}, "zh"),
        ({"LANG": "ZH_cn@pinyin"}, "zh"),
        ({"LANG": "zha_CN"}, "en"),
        ({"LANG": "C"}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "POSIX"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({"LANG": ""}, "en"),
        ({"LANG": "en_GB", "LC_MESSAGES": "zh_CN"}, "zh"),
        ({"LANG": "zh_CN", "LC_MESSAGES": "C"}, "en"),
        ({"LANG": "zh_CN", "LC_MESSAGES": "zh_CN", "LC_ALL": "C"}, "en"),
        ({"LANG": "zh_CN", "LC_ALL": ""}, "zh"),
        ({"LC_CTYPE": "zh_CN.UTF-8"}, "en"),
    ],
)
def test_the_environment_says_the_language(environment: dict[str, str], language: str) -> None:
    assert environment_language(environment) == language


def test_a_chosen_language_holds_in_every_thread() -> None:
    found: list[str] = []
    choose("zh")
    thread = threading.Thread(target=lambda: found.append(current_language()))
    thread.start()
    thread.join()
    choose(None)
    assert found == ["zh"]
    assert current_language() == "en"


def test_another_language_for_a_while_holds_there_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_MESSAGES", "zh_CN.UTF-8")
    assert current_language() == "zh"
    with using("en"):
        assert current_language() == "en"
        with using("zh"):
            assert current_language() == "zh"
        assert current_language() == "en"
    assert current_language() == "zh"
