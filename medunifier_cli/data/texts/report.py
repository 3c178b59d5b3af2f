"""Reports: from raw sections to one text, and from the text to token ids and back.

The tokenizer is BERT's WordPiece, rebuilt here from its vocabulary, so that loading one runs no code from a
hub repository and needs no network.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from medunifier_cli.errors import DataError, MissingWeightsError

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
DEC = "[DEC]"
"""First token of a text that is generated (ITG), as in BLIP-2."""
ALPHABET = 1000
"""Most characters a learned vocabulary holds, BERT's own limit."""
CONTINUES = "##"
DEIDENTIFIED = re.compile(r"_{2,}|\bX{4,}\b")
"""`___` of MIMIC-CXR and `XXXX` of Open-i: marks of removed personal data."""
_BLANKS = (
    (re.compile(r"(?<=\w) ?([-/]) ?(?=\w)"), r"\1"),
    (re.compile(r"(?<=\d) ?([.,]) ?(?=\d)"), r"\1"),
    (re.compile(r"(?<=\w) ?' ?(?=(?:s|t|re|ve|d)\b)"), "'"),
    (re.compile(r"([(\[]) "), r"\1"),
    (re.compile(r" ([)\],.;:!?%])"), r"\1"),
)
_SENTENCE_START = re.compile(r"(?:^|(?<=[.!?:] ))[a-z]")
FILES = ("vocab.txt", "tokenizer_config.json", "tokenizer.json")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def compose(
    sections: Mapping[str, str],
    names: Sequence[str],
    require: Literal["any", "all"] = "any",
    strip_deidentified: bool = False,
    marks: bool = False,
) -> str:
    """Join the named sections by a blank, in the order of `names`, runs of white space collapsed.

    Args:
        marks: put its name before each section, as `FINDINGS:`, so that `sections_of` can take them apart.

    Returns:
        The text; empty when all of the sections are (`require="any"`) or when one is (`"all"`).
    """
    parts = []
    for name in names:
        part = sections.get(name) or ""
        if strip_deidentified:
            part = DEIDENTIFIED.sub(" ", part)
        parts.append(" ".join(part.split()))
    if require == "all" and not all(parts):
        return ""
    if marks:
        parts = [f"{_heading(name)}: {part}" if part else "" for name, part in zip(names, parts, strict=True)]
    return " ".join(part for part in parts if part)


def sections_of(text: str, names: Sequence[str]) -> dict[str, str]:
    """A text composed with marks, in any letter case -> its sections, those that have words.

    Text before the first mark belongs to the first of `names`; of a section marked twice, both parts count.
    """
    marks = "|".join(re.escape(_heading(name)).replace(r"\ ", r"\s+") for name in names)
    pieces = re.split(rf"(?i)(?<!\S)({marks})\s*:", text)
    by_heading = {_heading(name): name for name in names}
    found: dict[str, list[str]] = {name: [] for name in names}
    owner = names[0]
    for number, piece in enumerate(pieces):
        if number % 2:
            owner = by_heading[" ".join(piece.upper().split())]
        else:
            found[owner] += piece.split()
    return {name: " ".join(words) for name, words in found.items() if words}


def _heading(section: str) -> str:
    return section.replace("_", " ").upper()


def readable(decoded: str) -> str:
    """What a tokenizer decoded, with blanks around punctuation and capitals as a person writes them."""
    text = " ".join(decoded.split())
    for pattern, put in _BLANKS:
        text = pattern.sub(put, text)
    return _SENTENCE_START.sub(lambda found: found.group().upper(), text)


def digest(text: str) -> int:
    """63-bit hash of the words of a text; letter case and white space aside, as the model reads it."""
    words = " ".join(text.lower().split())
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little") >> 1


class TextTokenizer:
    """BERT WordPiece over a fixed vocabulary, [DEC] included. Picklable.

    Args:
        vocabulary: token by id, without gaps; [DEC] is appended when it is absent.
        lowercase: uncased, as all tokenizers of the paper.
        strip_accents: None follows `lowercase`, as BERT does.

    Raises:
        DataError: [PAD], [UNK], [CLS] or [SEP] is missing.
    """

    def __init__(
        self, vocabulary: Sequence[str], lowercase: bool = True, strip_accents: bool | None = None
    ) -> None:
        tokens = list(vocabulary) if DEC in vocabulary else [*vocabulary, DEC]
        self._tokens = tokens
        self._lowercase = lowercase
        self._strip_accents = strip_accents
        ids = {token: i for i, token in enumerate(tokens)}
        missing = [token for token in (PAD, UNK, CLS, SEP) if token not in ids]
        if missing:
            raise DataError(f"a BERT vocabulary needs {' '.join(missing)}; this one has none")
        self.size: int = len(tokens)
        """Number of ids, [DEC] included."""
        self.pad_id: int = ids[PAD]
        self.cls_id: int = ids[CLS]
        self.sep_id: int = ids[SEP]
        self.dec_id: int = ids[DEC]
        self.unwritten: tuple[int, ...] = tuple(ids[t] for t in (PAD, UNK, CLS, MASK, DEC) if t in ids)
        """Ids that are no part of a generated text; [SEP] ends one."""
        self._silent = frozenset(ids[token] for token in (PAD, CLS, SEP, MASK, DEC) if token in ids)
        self._tokenizer = _bert(models.WordPiece(ids, unk_token=UNK), lowercase, strip_accents)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> TextTokenizer:
        """Learn an uncased vocabulary; a function of the words and their counts alone.

        Args:
            texts: read once.
            vocabulary: tokens to learn, special ones and characters included; fewer if the texts have fewer.

        Raises:
            DataError: no text, or a vocabulary smaller than the characters of the texts.
        """
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text.split())
        if not counts:
            raise DataError("no text to learn a vocabulary from")
        tokenizer = _bert(models.WordPiece(unk_token=UNK), True, None)
        alphabet = _alphabet(tokenizer, counts)
        fixed = [PAD, UNK, CLS, SEP, MASK, *alphabet]
        if vocabulary < len(fixed):
            raise DataError(f"text.vocabulary: {vocabulary} is too small; characters alone take {len(fixed)}")
        # The trainer numbers ##x in the order of a hash map seeded per process and breaks ties by number:
        # with every character numbered beforehand, as a "special" token, nothing is left to chance.
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocabulary, special_tokens=fixed, limit_alphabet=0, show_progress=False
        )
        tokenizer.train_from_iterator(_repeated(counts), trainer)
        learned = tokenizer.get_vocab()
        return cls(sorted(learned, key=lambda token: learned[token]))

    @classmethod
    def load(cls, name_or_folder: str) -> TextTokenizer:
        """From a local folder or, by its hub name, from the local Hugging Face cache.

        Raises:
            MissingWeightsError: a hub name that is not cached.
            DataError: a folder without a BERT vocabulary.
        """
        folder = Path(name_or_folder).expanduser()
        if folder.is_dir():
            found = {name: folder / name for name in FILES if (folder / name).is_file()}
            if not {"vocab.txt", "tokenizer.json"} & set(found):
                raise DataError(f"{folder}: no tokenizer there; it needs vocab.txt or tokenizer.json")
        else:
            found = _cached(name_or_folder)
        return cls._read(found)

    @classmethod
    def _read(cls, files: Mapping[str, Path]) -> TextTokenizer:
        path = files.get("vocab.txt", files.get("tokenizer.json", Path()))
        try:
            if path.name == "vocab.txt":
                tokens = path.read_text(encoding="utf-8").splitlines()
                config = _json(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else {}
                return cls(tokens, config.get("do_lower_case", True), config.get("strip_accents"))
            whole = _json(path)
            if whole["model"].get("type", "WordPiece") != "WordPiece":
                raise DataError(f"{path}: a {whole['model']['type']} tokenizer, not BERT's WordPiece")
            ids = dict(whole["model"]["vocab"]) | {t["content"]: t["id"] for t in whole["added_tokens"]}
            tokens = sorted(ids, key=lambda token: ids[token])
            if [ids[token] for token in tokens] != list(range(len(tokens))):
                raise DataError(f"{path}: its token ids have gaps")
            normalizer = whole.get("normalizer") or {}
            return cls(tokens, normalizer.get("lowercase", True), normalizer.get("strip_accents"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: not a readable BERT tokenizer") from error
        except DataError as error:
            raise DataError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error

    def save(self, folder: Path) -> None:
        """Write `vocab.txt` and `tokenizer_config.json`, which `load` and transformers read."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.txt").write_text("".join(token + "\n" for token in self._tokens), encoding="utf-8")
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self._lowercase,
            "strip_accents": self._strip_accents,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """[CLS] ... [SEP], at most `max_tokens` (>= 2) ids; what is too long loses its end but not [SEP]."""
        return self.encode_many([text], max_tokens)[0]

    def encode_many(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """`encode` of several texts at once."""
        room = max_tokens - 2
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[self.cls_id, *encoding.ids[:room], self.sep_id] for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; special tokens are left out, a blank before punctuation too."""
        spoken = [i for i in ids if i not in self._silent]
        return str(self._tokenizer.decode(spoken, skip_special_tokens=False))

    @property
    def fingerprint(self) -> str:
        """Hex hash of all that decides how a text is cut."""
        settings = json.dumps([self._tokens, self._lowercase, self._strip_accents], ensure_ascii=False)
        return hashlib.sha256(settings.encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {"a": (self._tokens, self._lowercase, self._strip_accents)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        TextTokenizer.__init__(self, *state["a"])


def _bert(model: models.WordPiece, lowercase: bool, strip_accents: bool | None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES, cleanup=True)
    return tokenizer


def _alphabet(tokenizer: Tokenizer, counts: Mapping[str, int]) -> list[str]:
    """Characters and ##characters of the words, the most frequent ones, sorted."""
    first: Counter[str] = Counter()
    later: Counter[str] = Counter()
    for text, count in counts.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            first[word[0]] += count
            for character in word[1:]:
                later[character] += count
    both = first + later
    kept = set(sorted(both, key=lambda character: (-both[character], character))[:ALPHABET])
    return sorted(kept) + [CONTINUES + character for character in sorted(kept & set(later))]


def _repeated(counts: Mapping[str, int]) -> Iterable[str]:
    for word in sorted(counts):
        left = counts[word]
        while left:
            take = min(left, 1000)
            yield " ".join([word] * take)
            left -= take


def _cached(name: str) -> dict[str, Path]:
    from huggingface_hub import constants, try_to_load_from_cache

    if not HUB_NAME.fullmatch(name):
        raise DataError(f"text.tokenizer: {name!r} is neither a folder nor a hub name")
    found = {file: try_to_load_from_cache(name, file) for file in FILES}
    paths = {file: Path(path) for file, path in found.items() if isinstance(path, str)}
    if not {"vocab.txt", "tokenizer.json"} & set(paths):
        raise MissingWeightsError(
            f"text.tokenizer: {name} is neither a local folder nor in the Hugging Face cache "
            f"({constants.HF_HUB_CACHE}); where there is a network, fetch it with "
            f"`hf download {name} vocab.txt tokenizer_config.json`"
        )
    return paths


def _json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value
