// The charts of a stage, chosen by the values that its updates have.

const single = (id, title, unit, more = {}) => ({ id, title, unit, keys: [[id, title, "blue"]], ...more });

const RL_PANELS = [
  {
    id: "reward",
    title: "Reward and accuracy",
    unit: "share",
    keys: [
      ["reward", "reward", "purple"],
      ["accuracy", "accuracy", "blue"],
    ],
  },
  {
    id: "length",
    title: "Length of right and of wrong answers",
    unit: "tokens",
    keys: [
      ["length_right", "right", "blue"],
      ["length_wrong", "wrong", "orange"],
    ],
  },
  { id: "modes", title: "Ways of answering", unit: "share", prefix: "share_" },
  {
    id: "groups_with_signal",
    title: "Groups with signal (rewards differ)",
    unit: "share",
    keys: [["groups_with_signal", "with signal", "blue"]],
  },
  { id: "entropy", title: "Entropy of the policy", unit: "nats", keys: [["entropy", "entropy", "blue"]] },
  {
    id: "cut",
    title: "Cut off, unparsed",
    unit: "share",
    keys: [
      ["truncated", "cut off", "amber"],
      ["unparsed", "unparsed", "purple"],
      ["errors", "verifier failed", "orange"],
    ],
  },
  single("kl", "KL divergence from the reference", "nats"),
  single("clipped", "Clipped tokens", "share"),
  single("explained", "Variance of returns the critic explains", "share"),
  single("value_loss", "Loss of the critic", "number"),
  single("token_reward_loss", "Loss of the token-level reward model", "nats"),
  single("sampler_gap", "Sampler to trainer, before correction", "logp", { log: true }),
  single("corrected", "Tokens bounded or masked by the correction", "share"),
  single("grad_norm", "Gradient norm", "number"),
  single("gap", "Largest gap, sampler to trainer", "logp", { log: true }),
  single("loss", "Loss", "number"),
  { id: "parts", title: "Parts of the reward", unit: "number", prefix: "part_", least: 2 },
  { id: "seconds", title: "Time of a step, by phase", unit: "seconds", stacked: true, seconds: true },
];

const SFT_PANELS = [single("loss", "loss on the responses", "nats")];
const SFT_MORE = [single("lr", "learning rate", "number"), single("grad_norm", "gradient norm", "number")];

// The panels of a kind of stage that has no list of its own: one for each value.
const anyPanels = (curve) => Object.keys(curve.values).map((key) => single(key, key.replaceAll("_", " "), "number"));

const CYCLE = ["orange", "amber", "blue", "green", "purple", "sky"];

function seriesOf(panel, curve) {
  const table = panel.seconds ? curve.seconds : curve.values;
  let keys = panel.keys;
  if (panel.prefix) {
    const named = Object.keys(table).filter((k) => k.startsWith(panel.prefix));
    keys = named.map((k, i) => [k, k.slice(panel.prefix.length), CYCLE[i % CYCLE.length]]);
  }
  if (panel.seconds)
    keys = Object.keys(table).map((k, i) => [k, k, ["sky", "green", "amber", "purple", "orange", "blue"][i % 6]]);
  const series = keys
    .filter(([key]) => table[key])
    .map(([key, label, colour]) => ({ key, label, colour, values: table[key] }));
  return panel.id === "cut" ? series.filter((s) => s.key !== "errors" || s.values.some((v) => v > 0)) : series;
}

// Those of `panels` that have something to draw.
function filled(panels, curve) {
  const drawn = [];
  for (const panel of panels) {
    const series = seriesOf(panel, curve);
    if (series.length < (panel.least ?? 1)) continue;
    if (panel.id === "reward") drawn.push(...rewardPanels(panel, series));
    else
      drawn.push({
        ...panel,
        series,
        log: panel.log && series.every((s) => s.values.every((v) => v === null || v > 0)),
      });
  }
  return drawn;
}

// The reward has a panel of its own if it is no share; if it equals accuracy, one line shows both.
function rewardPanels(panel, series) {
  const [reward, accuracy] = ["reward", "accuracy"].map((key) => series.find((s) => s.key === key));
  if (!reward || !accuracy)
    return [{ ...panel, title: reward ? "Reward" : "Accuracy", unit: reward ? "number" : "share", series }];
  if (reward.values.every((v, i) => v === accuracy.values[i]))
    return [{ ...panel, title: "Accuracy (the reward is the same)", series: [accuracy] }];
  if (reward.values.every((v) => v === null || (v >= 0 && v <= 1))) return [{ ...panel, unit: "number", series }];
  return [
    { ...panel, title: "Reward", unit: "number", series: [reward] },
    { ...panel, id: "accuracy", title: "Accuracy", unit: "share", series: [accuracy] },
  ];
}

// The charts of one stage; they share the marked update. `open(stage, step)` shows that step's samples.
function linked(curve, panels, open) {
  const group = {
    at: null,
    show(index) {
      group.at = index;
      for (const c of group.charts) c.show(index);
    },
    open: (index) => open(curve.stage, curve.steps[index]),
  };
  group.charts = panels.map((panel) => chart(panel, curve, group));
  return group;
}

const figures = (charts) =>
  el(
    "div",
    { class: "charts" },
    charts.map((c) => c.figure),
  );

function heading(curve) {
  const half = halfWidth(curve.steps.length);
  const how = [
    half ? `Bold: mean over ${2 * half + 1} updates; faint: each one.` : "",
    curve.every > 1 ? `Every ${curve.every}th update is drawn.` : "",
  ].join(" ");
  const kind = curve.kind === curve.stage ? null : el("span", { class: "kind" }, ` ${curve.kind}`);
  return [el("h3", {}, curve.stage, kind), how.trim() ? el("p", { class: "hint" }, how) : null];
}

function stageSection(curve, open) {
  const panels = filled(curve.kind === "rl" ? RL_PANELS : anyPanels(curve), curve);
  const { charts } = linked(curve, panels, open);
  return {
    charts,
    section: el("section", { class: "stage-curves", "data-stage": curve.stage }, heading(curve), figures(charts)),
  };
}

// All supervised stages side by side: their losses, and in a fold their learning rates and gradient norms.
function supervised(curves, open) {
  const titled = (curve, panels) =>
    linked(
      curve,
      filled(panels, curve).map((p) => ({ ...p, title: `${curve.stage}: ${p.title}` })),
      open,
    ).charts;
  const losses = curves.flatMap((c) => titled(c, SFT_PANELS));
  const more = curves.flatMap((c) => titled(c, SFT_MORE));
  const fold = el("details", {}, el("summary", {}, "Learning rate and gradient norm"), figures(more));
  fold.addEventListener("toggle", () => more.forEach((c) => c.draw()));
  const section = el(
    "section",
    { class: "stage-curves" },
    el("h3", {}, "Supervised stages"),
    figures(losses),
    more.length ? fold : null,
  );
  return { charts: [...losses, ...more], section };
}

function drawCurves(curves, open) {
  const host = document.getElementById("curves");
  const drawn = curves.filter((c) => c.steps.length);
  const rank = (c) => (c.kind === "rl" ? 0 : 1);
  const stages = drawn
    .filter((c) => c.kind !== "sft")
    .sort((a, b) => rank(a) - rank(b))
    .map((c) => stageSection(c, open));
  const taught = drawn.filter((c) => c.kind === "sft");
  if (taught.length) stages.push(supervised(taught, open));
  const shown = stages.filter((s) => s.charts.length);
  const how = [
    "Point at a chart, or walk along it with the arrow keys, to read all of a stage’s values at one step;",
    "click or Enter opens that step’s samples.",
  ].join(" ");
  host.append(
    el("p", { class: shown.length ? "hint" : "empty" }, shown.length ? how : "This run has no updates to draw."),
    ...shown.map((s) => s.section),
  );
  const redraw = () => shown.forEach((s) => s.charts.forEach((c) => c.draw()));
  redraw();
  let width = host.clientWidth;
  new ResizeObserver(() => {
    if (host.clientWidth === width) return;
    width = host.clientWidth;
    redraw();
  }).observe(host);
}
