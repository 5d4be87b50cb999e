"""The data: dates of 1900 to 2099 as people write them, and as ISO 8601 does.

A date of numbers alone is read day, month, year, unless the year stands first: then year, month, day. With
this rule every text has one reading, "03/05/1998" too: 1998-05-03.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Sequence

import numpy as np

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

#: d 3, dd 03, th 3rd; m 5, mm 05, month May; y 1998; weekday Sunday.
PATTERNS = (
    "{d} {month} {y}",
    "{th} {month} {y}",
    "{th} of {month} {y}",
    "the {th} of {month}, {y}",
    "{d}-{month}-{y}",
    "{month} {d}, {y}",
    "{month} {th}, {y}",
    "{month} the {th}, {y}",
    "{weekday}, {d} {month} {y}",
    "{weekday} {th} {month} {y}",
    "{weekday} the {th} of {month} {y}",
    "{weekday}, {month} {d}, {y}",
    "{y}, {month} {d}",
    "{y} {month} {dd}",
    "{d}/{m}/{y}",
    "{dd}/{mm}/{y}",
    "{d}.{m}.{y}",
    "{dd}-{mm}-{y}",
    "{y}/{m}/{d}",
    "{y}{mm}{dd}",
)

#: Character number 0 fills what follows a text, and stands before every answer.
ALPHABET = "\0 ,-./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
NUMBER = {character: i for i, character in enumerate(ALPHABET)}
SOURCE_LENGTH = len("Wednesday the 23rd of September 1998")  # the longest text
TARGET_LENGTH = len("1998-05-03")


def ordinal(n: int) -> str:
    """The number with its ending.

    >>> [ordinal(n) for n in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23)]
    ['1st', '2nd', '3rd', '4th', '11th', '12th', '13th', '21st', '22nd', '23rd']
    """
    return f"{n}{'th' if n // 10 == 1 else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"


def write(date: datetime.date, rng: random.Random) -> str:
    """The date in one of many ways: pattern, long or short names, upper or lower case."""

    def name(long: str) -> str:
        return rng.choice((long, long[:3]))

    text = rng.choice(PATTERNS).format(
        d=date.day,
        dd=f"{date.day:02}",
        th=ordinal(date.day),
        m=date.month,
        mm=f"{date.month:02}",
        month=name(MONTHS[date.month - 1]),
        y=date.year,
        weekday=name(WEEKDAYS[date.weekday()]),
    )
    return rng.choice((text, text, text.lower(), text.upper()))


def split(rng: random.Random, held_out: int) -> tuple[list[datetime.date], list[datetime.date]]:
    """All dates of 1900 to 2099 in random order: those to learn from, and `held_out` others to be tested on."""
    first, last = datetime.date(1900, 1, 1).toordinal(), datetime.date(2099, 12, 31).toordinal()
    dates = [datetime.date.fromordinal(day) for day in rng.sample(range(first, last + 1), last + 1 - first)]
    return dates[held_out:], dates[:held_out]


def numbers(texts: Sequence[str], length: int) -> np.ndarray:
    """The texts as numbers of characters, (texts, length) int32, filled with 0."""
    rows = np.zeros((len(texts), length), np.int32)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = [NUMBER[character] for character in text]
    return rows


def letters(row: Sequence[int]) -> str:
    """The text of a row of numbers."""
    return "".join(ALPHABET[i] for i in row).rstrip("\0")


def examples(dates: Sequence[datetime.date], rng: random.Random) -> tuple[np.ndarray, np.ndarray]:
    """Each date as somebody writes it and as it should be: (dates, 36) and (dates, 10) int32."""
    sources = numbers([write(date, rng) for date in dates], SOURCE_LENGTH)
    return sources, numbers([date.isoformat() for date in dates], TARGET_LENGTH)
