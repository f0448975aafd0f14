"""A user's script of a federation: the task, its sites, what they do in a round, and what becomes of the aggregate.

At its top level the script has:

    task = federated.Task(...)
    ROUNDS = 10
    SITES = ("north", "south", ...)                     # names of sites, for a federation on one machine
    def start(): ...                                    # the first model: named arrays, the same for everybody
    def train(site, model, number): ...                 # (a site's update, its weight), of its own data alone
    def evaluate(model): ...                            # optional: accuracy from 0 to 1, on rows that anybody may see
    def apply(model, aggregate): ...                    # optional: the next model; by default the sum of both
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from protocols.errors import InputError, explain
from securemodel.edge.errors import EdgeError
from securemodel.edge.rounds import RoundCard, digest_of
from securemodel.edge.updates import Uploads, add_results, share_update
from securemodel.federated.local import LocalFederation, open_local
from securemodel.federated.task import Outcome, Task
from securemodel.scripts import explained, load_file

Model = Mapping[str, Any]


@dataclass(frozen=True)
class Script:
    """What a script says, with the calls of its functions explained. `rounds` is at least 1."""

    path: Path
    task: Task
    rounds: int
    sites: tuple[str, ...]
    module: ModuleType

    @property
    def has_start(self) -> bool:
        """Whether the script knows the model; one for a Flower app does not."""
        return self._has("start")

    @property
    def has_evaluate(self) -> bool:
        """Whether the script says how good a model is."""
        return self._has("evaluate")

    def start(self) -> Model:
        """The first model. Raises InputError where it is none."""
        return self._model("start")

    def _model(self, name: str, *given: Any) -> Model:
        """The model that a function gives. Raises InputError."""
        made = self._call(name, *given)
        if not isinstance(made, Mapping):
            what = f"{name}() gives a {type(made).__name__}, and no model"
            raise InputError(explain(what, where=str(self.path), fix="return a dict of named arrays"))
        return made

    def train(self, site: str, model: Model, number: int) -> tuple[Model, int]:
        """A site's update and its weight. Raises InputError where it gives something else."""
        made = self._call("train", site, model, number)
        if not isinstance(made, tuple) or len(made) != 2:
            fix = "return (a dict of named arrays, the number of rows)"
            raise InputError(explain("train() gives no update and weight", where=str(self.path), fix=fix))
        return made

    def evaluate(self, model: Model) -> float | None:
        """How good a model is, from 0 to 1, or None where the script does not say. Raises InputError for what is no number."""
        if not self.has_evaluate:
            return None
        made = self._call("evaluate", model)
        try:
            return float(made)
        except (TypeError, ValueError):
            what = f"evaluate() gives a {type(made).__name__}, and no number"
            raise InputError(explain(what, where=str(self.path), fix="return a float from 0 to 1")) from None

    def apply(self, model: Model, aggregate: Model) -> Model:
        """The next model."""
        if self._has("apply"):
            return self._model("apply", model, aggregate)
        add = lambda name, x: (np.asarray(x) + aggregate[name]).astype(np.asarray(x).dtype)
        return {name: add(name, x) if name in aggregate else x for name, x in model.items()}

    def _has(self, name: str) -> bool:
        return callable(getattr(self.module, name, None))

    def _call(self, name: str, *given: Any) -> Any:
        if not self._has(name):
            raise InputError(
                explain(f"the script has no function {name}()", where=str(self.path), fix=f"add it: {name}")
            )
        with explained(self.path):
            return getattr(self.module, name)(*given)


def read(path: Path) -> Script:
    """Imports a script. Raises InputError, which names what it lacks; ScriptFailed."""
    module = load_file(path)
    made, rounds, sites = (getattr(module, name, None) for name in ("task", "ROUNDS", "SITES"))
    if not isinstance(made, Task):
        fix = "add task = securemodel.federated.Task(...) at its top level"
        raise InputError(explain("the script describes no task", where=str(path), fix=fix))
    if type(rounds) is not int or rounds < 1:
        raise InputError(
            explain("the script does not say how many rounds there are", where=str(path), fix="ROUNDS = 10")
        )
    names = tuple(sites) if isinstance(sites, list | tuple) else ()
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) != len(names):
        raise InputError(
            explain("SITES is no list of different names", where=str(path), fix='SITES = ("north", "south")')
        )
    return Script(path, made, rounds, names, module)


class Models:
    """The model before each round, as all know it who know the aggregates; nobody does where clients alone get these, or the
    script has no `start`.

    `outcome(number)` tells how a round ended. A round without a result changes nothing.
    """

    def __init__(self, script: Script) -> None:
        self._script, self._last = script, 1
        self._hidden = script.task.reveal == "clients" or not script.has_start
        self._model = {} if self._hidden else script.start()
        self._digests, self._accuracies = {1: digest_of(self._model)}, dict[int, float | None]()

    @property
    def known(self) -> bool:
        """Whether models are known here at all."""
        return not self._hidden

    def digest(self, number: int, outcome: Callable[[int], Outcome]) -> str:
        """The digest of the model that a round starts from; empty where it is not known."""
        if self._hidden:
            return ""
        self._known(number, outcome)
        return self._digests[number]

    def accuracy(self, number: int, outcome: Callable[[int], Outcome]) -> float | None:
        """How good the model is after a round, where that is known."""
        if self._hidden:
            return None
        self._known(number + 1, outcome)
        return self._accuracies[number]

    def _known(self, number: int, outcome: Callable[[int], Outcome]) -> None:
        while self._last < number:
            aggregate = outcome(self._last).aggregate
            if aggregate is not None:
                self._model = self._script.apply(self._model, aggregate)
            self._accuracies[self._last] = self._script.evaluate(self._model)
            self._last += 1
            self._digests[self._last] = digest_of(self._model)


def play(script: Script, shown: Callable[[int, str, float | None], None]) -> Model:
    """All rounds with all aggregators and sites in this process. Raises InputError, also for a round without a result.

    `shown(number, site, accuracy)`: a site has shared its update; or, with no site, a round has ended.
    """
    if not script.sites:
        raise InputError(explain("the script names no sites", where=str(script.path), fix='SITES = ("north", "south")'))
    model = script.start()
    with open_local(script.task) as federation:
        for number in range(1, script.rounds + 1):
            card = federation.card(number, model=digest_of(model))
            uploads = _uploads(script, federation, card, model, shown)
            model = script.apply(model, _aggregate(federation.finish(number), card, uploads))
            shown(number, "", script.evaluate(model))
    return model


def _uploads(
    script: Script,
    federation: LocalFederation,
    card: RoundCard,
    model: Model,
    shown: Callable[[int, str, float | None], None],
) -> dict[str, Uploads]:
    """What every site shared in a round."""
    made = {}
    for site in script.sites:
        update, weight = script.train(site, model, card.round)
        try:
            made[site] = share_update(card, update, weight=weight, id=site)
        except EdgeError as error:
            where = f"{script.path}, train({site!r}, …, {card.round})"
            raise InputError(explain(error.what, where=where, why=error.why, fix=error.fix)) from error
        for rank, part in made[site].items():
            federation.receive(card.round, rank, site, part)
        shown(card.round, site, None)
    return made


def _aggregate(outcome: Outcome, card: RoundCard, uploads: Mapping[str, Uploads]) -> Model:
    """What the sites know of a round that has ended."""
    if outcome.aggregate is not None:
        return outcome.aggregate
    if outcome.deliveries is None:
        why = "; ".join([outcome.revealed, *(f"{site}: {why}" for site, why in outcome.refused.items())])
        raise InputError(
            explain(f"round {card.round} has no result", why=why, fix="correct that, or lower the minimum")
        )
    site = outcome.present[0]
    blobs = {rank: by_site[site] for rank, by_site in outcome.deliveries.items()}
    return add_results(card, blobs, uploads[site].key)
