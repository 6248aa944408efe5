"""Scripted ways to work on a copying task: what the tiny policy imitates before it is trained by reward.

A policy that never acts cannot be rewarded, so a supervised start has to show it how a turn looks. It must
not show it which turn is right: that is what reinforcement learning is there to find out. So the behaviours
here are a mixture in which most earn nothing. They copy the whole text, or a part of it, or change it, wrap
it, retype it from a print, have sub-LLMs copy it in pieces, set `ready` before there is an answer or never,
make a syntax error and recover well or badly. All of them are imitated alike, so the started policy *samples*
among them.

A behaviour is a generator: it yields replies and is sent the observations, as a model would see them. It
knows the task only through these; none is told the text. Given the same random state and observations it
yields the same replies, which lets a stateless server replay it (`training.scripted_server`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

Script = Generator[str, str, None]
"""Yields the root's replies; each `send` is the observation that the reply got."""

FINISHED = "Done."
"""What a scripted root says when its script is over and the episode is not."""

SUB_REQUEST = "Repeat this text: "
"""How the scripts ask a sub-LLM to copy."""


@dataclass(frozen=True)
class Behaviour:
    """One way to act, and how often it is shown."""

    name: str
    """Name in plans, reports and `WarmstartConfig.mixture`."""
    share: float
    """Share of the scripted episodes, relative to the others'."""
    script: Callable[[random.Random], Script]
    """Starts the script with a random state of its own."""


def code(*lines: str) -> str:
    """A reply that is one fenced block."""
    return "\n".join(["```python", *lines, "```"])


def write(expression: str) -> str:
    """The line that writes the answer."""
    return f'answer["content"] = {expression}'


READY = 'answer["ready"] = True'

_WHOLE = ("context", "context[:]", "str(context)")
_ALTERED = (
    "context.upper()",
    "context.lower()",
    "context.title()",
    "context[::-1]",
    'context.replace(" ", "_")',
    'context.replace("e", "3")',
)
_PARTIAL = ("context[:10]", "context[:20]", "context[:40]", "context[1:]", "context[:-1]", "context[5:]")
_WRAPPED = ("repr(context)", 'context + "\\n"', '"Copy: " + context', '"<" + context + ">"', "context * 2")
_INVENTED = ('"context"', '"the text"', '"done"', "len(context)", "type(context)")
_WRONG = _ALTERED + _PARTIAL + _WRAPPED + _INVENTED


def _at_once(expressions: tuple[str, ...]) -> Callable[[random.Random], Script]:
    def script(rng: random.Random) -> Script:
        yield code(write(rng.choice(expressions)), READY)

    return script


def _look_first(rng: random.Random) -> Script:
    yield code(rng.choice(("print(len(context))", "print(context[:20])", "print(type(context))")))
    yield code(write(rng.choice(_WHOLE if rng.random() < 0.3 else _WRONG)), READY)


def _check_then_declare(rng: random.Random) -> Script:
    expression = rng.choice(_WHOLE if rng.random() < 0.4 else _WRONG)
    seen = yield code(write(expression), 'print(answer["content"] == context)')
    if seen.startswith("False") and rng.random() < 0.3:
        yield code(write("context"), READY)
    else:
        yield code(READY)


def _ready_at_once(rng: random.Random) -> Script:
    yield code(READY)


def _never_ready(rng: random.Random) -> Script:
    yield code(write(rng.choice(_WRONG)))


def _talk(rng: random.Random) -> Script:
    yield rng.choice(("The answer is the text.", "I copied the text.", FINISHED))
    if rng.random() < 0.5:
        yield code(write(rng.choice(_WHOLE if rng.random() < 0.3 else _WRONG)), READY)


def _stumble(rng: random.Random) -> Script:
    """A syntax or name error, then another try."""
    yield code(write(rng.choice(("context)", "(context", "text", "contents"))), READY)
    yield code(write(rng.choice(_WHOLE if rng.random() < 0.35 else _WRONG)), READY)


def _retype(rng: random.Random) -> Script:
    """Prints the text and types what it saw, now and then with a slip."""
    seen = yield code("print(context)")
    typed = seen.removesuffix("\n")
    if typed and rng.random() < 0.7:
        at = rng.randrange(len(typed))
        typed = typed[:at] + rng.choice(("", typed[at] * 2)) + typed[at + 1 :]
    yield code(write(repr(typed)), READY)


def _ask_pieces(rng: random.Random) -> Script:
    cut = rng.choice((20, 30))
    yield code(
        f"parts = [context[:{cut}], context[{cut}:]]",
        f'parts = llm_batch(["{SUB_REQUEST}" + part for part in parts])',
        write('"".join(parts)'),
        READY,
    )


def _ask_once(rng: random.Random) -> Script:
    yield code(write(f'llm_query("{SUB_REQUEST}" + context)'), READY)


BEHAVIOURS: tuple[Behaviour, ...] = (
    Behaviour("copy", 0.14, _at_once(_WHOLE)),
    Behaviour("alter", 0.15, _at_once(_ALTERED)),
    Behaviour("truncate", 0.14, _at_once(_PARTIAL)),
    Behaviour("wrap", 0.10, _at_once(_WRAPPED)),
    Behaviour("invent", 0.09, _at_once(_INVENTED)),
    Behaviour("look_first", 0.08, _look_first),
    Behaviour("check_then_declare", 0.07, _check_then_declare),
    Behaviour("ready_at_once", 0.05, _ready_at_once),
    Behaviour("never_ready", 0.02, _never_ready),
    Behaviour("talk", 0.03, _talk),
    Behaviour("stumble", 0.05, _stumble),
    Behaviour("retype", 0.02, _retype),
    Behaviour("ask_pieces", 0.04, _ask_pieces),
    Behaviour("ask_once", 0.02, _ask_once),
)
"""The mixture. Few lead to the reward; the shares are tuned so that a policy that imitates them is rewarded
in about a quarter of its episodes."""


def sub_reply(request: str, rng: random.Random) -> str:
    """A scripted sub-LLM: repeats the text it is given, exactly in two of three cases."""
    text = request.removeprefix(SUB_REQUEST)
    roll = rng.random()
    if roll < 2 / 3:
        return text
    return text.upper() if roll < 5 / 6 else text[: len(text) // 2]


@dataclass(frozen=True)
class Plan:
    """What one scripted episode does: a behaviour and the seed of its choices."""

    behaviour: Behaviour
    seed: str
    """Seeds the random state of the root, and of each sub-call together with its request."""

    def reply(self, observations: list[str]) -> str:
        """The root's next reply after `observations`, by replaying the script from its start."""
        script = self.behaviour.script(random.Random(self.seed))
        try:
            reply = next(script)
            for observation in observations:
                reply = script.send(observation)
        except StopIteration:
            return FINISHED
        return reply

    def sub_reply(self, request: str) -> str:
        """A sub-LLM's reply to `request`."""
        return sub_reply(request, random.Random(f"{self.seed}/{request}"))


def make_plans(count: int, seed: int, mixture: Mapping[str, float] | None = None) -> list[Plan]:
    """`count` plans in random order whose shares are those of the mixture, to within one episode each.

    Args:
        count: plans to make.
        seed: the same seed gives the same plans.
        mixture: behaviour -> share, over the default shares; 0 leaves a behaviour out.

    Raises:
        ValueError: the mixture names a behaviour that does not exist, or leaves none.
    """
    shares = {behaviour.name: behaviour.share for behaviour in BEHAVIOURS}
    unknown = sorted(set(mixture or {}) - set(shares))
    if unknown:
        raise ValueError(f"mixture names unknown behaviours {unknown}; there are {sorted(shares)}")
    shares |= mixture or {}
    total = sum(shares.values())
    if total <= 0:
        raise ValueError("mixture leaves no behaviour: give at least one a share above 0")
    # Largest remainders: with shares drawn at random instead, the start's reward would differ by the seed.
    exact = [count * shares[behaviour.name] / total for behaviour in BEHAVIOURS]
    counts = [int(number) for number in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: counts[index] - exact[index])
    for index in by_remainder[: count - sum(counts)]:
        counts[index] += 1
    chosen = [behaviour for behaviour, number in zip(BEHAVIOURS, counts, strict=True) for _ in range(number)]
    random.Random(f"plans/{seed}").shuffle(chosen)
    return [Plan(behaviour, f"plan/{seed}/{index}") for index, behaviour in enumerate(chosen)]
