"""One model of an audit, and the files in which its observations are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from efface import api
from efface.auditing.evidence import Cost
from efface.auditing.observations import Observations
from efface.auditing.observers.spot_check import spot_check
from efface.data.split import Split
from efface.errors import EffaceError
from efface.files import READ_ONLY, scratch_folder
from efface.runs import artifacts
from efface.runs.binding import Binder, stored_file, withheld_file
from efface.runs.remaining import RemainingTime
from efface.runs.run import Progress
from efface.training.checkpoint import Checkpoint
from efface.training.devices import resolve_device
from efface.training.processes import current_world


@dataclass(frozen=True, eq=False)
class AuditedModel:
    """One model of an audit: its weights, what is known about it, and where its observations are stored."""

    meta: dict[str, Any]
    weights: Path
    load: Callable[[], Checkpoint]
    observations_file: Path
    claim: str = ""
    """What the user states about it without proof; empty if everything was checked."""
    copies: tuple[Path, ...] = ()
    """Where an audit of another answer to the same request may have stored the same observations."""

    @property
    def cost(self) -> Cost:
        """The cost of making it."""
        spent = self.meta["cost"]
        return Cost(spent["steps"], spent["examples"], spent["seconds"])

    def observe(self, split: Split, binder: Binder, device: str, progress: Progress) -> Observations:
        """Observe the model on a split, or read the stored observations if they are of this very case.

        Raises:
            EffaceError: The file was edited, or the weights are not those that the run's description says.

        """
        checkpoint, path = self.load(), self.observations_file
        world = current_world()
        there = [file for file in (path, *self.copies) if not binder.recheck and world.agree(file.exists())]
        for file in there:
            stored = Observations.load(file)
            reason = binder.difference(stored, checkpoint.model.digest(), split)
            if not reason:
                model = checkpoint.model.to(resolve_device(device))
                views, withheld = binder.views, binder.withheld
                reason = spot_check(stored, model, binder.data, split, views, binder.watch, withheld)
            if not reason:
                if file != path and world.leads:
                    self._keep(stored, progress)
                return stored
            if file == path:
                progress.say(f"{path} is not used: {reason}. Observing anew")
        progress.say(f"Observing {self.weights.parent.name}")
        checkpoint = replace(checkpoint, recipe=replace(checkpoint.recipe, views=binder.views))
        left = RemainingTime(progress.status, f"Observing {self.weights.parent.name}", 1, "examples")

        def report(done: int, total: int) -> None:
            left.total = total
            left(done)

        observed = api.observe(
            checkpoint, binder.data, split, binder.watch, device=device, withheld=binder.withheld, on_observed=report,
            scratch=scratch_folder(path.parent),
        )  # fmt: skip
        observed.meta.update(binder.facts(split))
        if world.leads and not (binder.keep and path.exists()) and self._keep(observed, progress) and observed.mapped:
            return Observations.load(path)  # its temporary file is not needed any more
        return observed

    def stored_observations(self, split: Split, binder: Binder) -> Observations | None:
        """The stored observations of this model on a split whose examples may be gone, if there are any.

        Pictures that are gone can neither be compared with those that were observed nor be observed again.
        """
        if not self.observations_file.exists() or binder.recheck:
            return None
        stored = Observations.load(self.observations_file)
        model = self.load().model.digest()
        return None if binder.difference(stored, model, split, pictures=False) else stored

    def elsewhere(self, home: Path, split: str) -> AuditedModel:
        """The same model with its observations of another split, in the folder of the audited run."""
        return replace(self, observations_file=stored_file(self.weights.parent, home, self.meta, split), copies=())

    def beside_withheld(self, home: Path, withheld: str) -> AuditedModel:
        """The same model with its observations that hold an auditor's own pictures, in the audited run's folder."""
        return replace(self, observations_file=withheld_file(home, self.meta["digest"], withheld), copies=())

    def _keep(self, observed: Observations, progress: Progress) -> bool:
        """Store observations, and tell whether that was possible; if it is not, that is no reason not to judge."""
        try:
            artifacts.save_observations(self.observations_file, observed)
        except EffaceError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in READ_ONLY:
                raise
            progress.say(f"The observations are not kept: {self.observations_file.parent} cannot be written.")
            return False
        return True
