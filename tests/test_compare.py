"""The comparison of methods: what is measured of finished cells, and which count as finished."""

import dataclasses
import json
import subprocess
import sys

import pytest

from earl_jax.run import measure
from tests.run import tiny

BENCHMARKS = tiny.ROOT / 'benchmarks'


@pytest.fixture(scope='module')
def compare():
  with pytest.MonkeyPatch.context() as patch:  # with the folder of configs, which it adds itself
    patch.syspath_prepend(BENCHMARKS)
    import compare
    yield compare


def write_cell(compare, out, seed, method, exact, steps=2):
  workdir = out / compare.name_of(seed, 'countdown3', method)
  (workdir / 'samples').mkdir(parents=True)
  config = compare.read_config('countdown3', method, ['--config.steps=2'])
  (workdir / 'config.json').write_text(json.dumps(dataclasses.asdict(config)))
  metric = 'exact' if seed else 'exact_match'  # the first is what older runs say
  lines = [{'step': i, 'seconds': 30.0, f'eval/countdown3-1digits/{metric}': exact * i,
            f'{metric}/countdown3-1digits': 0.4 * i} for i in range(steps)]
  (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  solved = {'decisions': 20.0 + seed, 'response_length': 30.0}
  result = {'step': steps, 'exact_match': exact, 'count': 200, 'calls': 3.0, 'invalid_calls': 0.25, 'solved': solved}
  (workdir / 'evaluation.json').write_text(json.dumps({'countdown': {'3-1digits': result}}))
  (workdir / 'samples' / 'step_000000.txt').write_text(
      '===== sample 0 =====\nTry this⏎ let me try 3 + 4\n too large\n===== sample 1 =====\n⏎ Try. retry\n')
  return workdir, config


def test_the_page_says_what_the_cells_measured(compare, tmp_path):
  cells = {}
  for method, shares in (('earl', (0.9, 0.8)), ('prompt_grpo', (0.1, 0.1))):
    for seed, share in enumerate(shares):
      workdir, config = write_cell(compare, tmp_path, seed, method, share)
      found = compare.grid.final_results(workdir, config.steps)
      assert compare.grid.final_results(workdir, config.steps + 1) is None
      cells.setdefault(('countdown3', method), []).append((workdir, found))
  text = compare.report(cells, tmp_path / 'docs', ['sort4', 'countdown3'], jobs=1)
  assert (tmp_path / 'docs' / 'results.md').read_text() == text and '## sort4' not in text
  assert (tmp_path / 'docs' / 'images' / 'compare_countdown3.png').stat().st_size > 1000
  rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('|')]
  low, high = measure.wilson_interval(340, 400)
  rollouts = f'{2 * config.rollout.prompts * config.rollout.group:,}'
  assert rows[2] == [
      'EARL', '**85.0%**', f'{low:.1%} - {high:.1%}', '80.0%, 90.0%', '40.0%', '3.00', '0.25', '20.5 / 30.0',
      rollouts, '1',
  ]
  assert rows[3][:2] == ['Prompt+GRPO', '**10.0%**'] and rows[4][0] == 'method'
  # Four episodes of each method: 'try' twice and 'too large' once in every two, in responses alone.
  assert rows[6][:3] == ['EARL', '4', '100']
  assert dict(zip(compare.PHRASES, rows[6][2:]))['too large'] == '50'


def test_the_page_in_docs_says_what_the_runs_that_are_kept_measured(compare):
  kept, text = BENCHMARKS / 'results' / 'compare', (tiny.ROOT / 'docs' / 'results.md').read_text()
  for task in compare.TASKS:
    cells = {}
    for method in compare.NAMES:
      steps = compare.read_config(task, method, []).steps
      workdirs = sorted(kept.glob(f'{task}-{method}-seed_*'))
      assert workdirs
      cells[task, method] = [(workdir, compare.grid.final_results(workdir, steps)) for workdir in workdirs]
    assert compare.table(cells, task) in text and compare.phrases(cells, task) in text


@pytest.mark.parametrize('argument, message', [
    ('--methods=earl,grpo', "'grpo' is none of earl"), ('--tasks=chess', "'chess' is none of sort4"),
    ('--seeds=one', 'give whole numbers'), ('--config=configs/sort4.py', 'have configs of their own'),
    ('--config.step=3', "no field 'step'"),
])
def test_bad_arguments_are_named(argument, message):
  command = [sys.executable, str(BENCHMARKS / 'compare.py'), argument]
  done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tiny.ROOT)
  assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1, done.stderr
