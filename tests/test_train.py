"""Training runs: end to end, resumed, stopped, killed, damaged."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import time
import weakref

import chex
import jax
import numpy as np
import pytest

from earl_jax import train
from earl_jax.acting.scoring import score
from earl_jax.config import UserError
from earl_jax.learning import reference
from earl_jax.learning.batches import Split
from earl_jax.run import collect, learner, memory, metrics
from earl_jax.run.preparation import set_up
from earl_jax.run.problems import draw
from earl_jax.run.progress import Progress
from earl_jax.run.workdir import hold_workdir
from tests.run import tiny


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return tiny.write_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def config(model):
  return tiny.parsed(model)


@pytest.fixture(scope='module', autouse=True)
def compile_once(config):
  with tiny.compiled_once(config):
    yield


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
  """Workdir and final state of an uninterrupted run."""
  workdir = tmp_path_factory.mktemp('whole')
  return workdir, train.train(config, workdir).state


def assert_same_run(workdir, state, whole):
  assert tiny.read_metrics(workdir) == tiny.read_metrics(whole[0])
  if state is not None:
    chex.assert_trees_all_equal(state, whole[1])
  assert (workdir / 'evaluation.json').read_text() == (whole[0] / 'evaluation.json').read_text()


def test_end_to_end(config, whole, capsys):
  workdir, state = whole
  lines = tiny.read_metrics(workdir)
  assert [line['step'] for line in lines] == [0, 1, 2, 3, 4]
  assert [line['stage'] for line in lines] == [0, 0, 1, 1, 1]
  named = {'reward', 'exact_match/sort2', 'tokens', 'entropy', 'loss', 'gradient_norm', 'counterfactual/gain'}
  assert named <= set(lines[0])
  evaluated = {f'eval/{label}/{name}' for label in ('sort2', 'sort3') for name in ('exact_match', 'certified', 'swaps')}
  assert [evaluated <= set(line) for line in lines] == [False, True, False, True, False]
  timed = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[0])
  assert timed['tokens_per_second'] == timed['tokens'] / timed['seconds']
  assert sorted(path.name for path in (workdir / 'samples').iterdir()) == [
      f'step_00000{step}.{suffix}' for step in (0, 2, 4) for suffix in ('jsonl', 'txt')
  ]
  assert 'Let me solve this step by step.' in (workdir / 'samples' / 'step_000000.txt').read_text()
  assert tiny.checkpoints(workdir) == [2, 4, 5]
  assert state.step == 10  # two mini-batches a step
  assert json.loads((workdir / 'config.json').read_text())['optimizer']['learning_rate'] == 0.01
  assert json.loads((workdir / 'versions.json').read_text()) == {'compare': 1, 'swap': 1}
  assert json.loads((workdir / 'actions.json').read_text())['compare'] == [' compare', *(f' {x}' for x in 'ABCDEFGH')]
  assert set(json.loads((workdir / 'evaluation.json').read_text())['sort']) == {'2', '3'}

  before = (workdir / 'metrics.jsonl').read_bytes()
  again = train.train(config, workdir).state  # nothing is left to do
  chex.assert_trees_all_equal(again, state)
  assert (workdir / 'metrics.jsonl').read_bytes() == before
  assert 'after 5 steps' in capsys.readouterr().out


def test_samples_tell_what_was_decided(whole):
  """A counterfactual begins with the forced route, where it leaves its factual episode, and both have their rewards."""
  text = ''.join(path.read_text() for path in sorted((whole[0] / 'samples').glob('*.jsonl')))
  lines = [json.loads(line) for line in text.splitlines()]
  assert [line['step'] for line in lines] == 8 * [0] + 8 * [2] + 8 * [4] and {x['task'] for x in lines} > {'sort2'}
  rewritten = [line for line in lines if line['counterfactual']]
  assert len(rewritten) > 4
  for line in lines:
    factual, other = line['factual'], line['counterfactual']
    for decision in factual['decisions'] + (other['decisions'] if other else []):
      assert decision['options'][0][:2] == [decision['text'], pytest.approx(np.exp(decision['log_prob']), rel=2e-3)]
      assert sum(p for _, p, _ in decision['options']) < 1.001 and 'reference' in decision  # kl is on
    assert (factual['advantage'] is None) == bool(other and other['advantage'] is not None)
  for line in rewritten:
    other = line['counterfactual']
    assert 0 <= other['fork'] <= len(line['factual']['decisions'])
    assert other['decisions'][0]['environment'] == other['environment'] and other['decisions'][0]['language']
    if other['advantage'] is not None:
      assert other['advantage'] == pytest.approx(other['reward'] - line['factual']['reward'], abs=1e-5)


def test_parameters_move(config, whole):
  """Otherwise the tests of resuming would compare nothing."""
  _, params = set_up(config)
  moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != np.asarray(b))), params, whole[1].params)
  assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize('stops', [(1,), (3,), (2, 4)])
def test_resumed_equals_uninterrupted(config, whole, tmp_path, monkeypatch, stops):
  for stop in stops:
    with monkeypatch.context() as patch:
      patch.setattr(train.StopSignal, 'reached', lambda self, step, stop=stop: step == stop)
      train.train(config, tmp_path)
    assert tiny.checkpoints(tmp_path)[-1] == stop
    assert not (tmp_path / 'evaluation.json').exists()
  state = train.train(config, tmp_path).state
  assert_same_run(tmp_path, state, whole)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_saves(config, whole, tmp_path, monkeypatch, capsys, number):
  def interrupted(*args):
    os.kill(os.getpid(), number)
    return collect.collect(*args)

  if signal.getsignal(number) is signal.SIG_IGN:  # as nohup starts programs
    signal.signal(number, signal.SIG_DFL)
  former = signal.getsignal(number)
  with monkeypatch.context() as patch:
    patch.setattr(train, 'collect', interrupted)
    train.train(config, tmp_path)
  assert signal.getsignal(number) is former
  assert tiny.checkpoints(tmp_path) == [1]
  out, err = capsys.readouterr()
  assert 'stopped, 1 of 5 steps saved' in out and f'{number.name}: saving after this step' in err
  assert_same_run(tmp_path, train.train(config, tmp_path).state, whole)


def test_damaged_newest_checkpoint(config, whole, tmp_path, caplog):
  shutil.copytree(whole[0], tmp_path / 'run')
  folder = tmp_path / 'run' / 'checkpoints' / '5'
  largest = max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
  state = train.train(config, tmp_path / 'run').state
  assert 'step 5 is unreadable' in caplog.text and 'using step 4' in caplog.text
  assert_same_run(tmp_path / 'run', state, whole)


def test_other_config_changes_nothing(config, whole):
  before = (whole[0] / 'metrics.jsonl').read_bytes()
  with pytest.raises(UserError, match='seed was 0 in this workdir and is 1 now'):
    train.train(dataclasses.replace(config, seed=1), whole[0])
  assert (whole[0] / 'metrics.jsonl').read_bytes() == before


def broken_from(first, last):
  """`collect`, whose advantages are not a number in these steps; and the parameters that every step began with."""
  began = []

  def collected(experiment, params, problems, progress):
    began.append(jax.device_get(params))
    experience = collect.collect(experiment, params, problems, progress)
    if first <= progress.step <= last:
      experience = experience._replace(advantages=np.full_like(experience.advantages, np.nan))
    return experience

  return collected, began


def test_a_step_that_is_not_finite_is_not_applied(config, tmp_path, monkeypatch):
  collected, began = broken_from(3, 3)
  monkeypatch.setattr(train, 'collect', collected)
  state = train.train(config, tmp_path).state
  chex.assert_trees_all_equal(began[4], began[3])
  assert state.step == 8 and all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state.params))
  lines = tiny.read_metrics(tmp_path)
  assert [line['broken_updates'] for line in lines] == [0, 0, 0, 2, 0] and lines[3]['loss'] is None
  assert tiny.checkpoints(tmp_path) == [2, 5]  # that of step 4 would have been broken


def test_a_run_that_stays_broken_ends(config, whole, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(train, 'PATIENCE', 2)
    patch.setattr(train, 'collect', broken_from(2, 9)[0])
    with pytest.raises(UserError, match='not finite at step 3 and before; the checkpoint of 2 steps is from before'):
      train.train(config, tmp_path)
    assert tiny.checkpoints(tmp_path) == [2]
    patch.setattr(train, 'PATIENCE', 9)  # its end comes first
    with pytest.raises(UserError, match='not finite at step 4 and before; the checkpoint of 2 steps is from before'):
      train.train(config, tmp_path)
  assert tiny.checkpoints(tmp_path) == [2]
  assert_same_run(tmp_path, train.train(config, tmp_path).state, whole)


def test_one_run_at_a_time(config, whole):
  before = (whole[0] / 'metrics.jsonl').read_bytes()
  with hold_workdir(whole[0]), pytest.raises(UserError, match=f'in use by another run .process {os.getpid()}'):
    train.train(config, whole[0])
  assert (whole[0] / 'metrics.jsonl').read_bytes() == before


def test_results_are_told_before_they_are_written(config, whole, monkeypatch, capsys):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(train.measure, 'write_evaluation', full)
  with pytest.raises(OSError, match='No space'):
    train.train(config, whole[0])
  assert 'after 5 steps' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize('length', [1, 2])
def test_hardly_any_room_for_a_response(model, tmp_path, length):
  config = tiny.parsed(model, steps=1, **{'rollout.response_length': length, 'algorithm.kl': 0.1})
  train.train(config, tmp_path)
  line, = tiny.read_metrics(tmp_path)
  assert line['broken_updates'] == 0 and np.isfinite(line['loss']) and 0 < line['decisions'] <= length


@pytest.mark.parametrize('steps', [0, 3])
def test_run_can_be_extended(config, whole, tmp_path, steps):
  train.train(dataclasses.replace(config, steps=steps), tmp_path)
  measured = json.loads((tmp_path / 'evaluation.json').read_text())['sort']['3']
  assert measured['step'] == steps and 0 <= measured['exact_match'] <= 1
  assert_same_run(tmp_path, train.train(config, tmp_path).state, whole)


def test_the_devices_say_how_many_rows_are_learned_from_at_a_time(config, whole, tmp_path, monkeypatch):
  """Where the config leaves it open and there is room for what the others have, the run is the same."""
  experiment, _ = set_up(config)
  room = memory.plan(experiment, experiment.mesh).peak / memory.USABLE
  monkeypatch.setattr(memory, '_memory_of_a_device', lambda mesh: room + 1)
  algorithm = dataclasses.replace(config.algorithm, micro_batch=0)
  assert_same_run(tmp_path, train.train(dataclasses.replace(config, algorithm=algorithm), tmp_path).state, whole)
  assert json.loads((tmp_path / 'config.json').read_text())['algorithm']['micro_batch'] == 0


def test_stops_when_solved(config, tmp_path, monkeypatch):
  perfect = {label: {'exact_match': 1.0, 'certified': 1.0, 'count': 4} for label in ('sort2', 'sort3')}
  monkeypatch.setattr(train.measure, 'evaluate_policy', lambda *args, **kwargs: json.loads(json.dumps(perfect)))
  config = dataclasses.replace(config, stop_at_solved=True)
  train.train(config, tmp_path)
  done = len(tiny.read_metrics(tmp_path))
  assert done == 4  # the last stage has just been reached when the first evaluation comes; the second makes sure
  train.train(config, tmp_path)
  assert len(tiny.read_metrics(tmp_path)) == done
  train.train(dataclasses.replace(config, stop_at_solved=False), tmp_path)
  assert len(tiny.read_metrics(tmp_path)) == 5


@pytest.mark.parametrize('lacking', ['exact_match', 'certified'])
def test_goes_on_until_solved(config, tmp_path, monkeypatch, lacking):
  perfect = {'exact_match': 1.0, 'certified': 1.0, 'count': 4}
  results = {'sort2': perfect, 'sort3': perfect | {lacking: 0.9}}
  monkeypatch.setattr(train.measure, 'evaluate_policy', lambda *args, **kwargs: json.loads(json.dumps(results)))
  train.train(dataclasses.replace(config, stop_at_solved=True, evaluate_every=1), tmp_path)
  assert len(tiny.read_metrics(tmp_path)) == 5


def test_no_compilation_after_warm_up(config, tmp_path, monkeypatch):
  """Of the large programs; by then every kind of step has occurred: both stages, rewrites, evaluation, checkpoint."""
  compiled, seen, built = [], [], []
  def record(name, duration, **info):
    compiled.append(info.get('fun_name', ''))
    if 'backend_compile' in name:
      built.append(info.get('fun_name', ''))
  jax.monitoring.register_event_duration_secs_listener(record)
  monkeypatch.setattr(metrics.MetricsWriter, 'write', lambda self, step, values: seen.append(len(compiled)))
  jax.clear_caches()
  train.train(dataclasses.replace(config, steps=8), tmp_path)
  jax.monitoring.unregister_event_duration_listener(record)
  large = ('rollout', 'update_step', 'choose_positions', 'replace', 'take', '_sum_bits')
  assert sum(any(name in n for name in large) for n in compiled[: seen[0]]) >= 6
  late = [name for name in compiled[seen[3]:] if any(n in name for n in large)]
  assert not late
  # Compiled ahead of its first call, for just the arguments that come: not once more then.
  assert sum('update_step' in name for name in built) == 1


def test_reference_scores_and_kl(model, tmp_path, monkeypatch):
  config_changes = {'algorithm.kl': 0.1, 'algorithm.mini_batches': 1, 'steps': 2}
  config = tiny.parsed(model, **config_changes)
  experiment, params = train.set_up(config)  # whose programs are compiled once
  experience = collect.collect(experiment, params, draw(experiment, stage=0, step=0), Progress.first(2))
  settings = dataclasses.replace(experiment.scoring, rows_per_prompt=1)
  scores = score(params, experience.trajectory, settings)
  batch = np.arange(len(experience.advantages), dtype=np.int32).reshape(1, -1, 4)
  split = Split(batch, np.int32([batch.shape[1]]))
  for rows in (1, 2, 4):
    scoring = dataclasses.replace(settings, rows_per_prompt=rows)
    got = reference.log_probs(params, experience.trajectory, split, scoring=scoring)
    np.testing.assert_allclose(got, scores.vocabulary_log_probs, atol=1e-5)
  short = reference.log_probs(params, experience.trajectory, split._replace(counts=np.int32([1])), scoring=settings)
  assert np.any(short[:4]) and not np.any(short[4:])  # what the update leaves out is not scored
  # what the sampler recorded is what the trainer computes
  np.testing.assert_allclose(scores.log_probs, experience.trajectory.log_probs, atol=1e-4)

  train.train(config, tmp_path / 'run')
  lines = tiny.read_metrics(tmp_path / 'run')
  first, second = (line['kl'] for line in lines)
  assert abs(first) < 1e-6 < second

  waiting = reference.keep(params, jax.tree.map(lambda x: x.sharding, params), on_host=True)
  assert {x.sharding.memory_kind for x in jax.tree.leaves(waiting)} == {'pinned_host'}
  copies, log_probs, update_step = [], reference.log_probs, learner.update_step

  def scored(params, *args, **kwargs):
    copies.append([weakref.ref(x) for x in jax.tree.leaves(params)])
    return log_probs(params, *args, **kwargs)

  def updated(*args, **kwargs):
    assert not any(copy() for copy in copies[-1])  # the update has the room
    return update_step(*args, **kwargs)

  monkeypatch.setattr(learner.Learner, 'compile_beside', lambda self: None)
  monkeypatch.setattr(learner.reference_lib, 'log_probs', scored)
  monkeypatch.setattr(learner, 'update_step', updated)
  train.train(tiny.parsed(model, **config_changes, **{'algorithm.reference_on_host': True}), tmp_path / 'host')
  assert tiny.read_metrics(tmp_path / 'host') == lines and len(copies) == 2


def wait_for_steps(child, workdir, count, limit=120):
  """Returns once `count` lines of metrics are written."""
  path, until = workdir / 'metrics.jsonl', time.monotonic() + limit
  while not path.exists() or path.read_text().count('\n') < count:
    assert child.poll() is None and time.monotonic() < until, child.communicate()
    time.sleep(0.02)


def test_processes_killed_and_terminated(config, whole, tmp_path):
  arguments = (f'--config={tiny.PATH}:{config.model}', f'--workdir={tmp_path}')
  child = tiny.start('train', *arguments)
  wait_for_steps(child, tmp_path, 3)
  child.kill()
  child.communicate()
  child = tiny.start('train', *arguments)
  wait_for_steps(child, tmp_path, 4)
  child.terminate()
  _, err = child.communicate()
  assert child.returncode == 0
  noise = [line for line in err.splitlines() if line and not line.startswith(('step ', 'SIGTERM: '))]
  assert not noise
  child = tiny.start('train', *arguments)
  out, _ = child.communicate()
  assert child.returncode == 0 and 'after 5 steps' in out
  assert_same_run(tmp_path, None, whole)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(5))
def test_killed_at_a_random_moment(config, whole, tmp_path, seed):
  arguments = (f'--config={tiny.PATH}:{config.model}', f'--workdir={tmp_path}')
  child = tiny.start('train', *arguments)
  rng = random.Random(seed)
  wait_for_steps(child, tmp_path, rng.randrange(4))
  time.sleep(rng.random() * 0.5)
  child.kill()
  child.communicate()
  child = tiny.start('train', *arguments)
  out, err = child.communicate()
  assert child.returncode == 0, err
  assert_same_run(tmp_path, None, whole)
