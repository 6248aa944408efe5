"""Ready models for tests: each writes, as text, what a model under the RLM scaffold may write.

All are functions of the request (or make one), so they serve chat and generate alike. A sub-LLM's request is
told from the root's by its prompt: policies that ask sub-LLMs begin each sub-prompt with `SUB`, since the
ids that tell them apart are stripped before they reach a model server.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from tests.fakes.wire import ChatRequest, Policy, Reply, ToolCall

SUB = "[sub] "


def fence(code: str, thought: str = "") -> str:
    """A root turn that runs `code`."""
    return (thought + "\n\n" if thought else "") + f"```python\n{code}\n```"


def finish(expression: str) -> str:
    """Code that sets the answer to the value of a Python expression and declares it ready."""
    return f'answer["content"] = str({expression})\nanswer["ready"] = True'


def is_sub(request: ChatRequest) -> bool:
    return request.first_user.startswith(SUB)


def script(*turns: str | Reply, sub: str | Reply | Callable[[ChatRequest], str | Reply] = "ok") -> Policy:
    """Answers the root's n-th call of each conversation with the n-th turn, the last one ever after.

    Args:
        turns: strings and Replies, faults included. A fault is given again when the call is repeated.
        sub: what sub-LLMs answer.
    """
    if not turns:
        raise ValueError("script() needs at least one turn")

    def policy(request: ChatRequest) -> str | Reply:
        if is_sub(request):
            return sub(request) if callable(sub) else sub
        return turns[min(request.turn, len(turns) - 1)]

    return policy


def sequence(*replies: str | Reply) -> Policy:
    """Answers the server's n-th request with the n-th reply, whoever asks; then raises."""

    def policy(request: ChatRequest) -> str | Reply:
        if request.index >= len(replies):
            raise AssertionError(f"request {request.index} came, the sequence has {len(replies)} replies")
        return replies[request.index]

    return policy


def route(routes: Mapping[str, str | Reply], otherwise: str | Reply | None = None) -> Policy:
    """Answers by the first regular expression found in the last message; raises when none is."""

    def policy(request: ChatRequest) -> str | Reply:
        for pattern, reply in routes.items():
            if re.search(pattern, request.last, re.S):
                return reply
        if otherwise is None:
            raise AssertionError(f"no route for {request.last[:200]!r}")
        return otherwise

    return policy


def echo(request: ChatRequest) -> str:
    """Says back the last message."""
    return request.last


def slow(policy: Policy, seconds: float) -> Policy:
    """`policy`, each reply delayed by `seconds`."""

    def delayed(request: ChatRequest) -> Reply:
        answer = policy(request)
        if not isinstance(answer, str):
            raise TypeError("slow() delays policies that return text")
        return Reply(answer, delay=seconds)

    return delayed


def flaky(policy: Policy, fault: Reply, every: int) -> Policy:
    """`policy`, but each `every`-th request gets the fault (the first one is number 1)."""

    def unreliable(request: ChatRequest):  # type: ignore[no-untyped-def]
        return fault if (request.index + 1) % every == 0 else policy(request)

    return unreliable


# ---- what good models do

copy_context = script(fence(finish("context"), "The text is in `context`: copy it by code."))
"""Sets the answer to the context."""


def answer_with(text: str) -> Policy:
    """Sets the answer to `text` in one turn of code."""
    return script(fence(finish(repr(text))))


def look_then_answer(expression: str = "context") -> Policy:
    """Looks at the start of the context first, then answers with the value of an expression."""
    return script(fence("print(type(context), len(context), str(context)[:200])"), fence(finish(expression)))


def ask_subs(count: int = 4, sub: Callable[[ChatRequest], str | Reply] | str | None = None) -> Policy:
    """Sends `count` prompts in one batch and answers with the replies, one a line.

    By default the sub-LLM answers with the number in its prompt.
    """

    def number(request: ChatRequest) -> str:
        found = re.search(r"number (\d+)", request.first_user)
        return found.group(1) if found else "no number"

    code = (
        f"replies = llm_batch([{SUB!r} + f'say number {{i}}' for i in range({count})])\n"
        "print(len(replies))\n" + finish("'\\n'.join(replies)")
    )
    return script(fence(code), sub=sub if sub is not None else number)


def call_tool(name: str, arguments: Mapping[str, object], final: str) -> Policy:
    """Calls a tool natively once, then says `final`."""
    return script(Reply(tool_calls=[ToolCall(name, dict(arguments))]), final)


# ---- what untrained models do wrong

never_uses_code = script("The answer is 42.")
"""Talks, and never writes a code block."""

ready_too_early = script(fence('answer["ready"] = True'))
"""Declares an empty answer ready."""

prints_whole_context = script(fence("print(context)"), fence(finish("context")))
"""Prints everything before it answers."""

syntax_error = script(fence("print('unclosed"), fence(finish("'recovered'")))
"""A syntax error, then an answer."""

raises = script(fence("def f():\n    return 1 / 0\n\nf()"), fence(finish("'recovered'")))
"""A traceback, then an answer."""

loops_forever = script(fence("while True:\n    pass"), fence(finish("'survived'")))
"""Code that never yields, then an answer."""

exits = script(fence("kept = 1\nimport os\nos._exit(3)"), fence(finish("'survived'")))
"""Kills its REPL, then answers."""

eats_memory = script(
    fence("blocks = []\nwhile True:\n    blocks.append(bytearray(1 << 26))"), fence(finish("'survived'"))
)
"""Allocates without end, then answers."""

never_ready = script(fence('answer["content"] = "draft " + str(len(answer["content"]))'))
"""Edits the answer for ever."""

overwrites_names = script(
    fence("llm_batch = None\nanswer = 'mine'\ncontext = 0"), fence(finish("type(context).__name__"))
)
"""Takes the reserved names for itself, then answers."""


def asks_one_at_a_time(count: int = 4) -> Policy:
    """Calls sub-LLMs in a loop instead of a batch."""
    code = f"replies = [llm_query({SUB!r} + str(i)) for i in range({count})]\n" + finish("len(replies)")
    return script(fence(code))


def by_task(policies: Sequence[tuple[str, Policy]]) -> Policy:
    """The first policy whose key is in the root's first user message answers; raises when none is."""

    def policy(request: ChatRequest):  # type: ignore[no-untyped-def]
        for key, chosen in policies:
            if key in request.first_user:
                return chosen(request)
        raise AssertionError(f"no policy for the task {request.first_user[:200]!r}")

    return policy
