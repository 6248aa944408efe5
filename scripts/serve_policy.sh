#!/usr/bin/env bash
# Serves a checkpoint with vLLM the way training needs it: token ids in and out, log-probabilities of the distribution
# that was sampled from, and the endpoints that take new weights. On CUDA where there is a GPU, else on the CPU.
#
#   bash scripts/serve_policy.sh MODEL [--name NAME] [--port PORT] [any field of VLLMConfig, e.g. --max-model-len 8192]
#
# Trainer and evaluations then use it by `vllm.url = "http://127.0.0.1:8000"`. Stops on Ctrl-C.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=python3
[[ -x .venv/bin/python ]] && python=.venv/bin/python
exec "$python" -m training.serve "$@"
