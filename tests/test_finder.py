"""Environments and tasks are found by name, module, class; what cannot be found is told in one line."""

import sys

import pytest

from earl_jax import finder
from earl_jax.config import UserError
from earl_jax.environments import base as environments_base
from earl_jax.environments.compare import Compare
from earl_jax.tasks import base as tasks_base
from earl_jax.tasks.base import make_task, task_of_label
from earl_jax.tasks.sorting import Sort

MODULE = """
from earl_jax.environments.base import Environment
from earl_jax.tasks.base import Task
from earl_jax.tasks.sorting import Sort
from earl_jax.environments.compare import Compare


class {task}(Sort):
  name = '{name}'
"""
TWO = MODULE.format(task='First', name='first') + '\n\nclass Second(Sort):\n  name = "second"\n'


@pytest.fixture
def write(tmp_path, monkeypatch):
  """Writes a module that can be imported, and forgets it afterwards."""
  monkeypatch.setattr(sys, 'path', [*sys.path, str(tmp_path)])
  before = set(sys.modules)

  def write(name, text):
    path = tmp_path.joinpath(*name.split('.')).with_suffix('.py')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

  yield write
  for name in set(sys.modules) - before:
    del sys.modules[name]


def test_by_name_module_and_class(write):
  write('outside_one', MODULE.format(task='Mine', name='mine'))
  assert environments_base.find('compare') is environments_base.find(Compare) is Compare
  assert type(make_task('sort', n=3)) is type(make_task('Sort', n=3)) is type(make_task(Sort, n=3)) is Sort
  task = make_task('outside_one', n=3)
  assert type(task).__name__ == 'Mine' and task.label == 'mine3'
  assert type(make_task('outside_one:Mine', n=3)) is type(make_task('outside_one:mine', n=3)) is type(task)


def test_one_of_several_and_in_a_package(write):
  write('outside_package.tasks', TWO)
  write('outside_package.__init__', 'from outside_package.tasks import Second\n')
  assert make_task('outside_package.tasks:Second', n=2).label == 'second2'
  assert make_task('outside_package:Second', n=2).label == 'second2', 'what a package offers counts when it is named'
  with pytest.raises(UserError, match='defines 2 Task classes, expected one; write outside_package.tasks:NAME with'):
    make_task('outside_package.tasks', n=2)


def test_where_modules_come_from(write, tmp_path):
  write('outside_deep.tasks', TWO)
  write('outside_deep.__init__', '')
  write('outside_flat', MODULE.format(task='Mine', name='mine'))
  classes = [type(make_task(name, n=2)) for name in ('outside_deep.tasks:First', 'outside_flat', 'sort')]
  assert finder.sources(classes) == {'outside_deep.tasks': str(tmp_path), 'outside_flat': str(tmp_path)}


def test_a_class_that_lacks_a_function(write):
  write('outside_half', 'from earl_jax.tasks.base import Task\n\n\nclass Half(Task):\n  name = "half"\n')
  for name in ('outside_half', 'outside_half:Half'):
    with pytest.raises(UserError, match=f"task '{name}': Half does not define example, outcome; add that"):
      make_task(name)


def test_an_error_is_told_where_it_left_the_users_code(write):
  write('outside_bad', MODULE.format(task='Mine', name='mine') + """
  def __init__(self, n):
    import json
    super().__init__(json.loads('{'))
""")
  with pytest.raises(UserError, match=r'cannot be made: .*outside_bad.py, line 13: JSONDecodeError: '):
    make_task('outside_bad', n=2)


@pytest.mark.parametrize('name', ['chess', 'no.such.module', 'chess:Mate', '', 'a b', '../x', '.x', 'sort:', '1'])
def test_what_is_nowhere(name):
  with pytest.raises(UserError, match='not found; known: arithmetic, compare, count.*PYTHONPATH') as error:
    make_task(name)
  assert '\n' not in str(error.value)
  with pytest.raises(UserError, match='not found; known: calculator, check, compare, swap.*PYTHONPATH'):
    environments_base.find(name)


@pytest.mark.parametrize('text, what', [
    ('x = 1\n', 'defines no Task; define a subclass of Task there'),
    ('def f(:\n', 'outside_bad.py, line 1: invalid syntax'),
    ('\nx = 1 / 0\n', 'outside_bad.py, line 2: ZeroDivisionError: division by zero'),
    ('import a_library_that_is_missing\n', "line 1: ModuleNotFoundError: No module named 'a_library_that_is_missing'"),
    ('raise SystemError("multi\\nline")\n', 'line 1: SystemError: multi line'),
])
def test_modules_that_are_of_no_use(write, text, what):
  write('outside_bad', text)
  with pytest.raises(UserError, match=what) as error:
    make_task('outside_bad')
  assert '\n' not in str(error.value) and "'outside_bad'" in str(error.value)


def test_classes_and_values_that_are_of_no_use(write):
  write('outside_one', MODULE.format(task='Mine', name='mine'))
  with pytest.raises(UserError, match='has no Task named Yours; write outside_one:NAME with one of'):
    make_task('outside_one:Yours')
  with pytest.raises(UserError, match='not a subclass of Task; make it one'):
    make_task(Compare)
  with pytest.raises(UserError, match='give a name, a module path or a class'):
    make_task(7)
  with pytest.raises(UserError, match='defines no Environment; define a subclass of Environment there'):
    environments_base.find('earl_jax.tasks.sorting')


def test_tasks_that_lack_something(write):
  write('outside_bare', """
from earl_jax.tasks.base import Task


class Bare(Task):

  def example(self, seed, split, index):
    pass

  def outcome(self, instance, states, text, finished):
    pass
""")
  with pytest.raises(UserError, match='task Bare: its `name` must be a str; set it in the class'):
    make_task('outside_bare')


def test_options(write):
  with pytest.raises(UserError, match="task 'sort'.*unexpected keyword argument 'colour'; its options: n, direction"):
    make_task('sort', n=2, colour='red')
  with pytest.raises(UserError, match="task 'sort'.*missing a required argument: 'n'"):
    make_task('sort')


def test_labels(write):
  write('outside_one', MODULE.format(task='Mine', name='mine'))
  assert task_of_label('sort5').label == 'sort5'
  assert task_of_label('countdown4').label == 'countdown4'
  assert task_of_label('arithmetic').label == 'arithmetic'
  mine = make_task('outside_one', n=2)
  assert task_of_label('mine4', [mine]).label == 'mine4'
  with pytest.raises(UserError, match="task 'arithmetic3': arithmetic takes no number; write arithmetic"):
    task_of_label('arithmetic3')
  with pytest.raises(UserError, match="task 'mine4' not found"):
    task_of_label('mine4')


def test_a_task_cannot_name_an_environment_twice():
  class Twice(Sort):
    environments = ('compare', Compare)

  with pytest.raises(UserError, match="names the environment 'compare' twice; name it once"):
    tasks_base.environments_of(Twice(2))


@pytest.mark.parametrize('problems', [[], [1, 2], ['abc']])
def test_problems_that_are_none(problems):
  class Odd(Sort):

    def problems(self):
      return problems

  with pytest.raises(UserError, match=r'problems\(\) must return all of its Examples'):
    tasks_base.all_problems(Odd(2))
