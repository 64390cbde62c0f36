"""Tokens to text as they come: never half a character, never part of a stop string.

Contract: the pieces returned by `feed` and `flush`, joined, equal the text of all the token bytes
decoded at once (UTF-8, invalid bytes replaced), cut at the first stop string; however the tokens
were split over calls. Each call costs time in its own tokens only.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence


class Detokenizer:
    """Incremental text of one completion.

    Which stop string wins: the one whose last character comes first; of several that end at the
    same character, the longest. (So the choice cannot depend on how the text was split.)

    Args:
        token_bytes: exact bytes of a token id; b"" for what is left out of the text.
        stop: stop strings, none of them empty.
        include_stop: keep the stop string at the end of the text.
        min_tokens: a stop string counts only if a token from this number on completes it.
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        stop: Sequence[str] = (),
        *,
        include_stop: bool = False,
        min_tokens: int = 0,
    ) -> None:
        self._token_bytes = token_bytes
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._matchers = tuple(_Matcher(text) for text in stop)
        self._first_chars = frozenset(text[0] for text in stop)
        self._include_stop = include_stop
        self._min_tokens = min_tokens
        self._held = ""
        self.num_tokens = 0
        self.matched_stop: str | None = None
        """The stop string that ended the text, once one has; later tokens add nothing."""

    def feed(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens make certain. "" after a stop string matched."""
        pieces: list[str] = []
        for token_id in token_ids:
            if self.matched_stop is not None:
                break
            self.num_tokens += 1
            text = self._decode(self._token_bytes(token_id))
            if text:
                pieces.append(self._advance(text) if self._matchers else text)
        return "".join(pieces)

    def flush(self) -> str:
        """The end: what was held back, an unfinished character as U+FFFD. "" after a stop string matched."""
        if self.matched_stop is not None:
            return ""
        text = self._decode(b"", True)
        if self._matchers:
            text = self._advance(text)
        held, self._held = self._held, ""
        return text + held

    def _advance(self, text: str) -> str:
        """Run the matchers over new text; returns what can no longer be part of a stop string."""
        if not self._held and self._first_chars.isdisjoint(text):
            return text  # no match under way (what is held is the longest of them) and none begins
        buffer = self._held + text
        counts = self.num_tokens >= self._min_tokens
        for end, char in enumerate(text, len(self._held) + 1):
            matched: _Matcher | None = None
            for matcher in self._matchers:
                if matcher.advance(char) and (matched is None or len(matcher.text) > len(matched.text)):
                    matched = matcher
            if matched is not None and counts:
                self.matched_stop = matched.text
                self._held = ""
                return buffer[: end if self._include_stop else end - len(matched.text)]
        keep = len(buffer) - max(matcher.length for matcher in self._matchers)
        self._held = buffer[keep:]
        return buffer[:keep]


class _Matcher:
    """Finds one string in a stream, one character at a time (Knuth, Morris & Pratt 1977).

    `length` is the longest prefix of the string, itself excluded, that ends the stream so far:
    the characters that may still become a match.
    """

    __slots__ = ("_failure", "length", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.length = 0
        self._failure = _failure_function(text)

    def advance(self, char: str) -> bool:
        """Take one character; True when the string is complete with it."""
        length, text, failure = self.length, self.text, self._failure
        while length and text[length] != char:
            length = failure[length - 1]
        if text[length] == char:
            length += 1
        complete = length == len(text)
        self.length = failure[length - 1] if complete else length
        return complete


def _failure_function(text: str) -> list[int]:
    """failure[i]: length of the longest proper prefix of text[:i+1] that is also its suffix."""
    failure = [0] * len(text)
    length = 0
    for i in range(1, len(text)):
        while length and text[i] != text[length]:
            length = failure[length - 1]
        if text[i] == text[length]:
            length += 1
        failure[i] = length
    return failure
