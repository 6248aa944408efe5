"""Synthetic traces: real ``verifiers`` trace objects, with the records that the RLM harness adds.

Everything is drawn from a seeded generator. ``python -m tests.eval.viewer.synth FOLDER --episodes 240``
writes a results folder as an evaluation does; the screenshots in ``docs/`` show such a folder.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from verifiers.v1.configs.agent import WireAgentConfig
from verifiers.v1.configs.harness import WireHarnessConfig
from verifiers.v1.graph import MessageNode
from verifiers.v1.semantic import ACPInfo
from verifiers.v1.task import WireTaskData
from verifiers.v1.trace import (
    AgentInfo,
    AgentSpan,
    Error,
    ModelCall,
    Reward,
    TimeSpan,
    Timing,
    TraceTask,
    WireTrace,
)
from verifiers.v1.types import AssistantMessage, SystemMessage, ToolCall, ToolMessage, Usage, UserMessage

_SYSTEM = (
    "You solve tasks by writing Python that runs in a persistent REPL. The input is the variable `context`. "
    "Write your final reply into answer['content'] and set answer['ready'] = True when it is done. "
    "llm_batch(prompts) asks a fresh language model each prompt, all at the same time. "
)
EPOCH = 1_790_000_000.0
LIMITS = {"max_turns": 30, "max_sub_calls": 1000, "max_parallel_sub_calls": 32, "episode_seconds": 1800.0}


class Builder:
    """A trace put together message by message, as verifiers' interception does."""

    def __init__(
        self,
        seed: int | str = 0,
        *,
        task_type: str = "OolongTask",
        prompt: str = "",
        model: str = "gpt-5-mini",
        harness: str = "rlm_env",
        **data: Any,
    ) -> None:
        self.rng = random.Random(f"trace {seed}")
        self.clock = EPOCH + self.rng.random() * 1e4
        config = WireAgentConfig(
            harness=WireHarnessConfig(id=harness, **({"limits": LIMITS} if harness == "rlm_env" else {})),
            runtime={"type": "subprocess"},
            model=model,
        )
        self.trace = WireTrace(
            id=f"{self.rng.getrandbits(128):032x}",
            task=TraceTask(type=task_type, data=WireTaskData(prompt=prompt, **data)),
            agent=AgentInfo(config=config),
            timing=Timing(start=self.clock),
            ok=True,
            is_completed=True,
        )
        self.turns: list[dict[str, Any]] = []
        self.tree: list[dict[str, Any]] = [self._rlm_node("", 0, None)]
        self.calls: list[dict[str, Any]] = []
        self.batches: list[dict[str, Any]] = []
        self.tips: dict[str, int | None] = {}

    @staticmethod
    def _rlm_node(path: str, depth: int, parent: str | None) -> dict[str, Any]:
        return {
            "path": path,
            "depth": depth,
            "parent_call": parent,
            "stop_reason": "answer_ready",
            "turns": [],
        }

    def say(self, parent: int | None, message: Any, sampled: bool = False) -> int:
        self.trace.nodes.append(
            MessageNode(parent=parent, message=message, sampled=sampled, timestamp=self.clock)
        )
        return len(self.trace.nodes) - 1

    def sample(
        self, parent: int | None, message: AssistantMessage, request_id: str | None, seconds: float
    ) -> int:
        node = self.say(parent, message, sampled=True)
        path, current = 0, parent
        while current is not None:
            path += len(str(self.trace.nodes[current].message.content or "")) // 4
            current = self.trace.nodes[current].parent
        usage = Usage(prompt_tokens=path + 8, completion_tokens=len(message.content or "") // 4 + 2)
        self.trace.calls.append(
            ModelCall(
                node=node,
                model=self.trace.agent.config.model,
                endpoint="/chat/completions",
                finish_reason="stop",
                usage=usage,
                time=TimeSpan(start=self.clock, end=self.clock + seconds),
                acp=ACPInfo(request_id=request_id) if request_id else None,
            )
        )
        self.clock += seconds
        return node

    # --- RLM ----------------------------------------------------------------------------------------

    def rlm_turn(
        self,
        reply: str,
        blocks: list[dict[str, Any]],
        *,
        answer: tuple[str, bool] = ("", False),
        observation: str | None = None,
        batch: tuple[str, list[tuple[str, str]]] | None = None,
        path: str = "",
    ) -> list[str]:
        """One turn of the RLM at ``path`` (``"rlm.0."`` below the root); returns the ids of its calls."""
        node = next(node for node in self.tree if node["path"] == path)
        turn = len(node["turns"])
        if path not in self.tips:
            system = self.say(None, SystemMessage(content=_SYSTEM + path))
            prompt = self.trace.task.data.prompt if not path else "Child question of " + path
            self.tips[path] = self.say(system, UserMessage(content=prompt))
        request_id = f"{path}root.{turn}"
        seconds = self.rng.uniform(0.8, 3.5)
        tip = self.sample(self.tips[path], AssistantMessage(content=reply), request_id, seconds)
        ids = self._batch(batch, turn, path) if batch else []
        self.clock += sum(b["seconds"] for b in blocks)
        self.tips[path] = tip if observation is None else self.say(tip, UserMessage(content=observation))
        call = self.trace.calls[-1 - sum(len(c["request_ids"]) for c in self.calls if c["id"] in ids)]
        assert call.usage is not None
        node["turns"].append(
            {
                "turn": turn,
                "request_id": request_id,
                "seconds": seconds,
                "prompt_tokens": call.usage.prompt_tokens,
                "completion_tokens": call.usage.completion_tokens,
                "finish_reason": "stop",
                "blocks": blocks,
                "observation": observation,
                "answer": {"content": answer[0], "ready": answer[1]},
                "calls": ids,
            }
        )
        return ids

    def child(self, call_id: str) -> str:
        """Make the call ``call_id`` a child RLM; returns its path."""
        call = next(call for call in self.calls if call["id"] == call_id)
        call["kind"] = "rlm"
        path = call_id + "."
        self.tree.append(self._rlm_node(path, path.count("rlm."), call_id))
        return path

    def _batch(self, batch: tuple[str, list[tuple[str, str]]], turn: int, path: str) -> list[str]:
        name, exchanges = batch
        number = len(self.batches)
        ids = []
        start = self.clock
        for prompt, reply in exchanges:
            self.clock = start
            kind = "rlm" if name.startswith("rlm") else "sub"
            k = sum(
                c["id"].startswith(path + kind + ".") and c["id"].count(".") == path.count(".") + 1
                for c in self.calls
            )
            call_id = f"{path}{kind}.{k}"
            seconds = self.rng.uniform(0.4, 4.0)
            record: dict[str, Any] = {
                "id": call_id, "kind": "llm", "batch": number, "root_turn": turn, "request_ids": [],
                "turns": 0, "tool_calls": 0, "prompt_tokens": 0, "completion_tokens": 0,
                "seconds": seconds, "error": None,
            }  # fmt: skip
            if reply.startswith("!"):
                record["error"] = reply[1:]
            elif kind == "sub":
                system = self.say(None, SystemMessage(content="You are a sub-LLM. Answer briefly."))
                user = self.say(system, UserMessage(content=prompt))
                self.sample(user, AssistantMessage(content=reply), call_id + ".0", seconds)
                usage = self.trace.calls[-1].usage
                assert usage is not None
                record.update(
                    request_ids=[call_id + ".0"], turns=1,
                    prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens,
                )  # fmt: skip
            self.calls.append(record)
            ids.append(call_id)
        seconds = max(call["seconds"] for call in self.calls[-len(exchanges) :])
        self.clock = start + seconds
        self.batches.append(
            {
                "batch": number,
                "name": name,
                "size": len(exchanges),
                "root_turn": turn,
                "path": path,
                "seconds": seconds,
            }
        )
        return ids

    # --- the end --------------------------------------------------------------------------------------

    def finish(
        self,
        *,
        reward: float | None = None,
        stop: str = "answer_ready",
        error: tuple[str, str] | None = None,
        scaffold: str = "rlm",
        rewards: dict[str, Reward | None] | None = None,
    ) -> dict[str, Any]:
        """The record, as ``Trace.to_record()`` gives it."""
        trace = self.trace
        end = max(self.clock, trace.timing.start + 1.0)
        trace.timing.agent = AgentSpan(start=trace.timing.start + 0.2, end=end)
        trace.timing.scoring = TimeSpan(start=end, end=end + 0.02)
        trace.stop_condition = stop
        if reward is not None:
            trace.rewards = {"score": Reward(score=reward)}
        trace.rewards.update(rewards or {})
        if error:
            trace.ok = False
            trace.errors.append(
                Error(type=error[0], message=error[1], traceback="Traceback (most recent call last):\n  …")
            )
        if self.tree[0]["turns"]:
            self._record_rlm(stop, scaffold)
        return trace.to_record()

    def _record_rlm(self, stop: str, scaffold: str) -> None:
        root = self.tree[0]["turns"]
        self.tree[0]["stop_reason"] = stop
        blocks = [block for turn in root for block in turn["blocks"]]
        self.trace.root_reply = root[-1]["answer"]["content"]
        self.trace.info["rlm"] = {
            "version": 1, "scaffold": scaffold, "stop_reason": stop,
            "episodes": self.tree, "calls": self.calls, "batches": self.batches,
        }  # fmt: skip
        self.trace.record_metrics(
            {
                "root_turns": len(root),
                "root_prompt_tokens": sum(t["prompt_tokens"] for t in root),
                "root_completion_tokens": sum(t["completion_tokens"] for t in root),
                "root_peak_context_tokens": max(t["prompt_tokens"] + t["completion_tokens"] for t in root),
                "sub_calls": len(self.calls),
                "sub_batches": len(self.batches),
                "sub_prompt_tokens": sum(c["prompt_tokens"] for c in self.calls),
                "sub_completion_tokens": sum(c["completion_tokens"] for c in self.calls),
                "sub_errors": sum(c["error"] is not None for c in self.calls),
                "repl_calls": len(blocks),
                "repl_seconds": sum(b["seconds"] for b in blocks),
                "repl_wait_seconds": sum(b["wait_seconds"] for b in blocks),
                "repl_errors": sum(b["error"] is not None for b in blocks),
                "answer_ready": stop == "answer_ready",
                "answer_chars": len(root[-1]["answer"]["content"]),
                "limit_hit": stop not in ("answer_ready", "error"),
                "wall_seconds": self.clock - self.trace.timing.start,
            }
        )


def block(code: str, output: str = "", **fields: Any) -> dict[str, Any]:
    return {
        "code": code, "output": output, "truncated_chars": 0, "error": None, "seconds": 0.01,
        "wait_seconds": 0.0, "timed_out": False, "restarted": False, "lost": [], "restored": [], **fields,
    }  # fmt: skip


# --- the evaluation in the screenshots ------------------------------------------------------------------

_QUESTIONS = (
    "In the above data, which of the labels is the most common? Give your final answer as 'Label: answer'.",
    "Which label do the messages of user 4711 have most often? Give your final answer as 'Label: answer'.",
    "Among messages dated after Jan 14, 2021, which label is the most common? Answer as 'Label: answer'.",
    "Which label has the later first message? Give your final answer as 'Label: answer'.",
)
_CLASSIFY = '''\
lines = [line for line in context.splitlines() if line.startswith("Date:")]
chunks = [lines[i : i + 40] for i in range(0, len(lines), 40)]

prompt = """Classify each line as spam or ham. Reply with one label a line.

{text}"""
replies = llm_batch([prompt.format(text="\\n".join(chunk)) for chunk in chunks])
labels = [label.strip().lower() for reply in replies for label in reply.splitlines()]
len(labels), len(lines)  # these must agree'''
_FIX = '''\
from collections import Counter

counts = Counter(label for label in labels if label in {"spam", "ham"})
print(counts.most_common())
answer["content"] = f"Label: {counts.most_common(1)[0][0]}"'''


_LOOK = "print(type(context), len(context))\ncontext[:400]"
_READY = 'answer["content"] = "Label: ham"\nanswer["ready"] = True'
_LINES = (
    "See you at eight then?",
    "WINNER!! Claim your reward",
    "ok lor, later",
    "URGENT! Reply STOP to end",
)
_ERROR = """\
Traceback (most recent call last):
  File "<repl>", line 1
NameError: name 'Countr' is not defined"""


def fenced(code: str, prose: str = "") -> str:
    return f"{prose}\n\n```python\n{code}\n```".lstrip()


def oolong_rlm(seed: int | str, *, model: str = "gpt-5-mini", calls: int | None = None) -> dict[str, Any]:
    """An RLM episode of five turns: look, fan out, an error, an answer, the answer made ready."""
    rng = random.Random(f"oolong {seed}")
    size = calls or rng.choice([6, 12, 24, 32])
    length = 2 ** rng.randrange(10, 20)
    gold = rng.choice(["ham", "spam"])
    made = Builder(
        seed,
        prompt=rng.choice(_QUESTIONS),
        model=model,
        idx=rng.randrange(1000),
        name=f"synth/spam/{length}/{rng.randrange(1000)}",
        answer=gold,
        answer_type="LABEL",
        context_length=length,
    )
    seen = f"<class 'str'> {4 * length}\n'Date: Jan 3, 2021 || User: 4711 || Instance: {_LINES[1]} now'"
    made.rlm_turn(
        fenced(_LOOK, "I start by looking at what `context` is."),
        [block(_LOOK, seen)],
        observation=f"[turn 1 of 30, 0.01 s]\n{seen}",
    )
    exchanges = []
    for _ in range(size):
        lines = [
            f"Date: Jan {day % 28 + 1}, 2021 || User: {rng.randrange(9999)} || Instance: {rng.choice(_LINES)}"
            for day in range(40)
        ]
        labels = [rng.choice(["ham", "ham", "spam"]) for _ in lines]
        ask = "Classify each line as spam or ham. Reply with one label a line.\n\n"
        exchanges.append((ask + "\n".join(lines), "\n".join(labels)))
    if rng.random() < 0.3:
        exchanges[-1] = (exchanges[-1][0], "!rate limited (HTTP 429) after 5 attempts")
    seen = f"({size * 40}, {size * 40})"
    classify = block(_CLASSIFY, seen, seconds=0.04)
    made.rlm_turn(
        fenced(
            _CLASSIFY,
            "The lines need reading, not counting: each label is implied by its text. I split them into "
            "chunks of 40 and let sub-LLMs classify them in parallel.",
        ),
        [classify],
        observation=f"[turn 2 of 30, 0.04 s]\n{seen}",
        batch=("llm_batch", exchanges),
    )
    classify["wait_seconds"] = made.batches[-1]["seconds"]
    made.rlm_turn(
        fenced("counts = Countr(labels)"),
        [block("counts = Countr(labels)", _ERROR, error="NameError")],
        observation=f"[turn 3 of 30, 0.00 s]\n{_ERROR}",
    )
    seen = f"[('ham', {size * 27}), ('spam', {size * 13})]"
    made.rlm_turn(
        fenced(_FIX, "A slip. Also, replies may contain anything, so only the two labels count."),
        [block(_FIX, seen)],
        answer=("Label: ham\n(checked against 40 lines by hand)", False),
        observation=f"[turn 4 of 30, 0.01 s]\n{seen}",
    )
    made.rlm_turn(fenced(_READY, "The margin is wide. Done."), [block(_READY)], answer=("Label: ham", True))
    return made.finish(reward=1.0 if gold == "ham" else round(0.75 ** rng.randrange(1, 6), 4))


def deep_rlm(seed: int | str, *, model: str = "gpt-5-mini") -> dict[str, Any]:
    """An RLM whose first turn starts two child RLMs, one of which makes sub-calls of its own."""
    made = Builder(
        seed,
        task_type="DeepDiveTask",
        prompt="Which bridge did the architect of the old mill build?",
        model=model,
        name=f"qa_rl/{seed}",
        answer="The Harrow Bridge",
    )

    def step(code: str, output: str = "", **fields: Any) -> list[str]:
        seen = None if fields.get("answer") else output
        return made.rlm_turn(fenced(code), [block(code, output)], observation=seen, **fields)

    questions = [("Who was the architect?", ""), ("List the bridges", "")]
    ids = step(
        'found = rlm_batch(["Who was the architect?", "List the bridges"], [context] * 2)\nprint(found)',
        "['Ada Finch', 'Harrow Bridge, Low Bridge']",
        batch=("rlm_batch", questions),
    )
    first = made.child(ids[0])
    question = ("llm_query", [("architect of the mill?", "Ada Finch")])
    step("llm_query('architect of the mill?')", "'Ada Finch'", batch=question, path=first)
    step("answer.update(content='Ada Finch', ready=True)", answer=("Ada Finch", True), path=first)
    made.rlm_turn("Nothing found.", [], path=made.child(ids[1]))
    bridge = "The Harrow Bridge"
    step(f"answer.update(content={bridge!r}, ready=True)", answer=(bridge, True))
    return made.finish(reward=1.0)


def chat(
    seed: int | str,
    *,
    reward: float | None = None,
    model: str = "gpt-5-mini",
    error: tuple[str, str] | None = None,
    stop: str = "agent_completed",
    **data: Any,
) -> dict[str, Any]:
    """A trace of another harness: a tool call and a reply, no ``info["rlm"]``."""
    rng = random.Random(f"chat {seed}")
    a, b = rng.randrange(100, 999), rng.randrange(100, 999)
    data.setdefault("prompt", f"What is {a} times {b}? Put the result in \\boxed{{}}.")
    made = Builder(
        seed,
        task_type="MathPythonTask",
        model=model,
        harness="null",
        idx=rng.randrange(1000),
        answer=str(a * b),
        **data,
    )
    user = made.say(None, UserMessage(content=made.trace.task.data.prompt))
    if error is None:
        call = ToolCall(id="call_1", name="python", arguments=json.dumps({"code": f"print({a} * {b})"}))
        asked = made.sample(user, AssistantMessage(content="", tool_calls=[call]), None, 1.1)
        told = made.say(asked, ToolMessage(tool_call_id="call_1", name="python", content=f"{a * b}\n"))
        final = AssistantMessage(content=f"It is \\boxed{{{a * b}}}.", reasoning_content="Easy.")
        made.sample(told, final, None, 0.9)
    return made.finish(reward=reward, stop=stop, error=error)


def overflow(seed: int | str, *, scaffold: str = "llm", reply: str = "") -> dict[str, Any]:
    """An episode that the first prompt ended: scored 0 by its suite, with no message and one refused call."""
    record = chat(seed, reward=0.0, stop="context_overflow", error=("", ""))
    message = "upstream 400: This model's maximum context length is 65536 tokens, your prompt has 65616"
    record |= {"ok": True, "errors": [], "nodes": [], "root_reply": reply}
    record["info"]["rlm"] = {"version": 1, "scaffold": scaffold, "stop_reason": "context_overflow"}
    record["calls"] = [
        {
            "model": "gpt-5-mini",
            "error": {"type": "ProviderError", "message": message, "status_code": 400},
            "acp": {"request_id": "root.0"},
        }
    ]
    return record


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """Append ``records`` to ``path`` as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


def results_folder(root: Path, episodes: int, seed: int = 0) -> Path:
    """A folder as ``rlm-eval`` writes it, with about ``episodes`` traces over suites, modes and models."""
    rng = random.Random(seed)
    cells: dict[str, list[dict[str, Any]]] = {}
    for n in range(episodes):
        model = rng.choice(["gpt-5-mini", "glm-4.6"])
        mode = rng.choice(["llm", "rlm", "rlm_tips"])
        suite = rng.choice(["oolong", "math_python", "deepdive"])
        key = f"{seed}.{n}"
        if mode == "llm" and rng.random() < 0.08:
            error = ("ContextOverflowError", "the prompt has 262,144 tokens; the model's window is 131,072")
            record = chat(key, model=model, error=error, stop="provider_error")
        elif mode == "llm" or suite == "math_python":
            record = chat(key, model=model, reward=float(rng.random() < 0.5))
        elif suite == "deepdive":
            record = deep_rlm(key, model=model)
        else:
            record = oolong_rlm(key, model=model)
        cells.setdefault(f"{suite}__default__{mode}__{model}", []).append(record)
    for name, found in sorted(cells.items()):
        write(root / "cells" / name / "traces.jsonl", found)
    write(root / "episodes.jsonl", [{"suite": "oolong", "reward": 1.0}])
    return root


def as_episode(record: dict[str, Any], env: str = "verbatim-copy") -> dict[str, Any]:
    """``record`` inside an episode line, as ``vf-eval`` writes it."""
    return {"id": "e" + record["id"], "env": {"id": env}, "task": record["task"], "ok": record["ok"],
            "is_timeout": False, "errors": [], "traces": [record]}  # fmt: skip


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--episodes", type=int, default=240)
    chosen = arguments.parse_args()
    results_folder(chosen.folder, chosen.episodes)
