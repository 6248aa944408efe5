"""The RLM behind the chat-completions API, asked by the OpenAI client."""

from contextlib import asynccontextmanager

import openai
import pytest
from aiohttp.test_utils import TestServer

from rlm_env.serve.app import make_app
from tests.fakes import FakeModelServer, Reply
from tests.fakes.policies import fence, finish, script
from tests.rlm_env.episodes import agent_for, harness_config


@asynccontextmanager
async def client_of(policy, **settings):
    async with (
        FakeModelServer(policy) as server,
        agent_for(server, harness_config(**settings)) as agent,
        TestServer(make_app(agent, "rlm-demo")) as app,
    ):
        async with openai.AsyncOpenAI(
            base_url=str(app.make_url("/v1")), api_key="x", max_retries=0
        ) as client:
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
    [({"model": "other"}, 404), ({"stream": True}, 400), ({"n": 2}, 400), ({"messages": []}, 400)],
)
async def test_what_it_cannot_do_is_said(change, status):
    async with client_of(script(fence(finish("1")))) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(
                **{"model": "rlm-demo", "messages": [{"role": "user", "content": "q"}], **change}
            )
    assert caught.value.status_code == status
