"""Whole episodes: verifiers' environment, the tool server in a process of its own, a scripted model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import verifiers.v1 as vf
from deepdive import DeepDiveConfig, DeepDiveTaskset
from verifiers.v1.harnesses.utils.mcp import MCPConnection, mcp_content_to_chat_content
from verifiers.v1.mcp import serve_shared
from verifiers.v1.utils.loaders import load_environment, resolve_env_config

from tests.environments.deepdive import site as sites
from tests.fakes import FakeModelServer, Reply, ToolCall
from tests.fakes.wire import ChatRequest

PATIENT = {"seconds": 300.0, "pattern_seconds": 60.0}
"""Limits of the reader processes that a busy machine keeps too."""


async def run(
    policy: Callable[[ChatRequest], Any], harness: dict[str, Any], episodes: int = 1, **taskset: Any
) -> tuple[list[vf.Episode], FakeModelServer]:
    """Episodes of the first tasks, at the same time, over one tool server."""
    async with FakeModelServer(policy) as server:
        client = {"base_url": server.base_url, "api_key_var": "NONE"}
        config = resolve_env_config(
            {
                "taskset": {
                    "id": "deepdive",
                    "split": "mini",
                    "num_tasks": episodes,
                    "tools": {"reader": PATIENT},
                    **taskset,
                },
                "agent": {"harness": {"id": "rlm-env", **harness}, "runtime": {"type": "subprocess"}},
            }
        )
        env = load_environment(config)
        context = vf.ModelContext(
            model="fake-model", client=vf.EvalClientConfig(**client), sampling=vf.SamplingConfig()
        )
        done = []
        async with env.serving():
            for task in env.taskset:
                done.append(await env.run_episode(task, context))
    return done, server


def researcher(request: ChatRequest) -> Reply:
    """Searches for the words of the question, opens the first hit and one page that is not there, and answers
    with the title of what it saw."""
    if request.turn == 0:
        names = {tool["function"]["name"] for tool in request.tools}
        assert {"search_web", "scan_page", "open_lines", "open"} <= names
        words = request.first_user.split("\n")[0]
        calls = [
            ToolCall("search_web", {"queries": [words, f"{words} again"], "num_results": 3}),
            ToolCall("open", {"url": "https://nowhere.example/"}),
        ]
        return Reply(tool_calls=calls)
    if request.turn == 1:
        url = re.search(r"https://\S+", request.messages[-2]["content"])
        assert url
        return Reply(tool_calls=[ToolCall("open", {"url": url[0]})])
    title = re.search(r"Title: (.*)", request.last)
    assert title
    return Reply(content=rf"\boxed{{{title[1]}}}")


async def test_a_plain_model_with_the_tools() -> None:
    (episode,), server = await run(researcher, {"scaffold": "llm"}, mode="llm")
    assert episode.ok
    (trace,) = episode.traces
    assert len(server.requests) == 3
    assert trace.metrics["searches"] == 2
    assert trace.metrics["pages"] == 2
    assert trace.metrics["web_failures/http_status"] == 1
    assert trace.metrics["web_failed_calls/open"] == 1
    assert trace.metrics["web_calls/open"] == 2
    assert trace.metrics["judged_by_llm"] == 0
    assert trace.info["deepdive"]["tools"]["urls"][0] == "https://nowhere.example/"
    replies = [m for m in server.requests[-1].messages if m["role"] == "tool"]
    assert any("HTTP 404" in str(m["content"]) for m in replies), "the model reads why a page failed"
    assert server.requests[0].first_user == trace.task.data.prompt


def delegating(request: ChatRequest) -> Reply:
    """A root that gives eight searches to sub-LLMs at once; each sub-LLM makes one call and reports."""
    if request.tools or "sub-task" in request.first_user:
        if request.turn == 0:
            number = re.search(r"sub-task (\d+)", request.first_user)
            assert number
            return Reply(tool_calls=[ToolCall("search_web", {"queries": [f"expedition number {number[1]}"]})])
        return Reply(content="found " + str(request.last.count("https://")))
    if request.turn == 0:
        code = (
            "found = llm_batch([f'sub-task {n}: search' for n in range(8)])\n"
            "print(found)\n"
            "answer['content'] = '\\\\boxed{' + str(len(found)) + '}'\nanswer['ready'] = True"
        )
        return Reply(content=f"```python\n{code}\n```")
    raise AssertionError("the answer was ready")


async def test_parallel_sub_llms_are_counted_to_the_last_call() -> None:
    """Eight sub-LLMs call the shared server at the same moment, for one episode's counts."""
    (episode,), server = await run(delegating, {})
    (trace,) = episode.traces
    assert episode.ok, trace.errors
    assert trace.metrics["searches"] == 8
    assert trace.metrics["web_calls/search_web"] == 8
    assert sorted(trace.info["deepdive"]["tools"]["queries"]) == [f"expedition number {n}" for n in range(8)]
    for request in server.requests:
        assert trace.task.data.answer not in json.dumps(request.messages).replace(
            trace.task.data.question, ""
        )


async def test_a_judge_that_fails_is_an_error_of_the_episode() -> None:
    """Three questions, three kinds of judge: right, wrong, and no verdict. The judge goes by the question."""
    verdicts = ["VERDICT: CORRECT", "VERDICT: INCORRECT", "no idea"]
    asked = [task.data.question for task in DeepDiveTaskset(DeepDiveConfig(split="mini", num_tasks=3))]
    seen: list[str] = []

    def judge(request: ChatRequest) -> str:
        (message,) = request.messages
        seen.append(message["content"])
        (index,) = (n for n, question in enumerate(asked) if question in message["content"])
        return verdicts[index]

    async with FakeModelServer(judge) as server:
        settings = {"base_url": server.base_url, "api_key_var": "NONE", "model": "judge", "attempts": 2}
        episodes, _ = await run(
            lambda request: r"After some thought: \boxed{the Undine}",
            {"scaffold": "llm"},
            episodes=3,
            task={"scoring": "judge", "judge": {**settings, "backoff_seconds": 0}},
        )
    traces = [episode.traces[0] for episode in episodes]
    assert [trace.task.data.question for trace in traces] == asked
    assert [episode.ok for episode in episodes] == [True, True, False]
    assert [trace.rewards["correct"].score for trace in traces[:2]] == [1, 0]
    assert "no verdict" in traces[2].errors[-1].message
    assert len(seen) == 4, "once each, and once more for the one that gave no verdict"
    assert all('Given answer: "the Undine"' in text for text in seen)
    assert not any("some thought" in text or "search_web" in text for text in seen), "the answer and no more"
    assert all(trace.metrics["judged_by_llm"] == 1 for trace in traces[:2])
    record = {"by": "llm_judge", "model": "judge", "answer": "the Undine"}
    assert traces[0].info["deepdive"]["scoring"] == record


async def test_the_web_server_process(
    site: sites.Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launched by verifiers in its own process with a key, it fetches, refuses, caches and reports."""
    monkeypatch.setenv("SERPER_API_KEY", "sk-abcdef")
    config = DeepDiveConfig.model_validate(
        {
            "task": {"scoring": "exact"},
            "tools": {
                "fetch": {"allow_networks": ["127.0.0.1/32"], "attempts": 1},
                "search": {"url": f"{site.base}/nothing-here", "attempts": 1, "seconds": 120.0},
                "reader": PATIENT,
                "cache_dir": str(tmp_path),
            },
        }
    )

    async def call(connection: MCPConnection, name: str, **arguments: Any) -> tuple[bool, str]:
        result = await connection.run(lambda client: client.call_tool(name, arguments))
        return bool(result.is_error), str(mcp_content_to_chat_content(result.content))

    async with serve_shared(DeepDiveTaskset.toolsets(config)) as served:
        connection = MCPConnection({"url": served["deepdive"].url})
        tools = {t.name: t for t in (await connection.run(lambda client: client.list_tools())).tools}
        assert set(tools) == {"search_web", "scan_page", "open_lines", "open"}
        assert all("report" not in tool.input_schema["properties"] for tool in tools.values())
        assert list(tools["search_web"].input_schema["properties"]) == ["queries", "num_results"]
        failed, text = await call(connection, "open", url=f"{site.base}/article")
        assert not failed
        assert "Paragraph 29" in text
        failed, text = await call(
            connection, "scan_page", url=f"{site.base}/article", pattern="counted 1[0-2] ships"
        )
        assert not failed
        assert text.count("lighthouse") == 3
        failed, text = await call(connection, "open", url=f"{site.base}/to?url={site.internal}/admin")
        assert failed
        assert "not a public internet address" in text
        failed, text = await call(connection, "search_web", queries="x")
        assert failed
        assert "the search engine failed" in text
        assert "sk-abcdef" not in text
        failed, text = await call(connection, "open_lines", url=f"{site.base}/article", ranges="zzz")
        assert failed
        assert "not a line range" in text
        await connection.aclose()
    assert site.internal_hits == 0
    assert site.hits["/article"] == 1
    assert len(list(tmp_path.rglob("*.json.z"))) == 1  # noqa: ASYNC240
