"""The suite under the real harness, by the chat endpoint, by tokens, and by verifiers' own command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.environments.episodes import run
from tests.fakes import ChatRequest, FakeModelServer, policies
from tests.fakes.policies import fence, finish, script

ROOT = Path(__file__).parents[3]
REPL = {"id": "verbatim-copy", "placement": "repl", "num_tasks": 3, "content_type": "mixed"}


def text_in(request: ChatRequest) -> str:
    """The text in a prompt; the tags are named once before, in the instruction."""
    return request.first_user.split("<text>")[2].split("</text>")[0]


async def test_code_copies_the_context_and_the_model_never_sees_it():
    traces, server = await run(REPL, policies.copy_context)
    for trace in traces:
        assert trace.reward == 1
        assert trace.root_reply == trace.task.data.text
        assert trace.metrics["levenshtein_similarity"] == 1
        assert trace.metrics["root_turns"] == 1
    seen = json.dumps([request.body for request in server.requests])
    for trace in traces:
        assert json.dumps(trace.task.data.text[:40])[1:-1] not in seen


async def test_an_rlm_writes_out_a_text_from_its_prompt_and_corrects_it():
    """The first draft has a mistake; the second turn puts it right in place."""

    def policy(request):
        text = text_in(request)
        if request.turn == 0:
            return fence(f'answer["content"] = {text[:-1]!r} + "?"\nprint(repr(answer["content"][-5:]))')
        assert repr(text[-4:-1])[1:-1] in request.last
        return fence(f'answer["content"] = answer["content"][:-1] + {text[-1]!r}\nanswer["ready"] = True')

    traces, _ = await run({**REPL, "placement": "prompt", "mode": "rlm_tips"}, policy)
    assert [trace.reward for trace in traces] == [1, 1, 1]


async def test_answers_that_are_nearly_right_are_measured():
    mistakes = script(fence(finish("context[:-1] + '~'")))
    traces, _ = await run(REPL, mistakes)
    for trace in traces:
        assert trace.reward == 0
        assert trace.metrics["character_accuracy"] == pytest.approx(1 - 1 / len(trace.task.data.text))


async def test_the_plain_model_gets_the_same_texts_and_the_same_rule():
    def policy(request):
        text = text_in(request)
        return text if request.index != 1 else text + "\n"

    plain, server = await run({**REPL, "mode": "llm"}, policy, harness={"scaffold": "llm"})
    rlm, _ = await run(REPL, policies.copy_context)
    assert [trace.task.key for trace in plain] == [trace.task.key for trace in rlm]
    assert [trace.reward for trace in plain] == [1, 0, 1]
    assert plain[1].metrics["match_inside"] == 1
    assert all(not request.tools for request in server.requests)


async def test_tokens_in_tokens_out(tmp_path: Path):
    """The same policy over the token-level endpoint: ids and log-probabilities are in the trace."""
    pytest.importorskip("torch")
    from tests.fakes import fake_logprob
    from training.renderer import renderer_config_for
    from training.tiny_policy import train_tokenizer

    tokenizer = train_tokenizer(["Your answer must be an exact copy of it. ```python\nanswer['content']"] * 4)
    tokenizer.save_pretrained(tmp_path)
    traces, server = await run(
        {**REPL, "num_tasks": 1},
        policies.look_then_answer(),
        tokenizer=tokenizer,
        train=(tmp_path, renderer_config_for(tmp_path, tokenizer=tokenizer)),
    )
    (trace,) = traces
    assert trace.reward == 1
    assert {request.endpoint for request in server.requests} == {"generate"}
    (branch,) = trace.branches
    sampled = [node for node in branch.nodes if node.sampled]
    assert len(sampled) == 2
    for node in sampled:
        length = sum(node.mask)
        ids = [token for token, on in zip(node.token_ids, node.mask, strict=True) if on]
        assert node.logprobs[-length:] == pytest.approx([fake_logprob(i, t) for i, t in enumerate(ids)])
    # The second prompt is the first one with everything since appended: no token was changed.
    first, second = (request.prompt_ids for request in server.requests)
    assert second[: len(first)] == first


@pytest.mark.timeout(900)  # a program that has all to import
def test_vf_eval_runs_it(tmp_path: Path):
    with FakeModelServer(policies.copy_context).in_thread() as server:
        command = [
            *(Path(sys.executable).with_name("vf-eval"), "verbatim-copy", "-m", "fake-model"),
            *("--env.taskset.placement", "repl", "--env.taskset.num-tasks", "2"),
            *("--env.agent.harness.id", "rlm-env", "--env.agent.runtime.type", "subprocess"),
            *("--client.base-url", server.base_url, "--client.api-key-var", "UNSET_KEY"),
            *("--no-push", "-o", str(tmp_path)),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, timeout=600, env=environment
        )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert len(server.requests) == 2
    (saved,) = tmp_path.rglob("traces.jsonl")
    records = [json.loads(line) for line in saved.read_text().splitlines()]
    assert len(records) == 2
    assert all(record["metrics"]["match_inside"] == 1 for record in map(trace_record, records))


def trace_record(line: dict) -> dict:
    """The trace in a line of traces.jsonl, which holds episodes or traces by the kind of run."""
    return line["traces"][0] if "traces" in line else line
