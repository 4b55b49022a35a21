"""Contract checks for environments and tasks, ours and other people's, to be called from tests.

  def test_rank():
    check_environment(Rank, [{'values': np.arange(8), 'count': np.int32(4)}])

  def test_my_task():
    check_task(MyTask(n=3))

What does not keep to the contract raises AssertionError, whose text says what. Texts are split by the tokenizer of the
embedded base model.
"""

from collections.abc import Callable, Sequence
import functools
import math
import time
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.acting import batched
from earl_jax.action_space import ActionSpace
from earl_jax.config import UserError
from earl_jax.environments import base as environments_base
from earl_jax.environments.base import Environment
from earl_jax.environments.host import OnHost, Turn
from earl_jax.interfaces.expanded import ExpandedInterface
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run import rewards
from earl_jax.run.preparation import EMBEDDED
from earl_jax.tasks.base import all_problems, Call, environments_of, Example, Task

__all__ = ['check_environment', 'check_task', 'HOSTILE_TEXTS']

STEPS, EPISODES = 40, 64  # of random play
HOST_EPISODES = 8  # likewise, in plain Python
SECONDS = 1.0  # that a reward may take at most

# What a policy may write and a reward has to stand.
HOSTILE_TEXTS = (
    '', ' ', '\n' * 100, '####', '#### ', '#' * 100_000, '#### 1/0', '#### ' + '9' * 100_000, '#### nan', '#### -inf',
    '#### 1e999999', '#### ' + '(' * 50_000 + '1' + ')' * 50_000, '#### 9**9**9**9', '#### __import__("os").getcwd()',
    '<answer>', '</answer>', '</answer><answer>', '<answer>' * 10_000, '<answer>A</answer>' * 10_000,
    '<answer></answer>', '{}', '{0.__class__}', '%s%n', '\\', '\x00', '\ud800', '\u202e#### 1', '٣', '#### ٣', '#### ½',
    '<script>alert(1)</script>', 'A' * 100_000, ' '.join(map(str, range(20_000))),
)


def check_environment(environment: str | type[Environment], instances: Sequence[dict[str, Any]]) -> None:
  """Checks what every environment has to keep to, by random play on some instances.

  Its functions are pure, of fixed shapes and dtypes, and the same under `jit` and `vmap`; inside, some action is always
  valid; observations fit their bound; play comes back to language; every action can be described, and is valid at some
  time. An environment in plain Python (`HostEnvironment`) keeps to what it declares as well: a state that JSON holds,
  within its bound; texts; and the same again where it is deterministic.

  Args:
    environment: a name, a module path or a class.
    instances: such as its tasks give; several, where no single one makes every action valid.

  Raises:
    AssertionError: it does not.
    UserError: it cannot be found or built, or its actions do not suit a tokenizer.
  """
  kind = environments_base.find(environment)
  made = environments_base.build(kind, _encode)
  _require(
      isinstance(made.version, int) and made.version >= 1,
      f'{kind.__name__}: version is not a whole number of at least 1',
  )
  ActionSpace(tokenizer_lib.vocabulary_size(_tokenizer()), [made.spec], _encode)
  _require(len(instances) > 0, 'give at least one instance')
  reached = np.zeros(len(made.spec.actions), bool)
  for instance in instances:
    _check_shapes(made, instance)
    reached |= (_check_host_play if isinstance(made, OnHost) else _check_play)(made, instance)
  missing = [action.description for action, valid in zip(made.spec.actions, reached) if not valid]
  _require(not missing, f'{kind.__name__}: {missing} are never valid')


def _check_shapes(environment: Environment, instance: dict[str, Any]) -> None:
  name = type(environment).__name__

  def all_of_it(instance, action):
    state = environment.reset(instance)
    return state, environment.valid_actions(state), environment.step(state, action)

  state, valid, (observation, next_state, leaves) = jax.eval_shape(all_of_it, instance, jnp.int32(0))
  _require(isinstance(state, environment.state_type), f'{name}: reset gives no {environment.state_type.__name__}')
  chex.assert_trees_all_equal_shapes_and_dtypes(state, next_state)
  weak = any(leaf.weak_type for leaf in jax.tree.leaves((state, next_state)))
  _require(not weak, f'{name}: a leaf of the state has a weak type; give it a dtype, such as jnp.int32(0)')
  chex.assert_shape(observation.tokens, (environment.max_observation,))
  chex.assert_shape([observation.length, leaves], ())
  chex.assert_shape(valid, (len(environment.spec.actions),))
  chex.assert_type([observation.tokens, observation.length], jnp.int32)
  chex.assert_type([valid, leaves], bool)


def _check_play(environment: Environment, instance: dict[str, Any]) -> np.ndarray:
  """Checks random play; bool[A]: which actions were valid at some time."""
  name = type(environment).__name__

  def step(state, key):
    valid = environment.valid_actions(state)
    action = jax.random.categorical(key, jnp.where(valid, 0.0, -jnp.inf)).astype(jnp.int32)
    observation, next_state, leaves = environment.step(state, action)
    return next_state, (state, action, valid, observation, leaves, next_state)

  def episode(key):
    return jax.lax.scan(step, environment.reset(instance), jax.random.split(key, STEPS))[1]

  play = jax.jit(jax.vmap(episode))
  keys = jax.random.split(jax.random.key(0), EPISODES)
  played = jax.tree.map(np.asarray, play(keys))
  chex.assert_trees_all_equal(played, jax.tree.map(np.asarray, play(keys)))
  states, actions, valid, observation, leaves, _ = played
  _require(valid.any(axis=-1).all(), f'{name}: no action is valid, and the policy is inside')
  length = observation.length
  _require((length >= 0).all() and (length <= environment.max_observation).all(), f'{name}: an observation is too long')
  shown = np.arange(environment.max_observation) < length[..., None]
  _require((observation.tokens[shown] >= 0).all(), f'{name}: an observation holds a negative token id')
  _require(leaves.any(), f'{name}: random play never comes back to language')

  # Plain calls, one by one, do the same as jit and vmap, also when repeated.
  for at in range(0, STEPS, STEPS // 4):
    state, action = jax.tree.map(lambda x, at=at: jnp.asarray(x[0, at]), states), jnp.int32(actions[0, at])
    expected = jax.tree.map(lambda x, at=at: x[0, at], (valid, *played[3:]))
    for _ in range(2):
      observed, after, left = environment.step(state, action)
      found = environment.valid_actions(state), observed, left, after
      chex.assert_trees_all_equal(jax.tree.map(np.asarray, found), expected)
  return valid.any(axis=(0, 1))


def _check_host_play(environment: OnHost, instance: dict[str, Any]) -> np.ndarray:
  """`_check_play` of an environment in plain Python."""
  name, reached, left = environment.kind.__name__, np.zeros(len(environment.spec.actions), bool), False
  for episode in range(HOST_EPISODES):
    rng, turns = np.random.default_rng(episode), [_asked(environment, environment.begin, instance)]
    for _ in range(STEPS):
      data, valid, *_ = turns[-1]
      reached |= valid
      action = int(rng.choice(np.flatnonzero(valid)))
      turns.append(_asked(environment, environment.proceed, data, action))
      left |= turns[-1].leaves
      same = not environment.deterministic or _same(turns[-1], _asked(environment, environment.proceed, data, action))
      _require(same, f'{name}: it differs when repeated; say deterministic = False')
      _, cut = environment.tokens_of(turns[-1].text)
      _require(not cut, f'{name}: a text is longer than max_observation={environment.max_observation} tokens')
    same = not environment.deterministic or _same(turns[0], _asked(environment, environment.begin, instance))
    _require(same, f'{name}: reset differs when repeated; say deterministic = False')
  _require(left, f'{name}: random play never comes back to language')
  return reached


def _asked(environment: OnHost, call: Callable[..., Turn], *arguments: Any) -> Turn:
  try:
    return call(*arguments)
  except Exception as error:
    raise AssertionError(f'{environment.kind.__name__}: {type(error).__name__}: {error}') from error


def _same(turn: Turn, other: Turn) -> bool:
  return turn._replace(valid=turn.valid.tolist()) == other._replace(valid=other.valid.tolist())


def check_task(task: Task, *, examples: int = 50) -> None:
  """Checks what every task has to keep to, on some of its examples.

  Examples are pure in (seed, split, index), have instances of one shape, and are in one split alone, unless all
  problems are listed; environments find what they need in them; a solver's demonstrations are legal and solve them;
  outcomes are finite, 0 without an end of sequence, and stand whatever text a policy may write.

  Args:
    examples: how many of each split.

  Raises:
    AssertionError: it does not.
    UserError: an environment cannot be found or built.
  """
  interface = ExpandedInterface(tokenizer_lib.vocabulary_size(_tokenizer()), environments_of(task), _encode)
  drawn = {
      split: [task.example(0, split, index) for index in range(examples)] for split in ('train', 'test')
  }
  _check_examples(task, drawn)
  example = drawn['test'][0]
  _, start = _carried_out(task, interface, example, [])
  for text in HOSTILE_TEXTS:
    _check_outcome(task, example, start, text)
  for split, index in (('train', 0), ('train', examples - 1), ('test', 0), ('test', examples - 1)):
    example = drawn[split][index]
    try:
      steps = task.demonstration(0, split, index, 0)
    except UserError:
      break  # it has no solver
    text, states = _carried_out(task, interface, example, steps)
    outcome = task.outcome(example.instance, states, text, True)
    _require(outcome.exact_match, f'{task.label}: {split} {index} is not solved by {steps}')
  _check_problems(task)


def _check_examples(task: Task, drawn: dict[str, list[Example]]) -> None:
  keys = {split: [_key(example) for example in examples] for split, examples in drawn.items()}
  for split, examples in drawn.items():
    again = [_key(task.example(0, split, index)) for index in reversed(range(len(examples)))]
    _require(again[::-1] == keys[split], f'{task.label}: example(seed, {split!r}, index) is not pure')
  both = set(keys['train']) & set(keys['test'])
  _require(
      not both or all_problems(task) is not None,
      f'{task.label}: {len(both)} examples are in both splits, such as {min(both, default="")[:200]!r}',
  )
  shapes = {
      tuple((key, np.shape(value), str(np.asarray(value).dtype)) for key, value in sorted(example.instance.items()))
      for examples in drawn.values() for example in examples
  }
  _require(len(shapes) == 1, f'{task.label}: instances differ in keys, shapes or dtypes: {sorted(shapes)[:2]}')


def _key(example: Example) -> str:
  """All of an example as text."""
  instance = {key: np.asarray(value).tolist() for key, value in sorted(example.instance.items())}
  return f'{example.system}\n{example.user}\n{instance}'


def _check_outcome(task: Task, example: Example, states: dict[str, Any], text: str) -> None:
  """Checks the outcomes of a text: finite, repeatable, 0 without an end of sequence, and soon there."""
  for finished in (True, False):
    began = time.monotonic()
    outcome = task.outcome(example.instance, states, text, finished)
    seconds = time.monotonic() - began
    where = f'{task.label}, outcome of {text[:40]!r} ({len(text)} characters), finished={finished}'
    _require(seconds < SECONDS, f'{where}: it takes {seconds:.1f} s')
    try:
      outcome = rewards.checked(task, example, outcome)
    except UserError as error:
      raise AssertionError(f'{where}: {error}') from None
    worthless = not (outcome.reward or outcome.exact_match)
    _require(finished or worthless, f'{where}: an unfinished episode has a reward or is exact')
    again = rewards.checked(task, example, task.outcome(example.instance, states, text, finished))
    _require(outcome == again, f'{where}: it differs when repeated')
    missing = rewards.missing(task, outcome)
    _require(not missing, f'{where}: it has no metric {missing}, which columns, cost or proof name')


def _check_problems(task: Task) -> None:
  problems = all_problems(task)
  if problems is not None:
    _require(len({_key(problem) for problem in problems}) == len(problems), f'{task.label}: problems() repeats itself')
    for name, metrics in task.references(problems).items():
      finite = all(math.isfinite(value) for value in metrics.values())
      _require(finite, f'{task.label}: the reference {name} is not finite')


def _carried_out(
    task: Task, interface: ExpandedInterface, example: Example, steps: list[str | Call]
) -> tuple[str, dict[str, Any]]:
  """The text and the hidden states that a demonstration leads to, through the expanded interface."""
  instance = {name: np.asarray(x)[None] for name, x in example.instance.items()}
  offered, script = np.ones(interface.space.num_environments, bool), interface.script(steps)
  try:
    [tokens], states = batched.carried_out(interface, instance, offered, [script], task.label)
  except UserError as error:
    raise AssertionError(f'{error}: {steps}') from None
  return _tokenizer().decode(tokens), jax.tree.map(lambda x: np.asarray(x)[0], states)


@functools.cache
def _tokenizer() -> Any:
  return tokenizer_lib.load_tokenizer(EMBEDDED)


def _encode(text: str) -> list[int]:
  return tokenizer_lib.encode(_tokenizer(), text)


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise AssertionError(message)
