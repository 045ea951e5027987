"""The pages on clusters: their commands exist, with those options; what they name lies there."""

import re
import shlex
from pathlib import Path

import click
import pytest

REPO = Path(__file__).parents[2]
PAGES = [REPO / "docs" / "cluster.md", *sorted((REPO / "docs" / "cluster").glob("*.md"))]
ASSIGNED = re.compile(r"^[A-Z_]+=")


def typed(page: Path) -> list[str]:
    """The lines of the page's commands, continued ones joined, and what stands alone between backticks."""
    text = page.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + re.findall(r"`([^`\n]+)`", text.replace("```", ""))


def commands(page: Path) -> list[list[str]]:
    """Each command's words: pipes, `&&` and what is exported apart; of `ray exec` and `kubectl exec` what they run."""
    found = []
    for line in typed(page):
        try:
            words = shlex.split(line, comments=True)
        except ValueError:  # prose, or part of a here-document
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if word not in {";", "|", "&&", "&"}:
                command.append(word)
                continue
            if "--" in command:
                found.append(command[command.index("--") + 1 :])
            elif command[:2] == ["ray", "exec"]:
                found += [command, shlex.split(command[3])]
            else:
                found.append(command)
            command = []
    bare = [command[next((i for i, word in enumerate(command) if not ASSIGNED.match(word)), 0) :] for command in found]
    return [command for command in bare if command]


def unknown(command: list[str], group: click.Group) -> list[str]:
    """What a command line of `group` has that it does not take."""
    name = command[1]
    if name not in group.commands:
        return [name]
    inner = group.commands[name]
    if isinstance(inner, click.Group):
        return unknown(command[1:], inner)
    taken = {one for parameter in inner.params for one in (*parameter.opts, *parameter.secondary_opts)}
    return [word for word in command[2:] if re.match(r"-{1,2}[a-z]", word) and word.split("=")[0] not in taken]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_wa_takes_what_the_page_types(page: Path) -> None:
    from sweeps import cli

    ours = [command for command in commands(page) if command[0] == "wa" and len(command) > 1]
    assert ours
    assert {" ".join(command): unknown(command, cli.main) for command in ours if unknown(command, cli.main)} == {}


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem in {"aws", "gcp"}], ids=lambda page: page.stem)
def test_ray_takes_what_the_page_types(page: Path) -> None:
    from ray.scripts.scripts import cli

    theirs = [command for command in commands(page) if command[0] == "ray"]
    assert len(theirs) > 5
    assert {" ".join(command): unknown(command, cli) for command in theirs if unknown(command, cli)} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_the_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"(?<![\w/.])cluster/[a-z]+/[\w.]+", text):
        assert (REPO / path).exists() or (page.parent / path).exists(), path


def test_the_variables_of_the_batch_script_are_the_page_s() -> None:
    script = (REPO / "cluster" / "slurm" / "ray.sbatch").read_text()
    page = (REPO / "docs" / "cluster" / "slurm.md").read_text()
    lines = [line for line in page.splitlines() if " sbatch " in line and not line.startswith("|")]
    assert len(lines) == 4
    set_before = {name for line in lines for name in re.findall(r"\b([A-Z_]+)=", line.split(" sbatch ")[0])}
    assert set_before == {"STUDY", "RUN", "STORAGE"}
    for name in {*set_before, *re.findall(r"`([A-Z]+_[A-Z]+)\b", page)}:
        assert f"${{{name}" in script or f"${name}" in script, name
