"""What training and evaluation share: tokenizer, model, tasks and interface of a run, and its prompts and outcomes."""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh
import numpy as np

from earl_jax.acting import policy
from earl_jax.acting import rollout as rollout_lib
from earl_jax.acting.trajectory import Trajectory
from earl_jax.config import Config, UserError
from earl_jax.devices import processes, sharding
from earl_jax.environments import base as environments_base
from earl_jax.interfaces.expanded import ExpandedInterface
from earl_jax.interfaces.tagged import TaggedInterface
from earl_jax.learning.batches import shared_rows
from earl_jax.model import hf, transformer
from earl_jax.model import tokenizer as tokenizer_lib
from earl_jax.model.transformer import ModelConfig
from earl_jax.run import expanded_head
from earl_jax.tasks.base import Example, make_task, Outcome, Task

# Rows to go on with when the others have ended. On several devices rows stay where they are.
FEWEST = 64
INTERFACES = {'expanded': ExpandedInterface, 'tagged': TaggedInterface}
EMBEDDED = pathlib.Path(__file__).parents[1] / 'base_model' / 'checkpoint'


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """The fixed parts of a run.

  Attributes:
    stages: per curriculum stage, its tasks with their shares of the prompts.
  """

  config: Config
  mesh: Mesh
  tokenizer: Any
  model: ModelConfig
  interface: ExpandedInterface
  stages: tuple[tuple[tuple[Task, float], ...], ...]

  @property
  def slots(self) -> int:
    """T."""
    return self.config.rollout.prompt_length + self.config.rollout.response_length

  @property
  def scoring(self) -> dict[str, Any]:
    """What programs that score or learn from trajectories have to know of the run, as keyword arguments."""
    return dict(
        model=self.model, space=self.interface.space, prompt_length=self.config.rollout.prompt_length,
        shared=shared_rows(self.config), temperature=self.config.rollout.temperature,
    )

  @property
  def environment_versions(self) -> dict[str, int]:
    return {e.spec.name: e.version for e in self.interface.environments}

  def offered(self, tasks: list[Task]) -> np.ndarray:
    """bool[G, R]: which environments the tasks offer."""
    names = [e.spec.name for e in self.interface.environments]
    return np.array([[name in task.environments for name in names] for task in tasks])

  def encode_prompts(self, tasks: list[Task], examples: Sequence[Example]) -> rollout_lib.Prompts:
    """Left-padded prompts, on the mesh. Tasks of another family leave the instance fields they lack at 0.

    Of several processes each encodes the prompts on its devices, and looks at no other example but the first of every
    task.

    Raises:
      UserError: a prompt is longer than config.rollout.prompt_length.
    """
    length = self.config.rollout.prompt_length
    tokens = np.full((len(examples), length), self.tokenizer.pad_token_id or 0, np.int32)
    start = np.zeros(len(examples), np.int32)
    first = {task.label: row for row, task in reversed(list(enumerate(tasks)))}
    instance = {
        key: np.zeros((len(examples), *np.shape(value)), np.asarray(value).dtype)
        for row in first.values() for key, value in examples[row].instance.items()
    }
    by_row = sharding.by_row(self.mesh)
    for row in processes.held_rows(by_row, len(examples)):
      task, example = tasks[row], examples[row]
      told = self.interface.instructions(task.environments) if self.config.instructions else ''
      system = f'{example.system} {told}'.strip()
      ids = _cached_prompt(self.tokenizer, system, example.user, task.assistant_start)
      if len(ids) > length:
        raise UserError(
            f'config.rollout.prompt_length={length}: a prompt of {task.label} has {len(ids)} tokens; '
            'choose at least that'
        )
      start[row] = length - len(ids)
      tokens[row, start[row]:] = ids
      for key, value in example.instance.items():
        instance[key][row] = value
    return processes.place(rollout_lib.Prompts(tokens, start, instance, self.offered(tasks)), by_row)

  def rollout(self, params, prompts, row_ids, key, replay=None, *, group=1, temperature=1.0) -> Trajectory:
    """`rollout.rollout` with this run's shapes; rows are shared out over the mesh."""
    row_ids = processes.place(np.asarray(row_ids, np.int32), sharding.by_row(self.mesh))
    with jax.set_mesh(self.mesh):
      return self.decoder(group, temperature)(params, prompts, row_ids, key, replay)

  def decoder(self, group: int = 1, temperature: float = 1.0) -> functools.partial:
    """`rollout.rollout` with this run's settings, to be called under its mesh."""
    return functools.partial(
        rollout_lib.rollout, config=self.model, interface=self.interface, eos=self.tokenizer.eos_token_id,
        pad=self.tokenizer.pad_token_id or 0, group=group, slots=self.slots, temperature=temperature,
        fewest=FEWEST if self.mesh.size == 1 else None,
    )

  def outcomes(
      self, tasks: list[Task], examples: Sequence[Example], trajectory: Trajectory,
      problems: np.ndarray | None = None,
  ) -> list[Outcome]:
    """Scores the first rows of a trajectory; of several processes each scores those that are its own.

    To the metrics of the task it adds what the episode spent: decisions, response_length (slots), calls of environments
    and, of these, invalid_calls, which the end of the space cut off before they did anything.

    Args:
      problems: int[rows], which of `tasks` and `examples` each row belongs to; one after the other by default.
    """
    problems = np.arange(len(tasks)) if problems is None else problems
    rows = processes.own_rows(sharding.by_row(self.mesh), len(trajectory.end))
    rows = rows[rows < len(problems)]
    states, finished, tokens, end, actions, language = processes.fetch((
        trajectory.states, trajectory.finished, trajectory.tokens, trajectory.end, trajectory.actions,
        trajectory.language,
    ), rows)
    length = self.config.rollout.prompt_length
    results = []
    for row, problem in enumerate(problems[rows]):
      task, example = tasks[problem], examples[problem]
      state = jax.tree.map(lambda x, row=row: x[row], states)
      text = ''
      if task.reads_text:  # without the end-of-sequence token
        text = self.tokenizer.decode(tokens[row, length : end[row] - finished[row]])
      outcome = task.outcome(example.instance, state, text, bool(finished[row]))
      free = language[row][actions[row] >= 0]
      calls, returns = int(np.sum(free[:-1] & ~free[1:])), int(np.sum(~free[:-1] & free[1:]))
      spent = {
          'decisions': len(free), 'response_length': int(end[row]) - length, 'calls': calls,
          'invalid_calls': calls - returns,
      }
      results.append(outcome._replace(metrics=outcome.metrics | spent))
    return [Outcome(*outcome) for outcome in processes.gather(results, rows, len(problems))]

  def render(self, trajectory: Trajectory, row: int) -> str:
    """One trajectory as text: prompt, then the response with what was written inside environments in [brackets]."""
    tokens, actions, language, start, end = (
        np.asarray(x[row]) for x in
        (trajectory.tokens, trajectory.actions, trajectory.language, trajectory.start, trajectory.end)
    )
    length = self.config.rollout.prompt_length
    decisions = np.flatnonzero(actions >= 0)
    text = self.tokenizer.decode(tokens[start:length]) + '⏎'
    vocab = self.interface.space.vocab_size
    open_call = False
    for at, until in zip(decisions, [*decisions[1:], end]):
      if language[at] and open_call:
        text, open_call = text + ']', False
      if language[at] and actions[at] >= vocab:
        text, open_call = text + f'[{self.interface.space.specs[actions[at] - vocab].name}:', True
      text += self.tokenizer.decode(tokens[at:until])
    return text + (']' if open_call else '')


# Chat templates are slow, and a small task asks the same few questions again and again.
_cached_prompt = functools.lru_cache(maxsize=100_000)(tokenizer_lib.chat_prompt)


def model_folder(config: Config) -> pathlib.Path:
  """Where the checkpoint is that the run starts from; raises UserError where it is nowhere."""
  return EMBEDDED if config.model == 'embedded' else hf.locate(config.model)


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
  model = dataclasses.replace(hf.read_config(folder), dtype=config.dtype, remat=config.remat)
  if model.vocab_size < len(tokenizer):
    raise UserError(
        f'model {str(folder)!r}: vocab_size={model.vocab_size} in config.json, but the tokenizer has {len(tokenizer)} '
        'entries; use the tokenizer the model was trained with'
    )
  stages = tuple(
      tuple((make_task(name, **options), share) for name, options, share in stage.tasks) for stage in config.curriculum
  )
  names = dict.fromkeys(name for stage in stages for task, _ in stage for name in task.environments)
  encode = functools.partial(tokenizer_lib.encode, tokenizer)
  environments = [environments_base.find(name) for name in names]
  check_mesh(config, mesh)
  interface = INTERFACES[config.interface](len(tokenizer), environments, encode)
  return Experiment(config, mesh, tokenizer, model, interface, stages)


def set_up(config: Config) -> tuple[Experiment, policy.Params]:
  """Builds everything a run needs, and its first parameters, placed on the mesh.

  Raises:
    UserError: see the functions called.
  """
  folder = model_folder(config)
  experiment = prepare(config, folder, sharding.make_mesh(config.mesh))
  return experiment, _first_params(experiment, folder)


def _first_params(experiment: Experiment, folder: pathlib.Path) -> policy.Params:
  """The checkpoint's parameters, and its expanded head where it comes from a run with the same actions."""
  mesh, model, interface = experiment.mesh, experiment.model, experiment.interface
  shapes = jax.eval_shape(functools.partial(transformer.init_params, model), jax.random.key(0))
  weights = hf.load_params(folder, model, sharding.tree_shardings(mesh, shapes))
  params = policy.init_params(weights, interface.space, interface.tied)
  described = expanded_head.manifest(interface, experiment.config.interface)
  shape = params['expanded_head'].shape if 'expanded_head' in params else None
  trained = expanded_head.read(folder, described, shape)
  if trained is not None:
    params['expanded_head'] = trained
  return jax.device_put(params, sharding.tree_shardings(mesh, params))
