"""One episode, decision by decision: as data, as a picture, and as HTML for notebooks."""

from collections.abc import Iterator
import html
import pathlib
from typing import NamedTuple

import numpy as np

from earl_jax.acting.trajectory import Trajectory, walk
from earl_jax.action_space import ActionSpace, LANGUAGE
from earl_jax.run.experiment import Experiment
from earl_jax.run.figures import COLORS, matplotlib, new_figure, save

__all__ = ['as_text', 'Decision', 'decisions', 'draw_episode', 'episode_html', 'Piece', 'pieces', 'visible']

TEXT = '#1f2328'  # inside boxes, which bring their own background
PROMPT = -1  # what `Piece.environment` says of the prompt

# Layout, in inches, with a monospaced font of FONT_SIZE points.
FONT_SIZE = 9
CHARACTER = 0.602 * FONT_SIZE / 72  # its width in DejaVu Sans Mono
ROW, BOX, PADDING, GAP, WIDTH = 0.29, 0.21, 0.055, 0.05, 9.0


class Piece(NamedTuple):
  """A box of a trajectory: one token, or all tokens of one description.

  Attributes:
    environment: `PROMPT`, 0 = language, k = external environment k.
    decision: the policy chose it; otherwise it was written.
  """

  text: str
  environment: int
  decision: bool


class Decision(NamedTuple):
  """A decision of an episode, and what came of it.

  Attributes:
    slot: where what it wrote begins.
    action: its id.
    text: what was chosen, a token or a description.
    written: what the environment wrote after it.
    language: it was made in language.
    environment: 0 = language, k = external environment k, which it enters or was made in.
  """

  slot: int
  action: int
  text: str
  written: str
  language: bool
  environment: int


def decisions(experiment: Experiment, episode: Trajectory) -> list[Decision]:
  """The decisions of one episode (`Trajectory.row`), in order."""
  decode, tokens = experiment.tokenizer.decode, episode.tokens
  return [
      Decision(slot, action, text=decode(tokens[slot:written]), written=decode(tokens[written:until]),
               language=language, environment=environment)
      for slot, written, until, action, language, environment in _spans(episode, experiment.interface.space)
  ]


def as_text(experiment: Experiment, episode: Trajectory) -> str:
  """One episode (`Trajectory.row`): prompt, then the response, with what stands inside environments in [brackets]."""
  decode, space, tokens = experiment.tokenizer.decode, experiment.interface.space, episode.tokens
  text, inside = decode(tokens[episode.start : experiment.config.rollout.prompt_length]) + '⏎', False
  for slot, until, _, language, environment in zip(*walk(episode, space)):
    if language and inside:
      text, inside = text + ']', False
    if language and environment:
      text, inside = text + f'[{space.specs[environment - 1].name}:', True
    text += decode(tokens[slot:until])
  return text + ']' * inside


def draw_episode(experiment: Experiment, trajectory: Trajectory, row: int, path: str | pathlib.Path) -> None:
  """Draws one trajectory as boxes of tokens.

  Args:
    experiment: what it was rolled out with.
    trajectory: a batch; `row` says which of it.
    path: of the picture, PNG or SVG.

  Raises:
    UserError: another suffix, or matplotlib is missing.
  """
  boxes, x, y = [], GAP, 0.0  # (left, top, piece)
  parts = pieces(experiment, trajectory, row)
  for piece, previous in zip(parts, [None, *parts]):
    starts_response = previous and previous.environment == PROMPT != piece.environment
    if x > GAP and (starts_response or x + _width(piece) + GAP > WIDTH):
      x, y = GAP, y + ROW
    boxes.append((x, y + 0.4 * ROW if piece.environment != PROMPT else y, piece))
    x += _width(piece) + GAP
    if piece.text.endswith('\n'):
      x, y = GAP, y + ROW
  x, y = GAP, y + 2.4 * ROW
  for piece in _legend(experiment):
    if x + _width(piece) + GAP > WIDTH:
      x, y = GAP, y + ROW
    boxes.append((x, y, piece))
    x += _width(piece) + 3 * GAP

  width = max(x + _width(piece) for x, _, piece in boxes) + GAP
  height = y + ROW
  figure, axes = new_figure(figsize=(width, height), layout='none')
  axes.set_position((0, 0, 1, 1))
  axes.set(xlim=(0, width), ylim=(height, 0))
  axes.set_axis_off()
  for x, y, piece in boxes:
    fill, edge = _colors(piece)
    axes.add_patch(matplotlib().patches.FancyBboxPatch(
        (x, y + (ROW - BOX) / 2), _width(piece), BOX, boxstyle='round,pad=0,rounding_size=0.035', facecolor=fill,
        edgecolor=edge, linewidth=1.5 if piece.decision else 0.5,
    ))
    # parse_math: a dollar sign is no formula
    axes.text(x + PADDING, y + ROW / 2, _visible(piece.text), family='DejaVu Sans Mono', size=FONT_SIZE, color=TEXT,
              va='center_baseline', parse_math=False)
  save(figure, path)


def episode_html(experiment: Experiment, trajectory: Trajectory, row: int) -> str:
  """The same as HTML with inline styles, all text escaped: for notebooks, `IPython.display.HTML(…)`."""

  def box(piece: Piece) -> str:
    fill, edge = _colors(piece)
    style = (
        f'display:inline-block;margin:1px;padding:0 3px;border:{2 if piece.decision else 1}px solid {edge};'
        f'border-radius:3px;background:{fill};color:{TEXT};white-space:pre'
    )
    return f'<span style="{style}">{html.escape(_visible(piece.text))}</span>' + '<br>' * piece.text.endswith('\n')

  parts = pieces(experiment, trajectory, row)
  prompt = ''.join(box(piece) for piece in parts if piece.environment == PROMPT)
  response = ''.join(box(piece) for piece in parts if piece.environment != PROMPT)
  legend = ' '.join(map(box, _legend(experiment)))
  style = 'font-family:monospace;font-size:13px;line-height:1.7;margin:8px 0'
  return ''.join(f'<div style="{style}">{part}</div>' for part in (prompt, response, legend))


def pieces(experiment: Experiment, trajectory: Trajectory, row: int) -> list[Piece]:
  """The boxes of one trajectory, in order. A character that several tokens spell shows as � in each."""
  episode, space = trajectory.row(row), experiment.interface.space
  tokens, decode = episode.tokens, experiment.tokenizer.decode
  found = [
      Piece(decode([token]), PROMPT, False)
      for token in tokens[episode.start : experiment.config.rollout.prompt_length]
  ]
  for slot, written, until, _, _, environment in _spans(episode, space):
    found.append(Piece(decode(tokens[slot:written]), environment, True))
    found += [Piece(decode([token]), environment, False) for token in tokens[written:until]]
  return found


def visible(text: str, line: str = '\n') -> str:
  """Text that nothing in it can move, colour or hide: what is not printable becomes �, and line ends `line`."""
  return ''.join(line if c == '\n' else c if c.isprintable() else '�' for c in text)


def _spans(episode: Trajectory, space: ActionSpace) -> Iterator[tuple[int, int, int, int, bool, int]]:
  """(slot, where what is chosen ends, where what is written ends, action, language, environment) of decisions."""
  for slot, until, action, language, environment in zip(*walk(episode, space)):
    expanded = int(action) - space.vocab_size
    length = int(space.description_lengths[expanded]) if expanded >= 0 else 1
    yield int(slot), int(slot) + length, int(until), int(action), bool(language), int(environment)


def _legend(experiment: Experiment) -> list[Piece]:
  names = [environment.spec.name for environment in experiment.interface.environments]
  chosen = [Piece(f'{name}: chosen', k, True) for k, name in enumerate(['language', *names])]
  written = [Piece(f'{name}: written', k + 1, False) for k, name in enumerate(names)]
  return [Piece('prompt', PROMPT, False), chosen[0]] + [x for pair in zip(chosen[1:], written) for x in pair]


def _visible(text: str) -> str:
  """What a box shows of a token: boxes stand apart, so a leading space need not be seen, but a lone one must."""
  text = visible(text, '↵')
  return text.strip(' ') or '␣' * len(text)


def _width(piece: Piece) -> float:
  return len(_visible(piece.text)) * CHARACTER + 2 * PADDING


def _colors(piece: Piece) -> tuple[str, str]:
  """(fill, edge) of a box."""
  if piece.environment == PROMPT:
    return '#d9dde2', '#d9dde2'
  if piece.environment == LANGUAGE:
    return '#ffffff', '#57606a'
  color = COLORS[(piece.environment - 1) % len(COLORS)]
  return (_tint(color, 0.35), color) if piece.decision else (_tint(color, 0.14), _tint(color, 0.35))


def _tint(color: str, strength: float) -> str:
  """`color` mixed with white."""
  channels = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
  return '#' + ''.join(f'{round(c):02x}' for c in 255 + strength * (channels - 255))
