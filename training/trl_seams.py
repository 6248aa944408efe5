"""Every private name of TRL, and of accelerate's dispatcher, that this project touches.

TRL's `AsyncGRPOTrainer` is experimental: its public seams (`rollout_worker`, `weight_transfer`) are used as
they are, and what has to be reached beyond them is gathered here, for the one version in `TRL_VERSION`.
`missing_seams` says which of these names moved, `tests/training/test_trl_seams.py` fails when one did, and
the trainer refuses to start with another version rather than train wrongly.

What `PolicyTrainer` changes, and why:

- **attention**: TRL registers a Flash-Attention-3 kernel in its constructor; `training.attention` replaces
  it.
- **construction without CUDA**: TRL asks CUDA for the device's name to know its peak FLOPs.
- **no look-ahead**: accelerate's dispatcher fetches micro-batch n + 1 before it hands out n. With a live
  queue that is a deadlock for a worker that emits one batch per policy version, and it makes every batch one
  version staler than TRL counts, so that `max_staleness = 0` would not be on-policy.
- **one token count a step**: TRL divides each micro-batch's loss by that micro-batch's tokens. With gradient
  accumulation a token's weight would then depend on the others in its micro-batch, and the gradient on how a
  step is cut. Here every micro-batch is divided by the tokens of the whole step.
- **whole log-probabilities under FSDP2**: TRL's fused head computes them inside the model's forward, and the
  policy that accelerate makes of `bf16` casts whatever that returns to bfloat16, off by up to 0.03 nats at a
  log-probability of -8; it also sums gradients over the ranks in bfloat16. Here both stay in float32.
- **parity**: the first weight sync is followed by a comparison of server and trainer, see `training.parity`.
"""

import contextlib
import importlib
import inspect
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
import trl
from accelerate.utils import broadcast, broadcast_object_list, send_to_device
from accelerate.utils.operations import get_data_structure, initialize_tensors, slice_tensors
from datasets import Dataset
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer
from trl.experimental.async_grpo import async_grpo_trainer as _trainer_module
from trl.experimental.async_grpo.async_grpo_trainer import (
    RolloutWorkerProtocol,
    WeightTransferProtocol,
)
from trl.experimental.async_grpo.async_rollout_worker import RolloutSample
from trl.experimental.async_grpo.packing import TREE_ATTENTION, TreeRow
from trl.experimental.async_grpo.packing import tree_attention as tree_fa3
from trl.trainer.utils import add_fused_lm_head

from training.attention import AttentionBackend, TreeAttention, install_tree_attention

if TYPE_CHECKING:
    # Not needed without a server: `scripts/gpu_check.py` runs where neither pydantic nor httpx is installed.
    from training.parity import ParityConfig, ParityReport
    from training.vllm_admin import VLLMAdmin

__all__ = [
    "TREE_ATTENTION",
    "TRL_VERSION",
    "AsyncGRPOConfig",
    "OnDemandLoader",
    "PolicyTrainer",
    "RolloutSample",
    "RolloutWorkerProtocol",
    "TreeRow",
    "WeightTransferProtocol",
    "add_fused_lm_head",
    "build_trainer",
    "missing_seams",
    "tree_fa3",
]

logger = logging.getLogger(__name__)

TRL_VERSION = "1.16.0"

HALF_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""accelerate's names of mixed precision."""

SEAMS: dict[str, tuple[str, ...]] = {
    "trl.experimental.async_grpo.async_grpo_trainer": (
        "register_tree_attention",
        "get_peak_flops_per_device",
        "AsyncGRPOTrainer._sync_weight",
        "AsyncGRPOTrainer._streaming_iter",
        "AsyncGRPOTrainer.get_train_dataloader",
        "AsyncGRPOTrainer.compute_loss",
        "FixedCountBatcher",
        "TokenBudgetBatcher",
        "DataCollatorForRollout",
    ),
    "trl.experimental.async_grpo.packing": (
        "TREE_ATTENTION",
        "tree_attention",
        "TreeRow.add",
        "TreeRow.pack",
    ),
    "trl.experimental.async_grpo.async_rollout_worker": ("RolloutSample",),
    "trl.trainer.utils": ("add_fused_lm_head",),
    "transformers": ("Trainer.create_accelerator_and_postprocess", "Trainer.get_batch_samples"),
    "accelerate.utils.operations": ("get_data_structure", "initialize_tensors", "slice_tensors"),
}
"""Module -> the names that this file leans on."""

SOURCE_SEAMS: dict[str, tuple[str, ...]] = {
    "AsyncGRPOTrainer.__init__": (
        "register_tree_attention()",
        "get_peak_flops_per_device(self.accelerator, dtype)",
        "attn_implementation=TREE_ATTENTION",
        "self.weight_transfer = weight_transfer",
    ),
    "AsyncGRPOTrainer.compute_loss": (
        'inputs["global_n_tokens"][0]',
        "loss / tokens_per_rank",
        "loss / self.current_gradient_accumulation_steps",
    ),
    "AsyncGRPOTrainer._sync_weight_merged": (
        "self.weight_transfer.pause()",
        "self.weight_transfer.send_weights(self._streaming_iter())",
        "self.weight_transfer.resume()",
        "self.model_version += 1",
    ),
    "_TrainBeginCallback.on_train_begin": (
        "init_weight_transfer()",
        "_sync_weight()",
        "rollout_worker.start()",
    ),
    "AsyncGRPOTrainer._inner_training_loop": ("self.rollout_worker.stop()", "self.weight_transfer.destroy()"),
}
"""Method -> fragments of its source that the overrides below rely on."""


def missing_seams() -> list[str]:
    """What moved since `TRL_VERSION`: a list of complaints, empty when everything is in its place."""
    complaints = []
    if trl.__version__ != TRL_VERSION:
        complaints.append(f"trl is {trl.__version__}, not {TRL_VERSION}")
    for module_name, names in SEAMS.items():
        module = importlib.import_module(module_name)
        for name in names:
            try:
                _resolve(module, name)
            except AttributeError:
                complaints.append(f"{module_name}.{name} is gone")
    for method, fragments in SOURCE_SEAMS.items():
        try:
            source = inspect.getsource(_resolve(_trainer_module, method))
        except AttributeError:
            complaints.append(f"{_trainer_module.__name__}.{method} is gone")
            continue
        complaints += [f"{method} no longer has `{part}`" for part in fragments if part not in source]
    return complaints


def _resolve(root: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        root = getattr(root, part)
    return root


def _peak_flops(accelerator: Any, dtype: str) -> float | None:
    """TRL's peak FLOPs of the device, or None (no utilisation metric) off CUDA, where TRL's own raises."""
    return _original_peak_flops(accelerator, dtype) if accelerator.device.type == "cuda" else None


_original_peak_flops: Callable[..., float | None] = _trainer_module.get_peak_flops_per_device


class OnDemandLoader:
    """Hands out micro-batches of the main process's loader, one per rank, and fetches none before it is
    asked.

    The batch is made on the main process, broadcast, and row `i` goes to rank `i`, as accelerate's dispatcher
    does. What ends the loader there (a stop, nothing left to learn, a failure) is raised on every rank at the
    same batch: the others would wait for it in the broadcast until the launcher kills them.

    Args:
        loader: the loader of the main process; an empty one elsewhere.
        accelerator: the trainer's.
    """

    def __init__(self, loader: DataLoader, accelerator: Any):
        self.loader = loader
        self.dataset = loader.dataset
        self.batch_size = loader.batch_size
        self._accelerator = accelerator

    def __iter__(self) -> Iterator[Any]:
        state = self._accelerator
        source = iter(self.loader) if state.is_main_process else None
        while True:
            batch = None
            end: Exception | None = None
            if source is not None:
                try:
                    batch = next(source)
                except StopIteration as error:  # a generator may not raise it on
                    end = RuntimeError("the queue of rollouts ended, which it never does")
                    end.__cause__ = error
                except Exception as error:
                    end = error
            if state.num_processes > 1:
                news = [None if source is None else _picklable(end) if end else get_data_structure(batch)]
                broadcast_object_list(news)
                if source is None:
                    end = news[0] if isinstance(news[0], Exception) else None
                    batch = initialize_tensors(news[0]) if end is None else None
            if end is not None:
                raise end
            if state.num_processes > 1:
                batch = broadcast(send_to_device(batch, state.device), from_process=0)
                index = state.process_index
                batch = slice_tensors(batch, slice(index, index + 1))
            else:
                batch = send_to_device(batch, state.device)
            yield batch


@contextlib.contextmanager
def _errors_only(name: str) -> Iterator[None]:
    """Keeps warnings of the logger `name` off the console meanwhile."""
    log = logging.getLogger(name)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _picklable(error: Exception) -> Exception:
    """The error itself, or its words where it does not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


class PolicyTrainer(AsyncGRPOTrainer):
    """TRL's asynchronous GRPO trainer on any device; the module docstring says what differs and why.

    Args:
        attention: which tree attention, see `training.attention`.
        parity: the check after the first sync; None for none.
        server: the vLLM server that the check asks; needed with `parity`.
        served_model: the name under which it serves the policy. other arguments: TRL's. `train_dataset` is a
        placeholder (rows come from the worker) and may be left out.

    Attributes:
        tree_attention: the attention in use.
        parity_report: what the check measured, None before it ran. Main process and others alike.
    """

    def __init__(
        self,
        *args: Any,
        attention: AttentionBackend = "auto",
        parity: "ParityConfig | None" = None,
        server: "VLLMAdmin | None" = None,
        served_model: str | None = None,
        **kwargs: Any,
    ):
        if complaints := missing_seams():
            raise RuntimeError(
                f"this project is written against trl {TRL_VERSION}; install that version, or adapt "
                f"training/trl_seams.py: {'; '.join(complaints)}"
            )
        if kwargs.get("train_dataset") is None:
            kwargs["train_dataset"] = Dataset.from_dict({"prompt": [""]})
        # Registered before TRL loads the model, which refuses an attention that it does not know.
        install_tree_attention("segments")
        with (
            mock.patch.object(_trainer_module, "register_tree_attention", return_value=None),
            mock.patch.object(_trainer_module, "get_peak_flops_per_device", _peak_flops),
            _errors_only("transformers.trainer_callback"),  # warns that TRL adds two callbacks of one class
        ):
            super().__init__(*args, **kwargs)
        self._attention_backend = attention
        self.tree_attention: TreeAttention = install_tree_attention(
            attention, self.accelerator.device, self.forward_dtype
        )
        self._parity, self._server, self._served_model = parity, server, served_model
        if parity is not None and parity.enabled and (server is None or served_model is None):
            raise ValueError(
                "the parity check needs `server` and `served_model`; or set parity.enabled = false"
            )
        self.parity_report: ParityReport | None = None

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        half = HALF_PRECISION.get(self.accelerator.mixed_precision)
        if plugin is not None and plugin.fsdp_version == 2 and half is not None:
            plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32)

    @property
    def forward_dtype(self) -> torch.dtype:
        """The dtype that the forward computes in: the autocast dtype under mixed precision, else the
        weights'."""
        model: Any = self.model
        return HALF_PRECISION.get(self.accelerator.mixed_precision, model.dtype)

    def get_train_dataloader(self) -> Any:
        prepared: Any = super().get_train_dataloader()
        return OnDemandLoader(prepared.base_dataloader, self.accelerator)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """The micro-batches of one step. Each has the mean of their token counts for its own: TRL divides by
        that and by their number, which makes it the step's count."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            mean = torch.stack([batch["global_n_tokens"] for batch in batches]).mean(0)
            for batch in batches:
                batch["global_n_tokens"] = mean
        return batches, items

    def push_weights(self) -> None:
        """Send the weights as they are now, without a new policy version. Called by every rank."""
        main, transfer = self.accelerator.is_main_process, self.weight_transfer
        if main and transfer is not None:
            transfer.pause()
        self.accelerator.wait_for_everyone()
        if main and transfer is not None:
            transfer.send_weights(self._streaming_iter())
        else:
            for _ in self._streaming_iter():  # gathering a sharded tensor takes every rank
                pass
        self.accelerator.wait_for_everyone()
        if main and transfer is not None:
            transfer.resume()

    def _sync_weight(self) -> None:
        if self._parity is None or not self._parity.enabled or self.parity_report is not None:
            super()._sync_weight()
            return
        from training.parity import ParityReport, check_parity

        assert self._server is not None
        assert self._served_model is not None
        scrambled = None
        if self._parity.scramble:
            scrambled = check_parity(self, self._server, self._served_model, self._parity, scramble=True)
        # The real weights go out before anything is judged or the rollouts start.
        super()._sync_weight()
        plain = check_parity(self, self._server, self._served_model, self._parity, scramble=False)
        assert plain is not None
        self.parity_report = ParityReport(plain=plain, scrambled=scrambled)
        self.parity_report.judge(self._parity.tolerance_for(self.forward_dtype))
        logger.info("%s", self.parity_report)


def build_trainer(
    model: str | Path,
    args: AsyncGRPOConfig,
    *,
    rollout_worker: RolloutWorkerProtocol,
    weight_transfer: WeightTransferProtocol | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    attention: AttentionBackend = "auto",
    parity: "ParityConfig | None" = None,
    server: "VLLMAdmin | None" = None,
    served_model: str | None = None,
    optimizers: tuple[Any, Any] = (None, None),
    peft_config: Any = None,
) -> PolicyTrainer:
    """A `PolicyTrainer` for the checkpoint `model`.

    Args:
        weight_transfer: from `training.weight_sync.make_weight_transfer`; None for TRL's NCCL transfer to the
            server at `args.vllm_server_base_url`.
        tokenizer: None loads the checkpoint's.

    Raises:
        RuntimeError: the installed TRL is not the one that this is written for.
        TreeAttentionError: `attention` names a backend that does not work here.
    """
    return PolicyTrainer(
        model=str(model),
        args=args,
        processing_class=tokenizer,
        callbacks=list(callbacks),
        rollout_worker=rollout_worker,
        weight_transfer=weight_transfer,
        optimizers=optimizers,
        peft_config=peft_config,
        attention=attention,
        parity=parity,
        server=server,
        served_model=served_model,
    )
