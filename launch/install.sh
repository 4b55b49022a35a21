#!/usr/bin/env bash
# Installs this repository on a machine whose own Python may be too old, as on TPU VMs: uv brings one. Run again, it
# changes nothing that is up to date.
# Not run on hardware: run on a machine with a CPU only.
#
# Variables:
#   EXTRA  cuda, tpu or cpu, to be set
#   VENV   folder of the virtual environment, ~/earl_jax_venv by default
set -euo pipefail
: "${EXTRA:?set EXTRA to cuda, tpu or cpu}"
VENV=${VENV:-$HOME/earl_jax_venv}

case $EXTRA in
  cuda | tpu) extra="[$EXTRA]" ;;
  cpu) extra='' ;;
  *) echo "EXTRA=$EXTRA: unknown; set EXTRA to cuda, tpu or cpu" >&2; exit 2 ;;
esac
export PATH="$HOME/.local/bin:$PATH"
command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
uv venv --quiet --allow-existing --python '>=3.11' "$VENV"
uv pip install --quiet --python "$VENV/bin/python" --editable "$(dirname "${BASH_SOURCE[0]}")/..$extra"
