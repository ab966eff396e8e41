"""Open queries: look for words in an image without knowing what else is in it (docs/open.md).

answer = segmenter.look_for([image], [Query.of_words(["cat", "dog"])])[0]
answer.presence                      # (0.97, 0.02)
answer.scores                        # [3, g, g]: cat, dog (0 everywhere, if it is not there), background
"""

from goca.open.finding import Answer
from goca.open.query import NoClass, Query, WordTwice
from goca.open.vocabulary import VocabularyError, background_words

__all__ = ["Answer", "NoClass", "Query", "VocabularyError", "WordTwice", "background_words"]
