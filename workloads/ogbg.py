"""A graph network that tells from a molecule's atoms and bonds which targets it acts on.

`mini` learns which of 30 proteins a molecule binds at 10 nM (docs/workloads/ogbg.md); `full` is AlgoPerf's
network on ogbg-molpcba, 128 assays.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from workloads import algoperf, data
from workloads.loading import epoch_order, load_batches
from workloads.protocol import WHOLE, Batch, Part, Summary, Sums, Workload

NOT_MEASURED = -1  # a label that is missing: it counts neither in the loss nor in the metric


class Graphs(NamedTuple):
    """A batch: several graphs as one, their nodes and edges one after another.

    Every bond is two edges, one each way: the first half of the edges one way, the second half back.
    """

    nodes: Tensor  # (nodes, node_features) float32
    edges: Tensor  # (edges, edge_features) float32
    senders: Tensor  # (edges,) int64: the node an edge comes from
    receivers: Tensor  # (edges,) int64: the node it leads to
    graph_of_node: Tensor  # (nodes,) int64
    labels: Tensor  # (graphs, tasks) int8: 1, 0 or NOT_MEASURED


class Molecules(NamedTuple):
    """All graphs of a data set, their atoms and bonds one after another; graph g has atoms atom_ends[g] to [g + 1]."""

    nodes: NDArray[np.uint8]  # (atoms, node_features)
    edges: NDArray[np.uint8]  # (bonds, edge_features)
    ends: NDArray[np.uint16]  # (bonds, 2): atoms, numbered within their graph
    node_offsets: NDArray[np.int64]  # (graphs + 1,)
    edge_offsets: NDArray[np.int64]  # (graphs + 1,)
    labels: NDArray[np.int8]  # (graphs, tasks)
    splits: Mapping[str, NDArray[np.int64]]  # split -> its graphs


class Update(nn.Module):
    """y = dropout(relu(norm(x))), x = W [inputs] + b: a layer whose product is taken input by input.

    A node's share of W [edge; sender; receiver; graph] is the same for all its edges, so it is multiplied once
    and gathered then: the same sum with half the arithmetic.
    """

    def __init__(self, num_inputs: Sequence[int], width: int, dropout: float) -> None:
        super().__init__()
        self.num_inputs = list(num_inputs)
        self.linear = linear(sum(num_inputs), width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.dropout = nn.Dropout(dropout)

    def weights(self) -> tuple[Tensor, ...]:
        """W by input, each (width, inputs)."""
        return torch.split(self.linear.weight, self.num_inputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) -> (…, width), x without its bias."""
        y: Tensor = self.dropout(F.relu(self.norm(x + self.linear.bias)))
        return y


class GraphNetwork(nn.Module):
    """One round of messages: edges from their two nodes, nodes from their edges, graphs from both; sums throughout.

    Sent and received edges are summed apart. residual: what was there before is added, where it is as wide.
    Source: Battaglia et al. 2018, algorithm 1; jraph.GraphNetwork.
    """

    def __init__(
        self, num_node: int, num_edge: int, num_global: int, width: int, dropout: float, residual: bool
    ) -> None:
        super().__init__()
        self.residual = residual
        self.edge = Update([num_edge, num_node, num_node, num_global], width, dropout)
        self.node = Update([num_node, width, width, num_global], width, dropout)
        self.graph = Update([width, width, num_global], width, dropout)

    def forward(self, nodes: Tensor, edges: Tensor, graphs: Tensor, batch: Graphs) -> tuple[Tensor, Tensor, Tensor]:
        """nodes (nodes, num_node), edges (edges, num_edge), graphs (graphs, num_global) -> the same, all of width."""
        from_edge, from_sender, from_receiver, from_graph = self.edge.weights()
        at_sender = F.linear(nodes, from_sender) + F.linear(graphs, from_graph).index_select(0, batch.graph_of_node)
        at_receiver = F.linear(nodes, from_receiver)
        new_edges = self.edge(
            F.linear(edges, from_edge)
            + at_sender.index_select(0, batch.senders)
            + at_receiver.index_select(0, batch.receivers)
        )

        sent, received = (sums(new_edges, index, len(nodes)) for index in (batch.senders, batch.receivers))
        *from_nodes, from_graph = self.node.weights()
        new_nodes = self.node(
            F.linear(torch.cat([nodes, sent, received], 1), torch.cat(from_nodes, 1))
            + F.linear(graphs, from_graph).index_select(0, batch.graph_of_node)
        )

        # every edge is sent by one node: the sum over a graph's edges is that over what its nodes sent
        both = sums(torch.cat([new_nodes, sent], 1), batch.graph_of_node, len(graphs))
        new_graphs = self.graph(F.linear(torch.cat([both, graphs], 1), self.graph.linear.weight))
        if self.residual:
            new_nodes, new_edges = new_nodes + nodes, new_edges + edges
            new_graphs = new_graphs + graphs if new_graphs.shape == graphs.shape else new_graphs
        return new_nodes, new_edges, new_graphs


class GraphClassifier(nn.Module):
    """Linear embeddings of nodes and edges, rounds of messages, and from each graph's state a logit a task."""

    def __init__(
        self,
        node_features: int,
        edge_features: int,
        num_tasks: int,
        width: int,
        num_rounds: int,
        dropout: float,
        residual: bool,
    ) -> None:
        super().__init__()
        self.node_embedder = linear(node_features, width)
        self.edge_embedder = linear(edge_features, width)
        self.num_tasks = num_tasks  # the graphs' state begins with as many zeros, as AlgoPerf's
        self.residual = residual
        self.rounds = nn.ModuleList(
            GraphNetwork(width, width, width if i else num_tasks, width, dropout, residual) for i in range(num_rounds)
        )
        self.decoder = linear(width, num_tasks)

    def forward(self, batch: Graphs) -> Tensor:
        """Graphs -> (graphs, tasks) logits."""
        nodes, edges = self.node_embedder(batch.nodes), self.edge_embedder(batch.edges)
        graphs = nodes.new_zeros(len(batch.labels), self.num_tasks)
        for network in self.rounds:
            nodes, edges, graphs = network(nodes, edges, graphs, batch)
        logits: Tensor = self.decoder(graphs)
        return logits


def sums(values: Tensor, index: Tensor, count: int) -> Tensor:
    """Row i of (count, width): the sum of the rows of `values` (n, width) whose index (n,) is i."""
    return values.new_zeros(count, values.shape[1]).index_add(0, index, values)


def linear(num_in: int, num_out: int) -> nn.Linear:
    """A linear layer, W from a normal of variance 1/num_in cut at two deviations, b = 0: Flax's default."""
    layer = nn.Linear(num_in, num_out)
    deviation = num_in**-0.5 / 0.87962566103423978  # of a unit normal cut at ±2
    nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
    nn.init.zeros_(layer.bias)
    return layer


def offsets(counts: NDArray[Any]) -> NDArray[np.int64]:
    """(n,) -> (n + 1,): where each group begins, and the end."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def rows(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers start … start + count − 1 of each group, one group after another."""
    return np.repeat(starts - offsets(counts)[:-1], counts) + np.arange(counts.sum())


def batched(molecules: Molecules, chosen: NDArray[np.int64]) -> Graphs:
    """The chosen graphs as one."""
    num_nodes, num_edges = (
        ends[chosen + 1] - ends[chosen] for ends in (molecules.node_offsets, molecules.edge_offsets)
    )
    atoms = rows(molecules.node_offsets[chosen], num_nodes)
    bonds = rows(molecules.edge_offsets[chosen], num_edges)
    ends = molecules.ends[bonds] + np.repeat(offsets(num_nodes)[:-1], num_edges)[:, None]
    edges = molecules.edges[bonds].astype(np.float32)
    return Graphs(
        nodes=torch.from_numpy(molecules.nodes[atoms].astype(np.float32)),
        edges=torch.from_numpy(np.concatenate([edges, edges])),
        senders=torch.from_numpy(np.concatenate([ends[:, 0], ends[:, 1]])),
        receivers=torch.from_numpy(np.concatenate([ends[:, 1], ends[:, 0]])),
        graph_of_node=torch.from_numpy(np.repeat(np.arange(len(chosen)), num_nodes)),
        labels=torch.from_numpy(molecules.labels[chosen]),
    )


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
    "raw/num-node-list.csv.gz": (1, pa.int64()),
    "raw/num-edge-list.csv.gz": (1, pa.int64()),
    "raw/node-feat.csv.gz": (9, pa.uint8()),
    "raw/edge-feat.csv.gz": (3, pa.uint8()),
    "raw/edge.csv.gz": (2, pa.uint16()),
    "raw/graph-label.csv.gz": (128, pa.float32()),
    "split/scaffold/train.csv.gz": (1, pa.int64()),
    "split/scaffold/valid.csv.gz": (1, pa.int64()),
    "split/scaffold/test.csv.gz": (1, pa.int64()),
}


def molpcba_folder() -> Path:
    """Where ogbg-molpcba lies. Raises: data.BadData."""
    holds = "ogbg_molpcba/ as the ogb package unpacks it (raw/*.csv.gz, split/scaffold/*.csv.gz)"
    return data.dataset("ogbg", holds=holds) / "ogbg_molpcba"


def table(folder: Path, name: str) -> NDArray[Any]:
    """(rows, columns) of one file, missing values as NOT_MEASURED. Raises: data.BadData."""
    columns, kind = FILES[name]
    names = [str(i) for i in range(columns)]
    check_file(folder, name)
    try:
        content = pa.csv.read_csv(
            folder / name,
            read_options=pa.csv.ReadOptions(column_names=names),
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, kind)),
        )
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
    num_graphs = len(num_nodes)
    for name, found, expected in (
        ("raw/num-edge-list.csv.gz", len(num_edges), num_graphs),
        ("raw/graph-label.csv.gz", len(part["graph-label"]), num_graphs),
        ("raw/node-feat.csv.gz", len(part["node-feat"]), num_nodes.sum()),
        ("raw/edge-feat.csv.gz", len(part["edge-feat"]), num_edges.sum()),
        ("raw/edge.csv.gz", len(part["edge"]), num_edges.sum()),
    ):
        if found != expected:
            raise data.BadData(f"{folder / name}: {found} rows; the other files ask for {expected}")
    for split in ("train", "valid", "test"):
        outside = part[split][(part[split] < 0) | (part[split] >= num_graphs)]
        if len(outside):
            path = folder / f"split/scaffold/{split}.csv.gz"
            raise data.BadData(f"{path}: there is no graph {outside[0]}; there are {num_graphs}")
    if (part["graph-label"] > 1).any():
        raise data.BadData(f"{folder / 'raw/graph-label.csv.gz'}: a label is 0, 1 or empty")
    if (part["edge"] >= np.repeat(num_nodes, num_edges)[:, None]).any():
        raise data.BadData(f"{folder / 'raw/edge.csv.gz'}: an edge leads to a node that its graph has not")
    return Molecules(
        nodes=part["node-feat"],
        edges=part["edge-feat"],
        ends=part["edge"],
        node_offsets=offsets(num_nodes),
        edge_offsets=offsets(num_edges),
        labels=part["graph-label"],
        splits={"train": part["train"][:, 0], "validation": part["valid"][:, 0], "test": part["test"][:, 0]},
    )


def mean_average_precision(logits: NDArray[np.float32], labels: NDArray[np.int8]) -> float:
    """Mean over tasks of the average precision on the graphs measured there; NaN where no task has both labels.

    logits, labels: (graphs, tasks). A task without both labels is left out, as OGB's evaluator does. NaN where a logit
    is not finite: of a run that has diverged.
    """
    from sklearn.metrics import average_precision_score

    if not np.isfinite(logits).all():
        return float("nan")
    found = []
    for scores, outcomes in zip(logits.T, labels.T, strict=True):
        measured = outcomes != NOT_MEASURED
        if {0, 1} <= set(outcomes[measured].tolist()):
            found.append(average_precision_score(outcomes[measured], scores[measured]))
    return float(np.mean(found)) if found else float("nan")


@dataclass(frozen=True)
class Ogbg:
    """Many binary tasks a graph, most labels missing; metric: "loss" (nats a label) or "map".

    A batch is a `Graphs`; its loss is the mean binary cross-entropy over the labels that were measured.
    source: "moleculeace" (in the package) or "ogbg-molpcba" (in $WA_DATA_DIR/ogbg).
    num_eval_graphs: the head of a split that is evaluated; None: all of it. num_workers: processes that make
    training batches; each reads the data for itself.
    """

    step_budget: int
    batch_size: int
    optimizer: Mapping[str, Any]
    schedule: Mapping[str, Any]
    step_seconds: float
    eval_seconds: float
    source: str = "moleculeace"
    metric: str = "loss"
    node_features: int = 37
    edge_features: int = 9
    num_tasks: int = 30
    width: int = 32
    num_rounds: int = 3
    dropout: float = 0.1
    residual: bool = True
    num_eval_graphs: int | None = 1200
    eval_batch_size: int = 128
    num_workers: int = 0
    higher_is_better: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.source not in ("moleculeace", "ogbg-molpcba"):
            raise ValueError(f"source is {self.source!r}; it is moleculeace or ogbg-molpcba")
        if self.metric not in ("loss", "map"):
            raise ValueError(f"metric is {self.metric!r}; it is loss or map")
        object.__setattr__(self, "higher_is_better", self.metric == "map")

    def model(self) -> nn.Module:
        return GraphClassifier(
            self.node_features,
            self.edge_features,
            self.num_tasks,
            self.width,
            self.num_rounds,
            self.dropout,
            self.residual,
        )

    def molecules(self) -> Molecules:
        """The data, read once a process. Raises: data.BadData."""
        return moleculeace() if self.source == "moleculeace" else molpcba(molpcba_folder())

    def check_data(self) -> None:
        """Raises: data.BadData, where a file is missing or its first row is not what belongs there."""
        if self.source == "ogbg-molpcba":
            folder = molpcba_folder()
            for name in FILES:
                check_file(folder, name)

    def batches(self, seed: int, first_step: int, part: Part = WHOLE) -> Iterator[Batch]:
        make = TrainingBatch(self, seed, part)
        return iter(load_batches(make, first_step, num_workers=self.num_workers))

    def loss(self, model: nn.Module, batch: Graphs) -> Tensor:
        losses, measured = self.losses(model(batch), batch.labels)
        return losses.sum() / measured.sum().clamp(min=1)

    def losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(graphs, tasks) binary cross-entropies, 0 where nothing was measured, and where something was."""
        measured = labels != NOT_MEASURED
        losses = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none")
        return losses.where(measured, 0.0), measured

    def loss_weight(self, batch: Graphs) -> float:
        return float((batch.labels != NOT_MEASURED).sum())

    @property
    def splits(self) -> tuple[str, ...]:
        return ("validation",) if self.source == "moleculeace" else ("validation", "test")

    def eval_batches(self, split: str, part: Part = WHOLE) -> Iterable[Batch]:
        if split not in self.splits:
            raise ValueError(f"ogbg ({self.source}) has no split {split!r}; it has {', '.join(self.splits)}")
        count = len(self.molecules().splits[split][: self.num_eval_graphs])
        make = EvaluationBatch(self, split)
        # made here: the data are in memory, and new workers would read them anew at every evaluation
        return load_batches(make, part.index, -(-count // self.eval_batch_size), part.count)

    def eval_step(self, model: nn.Module, batch: Graphs) -> Sums:
        logits = model(batch).float()
        losses, measured = self.losses(logits, batch.labels)
        return {
            "loss": losses.double().sum(),
            "measured": measured.sum(),
            "examples": torch.tensor(len(batch.labels)),
            "logits": logits,
            "labels": batch.labels,
        }

    def summarize(self, sums: Mapping[str, Any]) -> Summary:
        loss = float(sums["loss"] / sums["measured"])
        precision = mean_average_precision(sums["logits"].float().numpy(), sums["labels"].to(torch.int8).numpy())
        metric = precision if self.metric == "map" else loss
        return Summary(loss, metric, int(sums["examples"]), {"map": precision})


@dataclass(frozen=True)
class TrainingBatch:
    """Batch `step` of a seed: the next batch_size graphs of the epochs' orders, laid end to end."""

    workload: Ogbg
    seed: int
    part: Part

    def __call__(self, step: int) -> Graphs:
        molecules = self.workload.molecules()
        train = molecules.splits["train"]
        first = (step - 1) * self.workload.batch_size
        places = np.arange(first, first + self.workload.batch_size)[self.part.index :: self.part.count]
        epochs, ranks = np.divmod(places, len(train))
        chosen = [
            epoch_order((self.seed, epoch), len(train))[ranks[epochs == epoch]] for epoch in np.unique(epochs).tolist()
        ]
        return batched(molecules, train[np.concatenate(chosen)])


@dataclass(frozen=True)
class EvaluationBatch:
    """Batch `number` of a split, in the file's order."""

    workload: Ogbg
    split: str

    def __call__(self, number: int) -> Graphs:
        molecules, size = self.workload.molecules(), self.workload.eval_batch_size
        graphs = molecules.splits[self.split][: self.workload.num_eval_graphs]
        return batched(molecules, graphs[number * size : (number + 1) * size])


ALGOPERF = algoperf.constants()["ogbg"]

PRESETS: dict[str, Workload] = {
    "mini": Ogbg(
        step_budget=4000,
        batch_size=32,
        optimizer={"name": "nadamw", "lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.01},
        schedule={"shape": "cosine", "length": 1.0, "warmup": 0.05, "final_lr": 0.0},
        step_seconds=0.0096,
        eval_seconds=0.1,
    ),
    "full": Ogbg(
        step_budget=ALGOPERF.step_budget,
        batch_size=ALGOPERF.batch_size,
        optimizer=ALGOPERF.nadamw.optimizer,
        schedule=ALGOPERF.nadamw.schedule,
        step_seconds=ALGOPERF.step_seconds,
        eval_seconds=ALGOPERF.eval_seconds(43_793),
        source="ogbg-molpcba",
        metric=ALGOPERF.metric,
        node_features=9,
        edge_features=3,
        num_tasks=128,
        width=256,
        num_rounds=5,
        dropout=ALGOPERF.nadamw.dropout,
        residual=False,
        num_eval_graphs=None,
        eval_batch_size=2048,
    ),
}
