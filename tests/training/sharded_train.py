"""`training.train` under torchrun, sharded by FSDP2 on the CPU."""

import sys

# The rollout process is spawned from here and so imports this file again.
if __name__ == "__main__":
    from tests.training.sharded import shard_on_cpu
    from training.train import main

    shard_on_cpu()
    sys.exit(main())
