"""The wheel carries studies, data, targets and cluster files, and works where the repository is not."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks import synthetic_run
from benchmarks.synthetic_run import Size

pytestmark = pytest.mark.slow
REPO = Path(__file__).parents[2]
ROOMS = ("wa", "workloads", "sweeps", "analysis", "cluster")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # A clean copy: setuptools would otherwise pick up what an earlier build left behind.
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, check=True).stdout
    for name in listed.decode().split("\0"):
        if name and (REPO / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((REPO / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


def test_package_data_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = [
        *(REPO / "sweeps").glob("*.yaml"),
        *(path for path in (REPO / "workloads" / "data").rglob("*") if path.suffix != ".pyc" and path.is_file()),
        REPO / "workloads" / "targets.yaml",
        *(path for path in (REPO / "cluster").rglob("*") if path.suffix in {".yaml", ".sh", ".sbatch"}),
        *(path for path in (REPO / "analysis").rglob("*") if path.suffix in {".html", ".yaml"}),
        *(path for room in ROOMS for path in (REPO / room).rglob("*.py")),
        REPO / "wa" / "py.typed",
    ]
    missing = [str(path.relative_to(REPO)) for path in shipped if str(path.relative_to(REPO)) not in names]
    assert missing == []
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_the_installed_wheel_plans_and_reports_elsewhere(wheel: Path, tmp_path: Path) -> None:
    target, run = tmp_path / "site", synthetic_run.write(tmp_path / "run", Size(2, seeds=2, averages=4, evaluations=20))
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
    subprocess.run([*install, "--target", str(target), str(wheel)], check=True)
    code = (
        "import wa, sweeps, workloads, analysis, cluster, sys; from sweeps.cli import main;"
        f"assert all(m.__file__.startswith({str(target)!r}) for m in (wa, sweeps, workloads, analysis, cluster));"
        "main(['plan', 'sweeps/quickstart.yaml'], standalone_mode=False); main(['report', 'run'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "60 cells" in done.stdout
    assert "Does averaging reach the target in fewer steps?" in (run / "report.html").read_text(encoding="utf-8")
    assert (run / "tables" / "ratios.csv").is_file()
