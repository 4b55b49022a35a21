"""What calls write, piece by piece, is what the tokenizer of Qwen2.5 makes of the whole text: what a model has read."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest

from earl_jax.environments import base as environments_base
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run.preparation import INTERFACES
from earl_jax.tasks.base import make_task

TASKS = [('sort', {'n': 4}), ('order', {'n': 3}), ('arithmetic', {}), ('countdown', {})]
# What a calculator writes symbol by symbol and the tokenizer would join: ` (` and the sign of a negative number.
JOINED = re.compile(r' \(| -\d')


@pytest.fixture(scope='module')
def tokenizer(qwen_tokenizer_dir):
  return tokenizer_lib.load_tokenizer(qwen_tokenizer_dir)


@pytest.fixture(scope='module', params=list(INTERFACES))
def interface(request, tokenizer):
  names = dict.fromkeys(name for task, options in TASKS for name in make_task(task, **options).environments)
  environments = [environments_base.find(name) for name in names]
  return INTERFACES[request.param](len(tokenizer), environments, functools.partial(tokenizer_lib.encode, tokenizer))


@functools.cache
def compiled_act(interface):
  return jax.jit(interface.act)


def written(interface, task, example, script):
  """The tokens that the actions of a script write, one after the other."""
  names = [environment.spec.name for environment in interface.environments]
  offered = jnp.array([name in task.environments for name in names])
  instance = {'values': jnp.zeros(8, jnp.int32), 'count': jnp.int32(0)} | jax.tree.map(jnp.asarray, example.instance)
  act = compiled_act(interface)
  environment, states, tokens = jnp.int32(0), interface.reset(instance), []
  for action in script:
    if int(environment):
      legal = interface.legal(environment, states, offered)
      if not interface.tied:
        assert legal[action - interface.space.vocab_size]
    effect = act(environment, states, offered, jnp.int32(action))
    tokens += effect.tokens[: int(effect.length)].tolist()
    environment, states = effect.environment, effect.states
  assert int(environment) == 0
  return tokens


@pytest.mark.parametrize('name, options', TASKS)
def test_a_demonstration_is_tokenised_as_its_text(interface, tokenizer, name, options):
  task, equal, calls = make_task(name, **options), 0, 0
  encode = functools.partial(tokenizer_lib.encode, tokenizer)
  for index in range(12):
    demonstration = task.demonstration(0, 'train', index, variant=index)
    calls += sum(not isinstance(step, str) for step in demonstration)
    tokens = written(interface, task, task.example(0, 'train', index), interface.script(demonstration))
    text = tokenizer.decode(tokens)
    if JOINED.search(text):
      assert name in ('arithmetic', 'countdown')
    else:
      assert encode(text) == tokens, text
      equal += 1
  assert equal >= 4 and calls >= 8


def test_every_piece_is_tokenised_as_by_itself(interface, tokenizer):
  space, encode = interface.space, functools.partial(tokenizer_lib.encode, tokenizer)
  for action, tokens, length in zip(space.actions, space.descriptions, space.description_lengths):
    assert tokens[:length].tolist() == encode(action.description)
