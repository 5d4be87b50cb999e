"""A small semantic search over real sentences: which opening line of a public-domain book is meant?"""

from __future__ import annotations

import numpy as np

from polyattn.truth.spec import Floats

__all__ = ["OPENINGS", "QUERIES", "SENTENCES", "rank", "ranking"]

#: title -> opening line
OPENINGS = {
    "Pride and Prejudice": "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a wife.",
    "Moby-Dick": "Call me Ishmael.",
    "A Tale of Two Cities": "It was the best of times, it was the worst of times.",
    "Anna Karenina": "Happy families are all alike; every unhappy family is unhappy in its own way.",
    "The War of the Worlds": "No one would have believed in the last years of the nineteenth century that this world was being watched keenly and closely by intelligences greater than man's.",
    "Alice's Adventures in Wonderland": "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do.",
    "The Metamorphosis": "One morning, when Gregor Samsa woke from troubled dreams, he found himself transformed in his bed into a horrible vermin.",
    "Peter Pan": "All children, except one, grow up.",
    "The Picture of Dorian Gray": "The studio was filled with the rich odour of roses.",
    "Notes from Underground": "I am a sick man. I am a spiteful man. I believe my liver is diseased.",
    "The Trial": "Someone must have been telling lies about Josef K., for without having done anything wrong he was arrested one fine morning.",
    "Little Women": "Christmas won't be Christmas without any presents.",
    "The Call of the Wild": "Buck did not read the newspapers, or he would have known that trouble was brewing for every tide-water dog.",
    "Gettysburg Address": "Four score and seven years ago our fathers brought forth, upon this continent, a new nation.",
    "On the Origin of Species": "There is grandeur in this view of life, with its several powers.",
    "Silas Marner": "In the days when the spinning-wheels hummed busily in the farmhouses.",
}
QUERIES = (
    "rich bachelors are supposed to look for a bride",
    "aliens observe the Earth",
    "a boy who never becomes an adult",
    "a man turns into an insect overnight",
    "the founding of a country",
    "arrested without a reason",
    "a girl is bored",
    "a holiday without gifts",
)
SENTENCES = (*QUERIES, *OPENINGS.values())


def ranking(embeddings: Floats) -> Floats:
    """For each query the numbers of the openings, the nearest first, from the embeddings of SENTENCES."""
    return rank(embeddings[: len(QUERIES)], embeddings[len(QUERIES) :])


def rank(queries: Floats, texts: Floats) -> Floats:
    """For each query the numbers of the texts, the one with the largest inner product first.

    >>> rank(np.asarray([[0.1, 0.9, 0.4]]), np.eye(3))
    array([[1, 2, 0]])
    """
    return np.argsort(-(queries @ texts.T), axis=-1, kind="stable")
