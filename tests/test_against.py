"""The environments in Python that `transformers.generate` is timed with, against those of this package."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.environments.compare import Compare
from earl_jax.environments.swap import Swap
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run.preparation import EMBEDDED
from tests import benchmark

VALUES = (49, 930, 49)


@pytest.fixture(scope='module')
def episode():
  return benchmark.load('python_environments').episode


@pytest.fixture(scope='module')
def encode():
  return functools.partial(tokenizer_lib.encode, tokenizer_lib.load_tokenizer(EMBEDDED))


@pytest.mark.parametrize('kind', [Compare, Swap])
def test_an_episode_writes_what_the_environment_writes(episode, encode, kind):
  """Two calls with every pair: the second sees what the first has changed."""
  environment = kind(encode)
  instance = {
      'values': jnp.array([*VALUES, *[0] * 5], jnp.int32), 'count': jnp.int32(3), 'descending': jnp.bool_(False),
      'asked': jnp.array([-1, -1]),
  }
  pairs = list(itertools.permutations(range(3), 2))
  for first, second in itertools.product(pairs, pairs):
    state, playing = environment.reset(instance), episode(VALUES, encode)
    legal = next(playing)
    for pair in (first, second):
      for token in encode(f', then{kind.spec.routing.description}'):
        assert legal is None
        legal = playing.send(token)
      for item in pair:
        name = encode(f' {"ABC"[item]}')
        for token in name:
          assert token in legal
          legal = playing.send(token)
        observation, state, exits = environment.step(state, jnp.int32(item))
        for token in np.asarray(observation.tokens)[: int(observation.length)].tolist():
          assert legal == [token]
          legal = playing.send(token)
      assert exits and legal is None


def test_the_second_item_is_another(episode, encode):
  playing = episode(VALUES, encode)
  next(playing)
  for token in encode(' compare B'):
    legal = playing.send(token)
  for token in encode(' and'):
    assert legal == [token]
    legal = playing.send(token)
  assert sorted(legal) == sorted([*encode(' A'), *encode(' C')])
