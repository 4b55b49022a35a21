"""Reproducing what is stated: which runs count, what is kept of them, and that pages say what was measured."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from earl_jax.config import UserError
from earl_jax.run import measure
from tests.run import tiny

BENCHMARKS, DOCS = tiny.ROOT / 'benchmarks', tiny.ROOT / 'docs'
NUMBER = re.compile(r'(?<![\w.\-/=#])\d+(?:,\d{3})*(?:\.\d+)?(?![\w\-/=]|\.\d)')


@pytest.fixture(scope='module')
def reproduce():
  with pytest.MonkeyPatch.context() as patch:  # with the folder of configs, which it adds itself
    patch.syspath_prepend(BENCHMARKS)
    patch.chdir(tiny.ROOT)
    import reproduce
    yield reproduce


@pytest.fixture
def study(reproduce, monkeypatch, tmp_path):
  """A study of two methods and two seeds, and a page for it."""
  config = 'configs/embedded.py:countdown3'
  cells = {
      ('countdown3', method, seed): [f'--config={config},{method}', '--config.steps=2', f'--config.seed={seed}']
      for seed in (0, 1) for method in ('earl', 'prompt_grpo')
  }
  study = reproduce.STUDIES['methods']._replace(page='page.md', cells=cells)
  monkeypatch.setattr(reproduce, 'STUDIES', {'methods': study})
  (tmp_path / 'docs' / 'images').mkdir(parents=True)
  (tmp_path / 'docs' / 'page.md').write_text('Before.\n<!-- methods -->\nold\n<!-- end -->\nAfter.\n')
  return study


def write_workdir(reproduce, workdir, arguments, exact, steps=2):
  """A finished run, as `earl_jax.train` leaves it."""
  (workdir / 'samples').mkdir(parents=True)
  config = reproduce.read_config(tuple(arguments))
  (workdir / 'config.json').write_text(json.dumps(dataclasses.asdict(config)))
  lines = [{'step': i, 'seconds': 30.0, 'eval/countdown3-1digits/exact_match': exact * i, 'clip_fraction': 0.5,
            'exact_match/countdown3-1digits': 0.4 * i} for i in range(steps)]
  (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  solved = {'decisions': 20.0 + config.seed, 'response_length': 30.0}
  result = {'step': steps, 'exact_match': exact, 'count': 200, 'calls': 3.0, 'invalid_calls': 0.25, 'solved': solved}
  (workdir / 'evaluation.json').write_text(json.dumps({'countdown': {'3-1digits': result}}))
  (workdir / 'versions.json').write_text('{}')
  (workdir / 'samples' / 'step_000000.txt').write_text(
      '===== sample 0 =====\nfar from⏎ it is close to it, another approach\n===== sample 1 =====\n⏎ Still CLOSE.\n')


def test_a_run_that_was_evaluated_on_its_way_is_not_finished(reproduce, tmp_path):
  config = reproduce.read_config(arguments := ('--config=configs/sort4.py',))
  assert config.stop_at_solved
  for name, exact, certified, steps, finished in (
      ('way', 0.4, 0.4, 60, False), ('unproven', 1.0, 0.9, 60, False), ('solved', 1.0, 1.0, 60, True),
      ('end', 0.4, 0.4, 160, True),
  ):
    write_workdir(reproduce, tmp_path / name, arguments, exact, steps)
    result = {'step': steps, 'exact_match': exact, 'certified': certified}
    evaluation = {'sort': dict.fromkeys('234', result)}
    (tmp_path / name / 'evaluation.json').write_text(json.dumps(evaluation))
    assert reproduce.finished(tmp_path / name, config) == finished, name
    del evaluation['sort']['4']
    (tmp_path / name / 'evaluation.json').write_text(json.dumps(evaluation))
    assert not reproduce.finished(tmp_path / name, config), name


def run(reproduce, monkeypatch, tmp_path, shares, *arguments):
  """Runs the program, whose cells are 'trained' by writing these shares; the cells that it trained."""
  trained = []

  def train(cells, out, jobs, devices, done):
    trained.extend(cells)
    for name, given in cells.items():
      key = re.fullmatch(r'methods/countdown3-(\w+)-seed_(\d)', name).groups()
      if key in shares:
        write_workdir(reproduce, out / name, given, shares[key])
        done(name)

  monkeypatch.setattr(reproduce.grid, 'train', train)
  flags = [f'--{name}={tmp_path / name}' for name in ('out', 'kept', 'docs')]
  argv = ['reproduce.py', *flags, *arguments]
  monkeypatch.setattr(sys, 'argv', argv)
  assert reproduce.cli.start(reproduce.main, reproduce.define_flags, argv) == 0
  return trained


def test_the_page_says_what_the_runs_measured(reproduce, study, monkeypatch, tmp_path, capsys):
  shares = {('earl', '0'): 0.9, ('earl', '1'): 0.8, ('prompt_grpo', '0'): 0.1}
  assert len(run(reproduce, monkeypatch, tmp_path, shares)) == 4
  assert '| methods | 3 | 1 |' in capsys.readouterr().out
  text = (tmp_path / 'docs' / 'page.md').read_text()
  assert re.fullmatch('Before.\n<!-- methods -->\n(?!old).*<!-- end -->\nAfter.\n', text, re.DOTALL)
  assert (tmp_path / 'docs' / 'images' / 'countdown3.png').stat().st_size > 1000
  rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in text.splitlines() if line.startswith('|')]
  low, high = measure.wilson_interval(340, 400)
  config = reproduce.read_config(tuple(study.cells['countdown3', 'earl', 0]))
  assert rows[2] == [
      'EARL', '**85.0%**', f'{low:.1%} - {high:.1%}', '80.0%, 90.0%', '40.0%', '3.00', '0.25', '20.5 / 30.0',
      f'{2 * config.rollout.prompts * config.rollout.group:,}', '1', '2',
  ]
  assert rows[3][:2] == ['Prompt+GRPO', '**10.0%**'] and rows[4][0] == 'method'
  # Four episodes of EARL, and phrases count in responses alone.
  told = dict(zip(rows[4], rows[6]))
  assert rows[6][:2] == ['EARL', '4']
  assert {name: told[name] for name in ('is close', 'close to', 'still close', 'another approach', 'far from')} == {
      'is close': '50', 'close to': '50', 'still close': '50', 'another approach': '50', 'far from': '0'}
  assert '3 of 4 runs: commit' in text

  kept = tmp_path / 'kept' / 'methods' / 'countdown3-earl-seed_0'
  assert 'clip_fraction' not in (kept / 'metrics.jsonl').read_text()
  assert 'configs/embedded.py:countdown3,earl' in json.loads((kept / 'made.json').read_text())['command']
  # Started again, it trains what is missing, and what is kept is no more touched.
  before = {path: path.read_bytes() for path in kept.rglob('*') if path.is_file()}
  assert run(reproduce, monkeypatch, tmp_path, {}) == ['methods/countdown3-prompt_grpo-seed_1']
  assert {path: path.read_bytes() for path in kept.rglob('*') if path.is_file()} == before
  assert (tmp_path / 'docs' / 'page.md').read_text() == text


def test_a_run_that_two_studies_have_is_one(reproduce, study, monkeypatch, tmp_path):
  cells = {('here', *key[1:]): value for key, value in study.cells.items() if key[1] == 'earl'}
  monkeypatch.setitem(reproduce.STUDIES, 'again', study._replace(cells=cells))
  page = tmp_path / 'docs' / 'page.md'
  page.write_text(page.read_text() + '<!-- again -->\n<!-- end -->\n')
  assert len(run(reproduce, monkeypatch, tmp_path, {('earl', '0'): 0.9})) == 4  # of six cells
  assert not (tmp_path / 'kept' / 'again').exists()
  assert page.read_text().count('**90.0%**') == 2
  # Asked for alone, the second study has it too.
  assert run(reproduce, monkeypatch, tmp_path, {}, '--only=again', '--seeds=0') == []


def test_runs_of_another_config_are_trained_again(reproduce, study, monkeypatch, tmp_path):
  shares = {(method, seed): 0.5 for method in ('earl', 'prompt_grpo') for seed in '01'}
  assert len(run(reproduce, monkeypatch, tmp_path, shares)) == 4
  assert run(reproduce, monkeypatch, tmp_path, {}) == []
  for same in ('rollout.chunk', 'algorithm.micro_batch'):
    assert run(reproduce, monkeypatch, tmp_path, {}, f'--config.{same}=8') == []
  shutil.rmtree(tmp_path / 'out')
  assert len(run(reproduce, monkeypatch, tmp_path, {}, '--config.optimizer.learning_rate=0.5')) == 4


def test_a_workdir_of_another_config_is_left_alone(reproduce, study, monkeypatch, tmp_path, capsys):
  """After a quick look with fewer steps, whose parameters no longer run is to begin with."""
  run(reproduce, monkeypatch, tmp_path, {('earl', '0'): 0.5}, '--config.steps=1')
  monkeypatch.setattr(reproduce.grid, 'train', lambda *_: pytest.fail('trained'))
  monkeypatch.setattr(sys, 'argv', sys.argv[:4])
  assert reproduce.cli.start(reproduce.main, reproduce.define_flags, sys.argv) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and 'earl-seed_0: the run there has another config; choose another --out' in error


def test_results_of_the_model_that_ships_are_not_those_of_another(reproduce, study, tmp_path):
  arguments = tuple(study.cells['countdown3', 'earl', 0])
  write_workdir(reproduce, tmp_path / 'run', arguments, 0.5)
  (tmp_path / 'model').mkdir()
  assert reproduce.is_of(tmp_path / 'run', reproduce.read_config(arguments))
  assert not reproduce.is_of(
      tmp_path / 'run', reproduce.read_config((*arguments, f'--config.model={tmp_path / "model"}')))


def test_how_a_run_was_made_is_told_of_when_it_was_begun(reproduce, study, monkeypatch, tmp_path):
  began = tmp_path / 'out' / 'methods' / 'countdown3-earl-seed_0.made.json'
  began.parent.mkdir(parents=True)
  began.write_text('{"commit": "before", "jax": "1", "machine": "this", "command": "train"}')
  run(reproduce, monkeypatch, tmp_path, {('earl', '0'): 0.5, ('earl', '1'): 0.5})
  kept = tmp_path / 'kept' / 'methods'
  assert json.loads((kept / 'countdown3-earl-seed_0' / 'made.json').read_text())['commit'] == 'before'
  assert json.loads((kept / 'countdown3-earl-seed_1' / 'made.json').read_text())['commit'] != 'before'


def test_a_cell_that_cannot_be_kept_stops_no_other(reproduce, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(sys, 'executable', '/bin/true')
  kept = []

  def done(name):
    if name == 'first':
      raise OSError('disk full')
    kept.append(name)

  with pytest.raises(UserError, match='1 cells failed: first'):
    reproduce.grid.train({'first': [], 'second': []}, tmp_path, 1, 1, done)
  assert kept == ['second'] and 'first failed: disk full' in capsys.readouterr().out


def test_list_trains_and_writes_nothing(reproduce, study, monkeypatch, tmp_path, capsys):
  assert run(reproduce, monkeypatch, tmp_path, {}, '--list') == []
  assert '| methods | 0 | 4 |' in capsys.readouterr().out
  assert sorted(path.name for path in tmp_path.iterdir()) == ['docs']


def test_where_a_model_lies_is_not_kept(reproduce, study, tmp_path):
  model = tmp_path / 'secret' / 'model.gguf'
  model.parent.mkdir()
  model.touch()
  arguments = [*study.cells['countdown3', 'earl', 0], f'--config.model={model}']
  write_workdir(reproduce, tmp_path / 'run', arguments, 0.5)
  reproduce.keep(tmp_path / 'run', tmp_path / 'kept', tuple(arguments))
  assert not any(b'secret' in path.read_bytes() for path in (tmp_path / 'kept').rglob('*') if path.is_file())
  assert reproduce.is_of(tmp_path / 'kept', reproduce.read_config(tuple(arguments)))


def names():
  return ['sort4', 'countdown3', 'methods', 'algorithms', 'sort5', 'language_model']


def test_all_studies_are_looked_at(reproduce):
  assert names() == list(reproduce.STUDIES)


@pytest.mark.parametrize('name', names())
def test_the_pages_say_what_is_kept(reproduce, name, tmp_path):
  cells = reproduce.cells_of_all([], tiny.ROOT / 'nowhere', reproduce.KEPT)[name]
  page = DOCS / reproduce.STUDIES[name].page
  block = re.search(rf'<!-- {name} -->\n(.*?)<!-- end -->', page.read_text(), re.DOTALL)[1]
  folders = {path.name for path in (reproduce.KEPT / name).glob('*')}
  kept = [cell.folder for cell in cells if cell.kept]
  assert folders == {folder.name for folder in kept if folder.parent.name == name}, 'kept, but of another config'
  if not kept:
    assert not block.strip()
    return
  shutil.copy(page, tmp_path)
  reproduce.write_page(name, cells, tmp_path)
  assert block in (tmp_path / page.name).read_text()


def numbers(text: str) -> set[str]:
  return set(NUMBER.findall(re.sub(r'`[^`]*`|\]\([^)]*\)', ' ', text)))


def test_every_number_stands_in_what_was_measured():
  pages = ''.join((DOCS / page).read_text() for page in ('results.md', 'language_model.md'))
  blocks = re.findall(r'<!-- \w+ -->\n(.*?)<!-- end -->', pages, re.DOTALL)
  measured = numbers(re.sub(r'[%|*]', ' ', ' '.join(blocks)))
  readme = (tiny.ROOT / 'README.md').read_text()
  first = readme[readme.index('The first installs the package') : readme.index('A run shows its progress')]
  compared = readme[readme.index('## EARL against') : readme.index('## Your own environment')]
  prose = re.sub(r'<!-- \w+ -->\n.*?<!-- end -->', '', (DOCS / 'results.md').read_text(), flags=re.DOTALL)
  assert measured
  for text in (first, compared, prose):
    assert not numbers(re.sub(r'[%|*]', ' ', text)) - measured


@pytest.mark.parametrize('argument, message', [
    ('--only=chess', "'chess' is not one of sort4"), ('--seeds=one', 'give whole numbers'),
    ('--config=configs/sort4.py', 'have configs of their own'), ('--config.step=3', "no field 'step'"),
    ('--config.curriculum[7].until=0.5', 'tuple index out of range'),
])
def test_bad_arguments_are_named(argument, message):
  command = [sys.executable, str(BENCHMARKS / 'reproduce.py'), argument]
  done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tiny.ROOT)
  assert done.returncode == 2 and message in done.stderr and done.stderr.count('\n') == 1, done.stderr


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
  """Two runs of three steps: what is kept is the same, however often it was killed, but for the time it took."""
  (tmp_path / 'docs').mkdir()
  shutil.copy(DOCS / 'results.md', tmp_path / 'docs')

  def start(name):
    flags = ['--only=sort4', '--seeds=0,1', '--config.steps=3', '--config.checkpoint_every=1',
             '--config.sample_every=1', '--jobs=2', '--devices_per_job=1', f'--docs={tmp_path / "docs"}']
    flags += [f'--{folder}={tmp_path / name / folder}' for folder in ('out', 'kept')]
    return subprocess.Popen([sys.executable, str(BENCHMARKS / 'reproduce.py'), *flags], start_new_session=True)

  def kept(name):
    folder = tmp_path / name / 'kept'
    texts = {path.relative_to(folder): path.read_text() for path in folder.rglob('*') if path.is_file()}
    return {path: re.sub(r'"seconds": [\d.e-]+', '', text) for path, text in texts.items()}

  assert start('whole').wait() == 0
  rng = random.Random(0)
  for _ in range(3):
    child = start('killed')
    time.sleep(rng.uniform(10, 60))
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
  child = start('killed')
  time.sleep(rng.uniform(10, 30))
  child.send_signal(signal.SIGTERM)  # to it alone, which ends after the runs that it began
  child.wait(120)
  with pytest.raises(ProcessLookupError):
    os.killpg(child.pid, 0)
  assert start('killed').wait() == 0
  assert kept('killed') == kept('whole') and len(kept('whole')) == 2 * 6
