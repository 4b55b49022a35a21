"""Shows a run as one page, which opens in any browser and asks nothing of a network.

  python -m earl_jax.view --workdir=runs/sort4 [--algorithm=sort4] [--pictures]

The page has the learning curves, and the episodes of every sampled step: what was decided and what else was possible,
and beside an episode its counterfactual. With --algorithm it also has the decision tree of the greedy policy on all
problems of a task, from the newest checkpoint, and says whether they prove it right. Runs that still train can be
looked at too. --pictures draws the learning curve and one greedy episode as PNG files for papers and pages; it needs
matplotlib: `pip install 'earl_jax[plot]'`.
"""

import pathlib
import sys

from absl import flags

from earl_jax.config import UserError
from earl_jax.config.paths import local_path
from earl_jax.run import cli, measure
from earl_jax.run.curves import learning_curve
from earl_jax.run.episodes import draw_episode
from earl_jax.run.saved import find_tasks, load, with_room
from earl_jax.run.workdir import read_config, write_atomically
from earl_jax.view import data as data_lib
from earl_jax.view.algorithm import decision_trees
from earl_jax.view.page import page


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  del argv
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values, required=True)
  flags.DEFINE_string('out', None, 'The page; <workdir>/view.html by default.', flag_values=values)
  flags.DEFINE_string(
      'algorithm', None, 'A task with few problems, such as sort4, whose decision tree is drawn.', flag_values=values
  )
  flags.DEFINE_bool('pictures', False, 'Also draw pictures into <workdir>/pictures.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  workdir = local_path(values.workdir, '--workdir')
  out = local_path(values.out or workdir / 'view.html', '--out')
  data = data_lib.read(workdir)
  written = [out]
  if values.algorithm or values.pictures:
    config = read_config(workdir)
    cli.prepare_jax(config)
    experiment, params, step = load(workdir, config)
  if values.algorithm:
    task, = find_tasks(experiment, [values.algorithm])
    roomy = with_room(experiment, [task], samples=1)
    data['algorithm'] = decision_trees(roomy, params, task) | {'step': step}
  if values.pictures:
    written += draw_pictures(workdir, experiment, params)
  try:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page(data))
  except OSError as error:
    raise UserError(f'--out={out}: cannot be written ({error.strerror}); choose another file') from None
  for note in data['notes']:
    print(note, file=sys.stderr)
  print('\n'.join(map(str, written)))


def draw_pictures(workdir: pathlib.Path, experiment, params) -> list[pathlib.Path]:
  """Draws the learning curve, and one greedy episode of the last task of the curriculum; gives their paths."""
  curve, episode = (workdir / 'pictures' / name for name in ('learning_curve.png', 'trajectory.png'))
  learning_curve({workdir.name: [workdir]}, curve)
  task = experiment.goal[-1]
  example = task.example(experiment.config.seed, 'test', 0)
  played = measure.play_one(experiment, params, task, example, temperature=0.0)
  draw_episode(experiment, played, 0, episode)
  return [curve, episode]


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
