"""What README and docs state of trained policies: the runs behind it, and what is told of them. For reproduce.py."""

import collections
from collections.abc import Callable
import pathlib
import re
from typing import Any, NamedTuple

import grid  # beside this file
import numpy as np

from earl_jax.run import figures, measure
from earl_jax.run.curves import draw_band, RunMetrics

METHODS = {'earl': 'EARL', 'prompt_cpo': 'Prompt+CPO', 'prompt_grpo': 'Prompt+GRPO', 'sft_grpo': 'SFT+GRPO'}
SEEDS = (0, 1, 2)
# What tells of planning in prose: the phrases of the paper's Table 1.
PHRASES = (
    'not close', 'is close', 'close to', 'still close', 'different approach', 'another approach',
    'different combination', 'another combination', 'negate', 'far from',
)
# What CPO rewrites besides the groups in which nothing earned anything: none, or this share of all rollouts.
ALGORITHMS = {
    'GRPO': {'algorithm.counterfactual': False, 'algorithm.rewrite_fraction': 0.2},  # which it does not read
    'CPO, 0': {'algorithm.rewrite_fraction': 0.0},
    'CPO, 0.2': {'algorithm.rewrite_fraction': 0.2},
    'CPO, 1': {'algorithm.rewrite_fraction': 1.0},
}
ENTROPIES = (0.0, 0.01)


class Run(NamedTuple):
  """A run that was kept.

  Attributes:
    seed: of the run.
    label: of the last task of its curriculum.
    results: task label -> greedy evaluation of the final policy.
    metrics: of every step.
    episodes: the responses of its last samples.
  """

  seed: int
  label: str
  results: dict[str, dict[str, Any]]
  metrics: RunMetrics
  episodes: list[str]

  @property
  def result(self) -> dict[str, Any]:
    return self.results[self.label]

  @property
  def sampled(self) -> float:
    """Exact match of the rollouts in the last tenth of the steps; NaN where the task was not among them."""
    values = self.metrics.values(f'exact_match/{self.label}')
    return float(values[-max(1, len(values) // 10) :].mean()) if len(values) else np.nan

  @property
  def minutes(self) -> float:
    return float(self.metrics.values('seconds').sum() / 60)

  @property
  def rollouts(self) -> int:
    return int(self.metrics.rollouts[-1]) if len(self.metrics.lines) else 0


Runs = dict[tuple, list[Run]]  # what a cell is but for its seed -> its runs, seed by seed


class Study(NamedTuple):
  """Runs that answer one question.

  Attributes:
    page: of docs/, where the block of this study's name says what came of it.
    cells: (…, seed) -> arguments of `earl_jax.train`.
    tell: what finished runs say, as Markdown, and pictures they draw into a folder.
    minutes: of a cell on one core, roughly, before any was measured.
  """

  page: str
  cells: dict[tuple, list[str]]
  tell: Callable[[Runs, pathlib.Path], str]
  minutes: float


def interval(runs: list[Run]) -> str:
  """Wilson's of exact match, over the problems of all runs."""
  count = sum(run.result['count'] for run in runs)
  right = round(sum(run.result['exact_match'] * run.result['count'] for run in runs))
  return '{:.1%} - {:.1%}'.format(*measure.wilson_interval(right, count))


def mean(runs: list[Run], metric: str) -> float:
  return float(np.mean([run.result[metric] for run in runs]))


def tell_seeds(runs: Runs, images: pathlib.Path) -> str:
  """A row per seed of one config, for tasks whose solutions have a proof or a cost."""
  del images
  rows = [['seed', 'task', 'steps', 'exact match', 'certified', 'comparisons', 'the optimum', 'problems', 'minutes']]
  for run in (run for members in runs.values() for run in members):
    result = run.result
    optimum = result.get('references', {}).get('optimal', {}).get('comparisons', np.nan)
    rows.append([
        str(run.seed), run.label, str(result['step']), f'**{result["exact_match"]:.1%}**', f'{result["certified"]:.1%}',
        f'{result["comparisons"]:.3f}', f'{optimum:.3f}', str(result['count']), f'{run.minutes:.0f}',
    ])
  return grid.markdown(rows)


def tell_exact(runs: Runs, images: pathlib.Path) -> str:
  """A row per seed of one config, for tasks that are right or wrong."""
  del images
  rows = [['seed', 'greedy', '95 % interval', 'sampled', 'calls an episode', 'problems', 'rollouts', 'minutes']]
  for run in (run for members in runs.values() for run in members):
    rows.append([
        str(run.seed), f'**{run.result["exact_match"]:.1%}**', interval([run]), f'{run.sampled:.1%}',
        f'{run.result["calls"]:.2f}', str(run.result['count']), f'{run.rollouts:,}', f'{run.minutes:.0f}',
    ])
  return grid.markdown(rows)


def tell_methods(runs: Runs, images: pathlib.Path) -> str:
  """For every task a table of the methods, the curves and, where there is any, how they plan in prose."""
  parts = []
  for task in dict.fromkeys(task for task, _ in runs):
    of_task = {method: runs[task, method] for method in METHODS if (task, method) in runs}
    label = next(iter(of_task.values()))[0].label
    what, metric = curve(of_task, label)
    draw_methods(of_task, metric, f'{what}, {label}', images / f'{task}.png')
    seeds = max(map(len, of_task.values()))
    parts += [
        f'### {task}, {seeds} seed{"s" * (seeds > 1)}', methods_table(of_task),
        f'![{what} on {label} over rollouts](images/{task}.png)',
    ]
    if planning := phrases_table(of_task):
      parts += ["Phrases of the paper's Table 1 in the last sampled episodes, per hundred:", planning]
  return '\n\n'.join(parts)


def methods_table(runs: dict[str, list[Run]]) -> str:
  rows = [['method', 'exact match', '95 % interval', 'lowest, highest seed', 'sampled', 'calls an episode', 'invalid',
           'decisions / tokens a solved problem', 'rollouts', 'minutes', 'seeds']]
  for method, members in runs.items():
    shares = [run.result['exact_match'] for run in members]
    solved = [run.result['solved'] for run in members if 'solved' in run.result]
    spent = [f'{np.mean([s[metric] for s in solved]):.1f}' for metric in ('decisions', 'response_length') if solved]
    rows.append([
        METHODS[method], f'**{np.mean(shares):.1%}**', interval(members), f'{min(shares):.1%}, {max(shares):.1%}',
        grid.spread([run.sampled for run in members], '{:.1%}'), f'{mean(members, "calls"):.2f}',
        f'{mean(members, "invalid_calls"):.2f}', ' / '.join(spent),
        grid.spread([run.rollouts for run in members], '{:,.0f}'),
        grid.spread([run.minutes for run in members], '{:.0f}'), str(len(members)),
    ])
  return grid.markdown(rows)


def phrases_table(runs: dict[str, list[Run]]) -> str:
  """Planning phrases per hundred episodes; empty where nobody plans in prose."""
  rows, found = [['method', 'episodes', *PHRASES]], 0
  for method, members in runs.items():
    episodes = [episode.lower() for run in members for episode in run.episodes]
    counts = collections.Counter(
        {phrase: sum(len(re.findall(rf'\b{phrase}\b', episode)) for episode in episodes) for phrase in PHRASES}
    )
    found += counts.total()
    if episodes:
      each = (f'{100 * counts[phrase] / len(episodes):.0f}' for phrase in PHRASES)
      rows.append([METHODS[method], str(len(episodes)), *each])
  return grid.markdown(rows) if found else ''


def curve(runs: dict[str, list[Run]], label: str) -> tuple[str, str]:
  """What a picture shows, and the metric: of short runs, with less than three evaluations, the rollouts themselves."""
  metric = f'eval/{label}/exact_match'
  fewest = min(np.isfinite(run.metrics.values(metric)).sum() for members in runs.values() for run in members)
  return ('Greedy exact match', metric) if fewest >= 3 else ('Sampled exact match', f'exact_match/{label}')


def draw_methods(runs: dict[str, list[Run]], metric: str, label: str, path: pathlib.Path) -> None:
  """A metric against rollouts: mean over seeds, and a band from the lowest to the highest."""
  figure, axes = figures.new_figure(figsize=(7, 4))
  for color, (method, name) in zip(figures.COLORS, METHODS.items()):
    if members := [run.metrics for run in runs.get(method, [])]:
      draw_band(axes, members, metric, color=color, label=name)
  axes.set(xlabel='rollouts', ylabel=label, ylim=(-0.03, 1.03))
  axes.xaxis.set_major_formatter('{x:,.0f}')
  axes.yaxis.set_major_formatter('{x:.0%}')
  figures.legend(axes)
  figures.save(figure, path)


def tell_before_and_after(runs: Runs, images: pathlib.Path) -> str:
  """As `tell_methods`, and what the methods begin with: the cells 'untrained'."""
  trained = {key: members for key, members in runs.items() if key[1] in METHODS}
  rows = [['task', 'interface', 'problems', 'exact match', '95 % interval', 'calls an episode']]
  for (task, name), members in runs.items():
    if name not in METHODS:
      run = members[0]
      rows.append([
          task, name.removeprefix('untrained_'), str(run.result['count']), f'**{run.result["exact_match"]:.1%}**',
          interval(members), f'{run.result["calls"]:.2f}',
      ])
  before = ['### Untrained', grid.markdown(rows)] if len(rows) > 1 else []
  return '\n\n'.join([*before, *([tell_methods(trained, images)] if trained else [])])


def tell_algorithms(runs: Runs, images: pathlib.Path) -> str:
  """Rollouts, decoded tokens and minutes until solved, for GRPO and CPO of several fractions."""
  del images
  rows = [['algorithm', 'entropy', 'exact match', 'certified', 'rollouts until 90 %', 'rollouts until solved',
           'decoded tokens until solved', 'minutes until solved', 'seeds']]
  for (algorithm, entropy), members in runs.items():
    solved = [first(run, 1.0, 'certified') for run in members]
    rows.append([
        algorithm, f'{entropy:g}', grid.spread([run.result['exact_match'] for run in members], '{:.1%}'),
        grid.spread([run.result['certified'] for run in members], '{:.1%}'),
        grid.spread([so_far(run, first(run, 0.9), 'rollouts') for run in members], '{:,.0f}'),
        *(grid.spread([so_far(run, at, what) for run, at in zip(members, solved)], form)
          for what, form in (('rollouts', '{:,.0f}'), ('tokens', '{:,.0f}'), ('minutes', '{:.1f}'))),
        str(len(members)),
    ])
  return grid.markdown(rows)


def first(run: Run, threshold: float, metric: str = 'exact_match') -> int | None:
  """Steps until a greedy evaluation has at least this; None if none has."""
  reached = np.flatnonzero(run.metrics.values(f'eval/{run.label}/{metric}') >= threshold)
  return int(reached[0]) + 1 if len(reached) else None


def so_far(run: Run, steps: int | None, what: str) -> float:
  """What a run spent in its first steps; NaN where there is no such number."""
  if steps is None:
    return np.nan
  if what == 'rollouts':
    return float(run.metrics.rollouts[steps - 1])
  return float(run.metrics.values('tokens')[:steps].sum() if what == 'tokens' else
               run.metrics.values('seconds')[:steps].sum() / 60)


def _fields(fields: dict[str, Any]) -> list[str]:
  return [f'--config.{name}={value}' for name, value in fields.items()]


def _methods(config: str, tasks: tuple[str, ...], seeds: tuple[int, ...], **fields: Any) -> dict[tuple, list[str]]:
  return {
      (task, method, seed): [f'--config=configs/{config}.py:{task},{method}', *_fields(fields | {'seed': seed})]
      for seed in seeds for task in tasks for method in METHODS
  }


def _seeds(config: str, seeds: tuple[int, ...], **fields: Any) -> dict[tuple, list[str]]:
  return {(config, seed): [f'--config=configs/{config}.py', *_fields(fields | {'seed': seed})] for seed in seeds}


STUDIES = {
    'sort4': Study('results.md', _seeds('sort4', SEEDS), tell_seeds, 10),
    'countdown3': Study('results.md', _seeds('countdown3', SEEDS, evaluation_prompts=512), tell_exact, 20),
    'methods': Study(
        'results.md',
        {
            **_methods('embedded', ('sort4', 'sort4_shown', 'countdown3'), SEEDS),
            **_methods(
                'embedded', ('countdown3_strict',), SEEDS, steps=200, evaluate_every=20, evaluation_prompts=512
            ),
        },
        tell_methods, 20,
    ),
    'algorithms': Study(
        'results.md',
        {
            (name, entropy, seed): [
                '--config=configs/sort4.py', *_fields(fields | {'algorithm.entropy': entropy, 'seed': seed})
            ]
            for seed in SEEDS for entropy in ENTROPIES for name, fields in ALGORITHMS.items()
        },
        tell_algorithms, 10,
    ),
    'sort5': Study('results.md', _seeds('sort5', (0,)), tell_seeds, 90),
    'language_model': Study(
        'language_model.md',
        {
            **{
                ('arithmetic_small', f'untrained_{interface}', 0): [
                    f'--config=configs/smollm2.py:arithmetic_small,{method}', '--config.steps=0'
                ]
                for interface, method in (('expanded', 'earl'), ('tagged', 'prompt_cpo'))
            },
            **_methods('smollm2', ('arithmetic_small',), (0,)),
            **{
                (task, name, 0): [f'--config=configs/smollm2.py:{task},earl', *_fields({'dtype': 'bfloat16'} | fields)]
                for task in ('sort2', 'sort3', 'countdown')
                for name, fields in (('untrained_expanded', {'steps': 0}), ('earl', {}))
            },
        },
        tell_before_and_after, 60,
    ),
}
