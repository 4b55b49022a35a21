"""The tagged interface: the same environments, called through text that the policy writes (the "Prompt" baselines).

  ` <compare> A, B </compare>` -> ` <result> A < B </result>`

The policy opens a tag by writing its tokens one after the other, in language. Inside, it chooses among the symbols that
the environment allows; each is chosen by its first token, and the rest of it follows. So this is the expanded interface
without actions of its own: the logit of a symbol is that of a vocabulary token, and no routing action is ever legal.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax.action_space import ActionSpec, Encode, EnvironmentSpec, LANGUAGE
from earl_jax.config import UserError
from earl_jax.environments.base import Environment, Phrasing
from earl_jax.interfaces.expanded import Effect, ExpandedInterface, States

_RECENT = 'recent'  # among the hidden states, int32[L]: the last tokens chosen in language, -1 where there was none


def through_tags(environment: type[Environment]) -> type[Environment]:
  """The environment as it is called through tags: its routing action describes the opening tag.

  Raises:
    UserError: the environment does not say how its calls are phrased.
  """
  spec, phrasing = environment.spec, environment.phrasing
  if phrasing is None:
    raise UserError(
        f"environment {spec.name!r}: config.interface='tagged' needs to know what it writes around a result; "
        f'give {environment.__name__} a `phrasing`'
    )
  # An environment whose own actions bring no space of their own has it at the end of its routing description.
  space = ' ' if spec.routing.description.endswith(' ') else ''
  closing = ActionSpec(f' </{spec.name}>')
  ends = '' if spec.closing else closing.description  # where no action ends the call, the tag closes by itself
  actions = tuple(closing if action == spec.closing else action for action in spec.actions)
  tagged_spec = EnvironmentSpec(spec.name, ActionSpec(f' <{spec.name}>{space}'), actions, spec.closing and closing)
  tagged_phrasing = Phrasing(',' if phrasing.between else '', f'{ends} <result>{space}', ' </result>')
  return type(environment.__name__, (environment,), {'spec': tagged_spec, 'phrasing': tagged_phrasing})


class TaggedInterface(ExpandedInterface):
  """Opening tags are recognised in the last tokens chosen in language. Attributes: see `ExpandedInterface`."""

  tied = True

  def __init__(self, vocab_size: int, environments: Sequence[type[Environment]], encode: Encode):
    """Raises UserError where an environment cannot be called through tags."""
    super().__init__(vocab_size, [through_tags(environment) for environment in environments], encode)
    # Right-aligned; what stands before a short tag does not matter.
    width = self.space.descriptions.shape[1]
    self._tags = np.full((self.space.num_environments, width), -1, np.int32)
    for row, tag in zip(self._tags, map(self.route, range(self.space.num_environments))):
      row[width - len(tag):] = tag

  def route(self, environment: int) -> list[int]:
    """The tokens of the opening tag."""
    length = self.space.description_lengths[environment]
    return self.space.descriptions[environment, :length].tolist()

  def reset(self, instance: dict[str, jax.Array]) -> States:
    return super().reset(instance) | {_RECENT: jnp.full(self._tags.shape[1], -1, jnp.int32)}

  def legal(self, environment: jax.Array, states: States, offered: jax.Array) -> jax.Array:
    return super().legal(environment, states, jnp.zeros_like(offered))

  def act(self, environment: jax.Array, states: States, offered: jax.Array, action: jax.Array) -> Effect:
    """Carries out a legal action id.

      in language, a token      writes the token; enters environment k if that completes the tag of one that is offered
      in environment k          writes the symbol and the observation; leaves if the environment says so
    """
    effect = super().act(environment, states, offered, action)
    recent = jnp.append(states[_RECENT][1:], action)
    tags = jnp.asarray(self._tags)
    complete = offered & (environment == LANGUAGE) & ((tags == recent) | (tags < 0)).all(axis=1)
    enters, entered = complete.any(), jnp.argmax(jnp.append(False, complete))  # of no environments at all: language
    kept = jnp.where((environment == LANGUAGE) & ~enters, recent, -1)
    return effect._replace(
        environment=jnp.where(enters, entered, effect.environment).astype(jnp.int32),
        states=effect.states | {_RECENT: kept},
    )
