"""Rows of the campaign that need many runs or steps, and so share one process and its compiled programs."""

import dataclasses
import functools
import os
import pathlib
import random
import shutil
from typing import Any
from unittest import mock

from absl import logging
import jax

from benchmarks.marked_train import digest
from earl_jax import train
from earl_jax.config import Config, UserError
from earl_jax.run.curves import read_run
from earl_jax.run.saved import load
from earl_jax.run.workdir import read_config
from tests.run import tiny


def damage(path: pathlib.Path, rng: random.Random) -> str:
  """Damages one file; says how."""
  data, kind = bytearray(path.read_bytes()), rng.choice(['flipped', 'truncated', 'removed'])
  if kind == 'removed' or not data:
    path.unlink()
    return 'removed'
  place = rng.randrange(len(data))
  if kind == 'flipped':
    data[place] ^= 1 << rng.randrange(8)
  else:
    del data[place:]
  path.write_bytes(data)
  return kind


def kind_of(path: pathlib.PurePath) -> str:
  """A file of a workdir without what differs from run to run."""
  parts = ['<step>' if part.isdigit() else '<hash>' if len(part) == 32 else part for part in path.parts]
  return '/'.join('events' if part.startswith('events.') else part for part in parts)


def pick(folder: pathlib.Path, rng: random.Random) -> pathlib.Path:
  """A random file of a random kind, so that kinds with few files have their turn."""
  kinds: dict[str, list[pathlib.Path]] = {}
  for path in sorted(path for path in folder.rglob('*') if path.is_file()):
    kinds.setdefault(kind_of(path.relative_to(folder)), []).append(path)
  return rng.choice(kinds[rng.choice(sorted(kinds))])


def damaged(
    config: Config, whole: pathlib.Path, half: pathlib.Path, workdir: pathlib.Path, draw: int
) -> dict[str, Any]:
  """One file of a workdir is damaged; then the run is read and gone on with.

  Args:
    whole, half: workdirs of the whole run and of one that was stopped.
    workdir: for the damaged copy.
  """
  rng = random.Random(draw)
  shutil.rmtree(workdir, ignore_errors=True)
  shutil.copytree(half, workdir)
  path = pick(workdir, rng)
  what = f'{kind_of(path.relative_to(workdir))} {damage(path, rng)}'
  refused, warned = [], []
  for use in (read, read_run):
    try:
      found = use(workdir)
      if use is read:
        assert found in {read(half), *older(half)}, f'{what}: other parameters'
    except UserError as error:
      refused.append(str(error))
  try:
    with mock.patch.object(logging, 'warning', lambda text, *args: warned.append(text % args)):
      trained = train.train(config, workdir)
    assert digest(trained.state) == digest_of(whole), f'{what}: other parameters at the end'
    assert (workdir / 'evaluation.json').read_bytes() == (whole / 'evaluation.json').read_bytes(), what
    lines = tiny.read_metrics(workdir)
    if lines == tiny.read_metrics(whole):
      outcome = 'recovered'
    else:
      outcome = 'recovered, with a warning'
      assert any('metrics.jsonl: not what the run wrote' in text for text in warned), f'{what}: other metrics'
  except UserError as error:
    refused.append(str(error))
    outcome = 'refused'
  assert not any('\n' in line for line in refused), refused
  return {'hit': [what], 'outcome': outcome, 'told': refused + warned}


def read(workdir: pathlib.Path) -> tuple[int, str]:
  """Steps and digest of the parameters that other programs read."""
  _, params, step = load(workdir, read_config(workdir))
  return step, digest(params)


@functools.cache
def older(half: pathlib.Path) -> list[tuple[int, str]]:
  """The same of the checkpoints before the newest."""
  found, copy = [], half.with_name(half.name + '_older')
  shutil.copytree(half, copy, dirs_exist_ok=True)
  while len(tiny.checkpoints(copy)) > 1:
    shutil.rmtree(copy / 'checkpoints' / str(tiny.checkpoints(copy)[-1]))
    found.append(read(copy))
  return found


@functools.cache
def digest_of(workdir: pathlib.Path) -> str:
  return (workdir / 'digest').read_text(encoding='utf-8').removeprefix('digest ')


def soak(config: Config, folder: pathlib.Path, steps: int) -> dict[str, Any]:
  """A long run, what it holds on to, and whether it equals one in four pieces."""
  config = dataclasses.replace(
      config, steps=steps, evaluate_every=steps // 8, sample_every=steps // 8, checkpoint_every=steps // 40
  )
  compiled, seen, write = [], {}, train.MetricsWriter.write

  def record(name, duration, **info):
    if 'backend_compile' in name:
      compiled.append(info.get('fun_name', ''))

  def watched(self, step, values):
    write(self, step, values)
    if step in (steps // 4 - 1, steps // 2 - 1, steps - 1):
      seen[step] = {'compiled': len(compiled)} | held()

  jax.monitoring.register_event_duration_secs_listener(record)
  with mock.patch.object(train.MetricsWriter, 'write', watched):
    shutil.rmtree(folder / 'soak', ignore_errors=True)
    whole = digest(train.train(config, folder / 'soak').state)
  shutil.rmtree(folder / 'pieces', ignore_errors=True)
  for part in (1, 2, 3, 4):
    with mock.patch.object(
        train.StopSignal, 'reached', lambda self, step, part=part: step == part * steps // 4 and part < 4
    ):
      pieces = digest(train.train(config, folder / 'pieces').state)
  assert pieces == whole, 'a run in pieces differs'
  assert tiny.read_metrics(folder / 'pieces') == tiny.read_metrics(folder / 'soak'), 'metrics of a run in pieces differ'
  first, last = seen[steps // 4 - 1], seen[steps - 1]
  assert last['compiled'] == first['compiled'], compiled[first['compiled']:]
  assert last['files'] <= first['files'] and last['MiB'] <= first['MiB'] * 1.05, seen
  return {'hit': [f'{steps} steps'], 'seen': seen}


def held() -> dict[str, int]:
  """Memory in MiB, open files and memory maps of this process."""
  text = pathlib.Path('/proc/self/status').read_text(encoding='utf-8')
  memory = next(int(line.split()[1]) >> 10 for line in text.split('\n') if line.startswith('VmRSS'))
  maps = pathlib.Path('/proc/self/maps').read_text(encoding='utf-8').count('\n')
  return {'MiB': memory, 'files': len(os.listdir('/proc/self/fd')), 'maps': maps}
