"""What other libraries call the arguments of attention and of its layers: `foreign.toml`, read when it is asked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, Literal, NamedTuple

__all__ = ["Answer", "Table", "Words", "members", "words_of"]

#: The tables of other libraries' words: of attention, of layers, and of what is only a setting there.
Table = Literal["attention", "layers", "settings"]
#: Who is spoken of as many.
_SEVERAL = ("others", "other libraries", "Keras's layers")


class Answer(NamedTuple):
    """The answer to one word of others."""

    here: str  # what is expected instead
    line: str  # what to write
    needs: tuple[str, ...] = ()  # arguments without which the answer is none
    dialects: tuple[str, ...] = ()  # those of `polyattn.dialects` whose word it is
    others: str = ""  # who else says so

    def fits(self, names: Sequence[str]) -> bool:
        """Whether a function with arguments of these names can be told so."""
        return all(name in names for name in self.needs)

    @property
    def said(self) -> str:
        """Who says so, and who takes such a call as it is."""
        # Versions and entries of one library are one speaker.
        names = [name.rstrip(".0123456789") for name in self.dialects] + [self.others] * bool(self.others)
        speakers = [name for name in dict.fromkeys(names) if name.rpartition(".")[0] not in names]
        by = f"{', '.join(speakers[:-1])} and {speakers[-1]}" if len(speakers) > 1 else speakers[0]
        has = "have" if " and " in by or by in _SEVERAL else "has"
        if not self.dialects:
            return f"as {by} {has} it"
        takes = f"polyattn.dialects.DIALECTS[{self.dialects[0]!r}].attention takes such a call as it is"
        return f"as {by} {has} it ({takes})"


Words = Mapping[str, tuple[Answer, ...]]


@lru_cache
def _read() -> dict[str, Any]:
    return tomllib.loads(files("polyattn.calls").joinpath("foreign.toml").read_text("utf-8"))


@lru_cache
def words_of(table: Table) -> Words:
    """The answers to every word of a table, the likeliest first; calls of layers know the words of attention too."""
    found: dict[str, tuple[Answer, ...]] = {}
    for row in _read()[table]:
        for word in row["words"]:
            answer = Answer(
                row["here"],
                row["line"].format(word),
                tuple(row.get("needs", ())),
                tuple(row.get("dialects", ())),
                row.get("others", ""),
            )
            found[word] = (*found.get(word, ()), answer)
    if table == "layers":
        for word, answers in words_of("attention").items():
            found[word] = (*found.get(word, ()), *answers)
    return found


def members() -> Mapping[str, str]:
    """What other libraries do with a layer by a method or an attribute, and how that is written here."""
    known: Mapping[str, str] = _read()["members"]
    return known
