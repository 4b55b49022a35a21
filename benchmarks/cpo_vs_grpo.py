"""Counterfactual policy optimisation against GRPO, with and without an entropy bonus.

  python benchmarks/cpo_vs_grpo.py --out=runs/cpo_vs_grpo --seeds=0,1,2 --jobs=2 --devices_per_job=1

trains every cell of {grpo, cpo with rewrite_fraction 0, 0.5 and 1} x {entropy 0, the config's} x seeds from one base
model, on the same problems (configs/sort2.py if no other is named) and for the same number of rollouts, and writes
exact_match.png (and .svg) and results.md to --out. Only the fields named in `METHODS`, the entropy coefficient and the
seed differ; nothing is stopped early. CPO decodes its rewrites on top of the rollouts it trains on: the table says how
many tokens that comes to.

Started again it goes on: cells that are done are skipped, others resumed. Ctrl-C lets the running cells save first.
`--config` and `--config.<field>` are those of `python -m earl_jax.train`.
"""

import itertools
import os
import pathlib
import platform
import sys
from typing import NamedTuple

from absl import flags
import grid  # beside this file
import numpy as np

from earl_jax import config as config_lib
from earl_jax.config import UserError
from earl_jax.run import cli, figures
from earl_jax.run.curves import draw_band, read_run, RunMetrics
from earl_jax.run.workdir import write_atomically
from earl_jax.tasks.base import make_task, Task

CONFIG = pathlib.Path(__file__).resolve().parents[1] / 'configs' / 'sort2.py'
METHODS = {
    'GRPO': {'algorithm.counterfactual': False},
    'CPO 0 (dead groups only)': {'algorithm.counterfactual': True, 'algorithm.rewrite_fraction': 0.0},
    'CPO 0.5': {'algorithm.counterfactual': True, 'algorithm.rewrite_fraction': 0.5},
    'CPO 1 (every rollout)': {'algorithm.counterfactual': True, 'algorithm.rewrite_fraction': 1.0},
}
THRESHOLD = 0.9  # exact match that counts as learned

Groups = dict[tuple[str, float], list[tuple[RunMetrics, dict]]]  # (method, entropy) -> runs and what they came to


class Cell(NamedTuple):
  """One run of the grid."""

  method: str
  entropy: float
  seed: int

  @property
  def name(self) -> str:
    method = '_'.join(self.method.split(' (')[0].lower().split())
    return f'{method}-entropy_{self.entropy:g}-seed_{self.seed}'

  def arguments(self) -> list[str]:
    """Flags of `earl_jax.train`; they come last, so that they win."""
    fields = METHODS[self.method] | {
        'algorithm.entropy': self.entropy, 'seed': self.seed, 'stop_at_solved': False
    }
    return [f'--config.{name}={value}' for name, value in fields.items()]


def first_reached(run: RunMetrics, task: str) -> float:
  """Rollouts until the first greedy evaluation with at least `THRESHOLD` exact match; NaN if there is none."""
  reached = run.rollouts[run.values(f'eval/{task}/exact_match') >= THRESHOLD]
  return float(reached[0]) if len(reached) else np.nan


def table(groups: Groups, task: Task) -> str:
  """Markdown: a row per method and entropy."""
  proofs = [task.proof] if task.proof else []
  rows = [['method', 'entropy', 'exact match', *proofs, f'rollouts to {THRESHOLD:.0%}', 'decoded tokens', 'minutes',
           'seeds']]
  for (method, entropy), members in groups.items():
    runs, results = zip(*members)
    rows.append([
        method, f'{entropy:g}', grid.spread([r['exact_match'] for r in results], '{:.1%}'),
        *(grid.spread([r[proof] for r in results], '{:.1%}') for proof in proofs),
        grid.spread([first_reached(run, task.label) for run in runs], '{:,.0f}'),
        grid.spread([run.values('tokens').sum() for run in runs], '{:,.0f}'),
        grid.spread([run.values('seconds').sum() / 60 for run in runs], '{:.1f}'), str(len(runs)),
    ])
  return grid.markdown(rows)


def draw(groups: Groups, task: str, path: pathlib.Path) -> None:
  """Greedy exact match against rollouts, a panel per entropy: mean over seeds, and a band from minimum to maximum."""
  entropies = list(dict.fromkeys(entropy for _, entropy in groups))
  figure, panels = figures.new_figure(
      1, len(entropies), figsize=(1 + 4.5 * len(entropies), 4), sharex=True, sharey=True, squeeze=False
  )
  for entropy, axes in zip(entropies, panels[0]):
    for color, method in zip(figures.COLORS, METHODS):
      if (method, entropy) in groups:
        runs = [run for run, _ in groups[method, entropy]]
        draw_band(axes, runs, f'eval/{task}/exact_match', color=color, label=method)
    title = f'entropy bonus {entropy:g}' if entropy else 'no entropy bonus'
    axes.set_title(title, color=figures.INK)
    axes.set(xlabel='rollouts', ylim=(-0.03, 1.03))
    axes.xaxis.set_major_formatter('{x:,.0f}')
    axes.yaxis.set_major_formatter('{x:.0%}')
  panels[0, 0].set_ylabel(f'exact match, {task}, greedy')
  handles, labels = panels[0, 0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside lower center', ncols=4, frameon=False, labelcolor=figures.INK)
  figures.save(figure, path)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  cli.define_config(values, argv, str(CONFIG))
  grid.define_flags(values, 'runs/cpo_vs_grpo')


def main(values: flags.FlagValues) -> None:
  shared = grid.config_arguments()
  if not any(argument.lstrip('-').startswith('config=') for argument in shared):
    shared.insert(0, f'--config={CONFIG}')
  seeds = grid.seeds(values)
  config = config_lib.parse(values.config)
  out = pathlib.Path(values.out)
  out.mkdir(parents=True, exist_ok=True)
  name, options, _ = config.curriculum[-1].tasks[-1]
  task = make_task(name, **options)
  entropies = dict.fromkeys((0.0, config.algorithm.entropy))
  # Seed by seed, so that an unfinished grid can be compared already.
  cells = [Cell(m, e, s) for s, e, m in itertools.product(seeds, entropies, METHODS)]

  def finished(cell):
    return grid.final_results(out / cell.name, config.steps)

  waiting = {cell.name: [*shared, *cell.arguments()] for cell in cells if not finished(cell)}
  grid.train(waiting, out, values.jobs, values.devices_per_job)

  groups = {(method, entropy): [] for entropy in entropies for method in METHODS}
  for cell in cells:
    if result := finished(cell):
      groups[cell.method, cell.entropy].append((read_run(out / cell.name), result[task.label]))
  groups = {key: members for key, members in groups.items() if members}
  if not groups:
    raise UserError(f'--out={out}: no finished cell to report; run the same command again')
  for suffix in ('.png', '.svg'):
    draw(groups, task.label, out / f'exact_match{suffix}')
  rollouts = config.steps * config.rollout.prompts * config.rollout.group
  text = (
      f'`python {" ".join(sys.argv)}`\n\n'
      f'{task.label}, greedy, after {rollouts:,} rollouts; mean (minimum - maximum) over seeds. {platform.machine()}, '
      f'{os.cpu_count()} cores, {values.jobs} cells at a time; compilation is part of the minutes.\n\n'
      f'{table(groups, task)}\n'
  )
  write_atomically(out / 'results.md', text)
  print(text)


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
