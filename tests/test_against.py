"""What `transformers.generate` and TRL are timed with: environments in Python, and GRPO steps of full rows."""

import functools
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax.environments.compare import Compare
from earl_jax.environments.swap import Swap
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run.preparation import EMBEDDED, set_up
from tests import benchmark
from tests.run import tiny

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


@pytest.fixture(scope='module')
def stepping(tmp_path_factory):
  """(experiment, params): 16 rows, of which every one is learned from, whatever it earned."""
  return set_up(tiny.parsed(tiny.write_model(tmp_path_factory.mktemp('model')), **{
      'algorithm.counterfactual': False, 'algorithm.skip_zero': False, 'algorithm.mini_batches': 1,
  }))


def test_steps_are_of_rows_that_nothing_ends(stepping, monkeypatch):
  against, batches = benchmark.load('against'), []
  collect = against.collect
  monkeypatch.setattr(against, 'collect', lambda *arguments: batches.append(collect(*arguments)) or batches[-1])
  assert len(against.of_steps(*stepping, repeats=2)) == 2 and len(batches) == 3
  for batch in batches:
    ends = np.asarray(batch.trajectory.end)
    assert not batch.trajectory.finished.any() and ends.min() > stepping[0].slots - stepping[0].interface.width
  assert np.any(batches[0].trajectory.tokens != batches[1].trajectory.tokens)


@pytest.mark.slow
def test_steps_of_trl(stepping):
  pytest.importorskip('trl')
  seconds = benchmark.load('against').of_trl(stepping[0], repeats=2)
  assert len(seconds) == 2 and min(seconds) > 0
