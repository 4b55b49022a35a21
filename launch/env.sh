# shellcheck shell=bash
# Environment of a run, sourced by train.sh. What is set already stays; a flag that is named already is not added.
# GPU and TPU part: Not run on hardware: the flags are known to jaxlib 0.10.2 and libtpu 0.0.42, their effect is unmeasured.
#
# Variables:
#   JAX_PLATFORMS  cuda, tpu or cpu, the first of a list counts; by default what this machine has
#   SHARED_DIR     folder that all hosts see and only you can write to, for compiled programs; none by default

# flag VARIABLE --name=value
flag() {
  # Before the user's own: of two that contradict each other, the later counts.
  [[ " ${!1:-} " == *" ${2%%=*}="* ]] || export "$1=$2${!1:+ ${!1}}"
}

# A line that waits in a buffer is lost when the machine is taken away.
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}"

if [[ -n "${SHARED_DIR:-}" ]]; then
  # A run that comes back on another host finds its programs compiled. JAX runs what it finds there: keep others out.
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$SHARED_DIR/jax_cache}"
  # The small programs are many; JAX would only keep those that took a second. earl_jax does the same for its own cache.
  export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0}"
fi

if [[ -z "${JAX_PLATFORMS:-}" ]]; then
  # Naming the platform turns an accelerator that does not start into an error; else JAX goes on, slowly, on the CPU.
  if compgen -G '/dev/nvidia[0-9]*' >/dev/null; then
    export JAX_PLATFORMS=cuda,cpu
  # TPU hosts show their chips as accel devices, or under vfio from v5e on; the same reason.
  elif compgen -G '/dev/accel[0-9]*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
    export JAX_PLATFORMS=tpu,cpu
  fi
fi

case "${JAX_PLATFORMS:-cpu}" in
  cuda* | gpu*)
    # Starts a collective early and computes while it is under way; JAX's and NVIDIA's first advice for several GPUs.
    flag XLA_FLAGS --xla_gpu_enable_latency_hiding_scheduler=true
    # JAX takes 0.75 of the memory, for a GPU shared with a display. A rest is left to NCCL and cuBLAS. The older name
    # of the variable beside the newer one is an error.
    [[ -n "${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ]] || export XLA_CLIENT_MEM_FRACTION="${XLA_CLIENT_MEM_FRACTION:-0.9}"
    # Not set: --xla_gpu_deterministic_ops=true. It makes a resumed run equal to one never stopped, to the bit, at a cost
    # in speed; put it into XLA_FLAGS where you need that.
    ;;
  tpu*)
    # Collectives run beside the computation instead of before it: all-gathers of parameters that fsdp has split, …
    flag LIBTPU_INIT_ARGS --xla_enable_async_all_gather=true
    # … fused into the loops that they overlap with, …
    flag LIBTPU_INIT_ARGS --xla_tpu_enable_async_collective_fusion=true
    # … all-gathers among them, …
    flag LIBTPU_INIT_ARGS --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
    # … spread over several steps of such a loop where one is too short, …
    flag LIBTPU_INIT_ARGS --xla_tpu_enable_async_collective_fusion_multiple_steps=true
    # … and while the tensor cores work.
    flag LIBTPU_INIT_ARGS --xla_tpu_overlap_compute_collective_tc=true
    ;;
  *) ;;  # CPU: nothing. earl_jax takes the number of virtual devices from config.mesh, unless XLA_FLAGS is set.
esac
unset -f flag
