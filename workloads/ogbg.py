"""A graph network that tells from a molecule's atoms and bonds which targets it acts on.

`mini` learns which of 30 proteins a molecule binds at 10 nM (docs/workloads/ogbg.md); `full` is AlgoPerf's
network on ogbg-molpcba, 128 assays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from workloads import ogbg_files
from workloads.algoperf import constants
from workloads.layers import lecun
from workloads.ogbg_files import NOT_MEASURED, Molecules, moleculeace, offsets, rows
from workloads.protocol import Part, Summary, Sums, Workload
from workloads.task import FileTask, end_to_end, mini


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


class Update(nn.Module):
    """y = dropout(relu(norm(x))), x = W [inputs] + b: a layer whose product is taken input by input.

    A node's share of W [edge; sender; receiver; graph] is the same for all its edges, so it is multiplied once
    and gathered then: the same sum with half the arithmetic.
    """

    def __init__(self, num_inputs: Sequence[int], width: int, dropout: float) -> None:
        super().__init__()
        self.num_inputs = list(num_inputs)
        self.linear = lecun(sum(num_inputs), width)
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

    def __init__(self, width: int, num_global: int, dropout: float, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.edge, self.node = (Update([width, width, width, num_global], width, dropout) for _ in range(2))
        self.graph = Update([width, width, num_global], width, dropout)

    def forward(self, nodes: Tensor, edges: Tensor, graphs: Tensor, batch: Graphs) -> tuple[Tensor, Tensor, Tensor]:
        """nodes (nodes, width), edges (edges, width), graphs (graphs, num_global) -> the same, all of width."""
        from_edge, from_sender, from_receiver, from_graph = self.edge.weights()
        at_sender = F.linear(nodes, from_sender) + F.linear(graphs, from_graph).index_select(0, batch.graph_of_node)
        at_receiver = F.linear(nodes, from_receiver)
        sent_on = at_sender.index_select(0, batch.senders)
        new_edges = self.edge(F.linear(edges, from_edge) + sent_on + at_receiver.index_select(0, batch.receivers))

        sent, received = (sums(new_edges, index, len(nodes)) for index in (batch.senders, batch.receivers))
        *from_nodes, from_graph = self.node.weights()
        at_graph = F.linear(graphs, from_graph).index_select(0, batch.graph_of_node)
        new_nodes = self.node(F.linear(torch.cat([nodes, sent, received], 1), torch.cat(from_nodes, 1)) + at_graph)

        # every edge is sent by one node: the sum over a graph's edges is that over what its nodes sent
        both = sums(torch.cat([new_nodes, sent], 1), batch.graph_of_node, len(graphs))
        new_graphs = self.graph(F.linear(torch.cat([both, graphs], 1), self.graph.linear.weight))
        if self.residual:
            new_nodes, new_edges = new_nodes + nodes, new_edges + edges
            new_graphs = new_graphs + graphs if new_graphs.shape == graphs.shape else new_graphs
        return new_nodes, new_edges, new_graphs


class GraphClassifier(nn.Module):
    """Linear embeddings of nodes and edges, rounds of messages, and from each graph's state a logit a task."""

    def __init__(self, of: Ogbg) -> None:
        super().__init__()
        self.node_embedder = lecun(of.node_features, of.width)
        self.edge_embedder = lecun(of.edge_features, of.width)
        self.num_tasks = of.num_tasks  # the graphs' state begins with as many zeros, as AlgoPerf's
        num_globals = (of.num_tasks, *[of.width] * (of.num_rounds - 1))
        self.rounds = nn.ModuleList(GraphNetwork(of.width, num, of.dropout, of.residual) for num in num_globals)
        self.decoder = lecun(of.width, of.num_tasks)

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


def batched(molecules: Molecules, chosen: NDArray[np.int64]) -> Graphs:
    """The chosen graphs as one."""
    num_nodes, num_edges = (at[chosen + 1] - at[chosen] for at in (molecules.node_offsets, molecules.edge_offsets))
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


@dataclass(frozen=True, kw_only=True)
class Ogbg(FileTask):
    """Many binary tasks a graph, most labels missing; metric: "loss" (nats a label) or "map".

    A batch is a `Graphs`; its loss is the mean binary cross-entropy over the labels that were measured.
    num_eval_graphs: the head of a split that is evaluated; None: all of it. num_workers: processes that make
    training batches; each reads the data for itself.
    """

    METRICS: ClassVar[Mapping[str, bool]] = {"loss": False, "map": True}
    evaluates_here = True

    node_features: int = 37
    edge_features: int = 9
    num_tasks: int = 30
    width: int = 32
    num_rounds: int = 3
    dropout: float = 0.1
    residual: bool = True
    num_eval_graphs: int | None = 1200
    eval_batch_size: int = 128

    def model(self) -> nn.Module:
        return GraphClassifier(self)

    def molecules(self) -> Molecules:
        """The data, read once a process. Raises: BadData."""
        return moleculeace()

    def source(self, split: str) -> Any:
        """The numbers of a split's graphs."""
        chosen = self.molecules().splits[split]
        return chosen if split == "train" else chosen[: self.num_eval_graphs]

    def train_batch(self, source: Any, seed: int, part: Part, step: int) -> Graphs:
        """The next batch_size graphs of the epochs' orders, laid end to end."""
        places = ((step - 1) * self.batch_size + np.arange(self.batch_size))[part.every]
        return batched(self.molecules(), source[end_to_end((seed,), places, len(source))])

    def eval_batch(self, source: Any, number: int) -> Graphs:
        return batched(self.molecules(), source[self.numbers(source, number)])

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
        precision = mean_average_precision(sums["logits"].float().numpy(), sums["labels"].to(torch.int8).numpy())
        return self.summary(float(sums["loss"] / sums["measured"]), sums["examples"], map=precision)


@dataclass(frozen=True, kw_only=True)
class Molpcba(Ogbg):
    """ogbg-molpcba, from $WA_DATA_DIR/ogbg."""

    splits = ("validation", "test")
    num_workers: int = 1  # graphs are joined in 1.8 ms a batch, beside the steps

    def molecules(self) -> Molecules:
        return ogbg_files.molpcba(ogbg_files.molpcba_folder())

    def check_data(self) -> None:
        ogbg_files.check_molpcba()


PRESETS: dict[str, Workload] = {
    "mini": Ogbg(
        **mini(lr=0.01, weight_decay=0.01, step_budget=4000, batch_size=32, step_seconds=0.0096, eval_seconds=0.1)
    ),
    "full": Molpcba(
        **constants()["ogbg"].preset(43_793, "dropout"),
        node_features=9,
        edge_features=3,
        num_tasks=128,
        width=256,
        num_rounds=5,
        residual=False,
        num_eval_graphs=None,
        eval_batch_size=2048,
    ),
}
