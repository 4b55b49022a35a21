"""Tries to break a run: kills it, stops it, fills its disk, damages its files. docs/reliability.md has what came of it.

  python -m benchmarks.campaign [--only=kill,signal] [--out=benchmarks/results/campaign] [--scratch=runs/campaign]

Every row is a number of draws, each made from its own number alone. A draw that is in the row's JSON file is not made
again unless it failed, so the same command goes on after a stop, and tries again what has been fixed. All use the tiny
config of tests/run/tiny.py, whose run takes seconds. Rows that mount a file system need the right to. At the end the
table of docs/reliability.md is written from all JSON files there are.
"""

from collections.abc import Callable
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

from absl import flags
from tqdm import tqdm

from benchmarks import campaign_in_process
from benchmarks.campaign_runs import Campaign, last_phase, LIMIT, MOMENTS, reach, Run, SAVING
from benchmarks.grid import markdown
from earl_jax.config import UserError
from earl_jax.run import cli
from earl_jax.run.workdir import write_atomically
from tests.run import tiny

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'reliability.md'
BEGIN, END = '<!-- campaign -->', '<!-- end -->'


def kill(campaign: Campaign, draw: int) -> dict[str, Any]:
  """Five kills of one run, one after the other."""
  rng, workdir, hit = random.Random(draw), campaign.fresh(f'kill{draw}'), []
  for _ in range(5):
    run = campaign.start(workdir)
    reach(run, rng, MOMENTS)
    run.child.kill()
    hit.append(last_phase(run) if run.end() else 'finished')
  campaign.require_same(workdir, campaign.finish(workdir))
  return {'hit': hit}


def stop(campaign: Campaign, draw: int, processes: int = 1) -> dict[str, Any]:
  """A signal to one of the run's processes; then the same command again."""
  rng, workdir = random.Random(draw), campaign.fresh(f'signal{processes}_{draw}')
  number, target = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP]), rng.randrange(processes)
  run = campaign.start(workdir, processes=processes)
  reach(run, rng, MOMENTS[3:] if processes > 1 else MOMENTS, target)
  phase = last_phase(run, target)
  if run.child.poll() is None:
    os.kill(run.child.pid if processes == 1 else int(run.lines(target)[0]), number)
  status = run.end()
  if phase in SAVING:
    saved = [int(path.name) for path in workdir.glob('checkpoints/*') if path.name.isdecimal()]
    documented = status == (os.EX_TEMPFAIL if processes > 1 else 0)
    assert saved and (documented or 5 in saved), f'{phase}, {number.name}: status {status}: {run.told()[-3:]}'
  campaign.require_same(workdir, campaign.finish(workdir, processes=processes), processes)
  return {'hit': [f'{number.name} in {phase}'], 'status': status}


def stop_two(campaign: Campaign, draw: int) -> dict[str, Any]:
  """The same in a job of two processes."""
  return stop(campaign, draw, processes=2)


def kill_one_of_two(campaign: Campaign, draw: int) -> dict[str, Any]:
  """One of two processes is killed, the launcher ends the other, and the job is started again."""
  rng, workdir, target = random.Random(draw), campaign.fresh(f'one_of_two{draw}'), draw % 2
  run = campaign.start(workdir, processes=2)
  reach(run, rng, MOMENTS[3:], target)
  if run.child.poll() is None:
    os.kill(int(run.lines(target)[0]), signal.SIGKILL)
  hit, status = f'process {target} in {last_phase(run, target)}', run.end()
  campaign.require_same(workdir, campaign.finish(workdir, processes=2), 2)
  return {'hit': [hit], 'status': status}


def require_one_line(run: Run) -> str:
  """What a run that had to give up said: one line and status 2."""
  status, told = run.end(), [line for line in run.told() if not line.startswith('WARNING:')]  # of a slow disk
  assert status == 2 and len(told) == 1 and told[0].startswith('error: '), f'status {status}: {told[:5]}'
  return told[0]


def mounted(campaign: Campaign, name: str, options: str) -> pathlib.Path:
  """A small file system in memory."""
  folder = campaign.scratch / name
  folder.mkdir(parents=True, exist_ok=True)
  subprocess.run(['umount', folder], check=False, capture_output=True)
  subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', folder], check=True)
  return folder


def disk_full(campaign: Campaign, draw: int) -> dict[str, Any]:
  """No room any more, at one of several moments; then there is."""
  size = [40, 140, 200, 260, 300, 360][draw]
  folder = mounted(campaign, f'full{draw}', f'size={size}k')
  try:
    line = require_one_line(campaign.start(folder / 'run'))
    kept = sorted(int(path.name) for path in (folder / 'run').glob('checkpoints/*') if path.name.isdecimal())
    subprocess.run(['mount', '-o', 'remount,size=100m', folder], check=True)
    campaign.require_same(folder / 'run', campaign.finish(folder / 'run'))
  finally:
    subprocess.run(['umount', folder], check=False)
  return {'hit': [f'{size} KiB'], 'line': line, 'kept': kept}


def file_limit(campaign: Campaign, draw: int) -> dict[str, Any]:
  """No file may be larger than so many bytes; then it may."""
  workdir, limit = campaign.fresh(f'limit{draw}'), [1_000, 3_000, 12_000][draw]
  line = require_one_line(campaign.start(workdir, limit=limit))
  campaign.require_same(workdir, campaign.finish(workdir))
  return {'hit': [f'{limit} bytes'], 'line': line}


def read_only(campaign: Campaign, draw: int) -> dict[str, Any]:
  """The file system is read-only before the first start, after three steps, or at the evaluation."""
  folder = mounted(campaign, f'read_only{draw}', 'size=100m')
  remount = ['mount', '-o', 'remount,ro', str(folder)]
  try:
    if draw:
      campaign.finish_steps(folder / 'run', 3 if draw == 1 else 5)
    subprocess.run(remount, check=True)
    if draw < 2:
      line = require_one_line(campaign.start(folder / 'run'))
    else:
      line = evaluated(campaign, folder / 'run')
    subprocess.run(['mount', '-o', 'remount,rw', folder], check=True)
    campaign.require_same(folder / 'run', campaign.finish(folder / 'run'))
  finally:
    subprocess.run(['umount', folder], check=False)
  return {'hit': [['new', 'resumed', 'evaluation'][draw]], 'line': line}


def slow_disk(campaign: Campaign, draw: int) -> dict[str, Any]:
  """Whatever waits for the disk takes longer."""
  seconds, workdir = ['0.05', '0.2', '0.5'][draw], campaign.fresh(f'slow{draw}')
  campaign.require_same(workdir, campaign.finish(workdir, EARL_SLOW_DISK=seconds))
  return {'hit': [f'{seconds} s']}


def evaluated(campaign: Campaign, workdir: pathlib.Path) -> str:
  """What evaluation says last; its numbers have to come before."""
  child = subprocess.run(
      [sys.executable, '-m', 'earl_jax.evaluate', f'--workdir={workdir}', '--samples=8', '--response_length=24'],
      cwd=ROOT, env=os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}, capture_output=True, check=False,
      encoding='utf-8', timeout=LIMIT,
  )
  assert child.returncode == 2 and 'exact match' in child.stdout, child.stderr[-500:]
  assert child.stderr.count('\n') == 1 and child.stderr.startswith('error: '), child.stderr[-500:]
  return child.stderr.strip()


def clock(campaign: Campaign, draw: int) -> dict[str, Any]:
  """The wall clock goes back, by a second or by a year at every look."""
  seconds, workdir = ['1', '31536000'][draw], campaign.fresh(f'clock{draw}')
  campaign.finish_steps(workdir, 3)
  campaign.require_same(workdir, campaign.finish(workdir, EARL_CLOCK=seconds))
  return {'hit': [f'back {seconds} s']}


def many_lines(campaign: Campaign, draw: int) -> dict[str, Any]:
  """A million lines of metrics before those of the steps to come."""
  workdir = campaign.fresh(f'lines{draw}')
  campaign.finish_steps(workdir, 3)
  path = workdir / 'metrics.jsonl'
  own = path.read_bytes()
  rest = own.partition(b',')[2].partition(b'\n')[0]
  with path.open('wb') as file:
    file.writelines(b'{"step": %d,%s\n' % (step, rest) for step in range(-1_000_000, 0))
    file.write(own)
  began = time.monotonic()
  run = campaign.start(workdir)
  while 'metrics' not in run.lines() and run.child.poll() is None:
    time.sleep(0.05)
  seconds, memory = time.monotonic() - began, resident(run.child.pid)
  assert run.end() == 0, run.told()[-3:]
  with path.open('rb') as file:
    text = b''.join(line for line in file if b'"step": -' not in line)
  path.write_bytes(text)
  campaign.require_same(workdir, run)
  return {'hit': [f'{seconds:.0f} s until the first step, {memory} MiB']}


def resident(process: int) -> int:
  """MiB."""
  text = pathlib.Path(f'/proc/{process}/status').read_text(encoding='utf-8')
  return int(re.search(r'VmRSS:\s+(\d+)', text)[1]) >> 10


def moved(campaign: Campaign, draw: int) -> dict[str, Any]:
  """The workdir is moved between two starts, and goes on elsewhere."""
  workdir = campaign.fresh(f'moved{draw}')
  campaign.finish_steps(workdir, 3)
  target = campaign.fresh(f'moved{draw} to Ünder way')
  workdir.rename(target)
  campaign.require_same(target, campaign.finish(target))
  return {'hit': ['after 3 steps']}


def damage_row(campaign: Campaign, draw: int) -> dict[str, Any]:
  """A file of a stopped run is damaged; the run is read and gone on with."""
  half = campaign.scratch / 'half'
  if not half.exists():
    campaign.finish_steps(half, 4)
  return campaign_in_process.damaged(
      campaign.config, campaign.reference(), half, campaign.scratch / 'damaged', draw
  )


def soak(campaign: Campaign, draw: int) -> dict[str, Any]:
  """Two thousand steps."""
  del draw
  return campaign_in_process.soak(campaign.config, campaign.scratch, 2000)


class Row(NamedTuple):
  """A row of the table: what is drawn, how often, and what it is called."""

  draw: Callable[[Campaign, int], dict[str, Any]]
  count: int
  title: str


ROWS = {
    'kill': Row(kill, 15, 'kill -9 at a random moment, five in each run'),
    'damage': Row(damage_row, 100, 'a byte flipped, a file cut short or removed in a stopped workdir'),
    'signal': Row(stop, 20, 'SIGTERM, SIGINT or SIGHUP at a random moment'),
    'signal_two': Row(stop_two, 10, 'the same in two processes'),
    'one_of_two': Row(kill_one_of_two, 4, 'one of two processes killed, the job started again'),
    'disk_full': Row(disk_full, 6, 'the disk full at six moments, then room made'),
    'file_limit': Row(file_limit, 3, 'a limit on the size of files, then none'),
    'read_only': Row(read_only, 3, 'a file system that is read-only, then is not'),
    'slow_disk': Row(slow_disk, 3, 'a slow disk'),
    'clock': Row(clock, 2, 'the wall clock set back at every look'),
    'many_lines': Row(many_lines, 1, '10^6 lines of metrics before'),
    'moved': Row(moved, 1, 'a workdir moved between two starts'),
    'soak': Row(soak, 1, '2,000 steps, whole and in four pieces: no compilation, memory, open files'),
}


def make(name: str, campaign: Campaign, path: pathlib.Path) -> None:
  """Makes the draws of a row that are not made yet. A draw that fails is written down with what was wrong."""
  saved = json.loads(path.read_text(encoding='utf-8'))['draws'] if path.exists() else []
  made = {draw['draw']: draw for draw in saved if 'failed' not in draw}
  for draw in tqdm([draw for draw in range(ROWS[name].count) if draw not in made], desc=name):
    try:
      result = ROWS[name].draw(campaign, draw)
    except Exception as error:  # whatever it is, it is what was looked for
      result = {'failed': f'{type(error).__name__}: {error}'[:1000]}
    made[draw] = {'draw': draw} | result
    draws = [made[draw] for draw in sorted(made)]
    text = json.dumps({'row': ROWS[name].title, 'draws': draws}, indent=1) + '\n'
    write_atomically(path, text.replace(f'{campaign.scratch}/', ''))


def table(out: pathlib.Path) -> str:
  """The rows that there are, as Markdown."""
  lines = [['row', 'draws', 'held', 'refused in one line', 'where']]
  for name, row in ROWS.items():
    path = out / f'{name}.json'
    draws = json.loads(path.read_text(encoding='utf-8'))['draws'] if path.exists() else []
    if draws:
      hit = [moment for draw in draws for moment in draw.get('hit', [])]
      held = sum('failed' not in draw for draw in draws)
      refused = sum('line' in draw or draw.get('outcome') == 'refused' for draw in draws)
      kinds = sorted(set(hit), key=lambda moment: (-hit.count(moment), moment))
      shown = '; '.join(f'{kind} ({hit.count(kind)})' if hit.count(kind) > 1 else kind for kind in kinds[:8])
      lines.append([row.title, f'{len(draws)} of {row.count}', str(held), str(refused), shown])
  return markdown(lines)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  del argv
  flags.DEFINE_list('only', list(ROWS), 'Rows to make.', flag_values=values)
  flags.DEFINE_string('out', str(ROOT / 'benchmarks/results/campaign'), 'Folder of the JSON files.', flag_values=values)
  flags.DEFINE_string('scratch', 'runs/campaign', 'Folder for the runs.', flag_values=values)


def main(values: flags.FlagValues) -> int:
  unknown = sorted(set(values.only) - set(ROWS))
  if unknown:
    raise UserError(f'--only={unknown[0]}: no such row; choose from {", ".join(ROWS)}')
  out, campaign = pathlib.Path(values.out), Campaign(pathlib.Path(values.scratch).absolute())
  out.mkdir(parents=True, exist_ok=True)
  with tiny.compiled_once(campaign.config):
    for name in values.only:
      make(name, campaign, out / f'{name}.json')
  head, _, rest = PAGE.read_text(encoding='utf-8').partition(BEGIN)
  write_atomically(PAGE, f'{head}{BEGIN}\n\n{table(out)}\n\n{END}{rest.partition(END)[2]}')
  return 0


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
