"""A tiny random policy on real tasks, and a slow reference episode in plain Python: what tests of the core share."""

from collections.abc import Callable
import copy
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax import config as config_lib
from earl_jax.acting import policy
from earl_jax.acting.counterfactual import choose_positions
from earl_jax.acting.prompts import Prompts
from earl_jax.acting.replay import force, recorded, Replay
from earl_jax.acting.trajectory import Trajectory
from earl_jax.devices import sharding
from earl_jax.environments import base as environments_base
from earl_jax.environments.hidden_items import MAX_ITEMS
from earl_jax.interfaces.expanded import ExpandedInterface
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.model import transformer
from earl_jax.run.experiment import Experiment
from earl_jax.run.preparation import EMBEDDED
from earl_jax.tasks.sorting import Compare, Order, Sort
from tests.environments import reference

NAMES = ('compare', 'swap', 'check')  # no task offers check: it is there to be masked, or offered by a test itself
ROUTES = {'compare': ' compare', 'swap': ' swap', 'check': ' check if'}
ITEMS = [f' {letter}' for letter in 'ABCDEFGH']
PROPERTIES = [' is negative', ' is positive', ' is even', ' is odd']
PROMPT, RESPONSE = 88, 40  # slots
SLOTS = PROMPT + RESPONSE
GROUP = 2
MODEL = transformer.ModelConfig(
    vocab_size=576, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4,
)


@functools.cache
def tokenizer():
  return tokenizer_lib.load_tokenizer(EMBEDDED)


@functools.cache
def encode(text: str) -> tuple[int, ...]:
  return tuple(tokenizer_lib.encode(tokenizer(), text))


@functools.cache
def interface() -> ExpandedInterface:
  environments = [environments_base.find(name) for name in NAMES]
  return ExpandedInterface(len(tokenizer()), environments, lambda text: list(encode(text)))


def one_device() -> jax.sharding.Mesh:
  auto = (jax.sharding.AxisType.Auto,) * 3
  return jax.make_mesh((1, 1, 1), sharding.AXES, devices=jax.devices()[:1], axis_types=auto)


@functools.cache
def experiment(mesh=None, **algorithm: Any) -> Experiment:
  """Eight problems of two rollouts per step; one device unless a mesh is given."""
  config = config_lib.Config(
      curriculum=(config_lib.Stage(),),
      rollout=config_lib.RolloutConfig(prompts=8, group=GROUP, prompt_length=PROMPT, response_length=RESPONSE, chunk=8),
      algorithm=config_lib.AlgorithmConfig(mini_batches=2, micro_batch=8, **algorithm),
  )
  if mesh is None:
    mesh = one_device()
  stage = tuple((task, 1.0) for task in tasks())
  return Experiment(config, mesh, tokenizer(), MODEL, interface(), (stage,), (tokenizer().eos_token_id,))


@functools.cache
def tasks():
  return Sort(3), Order(3), Compare(2), Sort(5, 'descending')


@functools.cache
def params(seed: int) -> policy.Params:
  """Random weights of a size at which logits spread, and with which routes and the end of sequence are often taken."""
  # Only their shapes are read of those that a model begins with.
  tree = jax.eval_shape(lambda key: policy.init_params(transformer.init_params(MODEL, key), interface().space),
                        jax.random.key(seed))
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  tree = jax.tree.unflatten(structure, [0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])
  tree['model']['final_norm']['scale'] += 1.0
  for norm in ('attention_norm', 'mlp_norm'):
    tree['model']['layers'][norm]['scale'] += 1.0
  tree['expanded_head'] = 3 * tree['expanded_head']
  tree['model']['embedding'] = tree['model']['embedding'].at[tokenizer().eos_token_id].multiply(2.5)
  return tree


@functools.cache
def prompts(rows: int, seed: int = 0) -> tuple[list, list, Prompts]:
  """Tasks in turn, with an example each, and their prompts; every third row is also offered check."""
  chosen = [tasks()[i % len(tasks())] for i in range(rows)]
  examples = [task.example(seed, 'train', i) for i, task in enumerate(chosen)]
  batch = experiment().encode_prompts(chosen, examples)
  offered = np.array(batch.offered)
  offered[::3, NAMES.index('check')] = True
  return chosen, examples, batch._replace(offered=jnp.asarray(offered))


@functools.cache
def rolled_out(seed: int = 1, temperature: float = 1.0) -> Trajectory:
  """16 rows, two of each of `prompts(8)`. Seed 1 finishes, calls and fills its space; seed 3 is often cut off."""
  return experiment().rollout(
      params(seed), prompts(8)[2], np.arange(8 * GROUP), jax.random.key(0),
      decoding=experiment().decoding(GROUP, temperature),
  )


def offered_rows(environment: int) -> np.ndarray:
  """bool[16]: rows of `rolled_out()` whose task offers external environment `environment`."""
  return np.repeat(np.asarray(prompts(8)[2].offered)[:, environment - 1], GROUP)


@functools.cache
def rewritten(environment: int = 1) -> tuple[jax.Array, Trajectory]:
  """Every row of `rolled_out()`, rewritten where it best goes to external environment `environment` (1-based).

  Returns:
    (slots int32[16] where the route is forced, the new trajectory).
  """
  factual, row_ids = rolled_out(), np.arange(8 * GROUP)
  until = choose_positions(
      jax.random.key(1), factual.route_scores[..., environment - 1], row_ids, prompt_length=PROMPT,
      route_length=interface().space.description_lengths[environment - 1],
  )
  return until, rewrite(force(recorded(factual.actions, until), interface().route(environment - 1)))


def rewrite(replay: Replay, key: int = 2) -> Trajectory:
  by_row = jax.tree.map(lambda x: np.repeat(x, GROUP, axis=0), prompts(8)[2])
  by_row, replay = jax.device_put((by_row, replay), sharding.by_row(one_device()))  # one placement, one compilation
  decoding = experiment().decoding()
  return experiment().rollout(params(1), by_row, np.arange(8 * GROUP), jax.random.key(key), replay, decoding=decoding)


@functools.cache
def forward():
  """logits float32[V + E] that follow `length` tokens, given without left padding and read without a cache."""

  @jax.jit
  def logits(tree, tokens, length):
    hidden, _ = transformer.apply(MODEL, tree['model'], tokens[None], jnp.zeros(1, jnp.int32))
    head = jnp.concatenate([tree['model']['embedding'][: len(tokenizer())], tree['expanded_head']])
    return head @ hidden[0, length - 1]

  def call(tree, tokens: list[int]) -> np.ndarray:
    padded = np.zeros(SLOTS, np.int32)
    padded[: len(tokens)] = tokens
    return np.asarray(logits(tree, padded, len(tokens)), np.float64)

  return call


def action_texts() -> list[str]:
  """What each expanded action writes, laid out by hand."""
  return [ROUTES[name] for name in NAMES] + ITEMS + PROPERTIES


@dataclasses.dataclass
class Decision:
  """One choice of a reference episode: where (an index into its response), what, and what else was possible."""

  at: int
  action: int
  language: bool
  legal: set[int]  # expanded actions, counted from 0


@dataclasses.dataclass
class Episode:
  response: list[int]
  decisions: list[Decision]
  finished: bool
  state: dict


def local_actions(name: str) -> list[str]:
  return ITEMS + PROPERTIES if name == 'check' else ITEMS


def legal_inside(name: str, state: dict) -> list[str]:
  """Texts of the actions that environment `name` allows."""
  items = [f' {item}' for item in state['values'] if item != state['first']]
  if name == 'check' and state['first'] is not None:
    return PROPERTIES
  return items


def play(values: list[int], offered: list[str], choose: Callable[[list[int], bool, set[int]], int | None]) -> Episode:
  """Plays one episode on strings.

  Args:
    choose: (response so far, in language, legal expanded actions) -> action id; None stops.
  """
  vocab, texts = len(tokenizer()), action_texts()
  episode = Episode([], [], False, reference.start(values))
  inside = None
  while len(episode.response) < RESPONSE and not episode.finished:
    allowed = [ROUTES[name] for name in offered] if inside is None else legal_inside(inside, episode.state)
    legal = {texts.index(text) for text in allowed}
    if inside is not None and not legal:
      break
    action = choose(episode.response, inside is None, legal)
    if action is None:
      break
    state, after = copy.deepcopy(episode.state), inside
    if action < vocab:
      assert inside is None
      written = (action,)
    else:
      assert action - vocab in legal
      text = texts[action - vocab]
      written = encode(text)
      if inside is None:
        after = next(name for name in NAMES if ROUTES[name] == text)
      else:
        observation, leaves = reference.STEPS[inside](state, local_actions(inside).index(text))
        written += encode(observation)
        after = None if leaves else inside
    if len(episode.response) + len(written) > RESPONSE:
      break  # it does not fit, and never happened
    episode.decisions.append(Decision(len(episode.response), action, inside is None, legal))
    episode.response += written
    episode.state, inside = state, after
    episode.finished = action == tokenizer().eos_token_id
  return episode


def assert_same_episode(trajectory: Trajectory, row: int, prompt: list[int], episode: Episode) -> None:
  """Every field of a row but its log-probabilities and scores."""
  got = trajectory.row(row)
  end, pad = PROMPT + len(episode.response), tokenizer().pad_token_id
  expected = [pad] * (PROMPT - len(prompt)) + prompt + episode.response + [pad] * (SLOTS - end)
  np.testing.assert_array_equal(got.tokens, expected)
  assert (got.start, got.end) == (PROMPT - len(prompt), end)
  assert got.finished == episode.finished
  actions, language = np.full(SLOTS, -1), np.zeros(SLOTS, bool)
  legal = np.zeros((SLOTS, len(action_texts())), bool)
  for decision in episode.decisions:
    slot = PROMPT + decision.at
    actions[slot], language[slot] = decision.action, decision.language
    legal[slot, list(decision.legal)] = True
  np.testing.assert_array_equal(got.actions, actions)
  np.testing.assert_array_equal(got.language, language)
  np.testing.assert_array_equal(got.legal, legal)

  state = got.states['HiddenItems']
  items = {name: i for i, name in enumerate('ABCDEFGH')}
  count = len(episode.state['row'])
  assert state.sequence.tolist() == [items[x] for x in episode.state['row']] + list(range(count, MAX_ITEMS))
  assert state.selected == items.get(episode.state['first'], -1)
  assert (state.comparisons, state.swaps) == (episode.state['comparisons'], episode.state['swaps'])
  pairs = {frozenset('ABCDEFGH'[i] for i in pair) for pair in np.argwhere(state.compared).tolist()}
  assert pairs == episode.state['proved']


def row_problem(batch: Prompts, prompt: int) -> tuple[list[int], list[int], list[str]]:
  """(prompt ids without padding, hidden values, names offered)."""
  ids = np.asarray(batch.tokens[prompt])[int(batch.start[prompt]):].tolist()
  values = np.asarray(batch.instance['values'][prompt])[: int(batch.instance['count'][prompt])].tolist()
  return ids, values, [name for name, on in zip(NAMES, np.asarray(batch.offered[prompt])) if on]
