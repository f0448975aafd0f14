"""Text tables: what arrives is the file, every row of it, or an error that says where it is not."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from securemodel.errors import FileError, InputError
from securemodel.files.reader import Format, open_table
from securemodel.files.rows import Choice, Wanted, open_rows

SECRET = "98765.25"
NUMBERS = torch.tensor([[1.0, 2.5, -3.0, 4e-3], [5, 6, 7, 8], [0, 0, 0, 1]])
LINES = "1,2.5,-3,4e-3\n5,6,7,8\n0,0,0,1\n"
NAMED = "a,b,c,d\n" + LINES


def refused(open, says: str, secret: str = SECRET) -> str:
    with pytest.raises((InputError, FileError), match=says) as caught:
        open()
    assert secret not in str(caught.value) and "→" in str(caught.value)
    return str(caught.value)


# ---- what is read
READ = {
    "as it is": (NAMED, {}),
    "no line end after the last row": (NAMED[:-1], {}),
    "carriage returns": (NAMED.replace("\n", "\r\n"), {}),
    "only carriage returns": (NAMED.replace("\n", "\r"), {}),
    "the mark of UTF-8": ("\ufeff" + NAMED, {}),
    "the mark before a quote": ('\ufeff"a",b,c,d\n' + LINES, {"header": True}),
    "UTF-16": (NAMED.encode("utf-16"), {"encoding": "utf-16"}),
    "UTF-16 without a mark": (NAMED.encode("utf-16-be"), {"encoding": "utf-16-be"}),
    "names of Windows": (NAMED.replace("a,", "größe,").encode("cp1252"), {"encoding": "cp1252"}),
    "semicolons": (NAMED.replace(",", ";"), {"delimiter": ";"}),
    "tabs": (NAMED.replace(",", "\t"), {"delimiter": "tab"}),
    "quotes": (NAMED.replace("2.5", '"2.5"').replace("a,", '"a, of ""A""",'), {}),
    "blanks around": (NAMED.replace(",", " , "), {}),
    "no header": (LINES, {"header": False}),
    "a header of numbers": ("0,1,2,3\n" + LINES, {"header": True}),
    "years": ("2019,2020,2021,2022\n" + LINES, {"header": True}),
    "a header that is said": (NAMED, {"header": True}),
}


@pytest.mark.parametrize("kind", READ)
def test_a_table_is_read_whole(write, opened, joined, kind: str) -> None:
    content, form = READ[kind]
    rows = opened(write("x.csv", content), **form)
    assert rows.count == 3 and torch.equal(joined(rows), NUMBERS)
    assert [len(batch[0]) for batch in rows.read([0, 1])] == [2, 1]
    assert torch.equal(joined(rows, 1), NUMBERS[2:]), "from a batch on"


def test_a_compressed_table_is_the_table(write, opened, joined) -> None:
    rows = opened(write("x.csv.gz", gzip.compress(NAMED.encode())))
    assert rows.count == 3 and torch.equal(joined(rows), NUMBERS) and torch.equal(joined(rows, 1), NUMBERS[2:])
    assert opened(write("x.TSV.GZ", gzip.compress(NAMED.replace(",", "\t").encode()))).count == 3
    marked = gzip.compress(NAMED.encode("utf-16"))
    assert opened(write("x.csv.gz", marked), encoding="utf-16").count == 3
    refused(lambda: opened(write("x.csv.gz", marked)), "mark of utf-16")
    refused(lambda: opened(write("x.csv.gz", gzip.compress(NAMED.encode())[:-12])), "ends too early")
    refused(lambda: opened(write("x.csv.gz", NAMED)), "not compressed by gzip as its name says")
    refused(lambda: opened(write("x.csv", gzip.compress(b"1"))), "name it .csv.gz")


def test_tabs_by_name_and_other_spellings_of_names(write, opened) -> None:
    assert opened(write("x.tsv", NAMED.replace(",", "\t"))).count == 3
    assert opened(write("x.CSV", NAMED)).count == 3
    assert opened(write("x.txt", NAMED)).count == 3


@pytest.mark.parametrize("columns", [("c", "a"), ("4", "2")], ids=["named", "counted"])
def test_columns_are_chosen(write, opened, joined, columns) -> None:
    table = write("x.csv", "patient,a,b,c\nP-17,1,x,3\nP-18,4,,6\n")
    assert torch.equal(joined(opened(table, 2, columns)), torch.tensor([[3.0, 1], [6, 4]]))
    bare = write("y.csv", "P-17,1,x,3\nP-18,4,,6\n")
    assert opened(bare, 2, ("4", "2"), header=False).count == 2


def test_names_with_commas_and_lines_in_cells(write, opened, joined) -> None:
    table = write("x.csv", '"a,\nof A",note\n1,"two\nlines"\n2,"three\n\nlines"\nx,\n')
    assert "line 8, column 1 " in refused(lambda: opened(table, 1, ("a,\nof A",)), "no finite number")
    assert opened(write("y.csv", '"a,A",b\n1,2\n'), 1, ("a,A",)).count == 1


def test_columns_fill_several_inputs_in_order(write) -> None:
    wanted = [Wanted((1, 2), torch.float32), Wanted((), torch.int64), Wanted((1,), torch.float64)]
    table = write("x.csv", "a,b,c,d\n1,2,3,0.1\n4,5,-9007199254740993,6\n")
    ((x, y, z),) = open_rows(table, wanted, Choice(), 2).read([0])
    assert x.tolist() == [[[1, 2]], [[4, 5]]] and x.dtype == torch.float32
    assert y.tolist() == [3, -9007199254740993] and y.dtype == torch.int64
    assert z.tolist() == [[0.1], [6]] and z.dtype == torch.float64


# ---- a header is what its owner says
DOUBTFUL = {
    "numbers": "0,1,2,3\n" + LINES,
    "years": "2019,2020,2021,2022\n" + LINES,
    "a row": LINES,
    "missing values": "nan,NaN,NA,null\n" + LINES,
    "some numbers": "a,b,c,1\n" + LINES,
    "an index without a name": ",a,b,c\n" + LINES,
    "full-width digits": "\uff11,\uff12,\uff13,\uff14\n" + LINES,
    "comments": "# a,b,c,d\n" + LINES,
    "quoted numbers": '"1","2","3","4"\n' + LINES,
}


@pytest.mark.parametrize("kind", DOUBTFUL)
def test_a_first_line_that_may_be_a_row_is_not_guessed(write, opened, kind: str) -> None:
    said = refused(lambda: opened(write("x.csv", DOUBTFUL[kind])), "not clear whether the first line")
    assert "--header if these are names" in said and "--no-header if line 1 is the first row" in said


def test_an_id_that_is_a_word_does_not_make_a_row_a_header(write, opened) -> None:
    table = write("x.csv", "ann,1,2\nbob,3,4\n")
    for columns in ((), ("2", "3")):
        refused(lambda columns=columns: opened(table, 2, columns, id="1"), "not clear whether the first line")
    assert list(opened(table, 2, id="1", header=False).names()) == ["ann", "bob"]
    assert list(opened(write("y.csv", "7,a,b\nann,1,2\n"), 2, id="1").names()) == ["ann"], "the inputs' cells are names"


def test_names_in_options_say_that_there_is_a_header(write, opened, joined) -> None:
    table = write("x.csv", "0,b,1,d\n1,2,3,4\n")
    assert joined(opened(table, 2, ("d", "b"))).tolist() == [[4, 2]]
    refused(lambda: opened(table, 2, ("d", "b"), header=False), "without a header has no column 'd', 'b'")
    refused(lambda: opened(table, 1, ("1",), header=True), "may be the one of this name, column 3, or column 1 itself")
    assert joined(opened(write("y.csv", "2019,2020\n1,2\n"), 1, ("2020",), header=True)).tolist() == [[2]]


def test_a_header_that_was_found_is_told(write, opened) -> None:
    (note,) = opened(write("x.csv", NAMED)).notes
    assert "line 1 is the header" in note and "'a', 'b', 'c', 'd'" in note
    assert not opened(write("x.csv", NAMED), header=True).notes


@pytest.mark.parametrize("columns, says", [
    (("b", "x"), "no column 'x'"), (("9", "1"), "no column '9'"), (("0", "1"), "no column '0'"), (("b", "b"), "asked for twice"),
    (("b", "2"), "asked for twice"),
])  # fmt: skip
def test_columns_that_are_not_there(write, opened, columns, says: str) -> None:
    refused(lambda: opened(write("x.csv", f"a,b,c\n1,2,{SECRET}\n"), 2, columns), says)


def test_a_name_twice_in_the_header(write, opened) -> None:
    for header in ("a,b,a", "a,b, a", "x,x,a"):
        refused(
            lambda header=header: opened(write("x.csv", f"{header}\n1,2,{SECRET}\n"), 1, ("b",)),
            "a name twice|no column",
        )


# ---- every row is there, and has all its cells
LOST = {
    "a decimal comma": ("a,b,c,d\n1,5,2,3,4\n", "5 cells where the first line has 4\n.*line 2", {}),
    "a thousands separator": ("a\n1\n1,000\n", "line 3", {}),
    "too short": ("a,b,c,d\n1,2,3,4\n98765.25,2,3\n", "line 3", {}),
    "a blank line": ("a,b,c,d\n1,2,3,4\n\n5,6,7,8\n", "empty line\n.*line 3", {}),
    "a blank line at the end": (NAMED + "\n", "empty line\n.*line 5", {}),
    "a blank line at the start": ("\n" + NAMED, "line 1 has 0 cells|not clear", {}),
    "a blank cell in one column": ("a\n1\n\n3\n", "empty line\n.*line 3", {}),
    "blanks in one column": ("a\n1\n  \n3\n", "cell is empty.*\n.*line 3, column 1", {}),
    "nothing but commas": ("a,b,c,d\n1,2,3,4\n,,,\n", "cell is empty.*\n.*line 3, column 1 \\('a'\\)", {}),
    "a comma at the end": ("a,b,c,d\n1,2,3,4,\n", "line 2", {}),
    "a comma at every end": ("a,b,c,d,\n1,2,3,4,\n", "5 columns for inputs of 4 numbers|not clear", {}),
    "behind a cell of two lines": ('a,b\n1,"x\ny"\n2\n', "line 4", {"columns": ("a",)}),
    "both line ends": ("a,b\n1,2\r3,4\n", "carriage return alone", {}),
    "doubled carriage returns": ("a,b\r\r\n1,2\r\r\n", "carriage return alone|empty line", {}),
    "an open quote": ('a,b\n1,2\n"3,4\n5,6\n', "quotation marks.*\n.*line 3", {}),
    "text behind a quote": ('a,b\n"1"5,2\n', "quotation marks.*\n.*line 2", {}),
    "a quote inside": ('a,b\n1"5,2\n', "no finite number.*\n.*line 2, column 1", {}),
    "the end mark of DOS": (NAMED + "\x1a", "line 5", {}),
}


@pytest.mark.parametrize("kind", LOST)
def test_a_row_is_never_lost_or_made_up(write, opened, kind: str) -> None:
    text, says, options = LOST[kind]
    columns = options.get("columns", ())
    numbers = len(columns) or len(text.lstrip("\n").split("\n")[0].split("\r")[0].rstrip(",").split(","))
    refused(lambda: opened(write("x.csv", text), numbers, columns), says)


CELLS = ["", " ", "98765.25x", "nan", "NaN", "inf", "-Infinity", "1_000", "0x10", "1e999", "\uff11", "\u0661", "1,5", "1 000",
         "1'000", "\u22121", "1.2.3", "--1", "1e", "e5", ".", "$1", "5%", "TRUE", "1\u00a0000", "1j", "\t\t", "#N/A", "None"]  # fmt: skip


@pytest.mark.parametrize("cell", CELLS, ids=ascii)
def test_what_is_no_number_is_named_by_line_and_column(write, opened, cell: str) -> None:
    said = refused(lambda: opened(write("x.csv", f'a,b\n1,2\n98765.25,"{cell}"\n'), 2), "line 3, column 2 \\('b'\\)")
    assert not cell.strip() or "98765" not in said


@pytest.mark.parametrize(
    "cell", ["1", "-1", "+1", "1.", ".5", "1e5", "1E-5", " 1 ", "\t1", "007", "1.0000000000000000000001"]
)
def test_what_is_a_number_is_what_float_reads(write, opened, joined, cell: str) -> None:
    assert joined(opened(write("x.csv", f"a\n{cell}\n"), 1)).item() == pytest.approx(float(cell))


def test_several_problems_are_told_together(write, opened) -> None:
    table = write("x.csv", "a,b\n" + "1,2\n,x\n" * 3 + "1\n")
    said = refused(lambda: opened(table, 2), "line 3, column 1")
    assert all(f"line {line}, column {column}" in said for line in (3, 5) for column in (1, 2))
    said = refused(lambda: opened(write("x.csv", "a,b\n1,\n1\n"), 2), "line 2, column 2")
    assert "line 3" not in said, "what follows a broken line is not told"


WHOLE = [("2.5", torch.int64), ("1e3", torch.int64), ("9223372036854775808", torch.int64), ("128", torch.int8),
         ("-1", torch.uint8), ("2", torch.bool), ("2147483648", torch.int32), ("9" * 5000, torch.int64)]  # fmt: skip


@pytest.mark.parametrize("cell, dtype", WHOLE, ids=lambda v: str(v)[:25])
def test_whole_numbers_are_whole_and_have_room(write, cell: str, dtype: torch.dtype) -> None:
    refused(
        lambda: open_rows(write("x.csv", f"a\n1\n{cell}\n"), [Wanted((1,), dtype)], Choice(), 2),
        "whole number.*\n.*line 3",
    )


def test_numbers_too_large_for_their_type(write, opened) -> None:
    refused(lambda: opened(write("x.csv", "a\n1\n1e39\n"), 1), "too large for torch.float32\n.*line 3, column 1")


def test_whole_numbers_are_not_divided(write) -> None:
    refused(
        lambda: open_rows(write("x.csv", "a\n1\n"), [Wanted((1,), torch.int64)], Choice(divide_by=2), 2), "real numbers"
    )


# ---- what was seen, and what to write
SEEN = {
    "semicolons": (NAMED.replace(",", ";"), {}, ["1 column for inputs of 4", "a;b;c;d", "--delimiter semicolon", "utf-8"]),
    "tabs": (NAMED.replace(",", "\t"), {}, ["--delimiter tab"]),
    "bars": (NAMED.replace(",", "|"), {}, ["--delimiter pipe"]),
    "commas": (NAMED, {"delimiter": ";"}, ["a semicolon between cells", "--delimiter comma"]),
    "too many": ("1,2,3,4,5\n", {"header": False}, ["5 columns for inputs of 4 numbers", "--columns"]),
    "an index": ("x,a,b,c,d\n", {"header": True}, ["5 columns for inputs of 4", "'x,a,b,c,d'"]),
    "an index without a name": (",a,b,c,d\n", {"header": True}, ["column without a name may be an index"]),
    "UTF-16": (NAMED.encode("utf-16"), {}, ["mark of utf-16", "--encoding utf-16"]),
    "UTF-16 without a mark": (NAMED.encode("utf-16-le"), {}, ["NUL", "line 1", "--encoding utf-16-le"]),
    "UTF-16 by name alone": (NAMED.encode("utf-16-le"), {"encoding": "utf-16"}, ["not text in utf-16"]),
    "the mark of UTF-8": (b"\xef\xbb\xbf" + NAMED.encode(), {"encoding": "cp1252"}, ["mark of utf-8"]),
    "cp1252": (NAMED.encode() + "größe,1,2,3".encode("cp1252"), {}, ["not text in utf-8", "line 5", "--encoding cp1252"]),
    "half a letter": (NAMED.encode() + b"1,2,3,\xc3", {}, ["not text in utf-8", "line 5"]),
    "NUL": (NAMED + "1,2,3,4\0\n", {}, ["NUL", "line 5"]),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(20), {}, ["gzip", "unpack"]),
    "Excel": (b"PK\x03\x04" + bytes(20), {}, ["Excel", "save the sheet as CSV"]),
    "Parquet": (b"PAR1" + bytes(20), {}, ["Parquet"]),
    "nothing": ("", {}, ["the file is empty"]),
    "names alone": ("a,b,c,d\n", {}, ["no rows"]),
    "an unknown encoding": (NAMED, {"encoding": "utf-9"}, ["no encoding of text called 'utf-9'"]),
    "no name of an encoding": (NAMED, {"encoding": "\0"}, ["no encoding of text"]),
    "an encoding of something else": (NAMED, {"encoding": "rot13"}, ["no encoding of text"]),
    "a long delimiter": (NAMED, {"delimiter": ";;"}, ["cannot stand between cells"]),
    "a digit between cells": (NAMED, {"delimiter": "1"}, ["cannot stand between cells"]),
    "a point between cells": (NAMED, {"delimiter": "."}, ["cannot stand between cells"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEEN)
def test_what_cannot_be_read_says_what_was_seen_and_what_to_write(write, opened, kind: str) -> None:
    content, form, says = SEEN[kind]
    said = refused(lambda: opened(write("x.csv", content), **form), ".")
    assert all(word in said for word in says), said


def test_a_line_without_an_end_is_not_read_whole(write, opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("securemodel.files.reader._LINE_CHARACTERS", 1000)
    refused(lambda: opened(write("x.csv", "a,b\n" + "1" * 5000), 2), "more than 1000 characters\n.*line 2")


def test_files_that_are_none(tmp_path: Path, opened, write) -> None:
    import os

    refused(lambda: opened(tmp_path / "nowhere.csv"), "no such file")
    os.mkfifo(tmp_path / "pipe.csv")
    refused(lambda: opened(tmp_path / "pipe.csv"), "no ordinary file")
    refused(lambda: opened(write("x.parquet", "")), "not a kind of file")


# ---- ids
def test_ids_stay_text(write, opened, joined) -> None:
    table = write("x.csv", "id,a,b\n007,1,2\nNA,3,4\n12345678901234567890,5,6\n 1.0 ,7,8\n")
    rows = opened(table, 2, id="id")
    assert list(rows.names()) == ["007", "NA", "12345678901234567890", "1.0"] and rows.id_name == "id"
    assert joined(rows)[:, 0].tolist() == [1, 3, 5, 7]
    bare = opened(write("y.csv", "007,1,2\n008,3,4\n"), 2, id="1", header=False)
    assert list(bare.names()) == ["007", "008"] and bare.id_name == "id"


@pytest.mark.parametrize(
    "cell, says", [("", "no id"), (" ", "no id"), ('"a\nb"', "cannot be printed"), ("a\x07", "cannot be printed")]
)
def test_rows_without_an_id(write, opened, cell: str, says: str) -> None:
    refused(lambda: opened(write("x.csv", f"id,a\n1,1\n{cell},2\n"), 1, id="id"), f"{says}.*\n.*line 3, column 1")


def test_an_id_of_two_rows_is_refused_with_both_lines(write, opened) -> None:
    table = write("x.csv", "id,a\nSECRET-1,1\nB,2\nC,3\nSECRET-1 ,4\nB,5\n")
    said = refused(lambda: opened(table, 1, id="id"), "two rows have the same id", "SECRET-1")
    assert "x.csv, line 2; and" in said and said.splitlines()[1].endswith("x.csv, line 5")
    assert opened(table, 1, ("a",)).count == 5, "where nobody asks for ids, they are no matter"


def test_the_digest_of_ids_knows_their_order_and_their_ends(write, opened) -> None:
    digest = lambda *ids: opened(write("x.csv", "id,a\n" + "".join(f"{i},1\n" for i in ids)), 1, id="id").ids
    made = [digest("ab", "c"), digest("a", "bc"), digest("c", "ab"), digest("ab", "c", "d"), digest("ab", "c")]
    assert made[0] == made[4] and len(set(made)) == 4


# ---- looked through before, and compared after
def test_what_the_program_has_no_room_for_is_named(write, opened) -> None:
    def check(inputs) -> None:
        if inputs[0].abs().max() > 100:
            raise InputError("too large\n  → SHOWN NOWHERE")
        if (inputs[0] < 0).any():
            raise RuntimeError(f"value {SECRET} is not allowed")

    said = refused(lambda: opened(write("x.csv", "a,b\n1,2\n3,4\n5,6\n7,101\n"), 2, check=check), "too large")
    assert "line 5, column 2 ('b')" in said
    said = refused(lambda: opened(write("x.csv", "a,b\n1,2\n-3,4\n"), 2, check=check), "cannot use this input")
    assert "line 3, column 1 ('a')" in said


def test_a_file_that_changes_under_way_is_noticed(write, opened) -> None:
    rows = opened(write("x.csv", "a\n1\n2\n3\n4\n"), 1)
    assert [b[0].flatten().tolist() for b in rows.read([1])] == [[3, 4]]
    for text in ("a\n1\n2\n3\n5\n", "a\n1\n2\n3\n", "a\n1\n2\n"):
        write("x.csv", text)
        with pytest.raises(InputError, match="changed since"):
            list(rows.read([1]))


def test_ids_that_change_under_way_are_noticed(write, opened) -> None:
    rows = opened(write("x.csv", "id,a\nx,1\ny,2\n"), 1, id="id")
    assert list(rows.names()) == ["x", "y"]
    for text in ("id,a\nx,1\nz,2\n", "id,a\nx,1\n", "id,a\ny,1\nx,2\n"):
        write("x.csv", text)
        with pytest.raises(InputError, match="changed since"):
            list(rows.names())


def test_digests_tell_which_batches_are_the_same(write, opened) -> None:
    rows = [opened(write("x.csv", "a\n" + "\n".join(cells) + "\n"), 1).digests for cells in ("12345", "12845", "1234")]
    batches = [[d[i : i + 16] for i in range(0, len(d), 16)] for d in rows]
    assert [a == b for a, b in zip(*batches[:2], strict=True)] == [True, False, True] and batches[2] == batches[0][:2]


def test_a_million_rows_take_constant_memory(tmp_path: Path, opened) -> None:
    """Only the digests of batches grow: here 16 bytes for 2 rows, twice while they are copied."""
    import tracemalloc

    peaks = []
    for count in (2_000, 20_000):
        path = tmp_path / f"{count}.csv"
        path.write_text("a\n" + "1.5\n" * count)
        opened(path, 1)
        tracemalloc.start()
        opened(path, 1)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 18_000 * 28  # a row that is kept takes more


def test_a_table_gives_lines_and_cells_to_others_too(write) -> None:
    table = open_table(write("x.csv", 'k;v\n"a\nb";1\nc;2\n'), Format(";"), ("v",))
    assert (
        list(table.rows()) == [(2, ["a\nb", "1"]), (4, ["c", "2"])]
        and table.names == ("k", "v")
        and table.columns == (1,)
    )
