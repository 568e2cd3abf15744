"""A Llama in plain PyTorch: float32 weights that are trained, bfloat16 copies that compute.

Three ways through it: `last_states` (prompts, for features), `losses` (whole sequences, with gradients), and `Sampler`
(a decode step of one shape, which a CUDA graph replays). Rows are padded on the right everywhere, so attention is
causal without a mask and a token's place is its position. A test compares it with the one of transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

Tokens = list[int]


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama.

    Attributes:
        layers, hidden, heads, kv_heads, head: of the transformer; ``head`` is the width of one.
        theta, epsilon: of the rotary positions and of the norms.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    theta: float
    epsilon: float

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """The sizes in a model's ``config.json``."""
        heads = config["num_attention_heads"]
        theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        head = config.get("head_dim") or config["hidden_size"] // heads
        kv_heads = config["num_key_value_heads"]
        return cls(
            config["num_hidden_layers"], config["hidden_size"], heads, kv_heads, head, theta, config["rms_norm_eps"]
        )


class Llama:
    """A causal language model with tied embeddings.

    Attributes:
        shape: its sizes.
        masters: float32 weights by name; query, key and value are one matrix of a layer, gate and up another.
        weights: their copies in the type that computes, leaves of the graph.
    """

    def __init__(
        self, shape: Shape, masters: dict[str, torch.Tensor], device: torch.device, dtype: torch.dtype
    ) -> None:
        """Place weights on a device."""
        self.shape, self.device, self.dtype = shape, device, dtype
        self.masters = {name: weight.to(device, torch.float32, copy=True) for name, weight in masters.items()}
        self.weights = {name: weight.to(dtype, copy=True) for name, weight in self.masters.items()}
        for weight in self.weights.values():
            weight.requires_grad_()
        self._rotary: tuple[torch.Tensor, torch.Tensor] = self._angles(512)

    @classmethod
    def load(cls, folder: Path, device: torch.device, dtype: torch.dtype) -> Llama:
        """Load a folder with ``config.json`` and ``model.safetensors``, of transformers or of `save`."""
        shape = Shape.of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        return cls(shape, _fused(load_file(folder / "model.safetensors"), shape), device, dtype)

    def save(self, folder: Path, config: dict[str, Any]) -> None:
        """Write the float32 weights and a config into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file({name: weight.cpu() for name, weight in self.masters.items()}, folder / "model.safetensors")

    def assign(self, masters: dict[str, torch.Tensor]) -> None:
        """Take other weights, in place."""
        for name, weight in masters.items():
            self.masters[name].copy_(weight)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the float32 weights into those that compute."""
        torch._foreach_copy_(list(self.weights.values()), list(self.masters.values()))

    def run(
        self, tokens: torch.Tensor, seen: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None
    ) -> torch.Tensor:
        """The state of every token after the last layer, before the final norm; ``[rows, longest, hidden]``.

        Args:
            tokens: ``[rows, longest]``, padded on the right.
            seen: called in each layer with its number, its keys and values (``[rows, longest, kv_heads, head]``), and
                the states after it.
        """
        shape, weights = self.shape, self.weights
        rows, longest = tokens.shape
        cosines, sines = (table[:longest, None] for table in self._rotary)
        x = F.embedding(tokens, weights["embedding"])
        for layer in range(shape.layers):
            query, key, value = self._queries(layer, x, cosines, sines)
            mixed = F.scaled_dot_product_attention(
                query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), is_causal=True, enable_gqa=True
            )
            x = self._after_attention(layer, x, mixed.transpose(1, 2).reshape(rows, longest, -1))
            if seen is not None:
                seen(layer, key, value, x)
        return x

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of the next token, ``[..., vocabulary]``."""
        return F.linear(self._norm("norm", states), self.weights["embedding"])

    def last_states(self, prompts: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """After the last token of each prompt: the states after the last two layers, and logits; ``[P, ...]`` each."""
        tokens, lengths = self.padded(prompts)
        rows = torch.arange(len(prompts), device=self.device)
        ends: list[torch.Tensor] = []
        with torch.no_grad():
            self.run(tokens, lambda layer, key, value, x: ends.append(x[rows, lengths - 1]))
            # The last of transformers' hidden states is after the final norm.
            return self._norm("norm", ends[-1]), ends[-2], self.logits(ends[-1])

    def losses(self, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross entropy of every token of answers that follow prompts, and the row of each; ``[tokens]`` each."""
        tokens, _ = self.padded([[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)])
        starts = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        ends = starts + torch.tensor([len(answer) for answer in answers], device=self.device)
        places = torch.arange(tokens.shape[1] - 1, device=self.device)
        asked = (places >= starts[:, None] - 1) & (places < ends[:, None] - 1)
        row, place = asked.nonzero(as_tuple=True)
        # Logits only where an answer's tokens are: a vocabulary is wide.
        logits = self.logits(self.run(tokens[:, :-1])[row, place])
        return F.cross_entropy(logits.float(), tokens[row, place + 1], reduction="none"), row

    def padded(self, rows: Sequence[Tokens], longest: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows padded on the right with token 0, at least to ``longest``, and their lengths."""
        lengths = torch.tensor([len(row) for row in rows])
        tokens = torch.zeros(len(rows), max(longest, int(lengths.max())), dtype=torch.long)
        inside = torch.arange(tokens.shape[1]) < lengths[:, None]
        tokens[inside] = torch.tensor([token for row in rows for token in row])
        return tokens.to(self.device), lengths.to(self.device)

    def _queries(
        self, layer: int, x: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shape = self.shape
        projected = F.linear(self._norm(f"{layer}.attention_norm", x), self.weights[f"{layer}.qkv"])
        heads = projected.unflatten(-1, (-1, shape.head))
        turned, value = heads.split([shape.heads + shape.kv_heads, shape.kv_heads], -2)
        turned = torch.addcmul(turned * cosines, turned.roll(shape.head // 2, -1), sines)
        query, key = turned.split([shape.heads, shape.kv_heads], -2)
        return query, key, value

    def _after_attention(self, layer: int, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
        x = x + F.linear(mixed, self.weights[f"{layer}.output"])
        both = F.linear(self._norm(f"{layer}.mlp_norm", x), self.weights[f"{layer}.gate_up"])
        gate, up = both.chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.weights[f"{layer}.down"])

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (self.shape.hidden,), self.weights[name], self.shape.epsilon)

    def _angles(self, places: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines by place, ``[places, head]``; the first half of the sines has the sign of the rotation."""
        half = self.shape.head // 2
        rates = self.shape.theta ** (-torch.arange(half, device=self.device, dtype=torch.float32) / half)
        angles = torch.arange(places, device=self.device, dtype=torch.float32)[:, None] * rates
        cosines, sines = angles.cos(), angles.sin()
        return torch.cat([cosines, cosines], 1).to(self.dtype), torch.cat([-sines, sines], 1).to(self.dtype)


class Sampler:
    """Samples answers at temperature 1, a fixed number of rows at a time, with keys and values kept in place.

    On a GPU the decode step is captured in a CUDA graph once; where that fails, it is run as it is.
    """

    def __init__(self, model: Llama, rows: int, places: int, longest: int, end: int) -> None:
        """Reserve memory for ``rows`` sequences of at most ``places`` tokens, of which ``longest`` are the answer's.

        Args:
            model: whose weights are read at each step.
            rows: sequences at a time.
            places: most tokens of a prompt and its answer.
            longest: most tokens of an answer.
            end: the token that ends it.
        """
        self.model, self.rows, self.longest, self.end = model, rows, longest, end
        shape, device = model.shape, model.device
        self.places = places = -(-places // 16) * 16
        cache = (shape.layers, rows, places, shape.kv_heads, shape.head)
        self.keys, self.values = (torch.zeros(cache, device=device, dtype=model.dtype) for _ in range(2))
        self.token, self.place = (torch.zeros(rows, device=device, dtype=torch.long) for _ in range(2))
        self.step = torch.zeros(1, device=device, dtype=torch.long)
        self.done = torch.zeros(rows, device=device, dtype=torch.bool)
        self.written = torch.zeros(rows, longest, device=device, dtype=torch.long)
        self._row = torch.arange(rows, device=device)
        self._columns = torch.arange(places, device=device)
        self._graph: Any = None
        self.captured = False
        if device.type == "cuda":
            self._capture()

    @torch.no_grad()
    def sample(self, prompts: Sequence[Tokens], counts: Sequence[int], seed: int) -> list[Tokens]:
        """Sample ``counts`` answers to each prompt; flat, group after group, each with its end where it has one.

        Raises:
            ValueError: more answers than rows.
        """
        total = sum(counts)
        if total > self.rows:
            raise ValueError(f"{total} answers were asked for, and there are {self.rows} rows: ask in parts")
        which = torch.repeat_interleave(torch.arange(len(prompts)), torch.tensor(counts)).to(self.model.device)
        self._read(prompts, which, total)
        torch.manual_seed(seed)
        for step in range(self.longest):
            if self._graph is None:
                self._decode()
            else:
                self._graph.replay()
            if step % 8 == 7 and bool(self.done[:total].all()):
                break
        written = self.written[:total].tolist()
        return [row[: row.index(self.end) + 1] if self.end in row else row for row in written]

    def _read(self, prompts: Sequence[Tokens], which: torch.Tensor, total: int) -> None:
        """Keys and values of prompts, each read once; the first decode step reads a prompt's last token."""
        tokens, lengths = self.model.padded(prompts)

        def keep(layer: int, key: torch.Tensor, value: torch.Tensor, x: torch.Tensor) -> None:
            self.keys[layer, :total, : tokens.shape[1]] = key[which]
            self.values[layer, :total, : tokens.shape[1]] = value[which]

        self.model.run(tokens, keep)
        self.place[:total] = lengths[which] - 1
        self.token[:total] = tokens[which, lengths[which] - 1]
        self.written.fill_(self.end)
        self.place[total:], self.token[total:] = 0, 0
        self.done.fill_(False)
        self.step.zero_()

    def _decode(self) -> None:
        """One token more for every row, all in place: no shape, and no value on the host, depends on the rows."""
        model, shape = self.model, self.model.shape
        cosines, sines = (table[self.place][:, None] for table in model._rotary)
        hidden = torch.zeros((), device=model.device, dtype=model.dtype)
        past = torch.where(self._columns <= self.place[:, None], hidden, float("-inf"))[:, None, None]
        # The heads that share keys are rows of one query, so that no keys are copied.
        group = shape.heads // shape.kv_heads
        past = past.expand(-1, shape.kv_heads, group, -1)
        x = F.embedding(self.token, model.weights["embedding"])
        for layer in range(shape.layers):
            query, key, value = model._queries(layer, x, cosines, sines)
            self.keys[layer].index_put_((self._row, self.place), key)
            self.values[layer].index_put_((self._row, self.place), value)
            mixed = F.scaled_dot_product_attention(
                query.unflatten(1, (shape.kv_heads, group)),
                self.keys[layer].transpose(1, 2),
                self.values[layer].transpose(1, 2),
                past,
            )
            x = model._after_attention(layer, x, mixed.reshape(self.rows, -1))
        logits = model.logits(x).float()
        # The largest of logits plus Gumbel noise is a sample of their softmax.
        chosen = (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)
        chosen = torch.where(self.done, self.end, chosen)
        self.written.index_copy_(1, self.step, chosen[:, None])
        self.done |= chosen == self.end
        self.token.copy_(chosen)
        self.place.add_(1).clamp_(max=self.places - 1)
        self.step.add_(1).clamp_(max=self.longest - 1)

    @torch.no_grad()
    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._decode()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._decode()
        except RuntimeError as error:  # slower, but the study goes on
            print(f"the decode step was not captured: {error}", flush=True)
            torch.cuda.synchronize()
            return
        self._graph, self.captured = graph, True


def _fused(weights: dict[str, torch.Tensor], shape: Shape) -> dict[str, torch.Tensor]:
    """Weights by our names, from those of transformers or from our own."""
    if "embedding" in weights:
        return weights
    found = {"embedding": weights["model.embed_tokens.weight"], "norm": weights["model.norm.weight"]}
    for layer in range(shape.layers):
        part = f"model.layers.{layer}."
        attention = [weights[f"{part}self_attn.{name}_proj.weight"] for name in ("q", "k", "v")]
        found[f"{layer}.qkv"] = torch.cat(attention)
        found[f"{layer}.output"] = weights[f"{part}self_attn.o_proj.weight"]
        found[f"{layer}.gate_up"] = torch.cat([weights[f"{part}mlp.{name}_proj.weight"] for name in ("gate", "up")])
        found[f"{layer}.down"] = weights[f"{part}mlp.down_proj.weight"]
        found[f"{layer}.attention_norm"] = weights[f"{part}input_layernorm.weight"]
        found[f"{layer}.mlp_norm"] = weights[f"{part}post_attention_layernorm.weight"]
    return found
