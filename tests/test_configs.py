"""Every configuration that ships is whole, says what it is for, and its prompts fit."""

import ast
import dataclasses
import inspect
import pathlib
import re
import sys

import pytest

from earl_jax import config as config_lib
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run import cli
from earl_jax.run.experiment import EMBEDDED
from earl_jax.tasks.base import make_task
from tests.run import tiny

FOLDER = tiny.ROOT / 'configs'
NAMES = sorted(path.stem for path in FOLDER.glob('*.py'))
EMBEDDED_NAMES = [name for name in NAMES if name != 'published']
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
    *(('embedded', task) for task in ('sort4', 'countdown3', 'calc_bench')),
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
    *(('embedded', (task, 'earl')) for task in ('sort4', 'countdown3', 'calc_bench')),
])
def test_every_prompt_fits(name, argument):
  config = load(name, *argument)
  assert config.model == 'embedded'
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
  assert sort5.algorithm == sort4.algorithm and sort5.optimizer == sort4.optimizer


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


def test_settings_of_the_embedded_model_lack_a_curriculum_alone():
  config = config_lib.embedded_config()
  with pytest.raises(config_lib.UserError, match='curriculum'):
    config_lib.parse(config)
  config.curriculum = (config_lib.stage(('sort', {'n': 4}, 1.0)),)
  assert config_lib.parse(config).model == 'embedded'
