"""What XLA makes of a training step for TPUs that need not be there.

  python benchmarks/tpu.py --topology=v5e:2x2 --mesh=1,2,2 --size=0.5B [--prompts=16 --group=8 --response=512 …]

compiles the rollout, the update and the rewriting of a model of any shape for the devices of a topology, and prints
what the compiler says: the memory that each takes on a device, beside the plan (`earl_jax.plan`), and its estimate of
a pass of the decode loop. Nothing is run, so nothing here is a time. It needs libtpu.
"""

import os
import sys
import time
from unittest import mock

from absl import flags
import grid  # beside this file, as are the next three
import hlo
import jax
from jax.experimental import topologies
import programs
from throughput import build, define_shapes

from earl_jax.config import UserError
from earl_jax.config.errors import first_line
from earl_jax.run import cli, memory
from earl_jax.run.experiment import Experiment


def devices(topology: str) -> list[jax.Device]:
  """Those of a topology such as 'v5e:2x2'. Programs can be compiled for them, and no more.

  Raises:
    UserError: libtpu is not installed, or knows no such topology.
  """
  # There is no machine that could be asked about its devices.
  os.environ.update(TPU_SKIP_MDS_QUERY='1', ALLOW_MULTIPLE_LIBTPU_LOAD='1')
  try:
    return list(topologies.get_topology_desc(topology, platform='tpu').devices)
  except Exception as error:
    raise UserError(
        f'--topology={topology}: {first_line(error)}; pip install libtpu, and give one such as v5e:2x2'
    ) from error


def compiled(experiment: Experiment) -> dict[str, tuple[jax.stages.Compiled, float]]:
  """Program -> what it was compiled to, and in how many seconds."""
  made = {}
  for name, program in (programs.lower(experiment) | {'rewriting': programs.lower_resume(experiment)}).items():
    began = time.perf_counter()
    made[name] = program.compile(), time.perf_counter() - began
  return made


def used(program: jax.stages.Compiled) -> int:
  """Bytes of a device: arguments, results and temporaries."""
  m = program.memory_analysis()
  return m.argument_size_in_bytes + m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  define_shapes(values)
  flags.DEFINE_string('topology', 'v5e:1x1', 'Which devices, as libtpu names them.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  with mock.patch.object(jax, 'default_backend', lambda: 'tpu'):  # after which kernels are chosen
    experiment = build(values, devices(values.topology))
    plan = memory.plan(programs.here(experiment), experiment.mesh)
    made = compiled(experiment)
  planned = {'rollout': plan.rollout, 'update': plan.update, 'rewriting': plan.rollout}
  print(grid.markdown([('', 'GiB', 'planned', 'seconds to compile here')] + [
      (name, f'{used(program) / memory.GIB:.2f}', f'{planned[name] / memory.GIB:.2f}', f'{seconds:.0f}')
      for name, (program, seconds) in made.items()
  ]))
  loops = hlo.cycles(made['rollout'][0].as_text(), 'jit(remembered_rollout)/while')
  print(
      f'\nMillions of cycles a pass, by its estimate: {", ".join(f"{count / 1e6:.2f}" for count in loops)} (all rows, '
      'from stage to stage of the cache; then fewer)'
  )
  print(f'`python {" ".join(sys.argv)}`, jax {jax.__version__}, attention={experiment.model.attention}')


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
