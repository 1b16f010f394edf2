// Makes elements; no other file does. Strings become text nodes, so a model's text is never parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, properties, children) {
  for (const [key, value] of Object.entries(properties || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

const el = (name, properties, ...children) => fill(document.createElement(name), properties, children);
const svg = (name, properties, ...children) => fill(document.createElementNS(SVG, name), properties, children);

// Adds the first `size` of `count` things, and a button for the others. `draw(begin, end)` returns elements.
function paged(host, count, size, word, draw) {
  host.append(...draw(0, Math.min(size, count)));
  if (count <= size) return host;
  const more = el(
    "button",
    { type: "button", class: "more" },
    `show the other ${(count - size).toLocaleString("en")} ${word}`,
  );
  more.addEventListener("click", () => more.replaceWith(...draw(size, count)));
  host.append(more);
  return host;
}

const percent = (share, digits = 0) => (share === null ? "–" : `${(100 * share).toFixed(digits)}\u00a0%`);

function plain(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return power(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits))).replace("-", "−");
}

// 3.1e-6 -> 3.1·10⁻⁶
function power(value) {
  const [digits, exponent] = value.toExponential(1).split("e");
  const raised = [...String(Number(exponent))].map((c) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[c] || "⁻").join("");
  const front = Number(digits);
  return (front === 1 ? "" : `${front}·`) + `10${raised}`;
}

const signed = (value) => (value === null ? "–" : (value > 0 ? "+" : "") + plain(value));
