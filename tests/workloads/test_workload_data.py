"""The derived files: what LICENSES.md says of them, and splits that share nothing."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

import workloads.data
from workloads import data
from workloads.imagenet import clip_art
from workloads.lm import text

FOLDER = Path(workloads.data.__file__).parent
DERIVED = sorted(file.name for file in FOLDER.iterdir() if file.suffix in {".xz", ".webp", ".json", ".npz", ".parquet"})


def heading_titles(split: str) -> list[str]:
    return re.findall(r"^= (.+) =$", text(split).tobytes().decode("ascii"), flags=re.MULTILINE)


@pytest.mark.parametrize("name", DERIVED)
def test_each_file_is_the_one_licensed_and_small(name: str) -> None:
    content = data.path(name).read_bytes()
    licences = (FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    row = next(line for line in licences.splitlines() if line.startswith(f"| `{name}` |"))
    assert hashlib.sha256(content).hexdigest() in row
    assert len(content) <= 2_000_000


def test_a_missing_file_names_what_there_is() -> None:
    with pytest.raises(FileNotFoundError, match=r"lm_train\.txt\.xz"):
        data.path("lm_trian.txt.xz")


def test_a_familys_files_stay_small_together() -> None:
    sizes: dict[str, int] = {}
    for name in DERIVED:
        family = re.split(r"[._]", name)[0]
        sizes[family] = sizes.get(family, 0) + (FOLDER / name).stat().st_size
    assert set(sizes) == {"criteo1tb", "fastmri", "imagenet", "librispeech", "lm", "ogbg", "wmt"}
    assert all(size <= (3_000_000 if family == "fastmri" else 2_000_000) for family, size in sizes.items())


def test_a_full_presets_folder_is_named_when_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(data.VARIABLE, raising=False)
    with pytest.raises(data.BadData, match=r"ogbg: .*WA_DATA_DIR.*graphs"):
        data.dataset("ogbg", "graphs")
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    with pytest.raises(data.BadData, match=r"ogbg: no such folder; it should hold graphs"):
        data.dataset("ogbg", "graphs")
    (tmp_path / "ogbg").mkdir()
    assert data.dataset("ogbg", "graphs") == tmp_path / "ogbg"


def test_build_scripts_name_no_host() -> None:
    scripts = sorted((FOLDER / "build").glob("*.py"))
    stems = ["criteo1tb", "fastmri", "imagenet", "librispeech", "lm", "ogbg", "sources", "wmt"]
    assert [script.stem for script in scripts] == stems
    for script in scripts:
        assert not re.search(r"https?:|\w\.(org|com|io|net)\b", script.read_text(encoding="utf-8"))


def test_books_are_whole_and_in_one_split() -> None:
    train, validation = heading_titles("train"), heading_titles("validation")
    assert len(train) + len(validation) == 66 == len({*train, *validation})
    assert validation == ["Numbers", "Ruth", "2 Samuel", "Proverbs", "Ezekiel", "Mark", "2 Corinthians"]
    assert train[0] == "Genesis"
    assert train[-1] == "Revelation"
    text_of_ruth = text("validation").tobytes().decode().split("= Ruth =\n")[1].split("\n\n")[0]
    assert len(text_of_ruth.splitlines()) == 85  # verses of the book


def test_the_text_is_ascii_without_notes() -> None:
    for split in ("train", "validation"):
        assert text(split).max() < 128
        assert not np.isin(text(split), np.frombuffer(b"{}\r\t\x00", np.uint8)).any()
    assert len(text("train")) == 3_353_230
    assert len(text("validation")) == 670_695


def test_no_picture_is_in_both_splits_not_even_nearly() -> None:
    def thumbs(split: str) -> np.ndarray:
        pictures = clip_art(split)[0].astype(np.float64)
        return pictures.reshape(len(pictures), 16, 2, 16, 2, 3).mean((2, 4)).reshape(len(pictures), -1)

    train, validation = thumbs("train"), thumbs("validation")
    squared = (train**2).sum(1)[:, None] + (validation**2).sum(1) - 2 * train @ validation.T
    assert np.sqrt(squared.min() / train.shape[1]) > 7.5  # the build drops what is closer than 8


def test_classes_are_as_documented() -> None:
    index = json.loads(data.path("imagenet.json").read_text())
    assert len(index["classes"]) == 13
    train, validation = (np.bincount(index[split], minlength=13) for split in ("train", "validation"))
    total = train + validation
    assert total.min() >= 65
    assert np.array_equal(validation, np.round(total * 0.3).astype(int))  # stratified
    assert total.sum() == len(clip_art("train")[0]) + len(clip_art("validation")[0])


def test_splits_are_shuffled() -> None:
    """A split in class order would make every prefix a different task."""
    for split in ("train", "validation"):
        pictures, labels = clip_art(split)
        head = np.bincount(labels[: len(labels) // 2], minlength=13) / np.bincount(labels, minlength=13)
        assert np.abs(head - 0.5).max() < 0.25
        assert pictures.std((1, 2, 3)).min() > 0  # the empty tiles at the mosaic's end are no pictures


def test_a_tile_is_where_the_mosaic_has_it() -> None:
    from PIL import Image

    index = json.loads(data.path("imagenet.json").read_text())
    sheet = Image.open(data.path("imagenet.webp")).convert("RGB")
    for split, first in (("train", 0), ("validation", len(index["train"]))):
        for i in (0, 70, 1000):
            row, column = divmod(first + i, index["columns"])
            tile = sheet.crop((column * 32, row * 32, column * 32 + 32, row * 32 + 32))
            assert np.array_equal(np.asarray(tile), clip_art(split)[0][i])
