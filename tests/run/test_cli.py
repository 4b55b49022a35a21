"""Command lines: what users get wrong ends in one clear line and status 2."""

import errno
import gc
import importlib
import json
import logging
import os
import subprocess
import sys

from absl import flags
import jax
import pytest

from earl_jax import __main__, evaluate, train
from earl_jax.config import default_config, embedded_config, MeshConfig, parse, stage, UserError
from earl_jax.devices import sharding
from earl_jax.run import cli
from earl_jax.run.workdir import claim_workdir
from tests.run import tiny


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return tiny.write_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module', autouse=True)
def collect_what_other_files_left():
  """Python complains on stderr when it drops a coroutine that was never awaited, as a failed restore leaves one."""
  gc.collect()


@pytest.fixture(autouse=True)
def read_the_config_anew():
  sys.modules.pop('config_config', None)  # config_flags loads every config file under this name, one over the other


@pytest.fixture
def fails(capsys):
  """Runs a program and gives its one line of error."""

  def run(program, *arguments):
    assert cli.start(program.main, program.define_flags, ['program', *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith('error: ') and err.count('\n') == 1 and 'Traceback' not in err and out == ''
    return err

  return run


SORT4 = f'--config={tiny.ROOT}/configs/sort4.py'


@pytest.mark.parametrize('arguments, says', [
    (['--config.optimzer.x=1'], "--config.optimzer.x=1: no field 'optimzer'; did you mean --config.optimizer?"),
    (['--config.lerning_rate=1'], "no field 'lerning_rate'; did you mean --config.optimizer.learning_rate?"),
    (['--config.rollout.promts=1'], "no field 'promts'; did you mean --config.rollout.prompts?"),
    (['--config.optimizer.zzz=1'], "no field 'zzz'; config.optimizer has the fields b1, b2, clip_norm"),
    (['--config.seed.x=1'], "no field 'x'; config.seed has no fields"),
    (['--foo'], "Unknown command line flag 'foo'"),
    (['--wordir=runs'], "Unknown command line flag 'wordir'. Did you mean: workdir"),
    (['--config.seed=one'], 'config.seed=one: invalid literal for int'),
    (['--config.steps=-1'], 'config.steps=-1: choose a whole number from 0 to'),
    (['configs/sort4.py'], "'configs/sort4.py': unexpected argument"),
    (['--config.rollout.chunk=3'], 'config.rollout.chunk=3: choose a divisor'),
    (['--config.mesh.data=3'], 'config.mesh=(3, 1, 1) does not fit'),
    (['--config.model=/nowhere'], "'/nowhere'"),
])
def test_arguments(fails, tmp_path, arguments, says):
  assert says in fails(train, SORT4, f'--workdir={tmp_path / "run"}', *arguments)
  assert not (tmp_path / 'run').exists()


def test_no_config(fails):
  assert '--config is missing' in fails(train, '--workdir=nowhere')


@pytest.mark.parametrize('more', [[], ['--config.seed=1']])
def test_missing_config_file(fails, more):
  assert 'configs/none.py' in fails(train, '--config=configs/none.py', *more)


@pytest.mark.parametrize('text, line, says', [
    ('from earl_jax import config as c\ndef get_config():\n  config = c.default_config()\n  config.optimzer = 3\n'
     '  return config\n', 4, 'config.optimzer = 3'),
    ('def get_config():\n  return int("x")\n', 2, 'return int("x"): ValueError: invalid literal'),
    ('def helper():\n  return 1 / 0\ndef get_config():\n  return helper()\n', 2, 'return 1 / 0: ZeroDivisionError'),
    ('def get_config():\n  x = = 3\n', 2, 'x = = 3'),
    ('import nothing_of_that_name\n', 1, 'No module named'),
])
def test_config_file_with_an_error(fails, tmp_path, text, line, says):
  path = tmp_path / 'bad.py'
  path.write_text(text)
  error = fails(train, f'--config={path}')
  assert f'{path}, line {line}: ' in error and says in error


@pytest.mark.parametrize('text', ['def get_config():\n  pass\n', 'x = 1\n'])
def test_config_file_without_a_config(fails, tmp_path, text):
  path = tmp_path / 'bad.py'
  path.write_text(text)
  assert 'get_config' in fails(train, f'--config={path}')


@pytest.mark.parametrize('n', [1, 9])
def test_number_of_items(fails, tmp_path, model, n):
  path = tmp_path / 'config.py'
  path.write_text(
      'from earl_jax import config as c\ndef get_config():\n  config = c.default_config()\n'
      f"  config.curriculum = (c.stage(('sort', {{'n': {n}}}, 1.0)),)\n  return config\n"
  )
  assert f'n={n}: choose a whole number from 2 to 8' in fails(
      train, f'--config={path}', f'--config.model={model}', f'--workdir={tmp_path / "run"}'
  )


def test_workdir_of_another_config(fails, tmp_path, model):
  config = tiny.parsed(model)
  claim_workdir(tmp_path, config, {'compare': 1, 'swap': 1})
  (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n')
  error = fails(train, f'--config={tiny.PATH}:{model}', f'--workdir={tmp_path}', '--config.seed=7')
  assert 'seed was 0 in this workdir and is 7 now; use another --workdir' in error


def test_unwritable_workdir(fails, tmp_path, model):
  (tmp_path / 'file').touch()
  error = fails(train, f'--config={tiny.PATH}:{model}', f'--workdir={tmp_path}/file/run')
  assert 'cannot write there' in error


def test_tokenizer_that_splits_items(fails, tmp_path, model):
  folder = tmp_path / 'model'
  folder.mkdir()
  for path in model.iterdir():
    (folder / path.name).write_bytes(path.read_bytes())
  tokenizer = json.loads((folder / 'tokenizer.json').read_text())
  vocabulary = tokenizer['model']['vocab']
  vocabulary['unused1'], vocabulary['unused2'] = vocabulary.pop('ĠA'), vocabulary.pop('ĠB')
  (folder / 'tokenizer.json').write_text(json.dumps(tokenizer))
  error = fails(train, f'--config={tiny.PATH}:{folder}', f'--workdir={tmp_path / "run"}')
  assert "' A'" in error and "' B'" in error and 'use a tokenizer' in error
  assert not (tmp_path / 'run').exists()


def test_rows_that_the_mesh_cannot_share(tmp_path, model):
  child = tiny.start(
      'train', f'--config={tiny.PATH}:{model}', f'--workdir={tmp_path / "run"}', '--config.rollout.prompts=5',
      '--config.rollout.chunk=4', '--config.algorithm.mini_batches=1',
      XLA_FLAGS=tiny.flags(2),
  )
  _, err = child.communicate()
  assert child.returncode == 2
  assert err == (
      'error: config.rollout.prompts=5 is not divisible by data * fsdp = 2 of the mesh; choose a multiple of 2\n'
  )


@pytest.mark.parametrize('arguments, says', [
    ([], 'workdir'),
    (['--workdir=nowhere'], 'nowhere: no readable config.json there'),
    (['--workdir=nowhere', '--samples=0'], 'samples'),
    (['--workdir=nowhere', '--config=x'], "Unknown command line flag 'config'"),
])
def test_evaluate_arguments(fails, arguments, says):
  assert says in fails(evaluate, *arguments)


PROGRAMS = __main__.programs()


@pytest.mark.parametrize('program', PROGRAMS)
def test_help(capsys, program):
  """Short, in groups, with every flag of the program and none of absl's."""
  module = importlib.import_module(PROGRAMS[program].module)
  assert cli.start(module.main, module.define_flags, ['program', '--help']) == 0
  out, _ = capsys.readouterr()
  assert out.startswith(module.__doc__.split('\n\n')[0]) and f'python -m earl_jax.{program}' in out
  assert len(out.splitlines()) <= 50 and max(map(len, out.splitlines())) <= 120
  values = flags.FlagValues()
  module.define_flags(values, ['program'])
  assert all(f'\n  --{flag.name}' in out for flag in values.flags_by_module_dict()[module.__name__])
  assert 'undefok' not in out
  config = '--config' in out
  assert config == ('\n  --config.optimizer.FIELD=VALUE\n' in out) and config == ('learning_rate' in out)


def test_required_flags_are_told_apart(capsys):
  cli.start(evaluate.main, evaluate.define_flags, ['program', '--help'])
  required, options = capsys.readouterr().out.split('Required:')[1].split('Options:')
  assert '--workdir=WORKDIR' in required and '--samples' not in required
  assert '(default: 256)' in options


def test_the_programs_are_listed(capsys):
  assert __main__.main([]) == 0
  out = capsys.readouterr().out
  assert 'python -m earl_jax.train      Trains a policy\n' in out
  assert {'train', 'evaluate', 'plan', 'export'} <= set(PROGRAMS) and not {'config', 'base_model'} & set(PROGRAMS)


@pytest.mark.parametrize('arguments, says', [
    (['trian', '--config=x'], "unknown program 'trian'; write python -m earl_jax.train --config=x"),
    (['--foo'], "unknown program '--foo'; choose one of evaluate, export"),
])
def test_the_list_takes_no_arguments(capsys, arguments, says):
  assert __main__.main(arguments) == 2
  assert says in capsys.readouterr().err


@pytest.mark.parametrize('changes, devices', [
    ({}, 1),
    ({'mesh.tensor': 2}, 2),
    ({'mesh.tensor': 2, 'mesh.fsdp': 2}, 4),
    ({'mesh.data': 4}, 4),
])
def test_devices_of_a_cpu(monkeypatch, changes, devices):
  monkeypatch.delenv('XLA_FLAGS')
  cli.prepare_jax(tiny.parsed('unused', **changes))
  assert os.environ['XLA_FLAGS'] == f'--xla_force_host_platform_device_count={devices}'


@pytest.mark.parametrize('cores, changes, devices', [
    (1, {}, 1),
    (2, {}, 2),
    (3, {}, 2),  # 16 prompts cannot be shared out over three
    (64, {}, 4),
    (4, {'mesh.data': 1}, 1),
    (4, {'mesh.data': 8}, 8),
    (4, {'mesh.fsdp': 2}, 4),
    (2, {'mesh.tensor': 4}, 4),
    (4, {'rollout.prompts': 2}, 2),
    (4, {'rollout.prompts': 1, 'rollout.chunk': 16, 'algorithm.micro_batch': 16, 'mesh.fsdp': 2}, 2),  # refused later
    (4, {'algorithm.micro_batch': 0}, 4),
])
def test_every_core_is_a_device_for_the_embedded_model(monkeypatch, cores, changes, devices):
  monkeypatch.delenv('XLA_FLAGS')
  monkeypatch.setattr(os, 'sched_getaffinity', lambda process: set(range(cores)), raising=False)
  config = embedded_config()
  config.curriculum, config.algorithm.mini_batches = (stage(('sort', {'n': 2}, 1.0)),), 1
  config.update_from_flattened_dict(changes)
  cli.prepare_jax(parse(config))
  assert os.environ['XLA_FLAGS'] == f'--xla_force_host_platform_device_count={devices}'


def test_xla_flags_of_the_user_stay(monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--mine')
  cli.prepare_jax(parse({**default_config().to_dict(), 'curriculum': (stage(('sort', {'n': 2}, 1.0)),)}))
  assert os.environ['XLA_FLAGS'] == '--mine'


def test_settings_of_the_environment_that_cannot_be():
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  cli.prepare_jax(tiny.parsed('unused'))
  assert jax.config.jax_numpy_rank_promotion == 'allow' and not jax.config.jax_enable_x64


def test_import_starts_no_device():
  """`prepare_jax` comes after the imports, and must not come too late."""
  code = 'import earl_jax.train; from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())'
  assert subprocess.run([sys.executable, '-c', code], cwd=tiny.ROOT, capture_output=True, text=True).stdout == 'False\n'


@pytest.mark.parametrize('text, line', [
    ("def get_config():\n  return open('/nowhere/at.all', encoding='utf-8')\n", 2),
    ("TEXT = open('/nowhere/at.all', encoding='utf-8')\ndef get_config():\n  pass\n", 1),
])
@pytest.mark.parametrize('more', [[], ['--config.seed=1']])
def test_config_file_that_cannot_open_a_file(fails, tmp_path, text, line, more):
  path = tmp_path / 'config.py'
  path.write_text(text)
  error = fails(train, f'--config={path}', *more)
  assert f'{path}, line {line}: ' in error and 'FileNotFoundError' in error and "'/nowhere/at.all'" in error


@pytest.mark.parametrize('text, told', [
    ('def get_config():\n  config = config_lib.embedded_config()\n  config.algorithm.kll = 0.1\n  return config\n',
     "line 5: config.algorithm.kll = 0.1: no field 'kll'; did you mean 'kl'?"),
    ('x = 1\n', 'it defines no get_config(); define it'),
])
def test_config_file_that_is_none(fails, tmp_path, text, told):
  path = tmp_path / 'config.py'
  path.write_text(f'from earl_jax import config as config_lib\n\n{text}')
  error = fails(train, f'--config={path}')
  assert told in error and len(error) < 300


@pytest.mark.parametrize('error, status, told', [
    (OSError(errno.ENOSPC, 'No space left on device', '/full/file'), 2, 'error: /full/file: No space left on device; '),
    (KeyboardInterrupt(), 130, 'interrupted'),
])
def test_what_ends_a_program(capsys, error, status, told):
  def main(values):
    del values
    raise error

  assert cli.start(main, evaluate.define_flags, ['program', '--workdir=x']) == status
  err = capsys.readouterr().err
  assert err.startswith(told) and err.count('\n') == 1


def test_no_devices_of_the_kind_that_is_asked_for(monkeypatch):
  def fail():
    raise AssertionError

  monkeypatch.setattr(sharding.jax, 'devices', fail)
  with pytest.raises(UserError, match=r'JAX_PLATFORMS=cpu: JAX finds no device .AssertionError.; install the plugin'):
    sharding.make_mesh(MeshConfig())


@pytest.mark.parametrize('path, level, shown', [
    ('orbax/future.py', logging.ERROR, False), ('orbax/future.py', logging.WARNING, True),
    ('earl_jax/train.py', logging.ERROR, True),
])
def test_errors_of_background_threads_are_told_once(path, level, shown):
  """They are raised as well."""
  assert cli.start(evaluate.main, evaluate.define_flags, ['program', '--help']) == 0
  record = logging.LogRecord('absl', level, path, 1, 'failed', None, None)
  assert bool(logging.getLogger('absl').filter(record)) == shown
