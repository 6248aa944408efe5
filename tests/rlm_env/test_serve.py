"""The RLM behind the chat-completions API, asked by the OpenAI client."""

import asyncio
from contextlib import asynccontextmanager

import openai
import pytest
from aiohttp.test_utils import TestServer

from rlm_env.serve.app import make_app
from tests.fakes import FakeModelServer, Reply
from tests.fakes.policies import fence, finish, script
from tests.rlm_env.episodes import agent_for, harness_config


@asynccontextmanager
async def served(policy, *, max_concurrent=32, **settings):
    """(client, model server behind the RLM)."""
    async with (
        FakeModelServer(policy) as server,
        agent_for(server, harness_config(**settings)) as agent,
        TestServer(make_app(agent, "rlm-demo", max_concurrent=max_concurrent)) as app,
        openai.AsyncOpenAI(base_url=str(app.make_url("/v1")), api_key="x", max_retries=0) as client,
    ):
        yield client, server


@asynccontextmanager
async def client_of(policy, **settings):
    async with served(policy, **settings) as (client, _):
        yield client


async def test_text_in_text_out_with_context():
    policy = script(
        fence("n = llm_query('[sub] ' + context[:3])"), fence(finish("n + str(len(context))")), sub="S"
    )
    async with client_of(policy) as client:
        reply = await client.chat.completions.create(
            model="rlm-demo",
            messages=[{"role": "system", "content": "Be exact."}, {"role": "user", "content": "How long?"}],
            extra_body={"context": "x" * 5000},
        )
    assert reply.choices[0].message.content == "S5000"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens > 0
    assert reply.model_extra["rlm"]["metrics"]["sub_calls"] == 1


async def test_a_limit_is_finish_reason_length():
    async with client_of(script(fence("answer['content'] = 'part'")), limits={"max_turns": 1}) as client:
        reply = await client.chat.completions.create(
            model="rlm-demo", messages=[{"role": "user", "content": "q"}]
        )
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("part", "length")


async def test_a_failed_episode_is_an_http_error():
    async with client_of(script(Reply.server_error())) as client:
        with pytest.raises(openai.InternalServerError, match="ProviderError"):
            await client.chat.completions.create(
                model="rlm-demo", messages=[{"role": "user", "content": "q"}]
            )


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"model": "other"}, 404),
        ({"n": 2}, 400),
        ({"messages": []}, 400),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, 400),
    ],
)
async def test_what_it_cannot_do_is_said(change, status):
    async with client_of(script(fence(finish("1")))) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(
                **{"model": "rlm-demo", "messages": [{"role": "user", "content": "q"}], **change}
            )
    assert caught.value.status_code == status


ASK = {"model": "rlm-demo", "messages": [{"role": "user", "content": "q"}]}


async def test_a_stream_has_heartbeats_and_then_the_whole_reply(monkeypatch):
    monkeypatch.setattr("rlm_env.serve.app.HEARTBEAT_SECONDS", 0.05)

    async def policy(request):
        for _ in range(20):  # many short waits and not one long: on a stalled machine heartbeats are late too
            await asyncio.sleep(0.03)
        return fence(finish("6 * 7"))

    async with client_of(policy) as client:
        raw = await client.chat.completions.with_raw_response.create(**ASK, stream=True)
        text = await raw.http_response.aread()
        stream = await client.chat.completions.create(
            **ASK, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert text.count(b": the episode is running") >= 3
    assert text.endswith(b"data: [DONE]\n\n")
    said = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in said) == "42"
    assert [choice.finish_reason for choice in said] == [None, "stop"]
    assert chunks[-1].usage.completion_tokens > 0


async def test_a_failed_episode_is_an_error_of_the_stream():
    async with client_of(script(Reply.failure(403, "content policy", "refused"))) as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        with pytest.raises(openai.APIError, match="content policy"):
            async for _ in stream:
                pass


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_hangs_up_ends_its_episode(stream, monkeypatch):
    monkeypatch.setattr("rlm_env.serve.app.HEARTBEAT_SECONDS", 0.05)
    async with served(script(Reply("late", delay=600.0))) as (client, server):
        asking = asyncio.create_task(client.chat.completions.create(**ASK, stream=stream))
        await server.wait_for_requests()
        if stream:
            await (await asking).close()
        else:
            asking.cancel()
        async with asyncio.timeout(30):
            while not server.cancelled:  # noqa: ASYNC110 (a counter of the server's)
                await asyncio.sleep(0.05)
        assert server.in_flight == 0


async def test_requests_beyond_the_limit_wait():
    two = asyncio.Event()

    async def policy(request):
        if server.in_flight == 2:
            two.set()
        await two.wait()  # the first for the second, however long its REPL takes to start
        await asyncio.sleep(0.2)  # room for a third
        return fence(finish("1"))

    async with served(policy, max_concurrent=2) as (client, server):
        await asyncio.gather(*(client.chat.completions.create(**ASK) for _ in range(5)))
    assert server.max_in_flight == 2
