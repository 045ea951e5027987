"""Made-up AlgoPerf log folders: one evaluation each 100 steps and 50 s, of the metric wer, target .1."""

import json

META = {
    "workload.target_metric_name": "wer",
    "workload.validation_target_value": 0.1,
    "workload.test_target_value": 0.05,
    "workload.step_hint": 1000,
    "workload.max_allowed_runtime_sec": 500,
    "workload.eval_period_time_sec": 50,
    "gpu_count": 8,
    "gpu_model_name": "Tesla V100-SXM2-16GB",
    "python_version": "3.8.10",
}
POINT = {"learning_rate": 0.01, "one_minus_beta1": 0.1, "beta2": 0.99, "weight_decay": 0.5, "warmup_factor": 0.05}
HEADER = [
    *("accumulated_eval_time", "accumulated_submission_time", "global_step", "test/wer", "total_duration"),
    *("validation/ctc_loss", "validation/num_examples", "validation/wer"),
]


def lines(wers, steps=None, seconds=None):
    """The text of an eval_measurements.csv: one evaluation each 100 steps and 50 s."""
    steps = steps or [100 * n for n in range(1, len(wers) + 1)]
    seconds = seconds or [step / 2 for step in steps]
    rows = [
        [3.0 * n, second, step, wer, second + 3.0 * n, wer * 10, 2472, wer]
        for n, (step, second, wer) in enumerate(zip(steps, seconds, wers, strict=True), start=1)
    ]
    return "".join(",".join(map(str, row)) + "\n" for row in [HEADER, *rows])


FALLING = [0.9, 0.3, 0.2, 0.1]  # meets .1 exactly, at the last evaluation
WHOLE = lines(FALLING)


def put(
    logs, text=None, submission="nadamw", round_=0, workload="wmt", trial=1, meta=META, point=POINT, framework="jax"
):
    """Writes one trial folder; its path."""
    folder = logs / submission / f"study_{round_}" / f"{workload}_{framework}" / f"trial_{trial}"
    folder.mkdir(parents=True)
    if meta is not None:
        (folder / "meta_data_0.json").write_text(json.dumps(meta))
    (folder / "hparams.json").write_text(json.dumps(point))
    if text != "":
        (folder / "eval_measurements.csv").write_text(lines(FALLING) if text is None else text)
    return folder
