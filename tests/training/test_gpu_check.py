"""scripts/gpu_check.py on the CPU: that it runs where little is installed, and that its checks can fail."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import gpu_check
from scripts.benchmarks.workload import TINY_WORKLOAD, Workload, make_rows, unshare
from training.packing import pack_rows

SCRIPT = Path(gpu_check.__file__)

# Everything of this project that the trainer side alone does not need.
ABSENT = ("vllm", "verifiers", "renderers", "openai", "pydantic", "pydantic_core", "pydantic_config", "wandb")


def test_a_dry_run_without_the_rest_of_the_project(tmp_path):
    hidden = f"import sys, runpy; sys.modules.update(dict.fromkeys({ABSENT!r}))"
    arguments = "sys.argv = ['gpu_check.py', '--dry-run', '--steps', '1']"
    run = f"{hidden}; {arguments}; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    out = subprocess.run(
        [sys.executable, "-c", run], capture_output=True, text=True, timeout=240, cwd=tmp_path
    )
    assert out.returncode == 0, out.stderr[-3000:]
    assert "| tiny | segments |" in out.stdout
    assert out.stdout.count("| agrees |") == 1
    assert out.stdout.count("| ok |") == 2
    assert "the figures mean nothing" in out.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        gpu_check.main([])
    assert "no CUDA GPU here" in capsys.readouterr().err


def test_figures_of_a_dry_run_are_not_written(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--dry-run", "--write"])
    assert "not of a dry run" in capsys.readouterr().err


def test_the_page_has_a_place_for_figures_and_none_that_are_made_up(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(gpu_check.PAGE.read_text())
    gpu_check.write_page("| new figures |", page)
    gpu_check.write_page("| newer figures |", page)
    text = page.read_text()
    assert "| newer figures |" in text
    assert "| new figures |" not in text
    assert "There are none from a real GPU yet." not in text
    assert text.startswith(gpu_check.PAGE.read_text().split(gpu_check.BEGIN)[0])


class TestRows:
    def test_shared_and_unshared_rows_have_the_same_lengths_and_masks(self):
        rows = make_rows(TINY_WORKLOAD, 512)
        other = unshare(rows)
        assert [(len(r.ids), r.mask) for r in rows] == [(len(r.ids), r.mask) for r in other]
        raw = sum(len(r.ids) for r in rows)
        assert pack_rows([(r.ids, r.mask) for r in other])["input_ids"].numel() == raw
        assert pack_rows([(r.ids, r.mask) for r in rows])["input_ids"].numel() < raw

    def test_the_workload_of_the_real_run(self):
        work = Workload()
        rows = make_rows(work, 151_936)
        assert len(rows) == work.groups * work.episodes * (1 + work.sub_calls) == 48
        packed = pack_rows([(r.ids, r.mask) for r in rows])["input_ids"].numel()
        assert sum(len(r.ids) for r in rows) / packed > 1.5


class TestVerdicts:
    good = gpu_check.Agreement("4b", "varlen", 0.02, 0.003, plain_error=0.004, packed_error=0.005)

    def test_agreement(self):
        assert self.good.verdict == "agrees"
        assert dataclasses.replace(self.good, packed_error=0.02).verdict == "DISAGREES"
        assert dataclasses.replace(self.good, max_diff=0.7).verdict == "DISAGREES"
        assert dataclasses.replace(self.good, packed_error=float("nan")).verdict == "DISAGREES"
        assert dataclasses.replace(self.good, problem="no kernel\nhere").verdict == "not here: no kernel"

    def test_a_step(self):
        step = gpu_check.Throughput("4b", "varlen", True, 48, 100, 60, 0.5, 30.0, ratio=1.001, grad_norm=2.0)
        assert step.verdict == "ok"
        assert dataclasses.replace(step, ratio=1.1).verdict == "WRONG"
        assert dataclasses.replace(step, grad_norm=float("inf")).verdict == "WRONG"
        assert "| 200 |" in step.row()  # tokens a second

    def test_a_check_that_fails_is_the_exit_status(self, monkeypatch, capsys):
        bad = dataclasses.replace(self.good, max_diff=3.0)
        monkeypatch.setattr(gpu_check, "check_shape", lambda *args: ([bad], []))
        assert gpu_check.main(["--dry-run"]) == 1
        assert "DISAGREES" in capsys.readouterr().out

    def test_a_wrong_attention_is_seen(self, monkeypatch):
        """Segments that do not see their path."""
        from training import attention

        build = attention.build_segments

        def blind(cu_q, cu_k, window, device):
            return build(cu_q, cu_k, 1, device)

        monkeypatch.setattr(attention, "build_segments", blind)
        device = torch.device("cpu")
        model = gpu_check.make_model("tiny", device)
        # Larger weights than at initialisation, or attention hardly matters.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(6)
        rows = make_rows(TINY_WORKLOAD, 512)
        assert gpu_check.check_agreement("tiny", model, rows, device)[0].verdict == "DISAGREES"
        monkeypatch.undo()
        assert gpu_check.check_agreement("tiny", model, rows, device)[0].verdict == "agrees"
