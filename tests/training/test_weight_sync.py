"""File weight sync against a fake server: what is on disk when, what is asked of the server, what happens on
failure."""

import json
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.control_server import ControlServer
from tests.training.tiny_models import save_tiny
from training.vllm_admin import ServerError, VLLMAdmin
from training.weight_sync import (
    FileWeightTransfer,
    WeightSyncConfig,
    WeightSyncError,
    make_weight_transfer,
    tied_parameters,
)


@pytest.fixture
def server():
    with ControlServer() as server:
        yield server


def weights(seed=0, rows=4):
    generator = torch.Generator().manual_seed(seed)
    return [
        ("model.embed_tokens.weight", torch.randn(rows, 3, generator=generator)),
        ("model.norm.weight", torch.randn(3, generator=generator)),
    ]


def read(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a version, by its index."""
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    files = {name: load_file(directory / name) for name in set(index["weight_map"].values())}
    assert set(files) == {p.name for p in directory.glob("*.safetensors")}
    return {name: files[file][name] for name, file in index["weight_map"].items()}


def sync(transfer, tensors):
    transfer.pause()
    transfer.send_weights(iter(tensors))
    transfer.resume()


def test_a_sync_calls_the_server_in_order_with_a_complete_version(server, tmp_path):
    seen = {}

    def control(call):
        if call.path == "/collective_rpc":
            path = Path(call.body["kwargs"]["weights_path"])
            seen.update(read(path))
            assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written beside it

    server.control = control
    transfer = FileWeightTransfer(server.url, tmp_path / "weights")
    transfer.init_weight_transfer()
    sync(transfer, weights())
    assert server.paths("POST") == ["/pause", "/collective_rpc", "/reset_prefix_cache", "/resume"]
    assert server.calls[2].query == {"mode": "keep"}
    call = server.calls[3].body
    assert call["method"] == "reload_weights"
    assert call["kwargs"] == {"weights_path": str(tmp_path / "weights" / "weights-000001")}
    for name, tensor in weights():
        assert torch.equal(seen[name], tensor)
    assert transfer.last["bytes"] == 4 * (12 + 3)
    assert not transfer.paused


def test_the_path_given_to_the_server_is_absolute(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    transfer = FileWeightTransfer(server.url, Path("relative"))
    transfer.init_weight_transfer()
    sync(transfer, weights())
    assert server.calls[3].body["kwargs"]["weights_path"] == str(tmp_path / "relative" / "weights-000001")


def test_the_last_versions_are_kept_and_others_left_alone(server, tmp_path):
    (tmp_path / "notes").mkdir()
    transfer = FileWeightTransfer(server.url, tmp_path, config=WeightSyncConfig(keep=2))
    transfer.init_weight_transfer()
    for seed in range(4):
        sync(transfer, weights(seed))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "weights-000003", "weights-000004"]
    assert torch.equal(read(tmp_path / "weights-000004")["model.norm.weight"], weights(3)[1][1])


def test_leftovers_of_a_killed_run_are_removed_at_the_start(server, tmp_path):
    for name in ("weights-000007", ".weights-000008.partial", "checkpoint-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    FileWeightTransfer(server.url, tmp_path).init_weight_transfer()
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-3"]


def test_large_models_are_split_into_files(server, tmp_path):
    # 48 bytes and 12 bytes; the limit takes one of them.
    transfer = FileWeightTransfer(server.url, tmp_path, config=WeightSyncConfig(shard_gigabytes=50e-9))
    transfer.init_weight_transfer()
    sync(transfer, weights())
    version = tmp_path / "weights-000001"
    assert len(list(version.glob("*.safetensors"))) == 2
    assert torch.equal(read(version)["model.embed_tokens.weight"], weights()[0][1])


def test_the_live_parameter_may_change_while_a_shard_is_open(server, tmp_path):
    live = torch.ones(3)

    def stream():
        yield "a", live
        live.zero_()  # as a sharded trainer reuses its gather buffer
        yield "b", live

    transfer = FileWeightTransfer(server.url, tmp_path)
    transfer.init_weight_transfer()
    transfer.send_weights(stream())
    assert read(tmp_path / "weights-000001")["a"].tolist() == [1, 1, 1]


def test_casting_on_the_way_to_disk(server, tmp_path):
    transfer = FileWeightTransfer(server.url, tmp_path, config=WeightSyncConfig(dtype="bfloat16"))
    transfer.init_weight_transfer()
    sync(transfer, weights())
    assert torch.equal(read(tmp_path / "weights-000001")["model.norm.weight"], weights()[1][1].bfloat16())


TIED = {"lm_head.weight": "model.embed_tokens.weight"}


class TestTiedEmbeddings:
    def test_the_head_is_written_under_its_own_name(self, server, tmp_path):
        transfer = FileWeightTransfer(server.url, tmp_path, tied=TIED)
        transfer.init_weight_transfer()
        sync(transfer, weights())
        written = read(tmp_path / "weights-000001")
        assert torch.equal(written["lm_head.weight"], weights()[0][1])
        assert set(written) == {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"}

    def test_a_head_that_is_sent_is_not_written_twice(self, server, tmp_path):
        transfer = FileWeightTransfer(server.url, tmp_path, tied=TIED)
        transfer.init_weight_transfer()
        sync(transfer, [*weights(), ("lm_head.weight", torch.zeros(4, 3))])
        assert read(tmp_path / "weights-000001")["lm_head.weight"].abs().sum() == 0

    def test_a_source_that_is_not_sent(self, server, tmp_path):
        transfer = FileWeightTransfer(server.url, tmp_path, tied=TIED)
        transfer.init_weight_transfer()
        with pytest.raises(WeightSyncError, match=r"lm_head\.weight is tied to"):
            sync(transfer, weights()[1:])

    def test_read_from_the_checkpoint(self, tmp_path):
        assert tied_parameters(save_tiny(tmp_path / "tied", tied=True)) == TIED
        assert tied_parameters(save_tiny(tmp_path / "untied", tied=False)) == {}


class TestFailures:
    """Whatever fails, the server is told to resume, and no version is half there."""

    def transfer(self, server, tmp_path):
        transfer = FileWeightTransfer(server.url, tmp_path)
        transfer.init_weight_transfer()
        return transfer

    def test_the_server_cannot_load(self, server, tmp_path):
        transfer = self.transfer(server, tmp_path)
        sync(transfer, weights())
        bad = str(tmp_path / "weights-000002")
        server.fail("/collective_rpc", 500, "no such tensor: zebra", when=lambda body: bad in str(body))
        transfer.pause()
        with pytest.raises(WeightSyncError, match="no such tensor: zebra") as error:
            transfer.send_weights(iter(weights(1)))
        # Back to the version before, since a failed load leaves vLLM without weights.
        assert "has loaded" in str(error.value)
        assert server.calls[-2].body["kwargs"] == {"weights_path": str(tmp_path / "weights-000001")}
        assert server.paths("POST")[-1] == "/resume"
        assert not transfer.paused
        assert transfer.version == 1

    def test_the_first_load_fails_and_the_server_goes_back_to_its_checkpoint(self, server, tmp_path):
        transfer = self.transfer(server, tmp_path)
        server.fail("/collective_rpc", 500, "unreadable", when=lambda body: "weights-000001" in str(body))
        with pytest.raises(WeightSyncError, match="has loaded /models/policy again"):
            transfer.send_weights(iter(weights()))

    def test_the_cache_cannot_be_reset(self, server, tmp_path):
        transfer = self.transfer(server, tmp_path)
        server.answers["/reset_prefix_cache"] = {"success": False}
        with pytest.raises(WeightSyncError, match="prefix cache"):
            transfer.send_weights(iter(weights()))
        assert server.paths("POST")[-1] == "/resume"

    def test_a_weight_that_is_not_finite(self, server, tmp_path):
        transfer = self.transfer(server, tmp_path)
        transfer.pause()
        bad = ("model.norm.weight", torch.tensor([1.0, float("nan")]))
        with pytest.raises(WeightSyncError, match=r"model\.norm\.weight is not finite.*learning_rate"):
            transfer.send_weights(iter([weights()[0], bad]))
        assert server.paths("POST") == ["/pause", "/resume"]
        assert not list(tmp_path.glob("weights-*"))

    def test_the_trainer_breaks_off(self, server, tmp_path):
        def stream():
            yield weights()[0]
            raise KeyboardInterrupt

        transfer = self.transfer(server, tmp_path)
        transfer.pause()
        with pytest.raises(KeyboardInterrupt):
            transfer.send_weights(stream())
        assert server.paths("POST") == ["/pause", "/resume"]
        sync(transfer, weights())  # what it left behind is no hindrance
        assert len(read(tmp_path / "weights-000001")) == 2

    def test_the_disk_is_full(self, server, tmp_path, monkeypatch):
        def full(path):
            raise OSError(28, "No space left on device")

        transfer = self.transfer(server, tmp_path)
        monkeypatch.setattr("training.weight_sync._fsync", full)
        with pytest.raises(WeightSyncError, match="No space left"):
            transfer.send_weights(iter(weights()))
        assert not list(tmp_path.glob("weights-*"))
        assert server.paths("POST") == ["/resume"]

    def test_nothing_to_send(self, server, tmp_path):
        with pytest.raises(WeightSyncError, match="frozen"):
            self.transfer(server, tmp_path).send_weights(iter([]))

    def test_a_pause_that_does_not_answer(self, server, tmp_path):
        transfer = self.transfer(server, tmp_path)
        server.fail("/pause", 500, "engine is busy")
        with pytest.raises(WeightSyncError, match="engine is busy"):
            transfer.pause()
        assert server.paths("POST") == ["/pause", "/resume"]

    def test_a_resume_that_fails_is_said_beside_the_cause(self, server, tmp_path):
        transfer = self.transfer(server, tmp_path)
        server.fail("/pause", 500, "the cause")
        server.fail("/resume", 500, "the sequel")
        with pytest.raises(WeightSyncError, match=r"the cause.*may still be paused.*the sequel"):
            transfer.pause()
        assert transfer.paused

    def test_destroy_resumes(self, server, tmp_path):
        transfer = self.transfer(server, tmp_path)
        transfer.pause()
        transfer.destroy()
        assert server.paths("POST") == ["/pause", "/resume"]

    def test_a_server_left_paused_is_resumed_at_the_start(self, server, tmp_path):
        server.answers["/is_paused"] = {"is_paused": True}
        self.transfer(server, tmp_path)
        assert server.paths("POST") == ["/resume"]

    def test_no_server(self, tmp_path):
        with pytest.raises(WeightSyncError, match="not ready"):
            FileWeightTransfer("http://127.0.0.1:9", tmp_path).init_weight_transfer()


class TestAdmin:
    def test_a_missing_endpoint_names_the_flags(self, server):
        server.fail("/pause", 404, "Not Found")
        with pytest.raises(ServerError, match="VLLM_SERVER_DEV_MODE=1"):
            VLLMAdmin(server.url).pause()

    def test_no_answer_in_time(self, server):
        given_up = threading.Event()
        server.control = lambda call: given_up.wait(60)
        try:
            with pytest.raises(ServerError, match=r"no answer within 0\.1 s"):
                VLLMAdmin(server.url, seconds=0.1).pause()
        finally:
            given_up.set()

    def test_an_api_key_goes_along(self, server):
        VLLMAdmin(server.url + "/v1", api_key="abc").resume()
        assert server.calls[0].headers["authorization"] == "Bearer abc"


class TestChoice:
    def make(self, tmp_path, device, **config):
        return make_weight_transfer(
            WeightSyncConfig(**config),
            model=save_tiny(tmp_path / "model", tied=True),
            server_url="http://127.0.0.1:9",
            output_dir=tmp_path,
            device=device,
        )

    def test_file_on_the_cpu(self, tmp_path):
        transfer = self.make(tmp_path, "cpu")
        assert transfer.directory == tmp_path / "weights"
        assert transfer.tied == TIED

    def test_trls_own_on_cuda(self, tmp_path):
        assert self.make(tmp_path, "cuda") is None

    def test_file_on_cuda_when_asked_for(self, tmp_path):
        transfer = self.make(tmp_path, "cuda", backend="file", directory=tmp_path / "ram")
        assert transfer.directory == tmp_path / "ram"

    def test_nccl_without_cuda(self, tmp_path):
        with pytest.raises(WeightSyncError, match="needs a CUDA trainer"):
            self.make(tmp_path, "cpu", backend="nccl")
