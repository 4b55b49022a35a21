"""Trains a policy.

  python -m earl_jax.train --config=configs/sort4.py --workdir=runs/sort4 [--config.seed=1 ...]

The same command resumes a run that was stopped or killed, as if nothing had happened. SIGTERM and Ctrl-C save a
checkpoint after the step in progress and exit with status 0; a second one ends at once. With --distributed the status
is 75 then, for the engine that runs the job to start it again. Exit status 2: something in the command or the config
has to be mended, and one line says what.

The workdir holds config.json and versions.json (what the run is), metrics.jsonl, what the trackers keep there,
samples/, checkpoints/ and, at the end, evaluation.json.
"""

import os
import pathlib
import sys
import time
from typing import NamedTuple

from absl import flags
import jax

from earl_jax.acting import policy
from earl_jax.config import Config
from earl_jax.devices import processes
from earl_jax.learning.update import TrainState
from earl_jax.run import cli, measure
from earl_jax.run.checkpoint import Checkpointer, keep_reference, restore_reference
from earl_jax.run.collect import collect
from earl_jax.run.experiment import Experiment, set_up
from earl_jax.run.learner import Learner
from earl_jax.run.metrics import MetricsWriter
from earl_jax.run.problems import draw
from earl_jax.run.progress import Progress
from earl_jax.run.samples import first_drawn, look_at, write_samples
from earl_jax.run.stop_signal import StopSignal
from earl_jax.run.trackers import require_trackers
from earl_jax.run.workdir import claim_workdir

__all__ = ['train']


class Trained(NamedTuple):
  """What `train` leaves: the experiment, its state, and whether a signal stopped it before its end."""

  experiment: Experiment
  state: TrainState
  stopped: bool


def train(config: Config, workdir: str | pathlib.Path) -> Trained:
  """Trains, or goes on training, the run in `workdir`, until the end, until it is solved, or until a signal.

  Args:
    config: what `config.parse` returns. A resumed run may change the fields in `workdir.CHANGEABLE`.
    workdir: created if need be.

  Raises:
    UserError: the config cannot be carried out, or the workdir belongs to another run or cannot be used.
  """
  if jax.process_index() == 0:
    require_trackers(config.trackers)
  experiment, params = set_up(config)
  claim_workdir(workdir, config, experiment.environment_versions, experiment.modules)
  learner = Learner(experiment, params)

  with Checkpointer(workdir) as checkpointer, StopSignal() as stop:
    progress, state = begin_or_resume(experiment, learner, checkpointer, params, workdir)
    del params  # the first update donates their buffers
    columns = measure.columns_of(experiment.goal)
    if not progress.over(config):
      learner.compile_beside()
    stopped = False
    with MetricsWriter(workdir, config, progress.step, columns) as writer:
      while not progress.over(config) and not stopped:
        began, step, stage = time.monotonic(), progress.step, progress.stage_of(config)

        # Problems.
        problems = draw(experiment, progress.curriculum.stage, step)

        # Rollouts.
        experience = collect(experiment, state.params, problems, progress)
        if step % config.sample_every == 0:  # before the update takes the parameters
          samples = look_at(experiment, state.params, learner.reference, problems, experience)
          write_samples(workdir, step, samples)

        # Learning.
        state, learned = learner.update(state, experience, stage, step)
        seconds = time.monotonic() - began

        # Progress.
        metrics = {'stage': progress.curriculum.stage} | experience.metrics | learned
        progress = progress.after(experiment, experience.exact_match, experience.interventions)
        if stage.imitate and not progress.stage_of(config).imitate and config.algorithm.kl:
          learner.refer_to(state.params)
          keep_reference(workdir, progress.step, state.params)
        if progress.step % config.evaluate_every == 0:
          solved, measured = evaluate(experiment, state.params)
          metrics |= measured
          solved &= progress.curriculum.stage + 1 == len(experiment.stages)
          progress = progress._replace(solved=(progress.solved + 1) * solved)

        # Report.
        metrics |= {'seconds': seconds, 'tokens_per_second': metrics['tokens'] / seconds}
        writer.write(step, metrics)
        if step % config.sample_every == 0:
          writer.log_samples(step, [sample['text'] for sample in samples], first_drawn(experiment, experience))

        # Save.
        stopped = stop.reached(progress.step)
        if stopped or progress.step % config.checkpoint_every == 0:
          checkpointer.save(progress.step, state, progress.to_meta(config))
      checkpointer.save(progress.step, state, progress.to_meta(config))

  if not stopped:
    text = final_table(experiment, state.params, progress.step, workdir)
    if progress.stops_early(config):
      text += (
          f'\n\nsolved in {progress.solved} evaluations in a row, {config.steps - progress.step} steps early; '
          'the same command with --config.stop_at_solved=False goes on, to solve them with fewer calls'
      )
  else:
    text = f'stopped, {progress.step} of {config.steps} steps saved in {workdir}; the same command goes on from there'
  if jax.process_index() == 0:
    print(text)
  return Trained(experiment, state, stopped)


def begin_or_resume(
    experiment: Experiment, learner: Learner, checkpointer: Checkpointer, params: policy.Params,
    workdir: str | pathlib.Path,
) -> tuple[Progress, TrainState]:
  """The run as its newest checkpoint has it or, where there is none, at its beginning.

  Raises:
    UserError: there are checkpoints, but none that this run can go on from.
  """
  config = experiment.config
  restored = checkpointer.restore(learner.abstract)
  if restored is None:
    return Progress.first(experiment.interface.space.num_environments), learner.begin(params)
  step, state, meta = restored
  progress = Progress.from_meta(config, step, meta)
  if config.algorithm.kl and any(stage.imitate for stage in config.curriculum[: progress.curriculum.stage]):
    learner.refer_to(restore_reference(workdir, learner.abstract.params))
  return progress, state


def evaluate(experiment: Experiment, params: policy.Params) -> tuple[bool, dict[str, float]]:
  """Plays the tasks of the last stage greedily: whether all is solved, and metrics."""
  results = measure.evaluate_policy(
      experiment, params, experiment.goal, samples=experiment.config.evaluation_prompts
  )
  metrics = {
      f'eval/{task.label}/{name}': results[task.label][name]
      for task in experiment.goal
      for name in dict.fromkeys(('exact_match', *(column.metric for column in task.columns), task.cost))
      if name in results[task.label]
  }
  return measure.is_solved(experiment.goal, results), metrics


def final_table(experiment: Experiment, params: policy.Params, step: int, workdir: str | pathlib.Path) -> str:
  """Measures the policy at the end of its run, writes that to the workdir, and gives it as text."""
  count = experiment.config.evaluation_prompts
  results = measure.evaluate_policy(experiment, params, experiment.goal, samples=count)
  measure.add_references(experiment, experiment.goal, results, count)
  for result in results.values():
    result['step'] = step
  measure.write_evaluation(workdir, experiment.goal, results)
  return f'{workdir}, after {step} steps\n{measure.table(experiment.goal, results)}'


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
