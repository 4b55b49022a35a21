"""Every configuration that ships is whole, and its prompts fit."""

import importlib
import pathlib
import runpy
import sys

import pytest

from earl_jax import config as config_lib
from earl_jax import tokenizer as tokenizer_lib
from earl_jax.experiment import EMBEDDED
from earl_jax.tasks.base import make_task
from tests.runs import tiny

NAMES = sorted(path.stem for path in (tiny.ROOT / 'configs').glob('*.py'))


@pytest.mark.parametrize('name', NAMES)
def test_every_prompt_fits(name):
  config = config_lib.parse(importlib.import_module(f'configs.{name}').get_config())
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
