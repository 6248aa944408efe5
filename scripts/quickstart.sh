#!/usr/bin/env bash
# The main job on a laptop: a tiny policy learns to use the RLM scaffold by GRPO, served by real vLLM on the
# CPU. Writes outputs/quickstart/{summary.json,reward_curve.png,traces}. Arguments go to training.quickstart
# (--seed 1, --output-dir DIR, ...).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
exec .venv/bin/python -m training.quickstart "$@"
