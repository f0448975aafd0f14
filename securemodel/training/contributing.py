"""Owners who share their rows before a training and leave: what each party gets, in this process or in a file of its own.

An owner draws a key for each party and each program that reads its rows, from the operating system and anew each time. The
rows' mask is the sum of what follows from all these keys. A party gets the masked rows and its own key, which it hands the
dealer in each session as it does with that of rows of its own. So who could read the rows is who could read any secret of
the training: all parties together, or the dealer with one of them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from protocols.correlations import full_mask
from protocols.errors import ConfigError, DecodeError, explain
from protocols.files import file_errors, write_atomically
from protocols.identity import Identity, PartiesConfig
from protocols.prg import KEY_BYTES, Stream, new_key
from protocols.sealing import MOST_BYTES, head_of, seal, unseal
from protocols.strict import strict_fields
from securemodel.compiler.ir import Node
from securemodel.compiler.positions import table_nodes
from securemodel.engines.masked.tables import TABLE_EPOCH, Contributed, Tables
from securemodel.errors import InputError
from securemodel.program import Program
from securemodel.training.agreeing import settings_of
from securemodel.training.job import Job

Given = dict[int, Contributed]
"""What one party gets of one owner, by the number of the program among those of the job."""
_HEAD = {"from": str, "to": str, "program": str, "rows": str, "sharing": str}
_FIX = "securemodel share SCRIPT --me {owner}, with the script, data sizes and versions that the parties have"


def contribute(job: Job, owner: str) -> dict[str, Given]:
    """What an owner gives each party of its rows, under new keys. Raises InputError for rows that the training cannot use."""
    job.check_rows(owner)
    sharing = os.urandom(16).hex()
    given: dict[str, Given] = {name: {} for name in job.program.parties}
    for number, program in enumerate(job.programs().values()):
        if not (nodes := _tables(program, owner)):
            continue
        rows = program.tables_of(owner)
        keys = {name: new_key() for name in program.parties}
        streams = [Stream(key) for key in keys.values()]
        masked = {n.id: rows[_name(program, n)] + full_mask(streams, TABLE_EPOCH, n.id, n.shape) for n in nodes}
        for name, key in keys.items():
            given[name][number] = Contributed(key, masked, sharing)
    return given


def tables_with(job: Job, given: Mapping[str, Mapping[str, Given]]) -> dict[int, dict[str, Tables]]:
    """What each party has of rows at the start of a run, by the id of the program, from what owners gave it: {party: {owner: it}}."""
    return {
        id(program): {
            me: Tables(contributed={owner: parts[number] for owner, parts in of.items() if number in parts})
            for me, of in given.items()
        }
        for number, program in enumerate(job.programs().values())
    }


def contributed_here(job: Job) -> dict[int, dict[str, Tables]]:
    """The same where all parties and all contributors are in this process."""
    given: dict[str, dict[str, Given]] = {me: {} for me in job.program.parties}
    for owner in job.program.contributors:
        for me, parts in contribute(job, owner).items():
            given[me][owner] = parts
    return tables_with(job, given)


# ---- files
def path_of(folder: Path, owner: str, party: str) -> Path:
    """The file of what an owner gives a party."""
    return folder / f"{owner}-for-{party}.rows"


def write(job: Job, folder: Path, own: Identity, config: PartiesConfig) -> dict[str, Path]:
    """Writes what the owner of this identity gives: a file for each party, which nobody else can read.

    Raises InputError for rows that the training cannot use, ConfigError, FileError.
    """
    if own.name not in job.program.contributors:
        names = ", ".join(job.program.contributors) or "none"
        what = f"{own.name!r} is no contributor of this training"
        raise ConfigError(explain(what, why=f"its contributors are {names}", fix="name it in contributors="))
    if config.contributor(own.name).fingerprint != own.fingerprint:
        what, where = f"the parties file has another certificate of {own.name!r} than its identity", str(config.path)
        raise ConfigError(explain(what, where=where, fix="give all parties the certificate of this identity"))
    entries = {name: config.entry(name) for name in job.program.parties}
    paths = {}
    for name, parts in contribute(job, own.name).items():
        data = safetensors.torch.save(_tensors(parts))
        if len(data) > MOST_BYTES:
            what = f"the rows of {own.name!r} take {len(data) / 2**30:.1f} GiB, and a file has less than 2"
            raise InputError(explain(what, fix=f"share fewer rows, or name {own.name!r} among the parties"))
        head = {**_about(job), "from": own.name, "to": name, "sharing": next(iter(parts.values())).sharing}
        path = paths[name] = path_of(folder, own.name, name)
        with file_errors(path):
            write_atomically(path, seal(data, json.dumps(head, sort_keys=True).encode(), own, entries[name]))
    return paths


def read(job: Job, folder: Path | None, own: Identity, config: PartiesConfig) -> dict[str, Given]:
    """What each contributor gave this party. Raises InputError for a file that is missing, damaged or of something else."""
    return {owner: _read(job, folder, owner, own, config) for owner in job.program.contributors}


def _read(job: Job, folder: Path | None, owner: str, own: Identity, config: PartiesConfig) -> Given:
    fix = f"ask {owner!r} for it: {_FIX.format(owner=owner)}"
    if folder is None:
        what, how = f"the rows of {owner!r} are not given", "connect(rows=FOLDER), or --rows FOLDER: where its file is"
        raise InputError(explain(what, why="it shares them before the training, and takes no part in it", fix=how))
    path, sender = path_of(folder, owner, own.name), config.contributor(owner)
    if not path.is_file():
        raise InputError(explain(f"there are no rows of {owner!r} for {own.name!r}", where=str(path), fix=fix))
    with file_errors(path):
        sealed = path.read_bytes()
    try:
        head = strict_fields(head_of(sealed), "what the file says it is", _HEAD)
        for field, wanted in {"from": owner, "to": own.name}.items():
            if head[field] != wanted:
                raise DecodeError(f"it is {field} {head[field]!r}, not {field} {wanted!r}")
        data = unseal(sealed, sender, own)
        for field, wanted in _about(job).items():
            if head[field] != wanted:
                raise DecodeError(f"it is for {_ABOUT[field]} than this training")
        return _parts(job, owner, safetensors.torch.load(data), head["sharing"])
    except (DecodeError, safetensors.SafetensorError) as error:
        what, why = f"the file with the rows of {owner!r} cannot be used", str(error).splitlines()[0]
        raise InputError(explain(what, where=str(path), why=why, fix=fix)) from None


_ABOUT = {"program": "another program", "rows": "other rows, evaluations or guards"}


def _about(job: Job) -> dict[str, str]:
    """What a file is for: the step's program, and what it does not say."""
    settings = json.dumps(settings_of(job), sort_keys=True)
    return {"program": job.digest, "rows": hashlib.sha256(settings.encode()).hexdigest()}


def _tensors(parts: Given) -> dict[str, torch.Tensor]:
    found = {f"{n} key": torch.frombuffer(bytearray(part.key), dtype=torch.uint8) for n, part in parts.items()}
    found.update({f"{n} {node}": rows.contiguous() for n, part in parts.items() for node, rows in part.rows.items()})
    return found


def _parts(job: Job, owner: str, found: Mapping[str, torch.Tensor], sharing: str) -> Given:
    """What is in a file, if it is what the programs of this training read. Raises DecodeError."""
    wanted: dict[str, tuple[Any, ...]] = {}
    read: dict[int, list[Node]] = {}
    for number, program in enumerate(job.programs().values()):
        if nodes := _tables(program, owner):
            read[number] = nodes
            wanted[f"{number} key"] = (torch.uint8, (KEY_BYTES,))
            wanted.update({f"{number} {node.id}": (torch.int64, tuple(node.shape)) for node in nodes})
    if {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in found.items()} != wanted:
        raise DecodeError("it does not have the rows that this training reads")
    return {
        n: Contributed(
            found[f"{n} key"].numpy().tobytes(), {node.id: found[f"{n} {node.id}"] for node in nodes}, sharing
        )
        for n, nodes in read.items()
    }


def _tables(program: Program, owner: str) -> list[Node]:
    return [node for node in table_nodes(program.graph) if node.owner == owner]


def _name(program: Program, node: Node) -> str:
    return program.graph[node.args[0]].attrs["name"]
