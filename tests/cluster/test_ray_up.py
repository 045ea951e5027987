"""What users hand to `ray up`: against Ray's own schema and preparation, from the installed wheel; its commands run."""

import copy
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / "cluster" / "ray"
NAMES = ("aws", "gcp")
ECHO = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
print("arn:of:" + sys.argv[4] if "get-role" in sys.argv else "")
"""


def config(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return loaded


def checked(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` does before it speaks to the cloud."""
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    shipped = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(config, json.loads(shipped.read_text()))
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("name", NAMES)
def test_ray_up_takes_it(name: str) -> None:
    prepared = checked(config(name))
    types = prepared["available_node_types"]
    assert types[prepared["head_node_type"]]["resources"]["CPU"] == 0
    assert prepared["idle_timeout_minutes"] == 5
    workers = [one for key, one in types.items() if key != prepared["head_node_type"]]
    assert all(one["min_workers"] == 0 < one["max_workers"] <= prepared["max_workers"] for one in workers)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "wrong", [{"max_wokers": 2}, {"max_workers": "2"}, {"setup_commands": "pip install"}, {"head_node_type": "gone"}]
)
def test_the_check_refuses_what_is_wrong(name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        checked(config(name) | wrong)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("demand", "started"),
    [
        ([{"CPU": 1, "GPU": 1}] * 3, {"gpu": 3}),
        ([{"CPU": 2, "GPU": 0.25}] * 4, {"gpu": 1}),
        ([{"CPU": 8, "GPU": 8}], {"gpu8": 1}),
        ([{"CPU": 1}], {"gpu": 1}),
    ],
    ids=["a GPU each", "four on one", "eight at once", "none"],
)
def test_the_autoscaler_starts_what_waits(name: str, demand: list[dict[str, float]], started: dict[str, int]) -> None:
    from ray.autoscaler._private.node_provider_availability_tracker import NodeAvailabilitySummary
    from ray.autoscaler._private.resource_demand_scheduler import _default_utilization_scorer, get_nodes_for

    prepared = checked(config(name))
    types = prepared["available_node_types"]
    head = prepared["head_node_type"]
    scorer = partial(_default_utilization_scorer, node_availability_summary=NodeAvailabilitySummary({}))
    chosen, _ = get_nodes_for(types, {head: 1}, head, 8, demand, scorer)
    assert Counter(chosen) == started


@pytest.mark.parametrize("name", NAMES)
def test_workers_are_spot_and_use_the_bucket_by_a_role_and_the_head_is_not_spot(name: str) -> None:
    types = {key: one["node_config"] for key, one in config(name)["available_node_types"].items()}
    role, spot = (
        ("IamInstanceProfile", ("InstanceMarketOptions", "MarketType", "spot"))
        if name == "aws"
        else ("serviceAccounts", ("scheduling", "provisioningModel", "SPOT"))
    )
    key, inner, value = spot
    assert key not in types["head"]
    for worker in ("gpu", "gpu8"):
        assert types[worker][key][inner] == value
        assert types[worker][role]


def run(command: str, folder: Path) -> list[list[str]]:
    """What a command of the file calls, by stand-ins; /home/ray is `folder`."""
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for tool in ("sudo", "pip", "ray", "docker", "aws"):
        (tools / tool).write_text(ECHO)
        (tools / tool).chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "CALLS": str(calls), "HOME": str(folder), "RAY_HEAD_IP": "10.0.0.7"}
    subprocess.run(["bash", "-ec", command.replace("/home/ray", str(folder))], env=env, check=True)
    return [json.loads(line) for line in calls.read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_run(name: str, tmp_path: Path) -> None:
    """Each in a shell; what they ask of `ray start` is parsed by its own command line."""
    from ray.scripts.scripts import start

    loaded = config(name)
    (mounted,) = loaded["file_mounts"]
    files = tmp_path / Path(mounted).name
    files.mkdir()
    (files / "auth_token").write_text("secret")
    (files / "wa_sweeps-0.1.0-py3-none-any.whl").write_text("")
    calls = [
        words
        for key in ("initialization_commands", "setup_commands", "head_setup_commands")
        for command in loaded[key]
        for words in run(command, tmp_path)
    ]
    assert ["sudo", "install", "-d", "-m", "1777", "/runs"] in calls
    assert any(str(files / "wa_sweeps-0.1.0-py3-none-any.whl") in words for words in calls if words[0] == "pip")
    token = tmp_path / ".ray" / "auth_token"
    assert token.read_text() == "secret"
    assert token.stat().st_mode & 0o777 == 0o600
    started = {}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        stop, begin = [words for command in loaded[key] for words in run(command, tmp_path)]
        assert stop == ["ray", "stop"]
        assert "RAY_AUTH_MODE=token ray start" in loaded[key][1]
        started[key] = start.make_context("ray start", begin[2:]).params
    head, worker = started.values()
    assert head["head"]
    assert head["dashboard_host"] == "127.0.0.1", "reached through ssh alone"
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml", "Ray expands it itself"
    assert worker["address"] == f"10.0.0.7:{head['port']}"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_to_be_replaced_is_told(name: str) -> None:
    lines = [line.split("#")[0] for line in (FOLDER / f"{name}.yaml").read_text().splitlines()]
    left = {word for line in lines for word in re.findall(r"[\w-]*REPLACE[\w-]*", line)}
    page = (FOLDER.parents[1] / "docs" / "cluster" / f"{name}.md").read_text()
    assert left
    assert all(word in page for word in left)


def test_the_roles_of_aws_reach_one_bucket_and_pass_one_role(tmp_path: Path) -> None:
    calls = run(f"bash {shlex.quote(str(FOLDER / 'aws_roles.sh'))} mine", tmp_path)
    documents = [
        (words[words.index("--role-name") + 1], json.loads(words[words.index("--policy-document") + 1]))
        for words in calls
        if "--policy-document" in words
    ]
    said = {
        (role, action, resource)
        for role, document in documents
        for one in document["Statement"]
        for action in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"])
        for resource in [one["Resource"]]
    }
    assert ("wa-node", "s3:PutObject", "arn:aws:s3:::mine/*") in said
    assert ("wa-head", "iam:PassRole", "arn:of:wa-node") in said
    assert {action.split(":")[0] for role, action, _ in said if role == "wa-node"} == {"s3"}
    assert {resource.split("/")[0] for role, _, resource in said if role == "wa-node"} == {"arn:aws:s3:::mine"}
    made = [words for words in calls if "create-role" in words]
    assert [words[words.index("--role-name") + 1] for words in made] == ["wa-node", "wa-head"]
    assert all(json.loads(words[words.index("--assume-role-policy-document") + 1]) for words in made)
