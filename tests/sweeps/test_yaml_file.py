"""YAML as specs are written: numbers of YAML 1.2, one document, nothing unfolded before it is counted."""

import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sweeps.blocks import SpecError
from sweeps.spec import load_spec
from sweeps.yaml_file import BadYaml, dump_yaml, parse_value

# Scalars and what the core schema of YAML 1.2.2 (section 10.3.2) makes of them.
SCALARS: dict[str, Any] = {
    "010": 10,
    "0o10": 8,
    "0x1F": 31,
    "-7": -7,
    "+7": 7,
    "007": 7,
    "09": 9,
    "-0": 0,
    "1e3": 1000.0,
    "1E3": 1000.0,
    "+1e3": 1000.0,
    "1e-3": 0.001,
    ".5": 0.5,
    "5.": 5.0,
    "1.5e+2": 150.0,
    ".inf": math.inf,
    "-.INF": -math.inf,
    "+.Inf": math.inf,
    "true": True,
    "True": True,
    "FALSE": False,
    "null": None,
    "~": None,
    "Null": None,
    "": None,
    **{text: text for text in ("yes", "no", "on", "off", "y", "1:30", "1_000", "0b11", "-0x1F", "2024-01-01", "=")},
    "'010'": "010",
    '"1e3"': "1e3",
    "! 12": "12",
    "!!str 12": "12",
    "!!int '12'": 12,
    "!!float 1": 1.0,
}


@pytest.mark.parametrize("text", SCALARS)
def test_a_scalar_is_what_yaml_1_2_says(text: str) -> None:
    value = parse_value(text)
    assert (type(value), value) == (type(SCALARS[text]), SCALARS[text])
    assert parse_value(f"[{text}]") == [SCALARS[text]] if text else True


def test_nan_is_a_number() -> None:
    assert math.isnan(parse_value(".nan"))


BOMB = "a: &a {x: 1, y: 2, z: 3}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join(['*' + a] * 10)}]}}\n"
    for a, b in zip("abcdefghijklmno", "bcdefghijklmnop", strict=True)
)
REFUSED = {
    "!!bool abc": "'abc' is no !!bool",
    "!!int x": "'x' is no !!int",
    "!!timestamp x": "tag !!timestamp is not allowed",
    "!!binary aGk=": "tag !!binary is not allowed",
    "!!set {a}": "tag !!set is not allowed",
    "!!python/object/apply:os.system [ls]": "tag !!python/object/apply:os.system is not allowed",
    "!mine 1": "tag !mine is not allowed",
    "&a [*a]": "stands inside itself",
    "*a": "undefined alias",
    "a: 1\n---\nb: 2": "another document",
    "1: 2": "a key must be a plain word, got 1",
    "null: 2": "a key must be a plain word, got None",
    "? [a]\n: 1": "a key must be a plain word",
    "{a: 1, a: 2}": "'a' stands twice",
    "{<<: 3}": "merges a mapping",
    "9" * 5000: "a number of 5,000 digits",
    "a: \x00": "U+0000",
    "\ud800": "U+D800",
    "[" * 100_000: "deeper than",
    "{a: " * 20_000: "deeper than",
    "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}]\n" for i in range(500)): "deeper than",
    BOMB: "unfolds to more than",
}


@pytest.mark.parametrize("text", REFUSED, ids=[text[:30] for text in REFUSED])
def test_what_is_no_spec_is_refused_in_a_line_and_at_once(text: str) -> None:
    began = time.process_time()
    with pytest.raises(BadYaml) as caught:
        parse_value(text)
    assert time.process_time() - began < 1
    assert str(caught.value).startswith("line ")
    assert REFUSED[text] in str(caught.value)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_merge_keys_and_aliases_are_copies() -> None:
    text = "a: &a {x: 1, y: [2]}\nb: {<<: *a, x: 3}\nc: *a\nd: {<<: [{x: 4}, *a], z: 5}\n"
    value = parse_value(text)
    assert value["b"] == {"x": 3, "y": [2]}
    assert value["d"] == {"x": 4, "y": [2], "z": 5}
    value["a"]["y"].append(9)  # as --set would change it: there alone
    assert [value[key]["y"] for key in "abcd"] == [[2, 9], [2], [2], [2]]


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**39), 10**39)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["C"], exclude_characters="\x85\u2028\u2029\ufeff"))
    | st.from_regex(r"[-+]?0?[0-9_:.xoe]{1,6}", fullmatch=True)
    | st.sampled_from(list(SCALARS)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcyes01", min_size=1), inner, max_size=4),
    max_leaves=12,
)


@given(PLAIN)
@example(-(10**39))  # the longest there may be: a sign is no digit
def test_what_is_written_reads_back_equal(value: Any) -> None:
    assert parse_value(dump_yaml(value)) == value


def test_a_study_with_a_secret_is_refused_with_its_line_and_not_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "planted-in-the-environment")
    study = tmp_path / "s.yaml"
    for text in ("question: planted-in-the-environment", f"# ghp_{'aB3d' * 9}"):
        study.write_text(f"study: s\n{text}\nworkloads: lm\naveraging: {{scheme: none}}\n")
        with pytest.raises(SpecError, match=r"holds .* \(line 2\)") as caught:
            load_spec(study)
        assert str(study) in str(caught.value)
        assert "planted" not in str(caught.value)
        assert "aB3d" not in str(caught.value)
    study.write_text("study: s\nworkloads: lm\naveraging: {scheme: none}\n")
    with pytest.raises(SpecError, match="--set: holds the value of MY_TOKEN") as caught:
        load_spec(study, ["question=is it planted-in-the-environment?"])
    assert "planted" not in str(caught.value)
