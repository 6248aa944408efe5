#!/usr/bin/env python
"""A tiny model on vLLM on the CPU: start, memory, tokens a second, and what a weight sync costs.

    python scripts/benchmarks/vllm_cpu.py MODEL [--tokens 64]

With the worker in the engine's process, as `training.server` starts it, and in a process of its own, vLLM's
default. MODEL is any checkpoint, e.g. the one of the quickstart.
"""

import argparse
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil
from transformers import AutoModelForCausalLM

from training.server import VLLMConfig, VLLMServer
from training.weight_sync import FileWeightTransfer, tied_parameters

OWN_PROCESS = {
    "extra_args": ["--distributed-executor-backend", "mp"],
    "env": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=64, help="sampled a request")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")
    for name, fields in (("worker in the engine's process", {}), ("worker of its own", OWN_PROCESS)):
        config = VLLMConfig(device="cpu", max_model_len=1024, **fields)
        with (
            tempfile.TemporaryDirectory() as folder,
            VLLMServer(config, model=args.model, served_model="policy", output_dir=folder) as server,
        ):
            assert server._process is not None
            family = psutil.Process(server._process.pid).children(recursive=True)
            resident = sum(process.memory_info().rss for process in family)
            print(f"{name}: ready in {server.startup_seconds:.0f} s, {resident / 1e9:.1f} GB", flush=True)
            for concurrency in (1, 64):
                best = max(throughput(server, concurrency, args.tokens) for _ in range(3))
                print(f"  {concurrency} at once: {best:,.0f} tokens/s", flush=True)
            transfer = FileWeightTransfer(
                server.url, Path(folder) / "weights", tied=tied_parameters(args.model)
            )
            transfer.init_weight_transfer()
            seconds = []
            for _ in range(6):
                began = time.perf_counter()
                transfer.pause()
                transfer.send_weights(model.named_parameters())
                transfer.resume()
                seconds.append(time.perf_counter() - began)
            size = transfer.last["bytes"] / 1e6
            print(f"  weight sync of {size:.1f} MB: {statistics.median(seconds) * 1e3:.0f} ms", flush=True)


def throughput(server: VLLMServer, concurrency: int, tokens: int) -> float:
    """Sampled tokens a second."""

    def request(seed: int) -> None:
        server.admin.sample("policy", [1, 2, 3, seed], max_tokens=tokens, temperature=1.0, seed=seed)

    began = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        list(pool.map(request, range(concurrency)))
    return concurrency * tokens / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
