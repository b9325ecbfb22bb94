"""Models: their attention intercepted, traced, and told word by word."""

from regard._watch.intercept import watch
from regard._watch.layer import Layer
from regard._watch.repeated import induction
from regard._watch.trace import Trace
from regard._watch.words import Word, find, words

__all__ = ["Layer", "Trace", "Word", "find", "induction", "watch", "words"]
