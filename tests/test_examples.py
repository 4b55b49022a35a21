"""The examples keep to what they promise: short, within the contracts, and trained from any folder by their command."""

import ast
import importlib
import io
import pathlib
import sys
import tokenize

import pytest

from earl_jax import config as config_lib
from earl_jax import finder, train
from earl_jax.run import cli
from earl_jax.tasks.base import environments_of, make_task
from earl_jax.testing import check_environment, check_task
from tests.run import tiny

EXAMPLES = sorted(path.stem for path in (tiny.ROOT / 'examples').glob('*.py'))
MOST_LINES = 75


@pytest.fixture(autouse=True)
def found(monkeypatch):
  """The examples are found, and no module of the same name that another test has imported."""
  monkeypatch.setattr(sys, 'path', [path for path in sys.path if not path.endswith('benchmarks')])
  finder.look_in([str(tiny.ROOT / 'examples')])
  others = {name: sys.modules.pop(name) for name in EXAMPLES if name in sys.modules}
  yield
  for name in EXAMPLES:
    sys.modules.pop(name, None)
  sys.modules.update(others)


def tasks_of(name):
  config = config_lib.parse(importlib.import_module(name).get_config())
  return [make_task(task, **options) for stage in config.curriculum for task, options, _ in stage.tasks]


def lines_of_code(text):
  """Lines that hold something else than comments and docstrings."""
  ignored = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
  tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type not in ignored]
  lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
      lines -= set(range(node.lineno, node.end_lineno + 1))
  return len(lines)


def test_there_are_four():
  assert len(EXAMPLES) >= 4


@pytest.mark.parametrize('name', EXAMPLES)
def test_it_is_short_and_says_how_to_run_it(name):
  text = (tiny.ROOT / 'examples' / f'{name}.py').read_text('utf-8')
  assert lines_of_code(text) <= MOST_LINES
  assert f'/examples/{name}.py --workdir=' in ast.get_docstring(ast.parse(text)).split('\n\n')[1]


def test_lines_are_counted():
  text = '"""Doc\n\nstring."""\n\n# why\nx = (\n    1)  # what\n\n\ndef f():\n  """Doc."""\n  return x\n'
  assert lines_of_code(text) == 4


@pytest.mark.parametrize('name', EXAMPLES)
def test_it_keeps_to_the_contracts(name):
  for task in tasks_of(name):
    check_task(task, examples=20)
    instances = [task.example(0, 'train', index).instance for index in range(20)]
  for environment in environments_of(task):  # of the last task, the hardest
    check_environment(environment, instances)


@pytest.mark.parametrize('name', EXAMPLES)
def test_it_is_trained_from_a_folder_that_is_not_the_repository(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  tiny.write_model(tmp_path / 'model')
  assert cli.start(train.main, train.define_flags, [
      'train', f'--config={tiny.ROOT / "examples" / name}.py', '--config.model=model', '--config.steps=1',
      '--config.rollout.prompts=4', '--config.rollout.group=2', '--config.rollout.response_length=40',
      '--config.rollout.chunk=8', '--config.algorithm.mini_batches=1', '--config.algorithm.micro_batch=8',
      '--config.evaluation_prompts=8', '--config.evaluate_every=2',
  ]) == 0
  assert len(tiny.read_metrics(pathlib.Path('runs', name))) == 1
