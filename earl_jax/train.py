"""Trains a policy.

  python -m earl_jax.train --config=configs/sort4.py --workdir=runs/sort4 [--config.seed=1 ...]

The same command resumes a run that was stopped or killed, as if nothing had happened. SIGTERM and Ctrl-C save a
checkpoint after the step in progress and exit with status 0, and so does the end of the terminal (SIGHUP); a second one
ends at once, and so does the first while there is nothing to save. With --distributed the status is 75 then, for the
engine that runs the job to start it again. Exit status 2: something in the command or the config has to be fixed, and
one line says what.

An update that is not finite is not applied. Where they come several steps in a row the run ends with status 2; its
newest checkpoint is from before them. Only one run at a time can use a workdir; other programs may read there.

The workdir holds config.json and versions.json (what the run is), metrics.jsonl, what the trackers keep there,
samples/, checkpoints/ and, at the end, evaluation.json.
"""

import contextlib
import itertools
import os
import pathlib
import sys
import time
from typing import NamedTuple

from absl import flags
import jax

from earl_jax.acting import policy
from earl_jax.config import Config, UserError
from earl_jax.config.paths import local_path
from earl_jax.devices import processes
from earl_jax.learning.update import TrainState
from earl_jax.run import cli, first_rates, measure
from earl_jax.run.checkpoint import Checkpointer, keep_reference, restore_reference
from earl_jax.run.collect import collect
from earl_jax.run.experiment import Experiment
from earl_jax.run.learner import Learner
from earl_jax.run.memory import fitted
from earl_jax.run.metrics import MetricsWriter
from earl_jax.run.preparation import set_up
from earl_jax.run.problems import draw
from earl_jax.run.progress import Progress
from earl_jax.run.samples import first_drawn, look_at, write_samples
from earl_jax.run.stop_signal import StopSignal
from earl_jax.run.trackers import require_trackers
from earl_jax.run.workdir import claim_workdir, hold_workdir, require_written_by

__all__ = ['train']

PATIENCE = 5  # steps in a row that may have an update that is not finite


class Trained(NamedTuple):
  """What `train` leaves: the experiment, its policy and state, and whether a signal stopped it before its end."""

  experiment: Experiment
  params: policy.Params
  state: TrainState
  stopped: bool


def train(config: Config, workdir: str | pathlib.Path) -> Trained:
  """Trains, or goes on training, the run in `workdir`, until the end, until it is solved, or until a signal.

  Args:
    config: what `config.parse` returns. A resumed run may change the fields in `workdir.CHANGEABLE`.
    workdir: created if need be.

  Raises:
    UserError: the config cannot be carried out, the workdir belongs to another run, is in use or cannot be used, or the
      policy's numbers are not finite any more.
  """
  if jax.process_index() == 0:
    require_trackers(config.trackers)
  workdir = local_path(workdir, 'workdir')
  experiment, params = set_up(config)
  experiment = fitted(experiment)
  learner = Learner(experiment, params)

  with hold_workdir(workdir):
    claim_workdir(workdir, config, experiment.environment_versions, experiment.modules, experiment.actions)
    frozen = policy.split(params)[1]
    with Checkpointer(workdir, frozen=frozen) as checkpointer, StopSignal() as stop:
      progress, state, written = begin_or_resume(experiment, learner, checkpointer, params, workdir)
      del params  # the first update donates their buffers
      columns = measure.columns_of(experiment.goal)
      if not progress.over(config):
        learner.compile_beside()
      saved, broken, due, stopped = progress.step, 0, False, False
      with MetricsWriter(workdir, config, progress.step, columns, written) as writer:
        while not progress.over(config) and not stopped:
          began, step, stage = time.monotonic(), progress.step, progress.stage_of(config)

          # Problems.
          problems = draw(experiment, progress.curriculum.stage, step)

          # Rollouts.
          params = learner.policy_of(state)
          experience = collect(experiment, params, problems, progress)
          if step % config.sample_every == 0:  # before the update takes the parameters
            samples = look_at(experiment, params, learner.reference, problems, experience)
            write_samples(workdir, step, samples)

          # Learning.
          state, learned = learner.update(state, experience, stage, step)
          seconds = time.monotonic() - began
          broken = broken + 1 if learned['broken_updates'] else 0
          if broken == PATIENCE:
            raise not_finite(workdir, progress.step, saved)

          # Progress.
          metrics = {'stage': progress.curriculum.stage} | experience.metrics | learned
          progress = progress.after(experiment, experience.exact_match, experience.interventions)
          if stage.imitate and not progress.stage_of(config).imitate and config.algorithm.kl:
            learner.refer_to(state.params)
            keep_reference(workdir, progress.step, state.params)
          if progress.step % config.evaluate_every == 0:
            solved, measured = evaluate(experiment, learner.policy_of(state))
            metrics |= measured
            solved &= progress.curriculum.stage + 1 == len(experiment.stages)
            progress = progress._replace(solved=(progress.solved + 1) * solved)

          # Report.
          metrics |= {'seconds': seconds, 'tokens_per_second': metrics['tokens'] / seconds}
          writer.write(step, metrics)
          if step % config.sample_every == 0:
            writer.log_samples(step, [sample['text'] for sample in samples], first_drawn(experiment, experience))

          # Save; what is broken only once it is sound again.
          stopped = stop.reached(progress.step)
          due |= stopped or progress.over(config) or progress.step % config.checkpoint_every == 0
          if due and not broken:
            checkpointer.save(progress.step, state, progress.to_meta(config) | {'metrics': writer.written})
            saved, due = progress.step, False

    if stopped:
      tell(f'stopped, {saved} of {config.steps} steps saved in {workdir}; the same command goes on from there')
    else:
      if broken:
        raise not_finite(workdir, progress.step - 1, saved)
      final_evaluation(experiment, learner.policy_of(state), progress, workdir)
  return Trained(experiment, learner.policy_of(state), state, stopped)


def not_finite(workdir: str | pathlib.Path, step: int, saved: int) -> UserError:
  """What ends a run whose updates up to `step` (from 0) are not finite, with its newest checkpoint of `saved` steps."""
  kept = f'the checkpoint of {saved} steps is from before that' if saved else 'nothing is saved'
  return UserError(
      f'{workdir}: loss, gradient or parameters are not finite at step {step} and before; {kept}; choose a lower '
      'config.optimizer.learning_rate, and another --workdir'
  )


def begin_or_resume(
    experiment: Experiment, learner: Learner, checkpointer: Checkpointer, params: policy.Params,
    workdir: str | pathlib.Path,
) -> tuple[Progress, TrainState, list[int] | None]:
  """The run as its newest checkpoint has it or, where there is none, at its beginning; and its metrics' checksum.

  Raises:
    UserError: there are checkpoints, but none that this run can go on from.
  """
  config = experiment.config
  restored = checkpointer.restore(learner.abstract)
  if restored is None:
    if config.action_floor or config.route_lead > 1:
      tell('compiling, and playing some episodes: how often are actions taken at first?')
      params, rare = first_rates.lifted(experiment, params)
      if config.action_floor:
        tell(f'config.action_floor={config.action_floor:g}: ' + first_rates.report(rare))
    return Progress.first(experiment.interface.space.num_environments), learner.begin(params), None
  step, state, meta = restored
  require_written_by(pathlib.Path(workdir, 'checkpoints', str(step)), meta.get('config'), config)
  progress = Progress.from_meta(config, step, meta)
  stages = config.curriculum[: progress.curriculum.stage + 1]
  if config.algorithm.kl and any(a.imitate and not b.imitate for a, b in itertools.pairwise(stages)):
    learner.refer_to(restore_reference(workdir, step, learner.abstract.params))
  return progress, state, meta.get('metrics')


def evaluate(experiment: Experiment, params: policy.Params) -> tuple[bool, dict[str, float]]:
  """Plays the tasks of the last stage greedily: whether all is solved, and metrics."""
  results = measure.evaluate_policy(
      experiment, params, experiment.goal, samples=experiment.config.evaluation_prompts
  )
  metrics = {
      f'eval/{task.label}/{name}': results[task.label][name]
      for task in experiment.goal
      for name in ('exact_match', *task.reported)
      if name in results[task.label]
  }
  return measure.is_solved(experiment.goal, results), metrics


def final_evaluation(
    experiment: Experiment, params: policy.Params, progress: Progress, workdir: str | pathlib.Path
) -> None:
  """Measures the policy at the end of its run, prints that, and writes it to the workdir."""
  config, step = experiment.config, progress.step
  count = config.evaluation_prompts
  results = measure.evaluate_policy(experiment, params, experiment.goal, samples=count)
  measure.add_references(experiment, experiment.goal, results, count)
  for result in results.values():
    result['step'] = step
  tell(f'{workdir}, after {step} steps\n{measure.table(experiment.goal, results)}')
  if progress.stops_early(config):
    tell(
        f'\nsolved in {progress.solved} evaluations in a row, {config.steps - step} steps early; the same command with '
        '--config.stop_at_solved=False goes on, to solve them with fewer calls'
    )
  measure.write_evaluation(workdir, experiment.goal, results)


def tell(text: str) -> None:
  """Prints, once in all processes; ignores a closed stdout."""
  if jax.process_index() == 0:
    with contextlib.suppress(OSError):
      print(text, flush=True)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  cli.define_config(values, argv)
  flags.DEFINE_string(
      'workdir', None, 'Folder of the run, new or to be resumed; runs/<name of the config file> by default.',
      flag_values=values,
  )
  flags.DEFINE_bool(
      'distributed', False, 'Join the other processes of this job first. Slurm, Open MPI, Kubernetes and TPU pods are '
      'recognised; elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.', flag_values=values,
  )


def main(values: flags.FlagValues) -> int:
  path, config = cli.read_config(values)
  cli.prepare_jax(config)
  if values.distributed:
    processes.join()
  trained = train(config, pathlib.Path(values.workdir or pathlib.Path('runs', path.stem)))
  return os.EX_TEMPFAIL if trained.stopped and values.distributed else 0


if __name__ == '__main__':
  sys.exit(cli.start(main, define_flags))
