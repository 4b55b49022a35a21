"""Playing in a terminal: the policy's decisions, and somebody's own."""

import jax
import numpy as np
import pytest

from earl_jax import play
from earl_jax.acting.options import options
from earl_jax.run import cli
from earl_jax.run.workdir import claim_workdir
from earl_jax.tasks.sorting import Sort
from tests import core_fixtures as core
from tests.run import tiny
from tests.view import hostile


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run that has not saved anything yet."""
  folder = tmp_path_factory.mktemp('run')
  claim_workdir(folder, tiny.parsed(tiny.write_model(tmp_path_factory.mktemp('model'))), {'compare': 1, 'swap': 1})
  return folder


def start(workdir, *arguments):
  return cli.start(play.main, play.define_flags, ['play', f'--workdir={workdir}', *arguments])


def answer(monkeypatch, *answers):
  """What is typed; then the terminal is closed."""
  left = iter(answers)

  def read(prompt):
    print(prompt)
    try:
      return next(left)
    except StopIteration:
      raise EOFError from None

  monkeypatch.setattr('builtins.input', read)


def test_somebody_plays_and_is_scored(workdir, monkeypatch, capsys):
  """The second problem of two items: compared, swapped if need be, ended."""
  instance = Sort(2).example(0, 'test', 1).instance
  swaps = (instance['values'][0] > instance['values'][1]) != instance['descending']
  answers = ['compare', 'A', 'B', *(['swap', 'B', 'A'] if swaps else []), 'nothing', 't', 'done', 'e']
  answer(monkeypatch, *answers)
  assert start(workdir, '--human', '--task=sort2', '--index=1') == 0
  out = capsys.readouterr().out
  assert "'nothing' is not an option" in out and '  done' in out
  assert f'reward 1.000  exact match yes  comparisons 1  swaps {int(swaps)}  certified 1' in out
  assert f'optimal: comparisons 1  swaps {int(swaps)}' in out


@pytest.mark.parametrize('answers', [(), ('q',), ('compare', 'A'), ('t', 'word ' * 200)])
def test_somebody_leaves(workdir, monkeypatch, capsys, answers):
  answer(monkeypatch, *answers)
  assert start(workdir, '--human', '--task=sort3') == 0
  assert 'reward 0.000  exact match no' in capsys.readouterr().out


@pytest.mark.parametrize('arguments, message', [
    ([], 'no checkpoint there yet'),
    (['--human', '--question=' + 'who ' * 400], '--question: the prompt would have'),
    (['--human', '--task=sort9'], 'n=9'),
    (['--human', '--task=check'], "task 'check'"),
    (['--index=-1'], '--index=-1'),
])
def test_mistakes_are_named(workdir, capsys, arguments, message):
  assert start(workdir, *arguments) == 2
  error, = capsys.readouterr().err.splitlines()
  assert message in error


def test_every_decision_of_a_call_has_a_line():
  """With its probability; words stand together."""
  experiment, trajectory = core.experiment(), core.rolled_out()
  seen = options(core.params(1), core.params(1), trajectory, scoring=experiment.scoring)
  seen, space = jax.tree.map(np.asarray, seen), core.interface().space
  called = 0
  for row in range(16):
    episode = trajectory.row(row)
    told = [line for line, _ in play._told(experiment, episode, jax.tree.map(lambda x, row=row: x[row], seen))]
    chosen = [space.actions[a - space.vocab_size].description.strip() for a in episode.actions if a >= space.vocab_size]
    lines = [line for line in told if '%' in line and 'least likely' not in line]
    assert [line.split('  ')[1 + 2 * line.startswith('    ')] for line in lines] == chosen
    assert ('cut off' in told[-1]) != bool(episode.finished)
    called += len(chosen)
  assert called > 20


@pytest.mark.slow
def test_the_policy_plays():
  problem = play.Problem(Sort(3), Sort(3).example(0, 'test', 0), False)
  trajectory, lines = play.policy_plays(core.experiment(), core.params(1), problem, 0.0)
  text = '\n'.join(line for line, _ in lines)
  assert 'least likely: ' in text and ('cut off' in text) != bool(trajectory.finished[0])


def test_colours_only_where_they_can_be_seen(monkeypatch):
  monkeypatch.setattr(play.sys.stdout, 'isatty', lambda: True, raising=False)
  for setting, colored in [('', True), ('1', False)]:
    play._colored.cache_clear()
    monkeypatch.setenv('NO_COLOR', setting)
    assert ('\x1b' in play._paint('x', 1)) == colored
  play._colored.cache_clear()


def test_hostile_texts_do_nothing_to_a_terminal():
  for text in hostile.texts(5_000):
    line = play._said(play.visible(text), [(text, 0.5, ''), (text[::-1], 0.1, '')])
    assert all(c == '\n' or c.isprintable() for c in line)
