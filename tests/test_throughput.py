"""The figures that times are held against: FLOPs and bytes of a small step, counted one by one."""

import json
import subprocess
import sys

import pytest

from earl_jax.config import AlgorithmConfig, RolloutConfig
from tests import benchmark
from tests import core_fixtures as core
from tests.run import tiny


@pytest.fixture(scope='module')
def throughput():
  return benchmark.load('throughput')


@pytest.fixture(scope='module')
def experiment(throughput):
  """Two prompts of four rows, which are read once for these: they are longer than responses."""
  rollout = RolloutConfig(prompts=2, group=4, prompt_length=56, response_length=6, chunk=8)
  algorithm = AlgorithmConfig(mini_batches=1, micro_batch=8)
  return throughput.programs.build(throughput.SIZES['tiny'], core.one_device(), rollout, algorithm)


def test_update_flops_one_token_at_a_time(throughput, experiment):
  model = experiment.model
  # q, k, v, o, then gate, up, down; 4 heads and 2 of keys, of width 16
  layer = 64 * (4 * 16) + 2 * 64 * (2 * 16) + (4 * 16) * 64 + 3 * 64 * 128
  total = 0
  for row in range(8):
    first = 0 if row % 4 == 0 else 56  # the other rows of a group find the prompt read
    for slot in range(first, 56 + 6):
      if slot < 56 + 5:
        total += 6 * 2 * layer  # two layers
        for _ in range(slot + 1):
          total += 3 * 2 * (2 * 4 * 16) * 2  # scores and sums; a backward pass is two forward ones; two layers
      if slot >= 56:
        total += 6 * model.vocab_size * 64
  assert throughput.update_flops(experiment) == total


def test_decode_bytes_one_slot_at_a_time(throughput, experiment):
  layers, head = throughput.weights(experiment.model)
  total = 0
  for slot in range(56, 56 + 6):
    total += 4 * (layers + head) + 8 * (slot + 1) * 2 * 2 * 2 * 16 * 4  # rows, keys and values, layers, heads of them
  assert throughput.decode_bytes(experiment) == total


@pytest.mark.parametrize('size, billions', [
    ('135M', 0.135), ('0.5B', 0.494), ('1.5B', 1.54), ('3B', 3.09), ('7B', 7.07),
])
def test_the_shapes_are_those_of_the_models(throughput, size, billions):
  """Of 7B's 7.62 billion the embedding, which is no matrix to multiply with, has 0.54."""
  assert sum(throughput.weights(throughput.SIZES[size])) / 1e9 == pytest.approx(billions, rel=0.005)


def test_devices_are_told_apart(throughput):
  v5e, v5p = throughput.known('TPU v5 lite'), throughput.known('TPU v5')
  assert v5e.flops == 197e12 and v5p.flops == 459e12
  assert throughput.known('NVIDIA H200').bandwidth == 4.8e12
  assert throughput.known('cpu') is None


@pytest.mark.parametrize('arguments, message', [
    (['--size=9B'], '--size=9B: choose one of 0.5B'),
    (['--size=tiny', '--micro_batch=3'], '--micro_batch=3: choose a divisor of prompts * group = 128'),
    (['--size=tiny', '--mesh=2'], '--mesh=2: give devices along data, fsdp and tensor'),
])
def test_mistakes_are_one_line(throughput, arguments, message, capsys):
  assert throughput.cli.start(throughput.main, throughput.define_flags, ['throughput.py', *arguments]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count('\n') == 1


@pytest.mark.slow
def test_on_a_cpu_it_gives_times_and_no_utilisation(tmp_path):
  out = tmp_path / 'facts.json'
  process = subprocess.run(
      [sys.executable, 'benchmarks/throughput.py', '--size=tiny', '--prompts=2', '--group=4', '--response=24',
       '--micro_batch=4', '--dtype=float32', '--remat=none', '--repeats=2', f'--out={out}'],
      cwd=tiny.ROOT, capture_output=True, text=True,
  )
  assert process.returncode == 0, process.stderr[-3000:]
  facts = json.loads(out.read_text())
  assert facts['mfu'] is None and facts['of_bandwidth'] is None
  assert len(facts['update_seconds']) == 2 and facts['tokens_per_second'] > 0
  # A row ends where what it would write no longer fits.
  assert 8 * 16 < facts['decoded_tokens'] <= 8 * 24
