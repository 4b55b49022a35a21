import pytest

from earl_jax.config import UserError
from earl_jax.tasks.base import make_task, Task
from earl_jax.tasks.sorting import Compare, Order, Sort


@pytest.mark.parametrize('name, options, cls, label', [
    ('sort', {'n': 4}, Sort, 'sort4'),
    ('sort', {'n': 3, 'direction': 'descending'}, Sort, 'sort3-descending'),
    ('order', {'n': 2}, Order, 'order2'),
    ('compare', {}, Compare, 'compare2'),
])
def test_found_by_name(name, options, cls, label):
  task = make_task(name, **options)
  assert type(task) is cls and isinstance(task, Task)
  assert task.label == label


@pytest.mark.parametrize('name, options, message', [
    ('sorting', {}, r"task 'sorting' not found; known: .*compare.*order.*sort"),
    ('sort', {}, r"task 'sort': .*'n'; its options: n, direction, efficiency"),
    ('order', {'n': 3, 'efficiency': 'released'}, r"task 'order': .*'efficiency'; its options: n, direction"),
    ('sort', {'n': 1}, r'n=1: choose'),
])
def test_user_errors(name, options, message):
  with pytest.raises(UserError, match=message):
    make_task(name, **options)
