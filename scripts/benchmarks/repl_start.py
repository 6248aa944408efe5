"""What a REPL costs: start, a call, a request to the host, a large context; for each isolation back end.

    .venv/bin/python scripts/benchmarks/repl_start.py [--repeat 15] [--json FILE]

Every figure is the median of ``--repeat`` runs, in milliseconds, with the 10th and 90th percentile beside
it. ``memory`` is what one idle REPL holds (proportional set size of its processes, in MB). The last row
relates the start to that without isolation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from verifiers.v1.runtimes.subprocess import SubprocessConfig, SubprocessRuntime

from rlm_env.repl import ReplClient, ReplConfig
from rlm_env.repl.config import Isolation


async def shout(name: str, payload: dict[str, Any]) -> dict[str, Any]:
    return {"results": [{"text": prompt.upper()} for prompt in payload["prompts"]], "limit": None}


async def timed(repeat: int, action: Callable[[], Awaitable[Any]]) -> list[float]:
    """Milliseconds of ``repeat`` runs, in rising order."""
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        await action()
        times.append(1e3 * (time.perf_counter() - began))
    return sorted(times)


def memory_mb(pid: int) -> float:
    """Proportional set size of a process and all below it."""
    total, queue = 0, [pid]
    while queue:
        pid = queue.pop()
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                total += int(line.split()[1]) if line.startswith("Pss:") else 0
            queue += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        except OSError:
            continue
    return total / 1024


async def measure(isolation: Isolation, repeat: int) -> dict[str, Any]:
    runtime = SubprocessRuntime(SubprocessConfig())
    await runtime.start()
    config = ReplConfig(isolation=isolation)
    text = "lorem ipsum dolor sit amet " * (2_000_000 // 27)
    spent: dict[str, list[float]] = {"start": [], "close": [], "start_2M": []}
    try:
        client = await ReplClient.start(runtime, config, handler=shout)  # finds out what works here
        report = client.plan.report
        await client.run("import os")
        spent["echo"] = await timed(10 * repeat, lambda: client.run("1 + 1"))
        spent["request"] = await timed(10 * repeat, lambda: client.run("llm_query('x')"))
        spent["batch_256"] = await timed(repeat, lambda: client.run("len(llm_batch(['prompt'] * 256))"))
        spent["print_1MB"] = await timed(repeat, lambda: client.run("print('x' * 1_000_000)"))
        pid = client._worker.process._process.pid  # type: ignore[union-attr]
        memory = memory_mb(pid)
        await client.close()
        for _ in range(repeat):
            for name, context in (("start", None), ("start_2M", text)):
                began = time.perf_counter()
                client = await ReplClient.start(runtime, config, context=context, handler=shout)
                started = time.perf_counter()
                spent[name].append(1e3 * (started - began))
                await client.close()
                if name == "start":
                    spent["close"].append(1e3 * (time.perf_counter() - started))

        async def forty() -> None:
            clients = await asyncio.gather(
                *(ReplClient.start(runtime, config, handler=shout) for _ in range(40))
            )
            await asyncio.gather(*(client.close() for client in clients))

        spent["forty_at_once"] = await timed(3, forty)
    finally:
        await runtime.stop()
    figures = {}
    for name, times in spent.items():
        ordered = sorted(times)
        at = lambda part, ordered=ordered: ordered[min(len(ordered) - 1, int(part * len(ordered)))]  # noqa: E731
        figures[name] = {"median": statistics.median(ordered), "p10": at(0.1), "p90": at(0.9)}
    return {"isolation": isolation, "report": report, "memory_mb": memory, "ms": figures}


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    backends: list[Isolation] = ["none", "namespaces", *(["bwrap"] if shutil.which("bwrap") else [])]  # type: ignore[list-item]
    rows = [await measure(isolation, options.repeat) for isolation in backends]
    print(
        f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    names = list(rows[0]["ms"])
    print(f"{'ms: median (p10-p90)':<22}" + "".join(f"{row['isolation']:>26}" for row in rows))
    for name in names:
        cells = [row["ms"][name] for row in rows]
        print(
            f"{name:<22}"
            + "".join(
                f"{cell['median']:>12.1f} {'({:.1f}-{:.1f})'.format(cell['p10'], cell['p90']):<13}"
                for cell in cells
            )
        )
    print(f"{'memory, MB':<22}" + "".join(f"{row['memory_mb']:>12.1f} {'':<13}" for row in rows))
    base = rows[0]["ms"]["start"]["median"]
    print(
        f"{'start / none':<22}"
        + "".join(f"{row['ms']['start']['median'] / base:>12.2f} {'':<13}" for row in rows)
    )
    for row in rows:
        print(f"{row['isolation']}: {row['report']}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    asyncio.run(main())
