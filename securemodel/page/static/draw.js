// A pad of cells to draw a digit on, with a pointer or with the keyboard, and pictures as numbers.

const STROKES = [[8, 8, 10, 5], [10, 5, 17, 5], [17, 5, 19, 8], [19, 8, 18, 11], [18, 11, 13, 14], [13, 14, 18, 16],
  [18, 16, 19, 20], [19, 20, 17, 23], [17, 23, 10, 23], [10, 23, 8, 20]]; // a three, in cells of 28
const MOVES = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
const CELL = 10; // pixels of the canvas a cell
const LARGEST = 1024; // pixels; larger pictures are shrunk by the browser first

/** Makes a canvas a pad of height × width cells from 0 to 255; `say` gets texts for those who do not see it. */
export class Pad {
  constructor(canvas, height, width, say) {
    Object.assign(this, { canvas, height, width, say, cells: new Uint8ClampedArray(height * width) });
    this.x = width >> 1;
    this.y = height >> 1;
    canvas.width = width * CELL;
    canvas.height = height * CELL;
    canvas.addEventListener("pointerdown", (event) => this.#start(event));
    canvas.addEventListener("pointermove", (event) => this.#follow(event));
    canvas.addEventListener("pointerup", () => (this.last = null));
    canvas.addEventListener("pointercancel", () => (this.last = null));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    for (const name of ["focus", "blur"]) canvas.addEventListener(name, () => this.#show());
    this.#show();
  }

  get empty() {
    return this.cells.every((cell) => cell === 0);
  }

  clear() {
    this.cells.fill(0);
    this.#show();
  }

  /** Draws a digit, for those who want to see how it goes. */
  example() {
    this.clear();
    const across = this.width / 28, down = this.height / 28;
    for (const [x, y, to, below] of STROKES) this.#line(x * across, y * down, to * across, below * down);
    this.#show();
  }

  #start(event) {
    event.preventDefault();
    this.canvas.focus();
    this.canvas.setPointerCapture(event.pointerId);
    this.last = null;
    this.#follow(event, true);
  }

  #follow(event, begins = false) {
    if (!begins && !this.last) return;
    const box = this.canvas.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * this.width, y = ((event.clientY - box.top) / box.height) * this.height;
    this.#line(...(this.last ?? [x, y]), x, y);
    this.last = [x, y];
    this.#show();
  }

  #key(event) {
    if (MOVES[event.key]) {
      const [right, down] = MOVES[event.key];
      this.x = Math.min(Math.max(this.x + right, 0), this.width - 1);
      this.y = Math.min(Math.max(this.y + down, 0), this.height - 1);
      if (event.shiftKey) this.#dot(this.x + 0.5, this.y + 0.5);
    } else if (event.key === " " || event.key === "Enter") {
      this.#dot(this.x + 0.5, this.y + 0.5);
    } else if (event.key === "Backspace" || event.key === "Delete") {
      this.cells[this.y * this.width + this.x] = 0;
    } else return;
    event.preventDefault();
    this.#show();
    const filled = this.cells[this.y * this.width + this.x] > 0;
    this.say(`row ${this.y + 1}, column ${this.x + 1}, ${filled ? "painted" : "empty"}`);
  }

  #line(x, y, to, below) {
    const steps = Math.max(1, Math.ceil(Math.hypot(to - x, below - y) * 3));
    for (let step = 0; step <= steps; step++) {
      this.#dot(x + ((to - x) * step) / steps, y + ((below - y) * step) / steps);
    }
  }

  /** A soft round dot, about two cells wide. */
  #dot(x, y) {
    const reach = Math.max(1.4, this.width / 20);
    for (let row = Math.floor(y - reach); row <= y + reach; row++) {
      for (let column = Math.floor(x - reach); column <= x + reach; column++) {
        if (row < 0 || column < 0 || row >= this.height || column >= this.width) continue;
        const near = 1 - Math.max(0, Math.hypot(row + 0.5 - y, column + 0.5 - x) - reach * 0.55) / (reach * 0.55);
        const place = row * this.width + column;
        this.cells[place] = Math.max(this.cells[place], 255 * Math.min(1, near));
      }
    }
  }

  #show() {
    paint(this.canvas, Float64Array.from(this.cells), 1, this.height, this.width);
    if (document.activeElement !== this.canvas) return;
    const pen = this.canvas.getContext("2d"), cell = this.canvas.width / this.width;
    pen.strokeStyle = "#ffb000";
    pen.lineWidth = 2;
    pen.strokeRect(this.x * cell + 1, this.y * cell + 1, cell - 2, cell - 2);
  }
}

/** Shows channels × height × width numbers from 0 to 255 on a canvas, enlarged to its size. */
export function paint(canvas, values, channels, height, width) {
  const small = new OffscreenCanvas(width, height), pen = small.getContext("2d"), pixels = pen.createImageData(width, height);
  const size = height * width;
  for (let at = 0; at < size; at++) {
    for (let color = 0; color < 3; color++) pixels.data[4 * at + color] = values[at + (channels === 3 ? color * size : 0)];
    pixels.data[4 * at + 3] = 255;
  }
  pen.putImageData(pixels, 0, 0);
  const shown = canvas.getContext("2d");
  shown.imageSmoothingEnabled = false;
  shown.drawImage(small, 0, 0, canvas.width, canvas.height);
}

/** A picture file as red, green and blue from 0 to 255: {pixels, shape: [3, height, width]}, at most 1024 a side. */
export async function pictureOf(file) {
  const picture = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name}: the browser cannot read this as a PNG or JPEG picture`);
  });
  const scale = Math.min(1, LARGEST / Math.max(picture.width, picture.height));
  const width = Math.max(1, Math.round(picture.width * scale)), height = Math.max(1, Math.round(picture.height * scale));
  const pen = new OffscreenCanvas(width, height).getContext("2d");
  pen.fillStyle = "#fff"; // behind transparent pixels
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, 0, 0, width, height);
  picture.close();
  const { data } = pen.getImageData(0, 0, width, height), size = height * width;
  const pixels = Float64Array.from({ length: 3 * size }, (_, at) => data[4 * (at % size) + Math.floor(at / size)]);
  return { pixels, shape: [3, height, width] };
}
