"""AlgoPerf logs with files that are broken, hostile or missing: refused in one line, or made do with and said."""

import gzip
import json
import math
import os
import pickle
import signal
from pathlib import Path

import pytest
from algoperf_logs import META, WHOLE, lines, put

from analysis.run_folder import records
from sweeps.importers import algoperf_tables
from sweeps.importers.algoperf import BadLogs, import_algoperf


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def run(tmp_path):
    return tmp_path / "runs" / "imported"


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["hparams.json", "meta_data_0.json"])
def test_a_pickle_under_a_json_name_is_refused_never_loaded(logs, run, tmp_path, name, protocol):
    folder = put(logs)
    trace = tmp_path / "loaded"
    (folder / name).write_bytes(pickle.dumps(Bomb(trace), protocol=protocol))
    with pytest.raises(BadLogs, match=name):
        import_algoperf(logs, run)
    assert not trace.exists()
    pickle.loads((folder / name).read_bytes())  # the bomb is live: loading it would have left its trace
    assert trace.exists()


def _csv(text):
    return lambda folder: (folder / "eval_measurements.csv").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )


def _meta(**changes):
    meta = {**META, **{f"workload.{name}": value for name, value in changes.items()}}
    return lambda folder: (folder / "meta_data_0.json").write_text(json.dumps(meta))


def _json(text, name="hparams.json"):
    return lambda folder: (folder / name).write_bytes(text)


def _linked(folder):
    (folder / "eval_measurements.csv").unlink()
    os.symlink("/etc/hostname", folder / "eval_measurements.csv")


def _pipe(folder):
    (folder / "eval_measurements.csv").unlink()
    os.mkfifo(folder / "eval_measurements.csv")


def _large(name):
    return lambda folder: os.truncate(folder / name, 2**26)


def _bomb(folder):
    (folder / "eval_measurements.csv").unlink()
    (folder / "eval_measurements.csv.gz").write_bytes(gzip.compress(b"\n" * 2**24))


REFUSED = {
    "linked file": (_linked, "not a plain file"),
    "a pipe": (_pipe, "not a plain file"),
    "CSV too large": (_large("eval_measurements.csv"), "67,108,864 bytes"),
    "CSV too large unpacked": (_bomb, "more than 8,388,608 bytes unpacked"),
    "JSON too large": (_large("hparams.json"), "67,108,864 bytes"),
    "JSON too deep": (_json(b"[" * 200_000), "not a JSON object"),
    "JSON list": (_json(b"[1]"), "not a JSON object"),
    "two targets": (_meta(validation_target_value=0.2), "another target"),
}


@pytest.mark.parametrize(("break_it", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_with_one_line_and_the_path(logs, run, break_it, says):
    put(logs, round_=0)
    folder = put(logs, round_=1)
    break_it(folder)
    with pytest.raises(BadLogs) as caught:
        import_algoperf(logs, run)
    text = str(caught.value)
    assert says in text
    assert text.startswith(str(folder))
    assert "\n" not in text
    assert len(text) < len(str(folder)) + 250
    assert not run.parent.exists() or not list(run.parent.iterdir())


LEAVES_ITSELF_OUT = {  # how it is broken, and what the note says
    "column global_step missing": (_csv(WHOLE.replace("global_step", "step")), "'global_step' is missing"),
    "metric missing": (_csv(WHOLE.replace("validation/wer", "v")), "'validation/wer' is missing"),
    "seconds missing": (_csv(WHOLE.replace("accumulated_submission_time", "t")), "time' is missing"),
    "column twice": (_csv(WHOLE.replace("total_duration", "global_step")), "stands twice"),
    "not text": (_csv(b"\xff\xfe\x00" + WHOLE.encode()), "not text in UTF-8"),
    "unknown metric": (_meta(target_metric_name="vibes"), "unknown metric 'vibes'; allowed: loss"),
}


@pytest.mark.parametrize(("break_it", "says"), LEAVES_ITSELF_OUT.values(), ids=LEAVES_ITSELF_OUT.keys())
def test_a_trial_that_cannot_be_used_leaves_itself_out_with_a_note(logs, run, break_it, says):
    put(logs)
    folder = put(logs, workload="ogbg")
    break_it(folder)
    done = import_algoperf(logs, run)
    assert done.num_trials == 1
    assert done.left_out == {"of trials that were left out": 4}
    assert done.num_read == 8
    (note,) = done.notes
    assert note.startswith("Left out, ")
    assert says in note
    assert "nadamw/study_0/ogbg_jax/trial_1" in note
    (folder / "eval_measurements.csv").write_text(WHOLE)
    (folder / "meta_data_0.json").write_text(json.dumps(META))
    assert import_algoperf(logs, run.with_name("whole")).num_trials == 2


MADE_DO = {  # how, what the note says, evaluations left of 4
    "empty file": (_csv(""), "Never evaluated, a miss each: 1 trial", 0),
    "header only": (_csv(lines([])), "Never evaluated, a miss each: 1 trial", 0),
    "header torn": (_csv("global_step,accum"), "1 line torn", 0),
    "a line short inside": (_csv(WHOLE.replace("2472,0.3\n", "2472\n")), "1 line torn", 3),
    "not a number": (_csv(WHOLE.replace(",300,", ",three,")), ".csv:4: left out", 3),
    "not quite a number": (_csv(WHOLE.replace(",300,", ",3_00,")), ".csv:4: left out", 3),
    "half a step": (_csv(WHOLE.replace(",300,", ",300.5,")), ".csv:4: left out", 3),
    "a step NaN": (_csv(WHOLE.replace(",300,", ",,")), ".csv:4: left out", 3),
    "steps beyond counting": (_csv(WHOLE.replace(",300,", ",1e300,")), ".csv:4: left out", 3),
    "seconds negative": (_csv(WHOLE.replace(",150.0,", ",-150.0,")), ".csv:4: left out", 3),
    "seconds NaN": (_csv(WHOLE.replace(",150.0,", ",nan,")), ".csv:4: left out", 3),
    "the metric no number": (_csv(WHOLE.replace("2472,0.3", "2472,high")), ".csv:3: left out", 3),
    "another cell no number": (_csv(WHOLE.replace(",3.0,", ",much,")), "1 cell beside the target", 4),
    "a field without end": (_csv(WHOLE + '"' + "x" * 200_000 + "\n"), "1 line torn", 4),
    "JSON torn": (_json(b'{"learning_rate": 0.0'), "hparams.json: not JSON", 4),
    "no metadata": (lambda folder: (folder / "meta_data_0.json").unlink(), "meta_data_0.json: missing", 4),
    "metadata torn": (_json(b'{"gpu_count": 8', "meta_data_0.json"), "meta_data_0.json: not JSON", 4),
    "metadata empty": (_json(b"", "meta_data_0.json"), "meta_data_0.json: not JSON", 4),
    "metric not a name": (_meta(target_metric_name=3), "target_metric_name is '3', not a name", 4),
    "target not a number": (_meta(validation_target_value="0.1"), "validation_target_value is '0.1'", 4),
    "target NaN": (_meta(validation_target_value=math.nan), "validation_target_value is 'nan'", 4),
    "no step hint": (_meta(step_hint=0), "not a number ≥ 1", 4),
    "runtime infinite": (_meta(max_allowed_runtime_sec=math.inf), "max_allowed_runtime_sec", 4),
}


@pytest.mark.parametrize(("break_it", "says", "left"), MADE_DO.values(), ids=MADE_DO.keys())
def test_a_broken_file_is_made_do_with_and_the_note_says_so(logs, run, break_it, says, left):
    put(logs, round_=0)
    break_it(put(logs, round_=1))
    done = import_algoperf(logs, run)
    assert any(says in note for note in done.notes)
    assert records.load_cells(run)["target"].tolist() == [0.1, 0.1]
    counts = records.load_records(run).query("split == 'validation'").groupby("cell_id").size()
    assert counts.get("nadamw.study1.wmt_jax.trial1", 0) == left
    assert done.num_read == done.num_recorded + sum(done.left_out.values())
    assert len(done.notes) <= 2


def test_what_a_killed_import_left_is_removed_by_the_next(logs, run):
    put(logs)
    run.parent.mkdir()
    child = os.fork()
    if child == 0:  # killed while it writes
        algoperf_tables.write = lambda new, *_: os.kill(os.getpid(), signal.SIGKILL)
        import_algoperf(logs, run)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert [path.name for path in run.parent.iterdir()] == [f".algoperf.{child}.new"]
    import_algoperf(logs, run)
    assert list(run.parent.iterdir()) == [run]
