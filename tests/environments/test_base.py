import jax.numpy as jnp
import pytest

from earl_jax.config import UserError
from earl_jax.environments import base
from tests.environments.tokenizers import MergingTokenizer


def test_concatenate():
  pieces = [([1, 2, 0], 2), ([9, 9], 0), ([3], 1), ([4, 5, 6, 7], 3), ([8], 0)]
  pieces = [(jnp.array(tokens, jnp.int32), jnp.int32(length)) for tokens, length in pieces]
  observation = base.concatenate(pieces, 8)
  assert observation.length == 6
  assert observation.tokens.tolist() == [1, 2, 3, 4, 5, 6, 0, 0]


@pytest.mark.parametrize('name, merged, piece', [
    ('compare', ' and A', 'and'),
    ('compare', 'D: C', 'D'),
    ('swap', ' H =>', 'H'),
    ('swap', ', D,', ' D,'),
    ('swap', 'G\n', None),  # inside one piece: harmless
    ('check', 'if B', 'check if'),
    ('check', 'odd: F', 'odd'),
])
def test_a_tokenizer_that_merges_pieces_is_refused(name, merged, piece):
  environment = base.find(name)
  if piece is None:
    environment(MergingTokenizer(merged).encode)
    return
  with pytest.raises(UserError, match='does not keep .*; use another tokenizer') as error:
    environment(MergingTokenizer(merged).encode)
  assert piece in str(error.value) and '\n' not in str(error.value)


def test_find():
  with pytest.raises(UserError, match="environment 'multiply' not found; known: .*compare.*swap"):
    base.find('multiply')
  with pytest.raises(UserError, match="environment 'hidden_items' not found; known: "):
    base.find('hidden_items')  # a module of the package, but no environment
  with pytest.raises(UserError, match='ItemEnvironment does not define __init__, step; add that'):
    base.find('earl_jax.environments.hidden_items')
  assert {'check', 'compare', 'swap'} <= set(base.available())
  assert base.find('earl_jax.environments.swap') is base.find('swap')
