"""What the operators take, version by version, and the sentence for what they do not take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from polyattn.arrays import Array, Backend, backend_of, is_array

__all__ = ["NEWEST", "SIGNATURES", "Attribute", "Signature", "arguments"]

#: The newest opset whose operators are known to be these.
NEWEST = 28


class Attribute(NamedTuple):
    """One attribute: int, float or str. A default of None means that leaving it out is a value of its own."""

    kind: type
    default: int | float | str | None = None
    required: bool = False


class Signature(NamedTuple):
    """One version of an operator, in force from the opset `since` on."""

    since: int
    inputs: tuple[str, ...]
    required: int  # how many of the inputs must be there, the first ones
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


_ATTENTION = Signature(
    since=23,
    inputs=("Q", "K", "V", "attn_mask", "past_key", "past_value"),
    required=3,
    outputs=("Y", "present_key", "present_value", "qk_matmul_output"),
    attributes={
        "is_causal": Attribute(int, 0),
        "kv_num_heads": Attribute(int),
        "q_num_heads": Attribute(int),
        "qk_matmul_output_mode": Attribute(int, 0),
        "scale": Attribute(float),
        "softcap": Attribute(float, 0.0),
        "softmax_precision": Attribute(int),
    },
)
_ATTENTION_24 = _ATTENTION._replace(since=24, inputs=(*_ATTENTION.inputs, "nonpad_kv_seqlen"))
_WINDOW = {"left_window_size": Attribute(int, -1), "right_window_size": Attribute(int, -1)}

#: Every version of every operator, the oldest first.
SIGNATURES: Mapping[str, tuple[Signature, ...]] = {
    "Attention": (
        _ATTENTION,
        _ATTENTION_24,
        _ATTENTION_24._replace(since=25, attributes={**_ATTENTION_24.attributes, **_WINDOW}),
    ),
    "LinearAttention": (
        Signature(
            since=27,
            inputs=("query", "key", "value", "past_state", "decay", "beta"),
            required=3,
            outputs=("output", "present_state"),
            attributes={
                "chunk_size": Attribute(int, 64),
                "kv_num_heads": Attribute(int, required=True),
                "q_num_heads": Attribute(int, required=True),
                "scale": Attribute(float, 0.0),
                "update_rule": Attribute(str, "gated_delta"),
            },
        ),
    ),
    "RotaryEmbedding": (
        Signature(
            since=23,
            inputs=("X", "cos_cache", "sin_cache", "position_ids"),
            required=3,
            outputs=("Y",),
            attributes={
                "interleaved": Attribute(int, 0),
                "num_heads": Attribute(int),
                "rotary_embedding_dim": Attribute(int, 0),
            },
        ),
    ),
    "TensorScatter": (
        Signature(
            since=24,
            inputs=("past_cache", "update", "write_indices"),
            required=2,
            outputs=("present_cache",),
            attributes={"axis": Attribute(int, -2), "mode": Attribute(str, "linear")},
        ),
    ),
}


def arguments(
    who: str,
    operator: str,
    opset: int,
    inputs: Mapping[str, Array | None],
    attributes: Mapping[str, Any],
) -> tuple[Backend, dict[str, Any]]:
    """The library of the inputs, and every attribute with its value; or the sentence that says what is wrong.

    who: the function that was called; operator: its name in ONNX; inputs: all that the newest version has.
    """
    signature = _version(who, operator, opset)
    backends: list[Backend] = []
    for name, array in inputs.items():
        if array is None:
            if name in signature.inputs[: signature.required]:
                raise TypeError(
                    f"{who}: expected the input {name}, got None; {operator} cannot do without it"
                )
            continue
        if name not in signature.inputs:
            raise ValueError(
                f"{who}: expected only inputs of {operator} of opset {opset} ({', '.join(signature.inputs)}), got "
                f"{name}; {_came(operator, name)}"
            )
        if not is_array(array):
            raise TypeError(
                f"{who}: expected {name} to be an array, got {type(array).__name__}; inputs are arrays, attributes "
                "come by name"
            )
        backends.append(backend_of(array))
        if backends[-1] is not backends[0]:
            raise TypeError(
                f"{who}: expected all inputs in one library, got {backends[0].name} and, for {name}, {backends[-1].name}; "
                "convert them"
            )
    unknown = [name for name in attributes if name not in signature.attributes]
    if unknown:
        raise TypeError(
            f"{who}: expected attributes of {operator} of opset {opset} "
            f"({', '.join(sorted(signature.attributes))}), got {unknown[0]!r}; {_came(operator, unknown[0])}"
        )
    return backends[0], {
        name: _value(who, name, attribute, attributes) for name, attribute in signature.attributes.items()
    }


def _version(who: str, operator: str, opset: int) -> Signature:
    versions = SIGNATURES[operator]
    known = isinstance(opset, int) and not isinstance(opset, bool) and versions[0].since <= opset <= NEWEST
    if not known:
        raise ValueError(
            f"{who}: expected an opset from {versions[0].since}, where {operator} came, to {NEWEST}, the newest "
            f"that is known here, got {opset!r}; name the opset of the model"
        )
    return [version for version in versions if version.since <= opset][-1]


def _came(operator: str, name: str) -> str:
    for version in SIGNATURES[operator]:
        if name in version.inputs or name in version.attributes:
            return f"it came with opset {version.since}"
    return "no version of it has that"


def _value(who: str, name: str, attribute: Attribute, given: Mapping[str, Any]) -> Any:
    value = given.get(name)
    if value is None:
        if attribute.required:
            raise TypeError(f"{who}: expected the attribute {name}, got none; it has no default")
        return attribute.default
    if isinstance(value, bytes):  # as strings are in a protobuf
        value = value.decode()
    kinds = {int: (int,), float: (int, float), str: (str,)}[attribute.kind]
    if not isinstance(value, kinds):
        raise TypeError(
            f"{who}: expected {name} to be a Python {attribute.kind.__name__}, got {value!r}; "
            "attributes are constants"
        )
    return attribute.kind(value)
