"""BERT's WordPiece tokenizer: trained, loaded, saved; text to token ids and back.

It is rebuilt here from its vocabulary alone, so that loading one runs no code from a hub repository and
needs no network.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from medunifier_cli.data.batch import SPECIAL
from medunifier_cli.errors import DataError, MissingWeightsError
from medunifier_cli.files import atomic_folder, decode_text, make_folder, write_json, write_text
from medunifier_cli.parsing import Count, checked, read_bytes, read_json

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
DEC = "[DEC]"
"""First token of a text to be generated (ITG), as in BLIP-2."""
ALPHABET = 1000
"""Maximum number of characters in a trained vocabulary, as in BERT."""
WORDPIECE = "WordPiece"
"""Name of its model in `tokenizer.json`."""
CONTINUES = "##"
"""Prefix of a token that continues a word."""
LONGEST_WORD = 100
"""Characters of the longest word that WordPiece looks up, in transformers as here; a longer one is [UNK]."""
LONGEST_TEXT = 1 << 17
"""Characters of a text that are tokenized: ten times as many as the longest report has."""
FILES = ("vocab.txt", "tokenizer_config.json", "tokenizer.json")
VOCABULARY, CONFIG, SAVED = "vocab.txt", "tokenizer_config.json", "tokenizer.json"
"""What transformers saves: the tokens and the settings, or both in one file."""
FINGERPRINT = "fingerprint.txt"
"""Beside them in a folder of ours: the hash that `TextTokenizer.fingerprint` must give."""
FILES = (VOCABULARY, CONFIG, SAVED)
MAX_BYTES = 1 << 26
"""Size of the largest file of a tokenizer that is read; the largest BERT vocabulary has some 2 MB."""
MEND = "put it back, or delete this folder and run the same `mu pretrain` again, which makes it anew"
"""What to do about a damaged tokenizer of a run, which refuses another one than it was trained with."""
SPECIAL_TOKEN = re.compile(r"\[.*\]|<.*>")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


class _Config(TypedDict, total=False):
    """Of a `tokenizer_config.json`, the keys that change a token."""

    do_lower_case: bool
    strip_accents: bool | None


class _Normalizer(TypedDict, total=False):
    lowercase: bool
    strip_accents: bool | None


class _Added(TypedDict):
    content: str
    id: Count


class _Parts(TypedDict, total=False):
    added_tokens: list[_Added]
    normalizer: _Normalizer | None


class _Saved(_Parts):
    """Of a `tokenizer.json`, what a tokenizer is made of."""

    model: dict[str, Any]


class TextTokenizer:
    """BERT WordPiece over a fixed vocabulary, [DEC] included. Picklable.

    Args:
        vocabulary: the token of each id, without gaps; [DEC] is appended if it is missing.
        lowercase: lower-case the text first, as all tokenizers of the paper do.
        strip_accents: None follows `lowercase`, as in BERT.

    Raises:
        DataError: [PAD], [UNK], [CLS] or [SEP] is missing.
    """

    def __init__(
        self, vocabulary: Sequence[str], lowercase: bool = True, strip_accents: bool | None = None
    ) -> None:
        tokens = list(vocabulary) if DEC in vocabulary else [*vocabulary, DEC]
        self.tokens = tokens
        self.lowercase = lowercase
        self.strip_accents = strip_accents
        ids = {token: i for i, token in enumerate(tokens)}
        missing = [token for token in (PAD, UNK, CLS, SEP) if token not in ids]
        if missing:
            raise DataError(f"a BERT vocabulary needs {' '.join(missing)}; this one lacks them")
        self.size: int = len(tokens)
        """Number of ids, [DEC] included."""
        self.pad_id: int = ids[PAD]
        self.cls_id: int = ids[CLS]
        self.sep_id: int = ids[SEP]
        self.dec_id: int = ids[DEC]
        self.unwritten: tuple[int, ...] = tuple(ids[t] for t in (PAD, UNK, CLS, MASK, DEC) if t in ids)
        """Ids that a decoder must not generate; [SEP] ends a text and is allowed."""
        self._invisible = frozenset(ids[token] for token in (PAD, CLS, SEP, MASK, DEC) if token in ids)
        self._tokenizer = _bert(models.WordPiece(ids, unk_token=UNK), lowercase, strip_accents)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> TextTokenizer:
        """Train an uncased vocabulary, which depends only on the words and their counts.

        Args:
            texts: iterated over once.
            vocabulary: number of tokens, special tokens and characters included; fewer if the texts do not
                contain enough.

        Raises:
            DataError: no text, or a vocabulary too small for the characters of the texts.
        """
        tokenizer = _bert(models.WordPiece(unk_token=UNK), True, None)
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(_words(text, tokenizer))
        if not counts:
            raise DataError("there is no text to train a vocabulary on")
        alphabet = _alphabet(tokenizer, counts)
        fixed = [PAD, UNK, CLS, SEP, MASK, *alphabet]
        if vocabulary < len(fixed):
            raise DataError(f"text.vocabulary: {vocabulary} is too small; characters alone take {len(fixed)}")
        # The trainer numbers ##x in the order of a hash map with a random seed per process, and breaks ties
        # by number. Passing every character as a "special" token fixes the numbers in advance, so that the
        # same texts give the same vocabulary in every process.
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocabulary, special_tokens=fixed, limit_alphabet=0, show_progress=False
        )
        tokenizer.train_from_iterator(_repeated(counts), trainer)
        ids = tokenizer.get_vocab()
        return cls(sorted(ids, key=lambda token: ids[token]))

    @classmethod
    def load(cls, name_or_folder: str) -> TextTokenizer:
        """Load from a local folder or, by hub name, from the local Hugging Face cache.

        Raises:
            MissingWeightsError: a hub name that is not cached.
            DataError: a folder without a BERT vocabulary, or one of ours that has been changed since.
        """
        folder = Path(name_or_folder).expanduser()
        if not folder.is_dir():
            return cls._read(_cached(name_or_folder))
        paths = {name: folder / name for name in FILES if (folder / name).is_file()}
        if not {VOCABULARY, SAVED} & set(paths):
            raise DataError(f"{folder}: no tokenizer there; it needs {VOCABULARY} or {SAVED}")
        tokenizer, mark = cls._read(paths), folder / FINGERPRINT
        # not in folders of other programs and of earlier versions
        if mark.is_file() and read_bytes(mark, limit=MAX_BYTES).strip() != tokenizer.fingerprint.encode():
            raise DataError(f"{folder}: not the tokenizer that was written there; {MEND}")
        return tokenizer

    @classmethod
    def _read(cls, files: Mapping[str, Path]) -> TextTokenizer:
        path = files.get(VOCABULARY, files.get(SAVED, Path()))
        if path.name == VOCABULARY:
            text = decode_text(read_bytes(path, limit=MAX_BYTES), str(path))
            tokens = text.removesuffix("\n").split("\n")
            config: _Config = read_json(files[CONFIG], _Config) if CONFIG in files else {}
            lowercase, accents = config.get("do_lower_case", True), config.get("strip_accents")
        else:
            tokens, normalizer = _read_saved(path)
            lowercase, accents = normalizer.get("lowercase", True), normalizer.get("strip_accents")
        try:
            return cls(tokens, lowercase, accents)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error

    def save(self, folder: Path, texts_of: Path | None = None) -> None:
        """Write `vocab.txt` and `tokenizer_config.json`, which `load` and transformers read, and their hash.

        The folder gets its name once all three are on disk; an earlier one of that name is replaced.

        Args:
            folder: to write.
            texts_of: data whose words it learned, see `files.atomic_write`.

        Raises:
            DataError: the disk is full or cannot be written to.
        """
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "strip_accents": self.strip_accents,
        }
        make_folder(folder.parent)
        with atomic_folder(folder) as unfinished:
            vocabulary = "".join(token + "\n" for token in self.tokens)
            write_text(unfinished / VOCABULARY, vocabulary, texts_of=texts_of)
            write_json(unfinished / CONFIG, config)
            write_text(unfinished / FINGERPRINT, self.fingerprint + "\n")

    def encode(self, text: str, max_tokens: int) -> list[int]:
        """[CLS] ... [SEP], at most `max_tokens` (>= 2) ids; a longer text is truncated before [SEP]."""
        return self.encode_many([text], max_tokens)[0]

    def encode_many(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """`encode` for several texts at once."""
        words = max_tokens - SPECIAL
        encodings = self._tokenizer.encode_batch_fast(
            [text[:LONGEST_TEXT] for text in texts], add_special_tokens=False
        )
        return [[self.cls_id, *encoding.ids[:words], self.sep_id] for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, without special tokens and without spaces before punctuation."""
        visible = [i for i in ids if i not in self._invisible]
        return str(self._tokenizer.decode(visible, skip_special_tokens=False))

    @property
    def unused_capitals(self) -> int:
        """Number of tokens with capitals that no text gives, because all text is lower-cased first."""
        words = (token for token in self.tokens if not SPECIAL_TOKEN.fullmatch(token))
        return sum(word != word.lower() for word in words) if self.lowercase else 0

    @property
    def fingerprint(self) -> str:
        """Hex hash of everything that determines how a text is tokenized."""
        settings = json.dumps([self.tokens, self.lowercase, self.strip_accents], ensure_ascii=False)
        return hashlib.sha256(settings.encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        return {"arguments": (self.tokens, self.lowercase, self.strip_accents)}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        TextTokenizer.__init__(self, *state["arguments"])


def _bert(model: models.WordPiece, lowercase: bool, strip_accents: bool | None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES, cleanup=True)
    return tokenizer


def _words(text: str, tokenizer: Tokenizer) -> list[str]:
    """The words of a text, without those of more than `LONGEST_WORD` characters.

    Encoding gives [UNK] for these, and the trainer takes minutes for one of a million characters.
    """
    words = text[:LONGEST_TEXT].split()
    if all(len(word) <= LONGEST_WORD for word in words):
        return words
    kept = []
    for word in words:
        if len(word) <= LONGEST_WORD:
            kept.append(word)
            continue
        # several words in truth, joined by punctuation, such as a row of a table
        parts = tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(word))
        kept += [part for part, _ in parts if len(part) <= LONGEST_WORD]
    return kept


def _alphabet(tokenizer: Tokenizer, counts: Mapping[str, int]) -> list[str]:
    """The most frequent characters of the words, and those that continue a word as ##x; sorted."""
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
    """Each word as often as it was counted, in lines of at most 1,000 words to bound the memory."""
    for word in sorted(counts):
        remaining = counts[word]
        while remaining:
            repeats = min(remaining, 1000)
            yield " ".join([word] * repeats)
            remaining -= repeats


def _cached(name: str) -> dict[str, Path]:
    from huggingface_hub import constants, try_to_load_from_cache

    if not HUB_NAME.fullmatch(name):
        raise DataError(f"text.tokenizer: {name!r} is neither a folder nor a hub name")
    cached = {file: try_to_load_from_cache(name, file) for file in FILES}
    paths = {file: Path(path) for file, path in cached.items() if isinstance(path, str)}
    if not {VOCABULARY, SAVED} & set(paths):
        raise MissingWeightsError(
            f"text.tokenizer: {name} is neither a local folder nor in the Hugging Face cache "
            f"({constants.HF_HUB_CACHE}); on a machine with network access fetch it with "
            f"`hf download {name} vocab.txt tokenizer_config.json`"
        )
    return paths


def _read_saved(path: Path) -> tuple[list[str], _Normalizer]:
    """The tokens by id and the normalizer of a `tokenizer.json`."""
    saved = read_json(path, _Saved)
    kind = checked(saved["model"].get("type", WORDPIECE), str, str(path))
    if kind != WORDPIECE:
        raise DataError(f"{path}: a {kind[:40]} tokenizer, not BERT's {WORDPIECE}")
    ids = checked(saved["model"].get("vocab"), dict[str, Count], str(path))
    ids |= {token["content"]: token["id"] for token in saved.get("added_tokens", [])}
    tokens = sorted(ids, key=lambda token: ids[token])
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise DataError(f"{path}: its token ids have gaps")
    return tokens, saved.get("normalizer") or {}
