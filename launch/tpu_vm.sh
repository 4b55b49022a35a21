#!/usr/bin/env bash
# Cloud TPU VM: makes the slice if it is not there, installs what is committed here on all its hosts, and trains:
#
#   TPU_NAME=earl ZONE=us-west4-a PROJECT=my-project BUCKET=my-bucket \
#     launch/tpu_vm.sh --config=configs/sort4.py --workdir=/shared/sort4
#
# The same command resumes; a slice that was preempted is made anew, again and again until the run ends. To save and
# stop: run `pkill -TERM -f earl_jax.train` on a host (gcloud compute tpus tpu-vm ssh), then Ctrl-C here. The slice
# costs money until you delete it (gcloud compute tpus tpu-vm delete).
#
# Not run on hardware: run with a stub of gcloud only.
#
# Variables:
#   TPU_NAME, ZONE, PROJECT, BUCKET  to be set; the bucket is mounted as /shared on all hosts
#   ACCELERATOR_TYPE                 v5litepod-16 by default
#   RUNTIME_VERSION                  of the VM's software, v2-alpha-tpuv5-lite by default; it belongs to the type
#   SPOT                             1 by default; 0 for a slice that is not taken away, at full price
set -euo pipefail
: "${TPU_NAME:?set TPU_NAME to the name of the slice, new or old}"
: "${ZONE:?set ZONE to a zone that has the accelerator, such as us-west4-a}"
: "${PROJECT:?set PROJECT to your Google Cloud project}"
: "${BUCKET:?set BUCKET to the name of a Cloud Storage bucket, without gs://}"
slice=("$TPU_NAME" --zone="$ZONE" --project="$PROJECT")
vm() { gcloud compute tpus tpu-vm "$@"; }

make_slice() {
  local state spot=()
  state=$(vm describe "${slice[@]}" --format='value(state)' 2>/dev/null) || true
  case $state in
    READY) return ;;
    PREEMPTED | TERMINATED) vm delete "${slice[@]}" --quiet ;;  # a spot slice cannot be started again
    '') ;;
    *) echo "$TPU_NAME is $state; wait until it is READY, or delete it" >&2; exit 1 ;;
  esac
  [[ "${SPOT:-1}" == 0 ]] || spot=(--spot)
  vm create "${slice[@]}" "${spot[@]}" \
    --accelerator-type="${ACCELERATOR_TYPE:-v5litepod-16}" --version="${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}"
}

on_all_hosts() { vm ssh "${slice[@]}" --worker=all --command="$1"; }

archive=$(mktemp -d)/earl_jax.tar.gz
trap 'rm -r "$(dirname "$archive")"' EXIT
git -C "$(dirname "${BASH_SOURCE[0]}")/.." archive --output="$archive" HEAD
# flock: a process that outlived its connection still holds the TPU; it ends when it next writes a line.
train="cd earl_jax && PYTHON=\$HOME/earl_jax_venv/bin/python SHARED_DIR=/shared flock --timeout=600 \$HOME/earl_jax.lock"
train+=" launch/train.sh $(printf '%q ' "$@") --distributed"

while true; do
  make_slice
  vm scp "$archive" "${slice[0]}:" "${slice[@]:1}" --worker=all
  on_all_hosts "mkdir -p earl_jax && tar -xzf earl_jax.tar.gz -C earl_jax &&
    BUCKET=$BUCKET earl_jax/launch/mount_gcs.sh && EXTRA=tpu earl_jax/launch/install.sh"
  status=0
  on_all_hosts "$train" || status=$?
  case $status in
    75 | 255) sleep 30 ;;  # stopped and saved; the connection was lost: in both cases perhaps the whole slice
    *) exit "$status" ;;
  esac
done
