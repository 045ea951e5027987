"""What of a user's folder is sent to a cluster: code, and no keys, links or names that the job needs."""

from pathlib import Path

import pytest

from cluster.upload import SHOWN_FILES, SubmitError, listing, stage, staged


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "user code"
    (folder / "mypkg").mkdir(parents=True)
    (folder / "mypkg" / "mine.py").write_text("ANSWER = 42\n")
    return folder


def test_stage_refuses_what_cannot_travel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pattern: str, study: Path, working_dir: Path | None = None, *others: Path) -> None:
        target = tmp_path / pattern
        target.mkdir()
        with pytest.raises(SubmitError, match=pattern):
            stage([study, *others], target, working_dir)

    study = tmp_path / "s.yaml"
    study.write_text("study: s")
    code = tmp_path / "code"
    (code / "wa_study").mkdir(parents=True)
    refused("no such study", tmp_path / "absent.yaml")
    refused("no such folder", study, tmp_path / "absent")
    (code / "s.yaml").write_text("study: t")
    refused("two studies have this file name", study, None, code / "s.yaml")
    refused("no such study file", study, None, tmp_path / "absent.yaml")
    refused("of its own", study, code)
    monkeypatch.setattr("cluster.upload.CODE_LIMIT_MB", 0)
    (code / "big").write_text("x")
    refused("MB of code", study, code)


@pytest.mark.parametrize(
    ("name", "text", "is_key"),
    [
        ("server.pem", "", True),
        ("conf/prod.env", "", True),
        ("keys/id_rsa", "", True),
        ("ID_ED25519", "", True),
        ("credentials.json", "", True),
        ("gcp-service-account.json", "", True),
        ("gpg", f"  -----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{'lQVYBGXa' * 4}", True),
        ("train.py", f"login('hf_{'aB3d' * 9}')", True),
        ("windows.txt", f"hf_{'aB3d' * 9}".encode("utf-16").decode("latin-1"), True),
        ("of_this_shell.py", "x = 'planted in the environment'", True),
        ("notes.txt", "my key:\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl", True),
        ("deploy.py", "KEY = '''\n-----BEGIN RSA PRIVATE KEY-----\n'''", True),
        ("id_rsa.pub", "ssh-rsa AAAA", False),
        ("client_secrets.py", "import secrets", False),
        ("tokenizer.json", "{}", False),
        ("keyboard.txt", "-----BEGIN CERTIFICATE-----", False),
        (".env", "WANDB_API_KEY=secret", False),  # hidden: it stays behind
        (".aws/credentials", "secret", False),
    ],
)
def test_what_looks_like_a_key_is_refused_before_anything_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, is_key: bool
) -> None:
    code, study, target = tmp_path / "code", tmp_path / "s.yaml", tmp_path / "staged"
    study.write_text("study: s")
    target.mkdir()
    path = code / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="latin-1")
    (code / "mine.py").write_text("ANSWER = 42")
    monkeypatch.setenv("MY_TOKEN", "planted in the environment")
    if is_key:
        with pytest.raises(SubmitError, match=r"is named like a key|holds (a|the) ") as caught:
            stage([study], target, code)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not any(word in str(caught.value) for word in ("b3Bl", "lQVY", "aB3d", "planted"))
        (tmp_path / "asked").mkdir()
        stage([study], tmp_path / "asked", code, [path])
        assert set(staged(tmp_path / "asked")) == {"mine.py", "wa_study/s.yaml", name}
    else:
        stage([study], target, code)
        expected = {"mine.py", "wa_study/s.yaml"} | ({name} if not name.startswith(".") else set())
        assert set(staged(target)) == expected


def test_links_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    code, study, outside = tmp_path / "code", tmp_path / "s.yaml", tmp_path / "outside"
    for folder in (code / "pkg", outside, code / ".hidden"):
        folder.mkdir(parents=True)
    study.write_text("study: s")
    (outside / "passwords.txt").write_text("secret")
    (code / ".hidden" / "notes.txt").write_text("secret")
    (code / "pkg" / "real.py").write_text("x = 1")
    (code / "alias.py").symlink_to("pkg/real.py")
    (code / "dangling").symlink_to("nowhere")

    def staged_names(name: str) -> list[str]:
        (tmp_path / name).mkdir()
        stage([study], tmp_path / name, code)
        assert not [path for path in (tmp_path / name).rglob("*") if path.is_symlink()]
        return list(staged(tmp_path / name))

    assert staged_names("good") == ["alias.py", "pkg/real.py", "wa_study/s.yaml"]
    for i, (link, to, said) in enumerate(
        (
            ("innocent.txt", outside / "passwords.txt", "outside the folder"),
            ("data", outside, "outside the folder"),
            ("up", "..", "outside the folder"),
            ("again", "pkg", "a link to a folder"),
            ("loop", ".", "a link to a folder"),
            ("shown.txt", ".hidden/notes.txt", "which is hidden"),
            ("key.py", "pkg/id_rsa", "is named like a key"),
        )
    ):
        (code / "pkg" / "id_rsa").unlink(missing_ok=True)
        if said == "is named like a key":
            (code / "pkg" / "id_rsa").write_text("x")
        (code / link).symlink_to(to)
        with pytest.raises(SubmitError, match=said) as caught:
            staged_names(f"bad{i}")
        assert "\n" not in str(caught.value)
        assert "passwords" not in " ".join(staged(tmp_path / f"bad{i}"))
        (code / link).unlink()


@pytest.mark.parametrize(
    "name", ["analysis.py", "sweeps/__init__.py", "cluster/x.py", "queue.py", "torch.py", "yaml/a.py"]
)
def test_a_module_named_like_one_that_the_job_needs_is_refused(name: str, code: Path, tmp_path: Path) -> None:
    """Ray puts the folder that is sent before everything else that Python searches, in every process of the job."""
    (code / name).parent.mkdir(exist_ok=True)
    (code / name).write_text("RESULTS = {}")
    study = tmp_path / "s.yaml"
    study.write_text("study: s")
    (tmp_path / "staging").mkdir()
    with pytest.raises(SubmitError, match="stand in for the module") as told:
        stage([study], tmp_path / "staging", code)
    assert str(code / name.partition("/")[0]) in str(told.value)


def test_other_names_travel(code: Path, tmp_path: Path) -> None:
    """Data in a folder called like a module of ours is no module, and `mypkg.analysis` is nobody's but the user's."""
    for name in ("results.py", "mypkg/analysis.py", "analysis/table.csv"):
        (code / name).parent.mkdir(exist_ok=True)
        (code / name).write_text("")
    study = tmp_path / "s.yaml"
    study.write_text("study: s")
    (tmp_path / "staging").mkdir()
    stage([study], tmp_path / "staging", code)
    assert {"results.py", "mypkg/analysis.py", "analysis/table.csv"} <= set(staged(tmp_path / "staging"))


def test_a_study_with_a_secret_in_a_comment_does_not_travel(tmp_path: Path) -> None:
    study = tmp_path / "s.yaml"
    study.write_text(f"study: s\n# ghp_{'aB3d' * 9}\n")
    (tmp_path / "staging").mkdir()
    with pytest.raises(SubmitError, match=r"s\.yaml, line 2: holds a GitHub token"):
        stage([study], tmp_path / "staging")
    with pytest.raises(SubmitError, match="no such file"):
        stage([study], tmp_path / "staging", send=[tmp_path / "absent"])


def test_a_listing_has_sizes_and_says_how_many_it_leaves_out() -> None:
    assert listing({"a.py": 12, "b/c.py": 34_567, "d": 2_000_000}).splitlines() == [
        "3 files, 2.0 MB, to send:",
        "     12 B  a.py",
        "  34.6 kB  b/c.py",
        "   2.0 MB  d",
    ]
    many = {f"{number:03}.py": 1 for number in range(SHOWN_FILES + 5)}
    assert listing(many).splitlines()[0] == f"{SHOWN_FILES + 5} files, {SHOWN_FILES + 5} B, to send:"
    assert listing(many).splitlines()[-1].startswith("  … and 5 more")
    assert [line.split()[-1] for line in listing(many, whole=True).splitlines()[1:]] == list(many)
