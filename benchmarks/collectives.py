"""What devices send each other in a training step, as the mesh grows along one axis at fixed work per device.

  python benchmarks/collectives.py [--devices=1,2,4,8] [--axes=data,fsdp,tensor] [--key_value_heads=8] [--out=FILE.json]

compiles the rollout and the update of a small model on meshes of n devices along data, fsdp or tensor, with ROWS rows
per device (along tensor too: n times the rows, of which each device does an n-th of the work), reads the collectives
out of the compiled text, and prints a table per axis. Nothing is run. Without accelerators the devices are virtual ones
of the CPU; what its compiler writes as an all-reduce and a slice is one reduce-scatter elsewhere.

Counted are bytes of results on one device. What a device sends for an all-gather is (n - 1) / n of that, and twice as
much for an all-reduce. A loop counts as often as the text tells (mini-batches, layers, chunks of slots). Of two loops
only the run tells how often: the one that decodes a token in every row, and the one over the micro-batches of a
mini-batch. They have columns of their own, and a step is taken to decode every slot and to work through all
micro-batches, at full width: `at_width` has two branches, and the one with more bytes counts.

Collectives of parameters and gradients are told from those of activations by their shapes: the sizes here are such that
none is both.
"""

import itertools
import json
import pathlib
import sys

from absl import flags
import grid  # beside this file, as are the next two
import hlo
import jax
from jax.sharding import Mesh
import programs

from earl_jax.acting.policy import BLOCK
from earl_jax.config import AlgorithmConfig, Config, MeshConfig, RolloutConfig, UserError
from earl_jax.devices import sharding
from earl_jax.model.transformer import ModelConfig
from earl_jax.run import cli
from earl_jax.run.experiment import Experiment

ROWS = 2  # of a micro-batch, per device
GROUP, MINI_BATCHES, MICRO_BATCHES = 2, 2, 4  # the last are of one mini-batch
VOCABULARY = 8 * 19 * BLOCK  # 19 is prime: nothing else has an axis of its multiples
# (program, in the loop of which only the run tells how often it runs) -> what to call it
PARTS = {
    ('rollout', False): 'rollout', ('rollout', True): 'token', ('update', False): 'update',
    ('update', True): 'micro-batch',
}
COLUMNS = ('rollout, once', 'each slot decoded', 'update, once', 'each micro-batch')


def make_mesh(config: MeshConfig) -> Mesh:
  """A mesh of the first devices.

  Raises:
    UserError: there are not enough.
  """
  count = config.data * config.fsdp * config.tensor
  if count > jax.device_count():
    raise UserError(
        f'--devices={count}: there are {jax.device_count()}; for virtual ones set JAX_PLATFORMS=cpu, and no XLA_FLAGS'
    )
  return sharding.make_mesh(config, jax.devices()[:count])


def build(mesh: Mesh, key_value_heads: int = 8, layers: int = 1) -> Experiment:
  """A small model with ROWS rows per device in each of the micro-batches."""
  model = ModelConfig(
      vocab_size=VOCABULARY, hidden_size=40, intermediate_size=88, num_hidden_layers=layers, num_attention_heads=8,
      num_key_value_heads=key_value_heads, head_dim=6,
  )
  micro_batch = ROWS * mesh.size
  rows = micro_batch * MICRO_BATCHES * MINI_BATCHES
  rollout = RolloutConfig(
      prompts=rows // GROUP, group=GROUP, prompt_length=56, response_length=48, chunk=micro_batch
  )
  return programs.build(model, mesh, rollout, AlgorithmConfig(mini_batches=MINI_BATCHES, micro_batch=micro_batch))


def plain(shape: tuple[int, ...]) -> tuple[int, ...]:
  """A shape without order and without axes of size 1."""
  return tuple(sorted(size for size in shape if size > 1))


def parameter_shapes(experiment: Experiment) -> set[tuple[int, ...]]:
  """The plain shapes that parameters and gradients can have on a device: each axis whole or shared out, of one layer or
  of all. Vectors are left out; they are small, and their shapes could be anything's."""
  found = set()
  for leaf in jax.tree.leaves(programs.abstract_state(experiment).params):
    axes = [{whole, part} for whole, part in zip(leaf.shape, leaf.sharding.shard_shape(leaf.shape))]
    blocks = [{size // BLOCK for size in axes[0] if size % BLOCK == 0}, {BLOCK}, *axes[1:]]  # of the head
    for chosen in (axes, axes[1:], blocks):
      found |= {plain(shape) for shape in itertools.product(*chosen)}
    for a, b, c in itertools.product(*axes[1:]) if len(axes) == 4 else ():  # heads and their width in one
      found |= {plain((a * b, c)), plain((a, b * c))}
  return {shape for shape in found if len(shape) > 1}


def measure(experiment: Experiment, texts: dict[str, str]) -> dict[str, dict[str, int]]:
  """Bytes of parameters and of activations in each of `PARTS`, and in the whole step.

  Args:
    texts: of the compiled programs.
  """
  shapes, parts = parameter_shapes(experiment), {}
  for (program, repeated), part in PARTS.items():
    parts[part] = sums = {'parameters': 0, 'activations': 0}
    for collective in hlo.collectives(texts[program]):
      for array in collective.results if collective.repeated == repeated else ():
        # The loop over micro-batches is in the one over mini-batches: `times` has the latter.
        times = collective.times // (MINI_BATCHES if part == 'micro-batch' else 1)
        sums['parameters' if plain(array.shape) in shapes else 'activations'] += array.bytes * times
  repeats = {'token': experiment.config.rollout.response_length, 'micro-batch': MINI_BATCHES * MICRO_BATCHES}
  parts['step'] = {
      kind: sum(sums[kind] * repeats.get(part, 1) for part, sums in parts.items())
      for kind in ('parameters', 'activations')
  }
  return parts


def compiled(experiment: Experiment) -> dict[str, str]:
  # Of several loops in a rollout each would count as if it decoded every slot.
  return {name: lowered.compile().as_text() for name, lowered in programs.lower(experiment, min_rows=None).items()}


def table(measured: dict[int, dict[str, dict[str, int]]]) -> str:
  """Markdown: a row per number of devices."""
  rows, before = [('devices', *COLUMNS, 'step: parameters', 'step: activations', 'growth of these', 'and these')], {}
  for count, parts in measured.items():
    step = parts['step']
    growth = [f'{size / before[kind]:.2f}' if before.get(kind) else '' for kind, size in step.items()]
    sums = [sum(parts[part].values()) for part in PARTS.values()]
    rows.append([str(count), *(f'{size:,}' for size in [*sums, *step.values()]), *growth])
    before = step
  return grid.markdown(rows)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  flags.DEFINE_list('devices', ['1', '2', '4', '8'], 'How many.', flag_values=values)
  flags.DEFINE_list('axes', list(sharding.AXES), 'Of the mesh.', flag_values=values)
  flags.DEFINE_integer('key_value_heads', 8, 'Of the 8 attention heads; fewer than devices are kept whole.', 1,
                       flag_values=values)
  flags.DEFINE_integer('layers', 1, 'Of the model.', 1, flag_values=values)
  flags.DEFINE_string('out', None, 'File for the figures as JSON.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  counts = [int(count) for count in values.devices]
  cli.prepare_jax(Config(mesh=MeshConfig(data=max(counts))))
  results = {}
  for axis in values.axes:
    results[axis] = {}
    for count in counts:
      mesh = make_mesh(MeshConfig(**{'data': 1, axis: count}))
      experiment = build(mesh, values.key_value_heads, values.layers)
      results[axis][count] = measure(experiment, compiled(experiment))
    print(f'\n{axis}, bytes per device\n\n{table(results[axis])}', flush=True)
  print(f'\n`python {" ".join(sys.argv)}`, jax {jax.__version__}, {jax.devices()[0].device_kind}')
  if values.out:
    pathlib.Path(values.out).write_text(json.dumps(results, indent=2) + '\n', 'utf-8')


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
