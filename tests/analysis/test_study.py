import numpy as np
import pyarrow.parquet as pq
import pytest

from analysis.run_folder import study
from analysis.run_folder.records import BadRun


def test_settings_are_cells_without_their_seed(make_run):
    cells = study.read(make_run()).cells
    assert cells["setting"].nunique() == 2 * 3 * 11
    assert (cells.groupby("setting")["seed"].nunique() == 3).all()
    assert (cells.groupby("setting")["training"].nunique() == 1).all()
    assert cells["training"].nunique() == 6


def test_numbers_do_not_depend_on_the_order_of_rows(make_run):
    run = make_run()
    before = study.read(run).cells
    table = pq.read_table(run / "cells.parquet")
    order = np.random.default_rng(0).permutation(len(table))
    pq.write_table(table.take(order), run / "cells.parquet")
    after = study.read(run).cells
    columns = ["cell_id", "training", "averaging", "setting", "training_label", "scheme_label"]
    assert before[columns].equals(after[columns])


def test_labels_are_unique_within_a_workload(make_run, average):
    same_horizon = [average("ema", 0.02, 0.9, every=2), average("ema", 0.02, 0.9, every=4)]
    cells = study.read(make_run(averages=same_horizon)).cells
    one = cells[cells["workload"] == "lm"].drop_duplicates("averaging")
    assert one["scheme_label"].nunique() == len(one) == 3
    assert any("every 4" in label for label in one["scheme_label"])
    trainings = cells[cells["workload"] == "lm"].drop_duplicates("training")
    assert trainings["training_label"].nunique() == 3


def test_a_merge_is_named_by_the_decay_it_emulates_and_a_batch_by_its_size(make_run, average):
    run = make_run(lengths=[1.0], averages=[average("wsm", 0.27, 0.9, every=10), average("ema", 0.02, 0.9)])
    table = pq.read_table(run / "cells.parquet")
    rows = table.to_pylist()
    for row in rows:
        row |= {"k": 20, "curve": "sqrt"} if row["scheme"] == "wsm" else {}  # 200 of 1,000 steps
    others = []
    for cosine, batch in ((True, None), (False, 4), (False, 16)):
        for row in rows:
            if row["scheme"] == "wsm" or not cosine:
                name = f"{row['cell_id']} {cosine} {batch}"
                curve = "cosine" if cosine else row["curve"]
                others.append({**row, "cell_id": name, "curve": curve, "batch_size": batch})
    every = [{**row, "own_batch_size": 8} for row in rows + others]
    pq.write_table(type(table).from_pylist(every, schema=table.schema), run / "cells.parquet")
    cells = study.read(run).cells
    assert set(cells["scheme_label"]) == {"no averaging", "EMA 2 %", "WSM sqrt 20 %", "WSM cosine 20 %"}
    assert set(cells["training_label"]) == {"cosine, batch 4", "cosine, batch 8", "cosine, batch 16"}
    assert cells.groupby("training")["setting"].nunique().tolist() == [3, 3, 4] * 2  # null last, curves apart


def test_progress(make_run):
    run = make_run(
        lengths=[0.5, 1.0],
        stop={"lm-1.0-0": 400},
        diverge={"lm-1.0-1": 300},
        missing=("lm-1.0-2",),
    )
    cells = study.read(run).cells.drop_duplicates("trajectory_id").set_index("trajectory_id")
    assert cells.loc["lm-1.0-0", ["state", "last_step"]].tolist() == ["unfinished", 400]
    assert cells.loc["lm-1.0-1", ["state", "last_step"]].tolist() == ["diverged", 300]
    assert cells.loc["lm-1.0-2", ["state", "last_step"]].tolist() == ["unfinished", 0]
    assert cells.loc["lm-0.5-0", ["state", "last_step"]].tolist() == ["finished", 500]


def test_two_presets_of_a_workload_never_mix(make_run):
    run = make_run(lengths=[1.0])
    table = pq.read_table(run / "cells.parquet")
    rows = table.to_pylist()
    for row in rows:
        if row["workload"] == "lm" and row["seed"] == 2:
            row["preset"] = "full"
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), run / "cells.parquet")
    assert set(study.read(run).cells["workload"]) == {"imagenet_vit", "lm (mini)", "lm (full)"}


def test_not_a_run_folder(tmp_path):
    with pytest.raises(BadRun, match=r"no cells\.parquet"):
        study.read(tmp_path)


@pytest.mark.parametrize(("share", "text"), [(0.01, "1 %"), (0.0102, "1 %"), (0.125, "12 %"), (1.0, "100 %")])
def test_percent(share, text):
    assert study.percent(share) == text


def test_lr_decay_lengths_are_told_apart_by_name(make_run):
    run = make_run(lengths=[0.5, 1.0])
    table = pq.read_table(run / "cells.parquet")
    rows = table.to_pylist()
    for row in rows:
        row |= {"schedule": "linear", "lr_decay": row["length_fraction"] / 5, "length_fraction": 1.0}
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), run / "cells.parquet")
    cells = study.read(run).cells
    assert set(cells["training_label"]) == {"linear, LR decay 10 %", "linear, LR decay 20 %"}


def test_a_run_is_finished_by_its_records_where_trials_are_not_written_yet(make_run):
    run = make_run(lengths=[0.5, 1.0], stop={"lm-1.0-0": 980})
    (run / "trials.parquet").unlink()
    cells = study.read(run).cells.drop_duplicates("trajectory_id").set_index("trajectory_id")
    assert (cells["state"] == "unfinished").sum() == 1
    assert cells.loc["lm-1.0-0", "state"] == "unfinished"
