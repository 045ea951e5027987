"""The wheel carries studies, data, targets and cluster files, and works where the repository is not."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
REPO = Path(__file__).parents[2]


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
        *(path for path in (REPO / "cluster").rglob("*") if path.suffix in {".yaml", ".sbatch"}),
        *(path for path in (REPO / "analysis").iterdir() if path.suffix in {".html", ".py"}),
        REPO / "wa" / "py.typed",
    ]
    missing = [str(path.relative_to(REPO)) for path in shipped if str(path.relative_to(REPO)) not in names]
    assert missing == []
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_the_installed_wheel_plans_the_quickstart_elsewhere(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    code = (
        "import wa, sweeps, workloads, analysis, cluster, sys; from sweeps.cli import main;"
        f"assert all(m.__file__.startswith({str(target)!r}) for m in (wa, sweeps, workloads, analysis, cluster));"
        "main(['plan', 'sweeps/quickstart.yaml'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "60 cells" in done.stdout
