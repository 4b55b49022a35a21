"""Imports run one way, Linen stays in `model/`, nothing executes data, HTML is escaped. The source alone is read."""

import ast
from collections.abc import Iterator
import graphlib
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / 'earl_jax'

# From the ground up. A module may import what is on its own floor or below: never upwards.
FLOORS = (
    {'config'},
    {'action_space', 'finder'},
    {'devices', 'environments'},
    {'model', 'tasks'},
    {'interfaces'},
    {'acting'},
    {'learning'},
    {'run'},
    # Programs, and what is beside them.
    {'train', 'evaluate', 'plan', 'export', 'view', 'play', 'testing', 'base_model'},
)
FLOOR = {part: i for i, parts in enumerate(FLOORS) for part in parts}
FORMULAS = {'earl_jax.learning.advantages', 'earl_jax.learning.losses'}
MARKUP = re.compile(r'</?(a|b|body|br|button|code|div|h[1-6]|img|li|p|pre|script|span|style|svg|t[dhr]|table|ul)\b')
EXECUTES_DATA = {'cloudpickle', 'dill', 'marshal', 'pickle', 'shelve'}


def module_name(path: pathlib.Path) -> str:
  return '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts).removesuffix('.__init__')


TREES = {module_name(path): ast.parse(path.read_text(), str(path)) for path in sorted(PACKAGE.rglob('*.py'))}


def imported_names(tree: ast.AST) -> Iterator[str]:
  """Dotted names that `tree` imports, wherever in it: `from a import b` gives `a.b`."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'line {node.lineno}: relative import; write it in full'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def part(module: str) -> str:
  """`environments` of `earl_jax.environments.base`; nothing for the package itself."""
  return (module.split('.') + [''])[1]


def own_modules(tree: ast.AST) -> set[str]:
  """The modules of this package that `tree` imports."""
  modules = (name if name in TREES else name.rpartition('.')[0] for name in imported_names(tree))
  return {module for module in modules if part(module)} & TREES.keys()


GRAPH = {module: own_modules(tree) for module, tree in TREES.items()}


def reachable(module: str) -> set[str]:
  """Modules imported by `module`, directly or through others."""
  found, queue = set(), [module]
  while queue:
    new = GRAPH[queue.pop()] - found
    found |= new
    queue.extend(new)
  return found


def test_no_import_cycle():
  graphlib.TopologicalSorter(GRAPH).prepare()


def test_every_module_is_on_one_floor():
  assert not {module for module in GRAPH if part(module) and part(module) not in FLOOR}
  assert sum(map(len, FLOORS)) == len(FLOOR)
  assert {part(module) for module in GRAPH if part(module)} == set(FLOOR), 'a floor names what is not there'


def test_the_house_can_be_taken_in_at_a_glance():
  assert len([path for path in PACKAGE.iterdir() if path.name != '__pycache__']) <= 20


@pytest.mark.parametrize('module', [m for m in GRAPH if part(m)])
def test_no_import_upwards(module):
  upwards = {other for other in GRAPH[module] if FLOOR[part(other)] > FLOOR[part(module)]}
  assert not upwards, f'{module} imports from above: {sorted(upwards)}'


@pytest.mark.parametrize('module', [m for m in GRAPH if FLOOR.get(part(m)) == len(FLOORS) - 1])
def test_programs_do_not_import_each_other(module):
  others = {other for other in GRAPH[module] if FLOOR[part(other)] == len(FLOORS) - 1}
  assert {part(other) for other in others} <= {part(module)}


@pytest.mark.parametrize('module', sorted(FORMULAS))
def test_advantages_and_losses_know_nothing_else(module):
  assert not reachable(module)


@pytest.mark.parametrize('module', [m for m in GRAPH if FLOOR.get(part(m), 99) >= FLOOR['acting']])
def test_general_files_know_no_task(module):
  """A task of this package is in no way different from one of somebody else's."""
  if part(module) == 'base_model':  # it is taught not to know the problems of these tasks
    return
  tasks = {other for other in GRAPH[module] if part(other) == 'tasks'}
  assert tasks <= {'earl_jax.tasks.base'}


def test_linen_stays_in_model():
  outside = [
      module for module, tree in TREES.items()
      if part(module) != 'model' and any(f'{name}.'.startswith('flax.linen.') for name in imported_names(tree))
  ]
  assert not outside


@pytest.mark.parametrize('module', TREES)
def test_nothing_executes_data(module):
  tree = TREES[module]
  assert not {name.partition('.')[0] for name in imported_names(tree)} & EXECUTES_DATA
  for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
    assert getattr(call.func, 'id', None) not in ('__import__', 'compile', 'eval', 'exec'), f'line {call.lineno}'
    assert getattr(call.func, 'attr', None) not in ('getoutput', 'popen', 'system'), f'line {call.lineno}'
    for keyword in call.keywords:
      if keyword.arg in ('allow_pickle', 'shell', 'trust_remote_code'):
        assert getattr(keyword.value, 'value', None) is False, f'line {call.lineno}: {keyword.arg}'


@pytest.mark.parametrize('module', TREES)
def test_text_is_escaped_where_it_becomes_html(module):
  """A module that puts values between tags escapes text."""
  for text in (node for node in ast.walk(TREES[module]) if isinstance(node, ast.JoinedStr)):
    fixed = ''.join(part.value for part in text.values if isinstance(part, ast.Constant))
    if MARKUP.search(fixed):
      assert 'html' in imported_names(TREES[module]), f'line {text.lineno}'
