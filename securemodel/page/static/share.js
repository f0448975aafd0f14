// Integers modulo 2^64, split into shares and added up again. One is two 32-bit halves, the low one first, which are the
// 8 bytes that are sent. No DOM: runs in browsers, workers and Node 20 or newer.

const TWO_32 = 2 ** 32;
const RANDOM_CALL = 65536; // bytes, the most that one call gives
const STREAM = new TextEncoder().encode("securemodel share 1");

if (new Uint8Array(Uint32Array.of(1).buffer)[0] !== 1) throw new Error("this machine does not store low bytes first");

/** Bytes that nobody can guess. */
export function randomBytes(count) {
	const bytes = new Uint8Array(count);
	for (let at = 0; at < count; at += RANDOM_CALL) {
		crypto.getRandomValues(bytes.subarray(at, Math.min(at + RANDOM_CALL, count)));
	}
	return bytes;
}

/** The nearest whole number; the even one of two that are as near. */
function nearest(x) {
	const up = Math.round(x);
	return up - x === 0.5 && up % 2 !== 0 ? up - 1 : up;
}

/**
 * round(x · 2^fracBits) of each number, in halves. RangeError, with the place as `.index`, for what is not finite or
 * beyond `limit`, and for `kind` "index" for what is not a whole number from 0 on.
 */
export function encode(values, fracBits, limit, kind = "real") {
	const out = new Uint32Array(2 * values.length), scale = 2 ** fracBits;
	for (let i = 0; i < values.length; i++) {
		const x = values[i];
		if (!(Math.abs(x) <= limit)) throw refusal(i, Number.isFinite(x) ? `is beyond ±${limit}` : "is not a finite number");
		if (kind === "index" && !(Number.isInteger(x) && x >= 0)) throw refusal(i, "is not a whole number from 0 on");
		const whole = nearest(x * scale), high = Math.floor(whole / TWO_32);
		out[2 * i] = whole - high * TWO_32;
		out[2 * i + 1] = high;
	}
	return out;
}

function refusal(index, why) {
	return Object.assign(new RangeError(`number ${index + 1} ${why}`), { index });
}

/** total += other, modulo 2^64, in place. */
export function add(total, other) {
	for (let i = 0; i < total.length; i += 2) {
		const low = total[i] + other[i];
		total[i] = low;
		total[i + 1] = total[i + 1] + other[i + 1] + (low >= TWO_32 ? 1 : 0);
	}
	return total;
}

/** total -= other, modulo 2^64, in place. */
export function subtract(total, other) {
	for (let i = 0; i < total.length; i += 2) {
		const borrow = total[i] < other[i] ? 1 : 0;
		total[i] = total[i] - other[i];
		total[i + 1] = total[i + 1] - other[i + 1] - borrow;
	}
	return total;
}

/** The numbers that ring elements stand for: signed, divided by 2^fracBits. */
export function decode(halves, fracBits) {
	const out = new Float64Array(halves.length / 2), scale = 2 ** -fracBits;
	for (let i = 0; i < out.length; i++) out[i] = ((halves[2 * i + 1] | 0) * TWO_32 + halves[2 * i]) * scale;
	return out;
}

/** The share that a 32-byte seed stands for: AES-256-CTR over zeros, apart for each request and tensor. */
export async function seedStream(seed, id, tensor, count) {
	const index = new Uint8Array(4);
	new DataView(index.buffer).setUint32(0, tensor, true);
	const counter = new Uint8Array(16);
	counter.set((await sha256(STREAM, fromHex(id), index)).subarray(0, 8));
	const key = await crypto.subtle.importKey("raw", seed, "AES-CTR", false, ["encrypt"]);
	const stream = await crypto.subtle.encrypt({ name: "AES-CTR", counter, length: 64 }, key, new Uint8Array(8 * count));
	return new Uint32Array(stream);
}

/**
 * Shares of encoded numbers: {form, bytes, halves} for each party, what is sent and what it stands for. The first party
 * gets numbers, every other one a seed, or numbers, too, where `form` is "values".
 */
export async function split(encoded, parties, { id, tensor = 0, form = "seed", random = randomBytes }) {
	const first = encoded.slice(), shares = [];
	for (let rank = 1; rank < parties; rank++) {
		const bytes = random(form === "seed" ? 32 : 4 * encoded.length);
		const halves = form === "seed" ? await seedStream(bytes, id, tensor, encoded.length / 2) : asHalves(bytes);
		subtract(first, halves);
		shares.push({ form, bytes, halves });
	}
	return [{ form: "values", bytes: asBytes(first), halves: first }, ...shares];
}

/** The sum of all parties' shares. */
export function join(shares) {
	return shares.slice(1).reduce(add, shares[0].slice());
}

/** The bytes of ring elements, as they are sent. */
export function asBytes(halves) {
	return new Uint8Array(halves.buffer, halves.byteOffset, halves.byteLength);
}

/** Ring elements of bytes, wherever these begin. */
export function asHalves(bytes) {
	return new Uint32Array(bytes.slice().buffer);
}

/** How many numbers a row of a tensor of this shape has; its first axis are the rows. */
export function sizeOf(shape) {
	return shape.slice(1).reduce((size, length) => size * length, 1);
}

export async function sha256(...parts) {
	return new Uint8Array(await crypto.subtle.digest("SHA-256", joined(parts)));
}

/** Byte arrays, one after the other. */
export function joined(parts) {
	const out = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
	let at = 0;
	for (const part of parts) {
		out.set(part, at);
		at += part.length;
	}
	return out;
}

export function toHex(bytes) {
	return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export function fromHex(text) {
	return Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}
