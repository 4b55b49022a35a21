"""Metrics file, events, progress, samples."""

import io
import json
import os
import sys
import threading
import time
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tqdm import tqdm

from earl_jax.config import Config
from earl_jax.run import metrics
from earl_jax.run.trackers import Trackers
from earl_jax.tasks.base import Column


def run(workdir, start, stop, total=6):
  with metrics.MetricsWriter(workdir, Config(steps=total), start) as writer:
    for step in range(start, stop):
      writer.write(step, {'stage': 'sort3', 'reward': jnp.float32(step) / 3, 'length': np.int32(step), 'loss': np.nan})


def events(workdir):
  """(tag, step, value) of all events; a later start of a run hides what it repeats (TensorBoard's purge)."""
  from tensorboardX.proto import event_pb2

  found = []
  for path in sorted(workdir.glob('events.*'), key=lambda p: p.stat().st_mtime_ns):
    data, at = path.read_bytes(), 0
    while at < len(data):
      size = int.from_bytes(data[at : at + 8], 'little')
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
      at += 16 + size
      if event.HasField('session_log'):
        found = [f for f in found if f[1] < event.step]
      found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
  return found


def test_lines(tmp_path):
  run(tmp_path, 0, 2)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  third = float(np.float32(1) / 3)
  assert lines == [
      {'step': 0, 'stage': 'sort3', 'reward': 0.0, 'length': 0, 'loss': None},
      {'step': 1, 'stage': 'sort3', 'reward': third, 'length': 1, 'loss': None},
  ]


@pytest.mark.parametrize('died, resumed', [(4, 2), (4, 4), (3, 0)])
@pytest.mark.parametrize('tail', ['', '{"step": 3, "rew'])
def test_resumed_file_equals_uninterrupted(tmp_path, died, resumed, tail):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  whole.mkdir(), parts.mkdir()
  run(whole, 0, 6)
  run(parts, 0, died)
  with (parts / 'metrics.jsonl').open('a') as file:
    file.write(tail)
  run(parts, resumed, 6)
  assert (parts / 'metrics.jsonl').read_bytes() == (whole / 'metrics.jsonl').read_bytes()
  assert not list(parts.glob('*.tmp'))


def test_line_is_on_disk_at_once(tmp_path):
  with metrics.MetricsWriter(tmp_path, Config(steps=9)) as writer:
    writer.write(0, {'reward': 1.0})
    assert json.loads((tmp_path / 'metrics.jsonl').read_text()) == {'step': 0, 'reward': 1.0}


def test_events(tmp_path):
  run(tmp_path, 0, 3)
  time.sleep(1.1)  # event files are named by the second
  run(tmp_path, 1, 4)
  found = events(tmp_path)
  assert [f[1:] for f in found if f[0] == 'length'] == [(0, 0), (1, 1), (2, 2), (3, 3)]
  assert {f[0] for f in found} == {'reward', 'length', 'loss'}


def test_only_process_zero_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(metrics.jax, 'process_index', lambda: 1)
  run(tmp_path, 0, 2)
  assert not list(tmp_path.iterdir())


def test_plain_lines_in_a_log(capfd, monkeypatch):
  monkeypatch.delitem(sys.modules, 'ipykernel', raising=False)
  clock = iter([0.0, 10.0, 40.0, 60.0])
  monkeypatch.setattr(metrics.time, 'monotonic', lambda: next(clock))
  columns = [Column('comparisons', '{:.2f}'), Column('certified', '{:.1%}')]
  progress = metrics.ProgressBar(total_steps=8, resume_step=4, columns=columns, interval=30.0)
  values = {'stage': 2, 'reward': 0.5, 'exact_match': 0.25, 'comparisons': 4.7, 'zero_reward_groups': 0.12,
            'tokens_per_second': 12345.6, 'loss': 1.0}
  for step in range(4, 8):
    progress.update(step, values if step == 4 else {})
  progress.close()
  assert capfd.readouterr().err.splitlines() == [
      'step 4/8: compiling',
      'step 5/8: stage 2, reward 0.500, exact 0.250, zero-reward groups 12%, comparisons 4.70, 12,346 tokens/s',
      'step 7/8: 00:20 left',
      'step 8/8: 00:00 left',
  ]


def test_bar_in_a_terminal(capfd, monkeypatch):
  monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
  progress = metrics.ProgressBar(total_steps=4, resume_step=2)
  progress.update(2, {'stage': 'sort4'})
  progress.update(3, {'stage': 'sort5'})
  progress.close()
  err = capfd.readouterr().err
  assert '4/4' in err and '\r' in err and 'sort5' in err


def test_damaged_lines_are_left_out(tmp_path, caplog):
  lines = [b'{"step": 0, "text": "a\\u2028b\xe2\x80\xa8c"}\n', b'{"step": \xff}\n', b'[1]\n',
           b'{"stop": 1}\n', b'{"step": 1}\n']
  (tmp_path / 'metrics.jsonl').write_bytes(b''.join(lines) + b'{"step": 2')
  with metrics.MetricsWriter(tmp_path, Config(steps=9), 2):
    pass
  assert (tmp_path / 'metrics.jsonl').read_bytes() == lines[0] + lines[4]
  assert '3 damaged lines are left out' in caplog.text


@pytest.mark.parametrize('notebook', [False, True])
def test_a_pipe_that_is_gone(monkeypatch, notebook):
  """Whoever read the progress has left: the run goes on, and so does what other threads have to say."""
  read, write = os.pipe()
  os.close(read)
  with open(write, 'w', encoding='utf-8') as pipe, monkeypatch.context() as patch:
    patch.setattr(sys, 'stderr', pipe)
    patch.delitem(sys.modules, 'ipykernel', raising=False)
    if notebook:
      patch.setitem(sys.modules, 'ipykernel', types)
    progress = metrics.ProgressBar(total_steps=2)
    progress.update(0, {})
    progress.update(1, {})
    progress.close()
    with open(os.devnull, 'wb') as nowhere:
      os.dup2(nowhere.fileno(), write)
  other = threading.Thread(target=tqdm.write, args=('', io.StringIO()), daemon=True)
  other.start()
  other.join(5)
  assert not other.is_alive()


def test_numbers_that_have_changed(tmp_path, caplog):
  with metrics.MetricsWriter(tmp_path, Config(steps=9)) as writer:
    writer.write(0, {'reward': 1.0})
    written = writer.written
    writer.write(1, {'reward': 0.0})
  with metrics.MetricsWriter(tmp_path, Config(steps=9), 1, written=written):
    assert not caplog.text
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(path.read_bytes().replace(b'1.0', b'7.0'))
  with metrics.MetricsWriter(tmp_path, Config(steps=9), 1, written=written):
    assert 'not what the run wrote; its numbers before step 1 may be wrong' in caplog.text


def test_samples_go_to_trackers_with_a_picture(tmp_path, monkeypatch):
  seen = []
  tracker = types.SimpleNamespace(
      log_samples=lambda *given: seen.append(given), log_picture=lambda *given: seen.append(given), close=list
  )
  monkeypatch.setattr(metrics, 'open_trackers', lambda *_: Trackers({'mine': tracker}))
  (tmp_path / 'samples').mkdir()
  with metrics.MetricsWriter(tmp_path, Config()) as writer:
    writer.log_samples(7, ['one\x1b[2J'], lambda path: path.write_bytes(b'PNG'))
    writer.log_samples(8, ['two'], None)
  picture = tmp_path / 'samples' / 'step_000007.png'
  assert seen == [(7, ['one�[2J']), (7, 'episode', picture), (8, ['two'])] and picture.exists()
