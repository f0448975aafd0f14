// Reads CSV strictly, with the line of every fault, and writes it. No DOM.

const MAX_FAULTS = 20;
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i;

/** Records of a CSV text with commas, semicolons or tabs (RFC 4180): {line, cells} each. Throws an Error with the line. */
export function parseCsv(text) {
	const source = text.replace(/^\uFEFF/, ""), [head] = source.split(/[\r\n]/, 1), records = [];
	const mark = [",", ";", "\t"].reduce((best, one) => (head.split(one).length > head.split(best).length ? one : best));
	const cell = new RegExp(` *("(?:[^"]|"")*"|[^"\\r\\n${mark}]*?) *(${mark}|\\r\\n|[\\r\\n]|$)`, "y");
	let line = 1, record = { line, cells: [] };
	while (cell.lastIndex < source.length || record.cells.length) {
		const [whole, found, end] = cell.exec(source) ?? [];
		if (whole === undefined) throw new Error(`line ${line}: a quotation mark is wrong, or never closed`);
		record.cells.push(found.startsWith('"') ? found.slice(1, -1).replaceAll('""', '"') : found);
		line += whole.split(/\r\n|\r|\n/).length - 1;
		if (end === mark) continue;
		if (record.cells.some((one) => one !== "")) records.push(record);
		record = { line, cells: [] };
	}
	return records;
}

/**
 * The rows of a table as numbers: of these columns, or of all `count` where there are no names (null). Returns
 * {rows, lines, unused}, the last being names of other columns; throws an Error with `.faults`, a line of text each.
 */
export function readRows(text, columns, count) {
	const [head, ...records] = parseCsv(text);
	if (!records.length) throw fail(["the file needs a line of names, and rows"]);
	const places = columns ? byName(head.cells, columns) : inOrder(head.cells, count), faults = [];
	const rows = records.map(({ line, cells }) => {
		if (cells.length !== head.cells.length) faults.push(`line ${line}: ${cells.length} cells, but line 1 has ${head.cells.length}`);
		else for (const place of places) if (!NUMBER.test(cells[place])) faults.push(`line ${line}, column ${head.cells[place]}: ${said(cells[place])}`);
		return places.map((place) => Number(cells[place]));
	});
	if (faults.length) throw fail(faults);
	return { rows, lines: records.map(({ line }) => line), unused: head.cells.filter((_, place) => !places.includes(place)) };
}

function byName(head, columns) {
	const faults = columns.filter((name) => head.filter((one) => one === name).length !== 1);
	if (faults.length) throw fail(faults.map((name) => `line 1: the column ${name} is ${head.includes(name) ? "there twice" : "missing"}`));
	return columns.map((name) => head.indexOf(name));
}

function inOrder(head, count) {
	if (head.length !== count) throw fail([`line 1: ${head.length} columns, but the model takes ${count}`]);
	if (head.every((cell) => NUMBER.test(cell))) throw fail(["line 1: it must hold the names of the columns"]);
	return head.map((_, place) => place);
}

function said(cell) {
	return cell === "" ? "it is empty" : `“${cell.slice(0, 20)}” is not a number`;
}

function fail(faults) {
	const shown = faults.slice(0, MAX_FAULTS), rest = faults.length - shown.length;
	return Object.assign(new Error(faults[0]), { faults: rest ? [...shown, `and ${rest} more`] : shown });
}

/** A CSV text. A text that a spreadsheet would take for a formula gets an apostrophe. */
export function writeCsv(names, rows) {
	const cell = (value) => {
		const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
		return /[",;\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
	};
	return [names, ...rows].map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}
