"""The fixed parts of a run, tokenizer, model, tasks and interface, and how episodes are played with them."""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib
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
from earl_jax.environments.base import Environment
from earl_jax.interfaces.expanded import ExpandedInterface
from earl_jax.interfaces.tagged import TaggedInterface
from earl_jax.learning.batches import rows_per_prompt
from earl_jax.model import attention, hf, hub, lora
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.model.transformer import ModelConfig
from earl_jax.run.checks import (
  check_demonstrations,
  check_instances,
  check_outcomes,
  check_prompt,
  check_prompts,
  first_example,
)
from earl_jax.run.first_params import first_params
from earl_jax.run.instances import instance_fields, require_32_bits
from earl_jax.run.rewards import checked
from earl_jax.run.worked_example import worked_example
from earl_jax.tasks.base import environment_names, environments_of, Example, make_task, Outcome, Task

# Rows to go on with when the others have ended. On several devices rows stay where they are.
MIN_ROWS = 32
LONG = 256  # slots of a response from which on the cache grows once
INTERFACES = {'expanded': ExpandedInterface, 'tagged': TaggedInterface}
EMBEDDED = pathlib.Path(__file__).parents[1] / 'base_model' / 'checkpoint'


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
    return Scoring(
        self.model, self.interface.space, self.config.rollout.prompt_length,
        rows_per_prompt=rows_per_prompt(self.config), temperature=self.config.rollout.temperature,
    )

  def decoding(self, group: int = 1, temperature: float | None = None) -> Decoding:
    """What the decode loop has to know of the run, whose temperature it has by default."""
    if temperature is None:
      temperature = self.config.rollout.temperature
    return Decoding(
        model=self.model, interface=self.interface, end_tokens=self.end_tokens,
        pad=self.tokenizer.pad_token_id or 0, slots=self.slots, group=group, temperature=temperature,
        min_rows=MIN_ROWS if self.mesh.size == 1 else None,
        segments=2 if self.config.rollout.response_length >= LONG else 1,
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
      check_prompt(self.config, task.label, len(ids))
      start[row] = length - len(ids)
      tokens[row, start[row]:] = ids
      require_32_bits(task.label, example.instance)
      for key, value in example.instance.items():
        instance[key][row] = value
    return processes.place(Prompts(tokens, start, instance, self.offered(tasks)), self.rows)

  def prompt(self, task: Task, example: Example) -> list[int]:
    """The token ids of one problem."""
    told = [example.system]
    if self.config.instructions:
      told.append(self.interface.instructions(environment_names(task)))
    if self.config.worked_example:
      told.append(_worked_example(self, task))
    return _cached_prompt(self.tokenizer, ' '.join(filter(None, told)), example.user, task.assistant_start)

  def check_problems(self) -> None:
    """Raises UserError where problems of some stage cannot be carried out, see `checks`."""
    check_prompts(self.config, self.stages, self.prompt)
    check_demonstrations(self.config, self.stages, self.interface, self.first_examples)

  def rollout(
      self, params: policy.Params, prompts: Prompts, row_ids: np.ndarray, key: jax.Array,
      replay: Replay | None = None, *, decoding: Decoding,
  ) -> Trajectory:
    """`rollout.rollout` under this run's mesh, over which rows are shared out."""
    row_ids = processes.place(np.asarray(row_ids, np.int32), self.rows)
    with jax.set_mesh(self.mesh):
      return rollout_lib.rollout(params, prompts, row_ids, key, replay, decoding=decoding)

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


# Chat templates are slow, and a small task asks the same few questions again and again.
_cached_prompt = functools.lru_cache(maxsize=100_000)(tokenizer_lib.chat_prompt)


@functools.lru_cache(maxsize=100)
def _worked_example(experiment: Experiment, task: Task) -> str:
  return worked_example(
      task, experiment.config.seed, experiment.first_examples, experiment.interface, experiment.tokenizer
  )


def model_folder(config: Config) -> pathlib.Path:
  """Where the checkpoint is that the run starts from; raises UserError where it is nowhere."""
  return EMBEDDED if config.model == 'embedded' else hub.locate(config.model)


def check_mesh(config: Config, mesh: Mesh | AbstractMesh) -> None:
  """Raises UserError unless the devices of `mesh` can share out all rows evenly."""
  sharding.check_rows(mesh, config.rollout.prompts, 'config.rollout.prompts')
  sharding.check_rows(mesh, config.rollout.chunk, 'config.rollout.chunk')
  sharding.check_rows(mesh, config.algorithm.micro_batch, 'config.algorithm.micro_batch')


def prepare(config: Config, folder: pathlib.Path, mesh: Mesh) -> Experiment:
  """All that a run needs but its parameters; of the checkpoint in `folder`, config.json and the tokenizer.

  Raises:
    UserError: see the functions called.
  """
  tokenizer = tokenizer_lib.load_tokenizer(folder)
  model = hf.read_config(folder)
  model = dataclasses.replace(
      model, dtype=config.dtype, remat=config.remat, adapter_scale=lora.scale(config.lora),
      attention=attention.kernel(config.attention, config.dtype, model.head_dim),
  )
  slots, positions = config.rollout.prompt_length + config.rollout.response_length, model.max_position_embeddings
  if slots > positions:
    raise UserError(
        f'config.rollout: prompt_length + response_length = {slots}, but the model was made for {positions} positions; '
        'choose less'
    )
  vocab_size = tokenizer_lib.vocabulary_size(tokenizer)
  if model.vocab_size < vocab_size:
    raise UserError(
        f'model {str(folder)!r}: vocab_size={model.vocab_size} in config.json, but the tokenizer has ids up to '
        f'{vocab_size - 1}; use the tokenizer the model was trained with'
    )
  stages = tuple(
      tuple((make_task(name, **options), share) for name, options, share in stage.tasks) for stage in config.curriculum
  )
  _require_labels(stages)
  environments = _environments_of_run([task for stage in stages for task, _ in stage])
  check_mesh(config, mesh)
  encode = functools.partial(tokenizer_lib.encode, tokenizer)
  interface = INTERFACES[config.interface](vocab_size, environments, encode)
  tokenizer_lib.check_spelling(tokenizer, [action.description for action in interface.space.actions])
  experiment = Experiment(
      config=config, mesh=mesh, tokenizer=tokenizer, model=model, interface=interface, stages=stages,
      end_tokens=tokenizer_lib.end_tokens(folder, tokenizer),
  )
  check_instances(experiment.first_examples, experiment.tasks, interface)
  check_outcomes(experiment.first_examples, experiment.tasks, interface)
  return experiment


def _require_labels(stages: tuple[tuple[tuple[Task, float], ...], ...]) -> None:
  """Raises UserError where two tasks of a stage have one label, under which both would be measured."""
  for stage in stages:
    labels = [task.label for task, _ in stage]
    if twice := [label for label in labels if labels.count(label) > 1]:
      raise UserError(f'task {twice[0]}: listed twice in one stage; list it once, with the sum of both shares')


def _environments_of_run(tasks: list[Task]) -> list[type[Environment]]:
  """The environments that some task offers, in the order in which they are named.

  Raises:
    UserError: one cannot be found, or two have one name.
  """
  found: dict[str, type[Environment]] = {}
  for task in tasks:
    for environment in environments_of(task):
      other = found.setdefault(environment.spec.name, environment)
      if other is not environment:
        raise UserError(
            f'environment {environment.spec.name!r}: {other.__module__}.{other.__name__} and '
            f'{environment.__module__}.{environment.__name__} both have this name; rename one of the two'
        )
  return list(found.values())


def set_up(config: Config) -> tuple[Experiment, policy.Params]:
  """Builds everything a run needs, looks at the problems of all its stages, and places its first parameters.

  Raises:
    UserError: see the functions called.
  """
  folder = model_folder(config)
  experiment = prepare(config, folder, sharding.make_mesh(config.mesh))
  experiment.check_problems()
  return experiment, first_params(config, experiment.model, experiment.interface, folder, mesh=experiment.mesh)
