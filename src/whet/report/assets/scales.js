// Scales: the range of a chart's axis, its ticks, its numbers as text.

const UNITS = {
  share: {
    axis: "%",
    say: (v) => percent(v, v > 0 && v < 0.1 ? 1 : 0),
    tick: (v) => percent(v, Math.abs(100 * v - Math.round(100 * v)) < 1e-6 ? 0 : 1),
  },
  number: { axis: "", say: plain, tick: (v) => plain(v) },
  tokens: { axis: "tokens", say: plain, tick: (v) => plain(v) },
  nats: { axis: "nats per token", say: plain, tick: (v) => plain(v) },
  logp: { axis: "nats", say: plain, tick: (v) => plain(v) },
  seconds: { axis: "seconds", say: plain, tick: (v) => plain(v) },
};

function niceStep(span, count) {
  const rough = span / Math.max(1, count);
  const base = 10 ** Math.floor(Math.log10(rough));
  return base * [1, 2, 5, 10].find((m) => m * base >= rough * 0.999);
}

// An axis: {low, high, ticks, at(value): 0 to 1}.
// Shares and amounts start at zero; a logarithmic axis spans whole decades.
function axisOf(values, unit, log) {
  const known = values.filter((v) => v !== null);
  if (log) return decades(known);
  let low = Math.min(0, ...known);
  let high = Math.max(...known, low);
  if (unit === "share" && low >= 0) high = high > 0.5 ? 1 : high;
  if (high === low) high = low + 1;
  const step = niceStep(high - low, 4);
  low = Math.floor(low / step + 1e-9) * step;
  high = Math.ceil(high / step - 1e-9) * step;
  const ticks = [];
  for (let i = 0; low + i * step <= high + step / 1e6; i += 1) ticks.push(Number((low + i * step).toPrecision(12)));
  return { low, high, ticks, at: (v) => (v - low) / (high - low) };
}

function decades(known) {
  const bottom = Math.floor(Math.log10(Math.min(...known)) + 1e-9);
  const top = Math.max(bottom + 1, Math.ceil(Math.log10(Math.max(...known)) - 1e-9));
  const stride = Math.ceil((top - bottom) / 4);
  const ticks = [];
  for (let e = bottom; e <= top; e += stride) ticks.push(Number(`1e${e}`));
  return { low: 10 ** bottom, high: 10 ** top, ticks, at: (v) => (Math.log10(v) - bottom) / (top - bottom) };
}

function stepTicks(steps, width) {
  const first = steps[0];
  const last = steps[steps.length - 1];
  if (first === last) return [first];
  const step = Math.max(1, niceStep(last - first, Math.max(2, Math.floor(width / 50))));
  const ticks = [first];
  for (let t = Math.ceil(first / step) * step; t < last; t += step) {
    const room = (36 / width) * (last - first);
    if (t - first > room && last - t > room) ticks.push(t);
  }
  return [...ticks, last];
}

// The index of the number nearest to `wanted`.
function nearest(numbers, wanted) {
  let best = 0;
  numbers.forEach((n, i) => {
    if (Math.abs(n - wanted) < Math.abs(numbers[best] - wanted)) best = i;
  });
  return best;
}

// Half the width of the moving mean, in updates.
const halfWidth = (count) => (count < 8 ? 0 : Math.max(1, Math.round(count / 35)));

// Centred moving mean over the values that are there; a gap stays a gap.
function smooth(values, half) {
  return values.map((value, i) => {
    if (value === null || half === 0) return value;
    const near = values.slice(Math.max(0, i - half), i + half + 1).filter((v) => v !== null);
    return near.reduce((a, b) => a + b, 0) / near.length;
  });
}

// Path data through the points; a null interrupts the line.
function trace(values, x, y) {
  let path = "";
  values.forEach((value, i) => {
    if (value === null) return;
    const alone = (i === 0 || values[i - 1] === null) && (i === values.length - 1 || values[i + 1] === null);
    const begins = i === 0 || values[i - 1] === null;
    path += `${begins ? "M" : "L"}${x(i).toFixed(1)},${y(value).toFixed(1)}`;
    if (alone) path += "h0.01";
  });
  return path;
}

// Moves labels apart so that none covers another; returns their y, in the same order.
function spread(wanted, gap, low, high) {
  const order = wanted.map((y, i) => [y, i]).sort((a, b) => a[0] - b[0]);
  let floor = low;
  for (const entry of order) {
    entry[0] = Math.max(entry[0], floor);
    floor = entry[0] + gap;
  }
  let ceiling = high;
  for (const entry of order.reverse()) {
    entry[0] = Math.min(entry[0], ceiling);
    ceiling = entry[0] - gap;
  }
  const placed = [];
  for (const [y, i] of order) placed[i] = y;
  return placed;
}
