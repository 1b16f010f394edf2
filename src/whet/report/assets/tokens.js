// Tokens in colour: by their probability under the policy, or by the sample's advantage.

const LIKELY = [0.9, 0.5, 0.2, 0.05, 0.01]; // bounds of the colours p0 to p5
const FIRST_TOKENS = 3000; // of a sample are drawn at once

const tip = el("div", { id: "tip", role: "status", hidden: true });

const ESCAPES =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ud800-\udfff]/gu;
const visible = (text) => text.replace(ESCAPES, (c) => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
const spaced = (piece) => visible(piece).replace(/\n/g, "↵\n").replace(/\t/g, "⇥\t");

const likelihood = (logp) => (logp === null ? "" : `p${LIKELY.filter((bound) => Math.exp(logp) < bound).length}`);

function gainOf(advantage, largest) {
  if (advantage === null || advantage === 0 || !largest) return "a0";
  const size = Math.min(3, Math.ceil((Math.abs(advantage) / largest) * 3 - 1e-9));
  return (advantage > 0 ? "up" : "down") + size;
}

// A sample's tokens. view: {colour: "logp" | "advantage", largest: the step's largest advantage}
function tokenLine(samples, sample, view) {
  const pieces = samples.pieces(sample.tokens);
  if (!pieces.length) return el("div", { class: "tokens" }, visible(sample.text ?? "") || el("i", {}, "no tokens"));
  const host = el("div", {
    class: "tokens",
    tabindex: 0,
    role: "group",
    "aria-label": "Tokens of a sample. Arrow keys walk along them.",
  });
  const facts = (i) => ({
    id: pieces[i][0],
    piece: pieces[i][1],
    logp: sample.logp[i] === null ? null : sample.logp[i] / 100,
    chosen: !sample.mask || sample.mask[i] === 1,
    at: i,
  });
  paged(host, pieces.length, FIRST_TOKENS, "tokens", (begin, end) =>
    Array.from({ length: end - begin }, (_, k) => token(facts(begin + k), sample, view)),
  );
  const tell = (node) => node && node.dataset.i !== undefined && describe(node, facts(Number(node.dataset.i)), sample);
  host.addEventListener("pointerover", (event) => tell(event.target));
  host.addEventListener("pointerleave", hideTip);
  host.addEventListener("blur", hideTip);
  host.addEventListener("keydown", (event) => step(event, host, tell));
  return host;
}

function token(fact, sample, view) {
  const shade = !fact.chosen
    ? "unchosen"
    : view.colour === "logp"
      ? likelihood(fact.logp)
      : gainOf(sample.advantage, view.largest);
  return el("span", { class: `t ${shade}`, "data-i": fact.at }, fact.piece === "" ? "·" : spaced(fact.piece));
}

function step(event, host, tell) {
  const nodes = host.querySelectorAll(".t");
  const at = [...nodes].findIndex((n) => n.classList.contains("here"));
  const next = { ArrowRight: at + 1, ArrowLeft: at < 0 ? 0 : at - 1, Home: 0, End: nodes.length - 1 }[event.key];
  if (event.key === "Escape") return hideTip();
  if (next === undefined || !nodes[next]) return;
  event.preventDefault();
  if (at >= 0) nodes[at].classList.remove("here");
  nodes[next].classList.add("here");
  nodes[next].scrollIntoView({ block: "nearest" });
  tell(nodes[next]);
}

function describe(node, fact, sample) {
  const rows = [
    ["token", JSON.stringify(visible(fact.piece))],
    ["id", fact.id ?? "–"],
    ["position", fact.at + 1],
  ];
  if (fact.chosen) {
    const share = fact.logp === null ? "" : ` (p = ${plain(Math.exp(fact.logp), 2)})`;
    rows.push([
      "log-probability",
      fact.logp === null ? "not known" : `${fact.logp.toFixed(2).replace("-", "−")}${share}`,
    ]);
    if (sample.advantage !== null) rows.push(["advantage", signed(sample.advantage)]);
    rows.push(["mask", "1, chosen by the policy"]);
  } else rows.push(["mask", "0, not chosen by the policy"]);
  tip.replaceChildren(...rows.map(([name, value]) => el("div", {}, el("span", {}, name), el("b", {}, value))));
  tip.hidden = false;
  const spot = node.getBoundingClientRect();
  const left = Math.max(6, Math.min(spot.left, document.documentElement.clientWidth - tip.offsetWidth - 6));
  const below = spot.bottom + 6 + tip.offsetHeight < window.innerHeight;
  tip.style.left = `${left}px`;
  tip.style.top = `${below ? spot.bottom + 6 : spot.top - tip.offsetHeight - 6}px`;
}

function hideTip() {
  tip.hidden = true;
}

function legend(view) {
  const swatch = (shade, text) => [el("span", { class: `t ${shade}` }, text), " "];
  const unchosen = el("span", { class: "legend-item" }, swatch("unchosen", "not chosen by the policy"));
  if (view.colour === "logp") {
    const bounds = ["over 90 %", "50–90 %", "20–50 %", "5–20 %", "1–5 %", "below 1 %"];
    return el(
      "p",
      { class: "legend" },
      "Probability of the token when it was sampled: ",
      bounds.map((text, i) => swatch(`p${i}`, text)),
      unchosen,
    );
  }
  if (!view.largest)
    return el("p", { class: "legend" }, "These samples were not trained on, so they have no advantage. ", unchosen);
  const marks = [
    ["down3", `−${plain(view.largest)}`],
    ["down2", ""],
    ["down1", ""],
    ["a0", "0"],
    ["up1", ""],
    ["up2", ""],
    ["up3", `+${plain(view.largest)}`],
  ];
  return el(
    "p",
    { class: "legend" },
    "Advantage, the largest of this step at the ends: ",
    marks.map(([shade, text]) => swatch(shade, text || "\u00a0\u00a0")),
    unchosen,
  );
}
