"""What is a secret, by the name of a variable or a file or by how a text looks: it is never shown and never sent."""

import os
import re
import traceback
from fnmatch import fnmatch

HIDDEN = "***"
SHORTEST = 8  # characters of a value; shorter ones are words that stand in any text
_VARIABLE = re.compile(
    r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS|CONNECTION_STRING)$|(^|_)(SECRET|PASSWORD)_(?!ID$|NAME$)"
)
# What is a secret by itself. Signs begin with a literal where they can: so they are looked for twenty times as fast.
TOKENS = {
    "a private key": r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:\\[nr]|\s|Version:.*|Comment:.*)*"
    r"[A-Za-z0-9+/=]{16}(?:[A-Za-z0-9+/=\s]|\\[nr])*(?:-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----)?",
    "a GitHub token": r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{40,}",
    "a GitLab token": r"glpat-[A-Za-z0-9_-]{20,}",
    "a Hugging Face token": r"hf_(?<!\whf_)[A-Za-z0-9]{30,}\b",
    "a W&B key": r"wandb_v\d_[A-Za-z0-9_]{30,}",
    "a Slack token": r"xox[abeoprs]-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/T\w+/B\w+/\w{16,}",
    "a Google API key": r"AIza[A-Za-z0-9_-]{35}\b",
    "an API key": r"sk-(?<![\w-]sk-)[A-Za-z0-9_-]{40,}",
    "a signed web token": r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{20,}",
}
# What is one by what stands beside it.
_NAME = r"[PSAps](?i:assw(?:or)?d|assphrase|ecret(?:_?key)?|pi_?key|ccess_?key|uth_?token|ccess_?token)"
_VALUE = r"(?=[^\s\"']*\d)(?=[^\s\"']*[A-Za-z])"  # a letter and a digit: no placeholder, and no variable's name
BESIDE = {
    "the head of a private key": r"(?m:^)-----BEGIN [A-Z0-9 ]*PRIVATE KEY",
    "an AWS access key": r"A(?:KI|SI)A[A-Z2-7]{16}\b(?s:.{0,200}?)"
    r"(?<![A-Za-z0-9/+])[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])",
    "an AWS secret key": r"(?i:aws_?secret_?access_?key)\W{1,6}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])",
    "a W&B API key": r"(?i:wandb)[^@/]{0,80}?(?<![0-9A-Za-z])[0-9a-f]{40}(?![0-9A-Za-z])",
    "a Google service account": r'"type"\s*:\s*"service_account"',
    "a password": rf"{_NAME}[\"']?\s*[:=]\s*([\"']){_VALUE}[^\s\"'{{}}<>$()]{{6,}}\1"
    rf"|{_NAME}[ \t]*[:=][ \t]*(?![a-z]\w*_\w+\s*(?m:$)){_VALUE}[^\s\"'{{}}<>$()\[\],.]{{6,}}\s*(?m:$)",
    "a password in an address": r"://[^\s/:@\"'<{$]+:(?=[^\s/@]*\d)[^\s/:@\"'<>{}$%]{6,}@",
}
# Names that files with keys go by.
FILES = (
    *("*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk", "*.ovpn", "*.env", "*.token"),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "netrc", "_netrc", "htpasswd", "kubeconfig*"),
    *("credentials", "credentials.*", "*credentials*.json", "*service[-_]account*.json", "client_secret*"),
    *("secret", "secret.*", "secrets", "secrets.*", "*_secrets.*", "token", "token.*", "*api_key*", "*apikey*"),
)
PUBLIC = ("*.pub", "*.py", "*.pyi")  # a public key is none, and code about keys is code


def values() -> dict[str, str]:
    """The secrets of this process's environment, by name, the longest first; the path of a key's file is none."""
    secret = {
        name: value.strip()
        for name, value in os.environ.items()
        if _VARIABLE.search(name.upper()) and len(value.strip()) >= SHORTEST and not os.path.exists(value)
    }
    return dict(sorted(secret.items(), key=lambda item: -len(item[1])))


def redacted(text: str) -> str:
    """The text with *** for each secret of the environment, whatever is a token by its form, passwords of addresses."""
    for value in values().values():
        # Also where its lines were joined, or their ends escaped.
        text = re.sub(r"(?:\s|\\[nr])+".join(map(re.escape, value.split())), HIDDEN, text)
    return re.sub(r"(://[^\s/:@]*:)[^\s/@]+@", rf"\1{HIDDEN}@", re.sub("|".join(TOKENS.values()), HIDDEN, text))


def harmless(error: Exception) -> Exception:
    """The error; where its traceback holds a secret, another one that says the same without it."""
    said = "".join(traceback.format_exception(error))
    if redacted(said) == said:
        return error
    return RuntimeError(redacted(traceback.format_exception_only(error)[-1].strip()))


def found(text: str) -> tuple[str, int] | None:
    """The first secret that a text holds, in words that do not tell it, and its line; None where there is none."""
    for name, value in values().items():
        if (at := text.find(value)) >= 0:
            return f"the value of {name}", text.count("\n", 0, at) + 1
    for name, sign in (TOKENS | BESIDE).items():
        if (match := re.search(sign, text)) is not None:
            return name, text.count("\n", 0, match.start()) + 1
    return None


def is_key_file(name: str) -> bool:
    """Whether a file of this name holds keys, as far as names tell."""
    return _matches(name.lower(), FILES) and not _matches(name.lower(), PUBLIC)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
