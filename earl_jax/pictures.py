"""Pictures of runs and of trajectories.

  python -m earl_jax.pictures --workdir=runs/sort4 [--out=runs/sort4/pictures]

draws the run's learning curve and, from its newest checkpoint, one greedy episode of the last task of its curriculum.
Needs matplotlib: `pip install 'earl_jax[plot]'`. Backgrounds are transparent, for white and for black pages.
"""

import html
import itertools
import json
import pathlib
import sys
from typing import Any, NamedTuple

from absl import flags
import jax
import numpy as np

from earl_jax import evaluate
from earl_jax.acting.trajectory import Trajectory
from earl_jax.action_space import LANGUAGE
from earl_jax.config import UserError
from earl_jax.run import cli
from earl_jax.run.experiment import Experiment

__all__ = ['COLORS', 'draw_band', 'learning_curve', 'legend', 'new_figure', 'read_run', 'Run', 'save', 'trajectory',
           'trajectory_html']

MARKERS = 'os^Dv'
COLORS = ('#3b82d6', '#d9730d', '#2e9e5b', '#9b6ddb', '#d9485f', '#1a9aa8', '#b58a00', '#c75ba8')
INK = '#6e7781'  # axes and their text: between white and black
TEXT = '#1f2328'  # inside boxes, which bring their own background
PROMPT = -1  # what `Piece.environment` says of the prompt

# Layout of a trajectory, in inches, with a monospaced font of FONT_SIZE points.
FONT_SIZE = 9
CHARACTER = 0.602 * FONT_SIZE / 72  # its width in DejaVu Sans Mono
ROW, BOX, PADDING, GAP, WIDTH = 0.29, 0.21, 0.055, 0.05, 9.0


class Run(NamedTuple):
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


class Piece(NamedTuple):
  """A box of a trajectory: one token, or all tokens of one description.

  Attributes:
    environment: `PROMPT`, 0 = language, k = external environment k.
    decision: the policy chose it; otherwise it was written.
  """

  text: str
  environment: int
  decision: bool


def read_run(workdir: str | pathlib.Path) -> Run:
  """Reads a run's metrics, finished or not.

  Raises:
    UserError: there is no run in `workdir`, or it has not finished a step.
  """
  rollout = evaluate.read_config(pathlib.Path(workdir)).rollout
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  texts = path.read_text(encoding='utf-8').splitlines(keepends=True) if path.is_file() else []
  lines = [json.loads(text) for text in texts if text.endswith('\n')]  # the last may be half written
  if not lines:
    raise UserError(f'{path}: no finished step in it; train longer, or give another workdir')
  steps = np.array([line['step'] for line in lines])
  return Run(lines, (steps + 1) * rollout.prompts * rollout.group)


def learning_curve(workdirs: dict[str, list[str | pathlib.Path]], path: str | pathlib.Path) -> None:
  """Draws exact match and comparisons against rollouts.

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
  figure, (exact, comparisons) = new_figure(2, 1, figsize=(8, 5.2), sharex=True, height_ratios=(3, 2))
  tasks = sorted({name for runs in groups.values() for run in runs for line in run.lines for name in _tasks(line)})
  styles = list(zip(tasks, itertools.cycle(COLORS), itertools.cycle(MARKERS)))
  colors = [INK] if len(groups) == 1 else itertools.cycle(COLORS)
  for color, (label, runs) in zip(colors, groups.items()):
    for task, task_color, marker in styles:
      shade = task_color if len(groups) == 1 else color
      if len(groups) == 1:
        draw_band(exact, runs, f'exact/{task}', color=shade, label=task)
      draw_band(exact, runs, f'eval/{task}/exact', color=shade, marker=marker)
      draw_band(comparisons, runs, f'eval/{task}/comparisons', color=shade, marker=marker)
    if len(groups) > 1:
      draw_band(exact, runs, 'exact', color=color, label=label)
    draw_band(comparisons, runs, 'comparisons', color=color)
    for run in runs:
      for at in run.rollouts[1:][np.diff(run.values('stage')) > 0]:
        for axes in (exact, comparisons):
          axes.axvline(at, color=color, linestyle=':', linewidth=1, zorder=0)
  for task, task_color, marker in styles:
    exact.plot([], [], marker, color=INK, markersize=4.5, markeredgewidth=0, label=f'{task}, greedy')
    optimum = _optimal_comparisons([workdir for paths in workdirs.values() for workdir in paths], task)
    if optimum is not None:
      color = task_color if len(groups) == 1 else INK
      comparisons.axhline(optimum, color=color, linestyle=(0, (4, 3)), linewidth=1, zorder=0)
  exact.set(ylabel='exact match', ylim=(-0.03, 1.03))
  exact.yaxis.set_major_formatter('{x:.0%}')
  legend(exact)
  comparisons.set(ylabel='comparisons', xlabel='rollouts')
  comparisons.set_ylim(bottom=0)
  comparisons.xaxis.set_major_formatter('{x:,.0f}')
  save(figure, path)


def draw_band(axes: Any, runs: list[Run], metric: str, *, color: str, label: str | None = None, marker: str = ''):
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
  known = np.isfinite(values)
  mean = np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)
  if marker:
    axes.plot(x, mean, marker, color=color, markersize=4.5, markeredgewidth=0, label=label, zorder=3)
    return
  axes.plot(x, mean, color=color, linewidth=1.8, label=label)
  if len(runs) > 1:
    low, high = np.where(known, values, np.inf).min(axis=0), np.where(known, values, -np.inf).max(axis=0)
    axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)


def _tasks(line: dict[str, Any]) -> list[str]:
  """Tasks measured in a line of metrics: `exact/sort2`, `eval/sort2/exact` -> `sort2`."""
  trained = [name.removeprefix('exact/') for name in line if name.startswith('exact/')]
  return trained + [name.split('/')[1] for name in line if name.startswith('eval/')]


def _optimal_comparisons(workdirs: list[str | pathlib.Path], task: str) -> float | None:
  """What the optimal algorithm spends on `task`, as evaluation.json of a run says; None if none does."""
  for path in (pathlib.Path(workdir) / 'evaluation.json' for workdir in workdirs):
    for family, results in (json.loads(path.read_text()) if path.is_file() else {}).items():
      for size, result in results.items():
        if f'{family}{size}' == task and 'optimal' in result.get('baselines', {}):
          return result['baselines']['optimal']['comparisons']
  return None


def trajectory(experiment: Experiment, trajectory: Trajectory, row: int, path: str | pathlib.Path) -> None:
  """Draws one trajectory as boxes of tokens.

  Args:
    experiment: what it was rolled out with.
    trajectory: a batch; `row` says which of it.
    path: of the picture, PNG or SVG.

  Raises:
    UserError: another suffix, or matplotlib is missing.
  """
  boxes, x, y = [], GAP, 0.0  # (left, top, piece)
  parts = pieces(experiment, trajectory, row)
  for piece, previous in zip(parts, [None, *parts]):
    starts_response = previous and previous.environment == PROMPT != piece.environment
    if x > GAP and (starts_response or x + _width(piece) + GAP > WIDTH):
      x, y = GAP, y + ROW
    boxes.append((x, y + 0.4 * ROW if piece.environment != PROMPT else y, piece))
    x += _width(piece) + GAP
    if piece.text.endswith('\n'):
      x, y = GAP, y + ROW
  x, y = GAP, y + 2.4 * ROW
  for piece in _legend(experiment):
    if x + _width(piece) + GAP > WIDTH:
      x, y = GAP, y + ROW
    boxes.append((x, y, piece))
    x += _width(piece) + 3 * GAP

  width = max(x + _width(piece) for x, _, piece in boxes) + GAP
  height = y + ROW
  figure, axes = new_figure(figsize=(width, height), layout='none')
  axes.set_position((0, 0, 1, 1))
  axes.set(xlim=(0, width), ylim=(height, 0))
  axes.set_axis_off()
  for x, y, piece in boxes:
    fill, edge = _colors(piece)
    axes.add_patch(_matplotlib().patches.FancyBboxPatch(
        (x, y + (ROW - BOX) / 2), _width(piece), BOX, boxstyle='round,pad=0,rounding_size=0.035', facecolor=fill,
        edgecolor=edge, linewidth=1.5 if piece.decision else 0.5,
    ))
    # parse_math: a dollar sign is no formula
    axes.text(x + PADDING, y + ROW / 2, _visible(piece.text), family='DejaVu Sans Mono', size=FONT_SIZE, color=TEXT,
              va='center_baseline', parse_math=False)
  save(figure, path)


def trajectory_html(experiment: Experiment, trajectory: Trajectory, row: int) -> str:
  """The same as HTML with inline styles, all text escaped: for notebooks, `IPython.display.HTML(…)`."""

  def box(piece: Piece) -> str:
    fill, edge = _colors(piece)
    style = (
        f'display:inline-block;margin:1px;padding:0 3px;border:{2 if piece.decision else 1}px solid {edge};'
        f'border-radius:3px;background:{fill};color:{TEXT};white-space:pre'
    )
    return f'<span style="{style}">{html.escape(_visible(piece.text))}</span>' + '<br>' * piece.text.endswith('\n')

  parts = pieces(experiment, trajectory, row)
  prompt = ''.join(box(piece) for piece in parts if piece.environment == PROMPT)
  response = ''.join(box(piece) for piece in parts if piece.environment != PROMPT)
  legend = ' '.join(map(box, _legend(experiment)))
  style = 'font-family:monospace;font-size:13px;line-height:1.7;margin:8px 0'
  return ''.join(f'<div style="{style}">{part}</div>' for part in (prompt, response, legend))


def pieces(experiment: Experiment, trajectory: Trajectory, row: int) -> list[Piece]:
  """The boxes of one trajectory, in order. A character that several tokens spell shows as � in each."""
  tokens, actions, language, start, end = (
      np.asarray(x[row]) for x in
      (trajectory.tokens, trajectory.actions, trajectory.language, trajectory.start, trajectory.end)
  )
  space, length = experiment.interface.space, experiment.config.rollout.prompt_length
  decode = experiment.tokenizer.decode
  found = [Piece(decode([token]), PROMPT, False) for token in tokens[start:length]]
  at, environment = length, LANGUAGE
  while at < end:
    expanded = actions[at] - space.vocab_size
    if language[at]:
      environment = expanded + 1 if expanded >= 0 else LANGUAGE
    count = space.description_lengths[expanded] if actions[at] >= 0 and expanded >= 0 else 1
    found.append(Piece(decode(tokens[at : at + count]), int(environment), bool(actions[at] >= 0)))
    at += count
  return found


def _legend(experiment: Experiment) -> list[Piece]:
  names = [environment.spec.name for environment in experiment.interface.environments]
  chosen = [Piece(f'{name}: chosen', k, True) for k, name in enumerate(['language', *names])]
  written = [Piece(f'{name}: written', k + 1, False) for k, name in enumerate(names)]
  return [Piece('prompt', PROMPT, False), chosen[0]] + [x for pair in zip(chosen[1:], written) for x in pair]


def _visible(text: str) -> str:
  """What a box shows of a token: boxes stand apart, so a leading space need not be seen, but a lone one must."""
  text = ''.join(c if c.isprintable() else '�' for c in text.replace('\n', '↵'))
  return text.strip(' ') or '␣' * len(text)


def _width(piece: Piece) -> float:
  return len(_visible(piece.text)) * CHARACTER + 2 * PADDING


def _colors(piece: Piece) -> tuple[str, str]:
  """(fill, edge) of a box."""
  if piece.environment == PROMPT:
    return '#d9dde2', '#d9dde2'
  if piece.environment == LANGUAGE:
    return '#ffffff', '#57606a'
  color = COLORS[(piece.environment - 1) % len(COLORS)]
  return (_tint(color, 0.35), color) if piece.decision else (_tint(color, 0.14), _tint(color, 0.35))


def _tint(color: str, strength: float) -> str:
  """`color` mixed with white."""
  channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
  return '#' + ''.join(f'{round(c):02x}' for c in 255 + strength * (channels - 255))


def _matplotlib() -> Any:
  """The library, which the rest of the package can do without. Raises UserError where it is not installed."""
  try:
    import matplotlib.figure
    import matplotlib.patches
  except ImportError:
    raise UserError("pictures need matplotlib, which is not installed; pip install 'earl_jax[plot]'") from None
  return matplotlib


def new_figure(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], layout: str = 'constrained', **kwargs):
  """(figure, axes) in this module's style, without any state of pyplot. `kwargs` go to `Figure.subplots`."""
  style = {
      'axes.axisbelow': True, 'axes.edgecolor': INK, 'axes.facecolor': 'none', 'axes.grid': True,
      'axes.labelcolor': INK, 'axes.spines.right': False, 'axes.spines.top': False, 'axes.titlecolor': INK,
      'figure.facecolor': 'none', 'font.size': 10, 'grid.alpha': 0.25, 'grid.color': INK, 'grid.linewidth': 0.6,
      'xtick.color': INK, 'ytick.color': INK,
  }
  with _matplotlib().rc_context(style):
    figure = _matplotlib().figure.Figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(rows, columns, **kwargs)


def legend(axes: Any) -> None:
  """A legend of up to five columns above `axes`."""
  axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1.0), ncols=5, frameon=False, labelcolor=INK)


def save(figure: Any, path: str | pathlib.Path) -> None:
  """Writes a figure as PNG or SVG, by the suffix of `path`, whose folder is made if need be.

  Raises:
    UserError: another suffix.
  """
  path = pathlib.Path(path)
  if path.suffix not in ('.png', '.svg'):
    raise UserError(f'path={str(path)!r}: pictures are PNG or SVG; end it in .png or .svg')
  path.parent.mkdir(parents=True, exist_ok=True)
  with _matplotlib().rc_context({'svg.hashsalt': 'earl_jax'}):  # the same picture is the same file
    figure.savefig(path, dpi=200, metadata={'Date': None} if path.suffix == '.svg' else None)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  del argv
  flags.DEFINE_string('workdir', None, 'Folder of the run.', flag_values=values, required=True)
  flags.DEFINE_string('out', None, 'Folder for the pictures; <workdir>/pictures by default.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  workdir = pathlib.Path(values.workdir)
  out = pathlib.Path(values.out or workdir / 'pictures')
  config = evaluate.read_config(workdir)
  learning_curve({workdir.name: [workdir]}, out / 'learning_curve.png')
  cli.prepare_jax(config)
  experiment, params, _ = evaluate.load(workdir, config)
  task, _ = experiment.stages[-1][-1]
  rows = experiment.mesh.shape['data'] * experiment.mesh.shape['fsdp']  # every device has one
  prompts = experiment.encode_prompts([task] * rows, [task.example(config.seed, 'test', i) for i in range(rows)])
  played = experiment.rollout(params, prompts, np.arange(rows), jax.random.key(config.seed), temperature=0.0)
  trajectory(experiment, played, 0, out / 'trajectory.png')
  print('\n'.join(str(out / name) for name in ('learning_curve.png', 'trajectory.png')))


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags))
