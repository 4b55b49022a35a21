"""Trackers: each that is installed takes a run, stopped and gone on with, without a network."""

import json
import sqlite3
import sys
import types

import pytest

from earl_jax.config import Config, parse, stage, UserError
from earl_jax.run import trackers

HOSTILE = '<script>alert(1)</script> **x** ' + chr(0x202E)
PNG = bytes.fromhex(
    '89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92'
    'ef0000000049454e44ae426082'
)


@pytest.fixture
def report(tmp_path, monkeypatch):
  """Reports a run of four steps that was killed after the third and went on from the second; gives its id."""
  workdir = tmp_path / 'sort4'
  workdir.mkdir()
  (tmp_path / 'episode.png').write_bytes(PNG)
  monkeypatch.chdir(tmp_path)

  def run(name):
    for steps in (range(3), range(2, 4)):
      trackers.require_trackers([name])
      opened = trackers.open_trackers(workdir, Config(trackers=(name,)), steps[0])
      for step in steps:
        opened.log(step, {'reward': step / 4, 'eval/sort4/exact_match': float('nan')})
        opened.log_samples(step, ['one', HOSTILE])
        opened.log_picture(step, 'episode', tmp_path / 'episode.png')
      assert opened, 'one has failed'
      opened.close()
    return (workdir / 'run_id').read_text()

  return run


def test_mlflow(report, tmp_path, monkeypatch):
  mlflow = pytest.importorskip('mlflow')
  pytest.importorskip('sqlalchemy')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', f'sqlite:///{tmp_path}/mlflow.db')
  mlflow.set_tracking_uri(None)
  run_id = report('mlflow')
  client = mlflow.MlflowClient()
  experiment = client.get_experiment_by_name('earl_jax')
  found, = client.search_runs([experiment.experiment_id])
  assert found.data.tags['earl_jax.run'] == run_id and found.info.run_name == 'sort4'
  assert found.info.status == 'FINISHED'
  history = client.get_metric_history(found.info.run_id, 'reward')
  assert sorted({(m.step, m.value) for m in history}) == [(0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75)]
  names = {artifact.path for artifact in client.list_artifacts(found.info.run_id, 'samples')}
  assert names == {f'samples/step_{step:06d}.txt' for step in range(4)}
  text = mlflow.artifacts.load_text(f'{found.info.artifact_uri}/samples/step_000003.txt')
  assert text.endswith(f'===== sample 1 =====\n{HOSTILE}\n')
  assert [a.path for a in client.list_artifacts(found.info.run_id, 'pictures')] == ['pictures/episode.png']


def test_wandb(report, tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_SILENT', 'true')
  run_id = report('wandb')
  folders = sorted((tmp_path / 'wandb').glob('offline-run-*'))
  assert len(folders) == 2 and all((folder / f'run-{run_id}.wandb').stat().st_size for folder in folders)
  media = [folder / 'files' / 'media' for folder in folders]
  tables = [json.loads(path.read_text()) for path in media[1].glob('table/*.json')]
  assert [table['data'] for table in tables] == 2 * [[[0, 'one'], [1, HOSTILE]]]
  assert all(list(folder.glob('images/*.png')) for folder in media)


def test_trackio(report, tmp_path, monkeypatch):
  monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))  # it looks when it is imported
  pytest.importorskip('trackio')
  monkeypatch.delenv('TRACKIO_SPACE_ID', raising=False)
  run_id = report('trackio')
  with sqlite3.connect(tmp_path / 'trackio' / 'earl_jax.db') as database:
    rows = database.execute('select run_name, step, metrics from metrics').fetchall()
  assert {name for name, _, _ in rows} == {f'sort4-{run_id}'}
  logged = [(step, json.loads(text)) for _, step, text in rows]
  assert {(step, values['reward']) for step, values in logged if 'reward' in values} == {
      (0, 0.0), (1, 0.25), (2, 0.5), (3, 0.75)
  }
  assert sum('samples' in values for _, values in logged) == sum('episode' in values for _, values in logged) == 5


class Recorder:
  def __init__(self):
    self.seen = []

  def log(self, step, metrics):
    self.seen.append((step, metrics))

  def close(self):
    self.seen.append('closed')


class Broken(Recorder):
  def log(self, step, metrics):
    raise ConnectionError('line one\nline two')


def test_one_that_fails_is_told_of_once_and_left_out(capsys):
  good, bad = Recorder(), Broken()
  both = trackers.Trackers({'bad': bad, 'good': good})
  both.log(0, {'reward': 1.0})
  both.log(1, {'reward': 2.0})
  both.close()
  assert good.seen == [(0, {'reward': 1.0}), (1, {'reward': 2.0}), 'closed'] and bad.seen == []
  err = capsys.readouterr().err
  assert err.startswith('warning: bad failed (ConnectionError: line one line two)') and err.count('\n') == 1


def test_one_that_cannot_be_opened_closes_the_others(tmp_path, monkeypatch):
  opened = Recorder()

  def refuse(run):
    raise OSError('no room')

  monkeypatch.setattr(trackers, 'SERVICES', {'trackio': lambda run: opened, 'mlflow': refuse})
  with pytest.raises(UserError, match='mlflow could not be opened .OSError: no room.; fix that'):
    trackers.open_trackers(tmp_path, Config(trackers=('trackio', 'mlflow')), 0)
  assert opened.seen == ['closed']


def test_a_run_keeps_its_id(tmp_path, monkeypatch):
  """Once it has reported something: what takes its folder before that may have another config."""
  seen = []
  monkeypatch.setattr(trackers, 'SERVICES', {'wandb': lambda run: seen.append(run.id)})

  def begin(resume_step=0):
    trackers.open_trackers(tmp_path, Config(trackers=('wandb',)), resume_step)
    return seen[-1]

  assert begin() != (kept := begin()) and len(kept) == 12
  (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n')
  assert begin() == begin(5) == kept


@pytest.mark.parametrize('name', ['wandb', 'trackio', 'mlflow'])
def test_not_installed(monkeypatch, name):
  monkeypatch.setitem(sys.modules, name, None)
  with pytest.raises(UserError, match=rf"{name} cannot be imported .*pip install 'earl_jax\[{name}\]'"):
    trackers.require_trackers(['tensorboard', name])


def test_not_logged_in_to_wandb(monkeypatch):
  settings = types.SimpleNamespace(mode='online')
  wandb = types.SimpleNamespace(
      setup=lambda: types.SimpleNamespace(settings=settings), login=lambda prompt, verify: False
  )
  monkeypatch.setitem(sys.modules, 'wandb', wandb)
  with pytest.raises(UserError, match='wandb: not logged in; call `wandb login`, or set WANDB_API_KEY'):
    trackers.require_trackers(['wandb'])
  settings.mode = 'offline'
  trackers.require_trackers(['wandb'])


def test_not_logged_in_for_a_trackio_space(monkeypatch):
  monkeypatch.setitem(sys.modules, 'trackio', types.ModuleType('trackio'))
  monkeypatch.setenv('TRACKIO_SPACE_ID', 'me/runs')
  monkeypatch.setattr('huggingface_hub.get_token', lambda: None)
  with pytest.raises(UserError, match='TRACKIO_SPACE_ID=me/runs; call `hf auth login`'):
    trackers.require_trackers(['trackio'])


def test_an_mlflow_server_that_does_not_answer(monkeypatch):
  mlflow = pytest.importorskip('mlflow')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://127.0.0.1:9')
  mlflow.set_tracking_uri(None)
  with pytest.raises(UserError, match='mlflow: http://127.0.0.1:9 does not answer .*set MLFLOW_TRACKING_URI'):
    trackers.require_trackers(['mlflow'])


@pytest.mark.parametrize('given', [('comet',), ('wandb,mlflow',)])
def test_unknown(given):
  with pytest.raises(UserError, match='choose one of tensorboard, wandb, trackio, mlflow, such as'):
    parse({'trackers': given, 'curriculum': (stage(('sort', {'n': 2}, 1.0)),)})
