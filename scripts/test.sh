#!/usr/bin/env bash
# Lint, types and all tests. Arguments go to pytest (-k name, -m "not vllm", ...).
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
exec .venv/bin/python -m pytest "$@"
