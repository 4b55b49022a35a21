"""Qwen2.5-0.5B's shapes with random weights: a whole training step on a CPU, what it takes and what it leaves out."""

import json
import os
import subprocess
import sys

import pytest

from tests.run import tiny

GIGABYTE = 10**9


@pytest.fixture(scope='module')
def facts(qwen_tokenizer_dir, tmp_path_factory):
  """What tests/large_step.py tells, of one device and in a process of its own: memory is counted per process."""
  out = tmp_path_factory.mktemp('large') / 'facts.json'
  process = subprocess.run(
      [sys.executable, '-m', 'tests.large_step', str(qwen_tokenizer_dir), str(out)], cwd=tiny.ROOT, text=True,
      capture_output=True, env=os.environ | {
          'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '0',
      },
  )
  assert process.returncode == 0, process.stderr[-3000:]
  facts = json.loads(out.read_text())
  print({name: value for name, value in facts.items() if name != 'vocabulary_buffers'})
  return facts


@pytest.mark.slow
def test_a_step_of_half_a_billion_parameters_fits_in_24_gb(facts):
  assert facts['parameters'] > 490e6
  assert facts['peak_bytes'] < 24 * GIGABYTE


@pytest.mark.slow
def test_it_trains(facts):
  assert facts['finite']
  assert facts['unchanged'] == []
  assert facts['decisions'] > 2


@pytest.mark.slow
@pytest.mark.parametrize('program', ['update', 'reference'])
def test_no_buffer_holds_the_vocabulary_for_every_slot(facts, program):
  """Arrays with an axis for the vocabulary have, besides, the hidden axis of the embedding or the 16 decisions of a
  chunk; the response has 32 slots."""
  rest = facts['vocabulary_buffers'][program]
  assert facts['hidden_size'] in rest and 16 in rest
  assert [size for size in rest if 16 < size != facts['hidden_size']] == []
