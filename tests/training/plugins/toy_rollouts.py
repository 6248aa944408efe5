"""A taskset and harness whose episodes do what their task says: answer, fail, hang, or refuse to end.

A task's prompt is `<behaviour> <number>`. The harness plays a root conversation of two turns with sub-calls
in between, over real HTTP against the interception endpoint, with the RLM's request ids. The reward is 1 when
the root's last reply contains `good`; with the behaviour `parity`, when it has an odd number of characters.
"""

import asyncio
from itertools import count

import httpx
import verifiers.v1 as vf
from pydantic import Field
from verifiers.v1.runtimes import ProgramResult

__all__ = ["ToyHarness", "ToyTaskset"]


class ToyData(vf.TaskData):
    behaviour: str = "answer"


class ToyTask(vf.Task[ToyData]):
    @vf.reward
    async def good(self, trace: vf.Trace) -> float:
        if self.data.behaviour == "parity":  # what an untrained policy gets right half of the time
            return float(len(trace.last_reply) % 2)
        return float("good" in trace.last_reply)


class ToyConfig(vf.TasksetConfig):
    id: str = "toy_rollouts"
    behaviours: list[str] = Field(["answer"])
    """Behaviour of task i is `behaviours[i % len]`."""
    num_tasks: int = 6
    """0: without end."""
    offset: int = 0


class ToyTaskset(vf.Taskset[ToyTask, ToyConfig]):
    INFINITE = False

    def load(self):
        numbers = range(self.config.num_tasks) if self.config.num_tasks else count()
        for number in numbers:
            behaviour = self.config.behaviours[number % len(self.config.behaviours)]
            prompt = f"{behaviour} {number + self.config.offset}"
            yield ToyTask(ToyData(idx=number, prompt=prompt, behaviour=behaviour))


class ToyHarnessConfig(vf.HarnessConfig):
    id: str = "toy_rollouts"
    sub_calls: int = 1


class ToyHarness(vf.Harness[ToyHarnessConfig]):
    NEEDS_CONTAINER = False
    APPENDS_SYSTEM_PROMPT = True

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        if data.behaviour == "fail":
            raise RuntimeError("the sandbox fell over")
        if data.behaviour == "hang":
            await asyncio.sleep(3600)
        if data.behaviour == "stubborn":
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    pass
        headers = {"Authorization": f"Bearer {secret}"}
        async with httpx.AsyncClient(base_url=endpoint, headers=headers, timeout=60, verify=False) as http:

            async def ask(messages, request_id):
                answer = await http.post(
                    "chat/completions" if endpoint.endswith("/") else "/chat/completions",
                    json={"model": ctx.model, "messages": messages},
                    headers={"X-ACP-Model-Request-ID": request_id},
                )
                answer.raise_for_status()
                return answer.json()["choices"][0]["message"]["content"] or ""

            messages = [{"role": "user", "content": data.prompt}]
            messages.append({"role": "assistant", "content": await ask(messages, "root.0")})
            await asyncio.gather(
                *(
                    ask(
                        [{"role": "system", "content": "sub"}, {"role": "user", "content": f"part {k}"}],
                        f"sub.{k}.0",
                    )
                    for k in range(self.config.sub_calls)
                )
            )
            messages.append({"role": "user", "content": "and now?"})
            trace.root_reply = await ask(messages, "root.1")
        trace.record_metrics({"root_turns": 2.0, "sub_calls": float(self.config.sub_calls)})
        return ProgramResult(exit_code=0, stdout="", stderr="")
