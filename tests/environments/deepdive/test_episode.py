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


async def run(
    policy: Callable[[ChatRequest], Any], harness: dict[str, Any], episodes: int = 1, **taskset: Any
) -> tuple[list[vf.Episode], FakeModelServer]:
    """Episodes of the first tasks, at the same time, over one tool server."""
    async with FakeModelServer(policy) as server:
        client = {"base_url": server.base_url, "api_key_var": "NONE"}
        config = resolve_env_config(
            {
                "taskset": {"id": "deepdive", "split": "mini", "num_tasks": episodes, **taskset},
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


JUDGED = {
    "scoring": "judge",
    "judge": {"api_key_var": "NONE", "model": "judge", "attempts": 2, "backoff_seconds": 0},
}


@pytest.mark.parametrize(
    ("verdict", "ok"), [("VERDICT: CORRECT", True), ("VERDICT: INCORRECT", True), ("no idea", False)]
)
async def test_a_judge_that_fails_is_an_error_of_the_episode(verdict: str, ok: bool) -> None:
    seen: list[ChatRequest] = []

    def judge(request: ChatRequest) -> str:
        seen.append(request)
        return verdict

    async with FakeModelServer(judge) as server:
        settings = {**JUDGED, "judge": {**JUDGED["judge"], "base_url": server.base_url}}  # type: ignore[dict-item]
        (episode,), _ = await run(lambda request: r"\boxed{the Undine}", {"scaffold": "llm"}, task=settings)
    (trace,) = episode.traces
    assert episode.ok is ok
    assert trace.ok is ok
    assert "research" in seen[0].messages[0]["content"]
    assert '"the Undine"' in seen[0].messages[0]["content"]
    assert "tool" not in json.dumps(seen[0].messages), "nothing of the episode but the answer"
    if ok:
        assert trace.rewards["correct"].score == float(verdict == "VERDICT: CORRECT")
        assert trace.metrics["judged_by_llm"] == 1
        assert trace.info["deepdive"]["scoring"] == {
            "by": "llm_judge", "model": "judge", "answer": "the Undine"}  # fmt: skip
    else:
        assert len(seen) == 2
        assert "JudgeFailure" in trace.errors[-1].message or "no verdict" in trace.errors[-1].message


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
                "search": {"url": f"{site.base}/nothing-here", "attempts": 1},
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
