"""What the page is started with: keys, settings of plans, and who acts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from efface.reporting.signing import CryptoSigner


@dataclass(frozen=True)
class PageSettings:
    """What the page is started with."""

    signer: CryptoSigner | None = None
    """Signs what is released and erased; without it nothing is released here."""
    public_key: Path | None = None
    """The public key that uploaded bundles are checked against."""
    plan: Mapping[str, Any] = field(default_factory=dict)
    """Settings of plans, as ``efface request plan`` takes them; what is chosen on the page wins."""
    actor: str = ""
    """Who acts; by default ``$EFFACE_ACTOR``, else the name of the account."""
    own_modules: tuple[str, ...] = ()
    """Functions of the user's that may build networks, as ``package:function``: consent for what the page starts."""
