// A pad of cells to draw on, with a pointer or with the keyboard, and picture files as numbers.

const SEVEN = [[8, 6, 20, 6], [20, 6, 13, 23]]; // strokes from x, y to x, y in 28 cells
const MOVES = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
const CELL = 10, REACH = 1.4, LARGEST = 1024; // pixels of a cell; cells; pixels of a picture, else it is shrunk first

/** A pad of cells from 0 to 255 on a canvas. `say` gets texts for those who do not see it. */
export class Pad {
	constructor(canvas, height, width, say) {
		Object.assign(this, { canvas, height, width, say, x: width >> 1, y: height >> 1, last: null });
		Object.assign(canvas, { width: width * CELL, height: height * CELL });
		canvas.addEventListener("pointerdown", (event) => {
			event.preventDefault();
			canvas.focus();
			canvas.setPointerCapture(event.pointerId);
			this.#stroke(event);
		});
		canvas.addEventListener("pointermove", (event) => this.last && this.#stroke(event));
		for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => (this.last = null));
		for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => this.#show());
		canvas.addEventListener("keydown", (event) => this.#key(event));
		this.clear();
	}

	get empty() {
		return this.cells.every((cell) => cell === 0);
	}

	clear() {
		this.cells = new Uint8ClampedArray(this.height * this.width);
		this.#show();
	}

	/** Draws a seven. */
	example() {
		this.clear();
		for (const stroke of SEVEN) this.#line(...stroke);
		this.#show();
	}

	#stroke({ clientX, clientY }) {
		const box = this.canvas.getBoundingClientRect();
		const now = [((clientX - box.left) / box.width) * this.width, ((clientY - box.top) / box.height) * this.height];
		this.#line(...(this.last ?? now), ...now);
		this.last = now;
		this.#show();
	}

	#key(event) {
		const [right, down] = MOVES[event.key] ?? [0, 0], here = () => this.y * this.width + this.x;
		this.x = Math.min(Math.max(this.x + right, 0), this.width - 1);
		this.y = Math.min(Math.max(this.y + down, 0), this.height - 1);
		if (event.key === " " || (MOVES[event.key] && event.shiftKey)) this.#dot(this.x + 0.5, this.y + 0.5);
		else if (event.key === "Backspace" || event.key === "Delete") this.cells[here()] = 0;
		else if (!MOVES[event.key]) return;
		event.preventDefault();
		this.#show();
		this.say(`row ${this.y + 1}, column ${this.x + 1}, ${this.cells[here()] ? "painted" : "empty"}`);
	}

	#line(x, y, to, below) {
		const steps = Math.max(1, Math.ceil(Math.hypot(to - x, below - y) * 3));
		for (let step = 0; step <= steps; step++) this.#dot(x + ((to - x) * step) / steps, y + ((below - y) * step) / steps);
	}

	/** A round dot with a soft edge. */
	#dot(x, y) {
		this.cells = this.cells.map((cell, place) => {
			const far = Math.hypot((place % this.width) + 0.5 - x, Math.floor(place / this.width) + 0.5 - y);
			return Math.max(cell, 255 * Math.min(1, 2 * (1 - far / REACH)));
		});
	}

	#show() {
		paint(this.canvas, this.cells, 1, this.height, this.width);
		if (document.activeElement !== this.canvas) return;
		const pen = this.canvas.getContext("2d");
		Object.assign(pen, { strokeStyle: "#ffb000", lineWidth: 2 });
		pen.strokeRect(this.x * CELL + 1, this.y * CELL + 1, CELL - 2, CELL - 2);
	}
}

/** Shows channels × height × width numbers from 0 to 255 on a canvas, enlarged to its size. */
export function paint(canvas, values, channels, height, width) {
	const small = new OffscreenCanvas(width, height), size = height * width, pixels = new ImageData(width, height);
	const color = (place, part) => (part === 3 ? 255 : values[place + (channels === 3 ? part * size : 0)]);
	pixels.data.forEach((_, at) => (pixels.data[at] = color(at >> 2, at & 3)));
	small.getContext("2d").putImageData(pixels, 0, 0);
	const pen = canvas.getContext("2d");
	pen.imageSmoothingEnabled = false;
	pen.drawImage(small, 0, 0, canvas.width, canvas.height);
}

/** A picture file as red, green and blue from 0 to 255: {pixels, shape: [3, height, width]}. */
export async function pictureOf(file) {
	const picture = await createImageBitmap(file).catch(() => {
		throw new Error(`${file.name} is no PNG or JPEG picture`);
	});
	const scale = Math.min(1, LARGEST / Math.max(picture.width, picture.height));
	const [width, height] = [picture.width, picture.height].map((length) => Math.max(1, Math.round(length * scale)));
	const pen = new OffscreenCanvas(width, height).getContext("2d"), size = height * width;
	Object.assign(pen, { fillStyle: "#fff", imageSmoothingQuality: "high" });
	pen.fillRect(0, 0, width, height); // behind transparent pixels
	pen.drawImage(picture, 0, 0, width, height);
	picture.close();
	const { data } = pen.getImageData(0, 0, width, height);
	return { pixels: Float64Array.from({ length: 3 * size }, (_, at) => data[4 * (at % size) + Math.floor(at / size)]), shape: [3, height, width] };
}
