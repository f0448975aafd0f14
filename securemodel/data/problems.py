"""What is wrong with a party's table: all of it at once for its owner, the kinds alone for the others."""

from __future__ import annotations

from collections.abc import Iterable

from protocols.errors import InputError, explain

_PLACES = 3  # shown of each problem
_SHOWN = 30  # problems shown


class TableErrors(InputError):
    """All that is wrong with a party's table.

    Its text has files, columns and places, for the owner. `told`, what other parties hear, has the kinds: no column,
    no place, no count, no value. No text has values.
    """

    def __init__(self, text: str, kinds: tuple[str, ...]) -> None:
        super().__init__(text, kinds)
        self.text, self.kinds = text, kinds
        self.told = f"its table has {'; '.join(kinds)}"

    def __str__(self) -> str:
        return self.text


class Problems:
    """Collects problems of a table: by column and kind how many, and where the first ones are."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[int, list[int], str]] = {}

    def add(self, column: str, kind: str, places: Iterable[int], fix: str = "") -> None:
        """`column` may be "" for what is about whole rows; places are lines or rows, from 1."""
        count, first, said = self._found.get((column, kind), (0, [], ""))
        for place in places:
            count += 1
            if len(first) < _PLACES:
                first.append(place)
        self._found[column, kind] = (count, first, fix or said)

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_any(self, party: str, where: str, unit: str, seen: str = "") -> None:
        """Raises TableErrors if anything was found."""
        if not self._found:
            return
        lines = []
        for (column, kind), (count, first, fix) in list(self._found.items())[:_SHOWN]:
            whose = f"column {column!r}: " if column else ""
            places = f", {unit} " + ", ".join(map(str, first)) if first else ""
            more = ", ..." if count > len(first) else ""
            times = f": {count:,} {'cell' if column else 'row'}{'' if count == 1 else 's'}" if count else ""
            lines.append(f"{whose}{kind}{times}{places}{more}{f' → {fix}' if fix else ''}")
        if len(self._found) > _SHOWN:
            lines.append(f"and {len(self._found) - _SHOWN} more")
        problems = len(self._found)
        what = f"the table of {party!r} has {problems} problem{'' if problems == 1 else 's'}"
        fix = "correct the file, or say in the schema what is allowed; the other parties are told the kinds alone"
        kinds = tuple(dict.fromkeys(kind for _, kind in self._found))
        raise TableErrors(explain(what, where=where, why="\n".join(([seen] if seen else []) + lines), fix=fix), kinds)


def together(errors: Iterable[InputError]) -> InputError:
    """Errors of several tables of this process as one."""
    found = list(errors)
    if len(found) == 1:
        return found[0]
    kinds = dict.fromkeys(kind for error in found if isinstance(error, TableErrors) for kind in error.kinds)
    if not all(isinstance(error, TableErrors) for error in found):
        kinds.setdefault("no form that can be read")
    return TableErrors("\n\n".join(map(str, found)), tuple(kinds))
