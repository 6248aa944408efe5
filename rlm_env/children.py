"""Child RLMs: what ``rlm_batch`` in the REPL becomes on the host.

The same invariants as for sub-LLM batches: n prompts get exactly n result entries in their order, each a text
or a typed error, and a call is charged before it is made. A child that does not finish its answer has failed;
what it had written is told in the error and is never a reply.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from verifiers.v1.errors import SandboxError

from rlm_env.calls import ModelFailure
from rlm_env.metrics import CallRecord
from rlm_env.subcalls import FAILED_TYPE, error_entry, grant, in_parallel

if TYPE_CHECKING:
    from rlm_env.loop import RLMNode


async def rlm_batch(
    parent: RLMNode, prompts: list[str], contexts: list[Any], *, turn: int, turn_calls: list[str]
) -> dict[str, Any]:
    """Run ``prompts`` as child RLMs, in parallel up to ``limits.max_parallel_children``; the reply payload
    for the REPL."""
    recorder = parent.shared.recorder
    granted, limit = grant(parent.ledger, len(prompts))
    batch = recorder.batch("rlm_batch", len(prompts), turn, parent.path)
    calls = []
    for prompt, context in list(zip(prompts, contexts, strict=True))[:granted]:
        node = parent.child(prompt, context, granted)
        assert node.parent_call is not None
        record = CallRecord(node.parent_call, "rlm", batch.batch, turn)
        recorder.calls.append(record)
        turn_calls.append(record.id)
        calls.append(_run(parent, node, record))
    return await in_parallel(batch, calls, limit)


async def _run(parent: RLMNode, node: RLMNode, record: CallRecord) -> dict[str, Any]:
    """One child, start to end; its result entry."""
    begun = time.monotonic()
    try:
        async with parent.child_slots:
            await node.open()
            reason = await node.run()
        if node.answer_ready:
            return {"text": node.answer}
        record.error = f"{FAILED_TYPE}: ended by {reason} without an answer"
        return error_entry(
            FAILED_TYPE,
            f"the child ended by {reason} before its answer was ready; it had written: "
            f"{node.answer[:2000]!r}",
        )
    except (ModelFailure, SandboxError) as error:
        record.error = f"{FAILED_TYPE}: {error}"
        return error_entry(FAILED_TYPE, str(error))
    finally:
        record.seconds = time.monotonic() - begun
        for done in node.record.turns:
            record.request_ids.append(done.request_id)
            record.turns += 1
            record.prompt_tokens += done.prompt_tokens
            record.completion_tokens += done.completion_tokens
        await node.close()
