"""The scripted stand-in: the same request, the same reply; refusals in vLLM's words."""

from typing import Any

import httpx
import pytest
from verifiers.v1.trace import Error

from eval import scripted_oolong
from eval.rows import Outcome, _classify_error
from eval.scripted import ScriptedServer
from eval.scripted_replies import follow, last_line, math_code, reply, slip, to_copy


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def test_it_speaks_chat_completions_and_counts_tokens() -> None:
    body = {"model": "x", "messages": user("Copy it.\n\n<text>abc def</text>")}
    async with ScriptedServer() as server, httpx.AsyncClient(trust_env=False, timeout=120) as client:
        first, second = [
            await client.post(f"{server.base_url}/chat/completions", json=body) for _ in range(2)
        ]
    assert first.json() == second.json()
    assert first.json()["choices"][0]["finish_reason"] == "stop"
    usage = first.json()["usage"]
    assert usage["prompt_tokens"] == 8  # 31 characters, 4 a token
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_a_prompt_beyond_the_window_is_refused_as_an_overflow() -> None:
    async with ScriptedServer(window=50) as server, httpx.AsyncClient(trust_env=False, timeout=120) as client:
        url = f"{server.base_url}/chat/completions"
        ok = await client.post(url, json={"model": "x", "messages": user("a" * 100)})
        refused = await client.post(url, json={"model": "x", "messages": user("a" * 400)})
    assert (ok.status_code, refused.status_code) == (200, 400)
    error = Error(type="ProviderError", message=refused.text, status_code=400)
    assert _classify_error(error) is Outcome.CONTEXT_OVERFLOW


def test_slips_happen_at_their_rate_and_cost_one_character() -> None:
    texts = [f"text number {i} of many" for i in range(400)]
    slipped = [text for text in texts if slip(text, 0.3) != text]
    assert 0.2 < len(slipped) / 400 < 0.4
    assert all(len(slip(text, 0.3)) == len(text) - 1 for text in slipped)


def test_the_text_to_copy_is_found_behind_instructions_that_name_the_tags() -> None:
    prompt = "Copy the text between <text> and </text>.\n\n<text>a\n <text>b</text>c</text>\n\nReply."
    assert to_copy(prompt) == "a\n <text>b</text>c"


@pytest.mark.parametrize(
    ("question", "value"),
    [
        ("What is the remainder when $24^{2603}$ is divided by $2538$?", "1836"),
        ("Solve the system $- 3 x - 3 y = -18$, $2 x - 4 y = -20$. Give", "(2/3, 16/3)"),
        ("Evaluate $\\displaystyle\\sum_{k=1}^{9} \\frac{1}{k(k+2)}$ as", "36/55"),
        (
            "3 fair dice, each with sides numbered $1$ to $8$, are rolled. What is the probability that "
            "the numbers "
            "rolled add up to exactly $10$? Give",
            "9/128",
        ),
        (
            "the sum of all positive integers less than $10$ that are relatively prime to $10$ and whose "
            "decimal "
            "digits add up to a multiple of $3$.",
            "12",
        ),
    ],
)
def test_what_it_can_calculate(question: str, value: str) -> None:
    code = math_code(question)
    assert code is not None
    names: dict[str, object] = {}
    exec(code, names)
    assert str(names["value"]) == value


POINTS = [
    ("May 01, 2022", "1", "You won a prize", None),
    ("May 02, 2022", "1", "See you at noon", None),
    ("May 02, 2022", "2", "call 555 to claim", None),
]
TEXT = "Each is of one of these kinds: ham, spam.\n\n" + "\n".join(
    f"Date: {date} || User: {user} || Instance: {text}" for date, user, text, _ in POINTS
)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Of the labels, which is the most common?", "Label: spam"),
        ("Of the labels, which is the least common?", "Label: ham"),
        ("In the above data, which date occurs most often?", "Date: 05/02/2022"),
        ("In the above data, which user has the most data points?", "User: 1"),
        ("how many dates occur exactly 1 times?", "Answer: 1"),
        (
            "Consider only the data points of the users 1 and 3. How many of them should be classified as "
            "label 'spam'?",
            "Answer: 1",
        ),
        (
            "is label 'ham' more common than label 'spam', less common?",
            "Answer: ham is less common than spam",
        ),
        ("which user has more data points with the label 'spam': user 1 or user 2?", "User: 1"),
        ("What is the meaning of it all?", "Answer: unknown"),
    ],
)
def test_it_answers_about_points_the_same_as_plain_model_and_in_a_repl(question: str, answer: str) -> None:
    assert scripted_oolong.plain_answer(f"{TEXT}\n\n{question}") == answer
    prompt = f"`context` holds a text: one data point a line, ...\n\nQuestion: {question}\n\nForm."
    code = scripted_oolong.root_code(prompt, 1)
    names: dict[str, Any] = {
        "context": TEXT,
        "answer": {},
        "llm_batch": lambda prompts: [scripted_oolong.sub_answer(one) for one in prompts],
    }
    exec(code, names)
    assert names["answer"] == {"content": answer, "ready": True}


def test_it_counts_events_of_a_transcript_piece_by_piece() -> None:
    line = "Ann: I rolled a 9 for stealth.\nBob: I cast Salt Ward.\n"
    context = line * 1000
    prompt = "`context` holds a transcript of a role-playing game.\n\nQuestion: How many spells are cast?\n"
    names: dict[str, Any] = {
        "context": context,
        "answer": {},
        "llm_batch": lambda prompts: [scripted_oolong.sub_answer(one) for one in prompts],
    }
    exec(scripted_oolong.root_code(prompt, 1), names)
    # Pieces are cut at 20,000 characters, so a line on a border may be lost.
    assert names["answer"]["ready"]
    assert 990 <= int(names["answer"]["content"].removeprefix("\\boxed{").removesuffix("}")) <= 1000


def test_it_follows_facts_from_page_to_page() -> None:
    founder = "| Founded | 1846 |\n| Founder | [Ann Ash](http://p/ann) |\n"
    person = "| Born | 1801 |\n| Birthplace | [Ulvby](http://t/ulvby) |\n"
    question = "In which town was the founder of the institution with a herbarium born?"
    assert follow(question, [founder]) == ("http://p/ann", "Ann Ash")
    assert follow(question, [founder, person]) == (None, "Ulvby")
    assert follow(question, ["nothing of use"]) == (None, None)


def test_an_rlm_writes_code_and_a_sub_llm_text() -> None:
    root = [
        {"role": "system", "content": 'Put it in answer["content"].'},
        *user('Copy.\n\n<text>it\'s "q"</text>\n\nNow.'),
    ]
    first = reply(root, [])["content"]
    assert first.startswith("```python\n")
    names: dict[str, object] = {"answer": {}}
    exec(first.removeprefix("```python\n").removesuffix("```"), names)
    assert names["answer"]["content"].startswith("it")  # type: ignore[index]
    again = reply([*root, {"role": "assistant", "content": first}, *user("out")], [])["content"]
    assert 'answer["ready"] = True' in again
    sub = reply([{"role": "system", "content": "You answer one self-contained request."}, *user("?")], [])
    assert "```" not in sub["content"]


def test_the_last_line_of_an_output() -> None:
    assert last_line("Output (0.01 s):\n7\n\n") == "7"
    assert last_line("") == ""
