"""Every limit ends the episode cleanly, keeps the answer, and is a metric."""

import math

import pytest

from rlm_env.limits import Ledger, LimitsConfig
from tests.fakes import Reply
from tests.fakes.policies import fence, finish, script
from tests.rlm_env.episodes import demo, episode, observations


async def test_turn_limit_keeps_the_answer_and_warns_before():
    trace, _ = await episode(
        script(fence("answer['content'] = 'so far'")), demo(reference="so far"), limits={"max_turns": 3}
    )
    assert trace.ok
    assert trace.stop_condition == "max_turns"
    assert trace.is_truncated
    assert trace.reward == 1.0
    assert trace.metrics["root_turns"] == 3
    assert trace.metrics["limit_hit"] == 1.0
    assert trace.metrics["answer_ready"] == 0.0
    assert "1 turn left" in observations(trace)[1]


async def test_root_token_limit():
    reply = Reply(
        content=fence("1"), usage={"prompt_tokens": 10, "completion_tokens": 60, "total_tokens": 70}
    )
    trace, _ = await episode(script(reply), limits={"max_root_tokens": 100})
    assert trace.stop_condition == "max_root_tokens"
    assert trace.metrics["root_turns"] == 2
    assert trace.metrics["root_completion_tokens"] == 120


async def test_sub_token_limit():
    sub = Reply(content="x", usage={"prompt_tokens": 5, "completion_tokens": 50, "total_tokens": 55})
    code = (
        "n = 0\ntry:\n    while True:\n        llm_query('[sub] x')\n        n += 1\n"
        "except SubCallLimitError as e:\n    print(n, e)"
    )
    trace, _ = await episode(script(fence(code), fence(finish("n")), sub=sub), limits={"max_sub_tokens": 120})
    assert trace.root_reply == "3"
    assert trace.metrics["sub_completion_tokens"] == 150


SECONDS = 6.0
"""Enough for a busy machine to start a REPL and play one turn; then the model hangs."""


async def test_episode_wall_clock():
    policy = script(fence("answer['content'] = 'early'"), Reply.hang())
    trace, _ = await episode(policy, demo(reference="early"), limits={"episode_seconds": SECONDS})
    assert trace.stop_condition == "episode_timeout"
    assert trace.ok
    assert trace.reward == 1.0


async def test_the_frameworks_rollout_timeout_is_a_limit_and_scored():
    policy = script(fence("answer['content'] = 'early'"), Reply.hang())
    trace, _ = await episode(policy, demo(reference="early"), agent={"timeout": {"rollout": SECONDS}})
    assert trace.is_timeout
    assert trace.root_reply == "early"
    assert trace.reward == 1.0
    assert trace.metrics["stop/episode_timeout"] == 1.0


async def test_the_frameworks_turn_limit_ends_cleanly():
    trace, _ = await episode(script(fence("answer['content'] = 'kept'")), agent={"max_turns": 2})
    assert trace.ok
    assert trace.stop_condition == "max_turns"
    assert trace.root_reply == "kept"
    assert trace.metrics["stop/framework_stop"] == 1.0


async def test_context_overflow_is_a_recorded_failure_not_a_crash():
    trace, server = await episode(script(fence("answer['content'] = 'a'"), Reply.context_exceeded()))
    assert trace.ok
    assert trace.stop_condition == "context_overflow"
    assert trace.root_reply == "a"
    assert len(server.requests) == 2  # not retried


@pytest.mark.parametrize("fault", [Reply.server_error(), Reply.cut(), Reply.failure(401, "no key", "auth")])
async def test_an_infrastructure_failure_is_an_error_and_never_a_score(fault):
    trace, _ = await episode(script(fence("answer['content'] = 'a'"), fault), demo(reference="a"))
    assert not trace.ok
    assert trace.last_error.type == "ProviderError"
    assert trace.rewards.get("exact") is None
    assert trace.metrics["stop/error"] == 1.0


async def test_restart_limit_ends_the_episode():
    trace, _ = await episode(script(fence("import os\nos._exit(1)")), repl={"max_restarts": 2})
    assert trace.ok
    assert trace.stop_condition == "repl_failure"
    assert trace.metrics["repl_restarts"] >= 2


def test_ledger_shares_and_charges_up_the_tree():
    root = Ledger.root(LimitsConfig(max_sub_calls=10, max_sub_tokens=1000))
    assert root.take_sub_calls(2) == 2
    first, second = root.child(2), root.child(2)
    assert first.sub_calls_left == 4
    assert first.take_sub_calls(9) == 4
    assert root.sub_calls_left == 4
    assert second.take_sub_calls(9) == 4
    assert root.take_sub_calls(1) == 0
    grandchild = first.child(1)
    grandchild.charge_own(300)
    assert (grandchild.sub_tokens.used, first.sub_tokens.used, root.sub_tokens.used) == (300, 300, 300)
    assert second.sub_tokens_left == 500
    assert root.sub_tokens_left == 700


def test_unlimited_stays_unlimited_for_children():
    root = Ledger.root(LimitsConfig(max_sub_calls=None))
    assert math.isinf(root.child(3).sub_calls_left)
