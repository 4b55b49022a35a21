"""An interface for a batch of rows: host environments are asked here, in one call for all rows that need it.

Calls are not ordered by the compiler: a row asks from the state that its last answer left, and that is order enough.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax.experimental import io_callback
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from earl_jax.acting.masked import where_rows
from earl_jax.action_space import LANGUAGE
from earl_jax.config import UserError
from earl_jax.devices.sharding import alone, on_own_rows, tensor_shards
from earl_jax.environments import host
from earl_jax.environments.host import HostState, OnHost
from earl_jax.interfaces.expanded import Effect, ExpandedInterface, States

__all__ = ['act', 'carried_out', 'reset']

FEWEST = 16  # rows that are handed to the host at least, where there are so many


def reset(
    interface: ExpandedInterface, instance: dict[str, jax.Array], offered: jax.Array, was: States | None = None
) -> States:
  """Hidden states [B, …] at the start of episodes.

  Args:
    offered: bool[B, R]; a host environment is asked where it is offered.
    was: final states of the episodes that these repeat: what they know of host environments is not asked again.
  """
  states = jax.vmap(interface.reset, axis_size=len(offered))(instance)
  asked, known = _hosts(interface, was)
  if asked:
    needed = jnp.any(offered[:, jnp.array(list(asked)) - 1], axis=1)
    states |= _ask(functools.partial(host.begun, asked), _of(asked, states), needed, (offered, instance))
  for name, state in _of(known, states).items():
    states[name] = jax.vmap(_repeated)(state, was[name], state.now.calls)
  return _remembered(interface, states, jnp.ones(len(offered), bool))


def act(
    interface: ExpandedInterface, deciding: jax.Array, environment: jax.Array, states: States, *, offered: jax.Array,
    action: jax.Array, was: States | None = None,
) -> Effect:
  """What actions int32[B] do, `interface.act` row by row; hosts are asked by the rows bool[B] that are deciding."""
  asked, known = _hosts(interface, was)
  if asked:
    which = jnp.zeros_like(environment)
    for k, env in asked.items():  # where its reset failed it goes on saying so
      begun = states[env.state_name].now.size > 0
      which = jnp.where(deciding & begun & (environment == k), k, which)
    local = jax.vmap(interface.local_action)(environment, action)
    states = states | _ask(functools.partial(host.stepped, asked), _of(asked, states), which > 0, (which, local))
  for k, env in known.items():
    state = states[env.state_name]
    repeated = jax.vmap(_repeated)(state, was[env.state_name], state.now.calls + 1)
    states = states | {env.state_name: where_rows(deciding & (environment == k), repeated, state)}
  return jax.vmap(interface.act)(environment, _remembered(interface, states, deciding), offered, action)


def carried_out(
    interface: ExpandedInterface, instance: dict[str, jax.Array], offered: jax.Array, scripts: list[list[int]],
    label: str,
) -> tuple[list[list[int]], States]:
  """What demonstrations lead to: the tokens that stand there, and hidden states [B, …]. No model is asked.

  Args:
    instance: leaves [B, …].
    offered: bool[R], environments that all rows offer.
    scripts: the action ids of each row.
    label: of the task whose demonstrations these are.

  Raises:
    UserError: a decision is not legal where it comes, or one ends inside an environment.
  """
  names = ['language', *(spec.name for spec in interface.space.specs)]
  lengths = np.array([len(script) for script in scripts])
  instance, offered = jax.tree.map(jnp.asarray, instance), jnp.tile(jnp.asarray(offered), (len(scripts), 1))
  states, environment = reset(interface, instance, offered), jnp.full(len(scripts), LANGUAGE, jnp.int32)
  tokens = [[] for _ in scripts]
  for i in range(max(lengths)):
    deciding = i < lengths
    action = jnp.array([script[i] if i < len(script) else 0 for script in scripts], jnp.int32)
    allowed, effect = _decide(
        interface, jnp.asarray(deciding), environment, states, offered=offered, action=action
    )
    for row in np.flatnonzero(deciding & ~np.asarray(allowed)):
      raise UserError(
          f'task {label}: decision {i + 1} of a demonstration is not legal in {names[int(environment[row])]}; fix '
          'what demonstration() returns'
      )
    environment, states = where_rows(
        jnp.asarray(deciding), (effect.environment, effect.states), (environment, states)
    )
    new, counts = np.asarray(effect.tokens), np.asarray(effect.length)
    for row in np.flatnonzero(deciding):
      tokens[row] += new[row, : counts[row]].tolist()
  for inside in np.asarray(environment)[np.asarray(environment) != LANGUAGE]:
    raise UserError(f'task {label}: a demonstration ends inside {names[inside]}; fix what demonstration() returns')
  return tokens, states


@functools.partial(jax.jit, static_argnames='interface')  # compiled once for all tasks of a run
def _decide(
    interface: ExpandedInterface, deciding: jax.Array, environment: jax.Array, states: States, *, offered: jax.Array,
    action: jax.Array,
) -> tuple[jax.Array, Effect]:
  """Whether actions int32[B] are legal, and what they do."""
  legal = jnp.pad(jax.vmap(interface.legal)(environment, states, offered), ((0, 0), (0, 1)))
  expanded = jnp.maximum(action - interface.space.vocab_size, 0)
  allowed = jnp.take_along_axis(legal, expanded[:, None], axis=1)[:, 0]
  allowed = jnp.where(action < interface.space.vocab_size, environment == LANGUAGE, allowed)
  return allowed, act(interface, deciding, environment, states, offered=offered, action=action)


def _hosts(interface: ExpandedInterface, was: States | None) -> tuple[dict[int, OnHost], dict[int, OnHost]]:
  """The host environments that are asked, and those of which `was` knows what they answered; by their ids."""
  hosts = {k: env for k, env in enumerate(interface.environments, 1) if isinstance(env, OnHost)}
  known = {k: env for k, env in hosts.items() if was is not None and not env.deterministic}
  return {k: env for k, env in hosts.items() if k not in known}, known


def _of(hosts: dict[int, OnHost], states: States) -> States:
  return {env.state_name: states[env.state_name] for env in hosts.values()}


def _repeated(state: HostState, was: HostState, calls: jax.Array) -> HostState:
  """Unbatched: the state after `calls` calls, as it was. A call beyond those recorded was refused."""
  last = len(was.past.calls) - 1
  known = jax.tree.map(lambda x: x[jnp.minimum(calls, last)], was.past)
  refused = state.now._replace(calls=calls, errors=state.now.errors + 1, leaves=jnp.bool_(True))
  return state._replace(now=jax.tree.map(functools.partial(jnp.where, calls <= last), known, refused))


def _remembered(interface: ExpandedInterface, states: States, rows: jax.Array) -> States:
  """The states; in those that are not worked out again, what is now is put among what is past, in rows bool[B]."""

  def put(past, now):
    return jax.tree.map(lambda all_of_it, x: all_of_it.at[now.calls].set(x, mode='drop'), past, now)

  for env in interface.environments:
    if isinstance(env, OnHost) and not env.deterministic:
      state = states[env.state_name]
      past = where_rows(rows, jax.vmap(put)(state.past, state.now), state.past)
      states = states | {env.state_name: state._replace(past=past)}
  return states


def _ask(call: Callable[..., States], states: States, needed: jax.Array, rest: Any) -> States:
  """`call(states, *rest)` on the host, with the rows bool[B] that need it and few others; the rest stay as they are.

  Every device asks for its own rows; of several that hold the same ones, the first, which tells the others.
  """

  def copy(states, needed, rest):
    first = jax.lax.axis_index('tensor') == 0
    new = _on_host(call, states, needed & first, rest)
    return jax.tree.map(lambda x: jax.lax.psum(jnp.where(first, x, 0), 'tensor').astype(x.dtype), new)

  def own(_, *rows):
    if tensor_shards() == 1:
      return _on_host(call, *rows)
    return alone(copy, PartitionSpec(), PartitionSpec())(*rows)

  asked = {name: state._replace(past=()) for name, state in states.items()}
  new = on_own_rows(own, (), asked, needed, rest)
  return {name: state._replace(past=states[name].past) for name, state in new.items()}


def _on_host(call: Callable[..., States], states: States, needed: jax.Array, rest: Any) -> States:
  """The call, with one of a few numbers of rows: the smallest that holds those that need it."""
  order, sizes = jnp.argsort(~needed), [len(needed)]
  while sizes[0] > FEWEST:
    sizes.insert(0, max(sizes[0] // 4, FEWEST))

  def ask(size, states):
    rows = order[:size]
    taken = jax.tree.map(lambda x: x[rows], (states, rest))
    new = io_callback(call, taken[0], taken[0], *taken[1])
    return jax.tree.map(lambda x, new: x.at[rows].set(new), states, new)

  choice = jnp.searchsorted(jnp.array([0, *sizes[:-1]]), jnp.sum(needed), side='left')
  return jax.lax.switch(choice, [dict, *(functools.partial(ask, size) for size in sizes)], states)
