"""The training run's settings: TOML plus dotted overrides, validated before anything starts.

    python -m training.train @ configs/train/quickstart_cpu.toml --optim.lr 1e-4 --env.taskset.seed 7

The idea is verifiers' own: one typed tree, `@ file.toml` below, the command line above, `None` meaning the
default of the layer below. The invariant: **a setting that nobody reads cannot be set**. An unknown key is an
error that names the nearest right one, at any depth, the taskset's and the harness's own settings included.

Every size that decides about deadlock or memory is here in one place, and `TrainConfig` checks that the sizes
agree (see its validators) before a server is started for them.

Not covered: the settings of the server, the weight transfer and the parity check (with their modules), of the
harness (`rlm_env.config`) and of the tasksets.
"""

from __future__ import annotations

import copy
import difflib
import sys
from pathlib import Path
from typing import Any, Literal, TypeVar

import verifiers.v1 as vf
from pydantic import Field, SerializeAsAny, ValidationError, model_validator
from pydantic_config import BaseConfig, cli
from renderers import RendererConfig
from verifiers.v1.cli.resolve import narrow_config, plugin_errors
from verifiers.v1.configs.cli.env import narrowed_env_annotation, resolve_env_field
from verifiers.v1.configs.select import SelectConfig
from verifiers.v1.envs.single_agent import SingleAgentEnvConfig

from training.parity import ParityConfig
from training.server import VLLMConfig
from training.weight_sync import WeightSyncConfig


class ModelConfig(BaseConfig):
    """The policy that is trained and served."""

    path: str = ""
    """Checkpoint directory or hub name. Must be set."""
    served_name: str = "policy"
    """The name that the server knows the policy by."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the trainer's master weights. float32 keeps small updates; `precision.bf16` computes in
    bf16."""
    renderer: RendererConfig | None = None
    """How messages become tokens on the way to vLLM. None picks the one that is proven to keep a conversation
    in one training row (`training.renderer.renderer_config_for`)."""
    allow_split_conversations: bool = False
    """Train although the renderer splits conversations into several rows; otherwise such a run is refused."""
    trust_remote_code: bool = False
    """Run Python code that ships with the checkpoint."""


class SamplingConfig(BaseConfig):
    """How the policy is sampled in training, and in evaluation unless `eval` says otherwise."""

    temperature: float = Field(1.0, gt=0)
    """Softmax temperature; the trainer scores at the same one."""
    max_tokens: int | None = Field(None, ge=1)
    """Longest completion of one model call, in tokens; None leaves it to the harness and the server.
    There is no top_p and no top_k: the trainer's log-probabilities cover the whole vocabulary, and samples
    from a part of it would be off-policy."""

    def to_verifiers(self) -> vf.SamplingConfig:
        """The same as verifiers' type."""
        return vf.SamplingConfig(temperature=self.temperature, max_tokens=self.max_tokens)


class GRPOConfig(BaseConfig):
    """The objective."""

    group_size: int = Field(8, ge=2)
    """Episodes per task."""
    credit: Literal["root", "episode"] = "episode"
    """What is trained: the root conversation alone, or sub-LLM conversations too, with the advantage of their
    episode."""
    weighting: Literal["token", "episode"] = "token"
    """`token`: every sampled token weighs the same (TRL's loss). `episode`: every episode weighs the same,
    however many tokens and sub-calls it has. Derived in `training.samples`."""
    scale_by_std: bool = False
    """Divide a group's advantages by the standard deviation of its rewards."""
    leave_one_out: bool = False
    """Take each episode's baseline over the other episodes of its group."""
    clip_low: float = Field(0.2, gt=0)
    """The importance ratio is clipped at 1 - this."""
    clip_high: float | None = Field(None, gt=0)
    """The importance ratio is clipped at 1 + this; None takes `clip_low`. 0.28 is DAPO's."""


class OptimConfig(BaseConfig):
    """AdamW and its schedule."""

    lr: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    """Learning rate over the steps."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0 (with a schedule other than `constant`)."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are clipped to this norm."""


class BatchConfig(BaseConfig):
    """How many steps, and what one step is made of. A row is one conversation."""

    steps: int = Field(100, ge=1)
    """Optimizer steps of the run."""
    rows_per_device: int = Field(16, ge=1)
    """Rows of a micro-batch per training process."""
    accumulation: int = Field(1, ge=1)
    """Micro-batches per step."""
    token_budget: int | None = Field(None, ge=1)
    """Most tokens that one process forwards at a time; set, it bounds memory, and `rows_per_device` becomes
    an estimate. Tokens shared by several rows count once. None packs `rows_per_device` rows."""
    max_row_tokens: int | None = Field(None, ge=1)
    """Rows longer than this are left out and counted. None takes `token_budget`, or no limit."""

    def rows_per_step(self, processes: int) -> int:
        """Rows that one step consumes over all `processes` (an estimate under a token budget)."""
        return self.rows_per_device * self.accumulation * processes

    @property
    def row_limit(self) -> int | None:
        """Longest row that is trained, in tokens."""
        return self.max_row_tokens if self.max_row_tokens is not None else self.token_budget


class PrecisionConfig(BaseConfig):
    """Devices, number formats and memory."""

    device: Literal["auto", "cpu"] = "auto"
    """`cpu` keeps the trainer off any GPU."""
    bf16: bool = False
    """Compute in bfloat16 under autocast."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    attention: Literal["auto", "fa3", "varlen", "segments"] = "auto"
    """Attention over the packed rows, see `training.attention`; `auto` takes the fastest that works here."""


class RolloutConfig(BaseConfig):
    """How episodes are made."""

    max_staleness: int = Field(1, ge=0)
    """A row is used only while the policy is at most this many versions ahead of the one that its episode
    started with. 0 is on-policy."""
    max_concurrent: int = Field(64, ge=1)
    """Episodes in flight."""
    episode_seconds: float = Field(600.0, gt=0)
    """An episode that takes longer is cut off and counts as hung. Keep the harness's own
    `limits.episode_seconds` below it: that one ends the episode with its answer so far and a reward."""
    episode_retries: int = Field(1, ge=0)
    """Further attempts for an episode that failed or hung; then it is left out of its group."""
    max_consecutive_failures: int = Field(32, ge=1)
    """Episodes that may fail in a row, retries included, before the run stops with the last error."""
    max_barren_groups: int = Field(200, ge=1)
    """Groups in a row that may carry no signal before training ends: the tasks are too easy or too hard."""
    start_seconds: float = Field(300.0, gt=0)
    """Time for the worker process to come up."""
    stale_seconds: float = Field(120.0, gt=0)
    """The worker is taken for hung when its heartbeat is older."""
    stop_seconds: float = Field(20.0, gt=0)
    """Time for the worker to end its episodes on a stop; then it and all its children are killed."""


class TracesConfig(BaseConfig):
    """Episodes of training kept on disk, in `<output>/rollouts/part_*/traces.jsonl`, for the viewer."""

    every_groups: int = Field(8, ge=0)
    """Every how many groups all episodes of one are saved; 0 saves none."""
    part_mb: float = Field(64.0, gt=0)
    """A part is closed at this size."""
    max_parts: int = Field(32, ge=1)
    """Older parts are deleted."""


class EvalConfig(BaseConfig):
    """Evaluation on held-out tasks before and after training, with the run's own harness, sampled."""

    at_start: bool = False
    """Evaluate the model that training starts from."""
    at_end: bool = False
    """Evaluate the trained model, on the same tasks."""
    taskset: dict[str, Any] = Field(default_factory=dict)
    """Settings laid over `env.taskset`, e.g. another seed or split: what makes the tasks held out."""
    select: SelectConfig = SelectConfig(limit=64)
    """Which of these tasks; 64 by default."""
    rollouts: int = Field(1, ge=1)
    """Episodes per task."""
    temperature: float | None = Field(None, ge=0)
    """None takes `sampling.temperature`."""
    max_concurrent: int | None = Field(None, ge=1)
    """Episodes in flight; None takes `rollout.max_concurrent`."""


class CheckpointConfig(BaseConfig):
    """Checkpoints: weights, optimizer, step, random state, task position and policy version."""

    every_steps: int = Field(50, ge=1)
    """Steps between two checkpoints."""
    keep: int = Field(2, ge=1)
    """Older checkpoints are deleted."""
    resume: str | None = None
    """Checkpoint directory to go on from, or `last` for the newest of this run."""


class RunConfig(BaseConfig):
    """Identity and logging."""

    name: str = "run"
    """Name of the run; also its name in W&B."""
    output_dir: Path = Path("outputs")
    """The run writes to `<output_dir>/<name>`."""
    overwrite: bool = False
    """Start anew in a directory that already holds checkpoints of an earlier run."""
    seed: int = 0
    """Seed of the order of tasks and of the trainer."""
    report_to: list[Literal["wandb", "tensorboard", "trackio"]] = Field(default_factory=list)
    """Where metrics go besides the console and `metrics.jsonl`. W&B runs offline when no key is set."""
    project: str = "rlm-env"
    """W&B project."""

    @property
    def directory(self) -> Path:
        """Where this run writes."""
        return self.output_dir / self.name


class TrainConfig(BaseConfig):
    """One training run."""

    model: ModelConfig = ModelConfig()
    """The policy."""
    env: SerializeAsAny[vf.EnvConfig] = Field(default_factory=SingleAgentEnvConfig)
    """verifiers' environment: `[env.taskset]`, `[env.agent.harness]`, `[env.agent.runtime]`."""
    select: SelectConfig = SelectConfig()
    """Which of the taskset's tasks are trained on; `shuffle` is not needed, the order is drawn from
    `run.seed`."""
    sampling: SamplingConfig = SamplingConfig()
    """Sampling."""
    grpo: GRPOConfig = GRPOConfig()
    """Objective."""
    optim: OptimConfig = OptimConfig()
    """Optimizer."""
    batch: BatchConfig = BatchConfig()
    """Steps and rows."""
    precision: PrecisionConfig = PrecisionConfig()
    """Devices and memory."""
    rollout: RolloutConfig = RolloutConfig()
    """Episodes."""
    traces: TracesConfig = TracesConfig()
    """Saved episodes."""
    vllm: VLLMConfig = VLLMConfig()
    """The policy server: started by the run, or attached by URL."""
    weight_sync: WeightSyncConfig = WeightSyncConfig()
    """Weights to the server."""
    parity: ParityConfig = ParityConfig()
    """The comparison of server and trainer after the first weight sync."""
    eval: EvalConfig = EvalConfig()
    """Held-out evaluation."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    run: RunConfig = RunConfig()
    """Name, place, logging."""

    @model_validator(mode="before")
    @classmethod
    def _resolve_env(cls, data: Any) -> Any:
        return resolve_env_field(data, narrowed_env_annotation(cls))

    # Declared last, so that it wraps the validator above and sees the data as the user wrote it.
    @model_validator(mode="wrap")
    @classmethod
    def _name_the_nearest_key(cls, data: Any, handler: Any) -> TrainConfig:
        if not isinstance(data, dict):
            return handler(data)
        original = copy.deepcopy(data)
        try:
            return handler(data)
        except ValidationError as error:
            unknown = [e["loc"] for e in error.errors() if e["type"] == "extra_forbidden"]
            if not unknown:
                raise
            raise ValueError("; ".join(_unknown_key_messages(cls, original, unknown, handler))) from error

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if not self.env.taskset.id:
            raise ValueError("env.taskset.id is not set: name the taskset to train on, e.g. verbatim-copy")
        if not self.model.path:
            raise ValueError("model.path is not set: name the checkpoint directory or hub model to train")
        budget, limit = self.batch.token_budget, self.batch.max_row_tokens
        if budget is not None and limit is not None and limit > budget:
            raise ValueError(
                f"batch.max_row_tokens ({limit}) is above batch.token_budget ({budget}): rows between the "
                "two would be dropped by the packer. Lower max_row_tokens or raise token_budget."
            )
        for role, agent in vf_agents(self.env).items():
            if agent.sampling is not None and agent.sampling.model_dump(exclude_unset=True):
                raise ValueError(
                    f"env.{role}.sampling is set: training samples by [sampling], at the temperature that "
                    "the trainer scores at. Move the values there."
                )
            self._check_clock(role, agent)
        return self

    def _check_clock(self, role: str, agent: vf.AgentConfig) -> None:
        """An episode that is cut off from outside is left out of its group. A policy that is able to stall
        would learn to, whenever it expects a bad reward; so the harness's own limit, which scores what there
        is, has to come first."""
        limits = getattr(agent.harness, "limits", None)
        if limits is None or "episode_seconds" not in type(limits).model_fields:
            return
        own = limits.episode_seconds
        for name, outer in (
            ("rollout.episode_seconds", self.rollout.episode_seconds),
            (f"env.{role}.timeout.rollout", agent.timeout.rollout),
        ):
            if outer is not None and (own is None or own >= outer):
                raise ValueError(
                    f"env.{role}.harness.limits.episode_seconds is "
                    f"{'not set' if own is None else f'{own:g}'}; it has to be below {name} = {outer:g}. "
                    "That one leaves the episode out, so a policy could escape a bad reward by stalling; the "
                    "harness's own ends it with its answer so far and a reward"
                )


def vf_agents(env: vf.EnvConfig) -> dict[str, vf.AgentConfig]:
    """The environment's agents by role."""
    return {name: value for name, value in env if isinstance(value, vf.AgentConfig)}


def _unknown_key_messages(
    cls: type[TrainConfig], data: dict[str, Any], unknown: list[tuple[int | str, ...]], handler: Any
) -> list[str]:
    """One message per unknown key. The right names are read off the configuration without those keys, since
    which class a plugin's section has is known only once its id is resolved; where that has other faults, off
    the defaults."""
    for loc in unknown:
        parent: Any = data
        for key in loc[:-1]:
            parent = parent.get(key) if isinstance(parent, dict) else None
        if isinstance(parent, dict):
            parent.pop(loc[-1], None)
    try:
        known: Any = handler(data)
    except ValidationError:
        known = None
    messages = []
    for loc in unknown:
        node: Any = known
        fields = cls.model_fields
        if node is None and len(loc) > 1 and str(loc[0]) in fields:
            node = fields[str(loc[0])].get_default(call_default_factory=True)
            path = loc[1:-1]
        else:
            path = loc[:-1]
        for key in path:
            node = getattr(node, str(key), None)
        if isinstance(node, BaseConfig):
            fields = type(node).model_fields
        elif len(loc) > 1:
            fields = {}
        near = difflib.get_close_matches(str(loc[-1]), list(fields), n=1, cutoff=0.0)
        place = ".".join(map(str, loc))
        best = ".".join([*map(str, loc[:-1]), near[0]]) if near else None
        messages.append(f"unknown setting {place!r}" + (f"; did you mean {best!r}?" if best else ""))
    return messages


ConfigT = TypeVar("ConfigT", bound=TrainConfig)


def load_config(argv: list[str] | None, cls: type[ConfigT]) -> ConfigT:
    """The run's configuration from a command line: `@ file.toml` and dotted overrides.

    Args:
        argv: arguments without the program's name; None takes those of the process, and then errors are
            printed in a box and end the process, as in verifiers' own commands.
        cls: `TrainConfig`, or a subclass with more settings.

    Raises:
        ConfigFileError: with `argv` given, on any error in files, flags or values.
    """
    if argv is not None:
        return cli(narrow_config(cls, list(argv)), args=list(argv))
    with plugin_errors():
        return cli(narrow_config(cls, sys.argv[1:]))
