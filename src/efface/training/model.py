"""Model: a network as named parts (backbone, head, predictor, twin, queue), so that nothing is overlooked."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from efface.errors import EffaceError
from efface.training.batch import Batch, ContrastiveTerms, LossOutput
from efface.training.networks.attention import compute_attention_maps
from efface.training.networks.text_tower import TextTower


class Tower(nn.Module):
    """A backbone with its head: images in, embeddings (or logits) out."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head


class Model(nn.Module):
    """What an objective trains.

    ``backbone``   images to features, [B, C, H, W] -> [B, dim]; what is shipped.
    ``head``       features to logits (classifiers) or to the projector's embedding (encoders).
    ``predictor``  BYOL's predictor, or ``None``.
    ``twin``       the momentum copy of backbone and head (MoCo, BYOL), or ``None``; never receives a gradient.
    ``queue``      MoCo's normalized keys of past training images, [K, d], or ``None``.
    ``text``       the text tower of an image-text model, captions to embeddings, or ``None``.
    ``scale``      its logarithm of 1 / temperature, one number, or ``None``.

    Twin and queue are a module and a buffer, so copies, checkpoints, digests and purges see them.
    Images come in [0, 1]; the model normalizes them itself with ``mean`` and ``std`` per channel.
    """

    mean: Tensor
    std: Tensor
    queue: Tensor | None
    scale: nn.Parameter | None

    def __init__(self, backbone: nn.Module, head: nn.Module, objective: Objective, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.backbone, self.head, self.objective = backbone, head, objective
        self.predictor: nn.Module | None = None
        self.momentum_encoder: Tower | None = None
        self.text: TextTower | None = None
        self.register_state_dict_post_hook(_write_stored_names)
        self.register_load_state_dict_pre_hook(_read_stored_names)
        self.register_parameter("scale", None)
        self.register_buffer("queue", None)
        self.register_buffer("mean", mean.view(1, -1, 1, 1))
        self.register_buffer("std", std.view(1, -1, 1, 1))
        self._seen: list[tuple[Tensor, nn.Module, Tensor]] | None = None
        self.bf16 = False
        """Run the networks under bfloat16 autocast; their outputs are float32 either way."""
        convs = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
        # Faster, but for fewer than 8 channels the CPU kernels of torch 2.14 write past their buffers (AVX2).
        self.channels_last = bool(convs) and all(conv.out_channels % 8 == 0 for conv in convs)

    def features(self, x: Tensor, tower: Model | Tower | None = None) -> Tensor:
        """Backbone output of images in [0, 1], [B, dim] float32; of the twin if it is given as ``tower``."""
        backbone = (tower or self).backbone
        for image, network, known in self._seen or ():
            if image is x and network is backbone and (known.requires_grad or not torch.is_grad_enabled()):
                return known
        scaled = (x - self.mean) / self.std
        if self.channels_last:
            scaled = scaled.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            features = backbone(scaled).float()
        if self._seen is not None:
            self._seen.append((x, backbone, features))
        return features

    def forward(self, x: Tensor, tower: Model | Tower | None = None) -> Tensor:
        """Head of the features: logits [B, classes], or the projector's un-normalized embedding [B, d]."""
        return self.project(self.features(x, tower), tower)

    def project(self, features: Tensor, tower: Model | Tower | None = None) -> Tensor:
        """The head alone, on features [B, dim]."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.bf16):
            return (tower or self).head(features).float()

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """The text tower's un-normalized embeddings of B captions, [B, d] float32."""
        if self.text is None:
            raise EffaceError("This model has no text tower.", remedy="Train one with the objective clip.")
        with torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self.bf16):
            return self.text(captions).float()

    def outputs(self, batch: Batch) -> Tensor:
        """All that it says of each example's first view, [B, d]; of image-text models the caption's beside it, [B, 2d].

        Two such models are compared by the objective's ``distance``.
        """
        z = self(batch.view(0))
        return z if self.text is None else torch.cat([z, self.encode_text(batch.captions())], -1)

    def attention(self, x: Tensor) -> Tensor:
        """How much each patch of images in [0, 1] is looked at in the last block, [B, rows, columns] >= 0.

        In evaluation mode and without gradient; an error for backbones that are not transformers.
        """
        with frozen_statistics(self), torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            return compute_attention_maps(self.backbone, (x - self.mean) / self.std)

    def add_momentum_encoder(self) -> None:
        """Give the model a momentum twin that starts as its exact copy."""
        self.momentum_encoder = Tower(copy.deepcopy(self.backbone), copy.deepcopy(self.head)).requires_grad_(False)

    @torch.no_grad()
    def update_ema(self, momentum: float) -> None:
        """Move the twin towards the online network: twin = momentum * twin + (1 - momentum) * online."""
        if self.momentum_encoder is None:
            return
        own = [*self.backbone.parameters(), *self.head.parameters()]
        torch._foreach_lerp_([*self.momentum_encoder.parameters()], own, 1 - momentum)  # pyright: ignore

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that training moves: everything but the twin."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def digest(self) -> str:
        """SHA-256 of every parameter and buffer with its name, shape and type."""
        return digest(dict(self.state_dict()))


_MODULE_NAME, _STORED_NAME = "momentum_encoder.", "twin."
"""Files and digests have called the momentum encoder ``twin`` from the first format on; they still do."""


def _write_stored_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename_prefix(state, prefix + _MODULE_NAME, prefix + _STORED_NAME)


def _read_stored_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename_prefix(state, prefix + _STORED_NAME, prefix + _MODULE_NAME)


def _rename_prefix(state: dict[str, Any], old: str, new: str) -> None:
    for name in [name for name in state if name.startswith(old)]:
        state[new + name.removeprefix(old)] = state.pop(name)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over named tensors, in the order of their names."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu()
        whole.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        flat = value.contiguous().flatten()  # first flat, then bytes: a 1x1 kernel may keep odd strides,
        flat = flat.as_strided(flat.shape, (1,))  # and so may a single number that was expanded
        whole.update(flat.view(torch.uint8).numpy().data)
    return whole.hexdigest()


class frozen_statistics:
    """Context in which BatchNorm uses its running statistics and does not move them; dropout is off.

    For per-example gradients: with batch statistics, one example's loss depends on every other example.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = [module for module in model.modules() if module.training]

    def __enter__(self) -> None:
        for module in self.modules:
            module.training = False

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            module.training = True


class share_features:
    """Context in which a model computes the features of one and the same tensor once.

    For losses around a loss: the second one to look at a view gets the first one's features, gradient and all, and
    batch statistics move once. Nothing may change weights or mode inside.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.before = model, model._seen

    def __enter__(self) -> None:
        self.model._seen = [] if self.before is None else self.before

    def __exit__(self, *_: object) -> None:
        self.model._seen = self.before


class Objective(Protocol):
    """A frozen dataclass: temperatures and sizes. ``loss`` is pure; state (twin, queue) moves only in ``advance``."""

    needs_labels: ClassVar[bool]
    """Whether the loss reads labels: a classifier."""
    contrasts_pairs: ClassVar[bool]
    """Whether the loss compares pairs, so that :meth:`contrastive_terms` has its parts."""
    needs_captions: ClassVar[bool]
    """Whether the loss reads captions: an image-text model, with a text tower."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """Put the objective's head, twin, predictor or queue on a backbone of ``dim`` features."""
        ...

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Per-example loss [B]. Called twice on the same batch it gives the same values."""
        ...

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """The per-example loss [B] as a function of the anchor view [B, C, H, W] alone.

        Everything else in the batch (other views, other examples, queue, keys) is held constant, so the gradient
        with respect to one anchor is the gradient of that example's own loss.
        """
        ...

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """The loss in its parts, and the embeddings of the partners (second views, captions) of ``others``.

        The further partners go through the network in the same pass, but nothing is compared with them. ``others``
        may be empty. An error for objectives that are not ``paired``.
        """
        ...

    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """Move twin and queue once, after an optimizer step; without a carry the queue stays."""
        ...

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """How far two models disagree about each example, [B] >= 0: ``a``, ``b`` are their :meth:`AuditedModel.outputs`."""
        ...

    def corrupt_targets(self, batch: Batch, rng: torch.Generator) -> Batch:
        """The batch with a wrong target: another label, another image's view, another caption."""
        ...

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """Remove what state remembers of training images: part name to what was done with it."""
        ...
