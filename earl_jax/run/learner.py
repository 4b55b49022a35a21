"""The half of a step that changes the policy, with the settings of its run."""

from concurrent import futures

import jax
import numpy as np

from earl_jax.acting import policy
from earl_jax.config import Stage
from earl_jax.devices import processes
from earl_jax.learning import reference as reference_lib
from earl_jax.learning.batches import abstract_batch, Batch, split_rows
from earl_jax.learning.update import abstract_state, init_state, make_optimizer, TrainState, update_step
from earl_jax.run.collect import Experience
from earl_jax.run.experiment import Experiment
from earl_jax.run.problems import abstract_rollout

__all__ = ['Learner']


class Learner:
  """Optimizer, reference policy and update of a run.

  Attributes:
    abstract: shapes and shardings of the TrainState.
  """

  def __init__(self, experiment: Experiment, params: policy.Params):
    """`params` as `set_up` gives them: their shapes are read, and what they are is the first reference policy."""
    self._experiment, config = experiment, experiment.config
    self._optimizer = make_optimizer(config)
    trained, self._frozen = policy.split(params)
    self.abstract = abstract_state(params, self._optimizer, experiment.mesh)
    self._shardings = jax.tree.map(lambda x: x.sharding, self.abstract)
    self._reference = None
    self.refer_to(trained)
    self._compiling = None

  def begin(self, params: policy.Params) -> TrainState:
    """The state before the first update."""
    trained, _ = policy.split(params)
    return jax.jit(init_state, static_argnums=1, out_shardings=self._shardings)(trained, self._optimizer)

  def policy_of(self, state: TrainState) -> policy.Params:
    """All parameters, those that stay frozen among them."""
    return self._frozen | state.params

  def refer_to(self, params: policy.Params) -> None:
    """The reference policy is what these trained parameters are now, beside the frozen ones.

    Nothing is kept where there is no KL term.
    """
    algorithm = self._experiment.config.algorithm
    if algorithm.kl:
      self._reference = reference_lib.keep(params, self._shardings.params, algorithm.reference_on_host)

  @property
  def reference(self) -> policy.Params | None:
    """The parameters of the reference policy, on the devices; None where nothing is kept."""
    if self._reference is None:
      return None
    return self._frozen | jax.device_put(self._reference, self._shardings.params)

  def compile_beside(self) -> None:
    """Compiles what follows the rollouts, in a thread beside theirs: on two cores the first step comes 12 % sooner."""
    self._compiling = futures.ThreadPoolExecutor(1).submit(self._compile)

  def update(
      self, state: TrainState, experience: Experience, stage: Stage, step: int
  ) -> tuple[TrainState, dict[str, np.ndarray]]:
    """Learns from a batch, whose stage this is.

    Returns:
      the new state, which has the buffers of the old one, and metrics.
    """
    if self._compiling:
      self._compiling.result()
    config, rows = self._experiment.config, self._experiment.rows
    trajectory = experience.trajectory
    together = self._experiment.scoring.rows_per_prompt
    split = split_rows(config, step, experience.advantages, processes.whole(trajectory.end), together)
    imitate = np.full(len(experience.advantages), stage.imitate)
    advantages, imitate = processes.place((experience.advantages, imitate), rows)
    with jax.set_mesh(self._experiment.mesh):
      reference = None if stage.imitate else self.reference  # of what others did it is not asked
      if reference is None:
        scores = processes.place(np.zeros(trajectory.tokens.shape, np.float32), rows)
      else:
        scores = reference_lib.log_probs(reference, trajectory, split, scoring=self._experiment.scoring)
      del reference  # of one kept on the host, this is a copy: its room is the update's
      batch = Batch(trajectory, advantages, scores, imitate)
      state, metrics = update_step(state, batch, split, self._frozen, **self._updating)
    return state, jax.device_get(metrics)

  @property
  def _updating(self) -> dict:
    experiment = self._experiment
    return dict(optimizer=self._optimizer, scoring=experiment.scoring, config=experiment.config.algorithm)

  def _compile(self) -> None:
    experiment, params = self._experiment, self._frozen | self.abstract.params
    config = experiment.config
    with jax.set_mesh(experiment.mesh):  # each thread has its own
      batch = abstract_batch(abstract_rollout(experiment), sharding=experiment.rows)
      none = np.zeros(len(batch.advantages))
      split = split_rows(config, 0, none, none, experiment.scoring.rows_per_prompt)
      update_step.lower(self.abstract, batch, split, self._frozen, **self._updating).compile()
      if config.algorithm.kl:
        reference_lib.log_probs.lower(params, batch.trajectory, split, scoring=experiment.scoring).compile()
