"""A step's programs, compiled for TPUs that are not there."""

import os
import re
import subprocess
import sys

import pytest

from tests.run import tiny


@pytest.mark.slow
def test_a_step_compiles_for_tpus():
  """Over four devices, with the kernel for TPUs, and in no more than a sixth above the memory that is planned."""
  pytest.importorskip('libtpu')
  process = subprocess.run(
      [sys.executable, 'benchmarks/tpu.py', '--size=135M', '--topology=v5e:2x2', '--mesh=2,2,1', '--prompts=4',
       '--group=4', '--response=64', '--micro_batch=8'],
      cwd=tiny.ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu'}, capture_output=True, text=True,
  )
  assert process.returncode == 0, process.stderr[-3000:]
  assert process.stdout.rstrip().endswith('attention=splash')
  found = re.findall(r'^\| (rollout|update|rewriting) \| ([\d.]+) \| ([\d.]+) \|', process.stdout, re.MULTILINE)
  assert len(found) == 3
  for program, used, planned in found:
    assert 6 * float(used) < 7 * float(planned), (program, used, planned)
