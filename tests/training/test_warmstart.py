"""The supervised start: plans of fixed shares, episodes through the real harness, tokens as recorded."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from verifiers.v1.utils.loaders import resolve_env_config

from training.behaviours import BEHAVIOURS, FINISHED, SUB_REQUEST, Plan, make_plans
from training.renderer import PlainChatMLRenderer
from training.samples import BranchTokens
from training.scripted_server import ScriptedServer
from training.tiny_policy import TinyPolicyConfig, build_model, save_policy, train_tokenizer
from training.warmstart import (
    WarmstartConfig,
    conversations_of,
    corpus_of,
    imitate,
    record,
    rewards_by_behaviour,
)

SMALL = TinyPolicyConfig(hidden_size=64, layers=1, heads=2, kv_heads=2, intermediate_size=96)


def environment(**harness):
    return resolve_env_config(
        {
            "taskset": {"id": "verbatim-copy", "placement": "repl", "target_length": 48, "split": "train"},
            "agent": {
                "harness": {
                    "id": "rlm-env",
                    "observation_style": "terse",
                    "limits": {"max_turns": 3},
                    **harness,
                },
                "runtime": {"type": "subprocess"},
            },
        }
    )


def behaviour(name):
    return next(found for found in BEHAVIOURS if found.name == name)


# --- plans


@pytest.mark.parametrize("count", [1, 7, 100, 400])
def test_shares_are_met_to_within_one_episode_for_every_seed(count):
    total = sum(found.share for found in BEHAVIOURS)
    for seed in range(3):
        counts = Counter(plan.behaviour.name for plan in make_plans(count, seed))
        assert sum(counts.values()) == count
        for found in BEHAVIOURS:
            assert abs(counts[found.name] - count * found.share / total) < 1


def test_plans_differ_by_seed_and_the_mixture_lays_over_the_defaults():
    assert make_plans(50, 1) == make_plans(50, 1)
    assert make_plans(50, 1) != make_plans(50, 2)
    only = {found.name: 0.0 for found in BEHAVIOURS} | {"copy": 2.0}
    assert {plan.behaviour.name for plan in make_plans(20, 0, only)} == {"copy"}


def test_a_wrong_mixture_is_named():
    with pytest.raises(ValueError, match="unknown behaviours \\['copi'\\]"):
        make_plans(10, 0, {"copi": 1.0})
    with pytest.raises(ValueError, match="leaves no behaviour"):
        make_plans(10, 0, {found.name: 0.0 for found in BEHAVIOURS})


@pytest.mark.parametrize("found", BEHAVIOURS, ids=lambda found: found.name)
def test_a_script_replays_and_varies(found):
    """The server replays scripts from their start at every request, so they must not depend on anything
    else; and one behaviour is many programs, or the policy would learn it by heart."""
    observations = ["text\n", "False\n", "x", "y"]
    plans = [Plan(found, str(seed)) for seed in range(40)]
    for plan in plans:
        for turn in range(len(observations)):
            assert plan.reply(observations[:turn]) == plan.reply(observations[:turn])
        assert plan.reply(observations) == FINISHED
    fixed = {"ready_at_once", "ask_once"}
    episodes = {tuple(plan.reply(observations[:turn]) for turn in range(3)) for plan in plans}
    assert (len(episodes) > 1) is (found.name not in fixed)


def test_sub_replies_are_right_often_but_not_always():
    plans = [Plan(behaviour("ask_once"), str(seed)) for seed in range(300)]
    right = sum(plan.sub_reply(SUB_REQUEST + "Some text") == "Some text" for plan in plans) / len(plans)
    assert 0.55 < right < 0.78


def test_the_server_refuses_what_is_not_its_script():
    server = ScriptedServer(make_plans(2, 0), sub_system_prompt="sub")
    system, task = {"role": "system", "content": "s"}, {"role": "user", "content": "t"}
    with pytest.raises(ValueError, match="no plan for model 'scripted-2'"):
        server.reply("scripted-2", [system, task])
    with pytest.raises(ValueError, match="not what its script said"):
        server.reply("scripted-0", [system, task, {"role": "assistant", "content": "never"}, task])
    with pytest.raises(ValueError, match="exactly one observation"):
        server.reply("scripted-0", [system, task, task])


# --- episodes through the real harness


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Every behaviour at least twice: in text for the tokenizer, then in tokens."""
    plans = [Plan(found, f"{found.name}/{number}") for found in BEHAVIOURS for number in range(2)]
    plans += [Plan(behaviour("copy"), f"more/{number}") for number in range(4)]
    in_text = asyncio.run(record(environment(), plans[:: len(plans) // 8]))
    tokenizer = train_tokenizer(corpus_of(in_text), 512)
    model_dir = tmp_path_factory.mktemp("warm") / "policy"
    save_policy(model_dir, build_model(SMALL, tokenizer, seed=0), tokenizer)
    return model_dir, plans, asyncio.run(record(environment(), plans, model_dir=model_dir))


def test_episodes_come_back_in_order_and_scored_by_the_suite(recorded):
    _, plans, episodes = recorded
    assert [scripted.plan for scripted in episodes] == plans
    rewards = rewards_by_behaviour(episodes)
    assert rewards["copy"] == (6, 1.0)
    for name in ("truncate", "wrap", "invent", "ready_at_once", "never_ready"):
        assert rewards[name] == (2, 0.0)


def test_each_episode_is_one_root_conversation_with_the_template_s_own_tokens(recorded):
    model_dir, _, episodes = recorded
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    for scripted in episodes:
        trace = scripted.episode.traces[0]
        for branch in trace.branches:
            messages = [{"role": m.role, "content": m.content} for m in branch.messages]
            ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
            # The line break after the last turn is the template's, not the model's.
            assert branch.token_ids == list(ids)[:-1]


def test_the_rows_are_the_recorded_ids_and_the_mask_covers_the_replies_only(recorded):
    model_dir, _, episodes = recorded
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    rows = conversations_of(episodes)
    assert sum(row.kind == "root" for row in rows) == len(episodes)
    assert sum(row.kind == "sub" for row in rows) >= 4
    for row, messages in zip(rows, expected_conversations(episodes), strict=True):
        sampled = [int(token) for token, on in zip(row.input_ids_T, row.mask_T, strict=True) if on]
        replies = [m.content or "" for m in messages if m.role == "assistant"]
        assert tokenizer.decode(sampled, skip_special_tokens=False) == "".join(
            f"{reply}<|im_end|>" for reply in replies
        )


def expected_conversations(episodes):
    """Root first, then the sub-LLMs', as `conversations_of` orders them."""
    for scripted in episodes:
        branches = scripted.episode.traces[0].branches
        is_sub = [branch.calls[0].acp.request_id.startswith("sub.") for branch in branches]
        yield from (b.messages for b, sub in zip(branches, is_sub, strict=True) if not sub)
        yield from (b.messages for b, sub in zip(branches, is_sub, strict=True) if sub)


def test_a_cut_reply_is_still_one_conversation(recorded):
    """A script's reply that hits the token limit is not what the script said; the root must stay one branch
    until the server notices."""
    model_dir, _, _ = recorded
    plan = Plan(behaviour("ready_at_once"), "cut")
    length = len(AutoTokenizer.from_pretrained(model_dir).encode(plan.reply([])))
    whole = asyncio.run(record(environment(), [plan], model_dir=model_dir, max_tokens=length + 1))
    assert conversations_of(whole)[0].trained == length + 1
    with pytest.raises(BaseExceptionGroup):
        asyncio.run(record(environment(), [plan], model_dir=model_dir, max_tokens=length - 1))


# --- imitation


@pytest.fixture
def one_thread():
    """Threads of torch spin while they wait: on a busy machine two are several times slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_only_sampled_tokens_are_imitated(tmp_path, one_thread):
    """Prompts are noise and the reply is always the same: its loss goes to zero, and the model does not
    learn the noise."""
    rng = np.random.default_rng(0)
    tokenizer = train_tokenizer(["abc"], 300)
    rows = []
    for _ in range(64):
        ids = np.concatenate([rng.integers(3, 250, 12), [7, 8, 9, 2]])
        mask = np.array([0] * 12 + [1] * 4)
        rows.append(BranchTokens("root", ids, mask, mask.astype(np.float32)))
    model = build_model(SMALL, tokenizer, seed=0)
    config = WarmstartConfig(policy=SMALL, epochs=8, rows_per_step=8, lr=5e-3)
    said: list[str] = []
    loss = imitate(model, tokenizer, rows, config, seed=0, work_dir=tmp_path, say=said.append)
    assert loss < 0.05
    assert len(said) == 8
    assert said[-1].startswith("imitation: epoch 8/8, loss 0.0")


def test_renderer_and_server_agree_on_where_turns_end(recorded):
    """The scripted server reads conversations back from token ids."""
    model_dir, plans, _ = recorded
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    renderer = PlainChatMLRenderer(tokenizer)
    messages = [{"role": "system", "content": "a\n\nb"}, {"role": "user", "content": "x\n"}]
    ids = renderer.render_ids(messages, add_generation_prompt=True)
    server = ScriptedServer(plans, sub_system_prompt="sub", tokenizer=tokenizer)
    assert server.messages_of(ids) == messages
