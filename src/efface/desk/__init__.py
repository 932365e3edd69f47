"""The desk for deletion requests: a ledger of what was asked and done, from the first letter to the signed release.

Everything that ``efface request`` and ``efface erase`` do is a method of :class:`Desk`; this is the interface for other
programs, such as a web page. Reading the ledger needs neither PyTorch nor NumPy; ``plan``, ``run`` and ``erase`` do.

    from efface.desk import open_desk

    desk = open_desk("efface-desk")                            # or open_desk(folder, ledger="postgresql://host/name")
    desk.add_model("main", "runs/original")                    # the first model of a chain
    desk.add("DSR-2026-0042", "ids.txt", asked_by="A. Smith", actor="ops")
    desk.plan(["DSR-2026-0042"], {"method": "margin_matching"})     # counts and cost; nothing is changed
    desk.run(["DSR-2026-0042"])                                # unlearns and audits; killed, the same call goes on
    desk.release("DSR-2026-0042", signer)                      # signs, and moves the head of the chain
    desk.erase("DSR-2026-0042", dry_run=True)                  # what still remembers

====================  ==============================================================================================
``Desk`` method       returns
====================  ==============================================================================================
``add``               :class:`DeskRequest`; the same request twice is one
``requests``          list of :class:`DeskRequest`, by state, model, text, deadline; newest last; with limit and offset
``counts``            ``{state: number}``
``show``              :class:`RequestDetails`: request, who asked, what, events, plan, batch, bundle, artefacts
``add_model``         :class:`ModelChain`
``models``            list of :class:`ModelChain`, each with its released batches
``batches``           list of :class:`RequestBatch`
``plan``              :class:`RequestPlan`
``run``               :class:`RunOutcome`; takes ``progress`` (:class:`efface.runs.run.Progress`)
``release``           :class:`ReleaseOutcome`
``refuse, withdraw``  :class:`DeskRequest`; both need a reason
``discard``           :class:`DeskRequest`; gives a run up, and its requests are planned again
``due``               list of :class:`DeskRequest`, the most urgent first
``verify``            :class:`ChainCheck`
``export``            path of a ZIP archive
``replay``            list of :class:`ReplayItem`; ``replay_gaps``: the requests that it cannot judge in full
``erase``             list of :class:`ErasedArtefact`
====================  ==============================================================================================

All results are frozen dataclasses with ``as_dict()``. What is wrong raises :class:`efface.errors.EffaceError`; its
``what``, ``why`` and ``remedy`` are sentences for people. States are :class:`RequestState`, and a request in one of
``CLOSED`` is at its end. A ``Desk`` may be used by several threads and processes at once: writers take turns.
"""

from typing import TYPE_CHECKING

from efface._lazy import lazy_exports

if TYPE_CHECKING:
    from efface.desk.desk import Desk as Desk
    from efface.desk.desk import open_desk as open_desk
    from efface.desk.ledger import ChainCheck as ChainCheck
    from efface.desk.ledger import LedgerEvent as LedgerEvent
    from efface.desk.replaying import ReplayItem as ReplayItem
    from efface.desk.states import CLOSED as CLOSED
    from efface.desk.states import LEGAL as LEGAL
    from efface.desk.states import BatchState as BatchState
    from efface.desk.states import Goal as Goal
    from efface.desk.states import RequestState as RequestState
    from efface.desk.views import DeskRequest as DeskRequest
    from efface.desk.views import ErasedArtefact as ErasedArtefact
    from efface.desk.views import ModelChain as ModelChain
    from efface.desk.views import ReleaseOutcome as ReleaseOutcome
    from efface.desk.views import RequestBatch as RequestBatch
    from efface.desk.views import RequestDetails as RequestDetails
    from efface.desk.views import RequestPlan as RequestPlan
    from efface.desk.views import RunOutcome as RunOutcome

__all__ = [
    "CLOSED",
    "LEGAL",
    "BatchState",
    "ChainCheck",
    "Desk",
    "DeskRequest",
    "ErasedArtefact",
    "Goal",
    "LedgerEvent",
    "ModelChain",
    "ReleaseOutcome",
    "ReplayItem",
    "RequestBatch",
    "RequestDetails",
    "RequestPlan",
    "RequestState",
    "RunOutcome",
    "open_desk",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "CLOSED": "states",
        "LEGAL": "states",
        "RequestBatch": "views",
        "BatchState": "states",
        "ChainCheck": "ledger",
        "Desk": "desk",
        "DeskRequest": "views",
        "ErasedArtefact": "views",
        "Goal": "states",
        "LedgerEvent": "ledger",
        "ModelChain": "views",
        "ReleaseOutcome": "views",
        "ReplayItem": "replaying",
        "RequestDetails": "views",
        "RequestPlan": "views",
        "RequestState": "states",
        "RunOutcome": "views",
        "open_desk": "desk",
    },
)
