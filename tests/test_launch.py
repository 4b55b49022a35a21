"""launch/: the files hold together, and the shell parts do what they say, with stubs in place of engines."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

from absl import flags
import pytest
import yaml

from earl_jax import config as config_lib
from earl_jax import train

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), LAUNCH / 'slurm.sbatch'])
MANIFESTS = sorted(LAUNCH.glob('gke_*.yaml'))
TASKS = sorted(LAUNCH.glob('skypilot_*.yaml'))
FILES = sorted(LAUNCH.iterdir())
RUN_HERE = {'README.md', 'train.sh', 'local_multiprocess.sh'}


def name_of(path):
  return path.name


@pytest.fixture
def stub(tmp_path):
  """Writes a bash program that the scripts find instead of the real one; returns the environment to run them in."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  environment = {k: v for k, v in os.environ.items() if not k.startswith(('SLURM_', 'XLA_', 'LIBTPU_', 'JAX_'))}
  environment |= {'PATH': f'{folder}:{os.environ["PATH"]}', 'CALLS': str(tmp_path / 'calls')}

  def write(program, body='', **variables):
    path = folder / program
    path.write_text(f'#!/bin/bash\necho {program} "$@" >>"$CALLS"\n{body}\n')
    path.chmod(0o755)
    return environment | variables

  return write


def run(command, environment, **options):
  return subprocess.run(
      command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False, **options
  )


def calls(environment):
  return pathlib.Path(environment['CALLS']).read_text().splitlines()


@pytest.mark.parametrize('path', SCRIPTS, ids=name_of)
def test_scripts_are_sound(path):
  subprocess.run(['bash', '-n', path], check=True)
  if path.name != 'env.sh':
    assert path.suffix == '.sbatch' or os.access(path, os.X_OK)
  if shutil.which('shellcheck'):
    subprocess.run(['shellcheck', '--external-sources', path], check=True)


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_files_stay_thin_and_say_whether_they_ran_on_hardware(path):
  lines = path.read_text().splitlines()
  assert len(lines) <= 90
  assert any('Not run on hardware' in line for line in lines[:20]) == (path.name not in RUN_HERE)


def test_readme_names_every_file_and_no_other():
  text = (LAUNCH / 'README.md').read_text()
  named = re.findall(r'`([\w.]+\.(?:sh|sbatch|yaml|dockerignore)|Dockerfile)`', text)
  assert set(named) == {path.name for path in FILES} - {'README.md'}


@pytest.mark.parametrize('path', FILES, ids=name_of)
def test_flags_and_configs_exist(path):
  values = flags.FlagValues()
  train.define_flags(values, ['train'])
  text = path.read_text().replace('\\\n', ' ')
  passed = re.findall(r'(?:earl_jax\.train|train\.sh|slurm\.sbatch|tpu_vm\.sh) (.*)', text)
  assert passed or path not in [*MANIFESTS, *TASKS, LAUNCH / 'slurm.sbatch', LAUNCH / 'tpu_vm.sh', LAUNCH / 'README.md']
  for flag in re.findall(r'--([\w.]+)', ' '.join(passed)):
    assert flag in values or flag.startswith('config.'), flag
  for config in re.findall(r'configs/\w+\.py', text):
    assert (ROOT / config).is_file(), config
  for field in re.findall(r'--config\.([a-z_.]+)\b', text):
    assert field in config_lib.default_config(), field


@pytest.mark.parametrize('path', SCRIPTS, ids=name_of)
def test_unset_variables_are_named(path, stub):
  for variable in re.findall(r'"\$\{(\w+):\?', path.read_text()):
    environment = stub('nothing', **dict.fromkeys(('TPU_NAME', 'ZONE', 'PROJECT', 'BUCKET', 'EXTRA'), 'x'))
    result = run([path], {k: v for k, v in environment.items() if k != variable})
    assert result.returncode != 0 and f'{variable}: set {variable} to' in result.stderr


# env.sh and train.sh

def environment_of(environment, **variables):
  result = run(['bash', '-c', 'set -eu; source launch/env.sh; source launch/env.sh; env'], environment | variables)
  assert result.returncode == 0, result.stderr
  return dict(line.split('=', 1) for line in result.stdout.splitlines() if '=' in line)


def test_every_setting_has_its_reason_above_it():
  lines = (LAUNCH / 'env.sh').read_text().splitlines()
  settings = [i for i, line in enumerate(lines) if re.match(r'\s*(flag [A-Z]|(\[\[.*\|\| )?export )', line)]
  assert len(settings) >= 12
  for i in settings:
    above = lines[i - 1] if not lines[i - 1].strip().startswith(('if', 'elif')) else lines[i - 2]
    assert above.strip().startswith('# '), lines[i]


def test_environment_keeps_what_the_user_has_set(stub):
  mine = {
      'JAX_PLATFORMS': 'cuda', 'SHARED_DIR': '/shared', 'PYTHONUNBUFFERED': '0', 'JAX_COMPILATION_CACHE_DIR': '/mine',
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '3', 'XLA_PYTHON_CLIENT_MEM_FRACTION': '.5',
      'XLA_FLAGS': '--xla_gpu_enable_latency_hiding_scheduler=false --xla_gpu_deterministic_ops=true',
  }
  seen = environment_of(stub('nothing'), **mine)
  assert {k: seen[k] for k in mine} == mine
  assert 'XLA_CLIENT_MEM_FRACTION' not in seen  # JAX refuses both
  mine = {'JAX_PLATFORMS': 'tpu', 'LIBTPU_INIT_ARGS': '--xla_enable_async_all_gather=false --mine=1'}
  seen = environment_of(stub('nothing'), **mine)
  assert seen['LIBTPU_INIT_ARGS'].endswith(mine['LIBTPU_INIT_ARGS'])
  assert seen['LIBTPU_INIT_ARGS'].count('xla_enable_async_all_gather=') == 1


def test_environment_per_platform(stub):
  cpu = environment_of(stub('nothing'), JAX_PLATFORMS='cpu')
  assert not {'XLA_FLAGS', 'LIBTPU_INIT_ARGS', 'JAX_COMPILATION_CACHE_DIR'} & set(cpu)  # earl_jax chooses them
  gpu = environment_of(stub('nothing'), JAX_PLATFORMS='cuda,cpu', SHARED_DIR='/shared')
  assert gpu['XLA_CLIENT_MEM_FRACTION'] == '0.9' and gpu['JAX_COMPILATION_CACHE_DIR'] == '/shared/jax_cache'
  tpu = environment_of(stub('nothing'), JAX_PLATFORMS='tpu')
  assert tpu['LIBTPU_INIT_ARGS'].count('=true') == 5 and 'XLA_FLAGS' not in tpu


def test_installed_xla_knows_the_flags(stub):
  gpu = environment_of(stub('nothing'), JAX_PLATFORMS='cuda')
  command = [sys.executable, '-c', 'import jax; jax.devices()']
  assert run(command, gpu | {'JAX_PLATFORMS': 'cpu'}).returncode == 0
  assert run(command, gpu | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_gpu_no_such=1'}).returncode != 0


@pytest.mark.parametrize('status', [0, 2, 75])
def test_train_passes_arguments_and_status_through(stub, status):
  environment = stub('python', f'exit {status}')
  assert run(['launch/train.sh', '--config=a b', '--workdir=w', '--distributed'], environment).returncode == status
  assert calls(environment) == ['python -m earl_jax.train --config=a b --workdir=w --distributed']


@pytest.mark.parametrize('arguments', [[], ['--config=a'], ['--workdir=w'], ['config=a', '--workdir=w']])
def test_train_says_how_to_use_it(stub, arguments):
  result = run(['launch/train.sh', *arguments], stub('python'))
  assert result.returncode == 2 and result.stderr.startswith('usage: launch/train.sh --config=')


# local_multiprocess.sh

def local(processes, devices, *command):
  return ['launch/local_multiprocess.sh', str(processes), str(devices), *command]


def test_processes_join_through_jax(stub):
  program = (
      'import os, jax; n, i = (int(os.environ[k]) for k in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"));'
      'jax.distributed.initialize(num_processes=n, process_id=i);'
      'print(jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count())'
  )
  result = run(local(2, 2, sys.executable, '-c', program), stub('nothing'))
  assert result.returncode == 0, result.stdout + result.stderr
  assert {'[0] 0 2 2 4', '[1] 1 2 2 4'} <= set(result.stdout.splitlines())


def test_lines_carry_their_process_and_flags_are_kept(stub):
  environment = stub('python', 'echo "$XLA_FLAGS"; echo two >&2', XLA_FLAGS='--mine=1')
  result = run(local(2, 3, *'launch/train.sh --config=a --workdir=w --distributed'.split()), environment)
  line = '--mine=1 --xla_force_host_platform_device_count=3'
  assert sorted(result.stdout.splitlines()) == [f'[0] {line}', '[0] two', f'[1] {line}', '[1] two']
  assert calls(environment) == ['python -m earl_jax.train --config=a --workdir=w --distributed'] * 2


def test_first_failure_is_the_status_and_ends_the_others(stub):
  began = time.monotonic()
  body = 'if [[ $JAX_PROCESS_ID == 1 ]]; then exit 7; fi; exec sleep 60'
  result = run(local(3, 1, 'python'), stub('python', body, GRACE='1'))
  assert result.returncode == 7 and 'process 1 ended with status 7' in result.stderr
  assert time.monotonic() - began < 30


def test_a_process_that_finishes_early_ends_no_other(stub):
  body = 'if [[ $JAX_PROCESS_ID == 1 ]]; then exit 0; fi; sleep 2; echo late'
  result = run(local(2, 1, 'python'), stub('python', body, GRACE='0'))
  assert (result.returncode, result.stdout) == (0, '[0] late\n')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_all_and_all_may_save(stub, number):
  # The second takes longer over its save than the first, and is not cut short.
  body = 'trap \'sleep "0.$((JAX_PROCESS_ID * 5))"; echo saved; exit 75\' TERM; echo up; while :; do sleep 0.05; done'
  environment = stub('python', body)
  process = subprocess.Popen(
      local(2, 1, 'python'), cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True,
      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background inherit a deaf ear
  )
  try:
    ups = [process.stdout.readline(), process.stdout.readline()]
    assert sorted(ups) == ['[0] up\n', '[1] up\n']
    process.send_signal(number)
    rest, _ = process.communicate(timeout=30)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
  assert process.returncode == 75 and sorted(rest.splitlines()) == ['[0] saved', '[1] saved']


@pytest.mark.parametrize('arguments', [[], ['2', '2'], ['0', '1', 'x'], ['2', 'x', 'x']])
def test_local_multiprocess_says_how_to_use_it(stub, arguments):
  result = run(['launch/local_multiprocess.sh', *arguments], stub('nothing'))
  assert result.returncode == 2 and 'usage: ' in result.stderr


# Slurm, TPU VMs

@pytest.mark.parametrize('status', [0, 1, 2, 75])
def test_slurm_puts_a_stopped_run_back_into_the_queue(stub, status):
  stub('scontrol')
  environment = stub('srun', f'echo $JAX_LOCAL_DEVICE_IDS; exit {status}', SLURM_JOB_ID='5', SLURM_GPUS_ON_NODE='4')
  result = run(['bash', 'launch/slurm.sbatch', '--config=a', '--workdir=w'], environment)
  assert (result.returncode, result.stdout) == (status, '0,1,2,3\n')  # all GPUs, not only the task's own
  started, *rest = calls(environment)
  assert started == 'srun --wait=60 launch/train.sh --config=a --workdir=w --distributed'
  assert rest == (['scontrol requeue 5'] if status == 75 else [])


def test_slurm_signals_the_tasks_before_the_time_is_up():
  options = re.findall(r'^#SBATCH (\S+)$', (LAUNCH / 'slurm.sbatch').read_text(), flags=re.MULTILINE)
  assert {'--requeue', '--signal=TERM@120', '--ntasks-per-node=1', '--open-mode=append'} <= set(options)


GCLOUD = """
case "$4 $*" in
  describe*) echo "$STATE" ;;
  ssh*train.sh*) status=$(head -n1 "$STATUSES"); sed -i 1d "$STATUSES"; exit "$status" ;;
esac"""


@pytest.mark.parametrize('state, made', [('', ['create']), ('READY', []), ('PREEMPTED', ['delete', 'create'])])
def test_tpu_vm_uses_or_makes_the_slice_and_starts_a_stopped_run_again(stub, tmp_path, state, made):
  statuses = tmp_path / 'statuses'
  statuses.write_text('75\n2\n')
  stub('sleep')
  variables = dict(STATE=state, STATUSES=str(statuses), TPU_NAME='t', ZONE='z', PROJECT='p', BUCKET='b')
  environment = stub('gcloud', GCLOUD, **variables)
  result = run(['launch/tpu_vm.sh', '--config=configs/sort4.py', '--workdir=/shared/a b'], environment)
  assert result.returncode == 2, result.stderr
  lines = [line for line in calls(environment) if line.startswith('gcloud')]
  kinds = [line.split()[4] for line in lines]
  assert kinds == ['describe', *made, 'scp', 'ssh', 'ssh'] * 2
  assert all('--zone=z' in line and '--project=p' in line for line in lines)
  started = [line for line in lines if 'launch/train.sh' in line]
  assert len(started) == 2
  assert started[0].endswith(r'train.sh --config=configs/sort4.py --workdir=/shared/a\ b  --distributed')


# Manifests

def fill(path, environment):
  result = run(['launch/gke.sh', path], environment)
  assert result.returncode == 0, result.stderr
  return yaml.safe_load(result.stdout)


KUBECTL = 'if [[ $1 == get ]]; then echo -n "$ENDED"; elif [[ $1 == apply ]]; then cat; fi'
REQUIRED = {'NAME': 'sort', 'IMAGE': 'registry/image:1', 'BUCKET': 'bucket'}


@pytest.mark.parametrize('path', MANIFESTS, ids=name_of)
def test_manifest_restarts_a_stopped_run_and_ends_a_mistake(stub, path):
  environment = stub('kubectl', KUBECTL, ENDED='', FLAGS='--config.seed=1 &', **REQUIRED)
  manifest = fill(path, environment)
  assert '${' not in yaml.dump(manifest)
  assert (manifest['apiVersion'], manifest['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
  policy = manifest['spec']['failurePolicy']
  assert policy['maxRestarts'] > 0
  assert [(r['action'], r['onJobFailureReasons']) for r in policy['rules']] == [('FailJobSet', ['PodFailurePolicy'])]
  (job,) = (j['template']['spec'] for j in manifest['spec']['replicatedJobs'])
  assert job['completions'] == job['parallelism'] and isinstance(job['completions'], int)
  assert job['completionMode'] == 'Indexed' and job['backoffLimit'] == 0
  pod = job['template']['spec']
  (container,) = pod['containers']
  (rule,) = job['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes'] == {'containerName': container['name'], 'operator': 'In', 'values': [2]}
  assert pod['restartPolicy'] == 'Never'  # a podFailurePolicy asks for it
  assert {m['name'] for m in container['volumeMounts']} == {v['name'] for v in pod['volumes']}
  assert container['args'] == [
      'exec launch/train.sh --config=configs/sort4.py --workdir=/shared/sort --distributed --config.seed=1 &'
  ]


@pytest.mark.parametrize('path', MANIFESTS, ids=name_of)
def test_manifest_names_its_variables(stub, path):
  header, body = path.read_text().split('apiVersion')
  assert set(re.findall(r'\$\{(\w+)\}', body)) == set(re.findall(r'^#   ([A-Z_]+)  ', header, flags=re.MULTILINE))
  for missing in REQUIRED:
    environment = stub('kubectl', KUBECTL, **{k: v for k, v in REQUIRED.items() if k != missing})
    result = run(['launch/gke.sh', path], environment)
    assert result.returncode == 2 and f'{missing} is not set' in result.stderr


@pytest.mark.parametrize('ended', ['', 'Completed', 'Failed'])
def test_a_job_that_ended_starts_anew_and_one_that_runs_is_left_alone(stub, ended):
  environment = stub('kubectl', KUBECTL, ENDED=ended, **REQUIRED)
  fill(MANIFESTS[0], environment)
  assert [c.split()[1] for c in calls(environment)] == ['get', *(['delete'] if ended else []), 'apply']


def test_gpu_pods_find_each_other():
  (job,) = yaml.safe_load((LAUNCH / 'gke_gpu.yaml').read_text())['spec']['replicatedJobs']
  variables = {v['name'] for v in job['template']['spec']['template']['spec']['containers'][0]['env']}
  assert {'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID'} <= variables


@pytest.mark.parametrize('path', TASKS, ids=name_of)
def test_task_recovers_and_keeps_its_workdir(stub, path):
  task = yaml.safe_load(path.read_text())
  recovery = task['resources']['job_recovery']
  assert task['resources']['use_spot'] is True
  assert (recovery['recover_on_exit_codes'], recovery['max_restarts_on_errors']) == ([75], 0)
  assert task['file_mounts']['/shared'] | {'store': ''} == {'name': '${BUCKET}', 'mode': 'MOUNT', 'store': ''}
  assert task['envs'].pop('BUCKET') is None  # SkyPilot asks for it
  variables = dict(SKYPILOT_NODE_IPS='10.0.0.1\n10.0.0.2', SKYPILOT_NUM_NODES='2', SKYPILOT_NODE_RANK='1')
  variables |= task['envs'] | {'FLAGS': '--config.seed=1 --config.steps=2'}
  environment = stub('python', 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"', **variables)
  script = re.sub(r'PYTHON=\S+', 'PYTHON=python', task['run'])
  result = run(['bash', '-c', script], environment)
  assert result.returncode == 0, result.stderr
  assert result.stdout.strip() == ('10.0.0.1:8476 2 1' if 'gpu' in path.name else '')
  assert calls(environment) == [
      'python -m earl_jax.train --config=configs/sort4.py --workdir=/shared/sort4 --distributed '
      '--config.seed=1 --config.steps=2'
  ]


def test_image_installs_an_extra_that_exists_and_runs_as_a_user():
  text = (LAUNCH / 'Dockerfile').read_text()
  extras = re.search(r'case "\$extra" in ([a-z|]+)\)', text).group(1).split('|')
  setup = (ROOT / 'setup.cfg').read_text()
  assert all(extra == 'cpu' or f'\n{extra} = ' in setup for extra in extras) and 'cuda' in extras
  assert text.index('USER earl') < text.index('ENTRYPOINT ["launch/train.sh"]')
  assert not re.search(r'USER root', text)
