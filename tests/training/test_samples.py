"""Rows against the server's own record, and weights against an independent computation of TRL's loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import verifiers.v1 as vf
from hypothesis import given, settings
from hypothesis import strategies as st
from renderers import CustomRendererConfig
from trl.experimental.async_grpo.packing import TreeRow
from verifiers.v1.agent import Agent
from verifiers.v1.configs.agent import AgentConfig
from verifiers.v1.graph import MessageNode
from verifiers.v1.runtimes import SubprocessConfig
from verifiers.v1.semantic import ACPInfo
from verifiers.v1.trace import AgentInfo, ModelCall, Trace, TraceTask

from tests.fakes import FakeModelServer
from tests.fakes.policies import SUB, fence, finish, is_sub, sequence
from tests.rlm_env.episodes import demo, harness_config
from training.rollout_loop import renew_renderer_lock
from training.samples import (
    BranchTokens,
    TraceTokensError,
    branch_kind,
    episode_rows,
    mean_trained_tokens,
    trace_branches,
    trained_branches,
)


class RecordingServer(FakeModelServer):
    """Also keeps what it answered to each generate request: (prompt ids, completion ids,
    log-probabilities)."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.exchanges = []

    def _generate_body(self, request, reply, prompt_tokens):
        body = super()._generate_body(request, reply, prompt_tokens)
        choice = body["choices"][0]
        logprobs = [entry["logprob"] for entry in choice["logprobs"]["content"]]
        self.exchanges.append((request.prompt_ids, choice["token_ids"], logprobs))
        return body


async def run_episode(policy, tokenizer, checkpoint, **settings):
    renew_renderer_lock()  # every test has an event loop of its own
    async with RecordingServer(policy, tokenizer=tokenizer) as server:
        config = AgentConfig(
            model="fake-model",
            client=vf.TrainClientConfig(
                base_url=server.base_url,
                api_key_var="FAKE_KEY",
                renderer=CustomRendererConfig(import_path="training.renderer.PlainChatMLRenderer"),
                renderer_model_name=str(checkpoint),
            ),
            harness=harness_config(**settings),
            runtime=SubprocessConfig(),
        )
        async with Agent(config) as agent:
            trace = await agent.run(demo(context="abc", reference="x"))
    return trace, server.exchanges


def conversations(exchanges):
    """The rows that the server's record implies, by chaining requests whose prompt extends an earlier
    exchange."""
    rows = []
    for prompt, completion, logprobs in exchanges:
        home = None
        for row in rows:
            if prompt[: len(row["ids"])] == row["ids"] and (
                home is None or len(row["ids"]) > len(home["ids"])
            ):
                home = row
        if home is None:
            home = {"ids": [], "mask": [], "logprobs": []}
            rows.append(home)
        scaffold = prompt[len(home["ids"]) :]
        home["ids"] = prompt + completion
        home["mask"] += [0] * len(scaffold) + [1] * len(completion)
        home["logprobs"] += [0.0] * len(scaffold) + logprobs
    return sorted((row["ids"], row["mask"], row["logprobs"]) for row in rows)


def check_rows(trace, exchanges):
    """The rows of `trace` are, id by id, the conversations in the server's record; each sampled token is
    trained once, with the log-probability that the server gave it."""
    assert trace.ok, trace.errors
    branches, counts = trace_branches(trace)
    got = sorted(
        (b.input_ids_T.tolist(), b.mask_T.tolist(), pytest.approx(b.logprobs_T.tolist(), abs=1e-6))
        for b in branches
    )
    expected = conversations(exchanges)
    assert [row[:2] for row in got] == [row[:2] for row in expected]
    assert [row[2] for row in got] == [row[2] for row in expected]
    assert sum(b.trained for b in branches) == sum(len(completion) for _, completion, _ in exchanges)
    return branches, counts


async def test_rows_are_what_the_server_saw(tiny_tokenizer, tiny_checkpoint):
    code = f'print(llm_batch(["{SUB}one", "{SUB}two", "{SUB}three"]))'

    def policy(request):
        if is_sub(request):
            return f"reply to {request.first_user}"
        # The first turn tells the model's code apart by a completion that no tokenizer would produce itself.
        return [fence(code), "no code at all", fence(finish("len(context)"))][min(request.turn, 2)]

    trace, exchanges = await run_episode(policy, tiny_tokenizer, tiny_checkpoint)
    branches, counts = check_rows(trace, exchanges)
    assert [b.kind for b in branches] == ["root", "sub", "sub", "sub"]
    assert (counts.root_branches, counts.sub_branches, counts.shared_tokens) == (1, 3, 0)


async def test_a_folded_conversation_gives_exact_rows(tiny_tokenizer, tiny_checkpoint):
    """Rows after a fold begin with what the server was sent then: the note, and kept replies as prompt."""
    policy = sequence(
        fence("a = 'old'\nprint('first')"),
        fence("print('second')"),
        fence("fold(1, 'a holds old')"),
        fence("print('fourth')"),
        fence("fold(2, 'only the answer is left')"),
        fence(finish("a")),
    )
    trace, exchanges = await run_episode(policy, tiny_tokenizer, tiny_checkpoint, folding=True)
    assert trace.root_reply == "old"
    assert len(exchanges) == 6
    branches, counts = check_rows(trace, exchanges)
    assert [b.kind for b in branches] == ["root"] * 3
    assert counts.shared_tokens == 0


async def test_child_rlms_that_run_together_give_exact_rows(tiny_tokenizer, tiny_checkpoint):
    """Two children at once, each with turns and a sub-LLM of its own."""
    start = 'print(rlm_batch(["[child] a", "[child] b"], [1, 2]))'

    def policy(request):
        if is_sub(request):
            return f"reply to {request.first_user}"
        if request.first_user.startswith("[child]"):
            ask = fence(f'x = llm_query("{SUB}" + str(context))')
            return [ask, "thinking only", fence(finish("x"))][min(request.turn, 2)]
        return [fence(start), fence(finish("1"))][min(request.turn, 1)]

    trace, exchanges = await run_episode(policy, tiny_tokenizer, tiny_checkpoint, max_depth=2)
    branches, counts = check_rows(trace, exchanges)
    assert [b.kind for b in branches] == ["root", *["sub"] * 4]
    assert (counts.root_branches, counts.sub_branches, counts.shared_tokens) == (1, 4, 0)


async def test_equal_sub_calls_are_each_trained_once(tiny_tokenizer, tiny_checkpoint):
    """Two sub-calls with one prompt and one reply: whether or not verifiers lets them share message nodes,
    each sampled token of the trace is trained exactly once."""
    code = f'llm_batch(["{SUB}same", "{SUB}same"])'

    def policy(request):
        return "same reply" if is_sub(request) else [fence(code), fence(finish("1"))][min(request.turn, 1)]

    trace, exchanges = await run_episode(policy, tiny_tokenizer, tiny_checkpoint)
    branches, _ = trace_branches(trace)
    assert len(exchanges) == 4
    assert sum(b.trained for b in branches) == sum(sum(node.mask) for node in trace.nodes)
    conversations_trained = {tuple(b.input_ids_T) for b in branches}
    assert conversations_trained == {tuple(ids) for ids, _, _ in conversations(exchanges)}


# ---- traces made by hand


def node(ids, sampled=0, parent=None, role="user", logprobs=None, text=None):
    """A message of `ids`, the last `sampled` of them sampled."""
    role = "assistant" if sampled else role
    content = text if text is not None else f"{role} {ids}"
    message = {"role": role, "content": content}
    return MessageNode(
        parent=parent,
        message=message,
        sampled=bool(sampled),
        token_ids=list(ids),
        mask=[False] * (len(ids) - sampled) + [True] * sampled,
        logprobs=[-float(i) for i in ids[len(ids) - sampled :]] if logprobs is None else logprobs,
    )


def hand_made(nodes, calls, trainable=True):
    return Trace(
        task=TraceTask(type="T", data=vf.TaskData(idx=0, prompt="p")),
        agent=AgentInfo(config=AgentConfig(), trainable=trainable),
        nodes=nodes,
        calls=[ModelCall(node=n, acp=None if rid is None else ACPInfo(request_id=rid)) for n, rid in calls],
    )


def test_a_shared_prefix_is_trained_in_the_root_row_only():
    #   0 user -> 1 reply -> 2 user -> 3 reply      (sub.0, listed first)
    #                     -> 4 user -> 5 reply      (root)
    nodes = [
        node([1, 2]),
        node([3, 4, 5], sampled=2, parent=0),
        node([6], parent=1),
        node([7, 8], sampled=1, parent=2),
        node([9], parent=1),
        node([10], sampled=1, parent=4),
    ]
    trace = hand_made(nodes, [(1, "sub.0.0"), (3, "sub.0.1"), (5, "sub.1.1")])
    branches, counts = trace_branches(trace)
    assert [b.input_ids_T.tolist() for b in branches] == [[1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 5, 9, 10]]
    assert [b.mask_T.tolist() for b in branches] == [[0, 0, 0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 0, 0, 1]]
    assert branches[0].logprobs_T.tolist() == [0, 0, 0, -4, -5, 0, 0, -8]
    assert counts.shared_tokens == 2


def test_root_rows_come_first_and_claim_shared_tokens():
    nodes = [
        node([1]),
        node([2], sampled=1, parent=0),
        node([3]),
        node([4], sampled=1, parent=2),
    ]
    branches, _ = trace_branches(hand_made(nodes, [(1, "rlm.0.root.0"), (3, "root.0")]))
    assert [(b.kind, b.input_ids_T.tolist()) for b in branches] == [("root", [3, 4]), ("sub", [1, 2])]


def test_a_harness_without_request_ids_has_only_root_rows():
    nodes = [node([1]), node([2], sampled=1, parent=0)]
    branches, _ = trace_branches(hand_made(nodes, [(1, None)]))
    assert [b.kind for b in branches] == ["root"]


def test_what_is_left_out_is_counted():
    nodes = [node([1]), node([2], sampled=1, parent=0), node([3, 4])]
    _, counts = trace_branches(hand_made(nodes, [(1, "root.0")]))
    assert counts.skipped_unsampled == 1
    branches, counts = trace_branches(hand_made(nodes, [(1, "root.0")], trainable=False))
    assert (branches, counts.skipped_untrainable) == ([], 2)


@pytest.mark.parametrize(
    ("ids", "sampled", "logprobs", "message"),
    [
        ([], 1, [], "client type 'train'"),
        ([2, 3], 2, [-1.0], "log-probabilities"),
    ],
)
def test_missing_tokens_raise(ids, sampled, logprobs, message):
    reply = node([9, 9], sampled=1, parent=0).model_copy(
        update={
            "token_ids": ids,
            "mask": [True] * len(ids),
            "logprobs": logprobs,
        }
    )
    with pytest.raises(TraceTokensError, match=message):
        trace_branches(hand_made([node([1]), reply], [(1, "root.0")]))


@pytest.mark.parametrize(
    ("ids", "kind"),
    [
        (["root.0", "root.12"], "root"),
        (["sub.3.0"], "sub"),
        (["rlm.0.root.2"], "sub"),
        ([None], None),
        ([], None),
    ],
)
def test_kind_of_a_branch(ids, kind):
    assert branch_kind(ids) == kind


def test_a_branch_of_root_and_sub_calls_is_refused():
    with pytest.raises(TraceTokensError, match="system prompt of their own"):
        branch_kind(["root.0", "sub.1.0"])


# ---- credit and weight


def branch(kind, prompt, trained):
    ids = np.arange(prompt + trained) + 100
    mask = np.r_[np.zeros(prompt, dtype=np.int64), np.ones(trained, dtype=np.int64)]
    return BranchTokens(kind, ids, mask, np.where(mask, -0.5, 0.0).astype(np.float32))


EPISODE_A = [branch("root", 4, 3), branch("sub", 2, 2), branch("sub", 2, 1)]
EPISODE_B = [branch("root", 4, 2)]


def test_credit_root_leaves_sub_calls_out():
    kept, counts = trained_branches(EPISODE_A, "root")
    assert [b.kind for b in kept] == ["root"]
    assert (counts.root_tokens, counts.sub_tokens) == (3, 0)


def test_long_and_empty_rows_are_left_out_and_counted():
    kept, counts = trained_branches([*EPISODE_A, branch("sub", 3, 0)], "episode", max_row_tokens=4)
    assert [len(b.input_ids_T) for b in kept] == [4, 3]
    assert (counts.rows_overlong, counts.rows_without_tokens) == (1, 1)
    assert (counts.root_tokens, counts.sub_tokens) == (0, 3)


def test_the_worked_example_of_the_module():
    reference = mean_trained_tokens([EPISODE_A, EPISODE_B])
    assert reference == 4
    rows = [
        *episode_rows(EPISODE_A, 0.5, weighting="episode", reference_tokens=reference, version=1, group=0),
        *episode_rows(EPISODE_B, -0.5, weighting="episode", reference_tokens=reference, version=1, group=0),
    ]
    assert [row.advantage for row in rows] == pytest.approx([1 / 3, 1 / 3, 1 / 3, -1.0])
    weights = [abs(row.advantage) * row.mask_T.sum() / 8 for row in rows]
    assert sum(weights[:3]) == pytest.approx(1 / 4)
    assert weights[3] == pytest.approx(1 / 4)


def trl_loss(rows, log_probs, clip=0.2):
    """TRL's loss of one micro-batch over TRL's own packing, from log-probabilities per (row, position)."""
    packed = TreeRow()
    for number, row in enumerate(rows):
        packed.add(
            {
                "input_ids": row.input_ids_T + 1000 * number,
                "completion_mask": row.mask_T,
                "old_log_probs": row.logprobs_T,
                "advantage": row.advantage,
                "group_id": row.group,
            }
        )
    terms = packed.pack()
    new = torch.tensor([log_probs[i][p] for i, row in enumerate(rows) for p in np.flatnonzero(row.mask_T)])
    ratio = torch.exp(new - terms["old_log_probs"])
    clipped = ratio.clamp(1 - clip, 1 + clip)
    loss = -torch.minimum(ratio * terms["advantages"], clipped * terms["advantages"])
    return float(loss.sum() / len(loss))


@given(
    sizes=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=2, max_size=5),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=40, deadline=None)
def test_weights_against_an_independent_computation(sizes, seed):
    """`episode` makes TRL's token mean equal to R/N times the sum over episodes of each one's own token
    mean."""
    rng = np.random.default_rng(seed)
    advantages = rng.normal(size=len(sizes))
    episodes = [[branch("root" if i == 0 else "sub", 2, n) for i, n in enumerate(rows)] for rows in sizes]
    reference = mean_trained_tokens(episodes)
    rows, log_probs = [], []
    expected = 0.0
    for branches, advantage in zip(episodes, advantages, strict=True):
        terms = []
        for b in branches:
            new = b.logprobs_T + rng.normal(scale=0.4, size=len(b.logprobs_T)).astype(np.float32)
            log_probs.append(new.tolist())
            for p in np.flatnonzero(b.mask_T):
                ratio = np.exp(float(new[p]) - float(b.logprobs_T[p]))
                terms.append(-min(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage))
        expected += np.mean(terms)
        rows += episode_rows(
            branches, advantage, weighting="episode", reference_tokens=reference, version=0, group=0
        )
    tokens = sum(map(sum, sizes))
    assert trl_loss(rows, log_probs) == pytest.approx(expected * reference / tokens, rel=1e-4, abs=1e-6)
    # The same for the plain weighting: a mean over tokens of the episodes' own terms.
    plain = [
        row
        for branches, advantage in zip(episodes, advantages, strict=True)
        for row in episode_rows(
            branches, advantage, weighting="token", reference_tokens=1, version=0, group=0
        )
    ]
    assert {row.advantage for row in plain} == set(map(float, advantages))


def test_a_row_as_trl_takes_it():
    (row,) = episode_rows(EPISODE_B, -0.5, weighting="token", reference_tokens=1, version=4, group=7)
    sample = row.to_sample(enqueued_at=1.0)
    assert sample.input_ids is row.input_ids_T
    assert sample.completion_mask.tolist() == [0, 0, 0, 0, 1, 1]
    assert (sample.advantage, sample.model_version, sample.group_id) == (-0.5, 4, 7)
