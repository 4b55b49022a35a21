"""How well a training step uses the devices: FLOPs of the update, bytes read in decoding.

  python benchmarks/throughput.py --size=0.5B [--mesh=1,-1,1 --prompts=16 --group=8 --prompt_length=64 --response=512
      --micro_batch=16 --dtype=bfloat16 --remat=full --repeats=5 --out=FILE.json]

Random weights in the shape of a Qwen2.5 model, or SmolLM2's, are made on the devices; there is no checkpoint. Every
row is full and every token of its response a decision. Programs are compiled and run once before they are timed; the
figures are medians, with the range of all repeats. It prints one row of markdown and one line of JSON.

Update: 6 FLOPs per weight and token, forward and backward; the embedding counts as the head, for tokens of the response
alone, and rows that share a prompt read it once. Attention: 12 FLOPs per layer, feature of a head, and pair of a token
and one it sees. What `remat` computes again is not counted. MFU is this over time and the devices' peak in bfloat16,
whatever the dtype.

Decoding: tokens over the time of a rollout, prompts and all. A slot has to read every weight once, and keys and values
of all earlier slots: those bytes over the bandwidth of all devices are the shortest time, and over the time taken the
bandwidth that was put to use. What else is read, such as logits and empty slots of the cache, is not counted.

Both ceilings are also measured on the spot, on one device: a product of two square matrices in the dtype of the
computation, and a copy. On a CPU nothing else is known.
"""

import dataclasses
import json
import pathlib
import platform
import statistics
import sys
import time
from typing import NamedTuple

from absl import flags
import grid  # beside this file, as are the next two
import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import programs
from shapes import QWEN, SMOLLM2, TINY

from earl_jax import __version__
from earl_jax.acting import policy
from earl_jax.config import AlgorithmConfig, Config, MeshConfig, RolloutConfig, UserError
from earl_jax.devices import processes, sharding
from earl_jax.learning import update
from earl_jax.learning.batches import abstract_batch, Batch
from earl_jax.model.products import product
from earl_jax.model.transformer import ModelConfig
from earl_jax.run import cli
from earl_jax.run.experiment import Experiment
from earl_jax.run.problems import abstract_rollout, draw

SIZES = QWEN | SMOLLM2 | {'tiny': TINY}


class Device(NamedTuple):
  """Peak FLOP/s without sparsity, and bytes/s of memory: as the maker states them (in bfloat16), or as measured."""

  flops: float
  bandwidth: float


# First words of `device_kind` -> figures; the first that fits.
# NVIDIA A100, H100 SXM and H200 datasheets (tensor cores, half of what is stated "with sparsity"):
#   https://www.nvidia.com/en-us/data-center/{a100,h100,h200}/
# TPU: https://cloud.google.com/tpu/docs/{v5e,v5p,v6e}, per chip
DEVICES = {
    'NVIDIA A100-SXM4-80GB': Device(312e12, 2.039e12),
    'NVIDIA A100-SXM4-40GB': Device(312e12, 1.555e12),
    'NVIDIA H100 80GB HBM3': Device(989e12, 3.35e12),
    'NVIDIA H200': Device(989e12, 4.8e12),
    'TPU v5 lite': Device(197e12, 819e9),  # v5e
    'TPU v5e': Device(197e12, 819e9),
    'TPU v5': Device(459e12, 2.765e12),  # v5p
    'TPU v6 lite': Device(918e12, 1.64e12),  # v6e
    'TPU v6e': Device(918e12, 1.64e12),
}


def known(kind: str) -> Device | None:
  return next((device for name, device in DEVICES.items() if kind.startswith(name)), None)


def measured(dtype: str) -> Device:
  """What one device makes of a matrix product, and of a copy, which reads and writes: the best of some repeats."""
  size = 1_024 if jax.default_backend() == 'cpu' else 8_192
  square = jax.random.normal(jax.random.key(0), (size, size), dtype)
  large = jnp.zeros(64 * size * size // square.dtype.itemsize, dtype)

  def fastest(f, x):
    f, seconds = jax.jit(f), []
    for _ in range(6):
      began = time.perf_counter()
      jax.block_until_ready(f(x))
      seconds.append(time.perf_counter() - began)
    return min(seconds[1:])

  flops = 2 * size**3 / fastest(lambda x: product(x, x), square)
  return Device(flops, 2 * large.nbytes / fastest(lambda x: x + 1, large))


def weights(model: ModelConfig) -> tuple[int, int]:
  """(of the layers' matrices, of the head)."""
  heads = (2 * model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim
  layer = model.hidden_size * (heads + 3 * model.intermediate_size)
  return model.num_hidden_layers * layer, model.vocab_size * model.hidden_size


def update_flops(experiment: Experiment) -> float:
  """Of one update with full rows; see the module."""
  model, rollout, shared = experiment.model, experiment.config.rollout, experiment.scoring.rows_per_prompt
  rows, prompt, response = rollout.prompts * rollout.group, rollout.prompt_length, rollout.response_length
  layers, head = weights(model)
  prompts = rows // shared
  # The last token is chosen, but not read.
  read = prompts * prompt + rows * (response - 1)
  pairs = prompts * _pairs(0, prompt) + rows * _pairs(prompt, prompt + response - 1)
  attention = 12 * model.num_hidden_layers * model.num_attention_heads * model.head_dim * pairs
  return 6.0 * (layers * read + head * rows * response) + attention


def _pairs(first: int, end: int) -> int:
  """Of slots first … end - 1 with themselves and those before them."""
  return (first + 1 + end) * (end - first) // 2


def decode_bytes(experiment: Experiment) -> float:
  """Read in decoding all slots of a response: weights, and keys and values so far."""
  model, rollout = experiment.model, experiment.config.rollout
  width, rows = np.dtype(model.dtype).itemsize, rollout.prompts * rollout.group
  slot = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim  # a row's keys and values
  slots = _pairs(rollout.prompt_length, rollout.prompt_length + rollout.response_length)
  return width * float(rollout.response_length * sum(weights(model)) + rows * slot * slots)


def full_batch(experiment: Experiment) -> Batch:
  """Full rows of random tokens, each of them a decision in language, on the mesh."""
  rollout, rng = experiment.config.rollout, np.random.default_rng(0)
  shapes = abstract_batch(abstract_rollout(experiment))
  batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
  tokens = rng.integers(experiment.interface.space.vocab_size, size=batch.trajectory.tokens.shape, dtype=np.int32)
  decided = np.broadcast_to(np.arange(experiment.slots) >= rollout.prompt_length, tokens.shape)
  trajectory = batch.trajectory._replace(
      tokens=tokens, end=np.full_like(batch.trajectory.end, experiment.slots), language=decided,
      actions=np.where(decided, tokens, -1),
  )
  advantages = rng.standard_normal(len(tokens)).astype(np.float32)
  return processes.place(batch._replace(trajectory=trajectory, advantages=advantages), experiment.rows)


def time_update(
    experiment: Experiment, state: update.TrainState, repeats: int
) -> tuple[update.TrainState, list[float]]:
  """Seconds of each repeat, and the state after them."""
  advance, split, seconds = programs.advance(experiment), programs.split(experiment), []
  batch = full_batch(experiment)
  with jax.set_mesh(experiment.mesh):
    for _ in range(1 + repeats):
      began = time.perf_counter()
      state, _ = jax.block_until_ready(advance(state, batch, split))
      seconds.append(time.perf_counter() - began)
  return state, seconds[1:]


def time_rollout(experiment: Experiment, params: policy.Params, repeats: int) -> tuple[int, list[float]]:
  """Tokens decoded in one rollout, and seconds of each repeat. Nothing ends a row but the end of its space."""
  rollout, seconds = experiment.config.rollout, []
  prompts, rows = draw(experiment, stage=0, step=0).prompts, np.arange(rollout.prompts * rollout.group)
  decoding = dataclasses.replace(experiment.decoding(rollout.group), end_tokens=())
  for repeat in range(1 + repeats):
    key = jax.random.key(repeat)
    began = time.perf_counter()
    trajectory = jax.block_until_ready(experiment.rollout(params, prompts, rows, key, decoding=decoding))
    seconds.append(time.perf_counter() - began)
    tokens = int(jax.numpy.sum(trajectory.end - rollout.prompt_length))
  return tokens, seconds[1:]


def build(values: flags.FlagValues, devices: list[jax.Device] | None = None) -> Experiment:
  """What `define_shapes` describes, on these devices, by default all.

  Raises:
    UserError: sizes do not fit each other or the mesh.
  """
  if values.size not in SIZES:
    raise UserError(f'--size={values.size}: choose one of {", ".join(SIZES)}')
  if len(values.mesh) != 3 or not all(size.lstrip('-').isdecimal() for size in values.mesh):
    raise UserError(f'--mesh={",".join(values.mesh)}: give devices along data, fsdp and tensor, such as 1,-1,1')
  rows = values.prompts * values.group
  if rows % values.micro_batch:
    raise UserError(f'--micro_batch={values.micro_batch}: choose a divisor of prompts * group = {rows}')
  model = dataclasses.replace(SIZES[values.size], dtype=values.dtype, remat=values.remat)
  rollout = RolloutConfig(values.prompts, values.group, values.prompt_length, values.response, chunk=rows)
  algorithm = AlgorithmConfig(mini_batches=1, micro_batch=values.micro_batch)
  mesh = sharding.make_mesh(MeshConfig(*map(int, values.mesh)), devices)
  return programs.build(model, mesh, rollout, algorithm)


def spread(seconds: list[float]) -> str:
  """Median and range."""
  return f'{statistics.median(seconds):.3g} ({min(seconds):.3g} - {max(seconds):.3g})'


def share(part: float | None) -> str:
  """In per cent; nothing where it is not known."""
  return '' if part is None else f'{part:.1%}'


def tell(facts: dict, out: str | None) -> None:
  """Prints a line of JSON and writes it to the file `out`, if there is one."""
  text = json.dumps(facts)
  print(text)
  if out:
    pathlib.Path(out).write_text(text + '\n', 'utf-8')


def define_shapes(values: flags.FlagValues) -> None:
  flags.DEFINE_string('size', None, f'Of the model: {", ".join(SIZES)}.', flag_values=values)
  flags.DEFINE_list('mesh', ['1', '-1', '1'], 'Devices along data, fsdp, tensor; -1 = the rest.', flag_values=values)
  for name, default, what in (
      ('prompts', 16, 'Problems per step.'), ('group', 8, 'Rollouts of each.'), ('prompt_length', 64, 'Slots of it.'),
      ('response', 512, 'Slots of it.'), ('micro_batch', 16, 'Rows per pass.'),
  ):
    flags.DEFINE_integer(name, default, what, 1, flag_values=values)
  flags.DEFINE_enum('dtype', 'bfloat16', ['float32', 'bfloat16'], 'Of the computation.', flag_values=values)
  flags.DEFINE_enum('remat', 'full', ['none', 'dots', 'full'], 'As config.remat.', flag_values=values)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  define_shapes(values)
  flags.DEFINE_integer('repeats', 5, 'Timed, after one that is not.', 1, flag_values=values)
  flags.DEFINE_string('out', None, 'File for the JSON, as well.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  cli.prepare_jax(Config(mesh=MeshConfig(data=-1)))
  experiment = build(values)
  state = programs.random_state(experiment)
  count, kind = experiment.mesh.size, jax.devices()[0].device_kind
  state, update_seconds = time_update(experiment, state, values.repeats)
  tokens, rollout_seconds = time_rollout(experiment, state.params, values.repeats)
  flops, read, device = update_flops(experiment), decode_bytes(experiment), known(kind)
  ceiling = measured(values.dtype)
  step, rollout = statistics.median(update_seconds), statistics.median(rollout_seconds)
  facts = dict(
      size=values.size, parameters=sum(x.size for x in jax.tree.leaves(state.params)), dtype=values.dtype,
      remat=values.remat, devices=count, device_kind=kind, mesh=dict(experiment.mesh.shape),
      rows=values.prompts * values.group, update_seconds=update_seconds, update_flops=flops,
      update_flops_per_second=flops / step, rollout_seconds=rollout_seconds, decoded_tokens=tokens,
      tokens_per_second=tokens / rollout, decode_bytes=read, decode_bytes_per_second=read / rollout,
      mfu=device and flops / step / (count * device.flops),
      of_bandwidth=device and read / rollout / (count * device.bandwidth), measured_flops=ceiling.flops,
      measured_bandwidth=ceiling.bandwidth, of_measured_flops=flops / step / (count * ceiling.flops),
      of_measured_bandwidth=read / rollout / (count * ceiling.bandwidth), attention=experiment.model.attention,
      command=f'python {" ".join(sys.argv)}', python=platform.python_version(), jax=jax.__version__,
      jaxlib=jaxlib.__version__, earl_jax=__version__, backend=jax.extend.backend.get_backend().platform_version,
  )
  print(grid.markdown([
      ('size', 'devices', 'dtype', 'remat', 'rows x response', 'update, s', 'TFLOP/s', 'MFU', 'of the product here',
       'rollout, s', 'tokens/s', 'of bandwidth', 'of the copy here'),
      (values.size, f'{count} x {kind}', values.dtype, values.remat, f'{facts["rows"]} x {values.response}',
       spread(update_seconds), f'{flops / step / 1e12:.4g}', share(facts['mfu']),
       share(facts['of_measured_flops']), spread(rollout_seconds), f'{tokens / rollout:,.0f}',
       share(facts['of_bandwidth']), share(facts['of_measured_bandwidth'])),
  ]))
  tell(facts, values.out)


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
