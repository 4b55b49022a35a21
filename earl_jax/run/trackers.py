"""Services that show runs, behind one protocol. Those of `config.trackers` get a run's metrics, samples and pictures.

    tensorboard   event files in the workdir
    wandb         Weights & Biases; WANDB_PROJECT, WANDB_MODE=offline, WANDB_DIR are its own settings
    trackio       Trackio, in its folder or, with TRACKIO_SPACE_ID, in a Hugging Face space
    mlflow        MLflow, at MLFLOW_TRACKING_URI or in a database in the folder of the command

workdir/run_id names the run there: a resumed run goes on in the same one. Steps that are run again after a kill are
reported again, with the values they had. A run that ended before its first step has reported nothing: the next in its
workdir, which may have a corrected config, has a name of its own.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib
import operator
import os
import pathlib
import re
import sys
import time
from typing import Protocol
import uuid

import numpy as np
from tensorboardX import summary

from earl_jax.config import Config, UserError
from earl_jax.config.errors import one_line
from earl_jax.run.events import EventFile
from earl_jax.run.workdir import write_atomically

__all__ = ['open_trackers', 'require_trackers', 'Tracker', 'Trackers']

PROJECT = 'earl_jax'


class Tracker(Protocol):
  """One run at one service."""

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    """Takes the numbers of a step; NaN and infinities are among them."""

  def log_samples(self, step: int, samples: Sequence[str]) -> None:
    """Takes rollouts as text. They are what a model wrote: they must not be read as markup."""

  def log_picture(self, step: int, name: str, path: pathlib.Path) -> None:
    """Takes a PNG file. `name` is the same at every step."""

  def close(self) -> None:
    """Sends what is left."""


@dataclasses.dataclass(frozen=True)
class Run:
  """What a tracker is opened with.

  Attributes:
    workdir: the run's folder, by whose name it is shown.
    id: what tells it from all other runs, as letters and digits.
    config: the run's.
    resume_step: the first step that will be logged.
  """

  workdir: pathlib.Path
  id: str
  config: Config
  resume_step: int


class TensorBoard:
  """Event files beside metrics.jsonl."""

  module = 'tensorboardX'

  @staticmethod
  def lacks() -> str:
    return ''

  def __init__(self, run: Run):
    self._events = EventFile(run.workdir, run.resume_step)

  def log(self, step, metrics):
    for name, value in metrics.items():
      self._events.add(summary.scalar(name, np.float32(value)), step)

  def log_samples(self, step, samples):
    for i, sample in enumerate(samples):  # indented: Markdown shows it as it stands
      text = '\n'.join(f'    {line}' for line in sample.splitlines())
      self._events.add(summary.text(f'samples/{i}', text), step)

  def log_picture(self, step, name, path):
    import matplotlib.image

    self._events.add(summary.image(name, matplotlib.image.imread(path), dataformats='HWC'), step)

  def close(self):
    self._events.close()


class WeightsAndBiases:
  """A run of Weights & Biases, found again by its id."""

  module = 'wandb'

  @staticmethod
  def lacks() -> str:
    import wandb

    online = wandb.setup().settings.mode == 'online'
    if online and not wandb.login(prompt=False, verify=False):
      return 'not logged in; call `wandb login`, or set WANDB_API_KEY or WANDB_MODE=offline'
    return ''

  def __init__(self, run: Run):
    import wandb

    self._wandb = wandb
    self._run = wandb.init(
        project=os.environ.get('WANDB_PROJECT', PROJECT), name=run.workdir.name, id=run.id, resume='allow',
        config=dataclasses.asdict(run.config),
    )
    # Its own steps only rise; a run that was killed goes back a little.
    self._run.define_metric('*', step_metric='step')

  def log(self, step, metrics):
    self._run.log({'step': step} | dict(metrics))

  def log_samples(self, step, samples):
    rows = [[i, sample] for i, sample in enumerate(samples)]
    self._run.log({'step': step, 'samples': self._wandb.Table(columns=['sample', 'text'], data=rows)})

  def log_picture(self, step, name, path):
    self._run.log({'step': step, name: self._wandb.Image(str(path))})

  def close(self):
    self._run.finish()


class Trackio:
  """A run of Trackio, found again by its name."""

  module = 'trackio'

  @staticmethod
  def lacks() -> str:
    import huggingface_hub

    space = os.environ.get('TRACKIO_SPACE_ID')
    if space and not huggingface_hub.get_token():
      return f'not logged in to Hugging Face, for TRACKIO_SPACE_ID={space}; call `hf auth login`, or unset it'
    return ''

  def __init__(self, run: Run):
    import trackio

    self._trackio = trackio
    self._run = trackio.init(
        project=os.environ.get('TRACKIO_PROJECT', PROJECT), name=f'{run.workdir.name}-{run.id}', resume='allow',
        config=dataclasses.asdict(run.config), embed=False, auto_log_cpu=False,
    )

  def log(self, step, metrics):
    self._run.log(dict(metrics), step=step)

  def log_samples(self, step, samples):
    rows = [[i, sample] for i, sample in enumerate(samples)]
    self._run.log({'samples': self._trackio.Table(columns=['sample', 'text'], data=rows)}, step=step)

  def log_picture(self, step, name, path):
    self._run.log({name: self._trackio.Image(str(path))}, step=step)

  def close(self):
    self._run.finish()


class MLflow:
  """A run of MLflow, found again by a tag."""

  module = 'mlflow'
  TAG = 'earl_jax.run'

  @staticmethod
  def lacks() -> str:
    import mlflow

    retries = 'MLFLOW_HTTP_REQUEST_MAX_RETRIES'
    before = os.environ.get(retries)
    os.environ[retries] = '0'  # its own seven last for minutes
    try:
      mlflow.MlflowClient().search_experiments(max_results=1)
    except Exception as error:
      return f'{mlflow.get_tracking_uri()} does not answer ({one_line(error)}); set MLFLOW_TRACKING_URI'
    finally:
      os.environ.pop(retries)
      os.environ |= {} if before is None else {retries: before}
    return ''

  def __init__(self, run: Run):
    import mlflow

    self._metric, self._client = mlflow.entities.Metric, mlflow.MlflowClient()
    name = os.environ.get('MLFLOW_EXPERIMENT_NAME', PROJECT)
    experiment = self._client.get_experiment_by_name(name)
    experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
    found = self._client.search_runs([experiment_id], f"tags.`{self.TAG}` = '{run.id}'")
    if found:
      self._id = found[0].info.run_id
      self._client.update_run(self._id, 'RUNNING')
    else:
      self._id = self._client.create_run(experiment_id, tags={self.TAG: run.id}, run_name=run.workdir.name).info.run_id
      self._client.log_dict(self._id, dataclasses.asdict(run.config), 'config.json')

  def log(self, step, metrics):
    now = int(time.time() * 1000)
    named = [(re.sub(r'[^\w\-. :/]', '_', name), value) for name, value in metrics.items()]  # it takes no others
    self._client.log_batch(self._id, [self._metric(name, value, now, step) for name, value in named])

  def log_samples(self, step, samples):
    text = ''.join(f'===== sample {i} =====\n{sample}\n' for i, sample in enumerate(samples))
    self._client.log_text(self._id, text, f'samples/step_{step:06d}.txt')

  def log_picture(self, step, name, path):
    self._client.log_artifact(self._id, str(path), 'pictures')

  def close(self):
    self._client.set_terminated(self._id)


SERVICES = {'tensorboard': TensorBoard, 'wandb': WeightsAndBiases, 'trackio': Trackio, 'mlflow': MLflow}


class Trackers:
  """Passes everything on to the trackers of a run. One that fails is reported once and left out from then on.

  A run does not end because a service is down: metrics.jsonl has it all.
  """

  def __init__(self, trackers: Mapping[str, Tracker]):
    """`trackers`: by name."""
    self._trackers = dict(trackers)

  def __bool__(self):
    return bool(self._trackers)

  def log(self, step: int, metrics: Mapping[str, float]) -> None:
    self._each(operator.methodcaller('log', step, metrics))

  def log_samples(self, step: int, samples: Sequence[str]) -> None:
    self._each(operator.methodcaller('log_samples', step, samples))

  def log_picture(self, step: int, name: str, path: pathlib.Path) -> None:
    self._each(operator.methodcaller('log_picture', step, name, path))

  def close(self) -> None:
    self._each(operator.methodcaller('close'))

  def _each(self, call: Callable[[Tracker], None]) -> None:
    for name, tracker in list(self._trackers.items()):
      try:
        call(tracker)
      except Exception as error:  # whatever a service comes up with
        del self._trackers[name]
        print(f'warning: {name} failed ({one_line(error)}); this run goes on without it, resume to try again',
              file=sys.stderr)


def require_trackers(names: Sequence[str]) -> None:
  """Checks, before a run claims or computes anything, that its trackers can be used.

  Raises:
    UserError: one is not installed, not logged in, or does not answer.
  """
  for name in names:
    try:
      importlib.import_module(SERVICES[name].module)
    except ImportError as error:
      raise UserError(
          f"config.trackers={tuple(names)}: {name} cannot be imported ({one_line(error)}); "
          f"pip install 'earl_jax[{name}]', or leave it out"
      ) from None
    lacking = SERVICES[name].lacks()
    if lacking:
      raise UserError(f'config.trackers={tuple(names)}: {name}: {lacking}, or leave it out')


def open_trackers(workdir: pathlib.Path, config: Config, resume_step: int) -> Trackers:
  """The trackers of `config.trackers`, each with this run, new or gone on with.

  Raises:
    UserError: one cannot be opened.
  """
  opened = {}
  for name in dict.fromkeys(config.trackers):
    try:
      opened[name] = SERVICES[name](Run(workdir, _run_id(workdir, resume_step), config, resume_step))
    except Exception as error:
      Trackers(opened).close()
      raise UserError(
          f'config.trackers={config.trackers}: {name} could not be opened ({one_line(error)}); fix that, or leave it '
          'out: the same command goes on from here'
      ) from error
  return Trackers(opened)


def _run_id(workdir: pathlib.Path, resume_step: int) -> str:
  path, metrics = workdir / 'run_id', workdir / 'metrics.jsonl'
  unreported = not resume_step and not (metrics.exists() and metrics.stat().st_size)
  if unreported or not path.exists():
    write_atomically(path, uuid.uuid4().hex[:12])
  return path.read_text(encoding='utf-8').strip()
