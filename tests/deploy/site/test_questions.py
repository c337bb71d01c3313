"""The table of questions is that of the site service, and that of the threat model."""

from __future__ import annotations

from pathlib import Path

from fedsight.deploy.site.questions import KINDS, table
from fedsight.deploy.site.service import SiteService

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "threat-model.md"


def test_every_kind_of_question_is_in_the_table(tmp_path: Path) -> None:
    service = SiteService(tmp_path, "ward")
    assert set(service.handlers) == set(KINDS)
    service.close()


def test_the_threat_model_shows_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8"), (
        "paste fedsight.deploy.site.questions.table()"
    )
