"""The published figures, for comparison with a results folder.

Source: "Recursive Language Models: the paradigm of 2026" (Prime Intellect, 1 January 2026); 50 prompts a
suite, default settings. They were measured with other prompts, other sampling and a judge of their own: a
difference is a reason to look, not a failure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Mean rewards of one suite by mode."""

    suite: str
    model: str
    llm: float
    rlm: float
    rlm_tips: float
    approximate: bool = False
    """Read off a plot rather than from a table."""

    def reward(self, mode: str) -> float:
        return float(getattr(self, mode))


FIGURES: dict[str, tuple[Published, ...]] = {
    "deepdive": (
        Published("deepdive", "GPT-5-mini", 0.58, 0.54, 0.62),
        Published("deepdive", "GLM-4.6", 0.22, 0.46, 0.12),
    ),
    "math": (Published("math", "GPT-5-mini", 0.44, 0.35, 0.36),),
    "oolong_real": (Published("oolong_real", "GPT-5-mini", 0.02, 0.14, 0.10),),
    "oolong_synth": (Published("oolong_synth", "GPT-5-mini", 0.58, 0.52, 0.44),),
    "oolong_synth_labels": (Published("oolong_synth_labels", "GPT-5-mini", 0.68, 0.98, 0.98),),
    "verbatim": (Published("verbatim", "GPT-5-mini", 0.83, 0.91, 0.88, approximate=True),),
}

COSTS_NOTE = (
    "DeepDive costs published for GPT-5-mini, LLM to RLM: root prompt tokens 109,421 to 18,908 (with "
    "96,818 in "
    "sub-LLMs); seconds per episode 148 to 547."
)
