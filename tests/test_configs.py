"""Every configuration that ships is whole, and its prompts fit."""

import dataclasses
import importlib
import pathlib
import runpy
import sys

import pytest

from earl_jax import config as config_lib
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run.experiment import EMBEDDED
from earl_jax.tasks.base import make_task
from tests.run import tiny

NAMES = sorted(path.stem for path in (tiny.ROOT / 'configs').glob('*.py'))
EMBEDDED_NAMES = [name for name in NAMES if name != 'published']


def compared(name, *argument):
  return config_lib.parse(importlib.import_module(f'configs.{name}').get_config(','.join(map(str, argument))))


@pytest.mark.parametrize('name, task', [
    *(('published', task) for task in ('sort', 'countdown', 'calc_bench', 'arithmetic')),
    *(('embedded', task) for task in ('sort4', 'countdown3', 'calc_bench')),
])
def test_methods_differ_in_nothing_else(name, task):
  earl, *others = (compared(name, task, method) for method in config_lib.METHODS)
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
  config = compared('published', task, 'earl', gsm8k_dir)
  tokenizer = tokenizer_lib.load_tokenizer(qwen_tokenizer_dir)
  for stage in config.curriculum:
    for name, options, _ in stage.tasks:
      for index in range(60):
        made = make_task(name, **options)
        example = made.example(0, 'train', index)
        prompt = tokenizer_lib.chat_prompt(tokenizer, example.system, example.user, made.assistant_start)
        assert len(prompt) <= config.rollout.prompt_length, example.user


@pytest.mark.parametrize('name, task', [('published', 'sort'), ('embedded', 'sort4')])
def test_what_they_do_not_know_is_named(name, task):
  with pytest.raises(config_lib.UserError, match='choose a task of'):
    compared(name, 'chess', 'earl')
  with pytest.raises(config_lib.UserError, match='choose one of earl'):
    compared(name, task, 'sft')


@pytest.mark.parametrize('name, argument', [
    *((name, ()) for name in EMBEDDED_NAMES if name != 'embedded'),
    *(('embedded', (task, 'earl')) for task in ('sort4', 'countdown3', 'calc_bench')),
])
def test_every_prompt_fits(name, argument):
  module = importlib.import_module(f'configs.{name}')
  config = config_lib.parse(module.get_config(*[','.join(argument)] if argument else []))
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
def test_it_can_be_loaded_from_any_folder(name, monkeypatch):
  for module in [module for module in sys.modules if module.partition('.')[0] == 'configs']:
    monkeypatch.delitem(sys.modules, module)
  monkeypatch.setattr(sys, 'path', [path for path in sys.path if pathlib.Path(path).resolve() != tiny.ROOT])
  config_lib.parse(runpy.run_path(str(tiny.ROOT / 'configs' / f'{name}.py'))['get_config']())


def test_sort5_is_sort4_and_one_stage_more():
  sort4, sort5 = (
      config_lib.parse(importlib.import_module(f'configs.{name}').get_config()) for name in ('sort4', 'sort5')
  )
  assert [stage.tasks for stage in sort5.curriculum[:-1]] == [stage.tasks for stage in sort4.curriculum]
  assert ('sort', {'n': 5}) in [task[:2] for task in sort5.curriculum[-1].tasks]
  assert sort5.algorithm == sort4.algorithm and sort5.optimizer == sort4.optimizer
