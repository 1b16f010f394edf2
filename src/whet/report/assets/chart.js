// One chart: a caption, a readout of the values under the pointer, and a drawing as wide as its place.

const HEIGHT = 168;
const MARGIN = { top: 8, right: 14, bottom: 34, left: 46 };

// panel: {id, title, unit, log, stacked, series: [{label, colour, values}]}; curve: {stage, steps}
function chart(panel, curve, group) {
  const unit = UNITS[panel.unit];
  const readout = el("p", { class: "readout" });
  const place = el("div", { class: "plot" });
  const axis = unit.axis && unit.axis !== "%" ? el("span", { class: "unit" }, unit.axis) : null;
  const about = panel.series.map(
    (s) => `${s.label} from ${unit.say(firstOf(s.values))} to ${unit.say(lastOf(s.values))}`,
  );
  const figure = el(
    "figure",
    {
      class: "chart",
      "data-panel": panel.id,
      tabindex: 0,
      "aria-label": `${panel.title}: ${about.join("; ")}. Arrow keys walk along the steps.`,
    },
    el("figcaption", {}, panel.title, " ", axis),
    readout,
    place,
  );
  const state = { panel, curve, group, unit, readout, place, figure, marks: null };
  state.draw = () => draw(state);
  state.show = (index) => show(state, index);
  figure.addEventListener("keydown", (event) => walk(state, event));
  return state;
}

const firstOf = (values) => values.find((v) => v !== null) ?? null;
const lastOf = (values) => values.findLast((v) => v !== null) ?? null;

function draw(state) {
  const { panel, curve, place } = state;
  const width = place.clientWidth;
  if (!width) return;
  const labels = panel.series.length > 1;
  const right = labels ? 14 + 7 * Math.max(...panel.series.map((s) => s.label.length)) : MARGIN.right;
  const box = { left: MARGIN.left, right: width - right, top: MARGIN.top, bottom: HEIGHT - MARGIN.bottom };
  const layers = panel.stacked ? stacked(panel.series) : panel.series.map((s) => s.values);
  const axis = axisOf(layers.flat(), panel.unit, panel.log);
  const { steps } = curve;
  const span = Math.max(1, steps[steps.length - 1] - steps[0]);
  const x = (i) =>
    steps.length === 1
      ? (box.left + box.right) / 2
      : box.left + ((steps[i] - steps[0]) / span) * (box.right - box.left);
  const y = (v) => box.bottom - axis.at(v) * (box.bottom - box.top);
  const root = svg("svg", {
    width,
    height: HEIGHT,
    viewBox: `0 0 ${width} ${HEIGHT}`,
    role: "img",
    "aria-label": panel.title,
  });
  root.append(...frame(state, box, axis, x, y));
  const ends = panel.stacked ? areas(panel, layers, root, x, y) : lines(panel, root, x, y);
  if (labels) root.append(...endLabels(panel, ends, box));
  const cursor = svg("line", { class: "cursor", y1: box.top, y2: box.bottom });
  const dots = panel.series.map((s) => svg("circle", { class: `dot ${s.colour}`, r: 3.5 }));
  const marks = svg("g", { class: "marks", visibility: "hidden" }, cursor, dots);
  root.append(marks);
  root.addEventListener("pointermove", (event) => state.group.show(pointed(event, root, steps, box, span)));
  root.addEventListener("pointerdown", (event) => state.group.show(pointed(event, root, steps, box, span)));
  root.addEventListener("pointerleave", () => state.group.show(null));
  root.addEventListener("click", (event) => state.group.open(pointed(event, root, steps, box, span)));
  state.marks = { marks, cursor, dots, x, y, layers };
  place.replaceChildren(root);
  show(state, null);
}

function frame(state, box, axis, x, y) {
  const { curve, unit, panel } = state;
  const parts = [];
  for (const tick of axis.ticks) {
    parts.push(
      svg("line", { class: tick === 0 ? "zero" : "grid", x1: box.left, x2: box.right, y1: y(tick), y2: y(tick) }),
    );
    parts.push(
      svg(
        "text",
        { class: "tick", x: box.left - 6, y: y(tick) + 3.5, "text-anchor": "end" },
        panel.log ? power(tick) : unit.tick(tick),
      ),
    );
  }
  for (const step of stepTicks(curve.steps, box.right - box.left)) {
    const at = x(curve.steps.findIndex((s) => s >= step));
    parts.push(
      svg("text", { class: "tick", x: at, y: box.bottom + 14, "text-anchor": "middle" }, step.toLocaleString("en")),
    );
  }
  parts.push(
    svg("text", { class: "axis", x: (box.left + box.right) / 2, y: box.bottom + 29, "text-anchor": "middle" }, "step"),
  );
  return parts;
}

function lines(panel, root, x, y) {
  const half = halfWidth(panel.series[0].values.length);
  return panel.series.map((series) => {
    const calm = smooth(series.values, half);
    if (half) root.append(svg("path", { class: `raw ${series.colour}`, d: trace(series.values, x, y) }));
    root.append(svg("path", { class: `line ${series.colour}`, d: trace(calm, x, y) }));
    const last = calm.findLastIndex((v) => v !== null);
    return y(calm[last]);
  });
}

function stacked(series) {
  const total = series[0].values.map(() => 0);
  return series.map((s) => s.values.map((v, i) => (total[i] += v ?? 0)));
}

function areas(panel, layers, root, x, y) {
  const last = layers[0].length - 1;
  return panel.series.map((series, n) => {
    const below = n ? layers[n - 1] : layers[0].map(() => 0);
    const up = layers[n].map((v, i) => `${i ? "L" : "M"}${x(i).toFixed(1)},${y(v).toFixed(1)}`).join("");
    const down = below
      .map((v, i) => `L${x(i).toFixed(1)},${y(v).toFixed(1)}`)
      .reverse()
      .join("");
    root.append(svg("path", { class: `area ${series.colour}`, d: `${up}${down}Z` }));
    return y((below[last] + layers[n][last]) / 2);
  });
}

function endLabels(panel, ends, box) {
  const placed = spread(ends, 13, box.top + 4, box.bottom);
  return panel.series.map((s, i) =>
    svg("text", { class: `name ${s.colour}`, x: box.right + 7, y: placed[i] + 4 }, s.label),
  );
}

// The index of the update under the pointer.
function pointed(event, root, steps, box, span) {
  const frame = root.getBoundingClientRect();
  const at = steps[0] + ((event.clientX - frame.left - box.left) / Math.max(1, box.right - box.left)) * span;
  return nearest(steps, at);
}

// Marks update `index`, or none where it is null; the readout then shows the last update.
function show(state, index) {
  const { panel, curve, unit, readout, marks } = state;
  const i = index ?? curve.steps.length - 1;
  const values = panel.series.map((s) => {
    const key = panel.series.length > 1 ? [el("span", { class: `key ${s.colour}` }, s.label), " "] : null;
    return [el("span", { class: "value" }, key, s.values[i] === null ? "no value" : unit.say(s.values[i])), "  "];
  });
  readout.replaceChildren(
    el("span", { class: "at" }, `${index === null ? "last, " : ""}step ${curve.steps[i].toLocaleString("en")}: `),
    ...values.flat(),
  );
  if (!marks) return;
  marks.marks.setAttribute("visibility", index === null ? "hidden" : "visible");
  marks.cursor.setAttribute("x1", marks.x(i));
  marks.cursor.setAttribute("x2", marks.x(i));
  panel.series.forEach((s, n) => {
    const there = s.values[i] !== null && index !== null;
    marks.dots[n].setAttribute("visibility", there ? "visible" : "hidden");
    if (!there) return;
    marks.dots[n].setAttribute("cx", marks.x(i));
    marks.dots[n].setAttribute("cy", marks.y(marks.layers[n][i]));
  });
}

function walk(state, event) {
  const { group, curve } = state;
  const last = curve.steps.length - 1;
  const moves = {
    ArrowLeft: Math.max(0, (group.at ?? last + 1) - 1),
    ArrowRight: Math.min(last, (group.at ?? -1) + 1),
    Home: 0,
    End: last,
  };
  if (event.key in moves) group.show(moves[event.key]);
  else if (event.key === "Escape") group.show(null);
  else if (event.key === "Enter" && group.at !== null) group.open(group.at);
  else return;
  event.preventDefault();
}
