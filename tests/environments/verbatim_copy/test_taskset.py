"""The taskset as verifiers sees it: prompts by mode and placement, identity, presets and scoring."""

import asyncio

import pytest
import verifiers.v1 as vf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from verbatim_copy import VerbatimCopyTaskset, scoring
from verbatim_copy.taskset import VerbatimCopyConfig

from tests.environments.traces import score


def tasks(**config):
    return list(VerbatimCopyTaskset(VerbatimCopyConfig(id="verbatim-copy", **{"num_tasks": 6, **config})))


def test_verifiers_finds_it_by_id():
    assert vf.taskset_config_type("verbatim-copy") is VerbatimCopyConfig
    config = vf.resolve_env_config(
        {"taskset": {"id": "verbatim-copy", "content_type": "csv", "num_tasks": 2}}
    )
    loaded = list(vf.load_taskset(config.taskset))
    assert [t.data.kind for t in loaded] == ["csv", "csv"]


@pytest.mark.parametrize("mode", ["llm", "rlm", "rlm_tips"])
@pytest.mark.parametrize("placement", ["prompt", "repl"])
def test_the_text_is_where_the_setting_says_and_nowhere_else(mode, placement):
    in_repl = placement == "repl" and mode != "llm"
    for task in tasks(mode=mode, placement=placement):
        data = task.data
        assert (f"<text>{data.text}</text>" in data.prompt) is not in_repl
        assert data.context == (data.text if in_repl else None)
        if in_repl:
            windows = {data.text[i : i + 25] for i in range(len(data.text) - 25)}
            assert not any(window in data.prompt for window in windows)
        assert ("<env_tips>" in data.prompt) is (mode == "rlm_tips")
        assert ("Your answer must be" in data.prompt) is (mode != "llm")


def test_tips_are_all_that_rlm_tips_adds():
    for plain, tipped in zip(tasks(mode="rlm"), tasks(mode="rlm_tips"), strict=True):
        head, _, tips = tipped.data.prompt.partition("\n\n<env_tips>\n")
        assert head == plain.data.prompt
        assert tips.endswith("\n</env_tips>")


def test_a_task_is_the_same_in_every_mode_and_for_every_count():
    few = tasks(num_tasks=3, mode="llm")
    many = tasks(num_tasks=30, placement="repl")
    assert [t.key for t in few] == [t.key for t in many[:3]]
    assert [t.data.text for t in few] == [t.data.text for t in many[:3]]
    assert len({t.key for t in many}) == 30
    assert len({t.data.text for t in many}) == 30


def test_splits_and_seeds_share_no_text():
    texts = {
        name: {t.data.text for t in tasks(num_tasks=40, **config)}
        for name, config in {
            "test": {},
            "train": {"split": "train"},
            "seed": {"seed": 43},
            "length": {"target_length": 501},
        }.items()
    }
    assert len(set().union(*texts.values())) == 160
    assert {t.data.text for t in tasks(num_tasks=40, split="mini")} == texts["test"]


def test_the_published_preset():
    published = tasks(preset="published", num_tasks=20)
    assert {t.data.length for t in published} == {500}
    assert {len(t.data.text) for t in published} == {500}
    assert {t.data.mean_fragment_length for t in published} == {20}
    assert len({t.data.kind for t in published}) == 5
    assert tasks(preset="published", target_length=500)[0].key == published[0].key
    with pytest.raises(ValueError, match="leave out either preset or target_length"):
        VerbatimCopyConfig(preset="published", target_length=200)


@pytest.mark.parametrize(
    "bad", [{"target_length": 0}, {"num_tasks": 0}, {"content_typ": "csv"}, {"split": "all"}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ValueError):
        VerbatimCopyConfig(**bad)


def test_all_texts_cannot_be_asked_for():
    with pytest.raises(ValueError, match="set num_tasks to a number"):
        VerbatimCopyConfig(num_tasks=None)


TEXT = "alpha beta\n  gamma"
TABLE = [
    # reply, exact, inside, character accuracy, levenshtein similarity
    (TEXT, 1, 1, 1, 1),
    ("", 0, 0, 0, 0),
    (TEXT + "\n", 0, 1, 18 / 19, 18 / 19),
    (" " + TEXT, 0, 1, None, 18 / 19),
    (TEXT.upper(), 0, 0, 4 / 18, 4 / 18),
    ("alpha beta\n gamma", 0, 0, None, 17 / 18),
    ("alpha beto\n  gamma", 0, 0, 17 / 18, 17 / 18),
    ("lpha beta\n  gamma", 0, 0, None, 17 / 18),
    (f"```\n{TEXT}\n```", 0, 0, None, 18 / 26),
    ("alpha beta\r\n  gamma", 0, 0, None, 18 / 19),
]


@pytest.mark.parametrize(("reply", "exact", "inside", "accuracy", "similarity"), TABLE)
def test_scores(reply, exact, inside, accuracy, similarity):
    assert scoring.exact_match(TEXT, reply) == exact
    assert scoring.matches_inside(TEXT, reply) == inside
    assert scoring.levenshtein_similarity(TEXT, reply) == pytest.approx(similarity)
    if accuracy is not None:
        assert scoring.character_accuracy(TEXT, reply) == pytest.approx(accuracy)


def edit_distance(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text("ab \n", max_size=12), st.text("ab \n", max_size=12))
def test_similarity_is_the_textbook_edit_distance(a, b):
    longest = max(len(a), len(b))
    wanted = 1 - edit_distance(a, b) / longest if longest else 1.0
    assert scoring.levenshtein_similarity(a, b) == pytest.approx(wanted)
    assert 0 <= scoring.character_accuracy(a, b) <= scoring.levenshtein_similarity(a, b) + 1e-9
    assert (scoring.exact_match(a, b) == 1) is (a == b)


async def test_the_answer_variable_is_scored_unstripped():
    task = tasks()[0]
    text = task.data.text
    assert (await score(task, root_reply=text)).reward == 1
    assert (await score(task, root_reply=text, messages=["other"])).reward == 1
    ends = await score(task, root_reply=text + "\n")
    assert ends.reward == 0
    assert ends.metrics["match_inside"] == 1
    assert ends.metrics["levenshtein_similarity"] == pytest.approx(len(text) / (len(text) + 1))


async def test_a_plain_models_last_message_is_scored_by_the_same_rule():
    task = tasks(mode="llm")[0]
    text = task.data.text
    assert (await score(task, messages=["thinking", text])).reward == 1
    assert (await score(task, messages=[text, "done"])).reward == 0
    assert (await score(task, messages=[text + " "])).reward == 0
    assert (await score(task)).reward == 0


async def test_end_whitespace_can_be_ignored():
    task = tasks(task={"ignore_end_whitespace": True})[0]
    replies = [f"\n{task.data.text}  ", task.data.text.replace(" ", "  ", 1)]
    rewards = [trace.reward for trace in await asyncio.gather(*(score(task, root_reply=r) for r in replies))]
    assert rewards == [1, 0]
