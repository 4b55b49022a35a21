"""EARL against the three baselines of the paper: methods x tasks x seeds from the embedded base model.

  python benchmarks/compare.py --out=runs/compare --jobs=2 --devices_per_job=1 --docs=docs

trains every cell (configs/embedded.py) on the same problems and for the same number of rollouts, and writes results.md
and a picture per task to --docs. Started again it goes on: cells that are done are skipped, others resumed. Ctrl-C lets
the running cells save first. `--config.<field>` reaches every cell, such as `--config.steps=50` for a quick look.
"""

import collections
import itertools
import os
import pathlib
import platform
import re
import sys

from absl import flags
import grid  # beside this file
import numpy as np

from earl_jax import config as config_lib
from earl_jax.config import UserError
from earl_jax.run import cli, figures, measure
from earl_jax.run.curves import draw_band, read_run
from earl_jax.run.workdir import write_atomically

CONFIG = pathlib.Path(__file__).resolve().parents[1] / 'configs' / 'embedded.py'
TASKS = {'sort4': 'sort4', 'countdown3': 'countdown3-1digits'}  # of the config -> label of the task measured
NAMES = {'earl': 'EARL', 'prompt_cpo': 'Prompt+CPO', 'prompt_grpo': 'Prompt+GRPO', 'sft_grpo': 'SFT+GRPO'}
# What tells of planning in prose, after Table 1 of the paper: trying, weighing a result, changing one's mind.
PHRASES = (
    'try', 'instead', 'however', 'alternatively', 'too large', 'too small', 'closer', 'need to', 'adjust', 'verify',
    'wait',
)

Cells = dict[tuple[str, str], list[tuple[pathlib.Path, dict]]]  # (task, method) -> finished cells and their results


def name_of(seed: int, task: str, method: str) -> str:
  return f'{task}-{method}-seed_{seed}'


def mean(results: list[dict[str, float]], metric: str) -> float:
  return float(np.mean([result[metric] for result in results]))


def table(cells: Cells, task: str) -> str:
  """A row per method: what the final policy does, greedily, on held-out problems or on all there are."""
  rows = [['method', 'exact match', '95 % interval', 'lowest, highest seed', 'sampled', 'calls an episode', 'invalid',
           'decisions / tokens a solved problem', 'rollouts', 'minutes']]
  for method, name in NAMES.items():
    members = cells.get((task, method), [])
    if not members:
      continue
    results = [result[TASKS[task]] for _, result in members]
    runs = [read_run(workdir) for workdir, _ in members]
    shares, count = [r['exact_match'] for r in results], sum(r['count'] for r in results)
    right = round(sum(r['exact_match'] * r['count'] for r in results))
    low, high = measure.wilson_interval(right, count)
    sampled = [run.values(f'exact_match/{TASKS[task]}')[-max(1, len(run.lines) // 10):].mean() for run in runs]
    solved = [r['solved'] for r in results if 'solved' in r]
    spent = f'{mean(solved, "decisions"):.1f} / {mean(solved, "response_length"):.1f}' if solved else ''
    rows.append([
        name, f'**{np.mean(shares):.1%}**', f'{low:.1%} - {high:.1%}', f'{min(shares):.1%}, {max(shares):.1%}',
        grid.spread(sampled, '{:.1%}'), f'{mean(results, "calls"):.2f}', f'{mean(results, "invalid_calls"):.2f}', spent,
        grid.spread([run.rollouts[-1] for run in runs], '{:,.0f}'),
        grid.spread([run.values('seconds').sum() / 60 for run in runs], '{:.0f}'),
    ])
  return grid.markdown(rows)


def phrases(cells: Cells, task: str) -> str:
  """Planning phrases in the last samples of each method, per hundred episodes; empty where nobody plans in prose."""
  rows, found = [['method', 'episodes', *PHRASES]], 0
  for method, name in NAMES.items():
    counts, episodes = collections.Counter(), 0
    for workdir, _ in cells.get((task, method), []):
      for sample in sorted((workdir / 'samples').glob('*.txt'))[-1].read_text('utf-8').split('===== sample')[1:]:
        response, episodes = sample.partition('⏎')[2].lower(), episodes + 1
        counts.update({phrase: len(re.findall(rf'\b{phrase}\b', response)) for phrase in PHRASES})
    found += counts.total()
    if episodes:
      rows.append([name, str(episodes), *(f'{100 * counts[phrase] / episodes:.0f}' for phrase in PHRASES)])
  return grid.markdown(rows) if found else ''


def draw(cells: Cells, task: str, path: pathlib.Path) -> None:
  """Greedy exact match against rollouts: mean over seeds, and a band from the lowest to the highest."""
  figure, axes = figures.new_figure(figsize=(7, 4))
  for color, (method, name) in zip(figures.COLORS, NAMES.items()):
    if runs := [read_run(workdir) for workdir, _ in cells.get((task, method), [])]:
      draw_band(axes, runs, f'eval/{TASKS[task]}/exact_match', color=color, label=name)
  axes.set(xlabel='rollouts', ylabel=f'exact match, {TASKS[task]}, greedy', ylim=(-0.03, 1.03))
  axes.xaxis.set_major_formatter('{x:,.0f}')
  axes.yaxis.set_major_formatter('{x:.0%}')
  figures.legend(axes)
  figures.save(figure, path)


def report(cells: Cells, docs: pathlib.Path, tasks: list[str], jobs: int) -> str:
  """Writes results.md and its pictures to `docs`, and gives the text."""
  parts = [
      '# EARL against what it replaces',
      f'`python {" ".join(sys.argv)}`, on {platform.machine()} with {os.cpu_count()} cores, {jobs} cells at a time.',
      'All methods start from the embedded base model, see the same problems and have the same number of rollouts. '
      'The expanded interface has actions of its own, the others call the same environments by text in tags; the base '
      'model has seen neither. SFT+GRPO spends its first steps on demonstrations of solvers, in place of the stages of '
      'the curriculum before the last. Exact match is greedy, on all 48 instances of sort4 and on held-out problems of '
      'the others; intervals are those of Wilson over all seeds. Sampled: exact match of the training rollouts in the '
      'last tenth of the steps; none, where the curriculum has not come to the task by then.',
      'Masks keep every call well-formed, so an invalid call is one that the end of the episode cut off.',
  ]
  for task in tasks:
    seeds = max((len(members) for (of, _), members in cells.items() if of == task), default=0)
    if seeds:
      for suffix in ('.png', '.svg'):
        draw(cells, task, docs / 'images' / f'compare_{task}{suffix}')
      parts += [f'## {TASKS[task]}, {seeds} seed{"s" * (seeds > 1)}', table(cells, task),
                f'![Greedy exact match on {TASKS[task]} over rollouts](images/compare_{task}.png)']
      if planning := phrases(cells, task):
        parts += ['Planning phrases per hundred sampled episodes:', planning]
  text = '\n\n'.join(parts) + '\n'
  write_atomically(docs / 'results.md', text)
  return text


def read_config(task: str, method: str, changes: list[str]) -> config_lib.Config:
  """The config of a cell, with `--config.<field>` changes."""
  values, argv = flags.FlagValues(), ['', *changes]
  cli.define_config(values, argv, f'{CONFIG}:{task},{method}')
  values(argv)
  return config_lib.parse(values.config)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  cli.define_config(values, argv, str(CONFIG))
  grid.define_flags(values, 'runs/compare')
  flags.DEFINE_list('tasks', list(TASKS), 'Tasks compared.', flag_values=values)
  flags.DEFINE_list('methods', list(NAMES), 'Methods compared.', flag_values=values)
  flags.DEFINE_string('docs', None, 'Folder of results.md and images/; --out by default.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  for flag, given, known in (('tasks', values.tasks, TASKS), ('methods', values.methods, NAMES)):
    if unknown := [name for name in given if name not in known]:
      raise UserError(f'--{flag}={",".join(given)}: {unknown[0]!r} is none of {", ".join(known)}')
  changes = grid.config_arguments()
  if own := [change for change in changes if change.lstrip('-').startswith('config=')]:
    raise UserError(f'{own[0]}: the cells have configs of their own; set fields of them with --config.<field>=value')
  out = pathlib.Path(values.out)
  out.mkdir(parents=True, exist_ok=True)
  # Seed by seed, so that an unfinished grid can be compared already.
  grid_of = list(itertools.product(grid.seeds(values), values.tasks, values.methods))
  configs = {cell: read_config(*cell[1:], changes) for cell in grid_of}

  def found(cell):
    return grid.final_results(out / name_of(*cell), configs[cell].steps)

  grid.train(
      {
          name_of(*cell): [f'--config={CONFIG}:{cell[1]},{cell[2]}', *changes, f'--config.seed={cell[0]}']
          for cell in grid_of if not found(cell)
      },
      out, values.jobs, values.devices_per_job,
  )
  cells = collections.defaultdict(list)
  for cell in grid_of:
    if result := found(cell):
      cells[cell[1:]].append((out / name_of(*cell), result))
  if not cells:
    raise UserError(f'--out={out}: no finished cell to report; run the same command again')
  print(report(cells, pathlib.Path(values.docs or out), values.tasks, values.jobs))


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
