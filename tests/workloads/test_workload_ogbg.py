"""Graph networks: the model against a naive one, batches, masks, parts, mAP, and ogbg-molpcba's files."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from batches import equal, evaluated
from full_data import small
from full_data import write_table as write
from sklearn.metrics import precision_recall_curve
from torch import Tensor, nn

from workloads import data
from workloads.ogbg import PRESETS, GraphClassifier, Graphs, Molpcba, Ogbg, batched, mean_average_precision
from workloads.ogbg_files import moleculeace

FAMILY = "ogbg"
MINI, FULL = PRESETS["mini"], PRESETS["full"]
assert isinstance(MINI, Ogbg)
assert isinstance(FULL, Molpcba)


# --- the model, against loops over nodes and edges with concatenated inputs, as the paper writes it


def naive_logits(model: GraphClassifier, graph: Graphs) -> Tensor:
    """One graph, one edge and one node at a time."""

    def update(layer: nn.Module, *inputs: Tensor) -> Tensor:
        return torch.relu(layer.norm(layer.linear(torch.cat(inputs))))  # type: ignore[operator, union-attr]

    nodes = [model.node_embedder(x) for x in graph.nodes]
    edges = [model.edge_embedder(x) for x in graph.edges]
    state = torch.zeros(model.num_tasks)
    ends = list(zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True))
    for network in model.rounds:
        new_edges = [
            update(network.edge, edge, nodes[i], nodes[j], state) for edge, (i, j) in zip(edges, ends, strict=True)
        ]
        zero = torch.zeros_like(new_edges[0])
        new_nodes = []
        for n, node in enumerate(nodes):
            sent = sum((e for e, (i, _) in zip(new_edges, ends, strict=True) if i == n), zero)
            received = sum((e for e, (_, j) in zip(new_edges, ends, strict=True) if j == n), zero)
            new_nodes.append(update(network.node, node, sent, received, state))
        new_state = update(network.graph, sum(new_nodes, zero), sum(new_edges, zero), state)
        if network.residual:
            new_nodes = [new + old for new, old in zip(new_nodes, nodes, strict=True)]
            new_edges = [new + old for new, old in zip(new_edges, edges, strict=True)]
            new_state = new_state + state if new_state.shape == state.shape else new_state
        nodes, edges, state = new_nodes, new_edges, new_state
    return model.decoder(state)


@pytest.mark.parametrize("residual", [False, True])
def test_the_model_is_the_papers_algorithm(residual: bool) -> None:
    torch.manual_seed(0)
    model = dataclasses.replace(MINI, residual=residual).model().double().eval()
    assert isinstance(model, GraphClassifier)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # biases and gains too
    molecules = moleculeace()
    chosen = np.array([3, 2000, 31000])
    batch = batched(molecules, chosen)
    batch = batch._replace(nodes=batch.nodes.double(), edges=batch.edges.double())
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            alone = [
                naive_logits(model, one._replace(nodes=one.nodes.double(), edges=one.edges.double()))
                for one in (batched(molecules, chosen[i : i + 1]) for i in range(3))
            ]
            together = model(batch)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.allclose(together, torch.stack(alone), rtol=1e-9, atol=1e-9)


def test_the_order_of_atoms_does_not_matter() -> None:
    torch.manual_seed(0)
    model = MINI.model().eval()
    batch = next(MINI.batches(0, 1))
    order = torch.randperm(len(batch.nodes))
    place = torch.argsort(order)
    moved = batch._replace(
        nodes=batch.nodes[order],
        graph_of_node=batch.graph_of_node[order],
        senders=place[batch.senders],
        receivers=place[batch.receivers],
    )
    with torch.no_grad():
        assert torch.allclose(model(batch), model(moved), atol=1e-4)


# --- the mini's data


def test_a_molecule_is_what_chemistry_says() -> None:
    """Every atom is in one connected graph whose ring count matches; bonds lie within their molecule."""
    molecules = moleculeace()
    assert molecules.labels.shape[0] == sum(len(split) for split in molecules.splits.values())
    num_atoms = np.diff(molecules.node_offsets)
    assert num_atoms.sum() == len(molecules.nodes)
    assert np.diff(molecules.edge_offsets).sum() == len(molecules.edges) == len(molecules.ends)
    owner = np.repeat(np.arange(len(num_atoms)), np.diff(molecules.edge_offsets))
    assert (molecules.ends[:, 0] < molecules.ends[:, 1]).all()
    assert (molecules.ends[:, 1] < num_atoms[owner]).all()
    assert (molecules.nodes.sum(1) == 9).all()  # one value of each property
    assert (molecules.edges.sum(1) == 3).all()
    for graph in range(0, len(num_atoms), 997):
        first, last = molecules.edge_offsets[graph : graph + 2]
        group = list(range(num_atoms[graph]))
        for i, j in molecules.ends[first:last].tolist():
            group = [group[i] if g == group[j] else g for g in group]
        assert len(set(group)) <= 2  # a molecule, or one with its counter-ion


def test_most_labels_are_missing_and_the_head_of_validation_has_all_tasks() -> None:
    molecules = moleculeace()
    measured = molecules.labels >= 0
    assert set(np.unique(molecules.labels)) == {-1, 0, 1}
    assert 0.94 < 1 - measured.mean() < 0.96
    assert measured.any(1).all()
    head = molecules.labels[molecules.splits["validation"][: MINI.num_eval_graphs]]
    assert (head >= 0).sum(0).min() >= 30
    assert (head == 1).any(0).all()


def test_training_passes_over_every_molecule_once_an_epoch() -> None:
    """With parts or without; the labels of the batches are those of the training molecules, each once."""
    train = moleculeace().labels[moleculeace().splits["train"]]
    epoch = dataclasses.replace(MINI, batch_size=len(train) // 2)
    assert len(train) % 2 == 0
    seen = torch.cat([batch.labels for batch in itertools.islice(epoch.batches(3, 1), 2)]).numpy()
    assert not np.array_equal(seen, train)
    assert np.array_equal(
        np.unique(seen, axis=0, return_counts=True)[1], np.unique(train, axis=0, return_counts=True)[1]
    )
    assert equal(next(MINI.batches(3, 3)), next(itertools.islice(MINI.batches(3, 1), 2, None)))


def test_batches_cross_the_end_of_an_epoch() -> None:
    count = len(moleculeace().splits["train"])
    workload = dataclasses.replace(MINI, batch_size=count - 10)
    first, second = (batch.labels for batch in itertools.islice(workload.batches(0, 1), 2))
    last_of_first_epoch = dataclasses.replace(MINI, batch_size=count)
    whole = next(last_of_first_epoch.batches(0, 1)).labels
    assert torch.equal(whole, torch.cat([first, second[:10]]))
    assert not torch.equal(whole[: count - 20], second[10:])  # another order


# --- loss and metric


def test_missing_labels_do_not_count() -> None:
    class Fixed(nn.Module):
        def forward(self, batch: Graphs) -> Tensor:
            return torch.tensor([[2.0, -1.0], [0.5, 9.0]])

    batch = next(MINI.batches(0, 1))._replace(labels=torch.tensor([[1, 0], [0, -1]], dtype=torch.int8))
    expected = (np.log1p(np.exp(-2)) + np.log1p(np.exp(-1)) + np.log1p(np.exp(0.5))) / 3
    assert float(MINI.loss(Fixed(), batch)) == pytest.approx(expected, rel=1e-6)
    assert MINI.loss_weight(batch) == 3
    nothing = batch._replace(labels=torch.full((2, 2), -1, dtype=torch.int8))
    assert float(MINI.loss(Fixed(), nothing)) == 0
    assert MINI.loss_weight(nothing) == 0


def test_map_is_the_mean_area_under_the_precision_recall_steps() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(60, 5)).astype(np.float32)
    labels = random.integers(-1, 2, size=(60, 5)).astype(np.int8)
    labels[:, 1] = np.where(labels[:, 1] == 0, -1, labels[:, 1])  # no negative: left out
    labels[:, 3] = -1  # never measured: left out
    expected = []
    for task in (0, 2, 4):
        known = labels[:, task] >= 0
        precision, recall, _ = precision_recall_curve(labels[known, task], logits[known, task])
        expected.append(-np.sum(np.diff(recall) * precision[:-1]))
    assert mean_average_precision(logits, labels) == pytest.approx(np.mean(expected), rel=1e-9)
    assert np.isnan(mean_average_precision(logits[:, 3:4], labels[:, 3:4]))


def test_evaluation_agrees_with_the_training_loss_however_it_is_cut() -> None:
    torch.manual_seed(0)
    model = dataclasses.replace(MINI, dropout=0.0).model()
    batch = next(MINI.batches(0, 1))
    assert evaluated(MINI, model, [batch]).loss == pytest.approx(MINI.loss(model.train(), batch).item(), rel=1e-5)
    cuts = [dataclasses.replace(MINI, eval_batch_size=size, num_eval_graphs=200) for size in (200, 64)]
    one, many = (evaluated(cut, model, cut.eval_batches("validation")) for cut in cuts)
    assert one.examples == many.examples == 200
    assert one.loss == pytest.approx(many.loss, rel=1e-5)


def test_bfloat16_gives_nearly_the_same() -> None:
    torch.manual_seed(0)
    model = MINI.model().eval()
    batch = next(MINI.batches(0, 1))
    exact = MINI.loss(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        rough = MINI.loss(model, batch)
    rough.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)


# --- ogbg-molpcba's files, as the ogb package unpacks them


@pytest.fixture
def molpcba(own_folder: Path) -> Path:
    return own_folder / "ogbg_molpcba"


def test_full_reads_the_files(molpcba: Path) -> None:
    full = small(FAMILY)
    full.check_data()
    validation, test = list(full.eval_batches("validation")), list(full.eval_batches("test"))
    labels = np.load(molpcba.parent / "labels.npy")
    assert np.array_equal(torch.cat([batch.labels for batch in validation]).numpy(), labels[[1, 4]])
    assert np.array_equal(test[0].labels.numpy(), labels[[2]])
    assert test[0].edges.shape == (0, 3)
    nodes = np.loadtxt(molpcba / "raw/node-feat.csv.gz", delimiter=",")
    edges = np.loadtxt(molpcba / "raw/edge-feat.csv.gz", delimiter=",")
    assert np.array_equal(validation[1].nodes.numpy(), nodes[10:13])
    assert np.array_equal(validation[1].edges.numpy(), np.concatenate([edges[7:9]] * 2))
    assert validation[1].senders.tolist() == [0, 0, 2, 1]
    assert validation[1].receivers.tolist() == [2, 1, 0, 0]
    with pytest.raises(ValueError, match="validation and test"):
        full.eval_batches("tset")


def test_a_missing_folder_or_file_is_named(molpcba: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (molpcba / "raw/edge.csv.gz").unlink()
    for ask in (small(FAMILY).check_data, lambda: next(small(FAMILY).batches(0, 1))):
        with pytest.raises(data.BadData, match=r"raw/edge.csv.gz: no such file.* 2 columns") as error:
            ask()
        assert "\n" not in str(error.value)
    monkeypatch.setenv("WA_DATA_DIR", str(molpcba))
    with pytest.raises(data.BadData, match="ogbg_molpcba"):
        small(FAMILY).check_data()


@pytest.mark.parametrize(
    ("name", "rows", "message"),
    [
        ("raw/node-feat.csv.gz", [[1] * 8] * 15, "8 columns; there should be 9"),
        ("raw/node-feat.csv.gz", [[300] * 9] * 15, "not 9 columns of uint8"),
        ("raw/node-feat.csv.gz", [[1] * 9] * 14, "14 rows; the other files ask for 15"),
        ("raw/edge.csv.gz", [[0, 3]] * 10, "a node that its graph has not"),
        ("raw/num-edge-list.csv.gz", [[2]] * 5, "5 rows; the other files ask for 6"),
        ("raw/graph-label.csv.gz", [["x"] * 128] * 6, "not 128 columns of float"),
        ("raw/graph-label.csv.gz", [[2] * 128] * 6, "a label is 0, 1 or empty"),
        ("split/scaffold/test.csv.gz", [[6]], "there is no graph 6; there are 6"),
        ("split/scaffold/train.csv.gz", [[0], [-1]], "there is no graph -1; there are 6"),
    ],
)
def test_a_malformed_file_is_named(molpcba: Path, name: str, rows: list[list[object]], message: str) -> None:
    write(molpcba / name, rows)
    with pytest.raises(data.BadData, match=message) as error:
        next(small(FAMILY).batches(0, 1))
    assert name.split("/")[1] in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_gzip_is_named(molpcba: Path) -> None:
    (molpcba / "raw/edge.csv.gz").write_bytes(b"0,1\n1,2\n")
    with pytest.raises(data.BadData, match=r"edge.csv.gz: not a gzipped table"):
        small(FAMILY).check_data()
    whole = (molpcba / "raw/node-feat.csv.gz").read_bytes()
    write(molpcba / "raw/edge.csv.gz", [[0, 1]] * 10)
    (molpcba / "raw/node-feat.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(data.BadData, match=r"node-feat.csv.gz"):
        next(small(FAMILY).batches(0, 1))
