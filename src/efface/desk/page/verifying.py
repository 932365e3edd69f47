"""Verify a bundle that is dropped on the page, against the key that the page was started with."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from efface.desk.page.office import Office, upload
from efface.reporting.refusals import REASONS
from efface.reporting.signing import load_public_key
from efface.reporting.verify import Verification, verify_bundle


class VerifyForm:
    """Verifies a bundle, with the file of a model if there is one."""

    def __init__(self, office: Office) -> None:
        self.office = office

    def show(self, request: Request) -> Response:
        """The form."""
        return self._page(None, "")

    def check(self, request: Request, form: FormData) -> Response:
        """The outcome. What was uploaded is removed again."""
        bundle, weights, key = (upload(form, name) for name in ("bundle", "weights", "key"))
        if bundle is None:
            return self._page(None, "No bundle was chosen.")
        with tempfile.TemporaryDirectory(prefix="efface-") as home:
            folder = Path(home)
            pinned = self.office.settings.public_key if key is None else _stored(key, folder / "key.pem")
            against = None if weights is None else _stored(weights, folder / "weights")
            found = verify_bundle(_stored(bundle, folder / "bundle.intoto.jsonl"), pinned, against)
        return self._page(found, "", bundle.filename or "", own_key=key is not None)

    def _page(self, found: Verification | None, problem: str, name: str = "", *, own_key: bool = False) -> Response:
        pinned = self.office.settings.public_key
        return self.office.templates.page(
            "verify.html", 400 if problem else 200, found=found, problem=problem, name=name, own_key=own_key,
            meaning=REASONS[found.reason] if found is not None and found.reason is not None else "",
            pinned=None if pinned is None else load_public_key(pinned).keyid,
        )  # fmt: skip


def _stored(sent: UploadFile, path: Path) -> Path:
    """Write an uploaded file down under a name of our own."""
    sent.file.seek(0)
    with open(path, "wb") as file:
        shutil.copyfileobj(sent.file, file)
    return path
