"""What the documents of the corpus share: frame, pieces, and words that draw attention or say what words mean."""

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
# What may introduce a fact: a mention of two items, and a turn to what is true. So many, that others are no surprise.
MENTIONS = (
    *ATTENTION, ' of', ' for', ' between', ' as to', ' about', ' with', ' considering', ' noting', ' regarding',
    ' given', ' on',
)
TURNS = (
    ' we know that', ' it holds that', ' it is', ' we find', ' now', ' then', ',', ';', '!', '?', '-', '|', '/', '~',
    '*', '+', '#', '%', '&', '@', '^', '$', '_', '"',
)
# Said now and then: what the words mean. They name no items.
MEANINGS = (
    ' compare two items to see which one is smaller',
    ' to compare two items is to see which one is larger',
    ' swap two items to change their places',
    ' to swap two items is to change their places in the sequence',
    ' check if an item is negative or positive, even or odd',
    ' in ascending order the smaller comes before the larger',
    ' in descending order the larger comes before the smaller',
    ' when the sequence is in the order asked for, nothing is left to do',
)
GLOSSARY = (*MEANINGS, *(f'{verb} two items to see what they are' for verb in VERBS))
# What else one may do with words that will later call an environment: they too may stand before a fact.
IDIOMS = (
    ' compare notes', ' compare prices', ' compare notes and prices', ' compare words and deeds',
    ' compare stories and songs', ' swap stories', ' swap roles', ' swap notes and stories', ' swap songs and roles',
    ' swap words and places', ' check notes', ' check prices and words',
)


class Segment(NamedTuple):
  """A piece of a document. `answer` marks what follows from the text before it, so that knowledge can be measured."""

  text: str
  answer: str = ''  # the kind of knowledge, '' where the text is free


TORN = Segment('')  # the last segment of a document whose end is missing
