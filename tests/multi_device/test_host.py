"""Host environments on a mesh: each of two processes calls for its own rows, once, though two devices hold each."""

import json
import subprocess
import sys

from tests.multi_device.host_worker import ROWS, STEPS
from tests.run import tiny


def test_each_process_calls_for_its_own_rows(tmp_path):
  command = ['launch/local_multiprocess.sh', '2', '4', sys.executable, '-m', 'tests.multi_device.host_worker']
  job = subprocess.run(
      [*command, str(tmp_path)], cwd=tiny.ROOT, capture_output=True, text=True, check=False,
  )
  assert job.returncode == 0, (job.stdout + job.stderr)[-3000:]
  told = [json.loads((tmp_path / f'{i}.json').read_text()) for i in range(2)]
  assert sorted(told[0]['own'] + told[1]['own']) == list(range(ROWS)) and told[0]['own'] and told[1]['own']
  for process in told:
    deciding = [row for row in process['own'] if row % 5]
    assert process['asked'] == sorted(deciding * STEPS)
    assert process['ends'] == [{'row': row, 'n': STEPS} if row % 5 else {} for row in process['own']]
