"""Molecules as arrays: the mini's in the package, and ogbg-molpcba as the ogb package unpacks it."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from workloads import data

NOT_MEASURED = -1  # a label that is missing: it counts neither in the loss nor in the metric


class Molecules(NamedTuple):
    """All graphs of a data set, their atoms and bonds one after another; graph g has atoms atom_ends[g] to [g + 1]."""

    nodes: NDArray[np.uint8]  # (atoms, node_features)
    edges: NDArray[np.uint8]  # (bonds, edge_features)
    ends: NDArray[np.uint16]  # (bonds, 2): atoms, numbered within their graph
    node_offsets: NDArray[np.int64]  # (graphs + 1,)
    edge_offsets: NDArray[np.int64]  # (graphs + 1,)
    labels: NDArray[np.int8]  # (graphs, tasks)
    splits: Mapping[str, NDArray[np.int64]]  # split -> its graphs


def offsets(counts: NDArray[Any]) -> NDArray[np.int64]:
    """(n,) -> (n + 1,): where each group begins, and the end."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def rows(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers start … start + count − 1 of each group, one group after another."""
    return np.repeat(starts - offsets(counts)[:-1], counts) + np.arange(counts.sum())


@cache
def moleculeace() -> Molecules:
    """The mini's molecules, features one-hot; the validation split is spread over the tasks from its head on."""
    with np.load(data.path("ogbg.npz")) as file:
        part = {name: file[name] for name in file.files}
    atom_bonds = part["atom_bonds"].astype(np.int64)  # bonds to earlier atoms
    num_graphs, num_train = len(part["num_atoms"]), int(part["num_train"])
    node_offsets = offsets(part["num_atoms"])
    late = np.repeat(np.arange(len(atom_bonds)), atom_bonds)
    late -= np.repeat(node_offsets[:-1], part["num_atoms"])[late]
    labels = np.full((num_graphs, len(part["tasks"])), NOT_MEASURED, np.int8)
    labels[np.repeat(np.arange(num_graphs), part["num_labels"]), part["label_tasks"]] = part["label_values"]
    return Molecules(
        nodes=one_hot(part["atom_kinds"])[part["atoms"]],
        edges=one_hot(part["bond_kinds"])[part["bonds"]],
        ends=np.stack([late - part["bond_back"], late], 1).astype(np.uint16),
        node_offsets=node_offsets,
        edge_offsets=offsets(np.add.reduceat(atom_bonds, node_offsets[:-1])),
        labels=labels,
        splits={"train": np.arange(num_train), "validation": np.arange(num_train, num_graphs)},
    )


def one_hot(kinds: NDArray[np.int8]) -> NDArray[np.uint8]:
    """(kinds, properties) -> (kinds, values of all properties): 1 where the kind has this value."""
    columns = [column[:, None] == np.unique(column) for column in kinds.T]
    return np.concatenate(columns, axis=1).astype(np.uint8)


FILES = {  # of ogbg-molpcba as the ogb package unpacks it: columns and their type
    **dict.fromkeys(("raw/num-node-list.csv.gz", "raw/num-edge-list.csv.gz"), (1, pa.int64())),
    "raw/node-feat.csv.gz": (9, pa.uint8()),
    "raw/edge-feat.csv.gz": (3, pa.uint8()),
    "raw/edge.csv.gz": (2, pa.uint16()),
    "raw/graph-label.csv.gz": (128, pa.float32()),
    **{f"split/scaffold/{split}.csv.gz": (1, pa.int64()) for split in ("train", "valid", "test")},
}
HOLDS = "ogbg_molpcba/ as the ogb package unpacks it (raw/*.csv.gz, split/scaffold/*.csv.gz)"


def molpcba_folder() -> Path:
    """Where ogbg-molpcba lies. Raises: data.BadData."""
    return data.dataset("ogbg", HOLDS) / "ogbg_molpcba"


def check_molpcba() -> None:
    """Raises: data.BadData, where a file is missing or its first row is not what belongs there."""
    for name in FILES:
        check_file(molpcba_folder(), name)


def table(folder: Path, name: str) -> NDArray[Any]:
    """(rows, columns) of one file, missing values as NOT_MEASURED. Raises: data.BadData."""
    columns, kind = FILES[name]
    names = [str(i) for i in range(columns)]
    check_file(folder, name)
    types = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, kind))
    try:
        content = pa.csv.read_csv(folder / name, pa.csv.ReadOptions(column_names=names), convert_options=types)
        if kind == pa.float32():
            content = pa.table({i: content[i].fill_null(NOT_MEASURED).cast(pa.int8()) for i in names})
        return np.stack([content[i].to_numpy() for i in names], 1)
    except (OSError, EOFError, pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())
        raise data.BadData(f"{folder / name}: not {columns} columns of {kind} ({reason})") from error


def check_file(folder: Path, name: str) -> None:
    """Raises: data.BadData, where a file is not there or its first row has another number of columns."""
    path, columns = folder / name, FILES[name][0]
    if not path.is_file():
        raise data.BadData(f"{path}: no such file; it should be a table of {columns} columns, gzipped")
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            found = file.readline().count(",") + 1
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise data.BadData(f"{path}: not a gzipped table ({error})") from error
    if found != columns:
        raise data.BadData(f"{path}: its first row has {found} columns; there should be {columns}")


@cache
def molpcba(folder: Path) -> Molecules:
    """ogbg-molpcba with the numbers of its features as they are; about 250 MB. Raises: data.BadData."""
    part = {Path(name).name.removesuffix(".csv.gz"): table(folder, name) for name in FILES}
    num_nodes, num_edges = part["num-node-list"][:, 0], part["num-edge-list"][:, 0]
    num_graphs, labels, ends = len(num_nodes), part["graph-label"], part["edge"]
    expected = {"num-edge-list": num_graphs, "graph-label": num_graphs, "node-feat": num_nodes.sum()}
    expected |= dict.fromkeys(("edge-feat", "edge"), num_edges.sum())
    for name, count in expected.items():
        if len(part[name]) != count:
            path = folder / f"raw/{name}.csv.gz"
            raise data.BadData(f"{path}: {len(part[name])} rows; the other files ask for {count}")
    for split in ("train", "valid", "test"):
        outside = part[split][(part[split] < 0) | (part[split] >= num_graphs)]
        if len(outside):
            path = folder / f"split/scaffold/{split}.csv.gz"
            raise data.BadData(f"{path}: there is no graph {outside[0]}; there are {num_graphs}")
    if (labels > 1).any():
        raise data.BadData(f"{folder / 'raw/graph-label.csv.gz'}: a label is 0, 1 or empty")
    if (ends >= np.repeat(num_nodes, num_edges)[:, None]).any():
        raise data.BadData(f"{folder / 'raw/edge.csv.gz'}: an edge leads to a node that its graph has not")
    splits = {"train": part["train"][:, 0], "validation": part["valid"][:, 0], "test": part["test"][:, 0]}
    return Molecules(part["node-feat"], part["edge-feat"], ends, offsets(num_nodes), offsets(num_edges), labels, splits)
