// One group: its prompt and its samples, or the same prompt's samples at other steps.

const MARKS = { right: "✓", wrong: "✗", unparsed: "?", failed: "!" };
const verdictOf = (s) => (failed(s) ? "failed" : s.right ? "right" : s.status === "unparsed" ? "unparsed" : "wrong");

const mark = (s) =>
  el(
    "span",
    {
      class: `mark ${verdictOf(s)}${s.finish === "length" ? " cut" : ""}`,
      title: [verdictOf(s), s.finish === "length" ? "cut off" : ""].filter(Boolean).join(", "),
    },
    MARKS[verdictOf(s)],
  );

const titleOf = (name) => {
  if (name.endsWith("-test")) return `${name.slice(0, -5)}, test problems`;
  return name.endsWith("-probe") ? `${name.slice(0, -6)}, the same problems as it learns` : name;
};

function promptBox(samples, { id, answer, messages, tokens }) {
  const conversation = messages.map(([role, content]) =>
    el(
      "div",
      { class: "message" },
      el("span", { class: "role" }, role),
      el("div", { class: "content" }, visible(content)),
    ),
  );
  const pieces = samples.pieces(tokens).map(([, piece]) => el("span", { class: "t plain" }, spaced(piece) || "·"));
  return el(
    "div",
    { class: "prompt" },
    conversation.length ? conversation : el("div", { class: "content" }, visible(id)),
    el(
      "p",
      { class: "expected" },
      el("span", {}, "expected answer "),
      answer === null ? el("i", {}, "none") : el("b", {}, visible(answer)),
      el("span", { class: "id" }, ` prompt ${visible(id)}`),
    ),
    pieces.length
      ? el(
          "details",
          {},
          el("summary", {}, `as the model reads it, ${pieces.length} tokens`),
          el("div", { class: "tokens" }, pieces),
        )
      : null,
  );
}

function sampleCard(samples, s, view) {
  const facts = [
    ["reward", plain(s.reward)],
    s.advantage === null ? null : ["advantage", signed(s.advantage)],
    s.mode === null ? null : ["mode", visible(s.mode)],
    ["tokens", s.tokens.length.toLocaleString("en")],
    ["end", s.finish === "length" ? "cut off" : s.finish],
    s.version === null ? null : ["weights", s.version],
    ...s.parts.map(([name, value]) => [visible(name), plain(value)]),
  ].filter(Boolean);
  const head = el(
    "p",
    { class: "sample-head" },
    mark(s),
    el("b", {}, ` ${verdictOf(s) === "failed" ? `verifier: ${s.status}` : verdictOf(s)} `),
    facts.map(([name, value]) => [
      el("span", { class: "fact" }, el("span", { class: "fact-name" }, name), ` ${value}`),
      " ",
    ]),
  );
  return el("article", { class: "sample" }, head, tokenLine(samples, s, view));
}

const CARDS = 24; // samples of a group that are drawn at once

const cards = (samples, list, view) =>
  paged(el("div", { class: "cards" }), list.length, CARDS, "samples", (begin, end) =>
    list.slice(begin, end).map((s) => sampleCard(samples, s, view)),
  );

// A group with all that the page knows of it. `browser` has samples, view, keep(sample), go(stage, step, id).
function detail(browser, group) {
  const { samples, view } = browser;
  const places = samples.places.get(group.prompt.id);
  const tab = (name, text) =>
    el(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${name}`,
        "aria-selected": String(view.tab === name),
        onclick: () => browser.tab(name),
      },
      text,
    );
  const others = places.length - 1;
  const tabs = el(
    "div",
    { role: "tablist", class: "tabs" },
    tab("here", "this step"),
    tab("across", `same prompt elsewhere (${others})`),
  );
  const body = view.tab === "here" ? here(browser, group) : across(browser, group, places);
  return [promptBox(samples, group.prompt), tabs, legend(view), body];
}

function here(browser, group) {
  const kept = group.samples.filter(browser.keep);
  const hidden = group.samples.length - kept.length;
  const note = hidden
    ? el("p", { class: "hint" }, `${kept.length} of ${group.samples.length} samples pass the filter. `)
    : null;
  return el("div", { id: "group-samples" }, note, cards(browser.samples, kept, browser.view));
}

const FEW = 3; // samples of each place in the view across steps
const PLACES = 40; // places that are drawn at once

function across(browser, group, places) {
  const host = el("div", { id: "across" });
  if (places.length === 1) return alike(browser, group, host);
  return paged(host, places.length, PLACES, "steps", (begin, end) =>
    places.slice(begin, end).map((p) => onePlace(browser, p, p.group === group)),
  );
}

const nameOf = (place) => `${titleOf(place.stage)}${place.step ? `, step ${place.step}` : ""}`;

function onePlace(browser, place, current) {
  const { samples, view } = browser;
  const { group } = place;
  const open = () => browser.go(place.stage, place.step, group.prompt.id);
  return el(
    "section",
    { class: "place" },
    el(
      "h4",
      {},
      el("button", { type: "button", class: "link", onclick: open }, nameOf(place)),
      el("span", { class: "score" }, ` ${countRight(group)} of ${group.samples.length} right`, current ? ", shown now" : ""),
    ),
    group.samples.slice(0, FEW).map((s) => sampleCard(samples, s, view)),
    group.samples.length > FEW ? el("p", { class: "hint" }, `and ${group.samples.length - FEW} more`) : null,
  );
}

// For a prompt with one place only: the prompts most like it.
function alike(browser, group, host) {
  const { samples } = browser;
  const near = samples.similar(group.prompt);
  if (!near.length)
    return fill(host, {}, [el("p", { class: "empty" }, "This prompt was seen only here, and no other is like it.")]);
  const rows = near.map(([prompt, share]) => {
    const [place] = samples.places.get(prompt.id);
    const open = () => browser.go(place.stage, place.step, prompt.id);
    return el(
      "li",
      {},
      el("button", { type: "button", class: "link", onclick: open }, visible(question(prompt)).slice(0, 200)),
      ` ${nameOf(place)}; ${percent(share)} alike`,
    );
  });
  return fill(host, {}, [
    el("p", { class: "hint" }, "This prompt was seen only here. The prompts most like it:"),
    el("ul", { class: "near" }, rows),
  ]);
}
