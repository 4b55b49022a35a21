"""The plan against what the compiler says of the compiled programs, and against bad input."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from earl_jax import config as config_lib
from earl_jax import plan
from earl_jax.run import cli
from tests.run import tiny


@pytest.mark.slow
@pytest.mark.parametrize('devices, arguments', [
    (1, ('configs/sort4.py', 'embedded')),
    (4, ('configs/countdown3.py', 'embedded', 'remat="full"', 'mesh.fsdp=4')),
    (4, ('configs/sort4.py', '512', 'mesh.data=2', 'mesh.tensor=2')),
    (1, ('configs/sort4.py', 'embedded', 'lora.rank=8')),
])
def test_within_a_tenth_of_the_compiler(devices, arguments):
  environment = os.environ | {'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}', 'JAX_PLATFORMS': 'cpu'}
  worker = subprocess.run(
      [sys.executable, '-m', 'tests.multi_device.plan_worker', *arguments], cwd=tiny.ROOT, env=environment, text=True,
      capture_output=True, check=False,
  )
  assert worker.returncode == 0, worker.stderr[-3000:]
  result = json.loads(worker.stdout.splitlines()[-1])
  for program, size in result['compiled'].items():
    assert abs(result['planned'][program] / size - 1) < 0.1, (program, result)


def test_residuals_are_without_arguments():
  def f(weights, x):
    return jax.lax.scan(lambda x, w: (jnp.exp(x @ w), None), x, weights)[0].sum()

  shapes = sorted(x.shape for x in plan.residuals(f, np.ones((5, 4, 4), np.float32), np.ones((3, 4), np.float32)))
  assert shapes == [(5, 3, 4), (5, 3, 4)]  # x, and exp(x @ w)


def test_shards_and_remedies(tmp_path, capsys):
  """On four devices with fsdp a quarter of the weights on each; what is too small is told what to change."""
  tiny.write_model(tmp_path)
  config = f'--config={tiny.PATH}:{tmp_path}'

  def run(*arguments):
    assert cli.start(plan.main, plan.define_flags, ['plan', config, *arguments]) == 0
    out = capsys.readouterr().out
    return out, float(out.partition('parameters (float32)')[2].split()[0])

  _, whole = run()
  told, shard = run('--devices=4', '--config.mesh.fsdp=4', '--config.algorithm.micro_batch=8')
  assert shard == pytest.approx(whole / 4, abs=0.001)
  assert 'fits' in told and 'To need less' not in told


def test_a_run_too_large_for_every_device():
  sizes = plan.Plan(*[200 * plan.GIB] * 7, 1.0, 1.0)
  text = plan.table(sizes, config_lib.Config(), 1)
  assert 'fits' not in text and "config.dtype='bfloat16'" in text and 'config.algorithm.reference_on_host' in text


@pytest.mark.parametrize('changes, told', [
    (('--config.mesh.fsdp=3', '--devices=4'), 'does not fit 4 device(s)'),
    (('--config.mesh.fsdp=8', '--devices=8'), 'config.rollout.prompts=4 is not divisible'),
])
def test_bad_input(tmp_path, capsys, changes, told):
  tiny.write_model(tmp_path)
  assert cli.start(plan.main, plan.define_flags, ['plan', f'--config={tiny.PATH}:{tmp_path}', *changes]) == 2
  assert told in capsys.readouterr().err
