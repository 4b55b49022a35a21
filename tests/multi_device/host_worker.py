"""Run in each of several processes: rows on a mesh of all their devices step in a host environment.

  python -m tests.multi_device.host_worker FOLDER

Writes which rows this process was asked for, and how they ended: FOLDER/<process>.json.
"""

import json
import pathlib
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np

from earl_jax import testing
from earl_jax.acting import batched
from earl_jax.action_space import ActionSpec, EnvironmentSpec
from earl_jax.config import MeshConfig
from earl_jax.devices import processes, sharding
from earl_jax.environments import base
from earl_jax.environments.host import HostEnvironment
from earl_jax.interfaces.expanded import ExpandedInterface

ROWS, STEPS = 16, 3
asked, lock = [], threading.Lock()


class Counter(HostEnvironment):
  """Counts, and notes who asks."""

  spec = EnvironmentSpec('counter', ActionSpec(' compare'), (ActionSpec(' A'), ActionSpec(' B')))

  def reset(self, instance):
    return {'row': instance['row'], 'n': 0}

  def valid_actions(self, state):
    return [True, True]

  def step(self, state, action):
    with lock:
      asked.append(state['row'])
    state['n'] += 1
    return f': {state["n"]}\n', False


def main(folder):
  processes.join()
  mesh = sharding.make_mesh(MeshConfig(2, 2, 2))
  rows = sharding.by_row(mesh)
  interface = ExpandedInterface(len(testing._tokenizer()), [base.find(Counter)], testing._encode)

  @jax.jit
  def play(instance, decide):
    states = batched.reset(interface, instance, decide[:, None])
    action, inside = jnp.full(ROWS, interface.space.size - 1), jnp.ones(ROWS, jnp.int32)

    def step(_, states):
      return batched.act(interface, decide, inside, states, offered=decide[:, None], action=action).states

    return jax.lax.fori_loop(0, STEPS, step, states)

  instance, decide = processes.place(({'row': np.arange(ROWS)}, np.arange(ROWS) % 5 != 0), rows)
  with jax.set_mesh(mesh):
    states = play(instance, decide)
  own = processes.own_rows(rows, ROWS)
  ends = processes.fetch(states, own)['Counter']
  ends = [jax.tree.map(lambda x, i=i: x[i], ends).value for i in range(len(own))]
  told = {'asked': sorted(map(int, asked)), 'own': own.tolist(), 'ends': ends}
  (folder / f'{jax.process_index()}.json').write_text(json.dumps(told))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
