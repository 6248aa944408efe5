"""`rlm-eval @ configs/eval/<file>.toml [--dotted.overrides]`: run, resume, list or sum up an evaluation."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from pydantic_config import ConfigFileError, cli

from eval.config import EvalConfig, explain
from eval.endpoints import EndpointError
from eval.folder import RunError
from eval.matrix import Cell, MatrixError, calls_of, expand, tasks_of
from eval.rows import EPISODES_FILE, KEPT, Row, key_of, read_rows
from eval.runner import run_matrix
from eval.summary import Summary, summarise

USAGE = """\
usage: rlm-eval @ configs/eval/<file>.toml [--dotted.overrides]
  --dry-run       list what would run, with an estimate of model calls
  --resume        run only what is missing or errored in the results folder
  --clean         delete the results folder first
  --report-only   rebuild summary.json, report.md and plots from the rows
"""


def main(argv: list[str] | None = None) -> None:
    """The console script. Exits 0 when every episode has a row, 2 on a config error, 1 on a run that could
    not go on, 130 when interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        if argv:
            cli(EvalConfig, args=["--help"])
        raise SystemExit(0 if argv else 2)
    try:
        config = parse(argv)
        if config.dry_run:
            print(describe(config))
            return
        rows = rows_of(config) if config.report_only else asyncio.run(_interruptible(config))
        summary = write_report(config, rows)
    except (ConfigFileError, MatrixError) as error:
        raise SystemExit(_fail(str(error), 2)) from error
    except (RunError, EndpointError, RuntimeError) as error:
        raise SystemExit(_fail(str(error), 1)) from error
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise SystemExit(_fail("interrupted; run again with --resume to go on", 130)) from None
    _print_outcome(config, summary)
    if config.report_only and (gaps := unfinished(config, rows)):
        print(
            "fewer rows than the config asks for (--resume runs what is missing):",
            *gaps,
            sep="\n  ",
            file=sys.stderr,
        )


def _fail(message: str, code: int) -> int:
    print(f"rlm-eval: {message}", file=sys.stderr)
    return code


def parse(argv: Sequence[str]) -> EvalConfig:
    """The config from a command line. Raises ConfigFileError; an unknown key's error names the nearest
    one."""
    try:
        return cli(EvalConfig, args=list(argv))
    except ConfigFileError as error:
        if isinstance(error.__cause__, ValidationError):
            raise ConfigFileError(explain(error.__cause__, EvalConfig)) from error.__cause__
        raise


def _quiet_logs(results: Path) -> None:
    """verifiers' log lines go to a file: they would tear the progress bar."""
    from verifiers.v1.utils.logging import setup_logging

    setup_logging("INFO", log_file=str(results / "logs" / "eval.log"), console=False)


async def _interruptible(config: EvalConfig) -> list[Row]:
    """The first SIGINT or SIGTERM cancels the run, which stops servers and sandboxes; further ones are
    ignored, so that an impatient second Ctrl-C leaves no process behind."""
    running = asyncio.ensure_future(run_matrix(config, on_ready=_quiet_logs))
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if not running.cancelling():
            print("\nrlm-eval: stopping episodes and servers...", file=sys.stderr)
            running.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return await running


def rows_of(config: EvalConfig) -> list[Row]:
    """The rows that a results folder holds for the config's suites and models."""
    rows = read_rows(config.results_dir / EPISODES_FILE)
    if not rows:
        raise RunError(f"{config.results_dir} holds no rows: run the evaluation first, without --report-only")
    cells = {cell.key for cell in expand(config)}
    return [row for row in rows if key_of(row)[:4] in cells]


def unfinished(config: EvalConfig, rows: Sequence[Row]) -> list[str]:
    """A line for each cell that has not the rows that its `num_tasks` asks for; a cell of all tasks of its
    suite, which would have to be loaded to be counted, only if it has no row at all."""
    counts = Counter(key_of(row)[:4] for row in rows)
    lines = []
    for cell in expand(config):
        there = counts[cell.key]
        if cell.num_tasks is not None and there < (wanted := cell.num_tasks * cell.rollouts):
            lines.append(f"{cell.id}: {there} of {wanted} episodes")
        elif not there:
            lines.append(f"{cell.id}: no episode")
    return lines


def write_report(config: EvalConfig, rows: Sequence[Row]) -> Summary:
    """summary.json, report.md, plots and, if asked for, W&B; returns the summary."""
    from eval import plots, report, wandb_log
    from eval.plot_kit import Stats

    results = config.results_dir
    summary = summarise(rows, name=config.name, seed=config.seed, report=config.report)
    (results / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    drawn: dict[str, str] = {}
    skipped: dict[str, str] = {}
    if config.report.plots:
        stats = Stats(config.report.bootstrap, config.report.confidence, config.seed)
        drawn, skipped = plots.draw_all(rows, results / "plots", stats, dpi=config.report.dpi)
    elif config.report.plots is False:
        skipped["all"] = "report.plots = false"
    text = report.render(
        summary,
        plots=drawn,
        skipped=skipped,
        published={name: suite.published for name, suite in config.suites.items() if suite.published},
    )
    (results / "report.md").write_text(text)
    if config.wandb is not None:
        wandb_log.log(config, rows, summary, drawn)
    return summary


def describe(config: EvalConfig) -> str:
    """What would run, cell by cell, with an estimate of the model calls, and nothing started."""
    rows = read_rows(config.results_dir / EPISODES_FILE)
    lines = [f"results: {config.results_dir}", ""]
    total, likely, most, unlimited = 0, 0, 0, False
    for cell in expand(config):
        own = [row for row in rows if key_of(row)[:4] == cell.key]
        done = sum(row["outcome"] in KEPT for row in own) if config.resume else 0
        episodes = max(0, _episodes(cell) - done)
        calls = calls_of(cell, episodes, per_episode=_calls_per_episode(config, cell, own))
        total, likely = total + episodes, likely + calls.likely
        most += calls.most or 0
        unlimited |= calls.most is None
        already = f", {done} done" if done else ""
        lines.append(f"{cell.id:<56} {episodes:>6} episodes{already}, about {calls.likely:,} model calls")
    upper = "without a limit (limits.max_sub_calls is None)" if unlimited else f"{most:,}"
    lines += [
        "",
        f"{total} episodes, about {likely:,} model calls (by typical_calls, or the mean of the rows that "
        "exist; "
        f"judges and retries not counted). If every episode went to its limits: {upper}.",
    ]
    return "\n".join(lines)


def _calls_per_episode(config: EvalConfig, cell: Cell, rows: Sequence[Row]) -> float:
    """The mean of the cell's rows, else what the config reckons with."""
    seen = [row["root_turns"] + (row.get("sub_turns") or 0) for row in rows if row.get("root_turns")]
    return sum(seen) / len(seen) if seen else config.typical_calls[cell.mode]


def _episodes(cell: Cell) -> int:
    """Episodes of a cell. Only with no `num_tasks` are the tasks loaded to be counted."""
    count = cell.num_tasks if cell.num_tasks is not None else len(tasks_of(cell))
    return count * cell.rollouts


def _print_outcome(config: EvalConfig, summary: Summary) -> None:
    results: Path = config.results_dir
    for cell in summary["cells"]:
        reward = "-" if cell["reward"] is None else f"{cell['reward']['mean']:.3f}"
        failed = {name: n for name, n in cell["outcomes"].items() if n and name != "completed"}
        note = (
            "  not in the mean: " + ", ".join(f"{n} {name}" for name, n in failed.items()) if failed else ""
        )
        setting = "" if cell["setting"] == "default" else f" {cell['setting']}"
        print(f"{cell['model']:<16} {cell['suite'] + setting:<32} {cell['mode']:<9} reward {reward}{note}")
    print(f"{results / 'report.md'}")


if __name__ == "__main__":
    main()
