// Results as bars: an inline drawing whose numbers also stand in a table beside it.

import { draw } from "./view.js";

const ROW = 26, NAME = 92, AMOUNT = 74, BAR = 300;

/** Horizontal bars for values by label; the largest is marked by a sign and in bold, too. */
export function bars(labels, values, text) {
  const low = Math.min(0, ...values), high = Math.max(0, ...values), span = high - low || 1;
  const place = (value) => NAME + ((value - low) / span) * BAR, best = values.indexOf(Math.max(...values));
  const height = ROW * values.length, width = NAME + BAR + AMOUNT;
  return draw("svg", { viewBox: `0 0 ${width} ${height}`, class: "bars", role: "img", "aria-label": `Bars: ${labels[best]} is largest` },
    ...values.map((value, at) => {
      const y = ROW * at, left = Math.min(place(0), place(value)), kind = at === best ? "best" : "";
      const name = labels[at].length > 12 ? `${labels[at].slice(0, 11)}…` : labels[at];
      return draw("g", { class: kind },
        draw("text", { x: NAME - 8, y: y + 17, "text-anchor": "end" }, at === best ? `▸ ${name}` : name),
        draw("rect", { x: left, y: y + 4, width: Math.max(Math.abs(place(value) - place(0)), 1), height: ROW - 8, rx: 3 }),
        draw("text", { x: NAME + BAR + 8, y: y + 17 }, text(value)));
    }),
    draw("line", { x1: place(0), x2: place(0), y1: 0, y2: height }));
}
