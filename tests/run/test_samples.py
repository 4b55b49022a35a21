"""Samples of a step: which rollouts, and what their files say. Those of a whole run are read in tests/test_train.py."""

import json
import types

import numpy as np

from earl_jax.run import samples


def test_files(tmp_path, monkeypatch):
  lines = [{'task': 'a', 'text': 'one'}, {'task': 'b', 'text': 'two\n\x1b[2Jli\u202enes'}]
  monkeypatch.setattr(samples.jax, 'process_index', lambda: 1)
  samples.write_samples(tmp_path, 123, lines)
  assert not list(tmp_path.iterdir())
  monkeypatch.setattr(samples.jax, 'process_index', lambda: 0)
  samples.write_samples(tmp_path, 123, lines)
  text = (tmp_path / 'samples' / 'step_000123.txt').read_text()
  assert text == '===== sample 0 =====\none\n===== sample 1 =====\ntwo\n�[2Jli�nes\n'
  told = (tmp_path / 'samples' / 'step_000123.jsonl').read_text().splitlines()
  assert [json.loads(line) for line in told] == [{'step': 123, 'task': 'a'}, {'step': 123, 'task': 'b'}]


def test_rewritten_rollouts_are_shown_first():
  rewrites = types.SimpleNamespace(choice=types.SimpleNamespace(rows=np.array([1, 5, 7, 30, 31])))
  experience = types.SimpleNamespace(advantages=np.zeros(32), rewrites=rewrites)
  assert samples._picks(experience).tolist() == [1, 5, 8, 12, 16, 20, 24, 30]
  rewrites.choice.rows = np.array([], int)
  assert samples._picks(experience).tolist() == list(range(0, 32, 4))
  experience.rewrites = None
  assert samples._picks(experience).tolist() == list(range(0, 32, 4))


def test_numbers_that_json_lacks():
  assert [samples._short(x) for x in (float('nan'), np.inf, -np.inf, 0.123456)] == [None, None, None, 0.1235]
