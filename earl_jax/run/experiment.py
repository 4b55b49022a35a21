"""The fixed parts of a run, tokenizer, model, tasks and interface, and how episodes are played with them."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
import numpy as np

from earl_jax import finder
from earl_jax.acting import policy
from earl_jax.acting import rollout as rollout_lib
from earl_jax.acting.prompts import Prompts
from earl_jax.acting.rollout import Decoding, Replay
from earl_jax.acting.scoring import Scoring
from earl_jax.acting.trajectory import Trajectory, walk
from earl_jax.config import Config, UserError
from earl_jax.devices import processes, sharding
from earl_jax.environments import host
from earl_jax.interfaces.expanded import ExpandedInterface
from earl_jax.learning.batches import rows_per_prompt
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.model.transformer import ModelConfig
from earl_jax.run.instances import first_example, instance_fields, require_32_bits
from earl_jax.run.rewards import checked
from earl_jax.run.worked_examples import worked_examples
from earl_jax.tasks.base import environment_names, environments_of, Example, Outcome, Task

MIN_ROWS = 32  # to go on with, on all devices together, when the others have ended
LONG = 128  # slots of a response from which on the cache grows once


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """The fixed parts of a run.

  Attributes:
    stages: per curriculum stage, its tasks with their shares of the prompts.
    end_tokens: ids that end an episode, that of the tokenizer first.
  """

  config: Config
  mesh: Mesh
  tokenizer: Any
  model: ModelConfig
  interface: ExpandedInterface
  stages: tuple[tuple[tuple[Task, float], ...], ...]
  end_tokens: tuple[int, ...]

  @property
  def slots(self) -> int:
    """T."""
    return self.config.rollout.prompt_length + self.config.rollout.response_length

  @property
  def rows(self) -> NamedSharding:
    """How the rows of a batch are shared out over the mesh."""
    return sharding.by_row(self.mesh)

  @property
  def scoring(self) -> Scoring:
    """What programs that score or learn from trajectories have to know of the run."""
    rollout, together = self.config.rollout, rows_per_prompt(self.config, sharding.row_shards(self.mesh))
    return Scoring(
        self.model, self.interface.space, rollout.prompt_length, rows_per_prompt=together,
        temperature=rollout.temperature,
    )

  def decoding(self, group: int = 1, temperature: float | None = None) -> Decoding:
    """What the decode loop has to know of the run, whose temperature it has by default."""
    if temperature is None:
      temperature = self.config.rollout.temperature
    return Decoding(
        model=self.model, interface=self.interface, end_tokens=self.end_tokens,
        pad=self.tokenizer.pad_token_id or 0, slots=self.slots, group=group, temperature=temperature,
        min_rows=min_rows(self.mesh),
        segments=2 if self.config.rollout.response_length >= LONG else 1, lanes=self.config.rollout.chunk,
    )

  @property
  def goal(self) -> list[Task]:
    """The tasks of the last stage: what the run is about."""
    return [task for task, _ in self.stages[-1]]

  @property
  def tasks(self) -> list[Task]:
    """All tasks of the curriculum, one of each label."""
    return list({task.label: task for stage in self.stages for task, _ in stage}.values())

  @property
  def environment_versions(self) -> dict[str, int]:
    """Environment name -> version."""
    return {e.spec.name: e.version for e in self.interface.environments}

  @property
  def actions(self) -> dict[str, list[str]]:
    """Environment name -> what enters it, then its actions, as they are described."""
    specs = self.interface.space.specs
    return {spec.name: [action.description for action in (spec.routing, *spec.actions)] for spec in specs}

  @property
  def modules(self) -> dict[str, str]:
    """Module -> folder, of tasks and environments that are not this package's."""
    classes = [type(task) for task in self.tasks] + [e for task in self.tasks for e in environments_of(task)]
    return finder.sources(classes)

  def offered(self, tasks: Sequence[Task]) -> np.ndarray:
    """bool[G, R]: which environments the tasks offer."""
    return np.array([self.interface.offers(environment_names(task)) for task in tasks])

  def encode_prompts(self, tasks: Sequence[Task], examples: Sequence[Example]) -> Prompts:
    """Left-padded prompts, on the mesh. Instance fields that a task lacks are 0.

    Of several processes each encodes the prompts on its devices, and looks at no other example but the first of every
    task.

    Raises:
      UserError: a prompt is longer than config.rollout.prompt_length.
    """
    length = self.config.rollout.prompt_length
    tokens = np.full((len(examples), length), self.tokenizer.pad_token_id or 0, np.int32)
    start = np.zeros(len(examples), np.int32)
    rows = {task.label: row for row, task in reversed(list(enumerate(tasks)))}
    first = {label: examples[row] for label, row in rows.items()}  # these alone are made
    instance = {
        key: np.zeros((len(examples), *value.shape), value.dtype)
        for key, value in instance_fields(self.first_examples | first).items()
    }
    for row in processes.held_rows(self.rows, len(examples)):
      task, example = tasks[row], examples[row]
      ids = self.prompt(task, example)
      self.require_room(task.label, len(ids))
      start[row] = length - len(ids)
      tokens[row, start[row]:] = ids
      require_32_bits(task.label, example.instance)
      for key, value in example.instance.items():
        instance[key][row] = value
    return processes.place(Prompts(tokens, start, instance, self.offered(tasks)), self.rows)

  def prompt(self, task: Task, example: Example) -> list[int]:
    """The token ids of one problem."""
    told, earlier = [example.system], _worked_examples(self, task) if self.config.worked_examples else ()
    if self.config.instructions:
      told.append(self.interface.instructions(environment_names(task)))
    if self.config.worked_examples_in == 'system':
      told += (f'For example, to "{said}" you answer: {answered}' for said, answered in earlier)
      earlier = ()
    system = ' '.join(filter(None, told))
    return _cached_prompt(self.tokenizer, system, example.user, task.assistant_start, earlier=earlier)

  def require_room(self, label: str, length: int) -> None:
    """Raises UserError unless there is room for a prompt of this length, of the task `label`."""
    if length > self.config.rollout.prompt_length:
      raise UserError(
          f'config.rollout.prompt_length={self.config.rollout.prompt_length}: a prompt of {label} has {length} tokens; '
          'choose at least that'
      )

  def rollout(
      self, params: policy.Params, prompts: Prompts, row_ids: np.ndarray, key: jax.Array,
      replay: Replay | None = None, *, decoding: Decoding,
  ) -> Trajectory:
    """`rollout.rollout` under this run's mesh, over which rows are shared out."""
    row_ids = processes.place(np.asarray(row_ids, np.int32), self.rows)
    with jax.set_mesh(self.mesh):
      return rollout_lib.rollout(params, prompts, row_ids, key, replay, decoding=decoding)

  def rollout_in_turn(
      self, params: policy.Params, prompts: Prompts, row_ids: np.ndarray, wanted: np.ndarray, key: jax.Array, *,
      decoding: Decoding,
  ) -> Trajectory:
    """`rollout.rollout_in_turn`, likewise."""
    row_ids, wanted = processes.place((np.asarray(row_ids, np.int32), wanted), self.rows)
    with jax.set_mesh(self.mesh):
      return rollout_lib.rollout_in_turn(params, prompts, row_ids, wanted, key, decoding=decoding)

  def remembered_rollout(
      self, params: policy.Params, prompts: Prompts, row_ids: np.ndarray, key: jax.Array, *, decoding: Decoding
  ) -> tuple[Trajectory, rollout_lib.Memory]:
    """`rollout.remembered_rollout`, likewise."""
    row_ids = processes.place(np.asarray(row_ids, np.int32), self.rows)
    with jax.set_mesh(self.mesh):
      return rollout_lib.remembered_rollout(params, prompts, row_ids, key, decoding=decoding)

  def outcomes(
      self, tasks: Sequence[Task], examples: Sequence[Example], trajectory: Trajectory,
      problems: np.ndarray | None = None,
  ) -> list[Outcome]:
    """Scores rows of a trajectory, in their order; of several processes each scores those that are its own.

    To the metrics of the task it adds what the episode spent: decisions, response_length (slots), calls of environments
    and, of these, invalid_calls, which ended with the episode before they did anything.

    Args:
      problems: int[rows], which of `tasks` and `examples` each of the first rows belongs to; below 0 = it does not
        count. One after the other by default.
    """
    problems = np.arange(len(tasks)) if problems is None else problems
    rows = processes.own_rows(self.rows, len(trajectory.end))
    rows = rows[rows < len(problems)]
    rows = rows[problems[rows] >= 0]
    # What outcomes depend on; the rest of the trajectory stays on its devices.
    read = trajectory._replace(start=(), legal=(), log_probs=(), route_scores=())
    read, length = processes.fetch(read, rows), self.config.rollout.prompt_length
    results = []
    for row, problem in enumerate(problems[rows]):
      task, example, episode = tasks[problem], examples[problem], read.row(row)
      finished, text = bool(episode.finished), ''
      if task.reads_text:  # without the end-of-sequence token
        text = self.tokenizer.decode(episode.tokens[length : episode.end - finished])
      outcome = checked(task, example, task.outcome(example.instance, episode.states, text, finished))
      decisions = walk(episode, self.interface.space)
      spent = {
          'decisions': len(decisions.slot), 'response_length': int(episode.end) - length, 'calls': decisions.calls,
          'invalid_calls': decisions.calls - decisions.returns,
      } | host.counts(episode.states)
      results.append(outcome._replace(metrics=outcome.metrics | spent))
    return [Outcome(*outcome) for outcome in processes.gather(results, rows, np.flatnonzero(problems >= 0))]

  @functools.cached_property
  def first_examples(self) -> dict[str, Example]:
    """Label -> the first example, of every task of the run. Their keys are in every batch.

    So the decode loop is compiled once, and an environment finds its keys also where no task of the batch has them.
    """
    return {task.label: first_example(task, self.config.seed) for task in self.tasks}


def min_rows(mesh: Mesh | AbstractMesh) -> int:
  """See `Decoding`: of one device."""
  return max(MIN_ROWS // sharding.row_shards(mesh), 1)


# Chat templates are slow, and a small task asks the same few questions again and again.
_cached_prompt = functools.lru_cache(maxsize=100_000)(tokenizer_lib.chat_prompt)


@functools.lru_cache(maxsize=100)
def _worked_examples(experiment: Experiment, task: Task) -> tuple[tuple[str, str], ...]:
  return worked_examples(
      task, experiment.config, experiment.first_examples, experiment.interface, experiment.tokenizer
  )
