from __future__ import annotations

import signal
from typing import Any

import pytest

from ridgeline import LLM, SamplingParams
from ridgeline.core.request import Request
from ridgeline.engine.errors import ConfigError, ContextLengthExceeded, EngineClosed, InvalidParameter
from ridgeline.engine.intake import Intake
from ridgeline.engine.source import ModelSource
from tests.scripted_engine import EOS, ScriptedExecutor, byte_tokenizer, says, scripted_parts, user

HELLO = says("hello")


def scripted(script: Any = HELLO, **changes: Any) -> tuple[LLM, ScriptedExecutor]:
    parts, executor = scripted_parts(script, **changes)
    return LLM(parts=parts), executor


def echo(request: Request, index: int) -> int:
    return request.prompt[index] if index < len(request.prompt) else EOS


def test_one_prompt_or_several_in_text_or_tokens() -> None:
    llm, _ = scripted(echo)
    assert [o.completions[0].text for o in llm.generate("one")] == ["one"]
    assert [o.completions[0].text for o in llm.generate(["one", "three", "2"])] == ["one", "three", "2"]
    assert [o.completions[0].text for o in llm.generate([104, 105])] == ["hi"]
    assert [o.completions[0].text for o in llm.generate([[104], "you"])] == ["h", "you"]
    assert llm.generate([]) == []


def test_parameters_for_all_or_for_each() -> None:
    llm, _ = scripted(echo)
    outputs = llm.generate(["abcd", "abcd"], [SamplingParams(max_tokens=1), SamplingParams(max_tokens=2)])
    assert [o.completions[0].text for o in outputs] == ["a", "ab"]
    with pytest.raises(InvalidParameter, match="1 given for 2 prompts"):
        llm.generate(["a", "b"], [SamplingParams()])


def test_more_prompts_than_seats() -> None:
    llm, executor = scripted(echo, max_num_seqs=2)
    prompts = [f"prompt {i}" for i in range(9)]
    assert [o.completions[0].text for o in llm.generate(prompts)] == prompts
    assert max(len(plan.rows) for plan in executor.plans) == 2


def test_nothing_runs_when_one_prompt_is_bad() -> None:
    llm, executor = scripted()
    with pytest.raises(ContextLengthExceeded):
        llm.generate(["fine", [1] * 999])
    assert executor.plans == []


def test_an_interrupt_waits_for_the_end_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the second of two: an engine with a plan in flight could not go on."""
    llm, executor = scripted(echo)
    collect = executor.collect

    def interrupted() -> Any:
        signal.raise_signal(signal.SIGINT)
        return collect()

    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(executor, "collect", interrupted)
            with pytest.raises(KeyboardInterrupt):
                llm.generate("one")
        assert not llm.parts.engine.has_work()
    assert llm.generate("two")[0].completions[0].text == "two"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_chat() -> None:
    llm, _ = scripted(echo)
    (output,) = llm.chat([user("hi")])
    assert output.completions[0].text == output.prompt == "[user]hi\n>"
    assert [o.prompt for o in llm.chat([[user("a")], [user("b")]])] == ["[user]a\n>", "[user]b\n>"]
    with pytest.raises(InvalidParameter, match="role"):
        llm.chat([{"role": "x", "content": "y"}])


def test_chat_needs_a_template() -> None:
    llm, _ = scripted(tokenizer=byte_tokenizer(template=None))
    with pytest.raises(InvalidParameter, match="scripted has no chat template"):
        llm.chat([user("hi")])


def test_stream() -> None:
    llm, executor = scripted(says("hé!"))
    deltas = list(llm.stream("x", SamplingParams()))
    assert [delta.text for delta in deltas] == ["h", "", "é", "!", ""]
    assert deltas[-1].finish_reason == "stop"
    assert len(executor.plans) == 5


def test_an_abandoned_stream_gives_its_blocks_back() -> None:
    llm, _ = scripted(says("", then=97))
    stream = llm.stream("x", SamplingParams(max_tokens=100, ignore_eos=True))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    stats = llm.parts.engine.scheduler.stats()
    assert (stats.num_running, stats.num_held_blocks) == (0, 0)


def test_two_streams_side_by_side() -> None:
    llm, _ = scripted(echo)
    first, second = llm.stream("first", SamplingParams()), llm.stream("other", SamplingParams())
    texts = ["", ""]
    for one, two in zip(first, second, strict=False):
        texts[0] += one.text
        texts[1] += two.text
    assert texts == ["first", "other"]


def test_a_crash_is_the_callers_and_leaves_no_request() -> None:
    llm, executor = scripted()
    executor.crash = RuntimeError("kernel panic")
    with pytest.raises(RuntimeError, match="kernel panic"):
        llm.generate("x")


def test_closing() -> None:
    llm, executor = scripted()
    with llm:
        llm.generate("x")
    assert executor.closed
    llm.close()
    with pytest.raises(EngineClosed):
        llm.generate("x")


def test_progress_bar(capsys: pytest.CaptureFixture[str]) -> None:
    llm, _ = scripted()
    llm.generate(["x", "y"], progress_bar=True)
    llm.generate(["x", "y"])
    assert capsys.readouterr().out == ""


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size: is no option"):
        LLM(tensor_parallel_size=2)
    with pytest.raises(InvalidParameter, match="parts"):
        LLM("x", parts=scripted_parts(says("x"))[0])


def test_the_default_model_answers(default_model: ModelSource) -> None:
    """Everything real, on the numpy backend; other tests hold its tokens against transformers'."""
    with LLM(str(default_model.path), backend="reference", max_model_len=64, num_blocks=8) as llm:
        (output,) = llm.generate("The capital of France is", SamplingParams(temperature=0, max_tokens=2))
        assert output.completions[0].text == " Paris."
        assert output.completions[0].finish_reason == "length"
        assert llm.chat_template is not None
        assert llm.model_name


def test_an_end_token_without_logits_is_no_stop_token() -> None:
    intake = Intake(
        byte_tokenizer(), vocab_size=300, eos_token_ids=(EOS, 300), context_limit=256, draw_seed=lambda: 0
    )
    (core,) = intake.job("a", (1,), SamplingParams()).requests
    assert core.stop_token_ids == {EOS}
