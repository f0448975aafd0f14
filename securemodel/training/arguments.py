"""What is asked of a training, checked before anything is traced: parties, receivers, columns, owners of weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from protocols.errors import explain
from protocols.names import EVERYBODY, NAME_RULE, PUBLIC, is_name
from securemodel.compiler.owners import Weights, check_owners, owner_of
from securemodel.engines.compiling import check_numbers, party_names
from securemodel.errors import CompileError
from securemodel.training.datasets import Batches, Dataset
from securemodel.training.naming import tensors
from securemodel.training.steps import CapturedStep


def check_arguments(
    step: Callable[..., Any],
    batch: Any,
    parties: Any,
    reveal: Any,
    evaluate: Any,
    guard_every: Any,
    contributors: Any = (),
) -> None:
    """Raises CompileError for arguments of `compile_training` that are not what it takes."""
    if not isinstance(batch, Batches):
        _refuse(f"batch is a {type(batch).__name__} and no batches", "give data.batches(size)")
    for what, names in (("parties", parties), ("contributors", contributors)):
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            _refuse(f"{what} is {names!r} and no list of names", f'write {what}=["bank", "shop"]')
    check_contributors(contributors, parties, batch)
    if reveal is not None and not isinstance(reveal, (str, Mapping)):
        _refuse(
            f"reveal is a {type(reveal).__name__}", 'write reveal={"loss": "all"}, or reveal="bank" for all results'
        )
    if not isinstance(guard_every, int) or guard_every < 0:
        _refuse(f"guard_every = {guard_every!r}", "say every how many steps, or 0 for never")
    unknown = [name for name in batch.owners() if name not in (*parties, *contributors)]
    if unknown:
        fix = f"name it among the parties ({', '.join(parties)}), or in contributors= if it only shares its rows and leaves"
        _refuse(f"{unknown[0]!r} owns data and is no party", fix)
    check_columns(step, list(batch.data.columns), "the step")
    if evaluate is not None and not isinstance(evaluate, Mapping):
        _refuse(f"evaluate is a {type(evaluate).__name__}", _EVALUATE)
    for name, given in (evaluate or {}).items():
        if not isinstance(given, tuple) or len(given) != 3 or not callable(given[0]):
            _refuse(f"the evaluation {name!r} is no function, data set and receiver", _EVALUATE)
        function, data, to = given
        if not isinstance(data, Dataset):
            _refuse(f"the evaluation {name!r} is of a {type(data).__name__} and no data set", _EVALUATE)
        check_receiver(to, f"the evaluation {name!r}", parties)
        check_columns(function, list(data.columns), f"the evaluation {name!r}")


def check_contributors(contributors: Sequence[str], parties: Sequence[str], batch: Batches) -> None:
    """Raises CompileError unless these are owners of data, and no parties."""
    for name in contributors:
        if name in parties:
            fix = "a party takes part in every step; leave it out of one of the two"
            _refuse(f"{name!r} is a party, and is to share its rows and leave", fix)
        if not is_name(name):
            _refuse(f"{name!r} cannot be a contributor's name", "choose another name", NAME_RULE)
        if name not in batch.owners():
            _refuse(f"{name!r} is to share its rows and leave, and owns no data", "leave it out of contributors=")


_EVALUATE = 'write evaluate={"right": (function, test, "all")}, where test is a data set'


def check_receiver(to: Any, what: str, parties: Sequence[str]) -> None:
    """Raises CompileError unless this is a party, or everybody."""
    if to != EVERYBODY and to not in parties:
        _refuse(f"{to!r} is to learn {what} and is no party", 'name a party, or "all"')


def check_columns(function: Callable[..., Any], columns: Sequence[str], what: str) -> None:
    """Columns are given in the order of the data set: CompileError where a function has their names in another, or cannot
    take as many.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    has = f"the data set has {', '.join(columns)}"
    try:
        taken = list(signature.bind(*columns).arguments)
    except TypeError:
        _refuse(f"{what} takes {signature}, and {has}", "give it one argument for each column, in this order")
    if taken != list(columns) and sorted(taken) == sorted(columns):
        _refuse(f"{what} takes {', '.join(taken)}, and {has}", "bring them into one order: columns are given by place")


def check_terms(
    parties: Sequence[str],
    weights: Weights,
    batch: Batches,
    frac_bits: int,
    width: int,
    rounding: str,
    contributors: Sequence[str] = (),
) -> None:
    """Raises CompileError for names of parties, or numbers, that no program has."""
    check_numbers(frac_bits, width, rounding)
    party_names(weights, [name for name in batch.owners() if name not in contributors], (), parties)


def check_weights(weights: Weights, models: Mapping[str, nn.Module], captured: CapturedStep) -> None:
    """Raises CompileError unless the prefixes cover every parameter, buffer and moment, and each prefix covers one.

    Tied ones count by their first name.
    """
    states = {name: state.start for name, state in captured.states.items()}
    check_owners(weights, [*tensors(models), *states.items()])
    for name, start in states.items():
        if start.is_meta and owner_of(weights, name) == PUBLIC:
            fix = 'give everybody the same values (torch.manual_seed), or say whose they are: weights="bank"'
            _refuse(f"{name} is on the meta device and has no values", fix, "starting weights are public")


def check_changes(captured: CapturedStep, optimizers: Any) -> None:
    """Raises CompileError for a step that was given optimizers and changes nothing, or reads gradients that none makes."""
    if optimizers is None:
        return
    fix = "call loss.backward(), and then optimizer.step() before gradients are cleared"
    if all(state.output is None for state in captured.states.values()):
        _refuse("the step changes no weight", fix, "no optimizer updates a parameter that has a gradient")
    stale = [name for name, state in captured.states.items() if state.kind == "gradient" and state.output is None]
    if stale:
        _refuse(f"the step reads {stale[0]}, and no step makes such a gradient", fix)


def _refuse(what: str, fix: str, why: str = "") -> None:
    raise CompileError(explain(what, why=why, fix=fix))
