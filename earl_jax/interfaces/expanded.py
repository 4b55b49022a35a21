"""The expanded interface (EARL): a sampled action id becomes text to write, an environment step and a next mask.

Everything here is unbatched and jittable; the rollout vmaps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.action_space import ActionSpace, Encode, LANGUAGE
from earl_jax.config import UserError
from earl_jax.environments.base import build, Environment
from earl_jax.tasks.base import Call

States = dict[str, Any]  # hidden states by type name


class Effect(NamedTuple):
  """What an action does.

  Attributes:
    tokens: int32[W], text to write; entries from `length` on are ignored.
    length: int32[], at least 1.
    environment: int32[], where the policy is next.
    states: hidden states after it.
  """

  tokens: jax.Array
  length: jax.Array
  environment: jax.Array
  states: States


class ExpandedInterface:
  """Action space and environments of one run.

  Attributes:
    environments: in the order of their ids.
    space: the ActionSpace.
    width: W, the longest text one action writes.
    tied: the head rows of the actions are vocabulary rows, not rows of their own.
  """

  tied = False

  def __init__(self, vocab_size: int, environments: Sequence[type[Environment]], encode: Encode):
    """Raises UserError where the tokenizer does not suit an environment."""
    self._encode = encode
    self.environments = tuple(build(environment, encode) for environment in environments)
    types = {}
    for env in self.environments:
      if types.setdefault(env.state_name, env.state_type) is not env.state_type:
        raise UserError(
            f'environment {env.spec.name!r}: another environment has a state_type named {env.state_type.__name__}; '
            'share that class, or rename yours'
        )
    self.space = ActionSpace(vocab_size, [e.spec for e in environments], encode)
    longest = max((e.max_observation for e in self.environments), default=0)
    self.width = self.space.descriptions.shape[1] + longest
    # local[k][e] = local action of expanded action e in environment k + 1, -1 where it is none of its own
    self._local = np.full((len(environments), self.space.num_expanded), -1, np.int32)
    for k, actions in enumerate(self.space.environment_actions):
      self._local[k, actions] = np.arange(len(actions))

  def route(self, environment: int) -> list[int]:
    """The action ids that lead from language into external environment `environment`, counted from 0."""
    return [self.space.routing_action(environment + 1)]

  def offers(self, names: Sequence[str]) -> np.ndarray:
    """bool[R]: which environments are named."""
    return np.array([environment.spec.name in names for environment in self.environments], bool)

  def instructions(self, offered: Sequence[str]) -> str:
    """A sentence for each environment offered: what it is for, and how a call reads."""
    sentences = []
    for environment in self.environments:
      spec, phrasing = environment.spec, environment.phrasing
      if spec.name in offered and environment.usage:
        closing = spec.closing.description if spec.closing else ''
        call = environment.usage.format(routing=spec.routing.description, closing=closing, **phrasing._asdict())
        sentences.append(f'You can {call.strip()}.')
    return ' '.join(sentences)

  def script(self, steps: list[str | Call]) -> list[int]:
    """The action ids that carry out a demonstration, one decision after the other."""
    names, ids = [e.spec.name for e in self.environments], []
    for step in steps:
      if isinstance(step, str):
        ids += self._encode(step)
      else:
        if step.environment not in names:
          raise UserError(f'a demonstration calls {step.environment!r}; the environments are {", ".join(names)}')
        k = names.index(step.environment)
        actions = self.space.environment_actions[k][list(step.actions)]
        ids += self.route(k) + (self.space.vocab_size + actions).tolist()
    return ids

  def reset(self, instance: dict[str, jax.Array]) -> States:
    """Hidden states at the start of an episode; environments with the same `state_type` share one."""
    return {e.state_name: e.reset(instance) for e in self.environments}

  def legal(self, environment: jax.Array, states: States, offered: jax.Array) -> jax.Array:
    """bool[E]: expanded actions legal now. The vocabulary is legal exactly in language.

    Args:
      environment: int32[], current environment.
      states: hidden states.
      offered: bool[R], the environments that the task offers.
    """
    legal = jnp.pad(offered, (0, self.space.num_expanded - len(offered))) & (environment == LANGUAGE)
    for k, (local, env) in enumerate(zip(self._local, self.environments)):
      valid = env.valid_actions(states[env.state_name])[np.maximum(local, 0)]
      legal |= valid & (local >= 0) & (environment == k + 1)
    return legal

  def local_action(self, environment: jax.Array, action: jax.Array) -> jax.Array:
    """int32[]: what action id `action` is inside `environment`, a local action; 0 where it is none."""
    expanded = jnp.clip(action - self.space.vocab_size, 0, self.space.num_expanded - 1)
    return jnp.asarray(self._local)[jnp.maximum(environment - 1, 0), expanded]

  def act(self, environment: jax.Array, states: States, offered: jax.Array, action: jax.Array) -> Effect:
    """Carries out a legal action id.

      in language, a token      writes the token
      in language, a routing    writes its description, enters its environment
      in environment k          writes its description and the observation; leaves if the environment says so
      not legal                 writes its text, and nothing else happens; a routing action enters all the same
    """
    del offered  # what is not offered is not legal
    space = self.space
    is_token = action < space.vocab_size
    expanded = jnp.clip(action - space.vocab_size, 0, space.num_expanded - 1)
    description = jnp.asarray(space.descriptions)[expanded]
    tokens = jnp.zeros(self.width, jnp.int32).at[: len(description)].set(description)
    length = jnp.asarray(space.description_lengths)[expanded]
    is_routing = ~is_token & (environment == LANGUAGE) & (expanded < space.num_environments)
    after = jnp.where(is_routing, expanded + 1, environment)
    place = jnp.arange(self.width)
    out_tokens, out_length, out_states = tokens, length, dict(states)
    for k, env in enumerate(self.environments):
      local = jnp.asarray(self._local)[k, expanded]
      here = ~is_token & (environment == k + 1) & (local >= 0)
      name = env.state_name
      observation, state, leaves = env.step(states[name], jnp.maximum(local, 0))
      at, last = place - length, observation.tokens.shape[0]
      count = jnp.clip(observation.length, 0, last)
      seen = jnp.append(observation.tokens, 0)[jnp.clip(at, 0, last)]  # of an environment that writes nothing, too
      written = jnp.where((at >= 0) & (at < count), seen, tokens)
      out_tokens = jnp.where(here, written, out_tokens)
      out_length = jnp.where(here, length + count, out_length)
      out_states[name] = jax.tree.map(lambda new, old, here=here: jnp.where(here, new, old), state, out_states[name])
      after = jnp.where(here & leaves, LANGUAGE, after)
    token = tokens.at[0].set(action)
    return Effect(
        tokens=jnp.where(is_token, token, out_tokens),
        length=jnp.where(is_token, 1, out_length),
        environment=after.astype(jnp.int32),
        states=out_states,
    )
