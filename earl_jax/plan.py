"""What a run needs, before anything is allocated: bytes on every device, FLOPs of a step, and which devices it fits.

  python -m earl_jax.plan --config=configs/sort4.py --devices=8 [--config.mesh.fsdp=8 ...]

No weights are read: of `config.model` only config.json and the tokenizer. With `config.algorithm.micro_batch=0`, which
lets a run take the largest micro-batch that its devices have room for, the bytes are those of the smallest one, and
every device says which it would be. `run.memory` has how all of it is worked out.
"""

from collections.abc import Callable
import functools
import sys

from absl import flags
from jax.sharding import AbstractMesh, AxisType

from earl_jax import config as config_lib
from earl_jax.config import Config
from earl_jax.devices import sharding
from earl_jax.run import cli, memory
from earl_jax.run.checks import check_problems
from earl_jax.run.memory import GIB, Plan, USABLE
from earl_jax.run.preparation import check_mesh, model_folder, prepare

DEVICES = {  # GiB of memory, as their makers state it
    'v5e': 16, 'v6e': 32, 'A100-40GB': 40, 'A100-80GB': 80, 'H100': 80, 'v5p': 95, 'H200': 141,
}


def abstract_mesh(config: config_lib.MeshConfig, devices: int) -> AbstractMesh:
  """The mesh of a run on so many devices.

  Raises:
    UserError: the axes do not multiply to the number of devices.
  """
  return AbstractMesh(sharding.mesh_sizes(config, devices), sharding.AXES, axis_types=(AxisType.Auto,) * 3)


def table(plan: Plan, config: Config, devices: int, largest: Callable[[float], int]) -> str:
  """The plan as text, and the devices that have room for it.

  Args:
    largest: bytes of a device -> its micro-batch, where the config leaves that open; 0 where it has room for none.
  """

  def gib(size):
    return f'{size / GIB:9.3f} GiB'

  lines = [
      f'bytes on each of {devices} device{"s" * (devices > 1)}',
      f'  parameters                {gib(plan.parameters)}', f'  optimizer                 {gib(plan.optimizer)}',
      f'  reference policy          {gib(plan.reference)}', f'  cache of keys and values  {gib(plan.cache)}',
      f'  rollout, at its peak      {gib(plan.rollout)}', f'  update, at its peak       {gib(plan.update)}',
      f'  the run, at its peak      {gib(plan.peak)}',
      f'FLOPs per step, at most: {plan.decode_flops:.3g} in decoding, {plan.update_flops:.3g} in the update', '',
  ]
  fits = [name for name, size in DEVICES.items() if plan.peak <= USABLE * size * GIB]
  for name, size in DEVICES.items():
    told = 'fits' if name in fits else 'too small'
    if name in fits and not config.algorithm.micro_batch:
      told += f', {largest(USABLE * size * GIB)} rows at a time'
    lines.append(f'{name:10} {size:4} GiB  {told}')
  if len(fits) < len(DEVICES):
    lines += ['', f'To need less: {"; ".join(remedies(plan, config))}.']
  return '\n'.join(lines)


def remedies(plan: Plan, config: Config) -> list[str]:
  """What to change, the cheapest first."""
  algorithm, rollout = config.algorithm, config.rollout
  in_update = plan.update >= plan.rollout + plan.optimizer
  changes = {  # -> whether it helps
      "config.remat='full'": in_update and config.remat != 'full',
      'config.lora.rank=16': not config.lora.rank,
      "config.dtype='bfloat16'": config.dtype == 'float32',
      'config.algorithm.reference_on_host=True': algorithm.kl and not algorithm.reference_on_host,
      'more devices, with config.mesh.fsdp set to their number': True,
      f'config.algorithm.micro_batch below {algorithm.micro_batch}': in_update and algorithm.micro_batch,
      f'config.rollout.chunk below {rollout.chunk}': not in_update and algorithm.counterfactual,
      f'config.rollout.prompts below {rollout.prompts}': not in_update,
  }
  return [change for change, helps in changes.items() if helps]


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  cli.define_config(values, argv)
  flags.DEFINE_integer('devices', 1, 'How many devices the run is to have.', 1, 10**6, flag_values=values)


def main(values: flags.FlagValues) -> None:
  config = cli.read_config(values)[1]
  mesh = abstract_mesh(config.mesh, values.devices)
  check_mesh(config, mesh)
  one = sharding.make_mesh(config_lib.MeshConfig(), sharding.all_devices()[:1])
  experiment = prepare(config, model_folder(config), one)
  check_problems(experiment)
  largest = functools.partial(memory.largest_micro_batch, experiment, mesh)
  if not config.algorithm.micro_batch:
    experiment = memory.with_micro_batch(experiment, memory.micro_batches(experiment, mesh)[0])
  print(table(memory.plan(experiment, mesh), config, values.devices, largest))


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
