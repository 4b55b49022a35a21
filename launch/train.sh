#!/usr/bin/env bash
# Trains with the environment of env.sh; what every engine here starts. The exit status is that of earl_jax.train:
#   0   finished
#   75  stopped by a signal, and saved (with --distributed): start it again, the same workdir resumes
#   2   something in the command or the config has to be fixed first
#
# Variables:
#   PYTHON  the interpreter that has earl_jax, by default `python`; for others see env.sh
set -euo pipefail

if [[ " $*" != *' --config='* || " $*" != *' --workdir='* ]]; then
  echo "usage: $0 --config=FILE --workdir=FOLDER [--distributed] [--config.FIELD=VALUE ...]" >&2
  exit 2
fi
# shellcheck source-path=SCRIPTDIR source=env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "${PYTHON:-python}" -m earl_jax.train "$@"  # exec: signals reach Python itself
