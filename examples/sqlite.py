"""Answer questions over a real SQLite database, through an environment in plain Python that runs the queries.

  python -m earl_jax.train --config=path/to/examples/sqlite.py --workdir=runs/sqlite

A run ends when all is solved: 40 steps of demonstrations, then 70 of 256 rollouts, in 4 processor minutes, seed 0.
Greedily it then answers 100 % (98.5 - 100) of 256 held-out questions, with one query each.
"""

import random
import sqlite3

import numpy as np

from earl_jax import config as config_lib
from earl_jax.action_space import ActionSpec, EnvironmentSpec
from earl_jax.environments.host import HostEnvironment
from earl_jax.tasks import base, expressions

FUNCTIONS = {'largest': 'max', 'smallest': 'min', 'number': 'count'}
TABLES, COLUMNS = ('farms', 'towns', 'rivers'), ('ages', 'costs', 'depths')
OPERATORS = {'<': 'less than', '=': 'equal to', '>': 'more than'}
CHOICES = (*FUNCTIONS,), TABLES, COLUMNS, (*OPERATORS,)  # the parts of a query, one after the other
WORDS = sum(CHOICES, ())


class Database(HostEnvironment):
  """` query largest towns ages < 38: 35\\n`: what SQLite says. The value comes from the question, as a parameter."""

  # Words that the tokenizer spells start from their first letter, and not from the space that all of them have.
  actions = tuple(ActionSpec(f' {word}', init_token=int(word in TABLES + COLUMNS)) for word in WORDS)
  spec = EnvironmentSpec('database', ActionSpec(' query', init_token=1), actions)
  threads = 1  # there is one connection

  def __init__(self):
    self._connection, rng = sqlite3.connect(':memory:', check_same_thread=False), random.Random(0)
    for table in TABLES:
      self._connection.execute(f'CREATE TABLE {table} ({", ".join(COLUMNS)})')
      rows = [[rng.randrange(1, 60) for _ in COLUMNS] for _ in range(30)]
      self._connection.executemany(f'INSERT INTO {table} VALUES (?, ?, ?)', rows)
    self._connection.execute('PRAGMA query_only = ON')

  def answer(self, function: str, table: str, column: str, operator: str, value: int) -> int | None:
    query = f'SELECT {FUNCTIONS[function]}({column}) FROM {table} WHERE {column} {operator} ?'
    return self._connection.execute(query, (value,)).fetchone()[0]

  def reset(self, instance: base.Instance) -> dict:
    return {'value': instance['value'], 'query': [], 'last': [], 'queries': 0}

  def valid_actions(self, state: dict) -> list[bool]:
    return [word in CHOICES[len(state['query'])] for word in WORDS]

  def step(self, state: dict, action: int) -> tuple[str, bool]:
    query = [*state['query'], WORDS[action]]
    if len(query) < len(CHOICES):
      state['query'] = query
      return '', False
    state.update(query=[], last=query, queries=state['queries'] + 1)
    return f' {state["value"]}: {self.answer(*query, state["value"])}\n', True


class Question(base.Task):
  """The largest, the smallest or the number of some values in a table that the policy cannot see."""

  name = label = 'sqlite'
  environments = (Database,)
  reads_text = True
  columns = (base.Column('queries', '{:.2f}'),)
  cost = 'queries'

  def __init__(self):
    self._database = Database()

  def example(self, seed: int, split: str, index: int) -> base.Example:
    rng = base.random_generator(seed, split, index)
    while True:
      query, value = [str(rng.choice(words)) for words in CHOICES], int(rng.integers(1, 60))
      function, table, column, operator = query
      question = f'In {table}, give the {function} of {column} {OPERATORS[operator]} {value} after ####.'
      answer = self._database.answer(*query, value)
      if answer is not None and base.split_of(question) == split:
        numbers = {'value': value, 'answer': answer, 'query': [WORDS.index(word) for word in query]}
        return base.Example(base.SYSTEM, question, {name: np.int32(x) for name, x in numbers.items()})

  def demonstration(self, seed: int, split: str, index: int, variant: int) -> list[str | base.Call]:
    instance = self.example(seed, split, index).instance
    return [base.Call('database', tuple(map(int, instance['query']))), f' #### {instance["answer"]}']

  def outcome(self, instance: base.Instance, states: dict, text: str, finished: bool) -> base.Outcome:
    exact = bool(finished) and expressions.last_answer(text) == str(instance['answer'])
    state, wanted = states['Database'].value, instance['query']
    right = sum(word == WORDS[i] for word, i in zip(state['last'], wanted)) / len(wanted)
    # A guess is worth no more than the share of the query that was right: at most a quarter.
    reward = (1 + 1 / state['queries']) / 2 if exact and right == 1 else finished * right / 4
    return base.Outcome(reward, exact, {'queries': float(state['queries'])})


def get_config():
  """As in `lookup.py` nothing keeps the words of the base model (kl = 0).

  Without demonstrations it learned to ask, and then gave one number whatever the answer.
  """
  config = config_lib.embedded_config()
  task = 'sqlite:Question', {}, 1.0
  config.curriculum = (config_lib.stage(task, imitate=True, steps=40), config_lib.stage(task))
  config.steps, config.stop_at_solved, config.evaluate_every = 120, True, 10
  config.algorithm.update(kl=0.0, entropy=0.03, skip_zero=False)
  config.rollout.update(prompt_length=80, response_length=64)
  return config
