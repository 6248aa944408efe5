"""The harness under verifiers' own command line, as any user of verifiers would start it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.fakes import FakeModelServer
from tests.fakes.policies import fence, finish


def test_vf_eval_plays_a_suite_with_the_harness(tmp_path):
    with FakeModelServer(lambda request: fence(finish("context"))).in_thread() as server:
        command = [Path(sys.executable).with_name("vf-eval"), "verbatim-copy", "-n", "3"]
        command += ["--env.taskset.placement", "repl", "--env.agent.harness.id", "rlm-env"]
        command += ["--env.agent.runtime.type", "subprocess", "--output-dir", tmp_path]
        command += ["--model", "fake-model", "--client.base-url", server.base_url]
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, cwd=tmp_path, env=os.environ, timeout=280
        )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("traces.jsonl")
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(records) == 3
    for record in records:
        trace = record["traces"][0] if "traces" in record else record
        assert trace["ok"]
        assert trace["metrics"]["answer_ready"] == 1.0
        assert trace["info"]["rlm"]["stop_reason"] == "answer_ready"
        assert trace["agent"]["config"]["harness"]["id"] in ("rlm-env", "rlm_env")
