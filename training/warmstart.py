"""The supervised start: scripted episodes through the real harness, then imitation of what they sampled.

Two passes over the same environment. The first plays a few plans in text, and the tokenizer is learnt from
the messages that went back and forth: prompts, replies, observations, notes of the harness. The second plays
all plans in tokens, with the client and the renderer of training, and the recorded token ids and masks are
the training set as they are: **nothing is tokenised again**, so the policy is started on exactly the
sequences that sampling it will produce. Root and sub-LLM conversations are both imitated, and rewarded and
unrewarded episodes
alike: telling them apart is left to reinforcement learning.

An episode that fails for reasons of infrastructure stops the warm start; scripts do not fail by chance.
"""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import verifiers.v1 as vf
from datasets import Dataset
from pydantic import Field
from pydantic_config import BaseConfig
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer
from verifiers.v1.utils.loaders import load_environment

from rlm_env.prompts import sub_system
from training.behaviours import Plan, make_plans
from training.renderer import renderer_config_for
from training.rollout_episode import check_episode, episode_reward
from training.rollout_loop import renew_renderer_lock
from training.run_setup import PhaseClock
from training.samples import BranchTokens, episode_branches
from training.scripted_server import MODEL_PREFIX, ScriptedServer
from training.tiny_policy import (
    TinyPolicyConfig,
    build_model,
    parameter_count,
    save_policy,
    train_tokenizer,
)

logger = logging.getLogger(__name__)


class WarmstartConfig(BaseConfig):
    """The supervised start of the tiny policy."""

    policy: TinyPolicyConfig = TinyPolicyConfig()
    """Sizes of the policy."""
    tokenizer_episodes: int = Field(56, ge=1)
    """Scripted episodes from whose messages the tokenizer is learnt."""
    episodes: int = Field(400, ge=1)
    """Scripted episodes that are imitated."""
    mixture: dict[str, float] = Field(default_factory=dict)
    """Behaviour -> share, over the defaults of `training.behaviours.BEHAVIOURS`."""
    max_concurrent: int = Field(12, ge=1)
    """Scripted episodes in flight."""
    epochs: int = Field(6, ge=1)
    """Passes over the episodes."""
    rows_per_step: int = Field(4, ge=1)
    """Conversations per optimizer step."""
    lr: float = Field(1e-3, gt=0)
    """Peak learning rate; falls to 0 along a cosine after a short rise."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay."""


@dataclass(frozen=True)
class ScriptedEpisode:
    """One recorded episode."""

    plan: Plan
    """What was played."""
    episode: vf.Episode
    """What became of it."""

    @property
    def reward(self) -> float:
        """The suite's reward."""
        reward = episode_reward(self.episode)
        assert reward is not None  # `record` lets no unscored episode pass
        return reward


async def record(
    env_config: vf.EnvConfig,
    plans: Sequence[Plan],
    *,
    model_dir: Path | None = None,
    max_tokens: int | None = None,
    max_concurrent: int = 12,
) -> list[ScriptedEpisode]:
    """Plays `plans` on the environment's tasks, in order (again from the first when there are fewer tasks).

    Args:
        env_config: the environment; its harness is `rlm_env`.
        plans: what to play.
        model_dir: checkpoint whose tokenizer and renderer give token ids. None plays in text.
        max_tokens: longest completion, as in training.
        max_concurrent: episodes in flight.

    Returns:
        One episode per plan, in order.

    Raises:
        EpisodeFailed: an episode failed for reasons of infrastructure.
    """
    renew_renderer_lock()
    tokenizer: PreTrainedTokenizerBase | None = None
    if model_dir is not None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(model_dir)
    harness = env_config.agent.harness  # type: ignore[attr-defined]
    env = load_environment(env_config)
    tasks = list(env.taskset)
    slots = asyncio.Semaphore(max_concurrent)
    server = ScriptedServer(plans, sub_system_prompt=sub_system(harness, False), tokenizer=tokenizer)
    async with server, env.serving():
        client: vf.ClientConfig
        if model_dir is None:
            client = vf.EvalClientConfig(base_url=server.base_url, api_key_var="RLM_POLICY_API_KEY")
        else:
            client = vf.TrainClientConfig(
                base_url=server.base_url,
                api_key_var="RLM_POLICY_API_KEY",
                renderer=renderer_config_for(model_dir),
                renderer_model_name=str(model_dir),
            )

        async def play(index: int) -> ScriptedEpisode:
            context = vf.ModelContext(
                model=f"{MODEL_PREFIX}{index}",
                client=client,
                sampling=vf.SamplingConfig(temperature=1.0, max_tokens=max_tokens),
            )
            async with slots:
                episode = await env.run_episode(tasks[index % len(tasks)], context)
            check_episode(episode)
            return ScriptedEpisode(plans[index], episode)

        async with asyncio.TaskGroup() as group:
            running = [group.create_task(play(index)) for index in range(len(plans))]
    return [task.result() for task in running]


def corpus_of(episodes: Sequence[ScriptedEpisode]) -> list[str]:
    """Every message text of the episodes; a prompt that many share is there as often as it was sent, which is
    what makes it short in tokens."""
    texts = []
    for scripted in episodes:
        for trace in scripted.episode.traces:
            texts += [node.message.content for node in trace.nodes if isinstance(node.message.content, str)]
    return texts


def conversations_of(episodes: Sequence[ScriptedEpisode]) -> list[BranchTokens]:
    """The recorded conversations, root and sub-LLM, as token ids and masks.

    Raises:
        ValueError: an episode's root is not exactly one conversation; it could not be imitated turn by turn.
    """
    rows: list[BranchTokens] = []
    for scripted in episodes:
        branches, counts = episode_branches(scripted.episode.traces)
        if counts.root_branches != 1:
            raise ValueError(
                f"a scripted episode ({scripted.plan.behaviour.name}) has {counts.root_branches} root "
                "conversations instead of 1: the renderer does not bridge turns"
            )
        rows += branches
    return rows


def rewards_by_behaviour(episodes: Sequence[ScriptedEpisode]) -> dict[str, tuple[int, float]]:
    """Behaviour -> (episodes, mean reward), by falling number of episodes."""
    rewards: dict[str, list[float]] = defaultdict(list)
    for scripted in episodes:
        rewards[scripted.plan.behaviour.name].append(scripted.reward)
    ranked = sorted(rewards.items(), key=lambda item: -len(item[1]))
    return {name: (len(values), sum(values) / len(values)) for name, values in ranked}


def imitate(
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[BranchTokens],
    config: WarmstartConfig,
    *,
    seed: int,
    work_dir: Path,
    say: Callable[[str], None] = logger.info,
) -> float:
    """Supervised training (TRL's `SFTTrainer`) on the sampled tokens of `rows`.

    Args:
        model: trained in place, on the CPU in float32.
        tokenizer: the policy's; used for padding only.
        rows: conversations; only tokens under their mask carry loss.
        config: epochs, batch, learning rate.
        seed: order of the rows.
        work_dir: where the trainer may write.
        say: told the loss of each epoch.

    Returns:
        Mean loss of the last tenth of the steps, in nats per token.
    """
    columns = {
        "input_ids": [row.input_ids_T.tolist() for row in rows],
        "labels": [
            [token if sampled else -100 for token, sampled in zip(row.input_ids_T, row.mask_T, strict=True)]
            for row in rows
        ],
    }
    arguments = SFTConfig(
        output_dir=str(work_dir),
        use_cpu=True,
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True},  # the rows are tokens already
        max_length=None,
        packing=False,
        train_sampling_strategy="group_by_length",
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.rows_per_step,
        learning_rate=config.lr,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        weight_decay=config.weight_decay,
        adam_beta2=0.98,
        max_grad_norm=1.0,
        logging_steps=1,
        logging_strategy="steps",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=seed,
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[_EpochLines(say)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)


@dataclass(frozen=True)
class Warmstart:
    """What the warm start made."""

    model_dir: Path
    """The checkpoint."""
    parameters: int
    """Size of the policy."""
    episodes: list[ScriptedEpisode]
    """The imitated episodes."""
    rows: int
    """Conversations in the training set."""
    sampled_tokens: int
    """Tokens that carried loss, per epoch."""
    loss: float
    """Final loss in nats per token."""

    @property
    def reward(self) -> float:
        """Mean reward of the imitated episodes."""
        return sum(scripted.reward for scripted in self.episodes) / len(self.episodes)

    @property
    def behaviours(self) -> dict[str, tuple[int, float]]:
        """See `rewards_by_behaviour`."""
        return rewards_by_behaviour(self.episodes)


async def build_tokenizer(
    env_config: vf.EnvConfig, config: WarmstartConfig, seed: int
) -> PreTrainedTokenizerFast:
    """First pass: scripted episodes in text, and the tokenizer learnt from them."""
    plans = make_plans(config.tokenizer_episodes, seed + 1_000_003, config.mixture)
    episodes = await record(env_config, plans, max_concurrent=config.max_concurrent)
    return train_tokenizer(corpus_of(episodes), config.policy.vocab_size)


def warm_start(
    model_dir: Path,
    env_config: vf.EnvConfig,
    config: WarmstartConfig,
    *,
    seed: int,
    max_tokens: int | None = None,
    clock: PhaseClock | None = None,
    say: Callable[[str], None] = logger.info,
) -> Warmstart:
    """Builds the tiny policy, records the scripted episodes and imitates them; see the module docstring.

    Args:
        model_dir: where the checkpoint is written. It is there, untrained, before the second pass.
        env_config: tasks to play on. They must not be those of the evaluation.
        config: sizes and amounts.
        seed: of plans, weights and row order.
        max_tokens: longest completion.
        clock: times the phases `tokenizer`, `scripted_episodes` and `imitation`.
        say: told of progress, a line at a time.
    """
    clock = clock or PhaseClock()
    with clock.phase("tokenizer"):
        tokenizer = asyncio.run(build_tokenizer(env_config, config, seed))
        model = build_model(config.policy, tokenizer, seed)
        save_policy(model_dir, model, tokenizer)
    size = parameter_count(model)
    say(f"tokenizer of {len(tokenizer)} tokens, policy of {size:,} parameters")

    with clock.phase("scripted_episodes"):
        plans = make_plans(config.episodes, seed, config.mixture)
        recording = record(
            env_config,
            plans,
            model_dir=model_dir,
            max_tokens=max_tokens,
            max_concurrent=config.max_concurrent,
        )
        episodes = asyncio.run(recording)
        rows = conversations_of(episodes)
    rewarded = sum(scripted.reward for scripted in episodes)
    say(
        f"{len(episodes)} scripted episodes, {rewarded:.0f} of them rewarded; imitating all, "
        f"{len(rows)} conversations, {sum(len(row.input_ids_T) for row in rows):,} tokens"
    )

    with clock.phase("imitation"), tempfile.TemporaryDirectory() as scratch:
        loss = imitate(model, tokenizer, rows, config, seed=seed, work_dir=Path(scratch), say=say)
        save_policy(model_dir, model, tokenizer)
    return Warmstart(model_dir, size, episodes, len(rows), sum(row.trained for row in rows), loss)


class _EpochLines(TrainerCallback):
    """Says the mean loss of each epoch."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._losses: list[float] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._losses.append(float(logs["loss"]))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = sum(self._losses) / max(1, len(self._losses))
        self._losses.clear()
        self._say(f"imitation: epoch {round(state.epoch)}/{round(args.num_train_epochs)}, loss {loss:.3f}")
