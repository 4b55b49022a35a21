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
from earl_jax.config import UserError
from earl_jax.run import cli, memory
from earl_jax.run.preparation import set_up
from tests.run import tiny


@pytest.mark.slow
@pytest.mark.parametrize('devices, arguments', [
    (1, ('configs/sort4.py', 'embedded')),
    (4, ('configs/countdown3.py', 'embedded', 'remat="full"', 'mesh.fsdp=4')),
    (4, ('configs/sort4.py', '512', 'mesh.data=2', 'mesh.tensor=2')),
    (1, ('configs/sort4.py', 'embedded', 'lora.rank=8')),
])
def test_within_a_tenth_of_the_compiler(devices, arguments):
  environment = os.environ | {
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}', 'JAX_PLATFORMS': 'cpu',
      'JAX_DISABLE_MOST_OPTIMIZATIONS': '0',
  }
  worker = subprocess.run(
      [sys.executable, '-m', 'tests.multi_device.plan_worker', *arguments], cwd=tiny.ROOT, env=environment, text=True,
      capture_output=True, check=False,
  )
  assert worker.returncode == 0, worker.stderr[-3000:]
  result = json.loads(worker.stdout.splitlines()[-1])
  result['compiled']['rollout'] = max(result['compiled']['rollout'], result['compiled'].pop('resume'))
  for program, size in result['compiled'].items():
    assert abs(result['planned'][program] / size - 1) < 0.1, (program, result)


def test_residuals_are_without_arguments():
  def f(weights, x):
    return jax.lax.scan(lambda x, w: (jnp.exp(x @ w), None), x, weights)[0].sum()

  shapes = sorted(x.shape for x in memory.residuals(f, np.ones((5, 4, 4), np.float32), np.ones((3, 4), np.float32)))
  assert shapes == [(5, 3, 4), (5, 3, 4)]  # x, and exp(x @ w)


def test_shards_and_remedies(tmp_path, capsys):
  """On four devices with fsdp a quarter of the weights on each; what is too small is told what to change."""
  tiny.write_model(tmp_path)
  config = f'--config={tiny.PATH}:{tmp_path}'

  def run(*arguments):
    assert cli.start(plan.main, plan.define_flags, ['plan', config, *arguments]) == 0
    out = capsys.readouterr().out
    return out, float(out.partition('  parameters')[2].split()[0])

  _, whole = run()
  told, shard = run('--devices=4', '--config.mesh.fsdp=4', '--config.algorithm.micro_batch=8')
  assert shard == pytest.approx(whole / 4, abs=0.001)
  assert 'fits' in told and 'To need less' not in told


def test_a_run_too_large_for_every_device():
  sizes = memory.Plan(*[200 * memory.GIB] * 7, 1.0, 1.0)
  text = plan.table(sizes, config_lib.Config(), 1, lambda size: 0)
  assert 'fits' not in text and "config.dtype='bfloat16'" in text and 'config.algorithm.reference_on_host' in text


def test_the_largest_micro_batch_that_fits(tmp_path, monkeypatch, capsys):
  tiny.write_model(tmp_path)
  experiment, _ = set_up(tiny.parsed(tmp_path, **{'algorithm.micro_batch': 0}))
  config, plans, plan_anew = experiment.config, {}, memory.plan

  def plan_once(experiment, mesh):  # it takes a second, and is asked for the same sizes again and again
    size = experiment.config.algorithm.micro_batch
    if size not in plans:
      plans[size] = plan_anew(experiment, mesh)
    return plans[size]

  monkeypatch.setattr(memory, 'plan', plan_once)
  rows = config.rollout.prompts // config.algorithm.mini_batches * config.rollout.group
  peaks = {size: memory.plan(memory.with_micro_batch(experiment, size), experiment.mesh).peak
           for size in range(1, rows + 1) if rows % size == 0}
  assert memory.micro_batches(experiment, experiment.mesh) == list(peaks) and len(peaks) > 3
  for room in [0.9 * min(peaks.values()), *(peak + 1 for peak in peaks.values())]:
    fits = [size for size, peak in peaks.items() if peak <= room]
    assert memory.largest_micro_batch(experiment, experiment.mesh, room) == (max(fits) if fits else 0)
    monkeypatch.setattr(memory, '_memory_of_a_device', lambda mesh, room=room: room / memory.USABLE)
    if fits:
      assert memory.fitted(experiment).config.algorithm.micro_batch == max(fits)
    else:
      with pytest.raises(UserError, match='config.algorithm.micro_batch=0: a device has .* GiB'):
        memory.fitted(experiment)
  given = memory.with_micro_batch(experiment, 4)
  assert memory.fitted(given) is given
  argv = ['plan', f'--config={tiny.PATH}:{tmp_path}', '--config.algorithm.micro_batch=0']
  assert cli.start(plan.main, plan.define_flags, argv) == 0
  assert f'H100         80 GiB  fits, {rows} rows at a time' in capsys.readouterr().out


@pytest.mark.parametrize('changes, told', [
    (('--config.mesh.fsdp=3', '--devices=4'), 'does not fit 4 device(s)'),
    (('--config.mesh.fsdp=8', '--devices=8'), 'config.rollout.prompts=4 is not divisible'),
    (('--config.mesh.fsdp=4', '--devices=4', '--config.rollout.group=2', '--config.rollout.chunk=8',
      '--config.algorithm.mini_batches=4', '--config.algorithm.micro_batch=0'),
     'a mini-batch has 2 rows, and no divisor of that is a multiple of data * fsdp = 4'),
])
def test_bad_input(tmp_path, capsys, changes, told):
  tiny.write_model(tmp_path)
  assert cli.start(plan.main, plan.define_flags, ['plan', f'--config={tiny.PATH}:{tmp_path}', *changes]) == 2
  assert told in capsys.readouterr().err
