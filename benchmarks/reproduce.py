"""Measures again what README and docs state of trained policies, and writes their tables and pictures.

  python benchmarks/reproduce.py --list
  python benchmarks/reproduce.py --only=sort4,methods --jobs=2 --devices_per_job=1

Every study of studies.py is a number of runs, each trained in a workdir below --out. What a finished run measured is
kept in --kept at once, and the blocks of docs/ that have a study's name are written from what is kept there, alone. A
run whose config there is still its config is not trained again, nor is one that another study has, too: the same
command goes on after a kill, or after Ctrl-C, which lets running ones save first. `--config.<field>` reaches every run,
such as `--config.model=…` for the language model; for a quick look with fewer steps, name other folders with --out,
--kept and --docs.
"""

import dataclasses
import functools
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

from absl import flags
import grid  # beside this file, as is the next
import jax
from studies import Run, Runs, STUDIES

from earl_jax import config as config_lib
from earl_jax.config import UserError
from earl_jax.run import cli, measure
from earl_jax.run.curves import read_evaluation, read_run, RunMetrics
from earl_jax.run.workdir import read_config as read_run_config
from earl_jax.run.workdir import write_atomically
from earl_jax.tasks.base import make_task

ROOT = pathlib.Path(__file__).resolve().parents[1]
KEPT = ROOT / 'benchmarks' / 'results'
METRICS = re.compile(r'step|seconds|tokens|stage|reward|exact_match/.*|eval/.*|calls|entropy|gradient_norm|loss|kl')


def name_of(cell: tuple) -> str:
  return '-'.join(re.sub(r'[^\w.]+', '_', str(part)).lower() for part in cell[:-1]) + f'-seed_{cell[-1]}'


@functools.cache
def read_config(arguments: tuple[str, ...]) -> config_lib.Config:
  """The config that `earl_jax.train` has with these arguments."""
  values, argv = flags.FlagValues(), ['', *arguments]
  cli.define_config(values, argv)
  cli.parse_flags(values, argv)
  return config_lib.parse(values.config)


def read(folder: pathlib.Path) -> Run:
  """A run that was kept."""
  config = json.loads((folder / 'config.json').read_text('utf-8'))
  name, options, _ = config['curriculum'][-1]['tasks'][-1]
  metrics = read_run(folder) if (folder / 'metrics.jsonl').stat().st_size else RunMetrics([], [])
  samples = sorted((folder / 'samples').glob('*.txt'))[-1:]
  episodes = [
      sample.partition('⏎')[2] for path in samples for sample in path.read_text('utf-8').split('===== sample')[1:]
  ]
  return Run(config['seed'], make_task(name, **options).label, read_evaluation(folder), metrics, episodes)


def is_of(folder: pathlib.Path, config: config_lib.Config) -> bool:
  """Whether a folder has a run of this config, but for what differs between machines: where the model lies, devices,
  and how many rows are rewritten, or learned from, at a time.
  """
  if not (folder / 'config.json').is_file():
    return False
  stored = read_run_config(folder)
  rollout = dataclasses.replace(stored.rollout, chunk=config.rollout.chunk)
  algorithm = dataclasses.replace(stored.algorithm, micro_batch=config.algorithm.micro_batch)
  if 'embedded' in (stored.model, config.model) and stored.model != config.model:
    return False  # that lies in the package
  same = dataclasses.replace(stored, model=config.model, mesh=config.mesh, rollout=rollout, algorithm=algorithm)
  return same == config


def keep(workdir: pathlib.Path, folder: pathlib.Path, arguments: tuple[str, ...]) -> None:
  """Keeps what a finished run measured: config, evaluation, the metrics that are reported, its last samples."""
  shutil.rmtree(folder, ignore_errors=True)
  (folder / 'samples').mkdir(parents=True)
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text('utf-8').splitlines()]
  kept = [{name: value for name, value in line.items() if METRICS.fullmatch(name)} for line in lines]
  write_atomically(folder / 'metrics.jsonl', ''.join(json.dumps(line) + '\n' for line in kept))
  for path in sorted((workdir / 'samples').glob('*.txt'))[-1:]:
    shutil.copy(path, folder / 'samples')
  shutil.copy(workdir / 'evaluation.json', folder)
  shutil.copy(workdir / 'versions.json', folder)
  config = json.loads((workdir / 'config.json').read_text('utf-8'))
  config['model'] = pathlib.Path(config['model']).name  # where it lay is nobody's business
  text = beside(workdir).read_text('utf-8') if beside(workdir).is_file() else made(arguments)
  write_atomically(folder / 'made.json', text)
  write_atomically(folder / 'config.json', json.dumps(config, indent=2) + '\n')  # last: now it counts as kept


def beside(workdir: pathlib.Path) -> pathlib.Path:
  """The file that says how the run in a workdir was made, written when it is begun."""
  return workdir.with_name(f'{workdir.name}.made.json')


def made(arguments: tuple[str, ...]) -> str:
  """How a run is made now, as JSON. Where the model lies is left out."""
  commit = subprocess.run(['git', 'describe', '--always', '--dirty'], cwd=ROOT, capture_output=True, check=False)
  told = [re.sub(r'^(--config\.model=).*/', r'\1', part) for part in arguments]
  return json.dumps({
      'command': ' '.join(['python -m earl_jax.train', *told]),
      'commit': commit.stdout.decode().strip(), 'jax': jax.__version__, 'devices': device_kind(),
      'machine': f'{platform.machine()}, {os.cpu_count()} cores',
  }, indent=2) + '\n'


@functools.cache
def device_kind() -> str:
  """What runs are made on, asked in a process of its own: this one leaves the devices to them."""
  ask = [sys.executable, '-c', 'import jax; print(jax.devices()[0].device_kind)']
  return subprocess.run(ask, capture_output=True, text=True, check=False).stdout.strip()


def finished(workdir: pathlib.Path, config: config_lib.Config) -> bool:
  """Whether a workdir's run is at its end: evaluated after all its steps, or solved. Any run can be evaluated."""
  results = read_evaluation(workdir)
  goal = [make_task(name, **options) for name, options, _ in config.curriculum[-1].tasks]
  if not results.keys() >= {task.label for task in goal} or not is_of(workdir, config):
    return False
  solved = config.stop_at_solved and measure.is_solved(goal, results)
  return solved or {results[task.label]['step'] for task in goal} == {config.steps}


class Cell(NamedTuple):
  """A run of a study: what it is, what it is trained with, and where that lies, once for all studies that have it."""

  key: tuple
  arguments: tuple[str, ...]
  workdir: pathlib.Path
  folder: pathlib.Path

  @property
  def config(self) -> config_lib.Config:
    return read_config(self.arguments)

  @property
  def kept(self) -> bool:
    return is_of(self.folder, self.config)

  def begin(self) -> None:
    """Raises UserError if the workdir has a run that this is not."""
    if (self.workdir / 'config.json').is_file() and not is_of(self.workdir, self.config):
      raise UserError(f'{self.workdir}: the run there has another config; choose another --out, or remove it')
    self.workdir.parent.mkdir(parents=True, exist_ok=True)
    if not beside(self.workdir).exists():
      write_atomically(beside(self.workdir), made(self.arguments))

  def keep_if_finished(self) -> None:
    if not self.kept and finished(self.workdir, self.config):
      keep(self.workdir, self.folder, self.arguments)


def cells_of_all(changes: list[str], out: pathlib.Path, kept: pathlib.Path) -> dict[str, list[Cell]]:
  """Study -> its cells, all with these changes. Cells of one config are one run: that of the first study."""
  studies: dict[str, list[Cell]] = {name: [] for name in STUDIES}
  first: dict[str, str] = {}
  for name, study in STUDIES.items():
    for key, arguments in study.cells.items():
      place = first.setdefault(repr(read_config(tuple(arguments))), f'{name}/{name_of(key)}')
      studies[name].append(Cell(key, (*arguments, *changes), out / place, kept / place))
  return studies


def origin(kept: list[Cell]) -> str:
  """Where the runs of a study come from."""
  made = [json.loads((cell.folder / 'made.json').read_text('utf-8')) for cell in kept]
  told = (
      f'{name} ' + ', '.join(sorted({each[key] for each in made}))
      for name, key in (('commit', 'commit'), ('JAX', 'jax'), ('on', 'machine'))
  )
  return '; '.join(told)


def write_page(name: str, cells: list[Cell], docs: pathlib.Path) -> None:
  """Writes the block of a study, `<!-- name -->` to `<!-- end -->`, if any of its runs is kept."""
  study, kept = STUDIES[name], [cell for cell in cells if cell.kept]
  if not kept:
    return
  runs: Runs = {}
  for cell in kept:
    runs.setdefault(cell.key[:-1], []).append(read(cell.folder))
  page = docs / study.page
  text = page.read_text('utf-8')
  block = re.compile(rf'(<!-- {name} -->\n).*?(<!-- end -->)', re.DOTALL)
  if not block.search(text):
    raise UserError(f'{page}: no block of the study {name}; put <!-- {name} --> and <!-- end --> where it belongs')
  told = f'{study.tell(runs, docs / "images")}\n\n{len(kept)} of {len(cells)} runs: {origin(kept)}.'
  write_atomically(page, block.sub(lambda found: f'{found[1]}\n{told}\n\n{found[2]}', text))


def left(studies: dict[str, list[Cell]], jobs: int) -> str:
  """A table of the studies: runs that are kept, runs to be trained, and about how long they take."""
  rows = [['study', 'kept', 'left', 'hours', 'page']]
  for name, cells in studies.items():
    measured = [read(cell.folder).minutes for cell in cells if cell.kept]
    minutes = sum(measured) / len(measured) if measured else STUDIES[name].minutes
    waiting = len(cells) - len(measured)
    rows.append([
        name, str(len(measured)), str(waiting), f'{minutes * waiting / 60 / jobs:.1f}', f'docs/{STUDIES[name].page}'
    ])
  return grid.markdown(rows)


def absolute(change: str) -> str:
  """A `--config.model=` that lies below the folder this was started in, from wherever its run is started."""
  name, _, path = change.partition('=')
  here = name == '--config.model' and pathlib.Path(path).exists()
  return f'{name}={pathlib.Path(path).resolve()}' if here else change


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  cli.define_config(values, argv, str(ROOT / 'configs' / 'sort4.py'))
  grid.define_flags(values, 'runs/reproduce')
  flags.DEFINE_list('only', list(STUDIES), 'Studies.', flag_values=values)
  flags.DEFINE_bool('list', False, 'Say what is left to do, and exit.', flag_values=values)
  flags.DEFINE_string('kept', str(KEPT), 'Folder of what is kept.', flag_values=values)
  flags.DEFINE_string('docs', str(ROOT / 'docs'), 'Folder of the pages.', flag_values=values)


def main(values: flags.FlagValues) -> None:
  seeds = grid.seeds(values)
  if unknown := [name for name in values.only if name not in STUDIES]:
    raise UserError(f'--only={",".join(values.only)}: {unknown[0]!r} is not one of {", ".join(STUDIES)}')
  changes = [absolute(change) for change in grid.config_arguments()]
  if own := [change for change in changes if change.lstrip('-').startswith('config=')]:
    raise UserError(f'{own[0]}: the studies have configs of their own; set fields of them with --config.<field>=value')
  out, kept, docs = (pathlib.Path(path).resolve() for path in (values.out, values.kept, values.docs))
  os.chdir(ROOT)  # where the configs of the studies are
  studies = {name: cells for name, cells in cells_of_all(changes, out, kept).items() if name in values.only}
  wanted = [cell for cells in studies.values() for cell in cells if cell.key[-1] in seeds]
  if values.list:
    print(left(studies, values.jobs))
    return
  for cell in wanted:
    cell.keep_if_finished()
  waiting = {cell.workdir.relative_to(out).as_posix(): cell for cell in wanted if not cell.kept}
  arguments = {name: list(cell.arguments) for name, cell in waiting.items()}
  for cell in waiting.values():
    cell.begin()
  try:
    grid.train(
        arguments, out, values.jobs, values.devices_per_job, lambda name: waiting[name].keep_if_finished()
    )
  finally:  # what is finished is told, whatever became of the others
    for name, of_study in studies.items():
      write_page(name, of_study, docs)
    print(left(studies, values.jobs))


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
