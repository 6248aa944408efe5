"""FSDP2 on the CPU, with the settings of the shipped launcher config.

FSDP2 itself shards over gloo as over NCCL; it is accelerate that asks for it on accelerators alone.
"""

import os
from pathlib import Path
from typing import Any

import accelerate.state
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_multi_gpu_env

CONFIG = Path(__file__).parents[2] / "configs/accelerate/fsdp2_6gpu.yaml"


def launcher_environment(mixed_precision: str) -> dict[str, str]:
    """What `accelerate launch --config_file CONFIG --mixed_precision ...` puts into the environment."""
    arguments = ["--config_file", str(CONFIG), "--mixed_precision", mixed_precision, "script.py"]
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    made = prepare_multi_gpu_env(args)
    chosen = {name: made[name] for name in made if name.startswith(("FSDP_", "ACCELERATE_"))}
    assert chosen["ACCELERATE_USE_FSDP"] == "true"
    return os.environ | chosen


def shard_on_cpu() -> None:
    """Let accelerate take processes on the CPU for ones that FSDP applies to. Before the trainer is made."""
    state = accelerate.state.AcceleratorState
    make = state.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        plugin = kwargs.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == accelerate.state.DistributedType.MULTI_CPU:
            # What `AcceleratorState.__init__` does on accelerators.
            self.distributed_type = accelerate.state.DistributedType.FSDP
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = plugin
            accelerate.state.PartialState._shared_state["distributed_type"] = self.distributed_type

    state.__init__ = init
