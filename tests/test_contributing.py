"""The example in CONTRIBUTING.md works as it stands there."""

import pathlib
import re
import runpy
import sys

import jax
import jax.numpy as jnp
import pytest

from earl_jax import environments
from earl_jax.environments.base import available, find

GUIDE = pathlib.Path(__file__).resolve().parents[1] / 'CONTRIBUTING.md'
BLOCKS = dict(re.findall(r'^`(\S+\.py)`[^\n]*\n\n```python\n(.*?)^```$', GUIDE.read_text(), re.MULTILINE | re.DOTALL))


@pytest.fixture
def rank_file(tmp_path, monkeypatch):
  """Makes the example a module of the package, as if its file were there."""
  (tmp_path / 'rank.py').write_text(BLOCKS['earl_jax/environments/rank.py'])
  monkeypatch.setattr(environments, '__path__', [*environments.__path__, str(tmp_path)])
  yield
  sys.modules.pop('earl_jax.environments.rank', None)
  vars(environments).pop('rank', None)


def test_environment_is_found_by_its_file_alone(rank_file):
  assert 'rank' in available()


def test_environment_passes_its_own_test(rank_file, tmp_path):
  path = tmp_path / 'test_rank.py'
  path.write_text(BLOCKS['tests/environments/test_rank.py'])
  tests = [function for name, function in runpy.run_path(str(path)).items() if name.startswith('test_')]
  assert tests
  for test in tests:
    test()


def test_environment_in_a_batch(rank_file):
  """All ranks of four items and the refusal of the fifth, through jit and vmap."""
  environment = find('rank')(encode=lambda text: list(text.encode()))
  values = jnp.array([5, -7, 900, 6, 0, 0, 0, 0])
  state = environment.reset({'values': values, 'count': jnp.int32(4)})
  observation, next_state, exits = jax.jit(jax.vmap(environment.step, in_axes=(None, 0)))(state, jnp.arange(5))
  texts = [bytes(t[:n].tolist()).decode() for t, n in zip(observation.tokens, observation.length)]
  assert texts == [': 2\n', ': 1\n', ': 4\n', ': 3\n', '']
  assert exits.tolist() == [True] * 4 + [False]
  assert (next_state.values == values).all()
