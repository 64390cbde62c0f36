"""The tokenizer inside a GGUF file's metadata (keys `tokenizer.ggml.*`), built for the `tokenizers` library.

Two families exist for the models served here:

- "gpt2": byte-level BPE. Tokens are spelled in GPT-2's byte alphabet, merges are listed, and
  `tokenizer.ggml.pre` names the regular expression that cuts text into words first.
- "llama": SentencePiece BPE. Tokens have scores instead of merges: a pair may merge when the joined
  piece is a token, best score first. The list of merges follows from that; making it costs seconds
  for a vocabulary of 262,144, hence the cache on disk.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ridgeline.engine.cache import cache_folder
from ridgeline.engine.errors import UnsupportedModel

if TYPE_CHECKING:
    import tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""`tokenizer.ggml.token_type`, SentencePiece's piece types."""

MAX_VOCAB = 1 << 21
MAX_TOKEN_CHARS = 1024
CACHE_VERSION = 1
CACHED_FROM = 100_000
"""SentencePiece vocabularies from this size on are kept as tokenizer.json in the cache."""

_CONTRACTIONS = r"'s|'t|'re|'ve|'m|'ll|'d"
_GPT2 = rf"{_CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_TAIL}"
_QWEN2 = rf"(?i:{_CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_TAIL}"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGIT = r"\p{N}"

PRE_TOKENIZERS: Mapping[str, tuple[str, ...]] = {
    "default": (_GPT2,),
    "gpt-2": (_GPT2,),
    "smollm": (_DIGIT, _GPT2),
    "starcoder": (_DIGIT, _GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "tekken": (_TEKKEN,),
}
"""Expressions applied one after another: each match becomes a word of its own, the rest stays."""

_IGNORE_MERGES = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken"})
"""A word that is itself a token is not built from merges (Llama 3's tokenizer.json, "ignore_merges")."""

_ADD_BOS = frozenset({"llama-bpe", "llama3", "llama-v3", "tekken"})
_NFC = frozenset({"qwen2", "deepseek-r1-qwen"})


def build_from_gguf(metadata: Mapping[str, Any], path: Path | None = None) -> tokenizers.Tokenizer:
    """A `tokenizers.Tokenizer` equal to the one the GGUF metadata describes.

    `path` is the model file; with it, slow conversions are cached by its path, size and time.
    Raises UnsupportedModel for a tokenizer family or pre-tokenizer not known here, and for
    metadata that contradicts itself.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        tokenizer = _byte_level_bpe(metadata)
    elif kind == "llama":
        cached = _cache_path(path, _length(metadata)) if path is not None else None
        if cached is not None and (loaded := _load_cached(cached)) is not None:
            return loaded
        tokenizer = _sentencepiece_bpe(metadata)
        if cached is not None:
            _add_special(tokenizer, metadata)
            _store(tokenizer, cached)
            return tokenizer
    else:
        raise UnsupportedModel(f"tokenizer.ggml.model = {kind!r} is not supported (gpt2 and llama are)")
    _add_special(tokenizer, metadata)
    return tokenizer


def adds_bos(metadata: Mapping[str, Any]) -> bool:
    """Whether plain text gets a beginning-of-sequence token; the family's habit where the file is silent."""
    said = metadata.get("tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said)
    by_pre = metadata.get("tokenizer.ggml.pre") in _ADD_BOS
    return metadata.get("tokenizer.ggml.model") == "llama" or by_pre


def adds_space_prefix(metadata: Mapping[str, Any]) -> bool:
    """SentencePiece's dummy prefix: text starts as if a space stood before it."""
    return metadata.get("tokenizer.ggml.model") == "llama" and bool(
        metadata.get("tokenizer.ggml.add_space_prefix", True)
    )


def _byte_level_bpe(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    pre = metadata.get("tokenizer.ggml.pre", "default")
    expressions = PRE_TOKENIZERS.get(pre) if isinstance(pre, str) else None
    if expressions is None:
        known = ", ".join(PRE_TOKENIZERS)
        raise UnsupportedModel(f"tokenizer.ggml.pre = {pre!r} is not supported (known: {known})")
    vocab = _vocab(metadata)
    merges = [_pair(line) for line in _strings(metadata, "tokenizer.ggml.merges")]
    try:
        model = models.BPE(vocab, merges, ignore_merges=pre in _IGNORE_MERGES)
    except Exception as error:
        raise UnsupportedModel(f"tokenizer.ggml.merges: {error}") from None
    tokenizer = tokenizers.Tokenizer(model)
    if pre in _NFC:
        tokenizer.normalizer = normalizers.NFC()
    *cuts, last = expressions
    steps: list[Any] = [pre_tokenizers.Split(tokenizers.Regex(cut), "isolated") for cut in cuts]
    if last == _GPT2:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    else:
        steps.append(pre_tokenizers.Split(tokenizers.Regex(last), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece_bpe(metadata: Mapping[str, Any]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, normalizers

    vocab = _vocab(metadata)
    types = _types(metadata, len(vocab))
    scores = list(metadata.get("tokenizer.ggml.scores", ()))
    if len(scores) != len(vocab):
        raise UnsupportedModel(f"tokenizer.ggml.scores: {len(scores)} entries for {len(vocab)} tokens")
    tokens = list(vocab)
    unknown = _unknown_token(metadata, tokens, types)
    has_bytes = sum(kind == BYTE for kind in types) == 256
    model = models.BPE(
        vocab,
        merges_from_scores(tokens, scores, types),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=has_bytes,
    )
    tokenizer = tokenizers.Tokenizer(model)
    space = normalizers.Replace(" ", "▁")
    prefix = adds_space_prefix(metadata)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if prefix else space
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def merges_from_scores(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]
) -> list[tuple[str, str]]:
    """The merges that score-driven BPE performs, in order of preference.

    SentencePiece merges the adjacent pair whose joined piece has the best score. So each way to
    cut a piece into two pieces is a merge, ranked by the piece's score, best first.
    """
    mergeable = {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    ranked = sorted(
        (token for token in mergeable if len(token) > 1),
        key=dict(zip(tokens, scores, strict=True)).__getitem__,
        reverse=True,
    )
    merges: list[tuple[str, str]] = []
    for piece in ranked:
        for cut in range(1, len(piece)):
            left = piece[:cut]
            if left in mergeable and (right := piece[cut:]) in mergeable:
                merges.append((left, right))
    return merges


# -- checked metadata ---------------------------------------------------------------------------


def _length(metadata: Mapping[str, Any]) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        raise UnsupportedModel("tokenizer.ggml.tokens is missing: the file has no tokenizer")
    count = len(tokens)
    if not 0 < count <= MAX_VOCAB:
        raise UnsupportedModel(f"tokenizer.ggml.tokens: {count} tokens, between 1 and {MAX_VOCAB} are read")
    return count


def _strings(metadata: Mapping[str, Any], key: str) -> list[str]:
    values = metadata.get(key)
    if values is None:
        raise UnsupportedModel(f"{key} is missing")
    strings = list(values)
    if not all(isinstance(value, str) for value in strings):
        raise UnsupportedModel(f"{key}: every entry must be a string")
    return strings


def _vocab(metadata: Mapping[str, Any]) -> dict[str, int]:
    """token -> id, in id order, every token once."""
    count = _length(metadata)
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    if len(vocab) != count:
        vocab = _renamed(tokens)
    if max(map(len, tokens)) > MAX_TOKEN_CHARS:
        raise UnsupportedModel(f"tokenizer.ggml.tokens: a token is longer than {MAX_TOKEN_CHARS} characters")
    return vocab


def _renamed(tokens: Sequence[str]) -> dict[str, int]:
    """A duplicate keeps its first id; later copies get a name that no text contains."""
    vocab: dict[str, int] = {}
    for token_id, token in enumerate(tokens):
        name = token if token not in vocab else f"\0duplicate {token_id}\0"
        vocab[name] = token_id
    return vocab


def _types(metadata: Mapping[str, Any], count: int) -> list[int]:
    types = list(metadata.get("tokenizer.ggml.token_type", ()))
    if types and len(types) != count:
        raise UnsupportedModel(f"tokenizer.ggml.token_type: {len(types)} entries for {count} tokens")
    return types or [NORMAL] * count


def _pair(line: str) -> tuple[str, str]:
    left, separator, right = line.partition(" ")
    if not separator or not left or not right:
        raise UnsupportedModel(f"tokenizer.ggml.merges: {line[:80]!r} is not two tokens and a space")
    return left, right


def _unknown_token(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> str | None:
    token_id = metadata.get("tokenizer.ggml.unknown_token_id")
    if isinstance(token_id, int) and 0 <= token_id < len(tokens):
        return tokens[token_id]
    return next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)


def _add_special(tokenizer: tokenizers.Tokenizer, metadata: Mapping[str, Any]) -> None:
    """Control tokens become special (left out of text), user-defined ones are found whole and stay text."""
    from tokenizers import AddedToken

    tokens = _strings(metadata, "tokenizer.ggml.tokens")
    types = _types(metadata, len(tokens))
    special, defined = [], []
    for token, kind in zip(tokens, types, strict=True):
        if kind in (CONTROL, UNKNOWN) and token:
            special.append(AddedToken(token, special=True, normalized=False))
        elif kind == USER_DEFINED and token:
            defined.append(AddedToken(token, special=False, normalized=False))
    if special:
        tokenizer.add_special_tokens(special)
    if defined:
        tokenizer.add_tokens(defined)


# -- cache on disk -------------------------------------------------------------------------------


def _cache_path(path: Path, num_tokens: int) -> Path | None:
    """Where the converted tokenizer of this file is kept; None for small vocabularies (fast anyway)."""
    if num_tokens < CACHED_FROM:
        return None
    stat = path.stat()
    key = f"{CACHE_VERSION}|{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    return cache_folder() / "tokenizers" / f"{digest}.json"


def _load_cached(path: Path) -> tokenizers.Tokenizer | None:
    import tokenizers

    if not path.is_file():
        return None
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # a truncated or foreign file: convert again
        return None


def _store(tokenizer: tokenizers.Tokenizer, path: Path) -> None:
    """Write beside and rename; a cache that cannot be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
            partial = Path(file.name)
        tokenizer.save(str(partial), pretty=False)
        os.replace(partial, path)
    except OSError:
        return
