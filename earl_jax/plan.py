"""What a run needs, before anything is allocated: bytes on every device, FLOPs of a step, and which devices it fits.

  python -m earl_jax.plan --config=configs/sort4.py --devices=8 [--config.mesh.fsdp=8 ...]

Parameters, optimizer, reference policy and cache are counted from their shapes and shardings. What the update keeps
between its forward and its backward pass is counted from the trace of its gradient, for the rows of one device; what it
holds for a moment is estimated. No weights are read: of `config.model` only config.json and the tokenizer. Measured
against the compiler's own figures on a CPU in tests/test_plan.py.
"""

from collections.abc import Callable
import dataclasses
import math
import sys
from typing import Any, NamedTuple

from absl import flags
import jax
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType
import numpy as np

from earl_jax import config as config_lib
from earl_jax.acting import policy
from earl_jax.acting.scoring import chunk_size
from earl_jax.config import Config
from earl_jax.devices import sharding
from earl_jax.learning import update
from earl_jax.learning.batches import abstract_batch, half_width
from earl_jax.model import transformer
from earl_jax.run import cli
from earl_jax.run.experiment import check_mesh, Experiment, MIN_ROWS, model_folder, prepare
from earl_jax.run.first_params import abstract_params
from earl_jax.run.problems import abstract_rollout

GIB = 2**30
DEVICES = {  # GiB of memory, as their makers state it
    'v5e': 16, 'v6e': 32, 'A100-40GB': 40, 'A100-80GB': 80, 'H100': 80, 'v5p': 95, 'H200': 141,
}
USABLE = 0.92  # of a device's memory; the rest is the runtime's, and what fragmentation costs


class Plan(NamedTuple):
  """Bytes on one device, and FLOPs of one step on all of them.

  Attributes:
    parameters, optimizer, reference: they stay for the whole run; the reference is 0 where it waits on the host. With
      adapters, the optimizer's and the reference's are those of what is trained.
    cache: keys and values in the decode loop.
    rollout, update: what each program takes at its peak, its arguments included.
    peak: the larger of the two, with what waits beside it.
    decode_flops, update_flops: forward passes of the decode loop; all passes of reference and update.
  """

  parameters: int
  optimizer: int
  reference: int
  cache: int
  rollout: int
  update: int
  peak: int
  decode_flops: float
  update_flops: float


def abstract_mesh(config: config_lib.MeshConfig, devices: int) -> AbstractMesh:
  """The mesh of a run on so many devices.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  return AbstractMesh(sharding.mesh_sizes(config, devices), sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def size_of(tree: Any) -> int:
  """Bytes of arrays or their shapes."""
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def on_device(mesh: AbstractMesh, tree: Any) -> int:
  """Bytes on each device of a tree that is sharded as `sharding.tree_shardings` says."""
  shards = sharding.tree_shardings(mesh, tree)
  return sum(
      math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize
      for x, s in zip(jax.tree.leaves(tree), jax.tree.leaves(shards))
  )


def residuals(f: Callable, x: Any, *others: Any) -> list[Any]:
  """Shapes of what the backward pass of f(x, *others), to x, finds stored: arguments left out, each array counted once.
  """
  jaxpr = jax.make_jaxpr(lambda x, *others: jax.vjp(lambda x: f(x, *others), x)[1])(x, *others).jaxpr
  kept = {out: out.aval for out in jaxpr.outvars if isinstance(out, core.Var) and out not in jaxpr.invars}
  return list(kept.values())


def divided(shape: tuple[int, ...], model: transformer.ModelConfig, tensor: int) -> int:
  """Elements of an activation on one device: over tensor, heads and feed-forward width are shared out."""
  sizes = {model.intermediate_size, model.num_attention_heads, model.vocab_size}
  if model.num_key_value_heads % tensor == 0:
    sizes.add(model.num_key_value_heads)
  inner = set(shape[2:])  # the first two are layers and rows, or rows and slots
  return math.prod(shape) // (tensor if sizes & inner else 1)


def backward(experiment: Experiment, params: Any, trajectory: Any, rows: int, tensor: int) -> int:
  """Bytes that a micro-batch of `rows` rows on this device takes between its forward and its backward pass, at most.

  What is kept, for either width (`batches.at_width`): XLA for CPU lets the two share none of it. For a moment, what is
  computed again of one layer, and the largest of its arrays once more, as its gradient; or three arrays of logits, of a
  chunk of slots.
  """
  config, model = experiment.config, experiment.model
  scoring = dataclasses.replace(experiment.scoring, rows_per_prompt=math.gcd(experiment.scoring.rows_per_prompt, rows))
  batch = abstract_batch(trajectory, rows)
  half = half_width(batch.trajectory.slots, config.rollout.prompt_length)

  def kept(model, batch):
    def loss(trained, frozen, batch):
      settings = dataclasses.replace(scoring, model=model)
      return update.loss_and_metrics(frozen | trained, batch, 1, scoring=settings, config=config.algorithm)[0]

    found = residuals(loss, *policy.split(params), batch)
    arrays = [(x, divided(x.shape, model, tensor) * x.dtype.itemsize) for x in found]
    layers = [size // model.num_hidden_layers for x, size in arrays if x.shape[:1] == (model.num_hidden_layers,)]
    return sum(size for _, size in arrays), layers

  (total, stored), (_, computed) = kept(model, batch), kept(dataclasses.replace(model, remat='none'), batch)
  chunk = min(chunk_size(scoring), rows * config.rollout.response_length)
  again = sum(computed) - sum(stored) + max(computed)
  total += kept(model, jax.eval_shape(lambda batch: batch.cut(half), batch))[0]
  return total + max(again, 3 * 4 * chunk * model.vocab_size // tensor)


def make(experiment: Experiment, mesh: AbstractMesh) -> Plan:
  """The plan of a run on `mesh`. The experiment's own mesh, of one device, only serves to trace the programs."""
  config = experiment.config
  params = abstract_params(config, experiment.model, experiment.interface)
  trained, _ = policy.split(params)
  states = jax.eval_shape(update.make_optimizer(config).init, trained)
  parameters, optimizer = on_device(mesh, params), on_device(mesh, states)
  reference = 0 if config.algorithm.reference_on_host or not config.algorithm.kl else on_device(mesh, trained)
  trajectory = abstract_rollout(experiment, params)
  decoding = rollout_bytes(experiment, mesh, params, trajectory)
  learning = optimizer + update_bytes(experiment, mesh, params, trajectory)
  decode_flops, update_flops = flops(experiment, params)
  rollout = config.rollout
  tokens = rollout.prompts * (rollout.prompt_length + rollout.group * rollout.response_length)
  return Plan(
      parameters=parameters, optimizer=optimizer, reference=reference,
      cache=cache_bytes(experiment, mesh, tokens // shares(mesh)),
      rollout=decoding, update=learning, peak=max(decoding + optimizer, learning) + reference,
      decode_flops=decode_flops, update_flops=update_flops,
  )


def shares(mesh: AbstractMesh) -> int:
  """Into how many parts the rows of a batch are divided."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def cache_bytes(experiment: Experiment, mesh: AbstractMesh, tokens: int) -> int:
  """Of the keys and values of so many tokens on one device."""
  model, tensor = experiment.model, mesh.shape['tensor']
  groups = model.num_key_value_heads // (tensor if model.num_key_value_heads % tensor == 0 else 1)
  return 2 * model.num_hidden_layers * groups * model.head_dim * np.dtype(model.dtype).itemsize * tokens


def rollout_bytes(experiment: Experiment, mesh: AbstractMesh, params: Any, trajectory: Any) -> int:
  """What the decode loop takes on one device at its peak, parameters included."""
  config, model, tensor = experiment.config.rollout, experiment.model, mesh.shape['tensor']
  parts = shares(mesh)
  rows, prompts, length = len(trajectory.end) // parts, config.prompts // parts, config.prompt_length
  prompt = cache_bytes(experiment, mesh, prompts * length)
  cache = cache_bytes(experiment, mesh, rows * config.response_length)
  whole = AbstractMesh((mesh.shape['data'], 1, tensor), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
  # The loop has weights of its own, layer by layer, made from those that were gathered.
  own = on_device(whole, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, model.dtype), params))
  own *= 1 + (mesh.shape['fsdp'] > 1)
  widest = max(model.intermediate_size, model.num_attention_heads * length)
  reading = prompt + 3 * 4 * prompts * length * widest // tensor
  few = rows // 4 if mesh.size == 1 and rows // 4 >= MIN_ROWS else 0  # rows that go on alone have a cache of their own
  # Where heads are shared out the compiler writes the cache twice: see decoder.Cache.
  choosing = prompt + (1 + (tensor > 1)) * cache + cache_bytes(experiment, mesh, few * experiment.slots)
  choosing += 3 * 4 * rows * model.vocab_size // tensor
  return int(on_device(mesh, params) + own + 2 * size_of(trajectory) // parts + max(reading, choosing))


def update_bytes(experiment: Experiment, mesh: AbstractMesh, params: Any, trajectory: Any) -> int:
  """What the update takes on one device at its peak, parameters included, the optimizer's state not."""
  weights, trained, parts = on_device(mesh, params), on_device(mesh, policy.split(params)[0]), shares(mesh)
  batch = size_of(trajectory) // parts + 2 * 4 * len(trajectory.end) * experiment.slots // parts
  gradients = 3 * trained  # their sum, and those of a micro-batch at either width
  micro_batch = experiment.config.algorithm.micro_batch // parts
  return weights + batch + gradients + backward(experiment, params, trajectory, micro_batch, mesh.shape['tensor'])


def flops(experiment: Experiment, params: Any) -> tuple[float, float]:
  """FLOPs of a step on all devices: forward passes of the decode loop; all passes of reference and update."""
  config, model = experiment.config, experiment.model
  rows = config.rollout.prompts * config.rollout.group
  used = sum(x.size for x in jax.tree.leaves(params))
  used -= params['model']['embedding'].size if 'lm_head' in params['model'] else 0
  attention = 4 * model.num_hidden_layers * model.num_attention_heads * model.head_dim * experiment.slots / 2
  forward = 2 * used + attention  # a token; a slot sees half of all slots on average
  passes = 3 + (config.remat == 'full') + (config.algorithm.kl > 0)
  return float(rows * config.rollout.response_length * forward), float(rows * experiment.slots * forward * passes)


def table(plan: Plan, config: Config, devices: int) -> str:
  """The plan as text, and the devices that have room for it."""

  def gib(size):
    return f'{size / GIB:9.3f} GiB'

  lines = [
      f'bytes on each of {devices} device{"s" * (devices > 1)}',
      f'  parameters                {gib(plan.parameters)}', f'  optimizer                 {gib(plan.optimizer)}',
      f'  reference policy          {gib(plan.reference)}', f'  cache of keys and values  {gib(plan.cache)}',
      f'  rollout, at its peak      {gib(plan.rollout)}', f'  update, at its peak       {gib(plan.update)}',
      f'  the run, at its peak      {gib(plan.peak)}',
      f'FLOPs a step, at most: {plan.decode_flops:.3g} in decoding, {plan.update_flops:.3g} in the update', '',
  ]
  fits = [name for name, memory in DEVICES.items() if plan.peak <= USABLE * memory * GIB]
  for name, memory in DEVICES.items():
    lines.append(f'{name:10} {memory:4} GiB  {"fits" if name in fits else "too small"}')
  if len(fits) < len(DEVICES):
    lines += ['', f'To need less: {"; ".join(remedies(plan, config))}.']
  return '\n'.join(lines)


def remedies(plan: Plan, config: Config) -> list[str]:
  """What to change, the cheapest first."""
  changes = ['more devices, with config.mesh.fsdp as large as they are many']
  if config.algorithm.kl and not config.algorithm.reference_on_host:
    changes.insert(0, 'config.algorithm.reference_on_host=True')
  if config.dtype == 'float32':
    changes.insert(0, "config.dtype='bfloat16'")
  if not config.lora.rank:
    changes.insert(0, 'config.lora.rank=16')
  if plan.update >= plan.rollout + plan.optimizer:
    if config.remat != 'full':
      changes.insert(0, "config.remat='full'")
    changes.append(f'config.algorithm.micro_batch below {config.algorithm.micro_batch}')
  else:
    changes.append(f'config.rollout.prompts below {config.rollout.prompts}')
  return changes


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  cli.define_config(values, argv)
  flags.DEFINE_integer('devices', 1, 'How many devices the run is to have.', 1, 10**6, flag_values=values)


def main(values: flags.FlagValues) -> None:
  config = cli.read_config(values)[1]
  mesh = abstract_mesh(config.mesh, values.devices)
  check_mesh(config, mesh)
  one = sharding.make_mesh(config_lib.MeshConfig(), sharding.all_devices()[:1])
  experiment = prepare(config, model_folder(config), one)
  experiment.check_problems()
  print(table(make(experiment, mesh), config, values.devices))


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
