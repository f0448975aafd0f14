"""Tables of several parties as one: alignment, statistics, preparation and evaluation, without anybody seeing another's rows."""

from securemodel.data.align import Aligned, ChangedSetWarning
from securemodel.data.column import Column
from securemodel.data.connecting import connect, local
from securemodel.data.joint import Joint
from securemodel.data.problems import TableErrors
from securemodel.data.query import Query
from securemodel.data.schema import Schema
from securemodel.data.table import Source, Table, read, table

__all__ = [
    "Aligned", "ChangedSetWarning", "Column", "Joint", "Query", "Schema", "Source", "Table", "TableErrors", "connect",
    "local", "read", "table",
]  # fmt: skip
