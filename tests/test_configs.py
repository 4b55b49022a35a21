"""Every configuration that ships is whole, says what it is for, and its prompts fit."""

import ast
import dataclasses
import inspect
import math
import os
import pathlib
import re
import sys
import typing

import pytest

from earl_jax import config as config_lib
from earl_jax.config import fields
from earl_jax.config.paths import local_path
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run import cli
from earl_jax.run.preparation import EMBEDDED
from earl_jax.tasks.base import make_task
from tests.run import tiny

FOLDER = tiny.ROOT / 'configs'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))
EMBEDDED_NAMES = [name for name in NAMES if name not in ('published', 'smollm2')]
GROUPS = [
    value for value in vars(config_lib).values()
    if dataclasses.is_dataclass(value) and value.__module__ == config_lib.__name__
]


@pytest.fixture(autouse=True)
def from_elsewhere(monkeypatch, tmp_path):
  """As a program that is started in another folder and has only the package itself to import from."""
  paths = [path for path in sys.path if pathlib.Path(path).resolve() not in (tiny.ROOT, FOLDER)]
  monkeypatch.setattr(sys, 'path', paths)
  monkeypatch.chdir(tmp_path)
  for module in [module for module in sys.modules if module in NAMES or module.partition('.')[0] == 'configs']:
    monkeypatch.delitem(sys.modules, module)


def start(name, *argument):
  """(exit status, config) of a program that is given configs/NAME.py:ARGUMENT, whose parts are joined by commas."""
  configs = []

  def main(values):
    configs.append(cli.read_config(values)[1])

  path = f'{FOLDER}/{name}.py' + (':' + ','.join(map(str, argument)) if argument else '')
  status = cli.start(main, cli.define_config, ['program', f'--config={path}'])
  return status, configs[0] if configs else None


def load(name, *argument):
  status, config = start(name, *argument)
  assert status == 0
  return config


@pytest.mark.parametrize('name, task', [
    *(('published', task) for task in ('sort', 'countdown', 'calc_bench', 'arithmetic')),
    *(('embedded', task) for task in ('sort4', 'countdown3', 'countdown3_strict', 'calc_bench')),
])
def test_methods_differ_in_nothing_else(name, task):
  earl, *others = (load(name, task, method) for method in config_lib.METHODS)
  for method, other in zip(list(config_lib.METHODS)[1:], others):
    assert other.interface == 'tagged' and other.algorithm.counterfactual == (method == 'prompt_cpo')
    algorithm = dataclasses.replace(other.algorithm, counterfactual=True)
    same = dataclasses.replace(other, interface='expanded', algorithm=algorithm, curriculum=earl.curriculum)
    assert same == earl
    if method == 'sft_grpo':  # demonstrations of the last stage, and then that stage
      shown, last = other.curriculum
      assert shown.imitate and shown.tasks == last.tasks and (last,) == earl.curriculum[-1:]
    else:
      assert other.curriculum == earl.curriculum
  if name == 'published':
    assert (earl.rollout.prompts, earl.algorithm.kl, earl.optimizer.learning_rate) == (256, 0.001, 1e-6)


@pytest.mark.parametrize('task', ['sort', 'countdown', 'arithmetic', 'calc_bench'])
def test_published_prompts_fit_with_the_tokenizer_of_qwen(task, qwen_tokenizer_dir, gsm8k_dir):
  config = load('published', task, 'earl', gsm8k_dir)
  tokenizer = tokenizer_lib.load_tokenizer(qwen_tokenizer_dir)
  for stage in config.curriculum:
    for name, options, _ in stage.tasks:
      for index in range(60):
        made = make_task(name, **options)
        example = made.example(0, 'train', index)
        prompt = tokenizer_lib.chat_prompt(tokenizer, example.system, example.user, made.assistant_start)
        assert len(prompt) <= config.rollout.prompt_length, example.user


@pytest.mark.parametrize('name, task', [('published', 'sort'), ('embedded', 'sort4')])
def test_what_they_do_not_know_is_named(name, task, capsys):
  for argument, message in ((('chess', 'earl'), 'choose a task of'), ((task, 'sft'), 'choose one of earl')):
    assert start(name, *argument) == (2, None)
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


@pytest.mark.parametrize('name, argument', [
    *((name, ()) for name in EMBEDDED_NAMES if name != 'embedded'),
    *(('embedded', (task, 'earl')) for task in ('sort4', 'countdown3', 'countdown3_strict', 'calc_bench')),
])
def test_every_prompt_fits(name, argument):
  config = load(name, *argument)
  tokenizer = tokenizer_lib.load_tokenizer(EMBEDDED)
  tasks = [make_task(task, **options) for stage in config.curriculum for task, options, _ in stage.tasks]
  assert tasks
  for task in tasks:
    for index in range(100):
      example = task.example(config.seed, 'train', index)
      prompt = tokenizer_lib.chat_prompt(tokenizer, example.system, example.user, task.assistant_start)
      assert len(prompt) <= config.rollout.prompt_length


@pytest.mark.parametrize('name', NAMES)
def test_it_can_be_loaded_from_any_folder(name):
  with pytest.raises(ModuleNotFoundError):
    __import__(name)  # what lies beside it is found because it is named, not by chance
  assert load(name).curriculum


def test_sort5_is_sort4_and_one_stage_more():
  sort4, sort5 = load('sort4'), load('sort5')
  assert [stage.tasks for stage in sort5.curriculum[:-1]] == [stage.tasks for stage in sort4.curriculum]
  assert ('sort', {'n': 5}) in [task[:2] for task in sort5.curriculum[-1].tasks]
  assert sort5.algorithm == sort4.algorithm
  assert sort5.optimizer == dataclasses.replace(sort4.optimizer, decay=0.5)


@pytest.mark.parametrize('name', NAMES)
def test_it_says_how_it_is_run_and_what_that_takes(name):
  text = ' '.join(ast.get_docstring(ast.parse((FOLDER / f'{name}.py').read_text())).split())
  assert f'python -m earl_jax.train --config=configs/{name}.py' in text
  assert re.search(r'\b(\d+|three) minutes on \w+ CPU cores?\b|\bNot run here\b', text)
  assert re.search(r'\b(CPU|GPU|TPU)', text)


@pytest.mark.parametrize('group', GROUPS, ids=[group.__name__ for group in GROUPS])
def test_every_field_is_described(group):
  """In its class, or, where it is a group, in a class of its own."""
  section = inspect.getdoc(group).partition('\nAttributes:\n')[2]
  described = ', '.join(re.findall(r'^ {2}(\w+(?:, \w+)*): \S', section, re.MULTILINE)).split(', ')
  assert described == [field.name for field in dataclasses.fields(group) if field.type not in GROUPS]


@pytest.mark.parametrize('group', GROUPS, ids=[group.__name__ for group in GROUPS])
def test_every_number_has_a_range_and_its_default_is_in_it(group):
  for name, kind in typing.get_type_hints(group, include_extras=True).items():
    assert typing.get_origin(kind) is not str, f'{name}: say which texts it may be'
    if kind is not bool and typing.get_origin(kind) is typing.Annotated and kind.__origin__ in (int, float):
      assert any(isinstance(note, fields.Range) for note in kind.__metadata__), name
      fields.check(kind, getattr(group(), name), name)
    else:
      assert kind not in (int, float), f'{name}: give it a Range'


CURRICULUM = (config_lib.stage(('sort', {'n': 2}, 1.0)),)


def parsed(**changes):
  return config_lib.parse({'curriculum': CURRICULUM} | changes)


def refused(says, **changes):
  with pytest.raises(config_lib.UserError) as error:
    parsed(**changes)
  assert says in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('field, values', [
    ('optimizer.learning_rate', (-1, 2, 1e30)), ('optimizer.clip_norm', (0, -1)), ('optimizer.decay', (2, -0.1)),
    ('optimizer.warmup', (-1,)), ('optimizer.b2', (1.0,)), ('optimizer.weight_decay', (-1,)), ('algorithm.kl', (-1,)),
    ('algorithm.clip_low', (-1, 1.5)), ('algorithm.clip_high', (-1,)), ('algorithm.dual_clip', (0.5,)),
    ('algorithm.entropy', (-1,)), ('rollout.temperature', (0, -1)), ('rollout.group', (1,)), ('mesh.fsdp', (-2,)),
    ('seed', (-1, 2**32, 10**5000)), ('steps', (-1, 10**30)), ('evaluate_every', (0,)), ('evaluation_prompts', (0,)),
])
def test_numbers_out_of_their_range(field, values):
  group, _, name = field.rpartition('.')
  whole = isinstance(getattr(getattr(config_lib.Config(), group) if group else config_lib.Config(), name), int)
  others = ('1', None, True, [1]) if whole else ('1', None, True, [1], math.nan, math.inf, -math.inf)
  for value in (*values, *others):
    change = {group: {name: value}} if group else {name: value}
    refused(f'config.{field}=', **change)


@pytest.mark.parametrize('changes, says', [
    ({'algorithm': {'micro_batch': 7}}, 'config.algorithm.micro_batch=7: choose a divisor of the 128 rows'),
    ({'algorithm': {'micro_batch': 256}}, 'config.algorithm.micro_batch=256: choose a divisor of the 128 rows'),
    ({'algorithm': {'mini_batches': 3}}, 'config.algorithm.mini_batches=3: choose a divisor of config.rollout.prompts'),
    ({'rollout': {'chunk': 100}}, 'config.rollout.chunk=100: choose a divisor of prompts * group = 512'),
    ({'rollout': {'prompts': 10**6, 'group': 10**6}}, 'config.rollout.prompts=1000000: a batch has'),
    ({'steps': 10**8, 'rollout': {'prompts': 64}, 'algorithm': {'mini_batches': 64}}, '.steps=100000000: each has'),
])
def test_fields_that_do_not_go_together(changes, says):
  refused(says, **changes)


@pytest.mark.parametrize('curriculum, says', [
    ('sort2', "config.curriculum='sort2': expected a tuple, such as ({'tasks': (('sort', {'n': 4}, 1.0),)"),
    (('sort', {'n': 2}, 1.0), "config.curriculum[0]='sort': expected a group of fields: tasks, until, steps, imitate"),
    ({'tasks': ('sort', {'n': 2}, 1.0)}, ".tasks[0]='sort': expected a tuple of 3, such as ('sort', {'n': 4}, 1.0)"),
    ({'tasks': (('sort', {'n': 2}),)}, ".tasks[0]=('sort', {'n': 2}): expected a tuple of 3, such as"),
    ({'tasks': (('sort', {'n': 2}, 'half'),)}, ".tasks[0][2]='half': expected a number, such as ('sort'"),
    ({'tasks': (('sort', {'n': 2}, 0),)}, '.tasks[0][2]=0: choose a number from'),
    ({'tasks': (('sort', {'n': math.nan}, 1),)}, '.tasks[0][1]={'),
    ({'tasks': (('sort', {'n': {2}}, 1),)}, '.tasks[0][1]={'),
    ({'tasks': ((Exception, {}, 1),)}, ".tasks[0][0]=<class 'Exception'>: expected a text"),
    ({'tasks': ()}, '.tasks=(): give at least one task'),
    ({'until': -1}, 'curriculum[0].until=-1: choose a number from 0'),
    ({'speed': 1}, 'curriculum[0].speed: no such field'),
    ((), 'config.curriculum=(): give at least one stage'),
])
def test_a_curriculum_of_the_wrong_shape(curriculum, says):
  refused(says, curriculum=(CURRICULUM[0] | curriculum,) if isinstance(curriculum, dict) else curriculum)


def test_paths_are_absolute_from_the_start(tmp_path, monkeypatch):
  """Folders of a model and paths of tasks, also `~`; ids of a hub and what is on the web stay."""
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  (tmp_path / 'mine').mkdir()
  task = ('gsm8k', {'path': 'data/../gsm8k'}, 1.0)
  config = parsed(model='mine', curriculum=(config_lib.stage(task),))
  assert config.model == str(tmp_path / 'mine')
  assert config.curriculum[0].tasks == (('gsm8k', {'path': str(tmp_path / 'gsm8k')}, 1.0),)
  monkeypatch.chdir('/')
  assert config_lib.parse(dataclasses.asdict(config)) == config  # as another program reads it
  assert parsed(model='~/m').model == str(tmp_path / 'home' / 'm')
  for model in ('Qwen/Qwen2.5-0.5B', 'Qwen2.5-0.5B', 'embedded'):
    assert parsed(model=model).model == model
  web = config_lib.stage(('gsm8k', {'path': 'https://x.org/gsm8k'}, 1.0))
  assert parsed(curriculum=(web,)).curriculum[0].tasks[0][1]['path'] == 'https://x.org/gsm8k'
  refused('config.model=gs://bucket/m: URLs are not supported', model='gs://bucket/m')


@pytest.mark.parametrize('path', ['gs://bucket/run', 's3://x', pathlib.Path('gs://bucket/run'), '', '\0', 'x' * 5000])
def test_a_path_that_cannot_be(path):
  with pytest.raises(config_lib.UserError, match='--workdir=') as error:
    local_path(path, '--workdir')
  assert '\n' not in str(error.value)


def test_paths_from_where_a_program_starts(tmp_path):
  assert local_path('a/../run', '--workdir') == tmp_path / 'run'
  assert local_path('~/run', '--workdir') == pathlib.Path(os.path.expanduser('~')) / 'run'


def test_settings_of_the_embedded_model_lack_a_curriculum_alone():
  config = config_lib.embedded_config()
  with pytest.raises(config_lib.UserError, match='curriculum'):
    config_lib.parse(config)
  config.curriculum = (config_lib.stage(('sort', {'n': 4}, 1.0)),)
  assert config_lib.parse(config).model == 'embedded'
