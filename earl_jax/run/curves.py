"""Learning curves of runs, finished or not."""

import itertools
import json
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from earl_jax.config import UserError
from earl_jax.run.figures import COLORS, INK, legend, new_figure, save
from earl_jax.run.workdir import look_in_modules, read_config
from earl_jax.tasks.base import make_task

__all__ = [
    'cost_of', 'draw_band', 'learning_curve', 'optimum_of', 'read_evaluation', 'read_run', 'RunMetrics', 'tasks_of',
]

MARKERS = 'os^Dv'


class RunMetrics(NamedTuple):
  """What metrics.jsonl and config.json tell of one run.

  Attributes:
    lines: metrics of every step.
    rollouts: int64[steps], rollouts made by the end of each; CPO's rewrites of them are not counted.
  """

  lines: list[dict[str, Any]]
  rollouts: np.ndarray

  def values(self, metric: str) -> np.ndarray:
    """float64[steps]; NaN where a step did not measure it."""
    return np.array([np.nan if line.get(metric) is None else line[metric] for line in self.lines], float)


def read_run(workdir: str | pathlib.Path) -> RunMetrics:
  """Reads a run's metrics, finished or not.

  Raises:
    UserError: there is no run in `workdir`, or it has not finished a step.
  """
  rollout = read_config(workdir).rollout
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  try:
    *texts, _ = path.read_text(encoding='utf-8').split('\n') if path.is_file() else ['']  # the last may be half written
    lines = [_renamed(json.loads(text)) for text in texts]
    steps = np.array([line['step'] for line in lines])
  except (ValueError, AttributeError, KeyError, TypeError):
    raise UserError(f'{path}: damaged; go on with the run, which leaves damaged lines out, or restore it') from None
  if not lines:
    raise UserError(f'{path}: no finished step in it; train longer, or give another workdir')
  return RunMetrics(lines, (steps + 1) * rollout.prompts * rollout.group)


def learning_curve(workdirs: dict[str, list[str | pathlib.Path]], path: str | pathlib.Path) -> None:
  """Draws exact match, and what the last task of the curriculum calls its cost, against rollouts.

  Lines are the mean over the runs of one label and bands reach from their minimum to their maximum, both of training
  batches; markers are greedy evaluations. With one label there is a line of exact match per task, with several a line
  per label over all tasks. Dotted verticals: where a run's next stage begins; dashed horizontals: the optimum.

  Args:
    workdirs: label -> workdirs of its runs (seeds).
    path: of the picture, PNG or SVG.

  Raises:
    UserError: no run to draw, another suffix, or matplotlib is missing.
  """
  groups = {label: [read_run(workdir) for workdir in paths] for label, paths in workdirs.items() if paths}
  if not groups:
    raise UserError(f'workdirs={workdirs}: no run to draw; give at least one workdir')
  every = [workdir for paths in workdirs.values() for workdir in paths]
  cost, alone = cost_of(every[0]), len(groups) == 1
  figure, (exact, spent) = new_figure(2, 1, figsize=(8, 5.2), sharex=True, height_ratios=(3, 2))
  tasks = sorted({name for runs in groups.values() for run in runs for line in run.lines for name in tasks_of(line)})
  styles = list(zip(tasks, itertools.cycle(COLORS), itertools.cycle(MARKERS)))
  for color, (label, runs) in zip([INK] if alone else itertools.cycle(COLORS), groups.items()):
    for task, task_color, marker in styles:
      shade = task_color if alone else color
      if alone:
        draw_band(exact, runs, f'exact_match/{task}', color=shade, label=task)
      draw_band(exact, runs, f'eval/{task}/exact_match', color=shade, marker=marker)
      draw_band(spent, runs, f'eval/{task}/{cost}', color=shade, marker=marker)
    if not alone:
      draw_band(exact, runs, 'exact_match', color=color, label=label)
    draw_band(spent, runs, cost, color=color)
    for run in runs:
      for at in run.rollouts[1:][np.diff(run.values('stage')) > 0]:
        for axes in (exact, spent):
          axes.axvline(at, color=color, linestyle=':', linewidth=1, zorder=0)
  for task, task_color, marker in styles:
    exact.plot([], [], marker, color=INK, markersize=4.5, markeredgewidth=0, label=f'{task}, greedy')
    optimum = optimum_of(every, task, cost)
    if optimum is not None:
      spent.axhline(optimum, color=task_color if alone else INK, linestyle=(0, (4, 3)), linewidth=1, zorder=0)
  exact.set(ylabel='exact match', ylim=(-0.03, 1.03))
  exact.yaxis.set_major_formatter('{x:.0%}')
  legend(exact)
  spent.set(ylabel=cost.replace('_', ' '), xlabel='rollouts')
  spent.set_ylim(bottom=0)
  spent.xaxis.set_major_formatter('{x:,.0f}')
  save(figure, path)


def draw_band(
    axes: Any, runs: list[RunMetrics], metric: str, *, color: str, label: str | None = None, marker: str = ''
) -> None:
  """Mean over the runs of what they measured, and its range; a run that ended earlier keeps its last value.

  With a marker, points of the mean only.
  """
  longest = max(runs, key=lambda run: len(run.lines))
  values = np.full((len(runs), len(longest.lines)), np.nan)
  for row, run in zip(values, runs):
    row[:len(run.lines)] = run.values(metric)
  shown = np.isfinite(values).any(axis=0)
  if not shown.any():
    return
  for row, run in zip(values, runs):
    measured = row[np.isfinite(row)]
    row[len(run.lines):] = measured[-1] if len(measured) else np.nan
  x, values = longest.rollouts[shown], values[:, shown]
  mean = np.nanmean(values, axis=0)
  if marker:
    axes.plot(x, mean, marker, color=color, markersize=4.5, markeredgewidth=0, label=label, zorder=3)
    return
  axes.plot(x, mean, color=color, linewidth=1.8, label=label)
  if len(runs) > 1:
    axes.fill_between(x, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=color, alpha=0.18, linewidth=0)


def tasks_of(line: dict[str, Any]) -> list[str]:
  """Tasks measured in a line of metrics: `exact_match/sort2`, `eval/sort2/exact_match` -> `sort2`."""
  trained = [name.removeprefix('exact_match/') for name in line if name.startswith('exact_match/')]
  return trained + [name.split('/')[1] for name in line if name.startswith('eval/')]


def cost_of(workdir: str | pathlib.Path) -> str:
  """The metric that the last task of a run's curriculum calls its cost."""
  look_in_modules(workdir)
  name, options, _ = read_config(workdir).curriculum[-1].tasks[-1]
  return make_task(name, **options).cost


def read_evaluation(workdir: str | pathlib.Path) -> dict[str, dict[str, Any]]:
  """Task label -> its result in evaluation.json, as `measure.write_evaluation` writes it; {} where there is none.

  Raises:
    UserError: it is damaged.
  """
  path = pathlib.Path(workdir) / 'evaluation.json'
  try:
    nested = json.loads(path.read_text('utf-8')) if path.is_file() else {}
    return {
        name + ('' if size == 'all' else size): result
        for name, sizes in nested.items() for size, result in sizes.items()
    }
  except (ValueError, AttributeError):
    raise UserError(f'{path}: damaged; evaluate the run again') from None


def optimum_of(workdirs: list[str | pathlib.Path], task: str, cost: str) -> float | None:
  """What the reference called optimal spends on `task`, as evaluation.json of a run says; None if none does."""
  for result in (read_evaluation(workdir).get(task, {}) for workdir in workdirs):
    optimal = result.get('references', {}).get('optimal', {})
    if cost in optimal:
      return optimal[cost]
  return None


def _renamed(line: dict[str, Any]) -> dict[str, Any]:
  """A line of metrics with today's names: older runs call exact match `exact`."""
  old = re.compile(r'(?:^|(?<=/))exact(?=/|$)')
  return {old.sub('exact_match', name): value for name, value in line.items()}
