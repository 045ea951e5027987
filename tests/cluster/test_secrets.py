"""What is told to be a secret, what is not, and what is left of a text without its secrets."""

from pathlib import Path

import numpy
import pytest

from cluster import secrets

HEX = "0123456789abcdef" * 4
LETTERS = "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA" * 3
BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"
SECRETS = {
    "a GitHub token": [
        f"url = https://x:ghp_{LETTERS[:36]}@github.com/a/b",
        f"github_pat_{LETTERS[:22]}_{LETTERS[:59]}",
    ],
    "a GitLab token": [f"glpat-{LETTERS[:20]}"],
    "a Hugging Face token": [f"login(token='hf_{LETTERS[:34]}')"],
    "a Slack token": [f"xoxb-123456789012-{LETTERS[:24]}", f"https://hooks.slack.com/services/T0A/B0B/{LETTERS[:24]}"],
    "a Google API key": [f"AIza{LETTERS[:35]}"],
    "an API key": [f"sk-proj-{LETTERS[:48]}"],
    "a private key": [f"  -----BEGIN RSA PRIVATE KEY-----\n{BODY}", f'"-----BEGIN PRIVATE KEY-----\\n{BODY}\\n"'],
    "the head of a private key": ["KEY = '''\n-----BEGIN OPENSSH PRIVATE KEY-----\n'''"],
    "an AWS access key": [f"id: AKIAABCDEFGHIJKLMNOP\nsecret: {LETTERS[:40]}"],
    "an AWS secret key": [f"aws_secret_access_key = {LETTERS[:40]}", f"AWS_SECRET_ACCESS_KEY={LETTERS[:40]}"],
    "a W&B API key": [f"WANDB_API_KEY={HEX[:40]}", f"machine api.wandb.ai\n  login user\n  password {HEX[:40]}"],
    "a W&B key": [f"wandb_v1_{LETTERS[:60]}"],
    "a Google service account": ['{"type": "service_account", "project_id": "p"}'],
    "a password": [
        "password = hunter2x",
        "db_password: 'hunter2x'",
        'API_KEY="k3yk3yk3y"',
        "export SECRET_KEY=a1b2c3d4",
    ],
    "a password in an address": ["postgres://me:hunter2x@db/x"],
    "a signed web token": [f"eyJ{LETTERS[:20]}.eyJ{LETTERS[:30]}.{LETTERS[:43]}"],
}
HARMLESS = (
    "password = getpass.getpass()",
    "password = os.environ['DB_PASSWORD']",
    "api_key = config.api_key2",
    "host, port, access_key, secret_key = s3_connection",
    'password="your-password"',
    'secret = f"{prefix}1234567"',
    "def login(password: str = '') -> None: ...",
    "http://user:pass@host",
    f"commit {HEX[:40]}",
    f"wandb @ git+https://github.com/wandb/wandb@{HEX[:40]}",
    "AKIAIOSFODNN7EXAMPLE is an example",
    "disk-usage task-forty-or-more-letters-and-dashes-in-one-name-of-a-file",
    "-----BEGIN CERTIFICATE-----\n" + BODY,
    "half_life hf_hub_download",
    "tokens: 5000000000",
)


@pytest.fixture(autouse=True)
def _no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in secrets.values():
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("what", "text"), [(what, text) for what, texts in SECRETS.items() for text in texts])
def test_a_secret_is_found_with_its_line(what: str, text: str) -> None:
    padded = f"# first line\nepochs = 3\n{text}\nlast line"
    found = secrets.found(padded)
    assert found is not None
    assert found[0] in (what, "a password", "a GitHub token")  # one text may hold two
    assert found[1] in (3, 4)
    assert text.splitlines()[0] in padded.splitlines()[2]


@pytest.mark.parametrize("text", HARMLESS)
def test_code_and_words_are_no_secrets(text: str) -> None:
    assert secrets.found(text) is None
    assert secrets.redacted(text).replace("user:***@", "user:pass@") == text


def test_trees_of_ordinary_source_hold_none() -> None:
    """This repository, but for tests that say what a secret looks like, and a part of a library."""
    root = Path(__file__).parents[2]
    ours = [path for room in ("wa", "workloads", "sweeps", "analysis", "cluster") for path in (root / room).rglob("*")]
    files = [path for path in [*ours, *(Path(numpy.__file__).parent / "lib").rglob("*.py")] if path.is_file()]
    assert len(files) > 250
    assert not [path for path in files if path.suffix != ".pyc" and secrets.found(path.read_text(errors="replace"))]
    assert not [path for path in files if secrets.is_key_file(path.name)]


def test_the_secrets_of_the_environment_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "key.json").touch()
    secret = {"WANDB_API_KEY": "k" * 40, "aws_secret_access_key": "s" * 40, "HF_TOKEN": "hf_" + "t" * 34}
    secret |= {"DB_PASSWORD": "hunter2hunter2", "RAY_AUTH_TOKEN": "r" * 32, "APP_SECRET": "two\nlines of it"}
    others = {
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json"),
        "RAY_AUTH_MODE": "token",
        "A_TOKEN": "short",
    }
    others |= {
        "TOKENIZERS_PARALLELISM": "false-false",
        "KEYMAP": "longer-than-eight",
        "AWS_ACCESS_KEY_ID": "AKIA" + "A" * 16,
    }
    for name, value in (secret | others).items():
        monkeypatch.setenv(name, value)
    assert secrets.values() == secret
    text = " / ".join([*secret.values(), "two lines of it", r"two\nlines of it", *others.values()])
    assert secrets.redacted(text) == " / ".join(["***"] * (len(secret) + 2) + list(others.values()))
    assert secrets.found(f"x\ny {'r' * 32}") == ("the value of RAY_AUTH_TOKEN", 2)


def test_a_text_without_its_secrets_keeps_its_words() -> None:
    text = f"403 for https://me:{LETTERS[:20]}@host/x with ghp_{LETTERS[:36]}, tried twice"
    assert secrets.redacted(text) == "403 for https://me:***@host/x with ***, tried twice"


def test_an_error_is_the_same_unless_it_tells_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "abcdefgh12345")

    def raised(cause: str, message: str) -> Exception:
        try:
            try:
                raise KeyError(cause)
            except KeyError as error:
                raise ValueError(message) from error
        except ValueError as error:
            return error

    clean = raised("a", "b")
    assert secrets.harmless(clean) is clean
    for cause, message, said in (
        ("abcdefgh12345", "b", "ValueError: b"),
        ("a", "b abcdefgh12345", "ValueError: b ***"),
    ):
        told = secrets.harmless(raised(cause, message))
        assert str(told) == said
        assert told.__cause__ is told.__context__ is None
