"""What a run reports while it trains: metrics.jsonl, a progress line, and what trackers show. Process 0 only."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import importlib.util
import json
import math
import os
import pathlib
import sys
import time
from typing import Any
import zlib

from absl import logging
import jax
import numpy as np
from tqdm import auto as tqdm_auto

from earl_jax.config import Config
from earl_jax.run.episodes import visible
from earl_jax.run.trackers import open_trackers
from earl_jax.run.workdir import replacing_file
from earl_jax.tasks.base import Column

__all__ = ['MetricsWriter', 'ProgressBar']

# metric -> how the progress line shows it, in this order; metrics that are not given are left out
SHOWN = {
    'stage': 'stage {}',
    'reward': 'reward {:.3f}',
    'exact_match': 'exact {:.3f}',
    'calls': 'calls {:.2f}',
    'zero_reward_groups': 'zero-reward groups {:.0%}',
}
SPEED = {'tokens_per_second': '{:,.0f} tokens/s'}


class MetricsWriter:
  """Writes one run's metrics to workdir/metrics.jsonl, to its trackers, and to the progress line; samples likewise.

  On resume the lines of steps that will be run again are dropped, so that the file of an interrupted run equals that
  of an uninterrupted one wherever the metrics are equal (timings are not).
  """

  def __init__(
      self, workdir: str | os.PathLike, config: Config, resume_step: int = 0, columns: Sequence[Column] = (),
      written: Sequence[int] | None = None,
  ):
    """Opens the files and the trackers. A warning says if metrics.jsonl is not what it was.

    Args:
      workdir: the run's folder, which exists.
      config: the run's.
      resume_step: the first step that will be written.
      columns: what the progress line shows of the tasks' own metrics.
      written: `written` of the run as it was after `resume_step` steps, if that is known.

    Raises:
      UserError: a tracker cannot be opened.
    """
    self.written = [0, 0]  # bytes and CRC-32 of metrics.jsonl, for the checkpoint to keep
    self._active = jax.process_index() == 0
    if not self._active:
      return
    self._workdir = pathlib.Path(workdir)
    self._trackers = open_trackers(self._workdir, config, resume_step)
    path = self._workdir / 'metrics.jsonl'
    if path.exists():
      _drop_from(path, resume_step)
      with path.open('rb') as lines:
        for line in lines:
          self._count(line)
    if written is not None and self.written != list(written):
      logging.warning('%s: not what the run wrote; its numbers before step %d may be wrong', path, resume_step)
    self._file = path.open('ab')
    self._bar = ProgressBar(config.steps, resume_step, columns)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def write(self, step: int, metrics: dict[str, Any]) -> None:
    """Reports the metrics of one step.

    Args:
      step: from 0, increasing.
      metrics: name -> number, array of shape [], or string. Trackers get no strings; NaN and infinities,
        which JSON lacks, become null in the file.
    """
    if not self._active:
      return
    values = {name: v if isinstance(v, str) else np.asarray(v).item() for name, v in metrics.items()}
    finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
    line = f'{json.dumps({"step": step} | finite)}\n'.encode()
    self._file.write(line)
    self._file.flush()  # the line outlives a kill
    self._count(line)
    self._trackers.log(step, {name: value for name, value in values.items() if not isinstance(value, str)})
    self._bar.update(step, values)

  def log_samples(self, step: int, samples: Sequence[str], draw: Callable[[pathlib.Path], None] | None) -> None:
    """Gives rollouts of a step to the trackers: their texts, and a picture of one where matplotlib is installed.

    Args:
      step: as in `write`.
      samples: texts that a model wrote.
      draw: makes a PNG file of this path; None = no picture.
    """
    if not self._active or not self._trackers:
      return
    self._trackers.log_samples(step, [visible(sample) for sample in samples])
    if draw and importlib.util.find_spec('matplotlib'):
      path = self._workdir / 'samples' / f'step_{step:06d}.png'
      draw(path)
      self._trackers.log_picture(step, 'episode', path)

  def _count(self, line: bytes) -> None:
    size, checksum = self.written
    self.written = [size + len(line), zlib.crc32(line, checksum)]

  def close(self) -> None:
    """Flushes and closes the files."""
    if self._active:
      self._file.close()
      self._trackers.close()
      self._bar.close()


def _drop_from(path: pathlib.Path, step: int) -> None:
  """Leaves the whole lines of `path` whose step is below `step`, and says how many are damaged."""
  damaged = 0
  with replacing_file(path) as new, path.open('rb') as lines:  # of a long run they are many: one at a time
    for line in lines:
      try:
        keep = line.endswith(b'\n') and json.loads(line)['step'] < step
      except (ValueError, TypeError, KeyError):
        damaged += line.endswith(b'\n')
        continue  # else cut short by a kill
      if keep:
        new.write(line)
  if damaged:
    logging.warning('%s: %d damaged lines are left out', path, damaged)


@contextlib.contextmanager
def _ignoring_terminal_errors() -> Iterator[None]:
  """A terminal or a pipe that is gone must not end a run. tqdm keeps its lock then, which other threads wait for."""
  try:
    yield
  except OSError:
    with contextlib.suppress(RuntimeError, AssertionError):  # not held
      tqdm_auto.tqdm.get_lock().release()


class ProgressBar:
  """A progress bar in terminals and notebooks; elsewhere (a log file) a plain line now and then."""

  def __init__(
      self, total_steps: int, resume_step: int = 0, columns: Sequence[Column] = (), interval: float = 30.0
  ):
    """Starts the clock. `interval`: seconds between plain lines; the rest as in `MetricsWriter`."""
    self._forms = SHOWN | {column.metric: f'{column.metric} {column.form}' for column in columns} | SPEED
    self._total, self._interval = total_steps, interval
    self._first, self._last = None, -math.inf
    self._bar = None
    if sys.stderr.isatty() or 'ipykernel' in sys.modules:  # a notebook's stderr is no terminal, yet it can draw
      with _ignoring_terminal_errors():  # it draws at once
        self._bar = tqdm_auto.tqdm(total=total_steps, initial=resume_step, unit='step', dynamic_ncols=True)
    elif resume_step < total_steps:
      with _ignoring_terminal_errors():
        print(f'step {resume_step}/{total_steps}: compiling', file=sys.stderr, flush=True)

  def update(self, step: int, metrics: dict[str, Any]) -> None:
    """Shows that step `step` (from 0) is done. Metrics that have no form are ignored."""
    with _ignoring_terminal_errors():
      self._show(step + 1, metrics)

  def _show(self, done: int, metrics: dict[str, Any]) -> None:
    text = ', '.join(form.format(metrics[name]) for name, form in self._forms.items() if name in metrics)
    if self._bar is not None:
      self._bar.set_postfix_str(text, refresh=False)
      self._bar.update(done - self._bar.n)
      return
    now = time.monotonic()
    self._first = self._first or (now, done)
    if now - self._last < self._interval and done < self._total:
      return
    self._last = now
    began, first = self._first
    if done > first:  # the first step compiles, and says nothing of the others
      left = (now - began) / (done - first) * (self._total - done)
      text = ', '.join(filter(None, (text, f'{tqdm_auto.tqdm.format_interval(left)} left')))
    print(f'step {done}/{self._total}: {text}', file=sys.stderr, flush=True)

  def close(self) -> None:
    """Leaves the bar as it stands."""
    if self._bar is not None:
      with _ignoring_terminal_errors():
        self._bar.close()
