"""Labels in any script: a font is found, or the boxes in its place are explained."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, ImageFont

from fedsight.evaluation import fonts
from fedsight.evaluation.marks import marked
from fedsight.inference.drawing import unshown
from fedsight.inference.predict import Prediction
from fedsight.tasks.presentation import Answer, Mark


def answered(label: str) -> list[Prediction]:
    answer = Answer(label, 0.9, marks=(Mark((2, 2, 9, 9), label),))
    return [Prediction(Path("a.png"), answer)]


@pytest.mark.parametrize("label", ["cat 0.9", "猫 0.9", "кот 0.9"])
def test_a_label_in_any_script_is_drawn(label: str) -> None:
    assert marked(Image.new("RGB", (32, 32)), [Mark((2, 2, 9, 9), label)]).size == (256, 256)


def test_labels_that_no_font_can_draw_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsight.inference.drawing.cjk_font", lambda: None)
    said = unshown(answered("猫 0.9"))
    assert "'猫 0.9' are drawn as boxes" in said
    assert "fonts-noto-cjk" in said
    assert unshown(answered("cat")) == ""
    monkeypatch.setattr("fedsight.inference.drawing.cjk_font", lambda: "font.ttc")
    assert unshown(answered("猫 0.9")) == ""


def test_a_font_without_the_characters_does_not_count(tmp_path: Path) -> None:
    plain = tmp_path / "notosanscjk.ttf"
    plain.write_bytes(ImageFont.load_default(12).font_bytes)  # type: ignore[union-attr]
    assert not fonts._has(str(plain))
    plain.write_bytes(b"no font")
    assert not fonts._has(str(plain))


def test_fonts_are_looked_for_by_name_in_the_usual_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr(fonts, "_MORE", ())
    for name in ("Arial.ttf", "wqy-zenhei.ttc", "NotoSansCJK-Regular.ttc", "NotoSansCJK.txt"):
        (tmp_path / name).touch()
    assert [Path(file).name for file in fonts._by_name()] == [
        "NotoSansCJK-Regular.ttc",
        "wqy-zenhei.ttc",
    ]
