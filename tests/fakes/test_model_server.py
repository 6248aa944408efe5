"""The fake server behaves as the servers it stands for, seen through the clients that use them."""

import asyncio
import json
import time

import httpx
import openai
import pytest

from tests.fakes import ChatRequest, FakeModelServer, Reply, ToolCall, chatml, fake_logprob

CHARS = [*(chr(c) for c in range(32, 127)), "\n", chatml.START, chatml.END, "<|pad|>"]


class CharTokenizer:
    """One id per printable character, one for each ChatML marker."""

    eos_token_id = CHARS.index(chatml.END)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids, at = [], 0
        while at < len(text):
            token = next((s for s in CHARS[-3:] if text.startswith(s, at)), text[at])
            ids.append(CHARS.index(token))
            at += len(token)
        return ids

    def decode(self, token_ids, *, skip_special_tokens: bool = False) -> str:
        return "".join(CHARS[i] for i in token_ids)


def client(server: FakeModelServer, **options) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=server.base_url, api_key="none", **{"max_retries": 0, **options})


async def ask(server: FakeModelServer, text: str = "hello", **options):
    async with client(server) as c:
        return await c.chat.completions.create(
            model="m", messages=[{"role": "user", "content": text}], **options
        )


async def test_chat_answers_with_usage_and_is_recorded():
    async with FakeModelServer(lambda r: f"echo {r.last}") as server:
        completion = await ask(server, "12345678", temperature=0.5, extra_headers={"X-Test": "yes"})
    assert completion.choices[0].message.content == "echo 12345678"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.completion_tokens == 4  # 13 characters / 4, rounded up
    request = server.requests[0]
    assert (request.endpoint, request.turn, request.index) == ("chat", 0, 0)
    assert request.sampling["temperature"] == 0.5
    assert request.headers["x-test"] == "yes"


async def test_tool_calls_arrive_as_the_client_expects_them():
    reply = Reply(tool_calls=[ToolCall("python", {"code": "1+1"}), ToolCall("bad", '{"unclosed')])
    async with FakeModelServer(lambda r: reply) as server:
        choice = (await ask(server)).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [c.function.name for c in choice.message.tool_calls] == ["python", "bad"]
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"code": "1+1"}
    assert choice.message.tool_calls[1].function.arguments == '{"unclosed'


async def test_max_tokens_cuts_and_says_so():
    async with FakeModelServer(lambda r: "x" * 100) as server:
        choice = (await ask(server, max_tokens=3)).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("x" * 12, "length")


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (Reply.rate_limited(2), openai.RateLimitError),
        (Reply.server_error(), openai.InternalServerError),
        (Reply.context_exceeded(), openai.BadRequestError),
        (Reply.openai_context_exceeded(), openai.BadRequestError),
        (Reply.cut(), openai.APIConnectionError),
        (Reply.malformed(), json.JSONDecodeError),
    ],
)
async def test_faults_raise_what_a_real_server_makes_the_client_raise(reply, error):
    async with FakeModelServer(lambda r: reply) as server:
        with pytest.raises(error) as caught:
            await ask(server)
    if isinstance(caught.value, openai.RateLimitError):
        assert caught.value.response.headers["retry-after"] == "2"
        assert caught.value.code == "rate_limit_exceeded"
    if reply == Reply.context_exceeded():
        assert "This model's maximum context length is 4096 tokens" in caught.value.message
        assert (caught.value.type, caught.value.param) == ("BadRequestError", "input_tokens")


async def test_the_server_serves_on_after_a_fault():
    def policy(request: ChatRequest):
        return [Reply.cut(), Reply.rate_limited(0), "at last"][request.index]

    async with FakeModelServer(policy) as server:
        async with client(server, max_retries=2) as c:
            done = await c.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
    assert done.choices[0].message.content == "at last"
    assert len(server.requests) == 3


async def test_a_hang_ends_when_the_client_gives_up():
    async with FakeModelServer(lambda r: Reply.hang()) as server:
        # Time to connect and to be heard, on a busy machine; then the answer does not come.
        async with client(server, timeout=httpx.Timeout(60, read=1.0)) as c:
            with pytest.raises(openai.APITimeoutError):
                await c.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        async with asyncio.timeout(30):
            while not server.cancelled:  # noqa: ASYNC110 (a counter of the server's)
                await asyncio.sleep(0.02)
        assert (server.cancelled, server.in_flight) == (1, 0)


async def test_a_hang_does_not_hold_up_the_close():
    server = await FakeModelServer(lambda r: Reply.hang()).start()
    call = asyncio.create_task(ask(server))
    await server.wait_for_requests()
    started = time.monotonic()
    await server.stop()
    assert time.monotonic() - started < 20
    with pytest.raises(openai.APIConnectionError):
        await call


async def test_concurrency_is_counted():
    eight = asyncio.Event()

    async def policy(request):
        if server.in_flight == 8:
            eight.set()
        await eight.wait()
        return "x"

    async with FakeModelServer(policy) as server:
        await asyncio.gather(*(ask(server) for _ in range(8)))
    assert server.max_in_flight == 8


async def test_a_policy_that_raises_fails_the_test():
    def policy(request):
        raise KeyError("the script ended")

    server = await FakeModelServer(policy).start()
    with pytest.raises(openai.UnprocessableEntityError):
        await ask(server)
    with pytest.raises(AssertionError, match="policy raised"):
        await server.stop()
    assert isinstance(server.policy_errors[0], KeyError)


async def test_prompts_beyond_the_window_are_refused_unseen():
    async with FakeModelServer(lambda r: "x", max_model_len=50, models=["m"]) as server:
        with pytest.raises(openai.BadRequestError, match="maximum context length is 50 tokens"):
            await ask(server, "y" * 400)
        assert (await ask(server, "y")).choices[0].message.content == "x"
        async with client(server) as c:
            models = await c.models.list()
    card = models.data[0].to_dict()
    assert (card["id"], card["max_model_len"]) == ("m", 50)


async def test_unknown_models_are_refused():
    async with FakeModelServer(lambda r: "x", models=["other"]) as server:
        with pytest.raises(openai.NotFoundError, match="`m` does not exist"):
            await ask(server)


def test_in_thread_serves_blocking_callers():
    def policy(request):
        if request.last == "boom":
            raise ValueError("no such line")
        return request.last

    def post(server, text):
        body = {"model": "m", "messages": [{"role": "user", "content": text}]}
        return httpx.post(f"{server.base_url}/chat/completions", json=body, timeout=60)

    with FakeModelServer(policy).in_thread() as server:
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
        assert post(server, "hi").json()["choices"][0]["message"]["content"] == "hi"
    with pytest.raises(AssertionError, match="policy raised"):
        with FakeModelServer(policy).in_thread() as server:
            assert post(server, "boom").status_code == 422


async def test_administration_is_recorded_and_pause_holds_requests():
    async with (
        FakeModelServer(lambda r: "x") as server,
        httpx.AsyncClient(base_url=server.url, timeout=60) as c,
    ):
        await c.post("/pause", params={"mode": "keep"})
        call = asyncio.create_task(ask(server))
        await server.wait_for_requests()
        reload = {"method": "reload_weights", "kwargs": {"weights_path": "/w"}}
        assert (await c.post("/collective_rpc", json=reload)).status_code == 200
        assert not call.done()
        await c.post("/resume")
        await call
    assert [r.path for r in server.control_requests] == ["/pause", "/collective_rpc", "/resume"]
    assert server.control_requests[0].query == {"mode": "keep"}
    assert server.control_requests[1].body == reload


async def test_administration_can_fail():
    def refuse(call):
        return Reply.server_error("bad path") if call.path == "/collective_rpc" else None

    async with FakeModelServer(lambda r: "x", control=refuse) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as c:
            assert (await c.post("/collective_rpc", json={})).status_code == 500
            assert (await c.post("/reset_prefix_cache")).status_code == 200


MESSAGES = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "first\nline"},
    {"role": "assistant", "content": "```python\nprint(1)\n```"},
    {"role": "user", "content": "1"},
]


async def generate(server: FakeModelServer, prompt_ids: list[int], **sampling) -> dict:
    body = {"model": "m", "token_ids": prompt_ids, "sampling_params": {"logprobs": 1, **sampling}}
    async with httpx.AsyncClient(timeout=60) as c:
        response = await c.post(f"{server.url}/inference/v1/generate", json=body)
    response.raise_for_status()
    return response.json()


async def test_generate_serves_the_same_policy_over_ids():
    from renderers.client import _parse_completion_logprobs

    tokenizer = CharTokenizer()
    async with FakeModelServer(lambda r: f"turn {r.turn}: {r.last}", tokenizer=tokenizer) as server:
        data = await generate(server, tokenizer.encode(chatml.render(MESSAGES)))
    choice = data["choices"][0]
    ids = choice["token_ids"]
    assert tokenizer.decode(ids) == "turn 1: 1" + chatml.END
    assert choice["finish_reason"] == "stop"
    # The client's own check of the sampling evidence.
    logprobs = _parse_completion_logprobs(choice, ids)
    assert logprobs == [fake_logprob(i, t) for i, t in enumerate(ids)]
    assert server.requests[0].messages == MESSAGES


async def test_generate_cuts_at_max_tokens_without_a_stop_token():
    tokenizer = CharTokenizer()
    async with FakeModelServer(lambda r: "abcdef", tokenizer=tokenizer) as server:
        choice = (await generate(server, tokenizer.encode(chatml.render(MESSAGES)), max_tokens=3))["choices"][
            0
        ]
    assert (tokenizer.decode(choice["token_ids"]), choice["finish_reason"]) == ("abc", "length")


async def test_generate_without_a_tokenizer_names_the_cure():
    async with FakeModelServer(lambda r: "x") as server:
        async with httpx.AsyncClient(timeout=60) as c:
            response = await c.post(f"{server.url}/inference/v1/generate", json={"token_ids": [1]})
    assert response.status_code == 501
    assert "tokenizer=" in response.json()["error"]["message"]


def test_chatml_keeps_tool_turns():
    call = {"id": "call_0", "type": "function", "function": {"name": "python", "arguments": '{"code": "1"}'}}
    text = (
        '<|im_start|>system\nhi\n<tools>\n{"type": "function"}\n</tools><|im_end|>\n'
        "<|im_start|>user\nq<|im_end|>\n"
        "<|im_start|>assistant\n" + chatml.tool_call_text("python", '{"code": "1"}') + "<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n1\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    messages = chatml.parse(text)
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool"]
    assert messages[2]["tool_calls"] == [call]
    assert messages[3]["content"] == "1"
    assert chatml.parse_tools(text) == [{"type": "function"}]
