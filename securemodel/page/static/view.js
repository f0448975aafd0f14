// Small helpers for the document. Text from outside becomes text nodes only, never markup.

/** An element with these properties and children; names with a dash, role and scope are attributes. */
export function make(tag, properties = {}, ...children) {
	const element = document.createElement(tag);
	for (const [name, value] of Object.entries(properties)) {
		if (/-|^role$|^scope$/.test(name)) element.setAttribute(name, value);
		else element[name] = value;
	}
	element.append(...children);
	return element;
}

/** An element of a drawing, with these attributes and children. */
export function draw(tag, attributes, ...children) {
	const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
	for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
	element.append(...children);
	return element;
}

/** The element of this id. */
export function at(id) {
	return document.getElementById(id);
}

/** A table with a caption; the first cell of a row names it. */
export function table(caption, names, rows) {
	const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col" }, name)));
	const body = rows.map(([name, ...cells]) => make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((cell) => make("td", {}, cell))));
	return make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
		make("table", {}, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body)));
}

/** Offers a text as a file. */
export function download(name, type, text) {
	const href = URL.createObjectURL(new Blob([text], { type }));
	make("a", { href, download: name }).click();
	setTimeout(() => URL.revokeObjectURL(href), 10000);
}

/** 1234567 as "1.23 MB". */
export function sizeText(bytes) {
	const power = Math.floor(Math.log10(Math.max(bytes, 1)) / 3);
	return `${Number((bytes / 1000 ** power).toPrecision(3))} ${["B", "kB", "MB", "GB"][power]}`;
}
