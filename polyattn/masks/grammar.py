"""Masks from text, such as "causal & window(2, 0)": names, integers, & | ~ and brackets, nothing else."""

from __future__ import annotations

import ast

from polyattn.masks.algebra import Mask
from polyattn.masks.words import WORDS


def parse_mask(text: str) -> Mask:
    """The mask that a text describes; ValueError with the place where it does not.

    >>> parse_mask("causal & ~window(1, 0)")
    <mask causal() & ~window(1, 0)>
    """
    if len(text) > 1000:
        raise ValueError(f"mask: expected at most 1000 characters, got {len(text)}; write a shorter mask")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise _wrong(text, "it does not parse") from None
    return _mask(tree.body, text)


def _mask(node: ast.expr, text: str) -> Mask:
    match node:
        case ast.BinOp(left=left, op=ast.BitAnd(), right=right):
            return _mask(left, text) & _mask(right, text)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _mask(left, text) | _mask(right, text)
        case ast.UnaryOp(op=ast.Invert(), operand=operand):
            return ~_mask(operand, text)
        case ast.Name(id=name):
            return _call(name, [], text)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]):
            return _call(name, [_number(arg, text) for arg in args], text)
    raise _wrong(text, f"{ast.unparse(node)!r} is not a mask")


def _number(node: ast.expr, text: str) -> int | None:
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return -value
    raise _wrong(text, f"{ast.unparse(node)!r} is not an integer or None")


def _call(name: str, args: list[int | None], text: str) -> Mask:
    if name not in WORDS:
        raise _wrong(text, f"{name!r} is not the name of a mask")
    try:
        mask: Mask = WORDS[name](*args)
    except TypeError as error:
        raise _wrong(text, str(error)) from None
    return mask


def _wrong(text: str, why: str) -> ValueError:
    return ValueError(
        f"mask: expected {', '.join(WORDS)} with integers, joined by & | ~ and brackets, got {text[:80]!r}: {why}; "
        "write for example: causal & window(2, 0)"
    )
