"""The data that an encoder embeds: those that the user names, else those of its run, prepared as it was trained."""

from __future__ import annotations

from pathlib import Path

from efface.data.dataset import Data
from efface.files import REQUEST
from efface.interop.checkpoint_file import read_foreign
from efface.interop.preprocessing import read_stated
from efface.runs.data_at_hand import data_of_run, load_data
from efface.runs.folder import read_request
from efface.runs.foreign import is_foreign
from efface.runs.preprocessing import prepare_as_before, prepare_as_stated
from efface.runs.requests import EmbedRequest


def load_embedding_data(path: Path, request: EmbedRequest) -> tuple[Data, list[str]]:
    """The data of the request, else those of the run, and how their pictures are prepared."""
    path = Path(path)
    run = path if (path / REQUEST).is_file() else path.parent.parent if path.parent.name == "foreign" else None
    if run is not None and (run / REQUEST).is_file():
        if not request.data:
            return data_of_run(run), []
        return load_data({"data": prepare_as_before(request.data, read_request(run).get("data"))}), []
    settings, notes = request.data, list[str]()
    if settings and is_foreign(path):
        file = read_foreign(path, trust_pickle=request.consent.covers(path, named=True))
        settings, notes = prepare_as_stated(settings, read_stated(file))
    return load_data({"data": settings}), [f"{path.name}: {note}" for note in notes]
