"""Text to token ids and back.

One definition of text: the text of token ids is the UTF-8 decoding, invalid bytes replaced, of the
bytes of each token one after another. Streaming (`Detokenizer`) and whole (`Tokenizer.decode`) both
follow it, so they agree. `encode` is the `tokenizers` library's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ridgeline.engine.errors import UnsupportedModel
from ridgeline.engine.gguf_tokenizer import CONTROL, adds_bos, adds_space_prefix, build_from_gguf

if TYPE_CHECKING:
    import tokenizers

    from ridgeline.engine.source import ModelSource

Spelling = Literal["byte_level", "sentencepiece"]
"""How a vocabulary spells bytes: GPT-2's byte alphabet, or "▁" for a space and <0xAB> for a byte."""

MAX_JSON_BYTES = 256 << 20
_LONG_TEXT_CHARS = 4096
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")

END_OF_TURN = frozenset(
    ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>")
)
"""Control tokens that end a turn in the families served, whatever the file's eos_token_id says."""


class Tokenizer:
    """A model's tokenizer with exact token bytes.

    Attributes:
        vocab_size: ids are below this (the embedding may have more rows).
        bos_token_id, eos_token_ids: generation ends at any of the latter.
        chat_template: jinja source, None where the model has none.
        longest_token_bytes: no token stands for more bytes than this.
    """

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        *,
        spelling: Spelling,
        bos_token_id: int | None = None,
        eos_token_ids: Iterable[int] = (),
        prepend_bos: bool = False,
        append_eos: bool = False,
        strips_space: bool = False,
        chat_template: str | None = None,
    ) -> None:
        self._core = core
        self._added = {
            token_id: (token.content, bool(token.special))
            for token_id, token in core.get_added_tokens_decoder().items()
        }
        self._special = frozenset(token_id for token_id, (_, special) in self._added.items() if special)
        self._spell = _spell_byte_level if spelling == "byte_level" else _spell_sentencepiece
        self._prefix = [bos_token_id] if prepend_bos and bos_token_id is not None else []
        eos = tuple(dict.fromkeys(eos_token_ids))
        self._suffix = [eos[0]] if append_eos and eos else []
        self._strips_space = strips_space
        self._bytes: dict[int, bytes] = {}
        self._longest: int | None = None
        self.bos_token_id = bos_token_id
        self.eos_token_ids = eos
        self.chat_template = chat_template
        self.vocab_size: int = core.get_vocab_size(with_added_tokens=True)

    def save(self, path: Path) -> None:
        """Write it as a tokenizer.json."""
        self._core.save(str(path))

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; with `add_special_tokens` those that the model expects around plain text.

        Special tokens written out in the text are recognised. Raises ValueError when the text is
        not Unicode (a lone surrogate).
        """
        text.encode("utf-8")  # the library would fail with a less clear error
        if len(text) > _LONG_TEXT_CHARS:  # the batch call lets other threads run meanwhile
            (encoding,) = self._core.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        else:
            encoding = self._core.encode(text, add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return self._prefix + ids + self._suffix if add_special_tokens else ids

    def decode(
        self, token_ids: Sequence[int], skip_special_tokens: bool = True, *, continuation: bool = False
    ) -> str:
        """Text of `token_ids`; b"" for ids outside the vocabulary.

        A vocabulary that prefixes text with a space loses that space again here, unless the ids
        are a `continuation` of earlier text (then the text is exactly what a Detokenizer streams).
        """
        read = self.token_bytes_of(skip_special_tokens)
        text = b"".join(map(read, token_ids)).decode("utf-8", "replace")
        return text[1:] if self._strips_space and not continuation and text.startswith(" ") else text

    def token_bytes(self, token_id: int) -> bytes:
        """Exact bytes the token stands for (perhaps part of a character); special tokens spelled out."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._find_bytes(token_id)
        return known

    def token_bytes_of(self, skip_special_tokens: bool) -> Callable[[int], bytes]:
        """`token_bytes`, or the same with b"" for special tokens."""
        if not skip_special_tokens:
            return self.token_bytes
        special, token_bytes = self._special, self.token_bytes
        return lambda token_id: b"" if token_id in special else token_bytes(token_id)

    def token_text(self, token_id: int) -> str:
        """The token decoded alone; bytes that are not whole characters become U+FFFD."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def token_id(self, token: str) -> int | None:
        """Id of a token by its spelling in the vocabulary."""
        found: int | None = self._core.token_to_id(token)
        return found

    def is_special(self, token_id: int) -> bool:
        """Whether the token is left out of text by `skip_special_tokens`."""
        return token_id in self._special

    @property
    def longest_token_bytes(self) -> int:
        """Bytes of the longest token (computed on first use)."""
        if self._longest is None:
            vocab = self._core.get_vocab(with_added_tokens=True)
            self._longest = max(len(token.encode("utf-8")) for token in vocab)
        return self._longest

    def _find_bytes(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id][0].encode("utf-8")
        if not 0 <= token_id < 1 << 31:
            return b""
        token = self._core.id_to_token(token_id)
        return b"" if token is None else self._spell(token)


def load_tokenizer(source: ModelSource, metadata: Mapping[str, Any] | None = None) -> Tokenizer:
    """The tokenizer of a GGUF file (`metadata`: its header's, read here if not given) or of a folder.

    Raises UnsupportedModel naming what is missing or not supported.
    """
    path = Path(source.path)
    if source.kind == "folder":
        return load_from_folder(path)
    if metadata is None:
        from ridgeline.facts.gguf import read_gguf_header

        metadata = read_gguf_header(path).metadata
    return load_from_gguf(metadata, path)


def load_from_gguf(metadata: Mapping[str, Any], path: Path | None = None) -> Tokenizer:
    """See `load_tokenizer`; `path` is only the key of the cache of slow conversions."""
    core = build_from_gguf(metadata, path)
    template = metadata.get("tokenizer.chat_template")
    return Tokenizer(
        core,
        spelling="byte_level" if metadata["tokenizer.ggml.model"] == "gpt2" else "sentencepiece",
        bos_token_id=_token_id_in(metadata, "bos_token_id", core),
        eos_token_ids=_gguf_eos(metadata, core),
        prepend_bos=adds_bos(metadata),
        append_eos=bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        strips_space=adds_space_prefix(metadata),
        chat_template=template if isinstance(template, str) and template.strip() else None,
    )


def load_from_folder(folder: Path) -> Tokenizer:
    """From `tokenizer.json` and its neighbours: tokenizer and generation config, chat_template.jinja."""
    import tokenizers

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UnsupportedModel(f"{folder}: tokenizer.json is missing (no other tokenizer file is read)")
    _check_size(path)
    try:
        core = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise UnsupportedModel(f"{path}: {error}") from None
    core.no_truncation()
    core.no_padding()
    config = read_json(folder / "tokenizer_config.json")
    spelling, strips_space = _decoder_style(core, path)
    return Tokenizer(
        core,
        spelling=spelling,
        bos_token_id=_named_id(config.get("bos_token"), core),
        eos_token_ids=_folder_eos(folder, config, core),
        strips_space=strips_space,
        chat_template=_folder_template(folder, config),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; {} when there is none. Raises UnsupportedModel when it is not one."""
    if not path.is_file():
        return {}
    _check_size(path)
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UnsupportedModel(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UnsupportedModel(f"{path}: a JSON object is expected, found {type(value).__name__}")
    return value


# -- GGUF ---------------------------------------------------------------------------------------


def _token_id_in(metadata: Mapping[str, Any], name: str, core: tokenizers.Tokenizer) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return None
    if not isinstance(value, int) or core.id_to_token(value) is None:
        raise UnsupportedModel(f"tokenizer.ggml.{name} = {value!r} is not a token id")
    return value


def _gguf_eos(metadata: Mapping[str, Any], core: tokenizers.Tokenizer) -> list[int]:
    """The file's eos and end-of-turn ids, then control tokens known to end a turn."""
    named = (_token_id_in(metadata, name, core) for name in ("eos_token_id", "eot_token_id", "eom_token_id"))
    ids = [token_id for token_id in named if token_id is not None]
    types = metadata.get("tokenizer.ggml.token_type")
    for token in sorted(END_OF_TURN):
        token_id = core.token_to_id(token)
        if token_id is not None and types is not None and types[token_id] == CONTROL:
            ids.append(token_id)
    return ids


# -- folders ------------------------------------------------------------------------------------


def _check_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise UnsupportedModel(f"{path}: {size} bytes, at most {MAX_JSON_BYTES} are read")


def _decoder_style(core: tokenizers.Tokenizer, path: Path) -> tuple[Spelling, bool]:
    """How the vocabulary spells bytes, and whether decoding drops a leading space."""
    decoder = core.decoder
    state = {} if decoder is None else json.loads(decoder.__getstate__())
    steps = state.get("decoders", [state]) if state else []
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return "byte_level", False
    if kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        strips = any(
            step["type"] == "Strip"
            or (step["type"] == "Metaspace" and step.get("prepend_scheme", "never") != "never")
            for step in steps
        )
        return "sentencepiece", strips
    found = ", ".join(sorted(str(kind) for kind in kinds)) or "none"
    raise UnsupportedModel(f"{path}: decoder {found} is not supported (byte-level and SentencePiece are)")


def _named_id(token: object, core: tokenizers.Tokenizer) -> int | None:
    """Id of a token given as text or as {"content": text}."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return core.token_to_id(token) if isinstance(token, str) else None


def _folder_eos(folder: Path, config: Mapping[str, Any], core: tokenizers.Tokenizer) -> list[int]:
    said = read_json(folder / "generation_config.json").get("eos_token_id")
    if said is None:
        said = read_json(folder / "config.json").get("eos_token_id")
    ids = said if isinstance(said, list) else [said]
    ids = [*ids, _named_id(config.get("eos_token"), core)]
    return [i for i in ids if type(i) is int and core.id_to_token(i) is not None]


def _folder_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        _check_size(path)
        return path.read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # [{"name": "default", "template": ...}, ...]
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, Mapping)}
        template = named.get("default")
    return template if isinstance(template, str) else None


# -- spelling -----------------------------------------------------------------------------------


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet (Radford et al. 2019): printable bytes stand for themselves, others for 256 + n."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = (byte for byte in range(256) if byte not in printable)
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + n): byte for n, byte in enumerate(hidden)})
    return alphabet


_ALPHABET = _byte_alphabet()


def _spell_byte_level(token: str) -> bytes:
    try:
        return bytes([_ALPHABET[char] for char in token])
    except KeyError:  # not in the alphabet: written as it is
        return token.encode("utf-8")


def _spell_sentencepiece(token: str) -> bytes:
    piece = _BYTE_PIECE.fullmatch(token)
    return bytes.fromhex(piece.group(1)) if piece else token.replace("▁", " ").encode("utf-8")
