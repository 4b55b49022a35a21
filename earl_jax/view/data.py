"""What a run left behind, as the viewer's page reads it: JSON that was looked at before it is believed."""

from collections.abc import Iterator
import json
import pathlib
from typing import Any

import numpy as np

from earl_jax.config import Config
from earl_jax.run.curves import cost_of, optimum_of, read_run, RunMetrics, tasks_of
from earl_jax.run.workdir import read_config

__all__ = ['encode', 'read']

MOST_BYTES = 8_000_000  # of episodes in a page
MOST_POINTS = 600  # of a line in a chart

NUMBER = (int, float, type(None))
EPISODE = {'reward': NUMBER, 'advantage': NUMBER, 'finished': bool, 'omitted': int, 'decisions': list}
FACTUAL = EPISODE | {'exact_match': bool, 'metrics': dict}
COUNTERFACTUAL = EPISODE | {'environment': str, 'fork': int}
LINE = {
    'step': int, 'task': str, 'problem': int, 'row': int, 'prompt': str, 'factual': dict,
    'counterfactual': (dict, type(None)),
}
DECISION = {'text': str, 'log_prob': NUMBER}
OPTION = {'text': str, 'probability': NUMBER, 'name': str}
MORE = {  # what a decision may lack
    'reference': NUMBER, 'environment': str, 'language': bool, 'written': str, 'entropy': NUMBER, 'legal': int,
    'options': list,
}


def encode(value: Any) -> str:
  """JSON in ASCII that is safe inside a <script> element: nothing in it can end the element or begin another."""
  text = json.dumps(value, allow_nan=False, separators=(',', ':'))
  return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def read(workdir: pathlib.Path) -> dict[str, Any]:
  """The run in `workdir`, finished or not: curves, episodes, and notes on what there is not.

  Raises:
    UserError: there is no run, or it has not finished a step.
  """
  config, run = read_config(workdir), read_run(workdir)
  episodes, notes = _episodes(workdir / 'samples')
  return {
      'name': workdir.resolve().name,
      'facts': _facts(config, run),
      'environments': _environments(workdir, episodes),
      'charts': _charts(workdir, run),
      'stages': _stages(config, run),
      'episodes': episodes,
      'algorithm': None,
      'notes': notes,
  }


def _facts(config: Config, run: RunMetrics) -> list[tuple[str, str]]:
  """What stands at the head of the page."""
  algorithm = 'CPO' if config.algorithm.counterfactual else 'GRPO'
  last = run.lines[-1]
  facts = [
      ('model', pathlib.PurePath(config.model).name),
      ('algorithm', f'{algorithm}, {config.interface}'),
      ('steps', f'{last["step"] + 1:,} of {config.steps:,}'),
      ('rollouts', f'{run.rollouts[-1]:,}'),
  ]
  known = [name for name in ('reward', 'exact_match') if last.get(name) is not None]
  return facts + [(name.replace('_', ' '), f'{last[name]:.3f}') for name in known]


def _environments(workdir: pathlib.Path, episodes: list[dict[str, Any]]) -> list[str]:
  """Names in an order that stays the same: that of their colours."""
  path = workdir / 'versions.json'
  names = list(json.loads(path.read_text('utf-8'))) if path.is_file() else []
  for line in episodes:
    for part in (line['factual'], line['counterfactual'] or {}):
      names += [decision['environment'] for decision in part.get('decisions', ()) if decision.get('environment')]
  return list(dict.fromkeys(names))


def _stages(config: Config, run: RunMetrics) -> list[dict[str, Any]]:
  """Where each stage of the curriculum begins, in steps, and what is in it."""
  stages, found, before = run.values('stage'), [], None
  for line, stage in zip(run.lines, stages):
    if np.isfinite(stage) and stage != before:
      tasks = config.curriculum[int(stage)].tasks if 0 <= stage < len(config.curriculum) else ()
      names = [name.rpartition(':')[2] + ''.join(str(x) for x in options.values()) for name, options, _ in tasks]
      found.append({'step': line['step'], 'name': f'stage {int(stage) + 1}', 'tasks': ', '.join(names)})
      before = stage
  return found


def _charts(workdir: pathlib.Path, run: RunMetrics) -> list[dict[str, Any]]:
  """Charts of lines (training batches), points (greedy evaluations) and levels (the optimum), by step."""
  tasks = sorted({name for line in run.lines for name in tasks_of(line)})
  cost = cost_of(workdir)
  exact, costs = [], [_series(run, cost, 'training batches', 'line')]
  for k, task in enumerate(tasks):
    exact.append(_series(run, f'exact_match/{task}', task, 'line', k))
    exact.append(_series(run, f'eval/{task}/exact_match', f'{task}, greedy', 'points', k))
    costs.append(_series(run, f'eval/{task}/{cost}', f'{task}, greedy', 'points', k))
    optimum = optimum_of([workdir], task, cost)
    if optimum is not None:
      costs.append({'name': f'{task}, optimum', 'kind': 'level', 'color': k, 'level': optimum, 'points': []})
  reward = [_series(run, 'reward', 'reward', 'line')]
  gain = [_series(run, 'counterfactual/gain', 'counterfactual gain', 'line', 1)]
  charts = [
      {'title': 'Exact match', 'percent': True, 'series': exact},
      {'title': cost.replace('_', ' ').capitalize(), 'percent': False, 'series': costs},
      {'title': 'Reward', 'percent': False, 'series': reward},
      {'title': 'Counterfactual gain', 'percent': False, 'series': gain},
  ]
  for chart in charts:
    chart['series'] = [series for series in chart['series'] if series['points'] or series['kind'] == 'level']
  return [chart for chart in charts if any(series['points'] for series in chart['series'])]


def _series(run: RunMetrics, metric: str, name: str, kind: str, color: int | None = None) -> dict[str, Any]:
  """Its values where it was measured; of more than `MOST_POINTS` the means of as many neighbours as it takes."""
  points = [(line['step'], value) for line, value in zip(run.lines, run.values(metric)) if np.isfinite(value)]
  size = max(1, -(-len(points) // MOST_POINTS))
  means = [np.mean(points[i : i + size], axis=0) for i in range(0, len(points), size)]
  return {'name': name, 'kind': kind, 'color': color, 'points': [[round(float(x), 4) for x in mean] for mean in means]}


def _episodes(folder: pathlib.Path) -> tuple[list[dict[str, Any]], list[str]]:
  """The sampled episodes, in order of their steps, and what had to be left out."""
  paths, notes, damaged = sorted(folder.glob('step_*.jsonl')), [], 0
  if not paths:
    said = 'no samples yet' if not list(folder.glob('step_*.txt')) else 'samples of an older version, as text only'
    return [], [f'{folder.name}/: {said}; episodes are shown for steps that this version sampled']
  every = _stride([path.stat().st_size for path in paths])  # most of a long run need not be read
  steps, sizes = [], []
  for path in paths[::-every][::-1]:
    found, size = [], 0
    for line in _lines(path):
      damaged += line is None
      length = len(encode(line))
      if line is not None and size + length <= MOST_BYTES:
        found.append(line)
        size += length
    steps.append(found)
    sizes.append(size)
  more = _stride(sizes)  # what had to be escaped has grown
  if damaged:
    notes.append(f'{folder.name}/: {damaged} lines are damaged or half written, and were left out')
  if every * more > 1:
    notes.append(f'{folder.name}/: one sampled step of every {every * more} is shown, or the page would be too large')
  return [line for found in steps[::-more][::-1] for line in found], notes


def _stride(sizes: list[int]) -> int:
  """Of how many steps one can be shown, the last one among them."""
  every = 1
  while sum(sizes[::-every]) > MOST_BYTES and every < len(sizes):
    every += 1
  return every


def _lines(path: pathlib.Path) -> Iterator[dict[str, Any] | None]:
  """The lines of a file; None for one that is no such line."""
  for text in path.read_bytes().splitlines():
    try:
      yield _checked(json.loads(text, parse_constant=_refuse))
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or other JSON
      yield None


def _refuse(name: str) -> None:
  raise ValueError(name)  # NaN and infinities, which JSON lacks


def _checked(line: Any) -> dict[str, Any]:
  """What the page reads of a line; raises ValueError where that is not what it should be."""
  line = _only(line, LINE)
  line['factual'] = _only(line['factual'], FACTUAL)
  line['factual']['metrics'] = {k: v for k, v in line['factual']['metrics'].items() if isinstance(v, NUMBER)}
  parts = [line['factual']]
  if line['counterfactual'] is not None:
    line['counterfactual'] = _only(line['counterfactual'], COUNTERFACTUAL)
    parts.append(line['counterfactual'])
  for part in parts:
    part['decisions'] = [_only(decision, DECISION, MORE) for decision in part['decisions']]
    for decision in part['decisions']:
      for option in decision.get('options', ()):
        text, probability, name = option if isinstance(option, list) else ()
        _only({'text': text, 'probability': probability, 'name': name}, OPTION)
  return line


def _only(value: Any, fields: dict[str, Any], more: dict[str, Any] | None = None) -> dict[str, Any]:
  """These fields of an object, and those of `more` that it has."""
  if not isinstance(value, dict):
    raise ValueError('no object')
  wanted = fields | {name: kind for name, kind in (more or {}).items() if name in value}
  for name, kind in wanted.items():
    if not isinstance(value.get(name), kind):
      raise ValueError(name)
  return {name: value[name] for name in wanted}
