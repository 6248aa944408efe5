"""GRPO training of an RLM policy: TRL's `AsyncGRPOTrainer`, fed by verifiers episodes and served by vLLM.

`training.train` is what `accelerate launch` runs. Importing this package, or the modules that hold config
classes, imports neither torch nor TRL, so that config files can be read and checked without them.
"""

import logging
import os

# On the console every line should be about the run. TRL warns at every import of its experimental trainer;
# its version is pinned in `training.trl_seams`.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
# vLLM, which TRL imports for its weight transfer, warns of a Triton that a CPU has no use for.
logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
