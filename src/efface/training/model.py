"""The model that every objective trains, as named parts, and the protocol of objectives.

A part with a name (backbone, head, predictor, momentum encoder, queue) is seen by copies, checkpoints, digests and
purges, so no state that remembers training images is overlooked.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from efface.errors import EffaceError
from efface.training.batch import Batch, ContrastiveTerms, LossOutput
from efface.training.micro_batches import run_in_parts
from efface.training.networks.attention import compute_attention_maps
from efface.training.networks.text_tower import TextTower
from efface.training.processes import ONE, World


class Model(nn.Module):
    """A backbone with its head, and whatever else its objective trains.

    ``backbone``          images to features, [B, C, H, W] -> [B, dim]; the part that is deployed.
    ``head``              features to logits (classifiers) or to the projector's embedding (encoders).
    ``predictor``         predictor of BYOL and SimSiam, or ``None``.
    ``momentum_encoder``  moving average of backbone and head (MoCo, BYOL), or ``None``; never receives a gradient.
    ``queue``             MoCo's normalized keys of past training images, [K, d], or ``None``.
    ``text``              text tower of an image-text model, captions to embeddings, or ``None``.
    ``scale``             logarithm of its 1 / temperature, one number, or ``None``.

    The momentum encoder is a module and the queue a buffer, so copies, checkpoints and digests include them.

    Args:
        backbone: Network from images to features.
        head: Network from features to logits or embeddings.
        objective: The objective that built the model, and trains it.
        mean: Mean per channel, [C]; the model normalizes images in [0, 1] itself.
        std: Standard deviation per channel, [C].

    Example:
        >>> model = recipe.start(seed=0)
        >>> features = model.features(images)

    """

    mean: Tensor
    std: Tensor
    queue: Tensor | None
    scale: nn.Parameter | None
    micro_batch: int | None = None
    """Images that go through a network at once; ``None``: the whole batch. See :mod:`efface.training.micro_batches`."""

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
        self._shared: list[tuple[Tensor, nn.Module, Tensor]] | None = None
        self.bf16 = False
        """Run the networks under bfloat16 autocast; outputs are float32 in any case."""
        self.world: World = ONE
        """The processes among which the networks divide the rows of a batch."""
        self.reversed_colors = False
        """Whether the networks are given blue, green, red; images here are always red, green, blue."""
        convs = [module for module in backbone.modules() if isinstance(module, nn.Conv2d)]
        # Faster, but with fewer than 8 channels the CPU kernels of torch 2.14 write past their buffers (AVX2).
        self.channels_last = bool(convs) and all(conv.out_channels % 8 == 0 for conv in convs)

    def normalize(self, x: Tensor) -> Tensor:
        """Turn images in [0, 1] into what the networks are given: order of the colors, mean, standard deviation."""
        return ((x.flip(1) if self.reversed_colors else x) - self.mean) / self.std

    def features(self, x: Tensor, tower: Model | Tower | None = None) -> Tensor:
        """Compute the backbone's features of images.

        Args:
            x: Images in [0, 1], [B, C, H, W].
            tower: Whose backbone to use, such as the momentum encoder; by default the model's own.

        Returns:
            Features, [B, dim] float32.

        """
        backbone = (tower or self).backbone
        for image, network, cached in self._shared or ():
            if image is x and network is backbone and (cached.requires_grad or not torch.is_grad_enabled()):
                return cached
        features = self.world.spread(lambda rows: self._run_backbone(backbone, rows), x)
        if self._shared is not None:
            self._shared.append((x, backbone, features))
        return features

    def _run_backbone(self, backbone: nn.Module, x: Tensor) -> Tensor:
        """Compute features of images, [n, dim] float32."""
        normalized = self.normalize(x)
        if self.channels_last:
            normalized = normalized.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            return run_in_parts(backbone, normalized, self.micro_batch).float()

    def forward(self, x: Tensor, tower: Model | Tower | None = None) -> Tensor:
        """Compute logits [B, classes], or the projector's un-normalized embeddings [B, d], of images in [0, 1]."""
        if self._shared is not None:
            return self.project(self.features(x, tower), tower)
        backbone = (tower or self).backbone
        return self.world.spread(lambda rows: self.project(self._run_backbone(backbone, rows), tower), x)

    def project(self, features: Tensor, tower: Model | Tower | None = None) -> Tensor:
        """Apply the head to features [B, dim]."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.bf16):
            return (tower or self).head(features).float()

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Compute the text tower's un-normalized embeddings of B captions, [B, d] float32.

        Raises:
            EffaceError: If the model has no text tower.

        """
        text = self.text
        if text is None:
            raise EffaceError("This model has no text tower.", remedy="Train one with the objective clip.")
        with torch.autocast(self.mean.device.type, torch.bfloat16, enabled=self.bf16):
            return self.world.spread(lambda rows: run_in_parts(text, rows, self.micro_batch).float(), captions)

    def outputs(self, batch: Batch) -> Tensor:
        """Compute the outputs that :meth:`Objective.distance` compares between two models.

        Returns:
            Logits or embeddings of the first views, [B, d]; for image-text models with the captions' embeddings
            appended, [B, 2d].

        """
        z = self(batch.view(0))
        return z if self.text is None else torch.cat([z, self.encode_text(batch.captions())], -1)

    def attention(self, x: Tensor) -> Tensor:
        """Compute the last block's attention to each patch of images in [0, 1], [B, rows, columns] >= 0.

        Runs in evaluation mode and without gradient.

        Raises:
            EffaceError: If the backbone is not a transformer whose attention can be read.

        """
        with frozen_statistics(self), torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            return compute_attention_maps(self.backbone, self.normalize(x))

    def set_micro_batch(self, size: int | None) -> None:
        """Let at most so many images go through each of its networks at once; None: the whole batch."""
        for module in self.modules():
            if isinstance(module, Model):
                module.micro_batch = size

    def add_momentum_encoder(self) -> None:
        """Add a momentum encoder that starts as an exact copy of backbone and head, or reset it to one."""
        self.momentum_encoder = Tower(copy.deepcopy(self.backbone), copy.deepcopy(self.head)).requires_grad_(False)

    @torch.no_grad()
    def update_ema(self, momentum: float) -> None:
        """Update the momentum encoder: ema = momentum * ema + (1 - momentum) * online. Does nothing without one."""
        if self.momentum_encoder is None:
            return
        online = [*self.backbone.parameters(), *self.head.parameters()]
        torch._foreach_lerp_([*self.momentum_encoder.parameters()], online, 1 - momentum)  # pyright: ignore

    def trainable_parameters(self) -> list[nn.Parameter]:
        """List the parameters that training changes: all but those of the momentum encoder."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def digest(self) -> str:
        """Hash every parameter and buffer with its name, shape and type: see :func:`digest`."""
        return digest(dict(self.state_dict()))


class Objective(Protocol):
    """A training objective: a frozen dataclass of its hyper-parameters.

    ``loss`` is pure. State (momentum encoder, queue) changes only in ``after_step`` and ``purge``.
    """

    needs_labels: ClassVar[bool]
    """Whether the loss reads labels: the model is a classifier."""
    contrasts_pairs: ClassVar[bool]
    """Whether the loss compares pairs, so that :meth:`contrastive_terms` can split it."""
    needs_captions: ClassVar[bool]
    """Whether the loss reads captions: the model has a text tower."""

    def build_model(self, backbone: nn.Module, dim: int, classes: int, mean: Tensor, std: Tensor) -> Model:
        """Build the model to train: head, predictor, momentum encoder and queue on a backbone of ``dim`` features."""
        ...

    def loss(self, model: Model, batch: Batch) -> LossOutput:
        """Compute the loss of each example, [B]; repeated calls on the same batch give the same values."""
        ...

    def anchor_loss(self, model: Model, batch: Batch) -> Callable[[Tensor], Tensor]:
        """Return the loss of each example, [B], as a function of its anchor view alone, [B, C, H, W].

        Everything else in the batch (second views, other examples, queue, keys) is held constant, so the gradient
        with respect to one anchor is the gradient of that example's own loss.
        """
        ...

    def contrastive_terms(self, model: Model, batch: Batch, others: Batch) -> ContrastiveTerms:
        """Split the loss into attraction and repulsion, and embed the partners (second views, captions) of ``others``.

        The partners of ``others`` go through the network in the same pass, but are not part of the loss. ``others``
        may be empty.

        Raises:
            EffaceError: Unless :attr:`contrasts_pairs`.

        """
        ...

    def after_step(self, model: Model, carry: Tensor | None) -> None:
        """Move momentum encoder and queue once, after an optimizer step; without ``carry`` the queue is unchanged."""
        ...

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Measure how far two models disagree on each example, [B] >= 0, from their :meth:`Model.outputs`."""
        ...

    def corrupt_targets(self, batch: Batch, rng: torch.Generator) -> Batch:
        """Return the batch with wrong targets: other labels, second views or captions."""
        ...

    def purge(self, model: Model, retain: Iterable[Batch]) -> dict[str, str]:
        """Remove what the state remembers of training images; return what was done with each part, by its name."""
        ...


class Tower(nn.Module):
    """A backbone with its head, such as a momentum encoder."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head


class frozen_statistics:
    """Context in which BatchNorm uses its running statistics without updating them, and dropout is off.

    Needed for per-example gradients: with batch statistics, an example's loss depends on every other example.
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
    """Context in which a model computes the features of the same tensor only once.

    For a loss around a loss: the second one gets the features that the first one computed, with their gradient, and
    batch statistics are updated once. Do not change weights or mode inside.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.before = model, model._shared

    def __enter__(self) -> None:
        self.model._shared = [] if self.before is None else self.before

    def __exit__(self, *_: object) -> None:
        self.model._shared = self.before


def digest(tensors: dict[str, Tensor]) -> str:
    """Hash named tensors (name, type, shape and bytes) with SHA-256, in the order of their names."""
    result = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu()
        result.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        flat = value.contiguous().flatten()  # flatten before viewing as bytes: a 1x1 kernel may keep odd strides,
        flat = flat.as_strided(flat.shape, (1,))  # and so may a single number that was expanded
        result.update(flat.view(torch.uint8).numpy().data)
    return result.hexdigest()


_MODULE_NAME, _STORED_NAME = "momentum_encoder.", "twin."
"""State dicts, and so files and digests, store the momentum encoder as ``twin``, its name in the first format."""


def _write_stored_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename_prefix(state, prefix + _MODULE_NAME, prefix + _STORED_NAME)


def _read_stored_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename_prefix(state, prefix + _STORED_NAME, prefix + _MODULE_NAME)


def _rename_prefix(state: dict[str, Any], old: str, new: str) -> None:
    for name in [name for name in state if name.startswith(old)]:
        state[new + name.removeprefix(old)] = state.pop(name)
