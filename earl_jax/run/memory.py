"""Bytes that a run takes on every device, worked out from shapes before anything is allocated.

Parameters, optimizer, reference policy and cache are counted from their shapes and shardings. What the update keeps
between its forward and its backward pass is counted from the trace of its gradient, for the rows of one device; what it
holds for a moment is estimated. Measured against the compiler's own figures on a CPU in tests/test_plan.py.
"""

import bisect
from collections.abc import Callable
import dataclasses
import math
import os
from typing import Any, NamedTuple

import jax
from jax.extend import core
from jax.sharding import AbstractMesh, AxisType, Mesh
import numpy as np

from earl_jax.acting import policy
from earl_jax.acting.scoring import chunk_size
from earl_jax.config import UserError
from earl_jax.devices import processes, sharding
from earl_jax.learning import update
from earl_jax.learning.batches import abstract_batch
from earl_jax.model import transformer
from earl_jax.run.experiment import Experiment, min_rows
from earl_jax.run.first_params import abstract_params
from earl_jax.run.problems import abstract_rollout

__all__ = ['fitted', 'GIB', 'largest_micro_batch', 'micro_batches', 'Plan', 'plan', 'USABLE', 'with_micro_batch']

GIB = 2**30
USABLE = 0.92  # of a device's memory; the rest is the runtime's, and what fragmentation costs
# Of what the trace of a backward pass finds stored, XLA for CPU stores so much: 1.15 to 1.35 of it, over several
# devices least, with adapters most.
COMPILED = 1.25
MOST_ON_CPU = 32  # rows of a micro-batch: a processor gains nothing by more


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


def size_of(tree: Any) -> int:
  """Bytes of arrays or their shapes."""
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def in_dtype(tree: Any, dtype: str) -> Any:
  """Shapes of a tree, cast."""
  return jax.tree.map(lambda x: x.update(dtype=np.dtype(dtype)), tree)


def on_device(mesh: Mesh | AbstractMesh, tree: Any) -> int:
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

  What is kept, at the full width (`batches.at_width`; the others share its memory): COMPILED times what the trace says.
  For a moment, what is computed again of one layer, and the largest of its arrays once more, as its gradient; or three
  arrays of logits, of a chunk of slots.
  """
  config, model = experiment.config, experiment.model
  scoring = dataclasses.replace(experiment.scoring, rows_per_prompt=math.gcd(experiment.scoring.rows_per_prompt, rows))
  batch = abstract_batch(trajectory, rows)

  def kept(model):
    def loss(trained, frozen, batch):
      settings = dataclasses.replace(scoring, model=model)
      return update.loss_and_metrics(frozen | trained, batch, 1, scoring=settings, config=config.algorithm)[0]

    found = residuals(loss, *policy.split(params), batch)
    arrays = [(x, divided(x.shape, model, tensor) * x.dtype.itemsize) for x in found]
    layers = [size // model.num_hidden_layers for x, size in arrays if x.shape[:1] == (model.num_hidden_layers,)]
    return sum(size for _, size in arrays), layers

  (total, stored), (_, computed) = kept(model), kept(dataclasses.replace(model, remat='none'))
  chunk = min(chunk_size(scoring), rows * config.rollout.response_length)
  again = sum(computed) - sum(stored) + max(computed)
  return int(COMPILED * total) + max(again, 3 * 4 * chunk * model.vocab_size // tensor)


def plan(experiment: Experiment, mesh: Mesh | AbstractMesh) -> Plan:
  """The plan of a run on `mesh`. The experiment's own mesh, of one device, only serves to trace the programs."""
  config = experiment.config
  params = abstract_params(config, experiment.model, experiment.interface)
  trained, _ = policy.split(params)
  states = jax.eval_shape(update.make_optimizer(config).init, trained)
  parameters, optimizer = on_device(mesh, params), on_device(mesh, states)
  reference = 0 if config.algorithm.reference_on_host or not config.algorithm.kl else on_device(mesh, trained)
  trajectory = abstract_rollout(experiment)
  decoding = rollout_bytes(experiment, mesh, params, trajectory)
  learning = optimizer + update_bytes(experiment, mesh, params, trajectory)
  decode_flops, update_flops = flops(experiment, params)
  rollout = config.rollout
  tokens = rollout.prompts * (rollout.prompt_length + rollout.group * rollout.response_length)
  return Plan(
      parameters=parameters, optimizer=optimizer, reference=reference,
      cache=cache_bytes(experiment, mesh, tokens // sharding.row_shards(mesh)),
      rollout=decoding, update=learning, peak=max(decoding + optimizer, learning) + reference,
      decode_flops=decode_flops, update_flops=update_flops,
  )


def cache_bytes(experiment: Experiment, mesh: Mesh | AbstractMesh, tokens: int) -> int:
  """Of the keys and values of so many tokens on one device."""
  model, tensor = experiment.model, mesh.shape['tensor']
  groups = model.num_key_value_heads // (tensor if model.num_key_value_heads % tensor == 0 else 1)
  return 2 * model.num_hidden_layers * groups * model.head_dim * np.dtype(model.dtype).itemsize * tokens


def rollout_bytes(experiment: Experiment, mesh: Mesh | AbstractMesh, params: Any, trajectory: Any) -> int:
  """What the decode loop takes on one device at its peak, rewriting too, parameters included."""
  config, model, tensor = experiment.config.rollout, experiment.model, mesh.shape['tensor']
  parts = sharding.row_shards(mesh)
  rows, prompts, length = len(trajectory.end) // parts, config.prompts // parts, config.prompt_length
  prompt = cache_bytes(experiment, mesh, prompts * length)
  cache = cache_bytes(experiment, mesh, rows * config.response_length)
  whole = AbstractMesh((mesh.shape['data'], 1, tensor), sharding.AXES, axis_types=(AxisType.Auto,) * 3)
  # The loop has weights of its own, layer by layer, made from those that were gathered.
  own = on_device(whole, in_dtype(params, model.dtype))
  own *= 1 + (mesh.shape['fsdp'] > 1)
  widest = max(model.intermediate_size, model.num_attention_heads * length)
  reading = prompt + 3 * 4 * prompts * length * widest // tensor
  few = rows // 4 if rows // 4 >= min_rows(mesh) else 0  # rows that go on alone have a cache of their own
  # Where heads are shared out the compiler writes the cache twice: see decoder.Cache.
  copies = 1 + (tensor > 1)
  choosing = prompt + copies * cache + cache_bytes(experiment, mesh, few * experiment.slots)
  choosing += 3 * 4 * rows * model.vocab_size // tensor
  # Rows that are rewritten have a copy of their prompt's keys and values, and a cache, beside those of all rows; for a
  # moment about half of it again, while what they keep is moved.
  again = config.chunk // parts if experiment.config.algorithm.counterfactual else 0
  room = int((0.5 + copies) * config.response_length)
  rewriting = prompt + cache + cache_bytes(experiment, mesh, again * (length + room))
  rewriting += 3 * 4 * again * model.vocab_size // tensor
  return int(on_device(mesh, params) + own + 2 * size_of(trajectory) // parts + max(reading, choosing, rewriting))


def update_bytes(experiment: Experiment, mesh: Mesh | AbstractMesh, params: Any, trajectory: Any) -> int:
  """What the update takes on one device at its peak, parameters included, the optimizer's state not."""
  trained, parts = policy.split(params)[0], sharding.row_shards(mesh)
  batch = size_of(trajectory) // parts + 2 * 4 * len(trajectory.end) * experiment.slots // parts
  gradients = 3 * on_device(mesh, trained)  # their sum, and, as the compiler has it, those of a micro-batch twice
  micro_batch, dtype = experiment.config.algorithm.micro_batch // parts, experiment.model.dtype
  # Layers in another dtype than their parameters, as they lie for the forward and for the backward pass.
  layers = trained['model']['layers'] if 'model' in trained and dtype != 'float32' else ()
  cast = 2 * on_device(mesh, in_dtype(layers, dtype))
  # The head is gathered over fsdp, and so is its gradient; cast likewise.
  head = transformer.output_embedding(params['model']) if mesh.shape['fsdp'] > 1 else ()
  heads = 2 * (size_of(head) + size_of(in_dtype(head, dtype))) // mesh.shape['tensor']
  rest = backward(experiment, params, trajectory, micro_batch, mesh.shape['tensor'])
  return on_device(mesh, params) + batch + gradients + cast + heads + rest


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


def micro_batches(experiment: Experiment, mesh: Mesh | AbstractMesh) -> list[int]:
  """The micro-batches that a run can have: divisors of a mini-batch that all devices can share out, ascending.

  Raises:
    UserError: there is none.
  """
  config, parts = experiment.config, sharding.row_shards(mesh)
  rows = config.rollout.prompts // config.algorithm.mini_batches * config.rollout.group
  sizes = [size for size in range(parts, rows + 1, parts) if rows % size == 0]
  if not sizes:
    raise UserError(
        f'config.algorithm.micro_batch=0: a mini-batch has {rows} rows, and no divisor of that is a multiple of '
        f'data * fsdp = {parts} of the mesh; choose config.rollout.prompts and group so that one is'
    )
  return sizes


def with_micro_batch(experiment: Experiment, size: int) -> Experiment:
  """The experiment with micro-batches of so many rows."""
  algorithm = dataclasses.replace(experiment.config.algorithm, micro_batch=size)
  return dataclasses.replace(experiment, config=dataclasses.replace(experiment.config, algorithm=algorithm))


def largest_micro_batch(experiment: Experiment, mesh: Mesh | AbstractMesh, memory: float) -> int:
  """The most rows that the update can take at a time where every device has `memory` bytes; 0 where it has no room."""
  sizes = micro_batches(experiment, mesh)
  fitting = bisect.bisect_right(sizes, memory, key=lambda size: plan(with_micro_batch(experiment, size), mesh).peak)
  return sizes[fitting - 1] if fitting else 0


def fitted(experiment: Experiment) -> Experiment:
  """The experiment with a micro-batch: where its config says 0, the largest that its devices have room for.

  Raises:
    UserError: there is room for none.
  """
  if experiment.config.algorithm.micro_batch:
    return experiment
  mesh = experiment.mesh
  memory = _memory_of_a_device(mesh)
  size = largest_micro_batch(experiment, mesh, USABLE * memory)
  if not size:
    raise UserError(
        f'config.algorithm.micro_batch=0: a device has {memory / GIB:.1f} GiB, and one row at a time takes more, as '
        'python -m earl_jax.plan says; change what it names, or give a number to try it'
    )
  if mesh.devices.flat[0].platform == 'cpu':
    most = min(size, max(MOST_ON_CPU, sharding.row_shards(mesh)))
    size = max(s for s in micro_batches(experiment, mesh) if s <= most)
  return with_micro_batch(experiment, size)


def _memory_of_a_device(mesh: Mesh) -> float:
  """Bytes that the device with the least has, of all processes."""
  shared = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / jax.local_device_count()  # where it tells nothing
  least = min((device.memory_stats() or {}).get('bytes_limit', shared) for device in mesh.local_devices)
  return min(processes.gather([least], np.array([jax.process_index()]), np.arange(jax.process_count())))
