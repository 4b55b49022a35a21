"""earl_jax.train, and a file that says where it stands: the campaign aims at that.

  python -m benchmarks.marked_train MARKS --config=... --workdir=...

MARKS.<process> gets the process's id, a line for every phase that begins and, at the end of the run, the digest of its
final state. Variables: EARL_SLOW_DISK, seconds that every rename, removal and flush to the disk takes longer;
EARL_CLOCK, seconds by which the wall clock goes back at every look.
"""

import functools
import hashlib
import itertools
import os
import pathlib
import sys
import time

import jax
import numpy as np

from earl_jax import train
from earl_jax.run import cli, learner
from earl_jax.run.checkpoint import Checkpointer
from earl_jax.run.metrics import MetricsWriter

PHASES = (
    (train, 'set_up', 'set-up'), (train, 'claim_workdir', 'claim'), (train, 'collect', 'rollout'),
    (learner.Learner, 'update', 'update'), (train, 'evaluate', 'evaluation'), (MetricsWriter, 'write', 'metrics'),
    (Checkpointer, 'save', 'checkpoint'), (train, 'final_evaluation', 'final evaluation'),
)


def digest(state) -> str:
  """Of every bit of a tree of arrays."""
  parts = [np.asarray(x.addressable_shards[0].data).tobytes() for x in jax.tree.leaves(state)]
  return hashlib.sha256(b''.join(parts)).hexdigest()


def mark(path: pathlib.Path, phase: str) -> None:
  with path.open('a', encoding='utf-8') as file:
    file.write(phase + '\n')


def marked(function, path: pathlib.Path, phase: str):
  @functools.wraps(function)
  def outer(*args, **kwargs):
    mark(path, phase)
    result = function(*args, **kwargs)
    mark(path, 'between')
    return result

  return outer


def slowed(function, seconds: float):
  @functools.wraps(function)
  def outer(*args, **kwargs):
    time.sleep(seconds)
    return function(*args, **kwargs)

  return outer


def main() -> int:
  path = pathlib.Path(f'{sys.argv.pop(1)}.{os.environ.get("JAX_PROCESS_ID", 0)}')
  if 'EARL_SLOW_DISK' in os.environ:
    for name in ('fsync', 'rename', 'replace', 'unlink', 'rmdir', 'mkdir'):
      setattr(os, name, slowed(getattr(os, name), float(os.environ['EARL_SLOW_DISK'])))
  if 'EARL_CLOCK' in os.environ:
    now, step = time.time(), float(os.environ['EARL_CLOCK'])
    time.time = (now - step * count for count in itertools.count()).__next__
  for owner, name, phase in PHASES:
    setattr(owner, name, marked(getattr(owner, name), path, phase))
  original = train.train

  def told(*args):
    trained = original(*args)
    if not trained.stopped:
      mark(path, f'digest {digest(trained.state)}')
    return trained

  train.train = told
  mark(path, str(os.getpid()))
  mark(path, 'start')
  return cli.start(train.main, train.define_flags)


if __name__ == '__main__':
  sys.exit(main())
