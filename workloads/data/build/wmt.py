"""Build wmt_train.u16.xz, wmt_validation.u16.xz and wmt_pieces.json from German-English software catalogues.

Run by hand from the repository root, with pip, npm and sentencepiece 0.2.3:
    python workloads/data/build/wmt.py
Held out are whole components, less what training says in the same German or English words. Same sources, same
bytes again.
"""

from __future__ import annotations

import gettext
import io
import json
import lzma
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import sentencepiece

from workloads.data.build.sources import Files, downloaded, pip_download, shuffled, write

WHEELS = {  # PyPI
    "homeassistant-2026.2.3-py3-none-any.whl": "8167820cac4b8defe895fd2c36ac23402a445d1fe6028e8cde24caabb935282c",
    "Django-5.2-py3-none-any.whl": "91ceed4e3a6db5aedced65e3c8f963118ea9ba753fc620831c77074e620e7d83",
    "wagtail-8.0.1-py3-none-any.whl": "1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c",
    "jupyterlab_language_pack_de_de-4.5.post3-py2.py3-none-any.whl": (
        "b716b56f7e0c884f42152d5e36c253ea0f32ca41f99097d842d3934f4a4bc7fb"
    ),
}
TARBALLS = {  # npm, scope @codingame: Visual Studio Code's catalogue in German and in the pseudo-locale
    "codingame-monaco-vscode-language-pack-de-25.1.2.tgz": (
        "ff572e9f8677b33f31c656892acf3ddabf1268dc2387933236ae124021b95675"
    ),
    "codingame-monaco-vscode-language-pack-qps-ploc-25.1.2.tgz": (
        "334d1e5dda1b260300f1fc7ad524716ee47bc4716e47d577b407ef1b7436699a"
    ),
}
PSEUDO = str.maketrans(  # the pseudo-locale spells English with these letters, one for one
    "ëøñïæðçµþÿÇ§ÆËÏÐØÑ£ÜßÝÞ", "eoniadcubyCSAEIDONLUBYP"
)
PLAIN = str.maketrans("„“”’‚‘–", "\"\"\"'''-")
MAIN = "package/translations/main.i18n.json.js"
RUN_LENGTH = 100  # entries of the editor's one long list that count as a component
MIN_WORDS, MAX_TOKENS, VOCABULARY = 3, 24, 1024  # MAX_TOKENS: with the end mark
RAREST_CHARACTER = 50  # pairs with a character seen less often are left out
VALIDATION_SHARE = 0.08
NUM_VALIDATION = 1024
PAD, EOS = 0, 2  # as AlgoPerf's models: <unk> 0 (here never used, so it can pad), <s> 1, </s> 2
HOLE = re.compile(r"\{[^{}]*\}|%\(\w+\)[sdi]|%[sdi0-9]+")  # what a program fills in
UNWANTED = re.compile(r"https?:|[<>`\\\[\]|*_~^]|\{\{")  # markup, addresses, code


class Pair(NamedTuple):
    """One entry of a catalogue."""

    component: str
    german: str
    english: str


def wheel(name: str) -> Files:
    """The files of one of WHEELS."""
    package, version = name.split("-")[:2]
    return pip_download(package, version, name, WHEELS[name], "--python-version", "3.13.5")


def tarball(name: str) -> Files:
    """The files of one of TARBALLS."""
    package, version = name.removeprefix("codingame-").removesuffix(".tgz").rsplit("-", 1)
    return downloaded(["npm", "pack", f"@codingame/{package}@{version}"], name, TARBALLS[name])


def leaves(german: Any, english: Any, component: str) -> Iterator[Pair]:
    """The strings that two nested dicts have at the same keys."""
    if isinstance(german, dict) and isinstance(english, dict):
        for key in german.keys() & english.keys():
            yield from leaves(german[key], english[key], component)
    elif isinstance(german, str) and isinstance(english, str):
        yield Pair(component, german, english)


def home_assistant(files: Files) -> Iterator[Pair]:
    """Each integration's translations/de.json beside its en.json."""
    for name, german in files.items():
        if name.endswith("/translations/de.json"):
            yield from leaves(json.loads(german), json.loads(files[name.replace("de.json", "en.json")]), name)


def message_catalogues(files: Files) -> Iterator[Pair]:
    """The compiled gettext catalogues of a wheel; plural entries give their singular."""
    for name, file in files.items():
        if re.search(r"/de(_DE)?/LC_MESSAGES/[^/]+\.mo$", name):
            catalogue: dict[Any, str] = vars(gettext.GNUTranslations(io.BytesIO(file)))["_catalog"]
            for key, german in catalogue.items():
                english, form = key if isinstance(key, tuple) else (key, 0)
                if english and form == 0:
                    yield Pair(name, german, english.rpartition("\x04")[2])  # less its context


def editor(german: Files, pseudo: Files) -> Iterator[Pair]:
    """Visual Studio Code's strings: one long list, and a file an extension."""

    def entries(files: Files) -> list[str | None]:
        script = files[MAIN].decode("utf-8")
        array = script[script.index("[") : script.index("\n]")].rstrip(",") + "]"
        found: list[str | None] = json.loads(re.sub(r"(?m)^\tundefined", "null", array))
        return found

    for i, (entry, other) in enumerate(zip(entries(german), entries(pseudo), strict=True)):
        if entry is not None and other is not None:
            yield Pair(f"editor/{i // RUN_LENGTH}", entry, other.translate(PSEUDO))
    for name in german:
        if name.startswith("package/translations/extensions/"):
            left, right = (json.loads(files[name])["contents"] for files in (german, pseudo))
            for pair in leaves(left, right, name):
                yield pair._replace(english=pair.english.translate(PSEUDO))


def normalized(text: str) -> str:
    """Composed characters, plain quotes and spaces, ``{}`` for whatever a program fills in."""
    text = unicodedata.normalize("NFC", text).translate(PLAIN)
    return " ".join(HOLE.sub("{}", text).replace("&&", "").split())


def sentences(pairs: Iterable[Pair]) -> list[Pair]:
    """Distinct pairs of at least MIN_WORDS words a side, in plain characters, sorted."""
    kept: dict[tuple[str, str], str] = {}
    for component, german, english in sorted(pairs):
        left, right = normalized(german), normalized(english)
        long_enough = min(len(re.findall(r"[^\W\d_]{2,}", side)) for side in (left, right)) >= MIN_WORDS
        if long_enough and left != right and not UNWANTED.search(left + right):
            kept.setdefault((left, right), component)
    counts = Counter(character for pair in kept for side in pair for character in side)
    rare = {character for character, count in counts.items() if count < RAREST_CHARACTER}
    return [Pair(kept[pair], *pair) for pair in kept if not rare & set(pair[0] + pair[1])]


def split(pairs: list[Pair]) -> dict[str, list[Pair]]:
    """Whole components are held out; of those, pairs of which training has a side go."""
    components = shuffled({pair.component for pair in pairs}, "component")
    held_out = set(components[: round(len(components) * VALIDATION_SHARE)])
    train = [pair for pair in pairs if pair.component not in held_out]

    def key(side: str) -> str:
        return re.sub(r"\W", "", side).lower()

    seen = {key(side) for pair in train for side in pair[1:]}
    validation = [pair for pair in pairs if pair.component in held_out and not {key(side) for side in pair[1:]} & seen]
    distinct = {key(pair.german): pair for pair in shuffled(validation, "one")}
    return {"train": train, "validation": list(distinct.values())}


def pieces(pairs: list[Pair]) -> sentencepiece.SentencePieceProcessor:
    """Byte-pair pieces of both languages together, learned on the training pairs."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(side for pair in pairs for side in pair[1:]),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        character_coverage=1.0,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def encoded(
    pairs: list[Pair], model: sentencepiece.SentencePieceProcessor, names: list[str]
) -> list[tuple[list[int], list[int]]]:
    """German and English tokens, each with its end mark, of the pairs that are short enough."""
    found = []
    for _, *sides in pairs:
        german, english = ([*model.encode(side), EOS] for side in sides)
        if max(len(german), len(english)) <= MAX_TOKENS and PAD not in german + english:
            spelled = ("".join(names[token] for token in side[:-1]) for side in (german, english))
            assert [text.replace("▁", " ").strip() for text in spelled] == sides
            found.append((german, english))
    return found


def main() -> None:
    first, *others = WHEELS
    found = [*home_assistant(wheel(first)), *(pair for name in others for pair in message_catalogues(wheel(name)))]
    parts = split(sentences([*found, *editor(*map(tarball, TARBALLS))]))
    model = pieces(parts["train"])
    names = [model.id_to_piece(token) for token in range(VOCABULARY)]
    for part, members in parts.items():
        tokens = encoded(shuffled(members, "order"), model, names)
        tokens = tokens[: NUM_VALIDATION if part == "validation" else None]
        stream = np.array([token for pair in tokens for side in pair for token in side], dtype="<u2")
        print(f"{part}: {len(members):,} pairs, {len(tokens):,} of at most {MAX_TOKENS} tokens a side")
        write(f"wmt_{part}.u16.xz", lzma.compress(stream.tobytes(), preset=9 | lzma.PRESET_EXTREME))
    write("wmt_pieces.json", (json.dumps(names, ensure_ascii=False, indent=0) + "\n").encode("utf-8"))


if __name__ == "__main__":
    main()
