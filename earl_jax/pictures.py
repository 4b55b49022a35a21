"""Pictures of a run.

  python -m earl_jax.pictures --workdir=runs/sort4 [--out=runs/sort4/pictures]

draws the run's learning curve and, from its newest checkpoint, one greedy episode of the last task of its curriculum.
Needs matplotlib: `pip install 'earl_jax[plot]'`. Backgrounds are transparent, for white and for black pages.
"""

import sys

from absl import flags
import jax
import numpy as np

from earl_jax.config.paths import local_path
from earl_jax.run import cli
from earl_jax.run.curves import learning_curve
from earl_jax.run.episodes import draw_episode
from earl_jax.run.saved import load
from earl_jax.run.workdir import read_config


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  del argv
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values, required=True)
  flags.DEFINE_string('out', None, 'Folder for the pictures; <workdir>/pictures by default.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  workdir = local_path(values.workdir, '--workdir')
  out = local_path(values.out or workdir / 'pictures', '--out')
  config = read_config(workdir)
  learning_curve({workdir.name: [workdir]}, out / 'learning_curve.png')
  cli.prepare_jax(config)
  experiment, params, _ = load(workdir, config)
  task = experiment.goal[-1]
  count = experiment.mesh.shape['data'] * experiment.mesh.shape['fsdp']  # every device has one
  examples = [task.example(config.seed, 'test', index) for index in range(count)]
  prompts = experiment.encode_prompts([task] * count, examples)
  decoding = experiment.decoding(temperature=0.0)
  played = experiment.rollout(params, prompts, np.arange(count), jax.random.key(config.seed), decoding=decoding)
  draw_episode(experiment, played, 0, out / 'trajectory.png')
  print('\n'.join(str(out / name) for name in ('learning_curve.png', 'trajectory.png')))


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
