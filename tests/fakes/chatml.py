"""ChatML as text: messages -> the prompt a Qwen-style template renders, and back.

The generate endpoint sees token ids only. Decoding them gives ChatML text, and this module turns that text
back into messages, so that a policy written over messages serves both endpoints. What it does not cover:
templates of other families (give `FakeModelServer(parse_prompt=...)` for those) and images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

START, END = "<|im_start|>", "<|im_end|>"
_TURN = re.compile(r"<\|im_start\|>(\w+)\n?(.*?)(?:<\|im_end\|>|(?=<\|im_start\|>)|\Z)", re.S)
_TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.S)
_TOOL_RESPONSE = re.compile(r"<tool_response>\n?(.*?)\n?</tool_response>", re.S)
_TOOLS = re.compile(r"<tools>\s*(.*?)\s*</tools>", re.S)


def text_of(content: Any) -> str:
    """The text of a message's content: a string as it is, the text parts of a list joined, None as ''."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content if part.get("type") == "text")


def tool_call_text(name: str, arguments: str) -> str:
    """One tool call as a Qwen3 model writes it; `arguments` is the JSON text of the arguments object."""
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments or "{}"}}}\n</tool_call>'


def render(messages: Sequence[dict[str, Any]]) -> str:
    """The messages as ChatML with the opening of the assistant's turn; used to count prompt tokens."""
    turns = []
    for message in messages:
        body = text_of(message.get("content"))
        for call in message.get("tool_calls") or ():
            function = call["function"]
            body += "\n" + tool_call_text(function["name"], function["arguments"])
        turns.append(f"{START}{message['role']}\n{body}{END}\n")
    return "".join(turns) + f"{START}assistant\n"


def parse(text: str) -> list[dict[str, Any]]:
    """The messages in a rendered ChatML prompt; the assistant's open turn at the end is left out.

    Tool responses, which Qwen templates put in a user turn, come back as `tool` messages; an assistant's
    tool calls come back in `tool_calls` with ids `call_0`, `call_1`, ... (the prompt does not carry ids).
    """
    turns = [(match.group(1), match.group(2)) for match in _TURN.finditer(text)]
    if turns and turns[-1][0] == "assistant" and not text.rstrip().endswith(END):
        turns.pop()
    messages: list[dict[str, Any]] = []
    for role, body in turns:
        responses = _TOOL_RESPONSE.findall(body) if role == "user" else []
        if responses:
            messages.extend({"role": "tool", "content": response} for response in responses)
        elif role == "assistant":
            messages.append(parse_assistant(body))
        else:
            messages.append({"role": role, "content": body})
    return messages


def parse_assistant(body: str) -> dict[str, Any]:
    """An assistant's turn as a message, its `<tool_call>` blocks taken out of the content."""
    message: dict[str, Any] = {"role": "assistant", "content": body}
    calls = [json.loads(block) for block in _TOOL_CALL.findall(body)]
    if calls:
        message["content"] = _TOOL_CALL.sub("", body).strip()
        message["tool_calls"] = [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])},
            }
            for number, call in enumerate(calls)
        ]
    return message


def parse_tools(text: str) -> list[dict[str, Any]]:
    """The tool definitions that a Qwen template wrote into the system turn; [] when there are none."""
    section = _TOOLS.search(text)
    if section is None:
        return []
    return [json.loads(line) for line in section.group(1).splitlines() if line.strip()]
