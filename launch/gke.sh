#!/usr/bin/env bash
# Fills a manifest's variables in and applies it. Again: leaves a job that runs alone, starts one that ended or failed
# anew, which resumes from the same workdir.
#
#   NAME=sort4 IMAGE=... BUCKET=... launch/gke.sh launch/gke_tpu.yaml
#
# The cluster needs JobSet (0.8 or newer) and the Cloud Storage FUSE driver.
# Not run on hardware: run with a stub of kubectl only.
#
# Variables: those at the top of the manifest.
set -euo pipefail
if [[ $# -ne 1 || ! -f "$1" ]]; then
  echo "usage: $0 launch/gke_tpu.yaml | launch/gke_gpu.yaml" >&2
  exit 2
fi

# Lines such as `#   HOSTS  what it is [1]` name the variables; brackets hold the default.
manifest=$(<"$1")
while read -r _ variable text; do
  value=$(sed -n 's/.*\[\(.*\)\]$/\1/p' <<<"$text")
  if [[ -z "${!variable+set}" && "$text" != *']' ]]; then
    echo "$variable is not set; see the top of $1" >&2
    exit 2
  fi
  value=${!variable-$value}
  export "$variable=$value"
  manifest=${manifest//"\${$variable}"/"$value"}
done < <(grep -E '^#   [A-Z_]+  ' "$1")

# A JobSet cannot be changed once it is there, and one that has ended does not start again.
if [[ -n $(kubectl get jobset "$NAME" --ignore-not-found --output=jsonpath='{.status.terminalState}') ]]; then
  kubectl delete jobset "$NAME"
fi
kubectl apply --filename=- <<<"$manifest"
