"""What all documents of the corpus share: their frame, their pieces, and words that draw attention."""

from typing import NamedTuple

from earl_jax.tasks.base import SYSTEM, Task

FRAME = SYSTEM, Task.assistant_start  # of every document: the system message and how the assistant begins

# Words that draw attention to two items, whichever they are: a model of many such words expects them after others too.
VERBS = (
    ' consider', ' note', ' mark', ' mind', ' watch', ' mention', ' regard', ' face', ' discuss', ' study', ' see',
    ' take', ' pick', ' hold', ' keep', ' name', ' read', ' find', ' meet', ' call', ' try', ' use', ' show', ' ask',
    ' touch', ' join', ' turn', ' move', ' test', ' view',
)
ATTENTION = (
    *VERBS, ' look at', ' think of', ' point at', ' speak of', ' the talk is of', ' the matter is', ' of interest are',
    ' worth a thought are',
)


class Segment(NamedTuple):
  """A piece of a document. `answer` marks what follows from the text before it, so that knowledge can be measured."""

  text: str
  answer: str = ''  # the kind of knowledge, '' where the text is free


TORN = Segment('')  # the last segment of a document whose end is missing
