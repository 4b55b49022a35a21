"""Imports run one way, Linen stays in `model/`, nothing executes data. The source is read, not imported."""

import ast
from collections.abc import Iterator
import graphlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / 'earl_jax'

# A module may import its own layer and earlier ones. A part named nowhere here may sit anywhere its imports allow.
LAYERS = (
    {'config', 'masked', 'trajectory'},
    {'tokenizer', 'action_space'},
    {'environments'},
    {'interfaces', 'tasks'},
    {'model', 'policy'},
    {'rollout'},
    {'counterfactual', 'update'},
    {'train'},
)
LAYER = {part: i for i, parts in enumerate(LAYERS) for part in parts}
PURE = {'advantages': {'config', 'masked', 'trajectory'}, 'losses': {'config', 'masked', 'trajectory'}}
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


@pytest.mark.parametrize('module', [m for m in GRAPH if part(m) in LAYER])
def test_no_import_of_a_later_layer(module):
  later = {other for other in reachable(module) if LAYER.get(part(other), 0) > LAYER[part(module)]}
  assert not later, f'{module} imports, directly or through others, from later layers: {sorted(later)}'


@pytest.mark.parametrize('name', [name for name in PURE if f'earl_jax.{name}' in TREES])
def test_advantages_and_losses_know_no_model(name):
  parts = {part(module) for module in reachable(f'earl_jax.{name}')}
  assert parts <= PURE[name]


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
    assert getattr(call.func, 'id', None) not in ('eval', 'exec'), f'line {call.lineno}'
    for keyword in call.keywords:
      if keyword.arg in ('allow_pickle', 'trust_remote_code'):
        assert getattr(keyword.value, 'value', None) is False, f'line {call.lineno}: {keyword.arg}'
