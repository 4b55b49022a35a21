"""Training many cells of a grid, each in a process of its own: resumable, several at a time. Used by the benchmarks."""

from collections.abc import Callable
from concurrent import futures
import os
import pathlib
import queue
import signal
import subprocess
import sys

from absl import flags
import numpy as np
from tqdm import tqdm

from earl_jax.config import UserError


def define_flags(values: flags.FlagValues, out: str) -> None:
  """The flags all grids have; `out` is the default folder."""
  flags.DEFINE_string('out', out, 'Folder of all cells and of the results.', flag_values=values)
  flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds of every cell.', flag_values=values)
  flags.DEFINE_integer('jobs', 1, 'Cells trained at a time.', 1, flag_values=values)
  flags.DEFINE_integer(
      'devices_per_job', None, 'Devices of one cell (CPU cores, or GPUs of its own); all there are by default.', 1,
      flag_values=values,
  )


def seeds(values: flags.FlagValues) -> list[int]:
  """Raises UserError where they are not numbers."""
  if not values.seeds or not all(seed.isdecimal() for seed in values.seeds):
    raise UserError(f'--seeds={",".join(values.seeds)}: give whole numbers, such as 0,1,2')
  return list(dict.fromkeys(map(int, values.seeds)))


def config_arguments() -> list[str]:
  """The `--config…` arguments of this process, which every cell is given too.

  Raises:
    UserError: one is not written as --name=value.
  """
  shared = [argument for argument in sys.argv[1:] if argument.lstrip('-').startswith('config')]
  if any('=' not in argument for argument in shared):
    raise UserError(f'{shared}: write --config flags as --name=value, so that they can be handed on')
  return shared


def train(
    cells: dict[str, list[str]], out: pathlib.Path, jobs: int, devices: int | None, done: Callable[[str], None]
) -> None:
  """Trains `jobs` cells at a time. Ctrl-C and SIGTERM let the running ones save first.

  Args:
    cells: name -> arguments of `earl_jax.train`. A cell's workdir is `out`/name, its output `out`/name.log.
    devices: of one cell; None = all there are.
    done: is called with the name of a cell that was trained, in a thread of its own.

  Raises:
    UserError: cells failed; all others were trained.
  """
  slots = queue.SimpleQueue()
  for slot in range(jobs):
    slots.put(slot)
  bar = tqdm(total=len(cells), unit='cell', disable=not cells)
  running: set[subprocess.Popen] = set()
  every = [str(device) for device in range(jobs * (devices or 0))]
  granted = [device for device in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if device] or every

  def stop(*_) -> None:  # Ctrl-C reaches the cells by itself, through their terminal
    for child in list(running):
      child.terminate()
    raise KeyboardInterrupt

  def run(name: str) -> int:
    slot = slots.get()
    environment = dict(os.environ)
    if devices:
      environment['XLA_FLAGS'] = (
          f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices} '
          '--xla_cpu_multi_thread_eigen=false'
      )
      environment['CUDA_VISIBLE_DEVICES'] = ','.join(granted[slot * devices : (slot + 1) * devices])
    path = out / f'{name}.log'
    command = [sys.executable, '-m', 'earl_jax.train', f'--workdir={out / name}', *cells[name]]
    bar.write(f'{name} ...')
    try:
      with path.open('a', encoding='utf-8') as log:
        with subprocess.Popen(command, env=environment, stdout=log, stderr=log) as child:
          running.add(child)
          status = child.wait()
        running.remove(child)
    finally:
      slots.put(slot)
    told = f'failed, see {path}' if status else 'ended'
    if not status:
      try:
        done(name)
      except Exception as error:  # such as a full disk; the other cells go on
        status, told = 1, f'failed: {error}'
    bar.write(f'{name} {told}')
    bar.update()
    return status

  former = signal.signal(signal.SIGTERM, stop)
  with bar, futures.ThreadPoolExecutor(jobs) as pool:
    try:
      statuses = list(pool.map(run, cells))
    except KeyboardInterrupt:
      pool.shutdown(cancel_futures=True)
      raise UserError('interrupted; the same command goes on from here') from None
    finally:
      signal.signal(signal.SIGTERM, former)
  failed = [name for name, status in zip(cells, statuses) if status]
  if failed:
    raise UserError(f'{len(failed)} cells failed: {", ".join(failed)}; see their .log files in {out}')


def spread(values: list[float], form: str) -> str:
  """Mean and range; how many there are, if some are missing."""
  known = [value for value in values if np.isfinite(value)]
  if not known:
    return f'none of {len(values)}'
  text = form.format(np.mean(known))
  if max(known) > min(known):
    text += f' ({form.format(min(known))} - {form.format(max(known))})'
  return text if len(known) == len(values) else f'{text}, {len(known)} of {len(values)}'


def markdown(rows: list[list[str]]) -> str:
  """A table whose first row is its head."""
  return '\n'.join('| ' + ' | '.join(row) + ' |' for row in [rows[0], ['---'] * len(rows[0]), *rows[1:]])
