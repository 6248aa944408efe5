"""From a final reply to right or wrong.

Two judges: an LLM, and comparison with the reference after normalisation. Which one decided is recorded. A
judge that fails raises: not to know whether an answer is right is an error of the episode, never a 0.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import verifiers.v1 as vf

from deepdive.config import DeepDiveJudgeConfig
from deepdive.prompts import JUDGE

# No two repeats in a row can take the same characters: a reply may be a million of them, made to be slow.
_MARKED = re.compile(
    r"^[^\w\n]*(?:final\s+|exact\s+)?answer[^\w:=]*(?:is\b[^\w:=]*)?[:=]+\s*(\S.*)$",
    re.IGNORECASE | re.MULTILINE,
)
_BOX_OR_BRACE = re.compile(r"\\boxed\s*\{|[{}]")
_VERDICT = re.compile(r"VERDICT:\s*(CORRECT|INCORRECT)", re.IGNORECASE)
_WRAP = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf)\s*\{([^{}]*)\}")


def boxed(text: str) -> str | None:
    r"""The content of the last complete `\boxed{...}`, braces inside balanced; None without one."""
    opened: list[
        tuple[int, bool]
    ] = []  # of each brace not closed yet: where its content begins, whether a box
    start, end = -1, -1
    for match in _BOX_OR_BRACE.finditer(text):
        if match.group() != "}":
            opened.append((match.end(), match.group() != "{"))
        elif opened:
            begin, box = opened.pop()
            if box and begin > start:
                start, end = begin, match.start()
    return None if start < 0 else _WRAP.sub(r"\1", text[start:end]).strip()


def final_answer(reply: str) -> str:
    r"""What a reply gives as its answer: its last `\boxed{...}`, else the last line `Answer: ...`, else all
    of it. Thoughts in <think> are not part of a reply."""
    text = re.sub(r"<think>.*?(</think>|\Z)", "", reply, flags=re.DOTALL).strip()
    inside = boxed(text)
    if inside is not None:
        return inside
    marked = _MARKED.findall(text)
    return (marked[-1] if marked else text).strip().strip("*_`").strip()


def normalise(text: str) -> str:
    """For comparison: compatibility forms, case, accents, punctuation, articles and blanks made equal, and
    separators between thousands removed."""
    text = unicodedata.normalize("NFKD", text).casefold().replace("ø", "o").replace("æ", "ae")
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"(?<=\d)[, ](?=\d{3}\b)", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|[^\w.]", " ", text)
    words = [word for word in text.split() if word not in ("a", "an", "the")]
    return " ".join(words)


def exact_match(answer: str, reference: str) -> bool:
    """Whether the two are the same after normalisation. An empty answer matches nothing."""
    given = normalise(answer)
    return bool(given) and given == normalise(reference)


def duplicate_share(queries: Sequence[str], similarity: float) -> float:
    """Share of the queries that nearly repeat an earlier one: Jaccard similarity of their words at least
    `similarity`. 0 without queries."""
    seen: list[frozenset[str]] = []
    repeats = 0
    for query in queries:
        words = frozenset(normalise(query).split())
        repeats += any(len(words & old) >= similarity * len(words | old) for old in seen if words or old)
        seen.append(words)
    return repeats / len(queries) if queries else 0.0


class JudgeFailure(Exception):
    """The judge could not be asked, or gave no verdict. The episode is an error; nothing is scored."""


class DeepDiveJudge(vf.Judge[bool, DeepDiveJudgeConfig]):
    """Sees question, reference and answer, nothing else of the episode."""

    prompt = JUDGE

    def build_messages(self, **fields: Any) -> Any:
        # JSON strings: no text can end its field and go on as an instruction of ours.
        return super().build_messages(**{k: json.dumps(v, ensure_ascii=False) for k, v in fields.items()})

    def parse(self, response: vf.JudgeResponse[bool]) -> bool:
        """The verdict on the last line, and nothing looser: "not incorrect" in a sentence is not one."""
        text = response.text.rsplit("</think>", 1)[-1].strip()
        last = text.split("\n")[-1].strip().strip("*_`.# ")
        match = _VERDICT.fullmatch(last)
        if match is None or "<think>" in text:
            raise JudgeFailure(f"the judge's last line is not a verdict: {last[:200]!r}")
        return match[1].upper() == "CORRECT"

    async def correct(self, trace: vf.Trace, question: str, answer: str, response: str) -> bool:
        """Whether `response` is right. Raises JudgeFailure after `attempts` failures."""
        config = self.config
        failure: Exception | None = None
        for attempt in range(config.attempts):
            if attempt:
                await asyncio.sleep(config.backoff_seconds * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            try:
                async with asyncio.timeout(config.seconds):
                    result = await self.evaluate(
                        trace=trace, question=question, answer=answer, response=response
                    )
                return bool(result.parsed)
            except Exception as error:
                failure = error
                if getattr(error, "status_code", None) in (400, 401, 403, 404):
                    break  # the same again next time
        cure = 'taskset.task.scoring = "exact" needs no judge'
        if "temperature" in str(failure):
            cure = "a model that fixes its temperature needs taskset.task.judge.sampling = {}"
        raise JudgeFailure(
            f"judge {config.model} at {config.base_url} gave no verdict: {type(failure).__name__}: "
            f"{str(failure)[:300]} (taskset.task.judge; {cure})"
        ) from failure
