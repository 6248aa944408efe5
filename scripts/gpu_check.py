#!/usr/bin/env python
"""Checks the trainer side on one CUDA GPU, without vLLM, and prints its figures as markdown.

    python scripts/gpu_check.py                     # a 0.5B- and a 4B-shaped model; about 50 GB of GPU memory
    python scripts/gpu_check.py --shapes 0.5b       # about 10 GB
    python scripts/gpu_check.py --dry-run           # tiny shapes on the CPU: does it run at all?

For each shape, with random weights in bfloat16 and made-up episodes (groups with a common prompt, root
conversations of several turns, sub-calls with a common system prompt):

1. **Log-probabilities** of packed rows against a plain forward of each row alone, for every attention
backend, both
   also against a plain forward in float32: packing must not add error to what bfloat16 costs anyway.
2. **GRPO steps** of TRL's trainer, with the prefixes shared and with none shared (the same rows, made to
differ in
   their first token): seconds a step, tokens a second, peak memory. The old log-probabilities are those of
   plain forwards, so the mean importance ratio must be 1.

Needs torch, transformers, accelerate, trl and trl's dependency datasets; nothing else of this project's.
Exits with 1 when a check fails. `--write` puts the figures into docs/gpu-checks.md; a dry run cannot, since
its figures mean nothing.
"""

import argparse
import datetime
import gc
import logging
import math
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, models  # noqa: E402
from transformers import PreTrainedTokenizerFast, TrainerCallback  # noqa: E402
from transformers.trainer_callback import PrinterCallback  # noqa: E402

from scripts.benchmarks.workload import (  # noqa: E402
    SHAPES,
    TINY_WORKLOAD,
    NoTransfer,
    RecordedWorker,
    Row,
    Workload,
    make_model,
    make_rows,
    plain_scores,
    sample_of,
    unshare,
)
from training.attention import TreeAttentionError, install_tree_attention  # noqa: E402
from training.packing import score_rows  # noqa: E402
from training.trl_seams import (  # noqa: E402
    TREE_ATTENTION,
    TRL_VERSION,
    AsyncGRPOConfig,
    build_trainer,
)

PAGE = ROOT / "docs" / "gpu-checks.md"
BEGIN, END = "<!-- figures: written by scripts/gpu_check.py -->", "<!-- end of figures -->"


class StepMeter(TrainerCallback):
    """Seconds and peak memory of every optimizer step, with the GPU's queue drained at both ends."""

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.seconds: list[float] = []
        self.peak_gib: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._began)
        self.peak_gib.append(torch.cuda.max_memory_allocated() / 2**30 if self.cuda else math.nan)


@dataclass(frozen=True)
class Agreement:
    """Packed rows of one backend against plain forwards, in nats."""

    shape: str
    backend: str
    max_diff: float = math.nan
    mean_diff: float = math.nan
    plain_error: float = math.nan
    packed_error: float = math.nan
    problem: str = ""

    @property
    def verdict(self) -> str:
        if self.problem:
            return f"not here: {self.problem.splitlines()[0][:120]}"
        # Twice the error of a plain bfloat16 forward, and a little for rounding at vanishing error.
        fits = self.packed_error <= 2 * self.plain_error + 1e-3 and self.max_diff <= 0.5
        return "agrees" if fits else "DISAGREES"

    def row(self) -> str:
        numbers = (self.max_diff, self.mean_diff, self.packed_error, self.plain_error)
        cells = ["-" if math.isnan(x) else f"{x:.2g}" for x in numbers]
        return f"| {self.shape} | {self.backend} | {' | '.join(cells)} | {self.verdict} |"


@torch.no_grad()
def check_agreement(shape: str, model: Any, rows: list[Row], device: torch.device) -> list[Agreement]:
    """Part 1 of the module docstring, for one shape."""
    model.set_attn_implementation("sdpa")
    plain = torch.cat(plain_scores(model, rows, device))
    exact = torch.cat(plain_scores(model.float(), rows, device))
    model.to(torch.bfloat16)  # the way back is exact
    install_tree_attention("segments")  # transformers refuses a name that is not registered
    model.set_attn_implementation(TREE_ATTENTION)
    results = []
    for backend in ("segments", "varlen", "fa3"):
        try:
            install_tree_attention(backend, device, torch.bfloat16)
        except TreeAttentionError as error:
            results.append(Agreement(shape, backend, problem=str(error)))
            continue
        pairs = [(row.ids, row.mask) for row in rows]
        packed = torch.cat(score_rows(model, pairs, device=device, fused=False))
        difference = (packed - plain).abs()
        plain_error, packed_error = ((x - exact).abs().mean().item() for x in (plain, packed))
        results.append(
            Agreement(
                shape, backend, difference.max().item(), difference.mean().item(), plain_error, packed_error
            )
        )
    return results


@dataclass(frozen=True)
class Throughput:
    """GRPO steps on one kind of rows; medians over the timed steps."""

    shape: str
    backend: str
    shared: bool
    rows: int
    raw_tokens: int
    forwarded_tokens: int
    seconds: float
    peak_gib: float
    ratio: float
    grad_norm: float

    @property
    def verdict(self) -> str:
        return "ok" if abs(self.ratio - 1) < 0.02 and math.isfinite(self.grad_norm) else "WRONG"

    def row(self) -> str:
        peak = "-" if math.isnan(self.peak_gib) else f"{self.peak_gib:.1f}"
        return (
            f"| {self.shape} | {'shared' if self.shared else 'not shared'} | {self.backend} | {self.rows} "
            f"| {self.raw_tokens:,} | {self.forwarded_tokens:,} | {self.seconds:.3g} "
            f"| {self.raw_tokens / self.seconds:,.0f} | {peak} | {self.ratio:.4f} | {self.verdict} |"
        )


def run_steps(
    shape: str, path: Path, kinds: dict[bool, tuple[list[Row], list[torch.Tensor]]], steps: int, cpu: bool
) -> list[Throughput]:
    """Part 2 of the module docstring: one warm-up and `steps` timed steps with each kind of rows.

    Args:
        kinds: prefixes shared or not -> rows and the log-probabilities of their sampled tokens.
    """
    schedule = [True] * (steps + 1) + [False] * (steps + 1)
    samples = []
    for shared in schedule:
        rows, scores = kinds[shared]
        samples.append([sample_of(row, score) for row, score in zip(rows, scores, strict=True)])
    args = AsyncGRPOConfig(
        output_dir=str(path / "run"),
        use_cpu=cpu,
        dtype="bfloat16",
        bf16=False,  # the weights are; no autocast on top
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        per_device_train_batch_size=len(samples[0]),
        token_budget=-1,
        max_steps=len(schedule),
        max_staleness=0,
        learning_rate=1e-8,  # the figures do not depend on it, the ratio of later steps does
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab={"<eos>": 0}, merges=[])), eos_token="<eos>"
    )
    meter = StepMeter(torch.device("cpu" if cpu else "cuda"))
    trainer = build_trainer(
        path,
        args,
        rollout_worker=RecordedWorker(samples),
        weight_transfer=NoTransfer(),
        tokenizer=tokenizer,
        callbacks=[meter],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    results = []
    for shared in (True, False):
        timed = [i for i, kind in enumerate(schedule) if kind == shared][1:]
        rows = kinds[shared][0]
        results.append(
            Throughput(
                shape=shape,
                backend=trainer.tree_attention.fast or "segments",
                shared=shared,
                rows=len(rows),
                raw_tokens=sum(len(row.ids) for row in rows),
                forwarded_tokens=int(logs[timed[0]]["batch/row_tokens_mean"]),
                seconds=float(np.median([meter.seconds[i] for i in timed])),
                peak_gib=float(np.max([meter.peak_gib[i] for i in timed])),
                ratio=float(np.mean([logs[i]["ratio"] for i in timed])),
                grad_norm=float(np.mean([logs[i]["grad_norm"] for i in timed])),
            )
        )
    del trainer
    return results


def check_shape(
    shape: str, work: Workload, device: torch.device, steps: int
) -> tuple[list[Agreement], list[Throughput]]:
    """Both parts for one shape."""
    model = make_model(shape, device)
    rows = make_rows(work, SHAPES[shape][-1])
    agreements = check_agreement(shape, model, rows, device)
    model.set_attn_implementation("sdpa")
    kinds = {}
    for shared, kind in ((True, rows), (False, unshare(rows))):
        kinds[shared] = (kind, plain_scores(model, kind, device))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        release(device)
        throughputs = run_steps(shape, Path(folder), kinds, steps, device.type == "cpu")
    release(device)
    return agreements, throughputs


def release(device: torch.device) -> None:
    """Give unused memory back, so that one part's does not count in the next one's peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def report(
    agreements: list[Agreement], throughputs: list[Throughput], device: torch.device, work: Workload
) -> str:
    """The figures as markdown."""
    import accelerate
    import transformers

    card = platform.processor() or "CPU"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        card = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    lines = [
        f"{datetime.date.today():%Y-%m-%d}, {card}. torch {torch.__version__} (CUDA {torch.version.cuda}), "
        f"transformers {transformers.__version__}, accelerate {accelerate.__version__}, trl {TRL_VERSION}. "
        f"Command: `python scripts/gpu_check.py {' '.join(sys.argv[1:])}`.",
        "",
        "Log-probabilities of sampled tokens, in nats; errors are means against a plain forward in float32.",
        "",
        "| shape | attention | packed - plain, max | mean | packed error | plain error | |",
        "|---|---|---|---|---|---|---|",
        *(agreement.row() for agreement in agreements),
        "",
        f"A GRPO step (forward, backward, AdamW; gradient checkpointing) on {work.groups} groups of "
        f"{work.episodes} "
        f"episodes: {work.turns} root turns after a prompt of {work.prompt}, {work.sub_calls} sub-calls "
        "each. "
        "Tokens a second count every row in full, whether or not its prefix was shared.",
        "",
        "| shape | prefixes | attention | rows | tokens | forwarded | s a step | tokens/s | peak GiB | "
        "ratio | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(throughput.row() for throughput in throughputs),
    ]
    return "\n".join(lines)


def write_page(figures: str, page: Path = PAGE) -> None:
    """Put the figures between the page's markers."""
    text = page.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    page.write_text(f"{head}{BEGIN}\n\n{figures}\n\n{END}{tail}")


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 when every check that can run here holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=["0.5b", "4b"], default=["0.5b", "4b"])
    parser.add_argument("--steps", type=int, default=5, help="timed steps with each kind of rows")
    parser.add_argument("--dry-run", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--write", action="store_true", help=f"put the figures into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args(argv)
    if args.dry_run and args.write:
        parser.error("--write is for figures of a real GPU, not of a dry run")
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("no CUDA GPU here; --dry-run runs tiny shapes on the CPU")
    logging.basicConfig(level=logging.WARNING)
    device = torch.device("cpu" if args.dry_run else "cuda")
    work = TINY_WORKLOAD if args.dry_run else Workload()
    agreements: list[Agreement] = []
    throughputs: list[Throughput] = []
    for shape in ["tiny"] if args.dry_run else args.shapes:
        found = check_shape(shape, work, device, args.steps)
        agreements += found[0]
        throughputs += found[1]
    figures = report(agreements, throughputs, device, work)
    print(figures)
    if args.write:
        write_page(figures)
    results: list[Agreement | Throughput] = [*agreements, *throughputs]
    failed = [x for x in results if x.verdict in ("DISAGREES", "WRONG")]
    if args.dry_run:
        print("\nA dry run: the figures mean nothing.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
