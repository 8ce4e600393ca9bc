/** The difference between two texts, line by line. */

import { h } from "./dom.js";

/** The lines of two texts, of which null has none: [" ", line] in both, ["-", line] only in the first, ["+", line] only in the second. */
export function diff(before, after) {
  const [a, b] = [before, after].map((text) => (text === null ? [] : text.split("\n")));
  // The longest common subsequence; values have 1,024 characters at most.
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      lengths[i][j] = a[i] === b[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const lines = [];
  let i = 0;
  let j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { lines.push([" ", a[i]]); i += 1; j += 1; }
    else if (j >= b.length || (i < a.length && lengths[i + 1][j] >= lengths[i][j + 1])) { lines.push(["-", a[i]]); i += 1; }
    else { lines.push(["+", b[j]]); j += 1; }
  }
  return lines;
}

const KINDS = { " ": "same", "-": "gone", "+": "new" };

/** The difference as an element; null stands for no value. */
export function diffElement(before, after, names = ["before", "after"]) {
  return h("div.diff", { role: "group", "aria-label": `Difference between ${names[0]} and ${names[1]}`, tabindex: "0" },
    before === after && after === null ? h("div", {}, "No value") : diff(before, after).map(([sign, line]) => h(`div.${KINDS[sign]}`, {}, h("span.sign", {}, sign), h("bdi", {}, line || " "))));
}
