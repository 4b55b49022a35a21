"""What nobody means to happen: random actions, hostile texts and hostile checkpoint folders, in large numbers.

  python benchmarks/fuzz.py [--rows=actions,interfaces,texts,folders] [--count=1000 --out=FOLDER]

A row plays or reads `count` cases (by default 100,000 sequences of actions for every environment and interface, 1,000
texts for every reward, 1,000 folders), each a function of its number alone. What is found goes into one JSON file per
row, written after every part: a row that was interrupted goes on where it was. Nothing but UserError may come out.
"""

import collections
from collections.abc import Callable, Iterator
import contextlib
import functools
import json
import math
import pathlib
import resource
import signal
import sys
import tempfile
import time
from typing import Any

from absl import flags, logging
from hostile_folders import good_folder, write_hostile  # beside this file
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from earl_jax.config import embedded_config, parse, stage, UserError
from earl_jax.devices import sharding
from earl_jax.environments import base as environments_base
from earl_jax.model import hf
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.run import cli
from earl_jax.run.preparation import EMBEDDED, INTERFACES, prepare
from earl_jax.run.workdir import write_atomically
from earl_jax.tasks.base import make_task, SYSTEM
from earl_jax.testing import HOSTILE_TEXTS

RESULTS = pathlib.Path(__file__).parent / 'results' / 'campaign'
STEPS, BATCH = 32, 2000  # of a sequence of actions; sequences at a time
SECONDS = 30  # of computing, that a case may take
GIGABYTE = 2**30
INSTANCE = {
    'values': np.array([3, -7, 12, 0, 5, 8, 1, 2], np.int32), 'count': np.int32(8), 'descending': np.bool_(False),
    'asked': np.array([-1, -1], np.int32),
}
TASKS = {'compare': {}, 'order': {'n': 3}, 'sort': {'n': 4}, 'arithmetic': {}, 'countdown': {}, 'count': {}}


class Wrong(BaseException):
  """An outcome that must not be, though nothing was raised. No `except Exception` takes it for something else."""


def require(condition: bool, what: str) -> None:
  if not condition:
    raise Wrong(what)


# Actions: half of them legal, the others any at all. Every batch is one call of a compiled program.


def choose(key: jax.Array, legal: jax.Array) -> jax.Array:
  """int32[]: an action of bool[A], a legal one in half of the draws."""
  one, two, coin = jax.random.split(key, 3)
  good = jax.random.categorical(one, jnp.where(legal, 0.0, -1e30))
  return jnp.where(jax.random.bernoulli(coin), good, jax.random.randint(two, (), 0, len(legal))).astype(jnp.int32)


def instances(first: int) -> dict[str, np.ndarray]:
  """Those of a batch of sequences, by the number of its first."""
  rng = np.random.default_rng([0, first])
  many = {key: np.broadcast_to(value, (BATCH, *np.shape(value))).copy() for key, value in INSTANCE.items()}
  many['count'] = rng.integers(2, 9, BATCH, dtype=np.int32)
  many['values'] = rng.integers(-2**31, 2**31, (BATCH, 8)).astype(np.int32)
  return many


def environment_row(name: str) -> Callable[[int], None]:
  environment = environments_base.find(name)(encode)

  def play(instance, key):
    def step(state, key):
      valid = environment.valid_actions(state)
      action = choose(key, valid)
      observation, after, leaves = environment.step(state, action)
      same = jnp.stack([(a == b).all() for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after))]).all()
      quiet = same & (observation.length == 0) & ~leaves
      shown = jnp.arange(environment.max_observation) < observation.length
      tokens = (observation.tokens >= 0) & (observation.tokens < vocab_size())
      return after, jnp.stack([
          valid.any(), valid[action] | quiet, (observation.length >= 0) & (observation.length <= len(shown)),
          (tokens | ~shown).all(), finite(after),
      ])

    return jax.lax.scan(step, environment.reset(instance), jax.random.split(key, STEPS))[1].all(axis=0)

  return batches(play, (
      'no action is valid', 'an action that is not valid did something', 'an observation of an impossible length',
      'an observation with ids outside of the vocabulary', 'a state that is not finite',
  ))


def interface_row(name: str) -> Callable[[int], None]:
  environments = [environments_base.find(name) for name in environments_base.available()]
  interface = INTERFACES[name](vocab_size(), environments, encode)
  tags = jnp.asarray([token for k in range(len(environments)) for token in interface.route(k)])

  def play(instance, key):
    offer, key = jax.random.split(key)
    offered = jax.random.bernoulli(offer, 0.7, (len(environments),))

    def step(carried, key):
      environment, states, written = carried
      legal = interface.legal(environment, states, offered)
      key, kind, token = jax.random.split(key, 3)
      # In language often the next token of a tag, so that tags are completed.
      some = jax.random.randint(token, (), 0, len(tags))
      tag = tags[jnp.where(jax.random.bernoulli(kind), written % len(tags), some)]
      anything = jax.random.randint(token, (), 0, interface.space.size)
      action = jnp.where(legal.any(), choose(key, legal) + interface.space.vocab_size, tag)
      action = jnp.where(jax.random.bernoulli(token, 0.3), jnp.where(jax.random.bernoulli(kind), tag, anything), action)
      effect = interface.act(environment, states, offered, action)
      shown = jnp.arange(interface.width) < effect.length
      tokens = (effect.tokens >= 0) & (effect.tokens < interface.space.vocab_size)
      good = jnp.stack([
          (environment == 0) | legal.any(), (effect.length >= 1) & (effect.length <= interface.width),
          (tokens | ~shown).all(), (effect.environment >= 0) & (effect.environment <= len(environments)),
          finite(effect.states),
      ])
      return (effect.environment, effect.states, written + 1), good

    start = jnp.int32(0), interface.reset(instance), jnp.int32(0)
    return jax.lax.scan(step, start, jax.random.split(key, STEPS))[1].all(axis=0)

  return batches(play, (
      'inside an environment nothing is legal', 'a text of an impossible length',
      'a text with ids outside of the vocabulary', 'an environment that does not exist', 'a state that is not finite',
  ))


def finite(tree: Any) -> jax.Array:
  """bool[]."""
  return jnp.stack([jnp.isfinite(leaf.astype(jnp.float32)).all() for leaf in jax.tree.leaves(tree)]).all()


def batches(play: Callable, faults: tuple[str, ...]) -> Callable[[int], None]:
  """A check of the sequences from a number on; `play` says of each which faults it does not have."""
  compiled = jax.jit(jax.vmap(play))

  def check(first: int) -> None:
    keys = jax.vmap(jax.random.key)(np.arange(first, first + BATCH))
    good = np.asarray(compiled(instances(first), keys)).all(axis=0)
    require(bool(good.all()), ', '.join(fault for fault, fine in zip(faults, good) if not fine))

  return check


# Texts: what a policy may write, put together from pieces that rewards look for.

PIECES = (
    '#### ', '####', '<answer>', '</answer>', '<answer>A</answer>', 'A', ' is larger', '(', ')', ' + ', ' - ', '*', '/',
    '//', '**', '.', ',', '0', '1', '42', '9' * 400, '1e9', '1e999', 'nan', 'inf', '-', '٣', '½', '一', '\n', '\u2028',
    '\x00', '\ud800', '\u202e', '%s', '{}', '\\', '"', "'", '[', ']', '__import__', '=', '1/0', '0/0',
    ' calculate 1 + 1 = 2\n', ' => B, A\n', '<result>', '</result>', '🙂',
    'e', '_', '1_000', '0x10', '1,000', '$5', '5%', '\t', '\r\n',
)


def text(number: int) -> str:
  if number < len(HOSTILE_TEXTS):
    return HOSTILE_TEXTS[number]
  rng = np.random.default_rng([1, number])
  pieces = [PIECES[i] * int(rng.choice([1, 1, 1, 2, 50])) for i in rng.integers(len(PIECES), size=rng.integers(1, 40))]
  return ''.join(pieces)[: 10**5] * int(rng.choice([1] * 20 + [100]))


def text_row(name: str) -> Callable[[int], None]:
  task = make_task(name, **TASKS[name])
  environments = [environments_base.find(named)(encode) for named in task.environments]

  def check(number: int) -> None:
    example = task.example(0, 'train', number)
    states = {e.state_name: jax.tree.map(np.asarray, e.reset(example.instance)) for e in environments}
    began = time.process_time()
    outcome = task.outcome(example.instance, states, text(number), True)
    require(time.process_time() - began < 1, 'a reward that takes seconds')
    require(all(math.isfinite(x) for x in (outcome.reward, *outcome.metrics.values())), 'a reward that is not finite')
    require(0 <= outcome.reward <= 1 and isinstance(outcome.exact_match, bool), 'an impossible reward')

  return check


# Folders: what hostile_folders.py makes, read as a run does.


def read_as_a_run_does(folder: pathlib.Path, interface: str) -> None:
  """Tokenizer, configuration, interface, a prompt of every task, weights."""
  settings = embedded_config()
  settings.model, settings.interface = str(folder), interface
  settings.curriculum = (stage(('sort', {'n': 3}, 1.0), ('arithmetic', {}, 1.0)),)
  experiment = prepare(parse(settings), folder, sharding.make_mesh(settings.mesh))
  tokenizer_lib.chat_prompt(experiment.tokenizer, SYSTEM, 'Sort A, B.', 'Let me')
  hf.load_params(folder, experiment.model)


def folder_row(interface: str) -> Callable[[int], None]:
  good_folder()

  def check(number: int) -> None:
    with tempfile.TemporaryDirectory() as made:
      write_hostile(pathlib.Path(made), list(INTERFACES).index(interface), number)
      before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
      try:
        read_as_a_run_does(pathlib.Path(made), interface)
      except UserError as error:
        one_line = len(str(error).splitlines()) == 1 and len(str(error)) < 3000
        require(one_line, f'a message that is not one line: {str(error)[:60]!r}')
      finally:
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
      require(grown < GIGABYTE, f'{grown / GIGABYTE:.1f} GiB were taken')

  return check


# The campaign.


@functools.cache
def tokenizer() -> Any:
  return tokenizer_lib.load_tokenizer(EMBEDDED)


@functools.cache
def vocab_size() -> int:
  return tokenizer_lib.vocabulary_size(tokenizer())


def encode(text: str) -> list[int]:
  return tokenizer_lib.encode(tokenizer(), text)


ROWS = {  # row -> (its cases' name -> a check of a case by number, how many by default, how many one call checks)
    'actions': (dict.fromkeys(environments_base.available(), environment_row), 100_000, BATCH),
    'interfaces': (dict.fromkeys(INTERFACES, interface_row), 100_000, BATCH),
    'texts': (dict.fromkeys(TASKS, text_row), 1000, 1),
    'folders': (dict.fromkeys(INTERFACES, folder_row), 500, 1),
}


@contextlib.contextmanager
def limited() -> Iterator[None]:
  """Nothing takes longer than SECONDS."""
  def late(*_):
    raise Wrong(f'more than {SECONDS} s of computing')

  signal.signal(signal.SIGVTALRM, late)
  signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def run(row: str, name: str, count: int, out: pathlib.Path) -> dict[str, Any]:
  """Checks the cases of a row, those that an earlier call has not checked."""
  checks, _, size = ROWS[row]
  path = out / f'fuzz_{row}_{name}.json'
  state = dict(row=f'fuzz: {row}, {name}', command=f'python benchmarks/fuzz.py --rows={row}', count=0, exceptions=0,
               found=[], seconds=0.0)
  if path.exists():
    state |= json.loads(path.read_text('utf-8'))
  found, check = collections.Counter(dict.fromkeys(state['found'], 0)), checks[name](name)
  for first in tqdm(range(state['count'], count, size), f'{row} {name}', disable=None):
    began = time.monotonic()
    try:
      with limited():
        check(first)
    except BaseException as error:  # panics of Rust too
      if isinstance(error, KeyboardInterrupt | SystemExit):
        raise
      kind = f'{type(error).__name__}: {" ".join(str(error).split())[:150]}'
      found[kind] += 1
      state['exceptions'] += 1
      print(f'{row} {name} {first}: {kind}', file=sys.stderr)
    state |= dict(count=first + size, found=list(found), seconds=round(state['seconds'] + time.monotonic() - began, 3))
    if size > 1 or not (first + 1) % 50 or first + 1 == count:
      write_atomically(path, json.dumps(state, indent=2, ensure_ascii=False) + '\n')
  return state


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  del argv
  flags.DEFINE_list('rows', list(ROWS), f'Of {", ".join(ROWS)}.', flag_values=values)
  flags.DEFINE_integer('count', None, 'Cases of every environment, interface, reward.', 1, flag_values=values)
  flags.DEFINE_string('out', str(RESULTS), 'Folder of the JSON files, which a later call adds to.', flag_values=values)


def main(values: flags.FlagValues) -> int:
  unknown = set(values.rows) - set(ROWS)
  if unknown:
    raise UserError(f'--rows: no row {sorted(unknown)[0]!r}; there are {", ".join(ROWS)}')
  logging.set_verbosity(logging.ERROR)
  out = pathlib.Path(values.out)
  out.mkdir(parents=True, exist_ok=True)
  worst = 0
  for row in values.rows:
    checks, default, _ = ROWS[row]
    for name in checks:
      state = run(row, name, values.count or default, out)
      worst = max(worst, state['exceptions'])
      print(f'{state["row"]}: {state["count"]:,} cases, {state["exceptions"]} exceptions, {state["seconds"]:.0f} s')
  return int(worst > 0)


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
