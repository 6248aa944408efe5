"""New weights from the trainer to the vLLM server.

Two ways behind TRL's `WeightTransferProtocol`:

- **file**: each version is a directory of safetensors files that the server reads. Any device; the server has
  to see the directory (same machine or a shared file system).
- **nccl**: TRL's own `WeightTransferClient`, GPU to GPU. TRL makes it when the trainer is given no weight
  transfer.

Invariants of the file way: the server never sees a version that is not complete on disk (written beside,
synced, then renamed); the server never stays paused, whatever fails; a tensor that is not finite is never
sent; a tied `lm_head` is written out under its own name, since vLLM otherwise keeps serving the old one and
answers 200.

Not covered: whether the server then computes the same as the trainer. `training.parity` measures that.
"""

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from pydantic_config import BaseConfig

from training.vllm_admin import ServerError, VLLMAdmin

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

VERSION_NAME = re.compile(r"weights-(\d{6,})")
PARTIAL_NAME = re.compile(r"\.weights-\d{6,}\.partial")


class WeightSyncError(RuntimeError):
    """New weights did not reach the server; the message says where it went wrong and what the server said."""


class WeightSyncConfig(BaseConfig):
    """How new weights reach the server."""

    backend: Literal["auto", "file", "nccl"] = "auto"
    """`nccl` is GPU to GPU and needs a CUDA trainer and a server started with `--weight-transfer-config
    '{"backend":"nccl"}'`; `file` works everywhere the server can read `directory`. `auto` is nccl on a CUDA
    trainer, else file."""

    directory: Path | None = None
    """Where `file` puts the versions; None is `weights` in the run's output directory. A RAM disk such as
    `/dev/shm/run` is fastest. Must not be shared by two runs."""

    keep: int = Field(2, ge=1)
    """Versions left on disk, the newest included."""

    dtype: Literal["keep", "bfloat16", "float16", "float32"] = "keep"
    """Dtype written to disk; `keep` is the trainer's. The server casts to its own dtype in any case, so
    setting that one here halves the bytes of a float32 trainer with a bfloat16 server and changes nothing
    else."""

    shard_gigabytes: float = Field(4.0, gt=0)
    """A version is split into files of about this size, which bounds the trainer's extra memory."""

    reload_seconds: float = Field(600.0, gt=0)
    """Limit on the server's reading of a version."""

    control_seconds: float = Field(60.0, gt=0)
    """Limit on pause, resume and the cache reset. Pausing waits for the step in progress."""


def tied_parameters(model: str | Path) -> dict[str, str]:
    """Tied parameters of the checkpoint `model`: {name that vLLM wants: name that the trainer sends}.

    Empty where embeddings are not tied. Read from the model class, so it holds for every architecture that
    transformers knows, without loading weights.

    Raises:
        WeightSyncError: embeddings are tied, but the class does not say which names that concerns.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    if not getattr(config.get_text_config(), "tie_word_embeddings", False):
        return {}
    cls: Any = AutoModelForCausalLM._model_mapping[type(config)]
    tied = getattr(cls, "_tied_weights_keys", None)
    if not isinstance(tied, Mapping):
        raise WeightSyncError(
            f"{model} ties its embeddings, but {cls.__name__} does not say which parameters share a tensor; "
            "untie them: save the model with tie_word_embeddings = false and a lm_head.weight of its own"
        )
    return dict(tied)


class FileWeightTransfer:
    """TRL's `WeightTransferProtocol` over the file system.

    TRL calls `init_weight_transfer`, then `pause`, `send_weights`, `resume` at every sync, and `destroy` at
    the end, also when training raises.

    Args:
        server_url: the vLLM server's root.
        directory: where versions go; made if missing. Versions left by an earlier run are removed.
        tied: from `tied_parameters`.
        config: limits, what to keep.
        api_key: of the server.
    """

    def __init__(
        self,
        server_url: str,
        directory: Path,
        *,
        tied: Mapping[str, str] | None = None,
        config: WeightSyncConfig | None = None,
        api_key: str | None = None,
    ):
        self.config = config or WeightSyncConfig()
        # Absolute: the server resolves it in its own working directory, and takes a path that it cannot find
        # for the name of a model on a hub.
        self.directory = Path(directory).absolute()
        self.tied = dict(tied or {})
        self.version = 0
        """Versions sent so far by this object."""
        self.paused = False
        """Whether this object has paused the server and not resumed it yet."""
        self.last: dict[str, float] = {}
        """The last sync: `bytes`, `write_seconds`, `reload_seconds`."""
        self._good: str | None = None  # what the server can be told to load again
        self._admin = VLLMAdmin(server_url, seconds=self.config.control_seconds, api_key=api_key)

    def init_weight_transfer(self) -> None:
        """Make the directory; check that the server is there, with its endpoints, and not left paused.

        Raises:
            WeightSyncError: it is not.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        for entry in self.directory.iterdir():
            if VERSION_NAME.fullmatch(entry.name) or PARTIAL_NAME.fullmatch(entry.name):
                shutil.rmtree(entry)
        try:
            # What the server started with; it can load that again should the first version fail.
            self._good = self._admin.server_info()["model_config"]["model"]
            # A run that was killed between pause and resume leaves a server that accepts requests and answers
            # none.
            if self._admin.is_paused():
                logger.warning("%s was left paused by someone; resuming it", self._admin.url)
                self._admin.resume()
        except ServerError as error:
            raise WeightSyncError(f"the server is not ready for weights: {error}") from error

    def pause(self) -> None:
        """Stop the server's scheduling; requests in flight wait.

        Raises:
            WeightSyncError: the server did not say that it paused. It has been told to resume.
        """
        # Set first: a pause that times out here may still take effect there.
        self.paused = True
        try:
            self._admin.pause()
        except ServerError as error:
            raise self._failed("could not pause the server", error) from error

    def send_weights(self, iterator: Iterator[tuple[str, "torch.Tensor"]]) -> None:
        """Write one version and have the server load it.

        Args:
            iterator: (name, full tensor) of every parameter. Names as in the checkpoint.

        Raises:
            WeightSyncError: nothing was sent, a tensor is not finite, the disk or the server failed. The
                server has been told to load its last weights again, and to resume.
        """
        began = time.perf_counter()
        try:
            path, size = self._write(iterator)
            written = time.perf_counter()
            self._load(path)
            self._admin.reset_prefix_cache()
        except Exception as error:
            raise self._failed(
                f"weights version {self.version + 1} did not reach the server", error
            ) from error
        except BaseException:  # an interrupt: the same care, but never turned into another error
            self._resume_quietly()
            raise
        self.version += 1
        self._good = str(path)
        done = time.perf_counter()
        self.last = {"bytes": size, "write_seconds": written - began, "reload_seconds": done - written}
        logger.info(
            "weights %d: %.1f MB written in %.2f s, loaded in %.2f s",
            self.version, size / 1e6, written - began, done - written,
        )  # fmt: skip
        self._prune()

    def resume(self) -> None:
        """Let the server go on.

        Raises:
            WeightSyncError: it did not answer.
        """
        try:
            self._admin.resume()
        except ServerError as error:
            raise WeightSyncError(f"could not resume the server: {error}") from error
        self.paused = False

    def destroy(self) -> None:
        """Leave the server running and close the connection. The last versions stay on disk."""
        if self.paused:
            self._resume_quietly()
        self._admin.close()

    def _load(self, path: Path) -> None:
        """Have the server load `path`; on failure, what it had before, since a failed load leaves it without
        weights and the next request would kill its engine."""
        try:
            self._admin.reload_weights(path, self.config.reload_seconds)
        except ServerError as error:
            what = "; it has not been told to load anything else"
            if self._good is not None:
                try:
                    self._admin.reload_weights(Path(self._good), self.config.reload_seconds)
                    what = f"; it has loaded {self._good} again"
                except ServerError as second:
                    what = f"; loading {self._good} again failed too, so it has to be restarted: {second}"
            raise ServerError(f"{error} (can the server read {path}?){what}") from error

    def _failed(self, what: str, error: Exception) -> WeightSyncError:
        return WeightSyncError(f"{what}: {type(error).__name__}: {error}{self._resume_quietly()}")

    def _resume_quietly(self) -> str:
        """Try to resume; '' or what to add to the message of the error in hand, which must not be masked."""
        try:
            self._admin.resume()
        except ServerError as error:
            logger.error("the server may still be paused: %s", error)
            return f"; and resuming it failed too, so it may still be paused: {error}"
        self.paused = False
        return ""

    def _write(self, iterator: Iterator[tuple[str, "torch.Tensor"]]) -> tuple[Path, int]:
        """Write the next version; its directory and its size in bytes."""
        import torch

        name = f"weights-{self.version + 1:06d}"
        partial, final = self.directory / f".{name}.partial", self.directory / name
        for leftover in (partial, final):  # of an attempt that failed
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        target = None if self.config.dtype == "keep" else getattr(torch, self.config.dtype)
        limit = self.config.shard_gigabytes * 1e9
        shard: dict[str, torch.Tensor] = {}
        files: dict[str, str] = {}
        size = shard_size = 0
        for tensor_name, tensor in self._with_tied(iterator):
            if not torch.isfinite(tensor).all():
                raise WeightSyncError(
                    f"{tensor_name} is not finite: training has diverged (lower learning_rate or "
                    "max_grad_norm); the server keeps the last weights"
                )
            # A copy on the CPU in any case: shards are written later, and `tensor` is the live parameter.
            copy = tensor.detach().to("cpu", target or tensor.dtype, copy=True).contiguous()
            shard_bytes = copy.numel() * copy.element_size()
            if shard and shard_size + shard_bytes > limit:
                self._write_shard(partial, shard, files)
                shard, shard_size = {}, 0
            shard[tensor_name] = copy
            shard_size += shard_bytes
            size += shard_bytes
        if not shard:
            raise WeightSyncError("the trainer sent no parameters; are all of them frozen?")
        self._write_shard(partial, shard, files)
        index = {"metadata": {"total_size": size}, "weight_map": files}
        (partial / "model.safetensors.index.json").write_text(json.dumps(index))
        for entry in partial.iterdir():
            _fsync(entry)
        _fsync(partial)
        partial.rename(final)
        _fsync(self.directory)
        return final, size

    def _with_tied(
        self, iterator: Iterator[tuple[str, "torch.Tensor"]]
    ) -> Iterator[tuple[str, "torch.Tensor"]]:
        """`iterator`, with each tied parameter that it leaves out added under its own name."""
        missing = dict(self.tied)
        sources: dict[str, torch.Tensor] = {}
        for name, tensor in iterator:
            missing.pop(name, None)
            if name in self.tied.values():
                sources[name] = tensor
            yield name, tensor
        for name, source in missing.items():
            if source not in sources:
                raise WeightSyncError(
                    f"{name} is tied to {source}, which the trainer did not send, so the server would keep "
                    "the old one"
                )
            yield name, sources[source]

    @staticmethod
    def _write_shard(directory: Path, shard: "dict[str, torch.Tensor]", files: dict[str, str]) -> None:
        from safetensors.torch import save_file

        file = f"model-{len(set(files.values())) + 1:05d}.safetensors"
        save_file(shard, directory / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(shard, file))

    def _prune(self) -> None:
        versions = sorted(e for e in self.directory.iterdir() if VERSION_NAME.fullmatch(e.name))
        for old in versions[: -self.config.keep]:
            shutil.rmtree(old, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_weight_transfer(
    config: WeightSyncConfig,
    *,
    model: str | Path,
    server_url: str,
    output_dir: str | Path,
    device: str,
    api_key: str | None = None,
) -> FileWeightTransfer | None:
    """The weight transfer that the config asks for; None means TRL's own NCCL one, made by its trainer.

    Args:
        model: the checkpoint being trained, for its tied parameters.
        server_url: the vLLM server's root.
        output_dir: of the run.
        device: type of the trainer's device, `cpu` or `cuda`.

    Raises:
        WeightSyncError: `backend = "nccl"` on a trainer without CUDA.
    """
    backend = config.backend
    if backend == "auto":
        backend = "nccl" if device == "cuda" else "file"
    if backend == "nccl":
        if device != "cuda":
            raise WeightSyncError(
                f'weight_sync.backend = "nccl" needs a CUDA trainer, not {device}; use "file"'
            )
        return None
    directory = config.directory or Path(output_dir) / "weights"
    return FileWeightTransfer(
        server_url, directory, tied=tied_parameters(model), config=config, api_key=api_key
    )
