"""A run that was saved, as programs that read one need it."""

import os
import pathlib

from earl_jax.acting import policy
from earl_jax.config import Config, UserError
from earl_jax.learning.update import abstract_state, make_optimizer
from earl_jax.run.checkpoint import Checkpointer
from earl_jax.run.experiment import Experiment, set_up
from earl_jax.run.workdir import look_in_modules, require_written_by

__all__ = ['load']


def load(workdir: str | os.PathLike, config: Config) -> tuple[Experiment, policy.Params, int]:
  """The experiment of a run, the parameters of its newest checkpoint and how many steps they were trained.

  Modules of its tasks and environments are also looked for where training found them.

  Args:
    config: what `workdir.read_config` gives.

  Raises:
    UserError: no checkpoint, or none that is readable, or the newest was written under another config.
  """
  look_in_modules(workdir)
  experiment, params = set_up(config)
  with Checkpointer(workdir, read_only=True) as checkpointer:
    restored = checkpointer.restore(abstract_state(params, make_optimizer(config), experiment.mesh))
  if restored is None:
    raise UserError(f'--workdir={workdir}: no checkpoint there yet; train longer, or give another workdir')
  step, state, meta = restored
  require_written_by(pathlib.Path(workdir, 'checkpoints', str(step)), meta.get('config'), config)
  return experiment, state.params, step
