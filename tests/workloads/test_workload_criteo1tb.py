"""DLRM, the flights of `mini` and AlgoPerf's text files of `full`, against naive readings of the same things."""

from __future__ import annotations

import dataclasses
import io
import itertools
import lzma
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from full_data import line, small

from workloads import data
from workloads.criteo1tb import CATEGORIES, DLRM, PRESETS, Clicks, Flights, Rows, area_under_curve, flights, mixed
from workloads.criteo1tb_files import VOCABULARIES, files, fingerprint, located, parse, read_lines
from workloads.protocol import Part

FAMILY = "criteo1tb"
SMALL = small(FAMILY)
MINI, FULL = PRESETS["mini"], PRESETS["full"]
assert isinstance(MINI, Flights)
assert isinstance(FULL, Clicks)
MASK = 2**64 - 1


# --- the model ---------------------------------------------------------------------------------------------------


def test_logit_is_the_top_of_all_dot_products() -> None:
    torch.manual_seed(0)
    model = DLRM(3, 4, table_rows=11, bottom=(6, 5), top=(7, 1), dropout=0.0).double().eval()
    numbers, ids = torch.randn(9, 3, dtype=torch.float64), torch.randint(11, (9, 4), dtype=torch.int32)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return weights[f"{name}.weight"] @ x + weights[f"{name}.bias"]

    with torch.no_grad():
        logits = model(numbers, ids).numpy()
    for i in range(9):
        first = layer("bottom.2", layer("bottom.0", numbers[i].numpy()).clip(0)).clip(0)
        vectors = [first, *(weights["table.weight"][j] for j in ids[i])]
        products = [vectors[a] @ vectors[b] for a in range(5) for b in range(a, 5)]
        (expected,) = layer("top.3", layer("top.0", np.array([*first, *products])).clip(0))
        assert logits[i] == pytest.approx(expected, rel=1e-10)


def test_initial_weights_are_algoperfs() -> None:
    torch.manual_seed(0)
    model = DLRM(13, 26, table_rows=40_000, bottom=(512, 256, 128), top=(1024, 512, 1), dropout=0.0)
    table = model.table.weight.detach() * math.sqrt(40_000)
    assert 0 <= table.min() < 1e-4
    assert 1 - 1e-4 < table.max() <= 1
    assert table.mean().item() == pytest.approx(0.5, abs=1e-3)
    second = model.bottom[2]
    limit = math.sqrt(6 / (512 + 256))
    assert second.weight.abs().max().item() == pytest.approx(limit, rel=1e-3)
    assert second.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.01)
    assert second.bias.std().item() == pytest.approx(256**-0.5, rel=0.15)
    hidden = model.top[2]
    assert hidden.weight.std().item() == pytest.approx(math.sqrt(2 / (1024 + 512)), rel=0.01)
    assert hidden.bias.std().item() == pytest.approx(512**-0.5, rel=0.15)


def test_dropout_zeroes_a_share_of_the_last_hidden_layer() -> None:
    torch.manual_seed(0)
    model = DLRM(2, 1, table_rows=3, bottom=(2,), top=(8, 1000, 1), dropout=0.1)
    seen: list[torch.Tensor] = []
    model.top[-1].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    arguments = torch.randn(50, 2), torch.zeros(50, 1, dtype=torch.int32)
    for train in (True, False):
        model.train(train)(*arguments)
    dropped = (seen[0] == 0) & (seen[1] > 0)
    assert dropped.float().sum() / (seen[1] > 0).float().sum() == pytest.approx(0.1, abs=0.01)
    assert torch.allclose(seen[0][~dropped], seen[1][~dropped] / 0.9)


# --- both ----------------------------------------------------------------------------------------------------------


def test_loss_is_the_mean_cross_entropy() -> None:
    torch.manual_seed(0)
    model, batch = MINI.model().eval(), next(MINI.batches(0, 1))
    with torch.no_grad():
        chance = torch.sigmoid(model(batch.numbers, batch.ids).double())
        loss = MINI.loss(model, batch).item()
    of_label = torch.where(batch.labels == 1, chance, 1 - chance)
    assert loss == pytest.approx(-of_label.log().mean().item(), rel=1e-5)


def test_area_under_curve_counts_ordered_pairs() -> None:
    torch.manual_seed(0)
    labels, scores = torch.randint(2, (60,)), torch.randint(9, (60,)).float()
    pairs = [(p, n) for p in scores[labels == 1].tolist() for n in scores[labels == 0].tolist()]
    expected = sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)
    assert area_under_curve(labels, scores) == pytest.approx(expected)
    assert math.isnan(area_under_curve(torch.ones(5, dtype=torch.int64), torch.randn(5)))
    assert math.isnan(area_under_curve(labels, scores / 0))


def test_auc_is_beside_the_loss_where_asked_for() -> None:
    model, batch = MINI.model().eval(), next(MINI.batches(0, 1))
    for auc in (True, False):
        workload = dataclasses.replace(MINI, auc=auc)
        with torch.no_grad():
            sums = workload.eval_step(model, batch)
        summary = workload.summarize(sums)
        assert set(summary.metrics) == ({"auc"} if auc else set())
        assert summary.metric == summary.loss


# --- mini: flights -------------------------------------------------------------------------------------------------


def test_mixed_is_splitmix64() -> None:
    for value in (0, 1, 2**63 + 12345, MASK):
        z = value
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        assert mixed(np.array([value], np.uint64)).item() == z ^ (z >> 31)


def test_flights_are_the_files_rows() -> None:
    with np.load(io.BytesIO(lzma.decompress(data.path("criteo1tb.npz.xz").read_bytes()))) as file:
        columns = {name: file[name] for name in file.files}
    split = flights(4096)
    assert {name: len(arrays[-1]) for name, arrays in split.items()} == {"train": 294_578, "validation": 32_768}
    for name, value in (("train", 0), ("validation", 1)):
        numbers, ids, labels = split[name]
        chosen = np.flatnonzero(columns["held_out"] == value)
        assert np.array_equal(labels, columns["late"][chosen])
        assert numbers.dtype == np.float32
        assert ids.dtype == np.int32
        assert 0 <= ids.min() < ids.max() < 4096
        for i in random.Random(0).sample(range(len(chosen)), 50):
            row = chosen[i]
            day, origin = int(columns["day"][row]), int(columns["origin"][row])
            period = CATEGORIES.index("day_period")
            key = (period << 32) + day * 8 + int(columns["departure"][row]) // 180
            assert ids[i, period] == mixed(np.array([key], np.uint64)).item() % 4096
            tail = columns["tailnum"][row]
            year = columns["plane_year"][columns["tailnum"]].astype(float)[columns["held_out"] == 0]
            expected = (float(columns["plane_year"][tail]) - year.mean()) / year.std()
            assert numbers[i, 3] == pytest.approx(expected, abs=1e-4)
            wet = columns["weather"][6][origin, day, columns["departure"][row] // 60]
            same = numbers[i, 11] == split["train"][0][:, 11]
            assert same.any()
            assert (wet > 0) == (numbers[i, 11] > split["train"][0][:, 11].min())


def test_validation_is_as_the_training_flights_are() -> None:
    """A random split: no shift of the base rate beyond chance, and days in both."""
    train, validation = (flights(4096)[name][2].mean() for name in ("train", "validation"))
    assert abs(train - validation) < 4 * math.sqrt(train * (1 - train) / 32_768)


def test_mini_trains_on_training_flights_only() -> None:
    numbers = flights(4096)["train"][0]
    batch = next(MINI.batches(3, 1))
    for row in batch.numbers.numpy()[:8]:
        assert (numbers == row).all(axis=1).any()


# --- full: AlgoPerf's files ----------------------------------------------------------------------------------------


def numbers_of(batch: Rows) -> list[int]:
    return [round(math.expm1(x)) for x in batch.numbers[:, 0].tolist()]


def test_fingerprint_is_farmhashs() -> None:
    """Values of FarmHash's own code (the package cityhash 0.4.10)."""
    for text, expected in {
        "68fd1e640": 9066014191666271819,
        "68fd1e6425": 1716711955746752302,
        "0000000012": 13407846318489110114,
        "a1b2c3d49": 3829539022539658361,
    }.items():
        digits = np.frombuffer(text[:8].encode(), "<u8")
        assert fingerprint(digits, text[8:].encode()).item() == expected


def test_parse_reads_as_algoperf_does() -> None:
    """By its input pipeline: '' and −1 are missing, integers log(1 + max(x, 0)), ids through float32."""
    rng = random.Random(1)
    lines = [line(i, rng) for i in range(40)]
    numbers, ids, labels = parse(Path("day"), "\n".join(lines).encode(), table_rows=4_194_304)
    for i, text in enumerate(lines):
        label, *rest = text.split("\t")
        assert labels[i] == int(label)
        for j, integer in enumerate(rest[:13]):
            assert numbers[i, j] == pytest.approx(math.log1p(max(int(integer or 0), 0)), rel=1e-6)
        for j, digits in enumerate(rest[13:]):
            bucket = fingerprint(np.frombuffer((digits or "0" * 8).encode(), "<u8"), str(j).encode()).item()
            assert ids[i, j] == int(np.float32(bucket % VOCABULARIES[j])) % 4_194_304


def test_lines_are_found_from_any_byte_and_wrap(tmp_path: Path) -> None:
    rng, path = random.Random(2), tmp_path / "text"
    for end in ("\n", ""):
        lines = ["x" * rng.randrange(6) + str(i) for i in range(20)]
        text = "\n".join(lines) + end
        path.write_text(text, encoding="ascii")
        begins = [0, *(i + 1 for i, char in enumerate(text) if char == "\n" and i + 1 < len(text))]
        for _ in range(200):
            start = rng.randrange(len(text))
            first = rng.randrange(20)
            stop = rng.randrange(first + 1, 21)
            base = sum(begin < start for begin in begins)
            expected = [lines[(base + i) % 20] for i in range(first, stop)]
            assert read_lines(path, start, first, stop).decode().splitlines() == expected


def test_an_epoch_has_every_line_once_and_the_next_another_order(folder: Path) -> None:
    epochs = [
        [numbers_of(batch) for batch in itertools.islice(SMALL.batches(0, 1 + 48 * epoch), 48)] for epoch in range(2)
    ]
    for batches in epochs:
        assert sorted(itertools.chain.from_iterable(batches)) == list(range(240))
        assert all(batch == list(range(batch[0], batch[0] + SMALL.batch_size)) for batch in batches)
    assert epochs[0] != epochs[1]
    assert numbers_of(next(SMALL.batches(0, 60))) == epochs[1][11]
    assert numbers_of(next(SMALL.batches(1, 1))) != epochs[0][0]


def test_evaluation_has_every_line_of_its_files_once(folder: Path) -> None:
    """By AlgoPerf's input pipeline the first 19 files of day 23 are the test set, the other 17 validation."""
    for split, expected in (("test", range(240, 430)), ("validation", range(430, 600))):
        batches = [numbers_of(batch) for batch in SMALL.eval_batches(split)]
        assert list(itertools.chain.from_iterable(batches)) == list(expected)
        parts = [[numbers_of(b) for b in SMALL.eval_batches(split, Part(i, 3))] for i in range(3)]
        assert [batches[i::3] for i in range(3)] == parts
    fewer = dataclasses.replace(SMALL, num_eval_files=2).eval_batches("validation")
    assert sum(len(batch.labels) for batch in fewer) == 20
    with pytest.raises(ValueError, match="validation and test"):
        SMALL.eval_batches("tset")


def test_lines_of_any_length_are_evaluated_once(tmp_path: Path) -> None:
    rng = random.Random(3)
    path = tmp_path / "day_23_19"
    lines = [line(i, rng) for i in range(100)]
    path.write_text("\n".join(lines), encoding="ascii")
    for number in range(20, 36):
        (tmp_path / f"day_23_{number}").write_text(line(0, rng) + "\n", encoding="ascii")
    first = files(tmp_path, "validation", 7)[0]
    assert 10 < first.num_stretches < 20
    seen = [i for k in range(first.num_stretches) for i in numbers_of(SMALL.eval_batch([first], k))]
    assert seen == list(range(100))
    assert located([first, first], first.num_stretches + 3) == (first, 3)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("day_7_00", None, "no such file"),
        ("day_23_21", None, "no such file"),
        ("day_23_03", "", "empty"),
        ("day_9_00", "1\t2\t3\n", "Expected 40 columns, got 3"),
        ("day_9_00", line(2, random.Random(0)).replace("\t", ",") + "\n", "Expected 40 columns"),
        ("day_23_30", "2" + line(2, random.Random(0), 4)[1:] + "\n", "label"),
        ("day_0_00", line(2, random.Random(0), 4)[:-3] + "\n", "8"),
        ("day_0_00", line(2, random.Random(0), 4).replace("15", "x5") + "\n", "int64"),
    ],
)
def test_bad_data_is_named(own_folder: Path, name: str, content: str | None, message: str) -> None:
    path = own_folder / name
    path.unlink()
    if content is not None:
        path.write_text(content * (10 if content else 1), encoding="ascii")
    with pytest.raises(data.BadData, match=message) as caught:
        SMALL.check_data()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_malformed_line_in_the_middle_is_bad_data(own_folder: Path) -> None:
    path = own_folder / "day_23_19"
    lines = path.read_text(encoding="ascii").splitlines()
    lines[6] = lines[6][:-20]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    SMALL.check_data()  # it reads each file's first line only
    with pytest.raises(data.BadData, match="day_23_19"):
        list(SMALL.eval_batches("validation"))


def test_no_folder_is_bad_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    with pytest.raises(data.BadData, match="day_23_35"):
        SMALL.batches(0, 1)


def test_files_too_small_for_a_batch_are_named(folder: Path) -> None:
    with pytest.raises(data.BadData, match="no train file has a batch of 11 lines"):
        files(folder, "train", 11)


def test_mini_is_small() -> None:
    assert sum(parameter.numel() for parameter in MINI.model().parameters()) == 78_417
