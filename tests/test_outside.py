"""An environment, a task and a config of somebody else, in one file in a folder that is not the repository."""

import json
import re
import sys

import pytest

from earl_jax import evaluate, export, plan, train
from earl_jax.run import cli
from earl_jax.run.saved import load
from earl_jax.run.workdir import read_config, read_modules
from tests.run import tiny

FILE = '''"""Which of two lamps is lit?"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax import config as config_lib
from earl_jax.action_space import ActionSpec, EnvironmentSpec
from earl_jax.environments.base import Environment, Observation, observation_table
from earl_jax.tasks import base


class Lamps(NamedTuple):
  lit: jax.Array
  looks: jax.Array


class Look(Environment):
  spec = EnvironmentSpec('look', ActionSpec(' look at'), (ActionSpec(' A'), ActionSpec(' B')))
  state_type = Lamps

  def __init__(self, encode):
    self._tokens, self._lengths = observation_table(encode, [': False\\\\n', ': True\\\\n'])
    self.max_observation = self._tokens.shape[1]

  def reset(self, instance):
    return Lamps(jnp.asarray(instance['lit'], jnp.int32), jnp.int32(0))

  def valid_actions(self, state):
    return jnp.ones(2, bool)

  def step(self, state, action):
    row = (state.lit == action).astype(jnp.int32)
    observation = Observation(jnp.asarray(self._tokens)[row], jnp.asarray(self._lengths)[row])
    return observation, state._replace(looks=state.looks + 1), jnp.bool_(True)


class FindLit(base.Task):
  name = 'lamps'
  environments = ('outside_lamps:Look', 'compare')
  numbered = 'count'
  columns = (base.Column('looks', '{:.1f}'),)
  cost = 'looks'
  reads_text = True

  def __init__(self, count: int = 2):
    self.label = f'lamps{count}'

  def example(self, seed, split, index):
    lit = np.int32(base.random_generator(seed, split, index).integers(2))
    items = {'values': np.arange(8, dtype=np.int32), 'count': np.int32(2)}  # for compare
    return base.Example(base.SYSTEM, f'Which is it, A or B? #{split}', items | {'lit': lit})

  def outcome(self, instance, states, text, finished):
    exact = bool(finished) and text.strip()[-1:] == 'AB'[instance['lit']]
    return base.Outcome(float(exact), exact, {'looks': float(states['Lamps'].looks)})

  def references(self, examples):
    return {'optimal': {'looks': 1.0}}


def get_config(model):
  config = config_lib.default_config()
  config.model = model
  config.curriculum = (
      config_lib.stage(('sort', {'n': 2}, 1.0), until=0.0),
      config_lib.stage(('outside_lamps:FindLit', {}, 1.0), ('sort', {'n': 2}, 1.0)),
  )
  config.update(steps=2, mastery_window=1, evaluate_every=1, checkpoint_every=1, sample_every=2, evaluation_prompts=4)
  config.rollout.update(prompts=4, group=4, prompt_length=56, response_length=24, chunk=8)
  config.algorithm.update(rewrite_fraction=0.5, mini_batches=2, micro_batch=4)
  return config
'''


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """An empty folder but for the file, from where all is started."""
  return tmp_path_factory.mktemp('elsewhere')


@pytest.fixture(scope='module')
def run(folder):
  """Runs a program in the folder, with a fresh search path; gives its status."""
  (folder / 'outside_lamps.py').write_text(FILE.replace('\\\\n', '\\n'))
  tiny.write_model(folder / 'model')

  def run(program, *arguments):
    with pytest.MonkeyPatch.context() as patch:
      patch.chdir(folder)
      patch.setattr(sys, 'path', list(sys.path))
      status = cli.start(program.main, program.define_flags, [program.__name__, *arguments])
    for name in [name for name in sys.modules if name.startswith('outside_')]:
      del sys.modules[name]
    return status

  return run


@pytest.fixture(scope='module')
def workdir(folder, run):
  """Trained for two steps and, resumed, for a third."""
  arguments = ['--config=outside_lamps.py:model', '--workdir=run']
  assert run(train, *arguments) == 0
  assert run(train, *arguments, '--config.steps=3') == 0
  return folder / 'run'


def test_it_is_trained_and_resumed(workdir):
  lines = tiny.read_metrics(workdir)
  assert [line['step'] for line in lines] == [0, 1, 2]
  assert all('eval/lamps2/looks' in line and 'eval/lamps2/exact_match' in line for line in lines)
  assert 'looks' in lines[-1] and 'exact_match/lamps2' in lines[-1]
  assert json.loads((workdir / 'versions.json').read_text()) == {'compare': 1, 'swap': 1, 'look': 1}


def test_its_environment_is_offered(workdir, folder, monkeypatch):
  monkeypatch.chdir(folder.parent)  # found where training found it
  monkeypatch.setattr(sys, 'path', list(sys.path))
  assert read_modules(workdir) == {'outside_lamps': str(folder)}
  config = read_config(workdir)
  experiment, _, step = load(workdir, type(config)(**vars(config) | {'model': str(folder / 'model')}))
  assert step == 3
  assert [e.spec.name for e in experiment.interface.environments] == ['compare', 'swap', 'look']
  assert experiment.offered(experiment.goal).tolist() == [[True, False, True], [True, True, False]]


def test_it_is_evaluated(workdir, run, capsys):
  assert run(evaluate, '--workdir=run', '--samples=8', '--tasks=lamps2,lamps3,outside_lamps:FindLit,sort3') == 0
  printed = capsys.readouterr().out
  assert {'lamps2', 'lamps3', 'sort3', 'optimal', 'looks', 'certified'} <= set(printed.split())
  results = json.loads((workdir / 'evaluation.json').read_text())
  assert results['lamps']['2']['references'] == {'optimal': {'looks': 1.0}} and results['lamps']['2']['count'] == 8


def test_it_is_exported(workdir, run, folder):
  assert run(export, '--workdir=run', '--out=out') == 0
  space = json.loads((folder / 'out' / 'action_space.json').read_text())
  assert {'name': 'look', 'version': 1} in space['environments']
  assert ' look at' in [action['description'] for action in space['actions']]


def test_it_is_planned(run, capsys):
  assert run(plan, '--config=outside_lamps.py:model') == 0
  assert 'update, at its peak' in capsys.readouterr().out


@pytest.mark.parametrize('change, what', [
    (("'outside_lamps:Look', 'compare'", "'outside_lamps:Look', 'outside_lamps'"), "the environment 'look' twice"),
    (("'outside_lamps:Look'", "'outside_lamps:Looks'"), 'has no Environment named Looks'),
    (("'outside_lamps:Look'", "'outside_nowhere'"), "environment 'outside_nowhere' not found"),
    (("EnvironmentSpec('look'", "EnvironmentSpec('compare'"), "environment 'compare'.*both have this name; rename one"),
    (("return base.Example(base.SYSTEM, f'Which is it, A or B? #{split}', items | {'lit': lit})",
      "return base.Example(base.SYSTEM, 'A or B?', items)"), "its instance has no 'lit', which the environment 'look'"),
    (("'outside_lamps:FindLit', {}", "'outside_lamps:FindLit', {'lamps': 3}"), 'its options: count'),
    (("'outside_lamps:FindLit', {}", "'outside_lamps:FindDark', {}"), 'has no Task named FindDark'),
    (("items = {'values': np.arange(8, dtype=np.int32)", "items = {'values': np.arange(6, dtype=np.int32)"),
     "instance key 'values'.*rename one of the two"),
])
def test_mistakes_are_told_in_one_line(run, folder, capsys, change, what):
  text = FILE.replace('\\\\n', '\\n')
  assert change[0] in text
  name = f'outside_{len(list(folder.iterdir()))}'
  (folder / f'{name}.py').write_text(text.replace(*change).replace('outside_lamps', name))
  assert run(train, f'--config={name}.py:model', f'--workdir={name}') == 2
  error = capsys.readouterr().err.strip().splitlines()
  assert len(error) == 1 and re.search(what.replace('outside_lamps', name), error[0]), error
  assert not (folder / name).exists(), 'nothing is claimed'


def test_a_module_that_has_gone(workdir, folder, run, capsys):
  file = folder / 'outside_lamps.py'
  file.rename(folder / 'moved.txt')
  try:
    assert run(evaluate, '--workdir=run') == 2
  finally:
    (folder / 'moved.txt').rename(file)
  assert "task 'outside_lamps:FindLit' not found" in capsys.readouterr().err
