"""The server's life with a stand-in for vLLM: a module of its name that answers, dies or hangs as it is
told."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from pydantic import ValidationError

from tests.processes import gone, left_alive
from training.server import GUARD, VLLMConfig, VLLMServer, VLLMServerError, command_line, environment
from training.vllm_admin import VLLMAdmin

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """
import json, os, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer

mode = os.environ.get("STAND_IN", "")
args = sys.argv[1:]
print("stand-in says hello", flush=True)
# A descendant that would outlive it, as an engine process might.
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
print("descendant", child.pid, flush=True)
if mode == "dies":
    sys.exit("no such model: zebra")
if mode == "hangs":
    time.sleep(600)
if mode == "stubborn":
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
paths = ["/v1/chat/completions", "/inference/v1/generate"]
paths += ["/pause", "/resume", "/is_paused", "/collective_rpc"]
if mode != "bare":
    paths.append("/reset_prefix_cache")
logprobs = "raw_logprobs" if mode == "raw" else "processed_logprobs"
answers = {
    "/health": None,
    "/openapi.json": {"paths": dict.fromkeys(paths, {})},
    "/v1/models": {"data": [{"id": args[args.index("--served-model-name") + 1], "max_model_len": 77}]},
    "/server_info": {"vllm_config": {"model_config": {"logprobs_mode": logprobs}}},
}

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/die":
            print("engine is dead", flush=True)
            os._exit(3)
        if path == "/mute":
            answers.pop("/health")
        self.send_response(200 if path in answers else 404)
        self.end_headers()
        if answers.get(path) is not None:
            self.wfile.write(json.dumps(answers[path]).encode())
    def log_message(self, *args):
        pass

HTTPServer((args[args.index("--host") + 1], int(args[args.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def stand_in(tmp_path):
    """A config under which `python -m vllm.entrypoints.openai.api_server` is the stand-in."""
    package = tmp_path / "stand_in" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for directory in (package, package.parent, package.parent.parent):
        (directory / "__init__.py").touch()
    (package / "api_server.py").write_text(STAND_IN)

    def config(mode: str = "", **fields) -> VLLMConfig:
        env = {"PYTHONPATH": str(tmp_path / "stand_in"), "STAND_IN": mode}
        return VLLMConfig(device="cpu", env=env, stop_seconds=0.5, **fields)

    return config


def server_of(config: VLLMConfig, tmp_path: Path) -> VLLMServer:
    return VLLMServer(config, model="/models/policy", served_model="policy", output_dir=tmp_path / "run")


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def descendant(server: VLLMServer) -> int:
    """Process id of the stand-in's child."""
    lines = [line for line in server.log_file.read_text().splitlines() if line.startswith("descendant")]
    return int(lines[-1].split()[1])


class TestLife:
    def test_start_use_stop(self, stand_in, tmp_path):
        with server_of(stand_in(), tmp_path) as server:
            assert server.base_url == server.url + "/v1"
            assert server.max_model_len == 77
            assert server.startup_seconds > 0
            server.watch()
            pid = descendant(server)
            assert psutil.pid_exists(pid)
        assert gone(pid)
        assert not server.admin.healthy()
        assert "stand-in says hello" in server.log_file.read_text()
        server.stop()  # again

    async def test_as_an_async_context(self, stand_in, tmp_path):
        async with server_of(stand_in(), tmp_path) as server:
            assert server.admin.healthy()
        assert gone(descendant(server))

    def test_one_that_ignores_the_signal_is_killed(self, stand_in, tmp_path):
        with server_of(stand_in("stubborn"), tmp_path) as server:
            pid = server._process.pid
            children = psutil.Process(pid).children(recursive=True)
        assert len(children) >= 2
        assert not left_alive(children, 30)

    def test_a_server_is_not_started_twice(self, stand_in, tmp_path):
        with server_of(stand_in(), tmp_path) as server, pytest.raises(VLLMServerError, match="already"):
            server.start()

    def test_the_log_is_appended_to_and_only_this_start_is_quoted(self, stand_in, tmp_path):
        server = server_of(stand_in("dies"), tmp_path)
        server.log_file.parent.mkdir()
        server.log_file.write_text("of an earlier run\n")
        with pytest.raises(VLLMServerError) as error:
            server.start()
        assert "of an earlier run" not in str(error.value)
        assert server.log_file.read_text().startswith("of an earlier run\n$ ")


class TestDeath:
    def test_at_the_start(self, stand_in, tmp_path):
        server = server_of(stand_in("dies"), tmp_path)
        with pytest.raises(VLLMServerError, match=r"status 1(.|\n)*no such model: zebra"):
            server.start()
        assert gone(descendant(server))

    def test_not_healthy_in_time(self, stand_in, tmp_path, monkeypatch):
        server = server_of(stand_in("hangs", startup_seconds=1.0), tmp_path)
        healthy = VLLMAdmin.healthy

        def once_it_hangs(admin):
            # However long a process takes to start on this machine, the limit finds it hanging.
            wait_until(lambda: re.search(r"descendant \d+\n", server.log_file.read_text()) is not None)
            return healthy(admin)

        monkeypatch.setattr(VLLMAdmin, "healthy", once_it_hangs)
        with pytest.raises(VLLMServerError, match=r"vllm\.startup_seconds = 1(.|\n)*stand-in says hello"):
            server.start()
        assert gone(descendant(server))

    def test_later_is_noticed_by_watch_with_the_end_of_the_log(self, stand_in, tmp_path):
        with server_of(stand_in(), tmp_path) as server:
            with pytest.raises(Exception, match=r"disconnected|reset|closed"):
                server.admin.call("GET", "/die")
            assert gone(server._process.pid)
            with pytest.raises(VLLMServerError, match=r"status 3(.|\n)*engine is dead"):
                server.watch()
        assert gone(descendant(server))

    def test_alive_but_mute_for_long(self, stand_in, tmp_path, monkeypatch):
        with server_of(stand_in(), tmp_path) as server:
            with pytest.raises(Exception, match="404"):
                server.admin.call("GET", "/mute")
            server.watch()  # asked a moment ago
            server._last_healthy = time.monotonic() - 30
            server.watch(unhealthy_seconds=60)  # a pause for weights may take that long
            server._last_healthy = time.monotonic() - 90
            with pytest.raises(VLLMServerError, match="has not answered /health for 9"):
                server.watch(unhealthy_seconds=60)

    @pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
    def test_with_its_parent(self, stand_in, tmp_path, how):
        """A trainer that is killed cannot clean up; nothing of the server may stay behind all the same."""
        script = textwrap.dedent(f"""
            import time
            from training.server import VLLMConfig, VLLMServer
            config = VLLMConfig.model_validate_json({stand_in().model_dump_json()!r})
            server = VLLMServer(config, model="m", served_model="policy", output_dir={str(tmp_path)!r})
            server.start()
            print(server._process.pid, flush=True)
            time.sleep(600)
        """)
        parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        guard = psutil.Process(int(parent.stdout.readline()))
        everyone = [guard, *guard.children(recursive=True)]
        assert len(everyone) >= 3
        parent.send_signal(how)
        parent.wait()
        assert not left_alive(everyone, 30)

    def test_with_a_parent_that_ended_before_the_guard_looked(self, tmp_path):
        """The guard's parent is another process then, and no other death will be seen."""
        command = [sys.executable, "-c", "import time; time.sleep(600)"]
        nobody = subprocess.Popen([sys.executable, "-c", ""])
        nobody.wait()
        guard = subprocess.Popen(
            [sys.executable, str(GUARD), str(nobody.pid), "0.5", *command], start_new_session=True
        )
        assert guard.wait(60) == -signal.SIGKILL  # the whole group


class TestRunningServer:
    @pytest.fixture
    def running(self, stand_in, tmp_path):
        def start(mode: str = "") -> VLLMServer:
            server = VLLMServer(
                stand_in(mode), model="/models/policy", served_model="policy", output_dir=tmp_path / "other"
            )
            server._launch()
            server._wait_until_healthy()
            started.append(server)
            return server

        started: list[VLLMServer] = []
        yield start
        for server in started:
            server.stop()

    def attach(self, url, tmp_path, served="policy"):
        config = VLLMConfig(url=url, device="cpu")
        return VLLMServer(config, model="/models/policy", served_model=served, output_dir=tmp_path / "run")

    def test_it_is_used_and_left_alone(self, running, tmp_path):
        other = running()
        with self.attach(other.url + "/v1/", tmp_path) as server:
            assert server.url == other.url
            assert server.max_model_len == 77
            server.watch()
        assert other.admin.healthy()
        assert not server.log_file.exists()

    def test_endpoints_that_are_missing(self, running, tmp_path):
        with pytest.raises(VLLMServerError, match=r"lacks /reset_prefix_cache(.|\n)*VLLM_SERVER_DEV_MODE=1"):
            self.attach(running("bare").url, tmp_path).start()

    def test_another_model(self, running, tmp_path):
        with pytest.raises(VLLMServerError, match=r"serves \['policy'\], not 'zebra'"):
            self.attach(running().url, tmp_path, served="zebra").start()

    def test_log_probabilities_before_the_temperature(self, running, tmp_path):
        with pytest.raises(VLLMServerError, match=r"raw_logprobs(.|\n)*--logprobs-mode processed_logprobs"):
            self.attach(running("raw").url, tmp_path).start()

    def test_nobody_there(self, tmp_path):
        with pytest.raises(VLLMServerError, match="no fit vLLM server at http://127"):
            self.attach("http://127.0.0.1:9", tmp_path).start()


class TestServe:
    """`python -m training.serve`, which scripts/serve_policy.sh runs."""

    def run(self, stand_in, tmp_path, *args):
        environ = os.environ | stand_in().env | {"PYTHONPATH": f"{stand_in().env['PYTHONPATH']}:{ROOT}"}
        command = [sys.executable, "-m", "training.serve", *args, "--output-dir", str(tmp_path)]
        return subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )

    def test_until_it_is_told_to_stop(self, stand_in, tmp_path):
        process = self.run(stand_in, tmp_path, "/models/policy", "--device", "cpu", "--port", "None")
        line = process.stdout.readline()
        assert line.startswith("policy at http://127.0.0.1:")
        everyone = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
        assert everyone
        assert not left_alive(everyone, 30)

    def test_without_a_model(self, stand_in, tmp_path):
        process = self.run(stand_in, tmp_path, "--port", "8000")
        assert "usage" in process.communicate()[1]
        assert process.returncode == 2


class TestCommand:
    def line(self, **fields):
        return command_line(VLLMConfig(**fields), "/m", "policy", 8000)

    def test_what_training_cannot_do_without(self):
        for device in ("cpu", "cuda"):
            line = " ".join(self.line(device=device))
            for flag in (
                "--enable-scale-out",
                "--logprobs-mode processed_logprobs",
                "--generation-config vllm",
                "--model /m --served-model-name policy --host 127.0.0.1 --port 8000",
            ):
                assert flag in line

    def test_the_cpu(self):
        line = " ".join(self.line(device="cpu"))
        assert "--enforce-eager" in line
        assert "--dtype float32" in line
        assert "--distributed-executor-backend uni" in line
        assert "--weight-transfer-config" not in line

    def test_gpus(self):
        fields = {"tensor_parallel_size": 2, "data_parallel_size": 2, "gpu_ids": [0, 1, 2, 3]}
        line = " ".join(self.line(device="cuda", **fields))
        assert "--tensor-parallel-size 2 --data-parallel-size 2" in line
        assert '--weight-transfer-config {"backend":"nccl"}' in line
        assert "--dtype bfloat16" in line
        assert "--enforce-eager" not in line
        assert environment(VLLMConfig(device="cuda", **fields), {})["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"

    def test_extra_arguments_come_last(self):
        assert self.line(device="cpu", extra_args=["--dtype", "auto"])[-2:] == ["--dtype", "auto"]

    def test_the_launchers_variables_stay_with_the_trainer(self):
        base = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x", "HOME": "/h"}
        env = environment(VLLMConfig(device="cpu", env={"HOME": "/other"}), base | {"OMP_NUM_THREADS": "64"})
        assert not {"RANK", "WORLD_SIZE", "MASTER_PORT", "TORCHELASTIC_RUN_ID"} & set(env)
        assert env["HOME"] == "/other"
        assert env["OMP_NUM_THREADS"] == str(max(1, len(os.sched_getaffinity(0)) - 1))
        assert env["VLLM_SERVER_DEV_MODE"] == "1"

    def test_the_key_is_not_on_the_command_line(self):
        config = VLLMConfig(device="cpu", api_key="secret")
        assert "secret" not in " ".join(command_line(config, "/m", "policy", 1))
        assert environment(config, {})["VLLM_API_KEY"] == "secret"

    def test_gpu_ids_must_match_the_parallelism(self):
        with pytest.raises(ValidationError, match="names 1 GPUs"):
            VLLMConfig(gpu_ids=[0], tensor_parallel_size=2)

    def test_a_url_without_a_scheme(self):
        with pytest.raises(ValidationError, match=r"vllm\.url must start with http"):
            VLLMConfig(url="localhost:8000")
