"""LangChain's BaseChatModel over any contracts.Generator: the in-process engine, or a server that speaks for one.

chat = GeneratorChatModel(generator=LocalGenerator.load("path/to/checkpoint"))
chat.invoke([SystemMessage("..."), HumanMessage("...")]).content
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from contracts import GenerationEnd, Message, Role, SamplingParams, TextChunk

_ROLES: dict[type[BaseMessage], Role] = {
    SystemMessage: Role.SYSTEM,
    HumanMessage: Role.USER,
    AIMessage: Role.ASSISTANT,
}


class GeneratorChatModel(BaseChatModel):
    """Streams and answers with `generator` (a contracts.Generator) under `params` (a contracts.SamplingParams)."""

    generator: Any
    params: Any = SamplingParams()

    @property
    def _llm_type(self) -> str:
        return "bedside"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        info = self.generator.info
        return {"model": info.name, "precision": info.precision, "weights_sha256": info.weights_sha256}

    def get_num_tokens(self, text: str) -> int:
        return self.generator.count_tokens(text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[dict[str, Any] | type | Callable | Any] | None = None
    ) -> int:
        return self.generator.count_prompt_tokens(to_messages(messages))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        pieces = [chunk.message for chunk in self._stream(messages, stop, run_manager, **kwargs)]
        end = pieces[-1]
        assert isinstance(end, AIMessageChunk)
        message = AIMessage(
            content="".join(piece.text for piece in pieces),
            response_metadata=end.response_metadata,
            usage_metadata=end.usage_metadata,
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        if stop:
            raise ValueError("Stop texts are not supported; the model ends its answers itself.")
        for event in self.generator.stream(to_messages(messages), self.params):
            if isinstance(event, TextChunk):
                chunk = ChatGenerationChunk(message=AIMessageChunk(content=event.text))
                if run_manager:
                    run_manager.on_llm_new_token(event.text, chunk=chunk)
                yield chunk
            elif isinstance(event, GenerationEnd):
                yield ChatGenerationChunk(message=_describe_end(event, self.generator.info.name))


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """LangChain's messages as ours; ValueError for a kind we do not have, or for content other than text."""
    return [_to_message(message) for message in messages]


def _to_message(message: BaseMessage) -> Message:
    role = next((role for kind, role in _ROLES.items() if isinstance(message, kind)), None)
    if role is None:
        raise ValueError(f"Messages of type {message.type!r} are not supported; use system, human or ai.")
    if not isinstance(message.content, str):
        strange = [part for part in message.content if not isinstance(part, str) and part.get("type") != "text"]
        if strange:
            raise ValueError("Only text content is supported; this model does not read images or files.")
    return Message(role, str(message.text))


def _describe_end(end: GenerationEnd, model_name: str) -> AIMessageChunk:
    total = end.prompt_tokens + end.completion_tokens
    return AIMessageChunk(
        content="",
        response_metadata={"finish_reason": end.finish_reason, "model_name": model_name},
        usage_metadata=UsageMetadata(
            input_tokens=end.prompt_tokens, output_tokens=end.completion_tokens, total_tokens=total
        ),
        chunk_position="last",
    )
