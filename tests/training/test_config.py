"""Settings: shipped files, errors that name the cure, and a docstring under every field."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from pydantic import BaseModel
from pydantic_config import ConfigFileError
from pydantic_config.cli import _extract_field_docstrings

from training.config import TrainConfig, load_config
from training.evaluate import EvaluateConfig, eval_environment

ROOT = Path(__file__).parents[2]
TRAIN = sorted((ROOT / "configs" / "train").glob("*.toml"))
NODE = [path for path in TRAIN if path.stem.endswith("_node_8gpu")]
ACCELERATE = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))
SLURM = sorted((ROOT / "configs" / "slurm").glob("*.sbatch"))
MINIMAL = ["--model.path", "m", "--env.taskset.id", "verbatim-copy"]


def load(*argv) -> TrainConfig:
    return load_config([str(arg) for arg in argv], TrainConfig)


@pytest.mark.parametrize("path", TRAIN, ids=lambda path: path.stem)
def test_shipped_training_configs(path):
    config = load("@", path)
    assert config.env.agent.harness.id == "rlm-env"
    assert config.env.agent.runtime.type == "subprocess"
    # What the rollout process gets is the same configuration.
    again = TrainConfig.model_validate_json(config.model_dump_json())
    assert again.model_dump() == config.model_dump()
    assert type(again.env.taskset) is type(config.env.taskset)
    trained, held_out = config.env.taskset, eval_environment(config).taskset
    assert any(getattr(trained, name, None) != getattr(held_out, name, None) for name in ("split", "part"))
    if config.batch.token_budget is not None:
        assert config.batch.token_budget >= config.vllm.max_model_len, "a full conversation must fit a row"
    assert config.env.agent.harness.limits.episode_seconds < config.rollout.episode_seconds


def test_there_are_configs_for_cpu_one_gpu_and_a_node_with_each_suite():
    assert {path.stem for path in TRAIN} >= {"quickstart_cpu", "verbatim_one_gpu"}
    suites = {load("@", path).env.taskset.id for path in NODE}
    assert suites == {"verbatim-copy", "math-python", "oolong", "deepdive"}


@pytest.mark.parametrize("path", NODE, ids=lambda path: path.stem)
def test_gpus_are_split_between_trainer_and_server(path):
    config = load("@", path)
    command = path.read_text()
    trainer = set(map(int, command.split("CUDA_VISIBLE_DEVICES=")[1].split()[0].split(",")))
    fsdp = yaml.safe_load((ROOT / "configs/accelerate/fsdp2_6gpu.yaml").read_text())
    assert fsdp["num_processes"] == len(trainer)
    assert trainer | set(config.vllm.gpu_ids) == set(range(8))
    assert not trainer & set(config.vllm.gpu_ids)


@pytest.mark.parametrize("path", ACCELERATE, ids=lambda path: path.stem)
def test_shipped_accelerate_configs(path):
    """accelerate itself refuses unknown keys."""
    loaded = load_config_from_file(str(path))
    assert loaded.num_machines == 1
    if loaded.distributed_type == "FSDP":
        assert loaded.fsdp_config["fsdp_version"] == 2


@pytest.mark.parametrize("path", SLURM, ids=lambda path: path.stem)
def test_shipped_slurm_scripts(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    assert "--signal=B:TERM@" in text
    assert "trainer.pid" in text
    for word in text.replace("}", " ").replace("-configs", " configs").split():
        if word.startswith("configs/") and not word.endswith(".sbatch"):
            assert (ROOT / word).is_file(), word


def test_command_line_over_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        '[model]\npath = "m"\n[env.taskset]\nid = "verbatim-copy"\ntarget_length = 77\n[optim]\nlr = 1e-3\n'
    )
    config = load("@", file, "--optim.lr", "2e-4", "--env.taskset.seed", "9", "--run.report-to", "wandb")
    assert (config.optim.lr, config.env.taskset.seed, config.env.taskset.target_length) == (2e-4, 9, 77)
    assert config.run.report_to == ["wandb"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*MINIMAL, "--optim.lrr", "1"], "unknown setting 'optim.lrr'; did you mean 'optim.lr'?"),
        ([*MINIMAL, "--optimm.lr", "1"], "unknown setting 'optimm'; did you mean 'optim'?"),
        (
            [*MINIMAL, "--env.taskset.target-lenght", "9"],
            "unknown setting 'env.taskset.target_lenght'; did you mean 'env.taskset.target_length'?",
        ),
        (
            [*MINIMAL, "--env.agent.harness.id", "rlm-env", "--env.agent.harness.limits.max-turn", "9"],
            "did you mean 'env.agent.harness.limits.max_turns'?",
        ),
        # The nearest key is named even when something else is wrong too.
        (["--rollout.max-stalenes", "1"], "did you mean 'rollout.max_staleness'?"),
        (["--env.taskset.id", "verbatim-copy"], "model.path is not set"),
        (["--model.path", "m"], "env.taskset.id is not set"),
        ([*MINIMAL, "--env.agent.harness.id", "rlm-env"], "escape a bad reward by stalling"),
        (
            [
                *MINIMAL,
                "--env.agent.harness.id",
                "rlm-env",
                "--env.agent.harness.limits.episode-seconds",
                "600",
            ],
            "episode_seconds is 600; it has to be below rollout.episode_seconds = 600",
        ),
        (
            [
                *[*MINIMAL, "--env.agent.harness.id", "rlm-env", "--env.agent.timeout.rollout", "50"],
                *["--env.agent.harness.limits.episode-seconds", "60"],
            ],
            "below env.agent.timeout.rollout = 50",
        ),
        ([*MINIMAL, "--batch.token-budget", "100", "--batch.max-row-tokens", "200"], "Lower max_row_tokens"),
        ([*MINIMAL, "--env.agent.sampling.temperature", "0.5"], "Move the values there"),
        ([*MINIMAL, "--grpo.group-size", "1"], "greater than or equal to 2"),
    ],
)
def test_errors_name_the_setting_and_the_cure(argv, message):
    with pytest.raises(ConfigFileError) as caught:
        load(*argv)
    assert message in str(caught.value)


def test_an_unknown_key_in_a_file_is_named(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[model]\npath = "m"\n[env.taskset]\nid = "verbatim-copy"\n[grpo]\ngrup_size = 4\n')
    with pytest.raises(ConfigFileError, match=r"'grpo\.grup_size'; did you mean 'grpo\.group_size'"):
        load("@", file)


def test_the_row_limit_follows_the_token_budget():
    assert load(*MINIMAL).batch.row_limit is None
    assert load(*MINIMAL, "--batch.token-budget", "100").batch.row_limit == 100
    assert load(*MINIMAL, "--batch.token-budget", "100", "--batch.max-row-tokens", "50").batch.row_limit == 50


def test_every_setting_explains_itself():
    seen, missing = set(), []

    def visit(cls):
        if cls in seen or not cls.__module__.startswith("training."):
            return
        seen.add(cls)
        documented = _extract_field_docstrings(cls)
        for name, field in cls.model_fields.items():
            if name not in documented and not field.description:
                missing.append(f"{cls.__name__}.{name}")
            default = field.get_default(call_default_factory=True)
            if isinstance(default, BaseModel):
                visit(type(default))

    visit(EvaluateConfig)
    assert not missing
    assert len(seen) > 10
