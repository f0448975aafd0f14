// Text tables: reads CSV strictly, with the line of every error, and writes it.

const MAX_FAULTS = 20;
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** Records of a CSV text (RFC 4180; comma, semicolon or tab): {line, cells} each. Throws an Error with the line. */
export function parseCsv(text) {
  const source = text.replace(/^\uFEFF/, ""), delimiter = guess(source), records = [];
  let at = 0, line = 1;
  while (at < source.length) {
    const started = line, cells = [];
    for (;;) {
      let cell = "";
      if (source[at] === '"') {
        for (at++; ; at++) {
          if (at >= source.length) throw new Error(`line ${started}: a quotation mark is never closed`);
          if (source[at] === "\n") line++;
          if (source[at] !== '"') cell += source[at];
          else if (source[at + 1] === '"') cell += source[at++];
          else break;
        }
        if (at++, at < source.length && !`${delimiter}\r\n`.includes(source[at])) {
          throw new Error(`line ${line}: text follows a closing quotation mark`);
        }
      } else {
        const start = at;
        while (at < source.length && source[at] !== delimiter && source[at] !== "\n" && source[at] !== "\r") at++;
        cell = source.slice(start, at);
      }
      cells.push(cell.trim());
      if (source[at] !== delimiter) break;
      at++;
    }
    if (source[at] === "\r") at++;
    if (source[at] === "\n") at++;
    line++;
    if (cells.length > 1 || cells[0] !== "") records.push({ line: started, cells });
  }
  return records;
}

function guess(text) {
  const first = text.slice(0, text.search(/[\r\n]|$/));
  return [",", ";", "\t"].reduce((best, mark) => (first.split(mark).length > first.split(best).length ? mark : best));
}

/**
 * The rows of a table as numbers for `columns` (their names; null: the first `count` columns in order). The first line
 * holds names. Returns {rows: [[number]], lines, unused}; throws an Error whose `.faults` says each wrong place.
 */
export function readRows(text, columns, count) {
  const [head, ...records] = parseCsv(text);
  if (!head) throw fail(["the file is empty"]);
  if (records.length === 0) throw fail(["the file has a line of names and no rows"]);
  const places = columns ? byName(head.cells, columns) : inOrder(head, count);
  const faults = [], rows = [];
  for (const { line, cells } of records) {
    if (cells.length !== head.cells.length) {
      faults.push(`line ${line}: ${cells.length} cells, but the first line has ${head.cells.length}`);
      continue;
    }
    rows.push(places.map((place) => {
      if (!NUMBER.test(cells[place])) faults.push(`line ${line}, column ${head.cells[place]}: ${said(cells[place])}`);
      return Number(cells[place]);
    }));
  }
  if (faults.length) throw fail(faults);
  const unused = head.cells.filter((_, place) => !places.includes(place));
  return { rows, lines: records.map((record) => record.line), unused };
}

function byName(head, columns) {
  const missing = columns.filter((name) => !head.includes(name));
  const twice = columns.filter((name) => head.indexOf(name) !== head.lastIndexOf(name));
  if (missing.length || twice.length) {
    throw fail([
      ...missing.map((name) => `line 1: there is no column ${name}`),
      ...twice.map((name) => `line 1: the column ${name} is there twice`),
    ]);
  }
  return columns.map((name) => head.indexOf(name));
}

function inOrder(head, count) {
  if (head.cells.every((cell) => NUMBER.test(cell))) throw fail(["line 1: it must hold the names of the columns"]);
  if (head.cells.length !== count) {
    throw fail([`line 1: ${head.cells.length} columns, but the model takes ${count}`]);
  }
  return head.cells.map((_, place) => place);
}

function said(cell) {
  return cell === "" ? "the cell is empty" : `“${cell.length > 20 ? `${cell.slice(0, 20)}…` : cell}” is not a number`;
}

function fail(faults) {
  const shown = faults.slice(0, MAX_FAULTS);
  if (faults.length > MAX_FAULTS) shown.push(`and ${faults.length - MAX_FAULTS} more`);
  return Object.assign(new Error(shown.join("\n")), { faults: shown });
}

/** A CSV text of a line of names and rows of texts and numbers. Texts that a spreadsheet would run are kept texts. */
export function writeCsv(names, rows) {
  const cell = (value) => {
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\r\n;]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [names, ...rows].map((row) => row.map(cell).join(",") + "\r\n").join("");
}
