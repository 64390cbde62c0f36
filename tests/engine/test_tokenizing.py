from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ridgeline.engine.detokenizing import Detokenizer
from ridgeline.engine.errors import UnsupportedModel
from ridgeline.engine.gguf_tokenizer import PRE_TOKENIZERS, merges_from_scores
from ridgeline.engine.source import ModelSource
from ridgeline.engine.tokenizing import Tokenizer, load_from_folder, load_from_gguf, load_tokenizer
from tests.scripted_engine import BOS, EOS, byte_tokenizer

TEXTS = [
    "",
    " ",
    "Hello world",
    "It's we'll I'd they've CAN'T don’t",
    "1234567890 3.14159 ²³ ٣٤",
    "  two\tspaces\n\n\nand   lines \r\n end  ",
    "naïve café 日本語 한국어 🙂👩‍👩‍👧 \u0000 \u200d",
    "def f(x):\n    return x**2  # ok\n\n\n\nprint(f(3))",
    "<|im_start|>user\nhi<|im_end|>\n",
]

LOST_BYTES = frozenset({4, 6, 19, 20, 22, 29, 192, 193, 241, 242, *range(245, 256)})


@pytest.fixture(scope="module")
def smollm(default_model: ModelSource) -> Tokenizer:
    return load_tokenizer(default_model)


# -- the default model's ------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_round_trip(smollm: Tokenizer, text: str) -> None:
    assert smollm.decode(smollm.encode(text), skip_special_tokens=False) == text


@settings(deadline=None)
@given(text=st.text())
def test_any_text_survives_but_for_bytes_without_a_token(smollm: Tokenizer, text: str) -> None:
    """The vocabulary has no token for 21 byte values, most of them control characters: those are lost."""
    known = b"".join(bytes([b]) for b in text.encode() if b not in LOST_BYTES)
    ids = smollm.encode(text)
    assert b"".join(map(smollm.token_bytes, ids)) == known
    assert smollm.decode(ids, skip_special_tokens=False) == known.decode("utf-8", "replace")


def test_known_ids(smollm: Tokenizer) -> None:
    """The ids that transformers gives the stored prompts of tests/references."""
    reference = json.loads((Path(__file__).parents[1] / "references" / "default_model.json").read_text())
    for case in reference["prompts"]:
        assert smollm.encode(case["prompt"]) == case["prompt_token_ids"]


def test_digits_stand_alone(smollm: Tokenizer) -> None:
    assert [smollm.token_text(i) for i in smollm.encode("2024 x12")] == ["2", "0", "2", "4", " x", "1", "2"]


def test_words_are_cut_as_gpt2_cuts_them(smollm: Tokenizer) -> None:
    assert [smollm.token_text(i) for i in smollm.encode("It's  we'll")] == ["It", "'s", " ", " we", "'ll"]


def test_special_tokens(smollm: Tokenizer) -> None:
    ids = smollm.encode("<|im_start|>user<|im_end|>")
    assert (ids[0], ids[-1]) == (1, 2)
    assert smollm.is_special(1) and not smollm.is_special(ids[1])
    assert smollm.decode(ids) == "user"
    assert smollm.bos_token_id == 1
    assert smollm.eos_token_ids == (2, 0)
    assert smollm.encode("hi") == smollm.encode("hi", add_special_tokens=False)
    assert smollm.chat_template is not None and "im_start" in smollm.chat_template
    assert smollm.token_bytes(2) == b"<|im_end|>"
    assert smollm.token_bytes_of(True)(2) == b""


def test_ids_outside_the_vocabulary_are_nothing(smollm: Tokenizer) -> None:
    assert smollm.vocab_size == 49_152
    assert [smollm.token_bytes(i) for i in (49_152, 10**9, 1 << 40, -1)] == [b""] * 4


def test_every_token_has_bytes_and_none_is_longer_than_said(smollm: Tokenizer) -> None:
    lengths = [len(smollm.token_bytes(i)) for i in range(smollm.vocab_size)]
    assert min(lengths) > 0
    assert max(lengths) <= smollm.longest_token_bytes
    alone = {smollm.token_bytes(i) for i in range(smollm.vocab_size)}
    assert {b for b in range(256) if bytes([b]) not in alone} == LOST_BYTES


@settings(deadline=None)
@given(text=st.text())
def test_streamed_text_is_decoded_text(smollm: Tokenizer, text: str) -> None:
    ids = smollm.encode(text)
    detokenizer = Detokenizer(smollm.token_bytes_of(True))
    assert "".join(detokenizer.feed([i]) for i in ids) + detokenizer.flush() == smollm.decode(ids)


def test_long_text_takes_the_other_road_to_the_same_ids(smollm: Tokenizer) -> None:
    line = "The quick brown fox jumps over 13 lazy dogs.\n"
    assert smollm.encode(line * 200) == smollm.encode(line) * 200


def test_lone_surrogates_are_refused(smollm: Tokenizer) -> None:
    with pytest.raises(UnicodeEncodeError):
        smollm.encode("a\ud800")


# -- pre-tokenizers ------------------------------------------------------------------------------


def words(pre: str, text: str) -> list[str]:
    """How a text is cut into words, by a vocabulary in which whole words are tokens."""
    tokenizer = byte_tokenizer()
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["a"],
        "tokenizer.ggml.merges": [],
    }
    core = load_from_gguf(metadata)._core
    cut = core.pre_tokenizer.pre_tokenize_str(text)
    return [b"".join(_spell(tokenizer, letter) for letter in word).decode() for word, _ in cut]


def _spell(tokenizer: Tokenizer, letter: str) -> bytes:
    token_id = tokenizer.token_id(letter)
    assert token_id is not None
    return bytes([token_id])


CUTS = [
    ("gpt-2", "I'll pay 1234, ok?\n\n x", ["I", "'ll", " pay", " 1234", ",", " ok", "?", "\n\n", " x"]),
    ("gpt-2", "I'LL  go", ["I", "'", "LL", " ", " go"]),
    ("smollm", "pay 1234 ½", ["pay", " ", "1", "2", "3", "4", " ", "½"]),
    ("llama-bpe", "I'LL pay 12345.\n\n  x", ["I", "'LL", " pay", " ", "123", "45", ".\n\n", " ", " x"]),
    ("qwen2", "I'LL pay 123!\n x", ["I", "'LL", " pay", " ", "1", "2", "3", "!\n", " x"]),
    ("tekken", "HelloWorld pay 12/\n", ["Hello", "World", " pay", " ", "1", "2", "/\n"]),
]


@pytest.mark.parametrize(("pre", "text", "expected"), CUTS)
def test_pre_tokenizers(pre: str, text: str, expected: list[str]) -> None:
    assert words(pre, text) == expected


@settings(deadline=None)
@given(pre=st.sampled_from(sorted(PRE_TOKENIZERS)), text=st.text(max_size=40))
def test_pre_tokenizers_lose_nothing(pre: str, text: str) -> None:
    assert "".join(words(pre, text)) == text


def test_merges_make_tokens() -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b", "ab", "abab", "Ġ"],
        "tokenizer.ggml.merges": ["a b", "ab ab"],
    }
    assert load_from_gguf(metadata).encode("ababab ab") == [3, 2, 4, 2]


# -- SentencePiece --------------------------------------------------------------------------------

PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{b:02X}>" for b in range(256)),
    "▁",
    "a",
    "b",
    "▁a",
    "ab",
    "▁ab",
    "▁▁",
]


def sentencepiece(**changes: Any) -> Tokenizer:
    scores = [0.0] * 259 + [-10.0, -11.0, -12.0, -3.0, -2.0, -1.0, -9.0]
    return load_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": PIECES,
            "tokenizer.ggml.scores": scores,
            "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * 7,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
            **changes,
        }
    )


def test_sentencepiece_prefixes_a_space_and_takes_it_back() -> None:
    tokenizer = sentencepiece()
    ids = tokenizer.encode("ab ab")
    assert [PIECES[i] for i in ids] == ["<s>", "▁ab", "▁ab"]
    assert tokenizer.decode(ids) == "ab ab"
    assert tokenizer.decode(ids[2:], continuation=True) == " ab"


def test_sentencepiece_without_prefix() -> None:
    tokenizer = sentencepiece(
        **{"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_bos_token": False}
    )
    assert [PIECES[i] for i in tokenizer.encode("ab ab")] == ["ab", "▁ab"]
    assert tokenizer.decode(tokenizer.encode(" ab")) == " ab"


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"])))
def test_sentencepiece_falls_back_to_bytes(text: str) -> None:
    tokenizer = sentencepiece()
    assert tokenizer.decode(tokenizer.encode(text)) == text or "<" in text


def test_best_score_merges_first() -> None:
    assert merges_from_scores(["a", "b", "c", "ab", "bc", "abc"], [-9, -9, -9, -2, -1, -3], [1] * 6) == [
        ("b", "c"),
        ("a", "b"),
        ("a", "bc"),
        ("ab", "c"),
    ]


def test_user_defined_tokens_are_found_whole_and_stay_text() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("x<tool>y")
    assert ids == [ord("x"), 258, ord("y")]
    assert tokenizer.decode(ids) == "x<tool>y"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (BOS, (EOS,))


def test_a_large_conversion_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ridgeline.engine import gguf_tokenizer

    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_tokenizer, "CACHED_FROM", 1)
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["a", "b", "ab"],
        "tokenizer.ggml.scores": [-1.0, -2.0, -0.5],
        "tokenizer.ggml.token_type": [1, 1, 1],
        "tokenizer.ggml.add_space_prefix": False,
    }
    first = load_from_gguf(metadata, model)
    (cached,) = (tmp_path / "cache" / "tokenizers").iterdir()
    assert cached.suffix == ".json"
    monkeypatch.setattr(gguf_tokenizer, "_sentencepiece_bpe", lambda metadata: pytest.fail("converted again"))
    assert load_from_gguf(metadata, model).encode("abab") == first.encode("abab") == [2, 2]
    monkeypatch.undo()
    monkeypatch.setenv("RIDGELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf_tokenizer, "CACHED_FROM", 1)
    cached.write_text("{")
    assert load_from_gguf(metadata, model).encode("ab") == [2]


# -- refusals --------------------------------------------------------------------------------------

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model = 'bert'"),
    ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model = None"),
    ({"tokenizer.ggml.pre": "klingon"}, "tokenizer.ggml.pre = 'klingon'"),
    ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
    ({"tokenizer.ggml.tokens": []}, "0 tokens"),
    ({"tokenizer.ggml.tokens": ["a", 3]}, "must be a string"),
    ({"tokenizer.ggml.tokens": ["a" * 5000, "b"]}, "longer than"),
    ({"tokenizer.ggml.merges": ["ab"]}, "tokenizer.ggml.merges: 'ab'"),
    ({"tokenizer.ggml.merges": ["x y"]}, "tokenizer.ggml.merges"),
    ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges is missing"),
    ({"tokenizer.ggml.token_type": [1]}, "token_type: 1 entries for 2"),
    ({"tokenizer.ggml.eos_token_id": 7}, "tokenizer.ggml.eos_token_id = 7"),
    ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [1.0]}, "scores: 1 entries for 2"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["a", "b"],
        "tokenizer.ggml.merges": [],
        **changes,
    }
    with pytest.raises(UnsupportedModel, match=message.replace("(", "\\(")):
        load_from_gguf({key: value for key, value in metadata.items() if value is not None})


# -- folders ---------------------------------------------------------------------------------------


def write_folder(folder: Path, **files: Any) -> Path:
    byte_tokenizer()._core.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_folder(tmp_path: Path) -> None:
    folder = write_folder(
        tmp_path,
        tokenizer_config={"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "chat_template": "T"},
        generation_config={"eos_token_id": [5, 256]},
    )
    tokenizer = load_from_folder(folder)
    assert tokenizer.encode("hé<eos>") == [104, 195, 169, EOS]
    assert tokenizer.decode([104, 195, 169, EOS]) == "hé"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids, tokenizer.chat_template) == (BOS, (5, 256), "T")


def test_named_templates_and_the_template_file(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "A"}, {"name": "default", "template": "B"}]
    folder = write_folder(tmp_path, tokenizer_config={"chat_template": named})
    assert load_from_folder(folder).chat_template == "B"
    (folder / "chat_template.jinja").write_text("C")
    assert load_from_folder(folder).chat_template == "C"


def test_a_folder_without_or_with_a_broken_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json is missing"):
        load_from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match=r"tokenizer\.json"):
        load_from_folder(tmp_path)
    write_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[" * 100_000)
    with pytest.raises(UnsupportedModel, match=r"tokenizer_config\.json: not JSON"):
        load_from_folder(tmp_path)


def test_a_decoder_that_is_not_known_is_refused(tmp_path: Path) -> None:
    import tokenizers
    from tokenizers import decoders, models

    core = tokenizers.Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    core.decoder = decoders.WordPiece()
    core.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedModel, match="decoder WordPiece is not supported"):
        load_from_folder(tmp_path)
