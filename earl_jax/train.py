"""Trains a policy.

  python -m earl_jax.train --config=configs/sort4.py --workdir=runs/sort4 [--config.seed=1 ...]

The same command resumes a run that was stopped or killed, as if nothing had happened. SIGTERM and Ctrl-C save a
checkpoint after the step in progress and exit with status 0; a second one ends at once. With --distributed the status
is 75 then, for the engine that runs the job to start it again. Exit status 2: something in the command or the config
has to be mended, and one line says what.

The workdir holds config.json and versions.json (what the run is), metrics.jsonl and TensorBoard events, samples/,
checkpoints/ and, at the end, evaluation.json.
"""

from concurrent import futures
import dataclasses
import functools
import os
import pathlib
import signal
import sys
import threading
import time
from typing import Any, NamedTuple

from absl import flags
import jax
from jax.experimental import multihost_utils
from ml_collections import config_flags
import numpy as np

from earl_jax import evaluate
from earl_jax.acting import policy
from earl_jax.acting.counterfactual import Interventions
from earl_jax.config import Config, UserError
from earl_jax.devices import processes, sharding
from earl_jax.learning import reference as reference_lib
from earl_jax.learning import update
from earl_jax.learning.batches import row_order
from earl_jax.run import checkpoint, cli
from earl_jax.run import metrics as metrics_lib
from earl_jax.run.collect import collect, draw, take_rows
from earl_jax.run.experiment import Experiment, set_up

__all__ = ['train']

# What a resumed run may change: how long it goes on, what it reports, which devices it runs on and how it fits there.
CHANGEABLE = (
    'steps', 'stop_at_solved', 'evaluate_every', 'checkpoint_every', 'sample_every', 'evaluation_prompts', 'mesh',
    'remat', 'algorithm.reference_on_host',
)
SAMPLES = 8  # trajectories written out at a time


class Curriculum(NamedTuple):
  """Where the run stands in its curriculum.

  Attributes:
    stage: index into config.curriculum.
    history: exact match per task label in the last `config.window` batches of this stage.
    steps: batches of this stage so far.
  """

  stage: int = 0
  history: tuple[dict[str, float], ...] = ()
  steps: int = 0

  def after(self, experiment: Experiment, exact: dict[str, float]) -> 'Curriculum':
    """After a batch with exact match `exact`: the next stage once every task of this one is mastered."""
    config = experiment.config
    history = (*self.history, exact)[-config.window:]
    labels = [task.label for task, _ in experiment.stages[self.stage]]
    means = [np.mean([e[label] for e in history if label in e] or [0.0]) for label in labels]
    stage, steps = config.curriculum[self.stage], self.steps + 1
    mastered = len(history) == config.window and min(means) >= stage.until
    over = steps >= stage.steps if stage.steps else mastered
    if over and self.stage + 1 < len(experiment.stages):
      return Curriculum(self.stage + 1)
    return Curriculum(self.stage, history, steps)


class StopSignal:
  """Turns SIGTERM and SIGINT into a wish to stop, to be granted after the step in progress.

  The signal's former meaning returns with the first one, so that a second ends the program at once. In a run of
  several processes JAX passes a SIGTERM on and names the step after which all stop; a SIGINT becomes one.
  """

  def __init__(self):
    self._received, self._former = None, {}

  def __enter__(self):
    if threading.current_thread() is threading.main_thread():
      handlers = {signal.SIGTERM: self._receive, signal.SIGINT: self._receive}
      if jax.process_count() > 1:
        handlers = {signal.SIGINT: lambda *_: os.kill(os.getpid(), signal.SIGTERM)}
      self._former = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    return self

  def __exit__(self, *_):
    while self._former:
      signal.signal(*self._former.popitem())

  def _receive(self, number, frame):
    del frame
    self._received = signal.Signals(number).name
    print(f'\n{self._received}: saving after this step', file=sys.stderr, flush=True)
    self.__exit__()

  def reached(self, step: int) -> bool:
    """Whether to stop now that `step` steps are done."""
    return self._received is not None or multihost_utils.reached_preemption_sync_point(step)


def abstract_batch(experiment: Experiment, params: policy.Params) -> update.Batch:
  """Shapes and shardings of what an update learns from; `params` may be shapes too."""
  count, group = experiment.config.rollout.prompts, experiment.config.rollout.group
  prompts = experiment.encode_prompts(*draw(experiment, stage=0, step=0))
  rows, key = np.arange(count * group, dtype=np.int32), jax.random.key(0)
  trajectory = jax.eval_shape(experiment.decoder(group), params, prompts, rows, key)
  floats = lambda *shape: jax.ShapeDtypeStruct(shape, np.float32)  # noqa: E731
  imitate = jax.ShapeDtypeStruct((count * group,), bool)
  batch = update.Batch(trajectory, floats(count * group), floats(*trajectory.tokens.shape), imitate)
  by_row = sharding.by_row(experiment.mesh)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=by_row), batch)


def compile_update(
    experiment: Experiment, state: Any, score: functools.partial, advance: functools.partial
) -> None:
  """Compiles what follows the rollouts, in a thread beside theirs: on two cores the first step comes 12 % sooner.

  Args:
    state: shapes and shardings of the TrainState.
    score, advance: `reference.log_probs` and `update.update_step` with their settings.
  """
  config, batch = experiment.config, abstract_batch(experiment, state.params)
  none = np.zeros(len(batch.advantages))
  order = row_order(config, 0, none, none)
  calls = [(advance, state, batch, *order)] + [(score, state.params, batch.trajectory)] * bool(config.algorithm.kl)
  with jax.set_mesh(experiment.mesh):  # each thread has its own
    for f, *arguments in calls:
      f.func.lower(*arguments, **f.keywords).compile()


class Run(NamedTuple):
  """What `train` leaves: the experiment, its state, and whether a signal stopped it before its end."""

  experiment: Experiment
  state: update.TrainState
  stopped: bool


def rng_state(config: Config, step: int) -> list[int]:
  """The random key of the next step. All randomness follows from (seed, step): it is saved to be checked."""
  return jax.random.key_data(jax.random.fold_in(jax.random.key(config.seed), step)).tolist()


def train(config: Config, workdir: str | pathlib.Path) -> Run:
  """Trains, or goes on training, the run in `workdir`, until the end, until it is solved, or until a signal.

  Args:
    config: what `config.parse` returns. A resumed run may change the fields in `CHANGEABLE`.
    workdir: created if need be.

  Raises:
    UserError: the config cannot be carried out, or the workdir belongs to another run or cannot be used.
  """
  experiment, params = set_up(config)
  checkpoint.claim_workdir(workdir, dataclasses.asdict(config), experiment.environment_versions, CHANGEABLE)
  optimizer = update.make_optimizer(config.optimizer, config.steps * config.algorithm.mini_batches)
  initialise = functools.partial(update.init_state, optimizer=optimizer)
  shapes = jax.eval_shape(initialise, params)
  shardings = sharding.tree_shardings(experiment.mesh, shapes)
  keep = functools.partial(
      reference_lib.keep, shardings=shardings.params, on_host=config.algorithm.reference_on_host
  )
  reference = keep(params) if config.algorithm.kl else None
  by_row = sharding.by_row(experiment.mesh)
  goal = [task for task, _ in experiment.stages[-1]]
  score = functools.partial(reference_lib.log_probs, micro_batch=config.algorithm.micro_batch, **experiment.scoring)
  advance = functools.partial(
      update.update_step, optimizer=optimizer, config=config.algorithm, mesh=experiment.mesh, **experiment.scoring
  )
  abstract = checkpoint.abstract(shapes, shardings)

  with checkpoint.Checkpointer(workdir) as checkpointer, StopSignal() as stop, futures.ThreadPoolExecutor(1) as thread:
    restored = checkpointer.restore(abstract)
    if restored is None:
      step, state, solved = 0, jax.jit(initialise, out_shardings=shardings)(params), False
      curriculum = Curriculum()
      interventions = Interventions.initial(experiment.interface.space.num_environments)
    else:
      step, state, meta = restored
      if meta['rng'] != rng_state(config, step):
        raise UserError(f'{workdir}: its random keys are of another kind; resume with the same JAX_DEFAULT_PRNG_IMPL')
      curriculum, solved = Curriculum(meta['stage'], tuple(meta['history']), meta['steps']), meta['solved']
      interventions = Interventions(np.array(meta['gains']))
      if reference is not None and any(stage.imitate for stage in config.curriculum[: curriculum.stage]):
        reference = keep(reference_lib.restore(workdir, abstract.params))
    del params, restored  # the first update donates their buffers

    def save():
      checkpointer.save(step, state, dict(
          **curriculum._asdict(), gains=interventions.gains.tolist(), solved=solved,
          rng=rng_state(config, step),
      ))

    stopped, compiling = False, None
    with metrics_lib.MetricsWriter(workdir, config.steps, step) as writer:
      while step < config.steps and not stopped and not (solved and config.stop_at_solved):
        began = time.monotonic()
        compiling = compiling or thread.submit(compile_update, experiment, abstract, score, advance)
        experience = collect(experiment, state.params, curriculum.stage, step, interventions)
        interventions = experience.interventions
        metrics = {'stage': curriculum.stage} | experience.metrics
        if step % config.sample_every == 0:
          rows = np.arange(0, len(experience.advantages), max(1, len(experience.advantages) // SAMPLES))
          shown = take_rows(experience.factual, rows, sharding.replicated(experiment.mesh))
          metrics_lib.write_samples(workdir, step, [experiment.render(shown, i) for i in range(len(rows))])

        compiling.result()
        trajectory = experience.trajectory
        imitate = np.full(len(experience.advantages), config.curriculum[curriculum.stage].imitate)
        advantages, imitate = processes.place((experience.advantages, imitate), by_row)
        order = row_order(config, step, experience.advantages, processes.whole(trajectory.end))
        with jax.set_mesh(experiment.mesh):
          if reference is not None:
            scores = score(jax.device_put(reference, shardings.params), trajectory)
          else:
            scores = processes.place(np.zeros(trajectory.tokens.shape, np.float32), by_row)
          batch = update.Batch(trajectory, advantages, scores, imitate)
          state, update_metrics = advance(state, batch, *order)
        metrics |= jax.device_get(update_metrics)
        metrics['seconds'] = time.monotonic() - began
        metrics['tokens_per_second'] = metrics['tokens'] / metrics['seconds']

        step += 1
        before, curriculum = config.curriculum[curriculum.stage], curriculum.after(experiment, experience.exact)
        if before.imitate and not config.curriculum[curriculum.stage].imitate and reference is not None:
          reference = keep(state.params)
          reference_lib.save(workdir, step, state.params)
        if step % config.evaluate_every == 0:
          results = evaluate.evaluate_policy(experiment, state.params, goal, samples=config.evaluation_prompts)
          metrics |= {
              f'eval/{label}/{"exact" if name == "exact_match" else name}': result[name]
              for label, result in results.items()
              for name in ('exact_match', 'certified', 'comparisons', 'swaps') if name in result
          }
          perfect = all(r['exact_match'] == 1 and r.get('certified', 1) == 1 for r in results.values())
          solved = perfect and curriculum.stage + 1 == len(experiment.stages)
        writer.write(step - 1, metrics)
        stopped = stop.reached(step)
        if stopped or step % config.checkpoint_every == 0:
          save()
      save()

  if jax.process_index() == 0 and stopped:
    print(f'stopped, {step} of {config.steps} steps saved in {workdir}; the same command goes on from there')
  elif not stopped:
    results = evaluate.evaluate_policy(experiment, state.params, goal, samples=config.evaluation_prompts)
    evaluate.add_baselines(experiment, goal, results, config.evaluation_prompts)
    for result in results.values():
      result['step'] = step
    evaluate.write(workdir, goal, results)
    if jax.process_index() == 0:
      print(f'{workdir}, after {step} steps\n{evaluate.table(results)}')
  return Run(experiment, state, stopped)


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
  config_flags.DEFINE_config_file(
      'config', None, 'Config file. Any field of it can be set: --config.optimizer.learning_rate=1e-4.',
      flag_values=values, sys_argv=argv,
  )
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
  run = train(config, pathlib.Path(values.workdir or pathlib.Path('runs', path.stem)))
  return os.EX_TEMPFAIL if run.stopped and values.distributed else 0


if __name__ == '__main__':
  sys.exit(cli.run(main, define_flags))
