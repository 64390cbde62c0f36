from __future__ import annotations

import datetime
import time
from typing import Any

import pytest

from ridgeline.engine.chat import ChatTemplate, check_messages, require_chat_template
from ridgeline.engine.errors import InvalidParameter, UnsupportedModel

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO = [{"role": "user", "content": "hi"}]


def test_renders_chatml() -> None:
    text = ChatTemplate(CHATML).render(HELLO)
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert ChatTemplate(CHATML).render(HELLO, add_generation_prompt=False).endswith("<|im_end|>\n")


def test_what_templates_use() -> None:
    source = (
        "{{ bos_token }}{%- for m in messages if m.role != 'x' -%}"
        "{{ loop.length }}{{ m['content'] | trim | upper }}"
        "{% if loop.last %}{% break %}{% endif %}{% endfor %}{% generation %}g{% endgeneration %}"
        "{{ {'a': 'é<'} | tojson }}{{ strftime_now('%Y') }}{% set a, b = 1, 2 %}{{ a ~ b }}"
        "{{ messages[-1:] | length }}{{ ['p', 'q'] | join(', ') }}{{ 'a,b'.split(',')[0] }}"
        "{% set ns = namespace(n=0) %}{% for i in range(3) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}"
    )
    template = ChatTemplate(source, bos_token="<s>", now=lambda: datetime.datetime(2031, 1, 1))
    assert template.render([*HELLO, *HELLO]) == '<s>2HI2HIg{"a": "é<"}2031121p, qa3'


def test_blocks_are_trimmed_as_in_transformers() -> None:
    assert (
        ChatTemplate("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}\n").render(HELLO) == "x\n"
    )


def test_the_template_may_refuse_messages() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidParameter, match="roles must alternate") as refused:
        template.render(HELLO)
    assert refused.value.param == "messages"


def test_developer_is_system_to_an_older_template() -> None:
    assert "system\nbe brief" in ChatTemplate(CHATML).render(
        [{"role": "developer", "content": "be brief"}, *HELLO]
    )
    newer = ChatTemplate("{% for m in messages %}{{ m.role }} {% endfor %}{# developer #}")
    assert newer.render([{"role": "developer", "content": "x"}]) == "developer "


def test_a_model_without_template_says_so() -> None:
    with pytest.raises(InvalidParameter, match="no chat template"):
        require_chat_template(None, "m")


NINETY = "{% set ns = namespace(s='aaaa') %}{% for i in range(90) %}STEP{% endfor %}"
HOSTILE = {
    "private attribute": "{{ ''.__class__ }}",
    "private item": "{{ ''['__class__'] }}",
    "private, put together": "{{ ''['__cla' ~ 'ss__']['x'] }}",
    "attr filter": "{{ ''|attr('x') }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'x' as x %}",
    "does not compile": "{% for %}",
    "absurd nesting": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "too long": "x" * (1 << 19),
    "endless loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "large range": "{% for i in range(10**9) %}{% endfor %}",
    "repetition": "{{ 'a' * 10**9 }}",
    "list repetition": "{{ [1] * 10**9 }}",
    "power": "{{ 10**(10**10) }}",
    "doubling by ~": NINETY.replace("STEP", "{% set ns.s = ns.s ~ ns.s %}"),
    "doubling by +": NINETY.replace("STEP", "{% set ns.s = ns.s + ns.s %}"),
    "doubling by blocks": NINETY.replace("STEP", "{% set x %}{{ns.s}}{{ns.s}}{% endset %}{% set ns.s = x %}"),
    "nested lists": NINETY.replace("STEP", "{% set ns.s = [ns.s, ns.s] %}"),
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "wide recursion": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "centre": "{{ 'a'.center(1000000000) }}",
    "format width": "{{ '{:1000000000}'.format(1) }}",
    "percent width": "{{ '%1000000000d' % 1 }}",
    "star width": "{{ '%*d' % (1000000000, 1) }}",
    "replace": "{{ ('a'*1000000).replace('a', 'b'*1000000) }}",
    "replace filter": "{{ ('a'*1000000)|replace('a', 'b'*1000000) }}",
    "join": "{{ ('b'*1000000).join(['a', 'a', 'a', 'a', 'a', 'a']) }}",
    "indent": "{{ 'a'|indent(1000000000, true) }}",
    "json indent": "{{ [1]|tojson(indent=1000000000) }}",
    "output": "{% for i in range(1000) %}{{ 'a' * 100000 }}{% endfor %}",
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_is_refused_at_load(source: str) -> None:
    start = time.monotonic()
    with pytest.raises(UnsupportedModel, match=r"^chat template: "):
        ChatTemplate(source)
    assert time.monotonic() - start < 20.0


def test_a_template_that_turns_hostile_later_fails_the_request_alone() -> None:
    template = ChatTemplate("{% if messages[0].content == 'bomb' %}{{ 'a' * 10**9 }}{% endif %}ok")
    with pytest.raises(InvalidParameter, match="more than 4000000"):
        template.render([{"role": "user", "content": "bomb"}])
    assert template.render(HELLO) == "ok"


def test_format_strings_reach_no_private_attribute() -> None:
    assert "class" not in ChatTemplate("{{ '{0.__class__}'.format(1) }}").render(HELLO)


def test_messages_are_not_changed_and_content_is_no_template() -> None:
    messages = [{"role": "user", "content": "{{ 7 * 7 }}"}]
    assert "{{ 7 * 7 }}" in ChatTemplate(CHATML).render(messages)
    with pytest.raises(UnsupportedModel, match="append"):
        ChatTemplate("{{ messages.append(1) }}")


def test_text_parts_are_joined() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert check_messages([{"role": "user", "content": content}]) == [{"role": "user", "content": "a\nb"}]


BAD_MESSAGES: list[tuple[Any, str]] = [
    ([], "messages"),
    ("hi", "messages"),
    ([{"role": "user", "content": "a"}] * 5000, "messages"),
    (["hi"], "messages[0]"),
    ([{"content": "a"}], "messages[0].role"),
    ([{"role": "wizard", "content": "a"}], "messages[0].role"),
    ([{"role": "user"}], "messages[0].content"),
    ([*HELLO, {"role": "user", "content": 3}], "messages[1].content"),
    ([{"role": "user", "content": []}], "messages[0].content"),
    ([{"role": "user", "content": ["a"]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
    ([{"role": "user", "content": [{"type": "text", "text": None}]}], "messages[0].content[0].text"),
    ([{"role": "user", "content": "\ud800"}], "messages[0].content"),
    ([{"role": "assistant", "content": "a", "tool_calls": [{}]}], "messages[0].tool_calls"),
]


@pytest.mark.parametrize(("messages", "param"), BAD_MESSAGES)
def test_bad_messages_are_named(messages: Any, param: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        check_messages(messages)
    assert refused.value.param == param
