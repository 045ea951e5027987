"""What analysis writes: CSV cells that stay text in a spreadsheet, whole files, and only in place of plain files."""

import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis import report
from analysis.run_folder import output
from analysis.run_folder.output import as_text, write_csv

HOSTILE = ["=1+1", "+cmd|'/c calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://x")']


def cells(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def test_text_that_a_spreadsheet_would_compute_is_quoted_and_nothing_else_changes(tmp_path: Path) -> None:
    plain = ["lm", "a=b", "3 - 2", "–", "", "-1.5", "+2e3", "-inf", "nan"]
    table = pd.DataFrame(
        {
            "name": HOSTILE + plain,
            "=kind": pd.Categorical(HOSTILE + plain),
            "number": -np.arange(len(HOSTILE + plain)) / 3,
            "count": -np.arange(len(HOSTILE + plain)),
        }
    )
    write_csv(tmp_path / "a.csv", table)
    safe = [f"'{text}".replace("\r", "\n") for text in HOSTILE]
    header, *rows = cells(tmp_path / "a.csv")
    assert header == ["name", "'=kind", "number", "count"]
    assert [row[0] for row in rows] == safe + plain
    assert [row[1] for row in rows] == safe + plain
    assert [row[3] for row in rows] == [str(number) for number in table["count"]]
    read = pd.read_csv(tmp_path / "a.csv", keep_default_na=False)
    np.testing.assert_allclose(read["number"], table["number"], rtol=1e-9)


def test_what_needs_no_quoting_has_the_bytes_that_pandas_writes(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": ["x", None, "y"], "b": [-1.0, np.nan, 1e-12], "c": pd.array([1, None, -3], "Int64")})
    table["d"], table["e"] = [True, False, True], pd.Series([None, 2.5, "z"], dtype=object)
    write_csv(tmp_path / "a.csv", table)
    text = io.StringIO()
    table.to_csv(text, index=False, float_format="%.10g", lineterminator="\n")
    assert (tmp_path / "a.csv").read_text() == text.getvalue()


def test_every_csv_of_a_report_is_safe(make_run, tasks, task, uncharted) -> None:
    one = tasks["lm"]
    run = make_run(tasks=[task(one.name, "=cmd()", one.higher, one.start, one.end, one.target)], study="b")
    report.write(run)
    found = [cell for path in (run / "tables").glob("*.csv") for row in cells(path) for cell in row]
    assert any(cell.startswith("'=cmd()") for cell in found)
    assert not [cell for cell in found if as_text(cell) != cell]


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_only_plain_files_are_replaced_and_a_failed_write_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "a.svg"
    path.mkdir() if kind == "folder" else path.symlink_to("kept")
    with pytest.raises(OSError, match="not a plain file"):
        output.write(path, "x")
    output.write(tmp_path / "b", "old")
    monkeypatch.setattr(Path, "write_bytes", _full)
    with pytest.raises(OSError, match="No space") as caught:
        output.write(tmp_path / "b", "new")
    assert caught.value.filename == str(tmp_path / "b")
    assert (tmp_path / "b").read_text() == "old"
    assert not list(tmp_path.glob(".*"))


def _full(path: Path, data: bytes) -> int:
    with open("/dev/full", "wb", buffering=0) as stream:
        return stream.write(data) or 0
