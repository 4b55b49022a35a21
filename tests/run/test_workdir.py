"""The claim on a working folder, and what is read back from it, also from folders of older versions."""

import dataclasses
import errno
import json
import pathlib
import subprocess
import sys

import pytest

from earl_jax.config import AlgorithmConfig, Config, MeshConfig, OptimizerConfig, Stage, UserError
from earl_jax.run import workdir as workdir_lib
from earl_jax.run.workdir import (
  claim_workdir,
  hold_workdir,
  read_config,
  read_modules,
  require_actions,
  require_written_by,
)
from tests.run import tiny

CONFIG = Config(curriculum=(Stage(tasks=(('sort', {'n': 2}, 1.0), ('sort', {'n': 3}, 2.0))),))
FILES = {'config.json', 'versions.json'}


@pytest.fixture
def begun(tmp_path):
  """A workdir in which a step has been made."""
  (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n')
  return tmp_path


def plain(config):
  """As JSON holds it."""
  return json.loads(json.dumps(dataclasses.asdict(config)))


def rewrite(path, edit):
  value = json.loads(path.read_text())
  edit(value)
  path.write_text(json.dumps(value))


def test_claim(tmp_path):
  workdir = tmp_path / 'new' / 'run'
  claim_workdir(workdir, CONFIG, {'compare': 1})
  curriculum = json.loads((workdir / 'config.json').read_text())['curriculum']
  assert curriculum[0]['tasks'] == [['sort', {'n': 2}, 1.0], ['sort', {'n': 3}, 2.0]]
  assert json.loads((workdir / 'versions.json').read_text()) == {'compare': 1}
  before = (workdir / 'config.json').read_bytes()
  (workdir / 'metrics.jsonl').write_text('{"step": 0}\n')
  claim_workdir(workdir, CONFIG, {'compare': 1})
  assert (workdir / 'config.json').read_bytes() == before
  resumed = dataclasses.replace(CONFIG, steps=200)
  with pytest.raises(UserError, match='versions.json: compare was 1'):  # a run that is refused changes nothing
    claim_workdir(workdir, resumed, {'compare': 2})
  assert (workdir / 'config.json').read_bytes() == before
  claim_workdir(workdir, resumed, {'compare': 1})
  assert plain(read_config(workdir)) == plain(resumed)  # what it goes on with
  assert {path.name for path in workdir.iterdir()} == FILES | {'metrics.jsonl'}


@pytest.mark.parametrize('came', ['metrics.jsonl', 'evaluation.json', 'checkpoints/1/state', 'imitated/1/state'])
def test_a_run_of_which_nothing_has_come_owns_nothing(tmp_path, came):
  """After a mistake in its config the corrected one has the folder."""
  claim_workdir(tmp_path, CONFIG, {'compare': 2}, None, {'compare': [' compare']})
  (tmp_path / 'metrics.jsonl').touch()  # opened, and nothing written
  (tmp_path / 'checkpoints').mkdir()
  (tmp_path / 'config.json').write_text('{"cut sho')
  corrected = dataclasses.replace(CONFIG, seed=1)
  claim_workdir(tmp_path, corrected, {'compare': 1}, None, {'compare': [' weigh']})
  assert plain(read_config(tmp_path)) == plain(corrected)
  assert json.loads((tmp_path / 'versions.json').read_text()) == {'compare': 1}
  (tmp_path / came).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / came).write_text('{}')
  with pytest.raises(UserError, match='seed was 1 in this workdir and is 2 now'):
    claim_workdir(tmp_path, dataclasses.replace(CONFIG, seed=2), {'compare': 1})


def test_environments_stay_in_their_order(begun):
  """A row of the head is that of the first one, whatever it is called."""
  claim_workdir(begun, CONFIG, {}, None, {'put': [' put'], 'get': [' get']})
  claim_workdir(begun, CONFIG, {}, None, {'put': [' put'], 'get': [' get']})
  with pytest.raises(UserError, match=r'actions.json: the order was \["put", "get"\] in this workdir and is \["get"'):
    claim_workdir(begun, CONFIG, {}, None, {'get': [' get'], 'put': [' put']})


def test_actions_stay_what_they_were(begun):
  actions = {'get': [' get', ' A', ' B']}
  claim_workdir(begun, CONFIG, {})  # before they were kept
  for _ in range(2):
    claim_workdir(begun, CONFIG, {}, None, actions)
  for other in ([' take', ' A', ' B'], [' get', ' B', ' A'], [' get', ' A', ' B', ' C']):
    for check in (require_actions, lambda workdir, actions: claim_workdir(workdir, CONFIG, {}, None, actions)):
      with pytest.raises(UserError, match=r'actions.json: get was \[" get", " A", " B"\] in this workdir and is'):
        check(begun, {'get': other})


@pytest.mark.parametrize('changed, versions, changeable, field', [
    ({'seed': 1}, {'compare': 1}, (), 'seed was 0 in this workdir and is 1 now'),
    ({'seed': False}, {'compare': 1}, (), 'seed was 0 in this workdir and is false now'),
    ({'interface': 'tagged', 'seed': 1}, {'compare': 1}, ('seed',), 'interface was "expanded"'),
    ({'curriculum': ()}, {'compare': 1}, (), r'curriculum was \[.*"sort"'),
    ({'optimizer': OptimizerConfig(b1=0.5)}, {'compare': 1}, ('optim', 'optimizer.b'), 'optimizer.b1 was 0.9'),
    ({}, {'compare': 2}, ('compare',), 'versions.json: compare was 1 in this workdir and is 2 now'),
    ({}, {'compare': 1, 'swap': 1}, (), 'versions.json: swap was absent in'),
    ({}, {}, (), 'versions.json: compare was 1 in this workdir and is absent now'),
])
def test_claim_of_another_run(begun, monkeypatch, changed, versions, changeable, field):
  claim_workdir(begun, CONFIG, {'compare': 1})
  monkeypatch.setattr(workdir_lib, 'CHANGEABLE', changeable)
  with pytest.raises(UserError, match=f'{field}.*use another --workdir or the same config') as error:
    claim_workdir(begun, dataclasses.replace(CONFIG, **changed), versions)
  assert '\n' not in str(error.value)


def test_what_a_resumed_run_may_change(begun):
  """Fields, a whole group of them, and one within a group, whose other fields stay."""
  claim_workdir(begun, CONFIG, {})
  on_host = AlgorithmConfig(reference_on_host=True)
  changes = dict(
      steps=200, stop_at_solved=True, evaluate_every=1, checkpoint_every=1, sample_every=1, evaluation_prompts=1,
      mesh=MeshConfig(2, 2, 2), remat='full', algorithm=on_host,
  )
  claim_workdir(begun, dataclasses.replace(CONFIG, **changes), {})
  changes['algorithm'] = dataclasses.replace(on_host, kl=0.5)
  with pytest.raises(UserError, match='algorithm.kl was 0.001 in this workdir and is 0.5 now'):
    claim_workdir(begun, dataclasses.replace(CONFIG, **changes), {})


@pytest.mark.parametrize('name', sorted(FILES))
@pytest.mark.parametrize('text, says', [('{"task":', 'is not readable'), ('[1]', 'does not hold a JSON object')])
def test_claim_of_a_damaged_folder(begun, name, text, says):
  claim_workdir(begun, CONFIG, {})
  (begun / name).write_text(text)
  with pytest.raises(UserError, match=f'{name} {says}') as error:
    claim_workdir(begun, CONFIG, {})
  assert '\n' not in str(error.value)


def test_unwritable(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(UserError, match='file/run.*cannot write') as error:
    claim_workdir(tmp_path / 'file' / 'run', CONFIG, {})
  assert '\n' not in str(error.value)


def test_only_process_zero_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(workdir_lib.jax, 'process_index', lambda: 1)
  claim_workdir(tmp_path, CONFIG, {'compare': 1}, {'mine': '/there'})
  assert not list(tmp_path.iterdir())


def test_config_comes_back_as_it_was(tmp_path):
  for name, config in (('first', CONFIG), ('second', tiny.parsed('no model is read', seed=3))):
    claim_workdir(tmp_path / name, config, {})
    assert plain(read_config(tmp_path / name)) == plain(config)


def test_damaged_config(tmp_path):
  (tmp_path / 'config.json').write_text('{"seed":')
  with pytest.raises(UserError, match='config.json is not readable as JSON'):
    read_config(tmp_path)


def test_no_config(tmp_path):
  with pytest.raises(UserError, match=f'--workdir={tmp_path}: no readable config.json there'):
    read_config(tmp_path)


def test_a_config_of_before_a_field_existed(begun):
  """It is read with that field's default, and the run goes on if it has the same."""
  claim_workdir(begun, CONFIG, {})
  def forget(config):
    del config['interface'], config['algorithm']['dual_clip'], config['curriculum'][0]['imitate'], config['mesh']

  rewrite(begun / 'config.json', forget)
  assert plain(read_config(begun)) == plain(CONFIG)
  claim_workdir(begun, CONFIG, {})
  with pytest.raises(UserError, match='interface was "expanded" in this workdir and is "tagged" now'):
    claim_workdir(begun, dataclasses.replace(CONFIG, interface='tagged'), {})


def test_a_config_with_the_former_names(begun):
  config = dataclasses.replace(CONFIG, mastery_window=7, algorithm=AlgorithmConfig(rewrite_fraction=0.25))
  claim_workdir(begun, config, {})

  def old(config):
    config['window'] = config.pop('mastery_window')
    config['algorithm']['fraction'] = config['algorithm'].pop('rewrite_fraction')

  rewrite(begun / 'config.json', old)
  read = read_config(begun)
  assert (read.mastery_window, read.algorithm.rewrite_fraction) == (7, 0.25) and plain(read) == plain(config)
  before = (begun / 'config.json').read_bytes()
  claim_workdir(begun, config, {})
  assert (begun / 'config.json').read_bytes() == before
  for change, says in (
      ({'mastery_window': 4}, 'mastery_window was 7 in this workdir and is 4 now'),
      ({'algorithm': AlgorithmConfig()}, 'algorithm.rewrite_fraction was 0.25 in this workdir and is 0.0 now'),
  ):
    with pytest.raises(UserError, match=says):
      claim_workdir(begun, dataclasses.replace(config, **change), {})


def test_a_config_with_a_field_that_is_gone(begun):
  claim_workdir(begun, CONFIG, {})
  for value, today in ((False, {}), (True, {'worked_examples': 1, 'worked_examples_in': 'system'})):
    config = plain(CONFIG) | {'worked_example': value}
    del config['worked_examples'], config['worked_examples_in']
    (begun / 'config.json').write_text(json.dumps(config))
    config = dataclasses.replace(CONFIG, **today)
    assert plain(read_config(begun)) == plain(config)
    claim_workdir(begun, config, {})
  rewrite(begun / 'config.json', lambda config: config.update(worked_example='yes'))
  with pytest.raises(UserError, match='config.worked_example: no such field'):
    read_config(begun)


def test_a_config_with_a_field_that_there_is_not(tmp_path):
  claim_workdir(tmp_path, CONFIG, {})
  rewrite(tmp_path / 'config.json', lambda config: config['rollout'].update(beams=3))
  with pytest.raises(UserError, match='config.rollout.beams: no such field; known: '):
    read_config(tmp_path)


def test_modules_of_others(tmp_path):
  claim_workdir(tmp_path, CONFIG, {})
  assert read_modules(tmp_path) == {}
  for folder in ('/here', '/there'):  # they may move
    claim_workdir(tmp_path, CONFIG, {}, {'mine': folder})
    assert read_modules(tmp_path) == {'mine': folder}
  assert {path.name for path in tmp_path.iterdir()} == FILES | {'modules.json'}


def test_a_resumed_run_may_make_room(begun):
  claim_workdir(begun, CONFIG, {})
  rollout = dataclasses.replace(CONFIG.rollout, prompt_length=80, response_length=200, chunk=64)
  changed = dataclasses.replace(CONFIG, rollout=rollout, algorithm=AlgorithmConfig(micro_batch=8))
  claim_workdir(begun, changed, {})
  with pytest.raises(UserError, match='rollout.group was 16'):
    claim_workdir(begun, dataclasses.replace(changed, rollout=dataclasses.replace(rollout, group=8)), {})


@pytest.mark.parametrize('name', ['a[2]', 'a*b', 'a?b', 'a\\b', 'gs:/b', 'a\udcff', 'x/' * 1900])
def test_a_path_that_checkpoints_cannot_be_read_from(tmp_path, name):
  with pytest.raises(UserError, match='checkpoints cannot be read from a path .*choose another --workdir') as error:
    claim_workdir(tmp_path / name, CONFIG, {})
  assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], 'a+')
fcntl.flock(file, fcntl.LOCK_EX)
file.write('process 1 on somewhere')
file.flush()
print('held', flush=True)
sys.stdin.read()
"""


def test_a_hold_ends_with_its_process(tmp_path):
  child = subprocess.Popen(
      [sys.executable, '-c', HOLDER, tmp_path / 'lock'], stdout=subprocess.PIPE, stdin=subprocess.PIPE
  )
  assert child.stdout.readline() == b'held\n'
  with pytest.raises(UserError, match='in use by another run .process 1 on somewhere.; stop it first') as error:
    with hold_workdir(tmp_path):
      pass
  assert '\n' not in str(error.value)
  child.kill()
  child.communicate()
  for _ in range(2):
    with hold_workdir(tmp_path), pytest.raises(UserError, match='another run'):
      with hold_workdir(tmp_path):
        pass


def test_no_locks(tmp_path, monkeypatch, caplog):
  def unsupported(*_):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(workdir_lib.fcntl, 'flock', unsupported)
  with hold_workdir(tmp_path):
    assert 'this file system has no locks' in caplog.text


@pytest.mark.parametrize('name', sorted(FILES))
def test_a_run_whose_files_are_missing(tmp_path, name):
  claim_workdir(tmp_path, CONFIG, {})
  (tmp_path / 'checkpoints' / '2').mkdir(parents=True)
  (tmp_path / name).unlink()
  with pytest.raises(UserError, match=f'no readable {name}|{name} is not readable'):
    claim_workdir(tmp_path, CONFIG, {})
  assert not (tmp_path / name).exists()


def test_a_checkpoint_knows_its_config():
  path = pathlib.Path('checkpoints', '2')
  saved = plain(CONFIG)
  require_written_by(path, None, CONFIG)
  require_written_by(path, saved, dataclasses.replace(CONFIG, steps=9, model='/elsewhere'))
  with pytest.raises(UserError, match='checkpoints/2: seed was 0 in this workdir and is 1 now'):
    require_written_by(path, saved, dataclasses.replace(CONFIG, seed=1))


def test_a_text_is_written_whole_or_not(tmp_path):
  path = tmp_path / 'text'
  workdir_lib.write_atomically(path, 'old\u2028ü')
  with pytest.raises(KeyboardInterrupt), workdir_lib.replacing_file(path) as file:
    file.write(b'half')
    raise KeyboardInterrupt
  assert path.read_bytes() == 'old\u2028ü'.encode() and list(tmp_path.iterdir()) == [path]
