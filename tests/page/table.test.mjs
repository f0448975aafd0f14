// table.js: CSV in and out.
import assert from "node:assert/strict";
import { test } from "node:test";

import { parseCsv, readRows, writeCsv } from "../../securemodel/page/static/table.js";

const cells = (text) => parseCsv(text).map((record) => record.cells);
const faults = (...given) => {
  try {
    readRows(...given);
  } catch (error) {
    return error.faults ?? [error.message];
  }
  return [];
};

test("records end at any kind of line end, and lines are counted in quotes", () => {
  assert.deepEqual(cells("a,b\r\n1,2\n3,4\r5,6"), [["a", "b"], ["1", "2"], ["3", "4"], ["5", "6"]]);
  assert.deepEqual(parseCsv('a\n"x\ny"\n\n z \n').map(({ line }) => line), [1, 2, 5]);
});

test("quotes, delimiters and blanks", () => {
  assert.deepEqual(cells('"a ""b"", c",d\n1, 2 \n'), [['a "b", c', "d"], ["1", "2"]]);
  assert.deepEqual(cells("\uFEFFa;b\n1,5;2\n"), [["a", "b"], ["1,5", "2"]]);
  assert.deepEqual(cells("a\tb\n1\t\n"), [["a", "b"], ["1", ""]]);
  assert.deepEqual(cells(""), []);
  for (const bad of ['a,b\n"1,2\n', 'a,b\n"1"x,2\n', 'a,b\n1",2\n']) assert.throws(() => parseCsv(bad), /line 2: a quotation mark/);
});

test("what is written is read again", () => {
  const names = ["name", 'odd, "one"'], rows = [["line\nbreak", 1.5], [" = ", -2e-7], ["", 0]];
  const read = cells(writeCsv(names, rows));
  assert.deepEqual(read[0], names);
  assert.deepEqual(read.slice(1), [["line\nbreak", "1.5"], ["=", "-2e-7"], ["", "0"]]);
});

test("a text is no formula for a spreadsheet, a number stays one", () => {
  assert.deepEqual(cells(writeCsv(["x"], [["=1+1"], ["@a"], ["-a"], [-1]])), [["x"], ["'=1+1"], ["'@a"], ["'-a"], ["-1"]]);
});

test("columns by name, by order, and not at all", () => {
  assert.deepEqual(faults("a,a\n1,2\n", ["a"], 1), ["line 1: the column a is there twice"]);
  const text = "b,c,a\n1,x,2\n3,,4\n";
  assert.deepEqual(readRows(text, ["a", "b"], 2), { rows: [[2, 1], [4, 3]], lines: [2, 3], unused: ["c"] });
  assert.deepEqual(readRows("p,q\n1,2\n", null, 2).rows, [[1, 2]]);
  assert.deepEqual(faults("p,q\n1,2\n", null, 3), ["line 1: 2 columns, but the model takes 3"]);
  assert.deepEqual(faults("1,2\n3,4\n", null, 2), ["line 1: it must hold the names of the columns"]);
});

test("only numbers are numbers", () => {
  const good = ["1", "-1", "+1.5", ".5", "5.", "1e3", "1E-3"], bad = ["", "NaN", "Infinity", "0x10", "1,5", "1_0", "1e", ".", "--1", "１"];
  assert.deepEqual(readRows(`x;y\n${good.map((cell) => `${cell};0`).join("\n")}\n`, ["x"], 1).rows.flat(), [1, -1, 1.5, 0.5, 5, 1000, 0.001]);
  for (const cell of bad) assert.equal(faults(`x;y\n${cell};0\n`, ["x"], 1).length, 1, cell);
});

test("many faults are shown up to a number", () => {
  const found = faults(`x,y\n${"a,1\n".repeat(100)}`, ["x"], 1);
  assert.equal(found.length, 21);
  assert.equal(found[20], "and 80 more");
});
