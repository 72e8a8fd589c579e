from __future__ import annotations

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from contracts import Message, Role, SamplingParams
from model.chat_model import GeneratorChatModel
from model.fake import FakeGenerator
from model.generator import LocalGenerator

DIALOGUE = [SystemMessage("Be brief."), HumanMessage("q1"), AIMessage("a1"), HumanMessage("q2")]


def test_answer_and_usage() -> None:
    fake = FakeGenerator(["Two words."])
    answer = GeneratorChatModel(generator=fake).invoke(DIALOGUE)
    assert answer.content == "Two words."
    assert answer.usage_metadata == {
        "input_tokens": fake.count_prompt_tokens(fake.prompts[0]),
        "output_tokens": 2,
        "total_tokens": fake.count_prompt_tokens(fake.prompts[0]) + 2,
    }
    assert answer.response_metadata["finish_reason"] == "stop"
    assert fake.prompts == [
        [
            Message(Role.SYSTEM, "Be brief."),
            Message(Role.USER, "q1"),
            Message(Role.ASSISTANT, "a1"),
            Message(Role.USER, "q2"),
        ]
    ]


def test_streams_piece_by_piece() -> None:
    chat = GeneratorChatModel(generator=FakeGenerator(["one two three"]))
    assert [chunk.text for chunk in chat.stream("go") if chunk.text] == ["one", " two", " three"]


def test_stands_in_a_chain() -> None:
    chat = GeneratorChatModel(generator=FakeGenerator(lambda messages: messages[-1].text.upper()))
    chain = ChatPromptTemplate.from_messages([("human", "dose of {drug}?")]) | chat | StrOutputParser()
    assert chain.invoke({"drug": "x"}) == "DOSE OF X?"


def test_sampling_is_passed_on() -> None:
    chat = GeneratorChatModel(generator=FakeGenerator(["a b c"]), params=SamplingParams(max_tokens=2))
    answer = chat.invoke("go")
    assert (answer.content, answer.response_metadata["finish_reason"]) == ("a b", "length")


def test_speaks_for_the_local_engine(checkpoint) -> None:
    generator = LocalGenerator.load(checkpoint)
    chat = GeneratorChatModel(generator=generator, params=SamplingParams(max_tokens=5))
    answer = chat.invoke(DIALOGUE)
    assert answer.usage_metadata["input_tokens"] == chat.get_num_tokens_from_messages(DIALOGUE)
    assert chat.get_num_tokens("Take 5 mg") == generator.count_tokens("Take 5 mg")


@pytest.mark.parametrize(
    ("messages", "options", "says"),
    [
        ([ToolMessage("x", tool_call_id="1")], {}, "type 'tool'"),
        ([HumanMessage([{"type": "image_url", "image_url": {"url": "x"}}])], {}, "Only text"),
        ([HumanMessage("x")], {"stop": ["\n"]}, "Stop texts"),
    ],
)
def test_what_it_cannot_do_is_said(messages: list, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        GeneratorChatModel(generator=FakeGenerator(["x"])).invoke(messages, **options)


def test_text_parts_are_joined() -> None:
    fake = FakeGenerator(["x"])
    GeneratorChatModel(generator=fake).invoke([HumanMessage([{"type": "text", "text": "a"}, "b"])])
    assert fake.prompts[0][0].text == "ab"
