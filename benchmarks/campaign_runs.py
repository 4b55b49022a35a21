"""Runs of the tiny config in processes of their own, that tell where they stand, for the draws of campaign.py."""

import functools
import os
import pathlib
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from typing import NamedTuple

from earl_jax.config import Config
from earl_jax.run.workdir import write_atomically
from tests.run import tiny

# Phase, and how often it may come before the one that is aimed at.
MOMENTS = [
    ('start', 1), ('set-up', 1), ('claim', 1), ('rollout', 5), ('update', 5), ('metrics', 5), ('evaluation', 2),
    ('checkpoint', 3), ('checkpoint', 3), ('final evaluation', 1),
]
SAVING = {'rollout', 'update', 'metrics', 'evaluation', 'checkpoint'}  # what a first signal lets go on to a checkpoint
LIMIT = 600.0  # seconds that anything may take


class Run(NamedTuple):
  """A run in processes of its own."""

  child: subprocess.Popen
  listener: subprocess.Popen
  marks: pathlib.Path
  log: pathlib.Path

  def lines(self, process: int = 0) -> list[str]:
    path = self.marks.with_name(f'{self.marks.name}.{process}')
    return path.read_text(encoding='utf-8').split('\n')[:-1] if path.exists() else []

  def end(self) -> int:
    """Waits for it; its status."""
    try:
      return self.child.wait(LIMIT)
    finally:
      self.child.kill()
      self.listener.wait()

  def told(self) -> list[str]:
    """The lines that it wrote, those of its progress left out."""
    lines = self.log.read_text(encoding='utf-8').split('\n')
    return [line for line in lines if line and not re.match(r'(\[\d\] )?step \d+/', line)]


class Campaign(NamedTuple):
  """Where it works: everything of one campaign is below `scratch`."""

  scratch: pathlib.Path

  @property
  def model(self) -> pathlib.Path:
    folder = self.scratch / 'model'
    if not (folder / 'config.json').exists():
      folder.mkdir(parents=True, exist_ok=True)
      tiny.write_model(folder)
    return folder

  @property
  def config(self) -> Config:
    return tiny.parsed(self.model)

  def start(self, workdir: pathlib.Path, *arguments: str, processes: int = 1, limit: int = 0, **environment) -> Run:
    """Starts training; `limit`: bytes that a file may have."""
    marks = self.scratch / f'{workdir.name}.marks'
    for process in range(processes):
      marks.with_name(f'{marks.name}.{process}').unlink(missing_ok=True)
    command = [
        sys.executable, '-m', 'benchmarks.marked_train', str(marks), f'--config={tiny.PATH}:{self.model}',
        f'--workdir={workdir}', *arguments,
    ]
    if processes > 1:
      command = ['launch/local_multiprocess.sh', str(processes), '1', *command, '--distributed']
    environment = os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu', 'GRACE': '3'} | environment
    log = self.scratch / f'{workdir.name}.log'
    child = subprocess.Popen(
        command, cwd=tiny.ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit)) if limit else None,
    )
    with log.open('wb') as file:
      listener = subprocess.Popen(['cat'], stdin=child.stdout, stdout=file)  # whose files have no limit
    child.stdout.close()
    return Run(child, listener, marks, log)

  def finish(self, workdir: pathlib.Path, **kwargs) -> Run:
    """Trains to the end."""
    run = self.start(workdir, **kwargs)
    status = run.end()
    assert status == 0, f'{workdir}: status {status}: {run.told()[-3:]}'
    return run

  def finish_steps(self, workdir: pathlib.Path, steps: int) -> None:
    """Trains so many steps; what follows goes on from there."""
    run = self.start(workdir, f'--config.steps={steps}')
    status = run.end()
    assert status == 0, f'{workdir}: status {status}: {run.told()[-3:]}'

  def reference(self, processes: int = 1) -> pathlib.Path:
    """The workdir of a run that nothing happened to."""
    workdir = self.scratch / f'whole{processes}'
    if not (workdir / 'digest').exists():
      shutil.rmtree(workdir, ignore_errors=True)
      run = self.finish(workdir, processes=processes)
      write_atomically(workdir / 'digest', run.lines()[-1])
    return workdir

  def require_same(self, workdir: pathlib.Path, run: Run | None = None, processes: int = 1) -> None:
    """Raises AssertionError unless a finished run equals the one that nothing happened to, to the last bit."""
    whole = self.reference(processes)
    assert tiny.read_metrics(workdir) == tiny.read_metrics(whole), 'metrics differ'
    assert (workdir / 'evaluation.json').read_bytes() == (whole / 'evaluation.json').read_bytes(), 'evaluation differs'
    if run is not None:
      assert run.lines()[-1] == (whole / 'digest').read_text(encoding='utf-8'), 'parameters differ'

  def fresh(self, name: str) -> pathlib.Path:
    workdir = self.scratch / name
    shutil.rmtree(workdir, ignore_errors=True)
    return workdir


def reach(run: Run, rng: random.Random, phases: list[tuple[str, int]], process: int = 0) -> str:
  """Waits for a random moment of the run, and says which."""
  phase, count = rng.choice(phases)
  count, delay, until = rng.randint(1, count), rng.random() ** 2, time.monotonic() + LIMIT
  while run.lines(process).count(phase) < count and run.child.poll() is None:
    assert time.monotonic() < until, f'{phase} did not come'
    time.sleep(0.002)
  time.sleep(delay * (3.0 if phase in ('start', 'set-up') else 0.3))
  return f'{phase} {count}'


def last_phase(run: Run, process: int = 0) -> str:
  last = next((line for line in reversed(run.lines(process)) if line != 'between'), 'before')
  return 'digest' if last.startswith('digest') else last  # which is that of the parameters
