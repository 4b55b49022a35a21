#!/usr/bin/env bash
# Starts copies of a command on this machine that form one JAX job, each with virtual CPU devices of its own:
#
#   launch/local_multiprocess.sh 2 2 launch/train.sh --config=configs/sort2.py --workdir=runs/sort2 --distributed
#
# starts 2 processes of 2 devices. Lines of output begin with the number of their process. SIGTERM, SIGHUP and Ctrl-C go
# to all as SIGTERM, the signal that JAX agrees on between processes. The exit status is the first that is not 0; GRACE seconds
# after it the others, which may wait for the lost one for ever, are killed.
#
# Variables:
#   GRACE  seconds, 30 by default
#   PORT   of process 0 on 127.0.0.1, by default one that is free
set -euo pipefail

if [[ $# -lt 3 || ! "$1 $2" =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]]; then
  echo "usage: $0 PROCESSES DEVICES COMMAND [ARGUMENT ...]" >&2
  exit 2
fi
processes=$1 devices=$2
shift 2

port=${PORT:-}
until [[ -n "$port" ]]; do
  port=$((20000 + RANDOM % 10000))  # below the ports that the kernel gives out
  if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then port=; fi  # somebody answers
done
export JAX_PLATFORMS=cpu JAX_NUM_PROCESSES="$processes"
export JAX_COORDINATOR_ADDRESS="127.0.0.1:$port" JAX_COORDINATOR_BIND_ADDRESS="127.0.0.1:$port"
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"

folder=$(mktemp -d)
pids=() readers=()
send() {
  for pid in "${pids[@]}"; do kill "-$1" "$pid" 2>/dev/null || true; done
}
trap 'send KILL; rm -rf "$folder"' EXIT
trap 'send TERM' TERM INT HUP

for ((i = 0; i < processes; i++)); do
  mkfifo "$folder/$i"
  (trap '' TERM INT HUP; exec sed --unbuffered "s/^/[$i] /" <"$folder/$i") &
  readers+=($!)
  JAX_PROCESS_ID=$i "$@" >"$folder/$i" 2>&1 &
  pids+=($!)
done

status=0 deadline=
while [[ ${#pids[@]} -gt 0 ]]; do
  for i in "${!pids[@]}"; do
    kill -0 "${pids[i]}" 2>/dev/null && continue
    code=0
    wait "${pids[i]}" || code=$?
    unset 'pids[i]'
    if [[ $status -eq 0 && $code -ne 0 ]]; then
      status=$code deadline=$((SECONDS + ${GRACE:-30}))
      echo "process $i ended with status $code" >&2
    fi
  done
  if [[ -n "$deadline" && $SECONDS -ge $deadline ]]; then send KILL; fi
  sleep 0.1
done
wait "${readers[@]}"
exit "$status"
