"""`wa average`: the average of checkpoint files as a file."""

from __future__ import annotations

from pathlib import Path

import click

from sweeps.border import Told


@click.command()
@click.argument("checkpoints", metavar="CKPT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="New .safetensors file.")
@click.option("--lawa", is_flag=True, help="Their mean; so too without an option.")
@click.option("--ema", type=float, metavar="DECAY", help="An EMA over them: m ← DECAY·m + (1 − DECAY)·θ.")
@click.option("--weights", metavar="W,W,…", help="A weight each, in their order; divided by their sum.")
@click.option("--by-step", is_flag=True, help="Order them by the step in their names.")
@click.option("--step-pattern", metavar="REGEX", help=r"Where that step is, as a group: 'epoch_(\d+)'.")
def average(
    checkpoints: tuple[Path, ...],
    out: Path,
    lawa: bool,
    ema: float | None,
    weights: str | None,
    by_step: bool,
    step_pattern: str | None,
) -> None:
    """Average checkpoints of one model, oldest first, tensor by tensor.

    CKPT is a safetensors file, a torch file, or a folder with one of them or with shards and their index. Dtypes stay;
    integer tensors come from the last one. Nothing is written where names, shapes or dtypes differ.
    """
    from wa.checkpoint_files import in_order_of_steps
    from wa.files import average as average_files

    if lawa + (ema is not None) + (weights is not None) > 1:
        raise click.UsageError("--lawa, --ema and --weights at once; allowed: one of them")
    try:
        shares = None if weights is None else [float(one) for one in weights.split(",")]
    except ValueError:
        raise click.UsageError(f"--weights: got {weights!r}; allowed: numbers with commas, as in 1,2,1") from None
    try:
        paths = list(in_order_of_steps(checkpoints, step_pattern).values()) if by_step or step_pattern else checkpoints
        average_files(paths, out, ema=ema, weights=shares)
    except ValueError as error:
        raise Told(str(error)) from None
    click.echo(f"{out}: the average of {len(paths)} checkpoints")
