#!/usr/bin/env bash
# Mounts a Cloud Storage bucket where all hosts of a TPU VM slice look for it, once. Needs sudo, on Debian or Ubuntu.
# Not run on hardware: checked for syntax only.
#
# Variables:
#   BUCKET      name of the bucket, without gs://, to be set; one with hierarchical namespace, see README.md
#   SHARED_DIR  where to, /shared by default
set -euo pipefail
: "${BUCKET:?set BUCKET to the name of a Cloud Storage bucket, without gs://}"
SHARED_DIR=${SHARED_DIR:-/shared}

if ! command -v gcsfuse >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc source=https://packages.cloud.google.com/apt
  curl -fsSL "$source/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
  sudo apt-get update -qq
  sudo apt-get install -y -qq gcsfuse
fi
if ! mountpoint -q "$SHARED_DIR"; then
  sudo install -d -o "$USER" "$SHARED_DIR"
  # A flat bucket renames a checkpoint's folder file by file, and refuses where there are more than the limit.
  gcsfuse --implicit-dirs --rename-dir-limit=100000 "$BUCKET" "$SHARED_DIR"
fi
