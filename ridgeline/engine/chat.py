"""Chat messages to a prompt: the messages are checked, then the model's own template writes them out."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ridgeline.engine.errors import InvalidParameter, UnsupportedModel

if TYPE_CHECKING:
    from ridgeline.engine.tokenizing import Tokenizer

MAX_TEMPLATE_CHARS = 1 << 18
MAX_MESSAGES = 4096
ROLES = ("system", "developer", "user", "assistant")
MESSAGE_KEYS = frozenset(("role", "content", "name", "refusal"))

_TRIAL = (
    [{"role": "user", "content": "a"}],
    [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ],
)


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: jinja source, as it stands in the model's files.
        bos_token, eos_token: text of these tokens, which templates write out.
        now: the clock behind `strftime_now`.

    Raises UnsupportedModel when the source does not compile, is too long, or does what no chat
    template may (the message says what).
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        now: Callable[[], datetime.datetime] = datetime.datetime.now,
    ) -> None:
        from ridgeline.engine.template_sandbox import Sandbox

        if len(source) > MAX_TEMPLATE_CHARS:
            limit = f"{len(source)} characters, at most {MAX_TEMPLATE_CHARS} are read"
            raise UnsupportedModel(f"chat template: {limit}")
        self.source = source
        self._variables = {
            "bos_token": bos_token,
            "eos_token": eos_token,
            "strftime_now": lambda format: now().strftime(str(format)[:256]),
        }
        self._sandbox = Sandbox()
        try:
            self._template = self._sandbox.from_string(source)
        except Exception as error:  # jinja2's, and Python's own for absurd nesting
            raise UnsupportedModel(f"chat template: {_said(error)}") from None
        self._try_out()

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation; encode it with `add_special_tokens=False`.

        Raises InvalidParameter("messages...") for messages that are malformed (see
        `check_messages`) or that the template refuses.
        """
        return self._render(self._roles(check_messages(messages)), add_generation_prompt)

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        from ridgeline.engine.template_sandbox import Budget, TemplateRaised

        variables = {
            **self._variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
        }
        try:
            return self._sandbox.render(self._template, Budget(), variables)
        except TemplateRaised as error:
            raise InvalidParameter("messages", f"the chat template refused them: {_said(error)}") from None
        except Exception as error:
            raise InvalidParameter("messages", f"the chat template failed on them: {_said(error)}") from None

    def _roles(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """`developer` is `system` to a template that does not know the newer name."""
        if "developer" in self.source:
            return messages
        return [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]

    def _try_out(self) -> None:
        """Refuse now what would fail every request: a breach of the sandbox or of the budget."""
        from jinja2.exceptions import SecurityError

        from ridgeline.engine.template_sandbox import Budget, TemplateLimitExceeded

        fatal = (SecurityError, TemplateLimitExceeded, RecursionError, OverflowError, MemoryError)
        for messages in _TRIAL:
            variables = {**self._variables, "messages": messages, "add_generation_prompt": True}
            try:
                self._sandbox.render(
                    self._template, Budget(), {**variables, "tools": None, "documents": None}
                )
            except fatal as error:
                raise UnsupportedModel(f"chat template: {_said(error)}") from None
            except Exception:  # it may dislike these messages; requests bring their own
                continue


def load_chat_template(tokenizer: Tokenizer) -> ChatTemplate | None:
    """The model's template, None where it has none. Raises UnsupportedModel for one that is refused."""
    if tokenizer.chat_template is None:
        return None
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_ids
    return ChatTemplate(
        tokenizer.chat_template,
        bos_token=tokenizer.token_text(bos) if bos is not None else "",
        eos_token=tokenizer.token_text(eos[0]) if eos else "",
    )


def require_chat_template(template: ChatTemplate | None, model_name: str) -> ChatTemplate:
    """The template, or the error that a model without one gives to a chat."""
    if template is None:
        message = f"model {model_name} has no chat template, so it cannot chat; send a plain prompt instead"
        raise InvalidParameter("messages", message)
    return template


def check_messages(messages: object) -> list[dict[str, str]]:
    """Plain `role`/`content` dicts out of the API's messages; text parts are joined by newlines.

    Raises InvalidParameter naming the place, for example "messages[2].content[0].type".
    """
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        raise InvalidParameter("messages", "must be a non-empty list of messages")
    if len(messages) > MAX_MESSAGES:
        raise InvalidParameter("messages", f"at most {MAX_MESSAGES} messages, got {len(messages)}")
    return [_check_message(f"messages[{i}]", message) for i, message in enumerate(messages)]


def _check_message(place: str, message: object) -> dict[str, str]:
    if not isinstance(message, Mapping):
        raise InvalidParameter(place, f"must be an object, got {type(message).__name__}")
    role = message.get("role")
    if role not in ROLES:
        raise InvalidParameter(f"{place}.role", f"must be one of {', '.join(ROLES)}, got {str(role)[:40]!r}")
    for key, value in message.items():
        if key not in MESSAGE_KEYS and value not in (None, [], {}):
            raise InvalidParameter(f"{place}.{str(key)[:40]}", "is not supported")
    checked = {"role": str(role), "content": _check_content(f"{place}.content", message)}
    if message.get("name") is not None:
        checked["name"] = _check_text(f"{place}.name", message["name"])
    return checked


def _check_content(place: str, message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if content is None and message["role"] == "assistant" and message.get("refusal") is not None:
        return _check_text(place.replace("content", "refusal"), message["refusal"])
    if isinstance(content, str):
        return _check_text(place, content)
    if not isinstance(content, Sequence) or isinstance(content, bytes) or not content:
        raise InvalidParameter(place, "must be text or a non-empty list of text parts")
    return "\n".join(_check_part(f"{place}[{i}]", part) for i, part in enumerate(content))


def _check_part(place: str, part: object) -> str:
    if not isinstance(part, Mapping):
        raise InvalidParameter(place, f"must be an object, got {type(part).__name__}")
    kind = part.get("type")
    if kind not in ("text", "refusal"):
        raise InvalidParameter(f"{place}.type", f"only text parts are supported, got {str(kind)[:40]!r}")
    return _check_text(f"{place}.{kind}", part.get(kind))


def _check_text(place: str, text: object) -> str:
    if not isinstance(text, str):
        raise InvalidParameter(place, f"must be text, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidParameter(place, f"is not Unicode text: lone surrogate at {error.start}") from None
    return text


def _said(error: Exception) -> str:
    """An error in one bounded line."""
    text = " ".join(str(error).split()) or type(error).__name__
    line = getattr(error, "lineno", None)
    return (f"line {line}: " if line else "") + text[:300]
