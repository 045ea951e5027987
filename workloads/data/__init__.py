"""Derived data files; LICENSES.md says where each comes from, build/ how it was made."""

from pathlib import Path


def path(name: str) -> Path:
    """Where the data file called `name` lies. Raises: FileNotFoundError, naming what there is."""
    folder = Path(__file__).parent
    if not (folder / name).is_file():
        there = sorted(file.name for file in folder.iterdir() if file.suffix in {".xz", ".webp", ".json"})
        raise FileNotFoundError(f"no data file {name!r} in {folder}; there are {', '.join(there)}")
    return folder / name
