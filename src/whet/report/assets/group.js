// One group: its prompt and its samples, or what became of the same prompt at other steps.

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

function promptBox(samples, index) {
  const { id, answer, messages, pieces } = samples.prompt(index);
  const said = messages.map((m) =>
    el(
      "div",
      { class: "message" },
      el("span", { class: "role" }, m.role),
      el("div", { class: "said" }, visible(m.content)),
    ),
  );
  const read = samples.pieces(pieces).map(([, piece]) => el("span", { class: "t plain" }, spaced(piece) || "·"));
  return el(
    "div",
    { class: "prompt" },
    said.length ? said : el("div", { class: "said" }, visible(id)),
    el(
      "p",
      { class: "expected" },
      el("span", {}, "expected answer "),
      answer === null ? el("i", {}, "none") : el("b", {}, visible(answer)),
      el("span", { class: "id" }, ` prompt ${visible(id)}`),
    ),
    read.length
      ? el(
          "details",
          {},
          el("summary", {}, `as the model reads it, ${read.length} tokens`),
          el("div", { class: "tokens" }, read),
        )
      : null,
  );
}

function sampleCard(samples, s, view) {
  const count = numbers(s.tokens).length;
  const facts = [
    ["reward", plain(s.reward)],
    s.advantage === null ? null : ["advantage", signed(s.advantage)],
    s.mode === null ? null : ["mode", visible(s.mode)],
    ["tokens", count.toLocaleString("en")],
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

const CARDS = 24; // samples of a group drawn at once

const cards = (samples, list, view) =>
  paged(el("div", { class: "cards" }), list.length, CARDS, "samples", (begin, end) =>
    list.slice(begin, end).map((s) => sampleCard(samples, s, view)),
  );

// Everything that is known of a group. `browser` gives samples, view, keep(sample), go(stage, step, id).
function detail(browser, where) {
  const { samples, view } = browser;
  const group = samples.groupOf(where.group);
  const { id } = samples.prompt(group.prompt);
  const places = samples.seen.get(id);
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
  const body = view.tab === "here" ? here(browser, group) : across(browser, group, where, places);
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

const FEW = 3; // samples shown of each place in the view across steps
const PLACES = 40; // places shown at once

function across(browser, group, where, places) {
  const host = el("div", { id: "across" });
  if (places.length === 1) return alike(browser, group, host);
  return paged(host, places.length, PLACES, "steps", (begin, end) =>
    places.slice(begin, end).map((p) => onePlace(browser, p, p.group === where.group)),
  );
}

const nameOf = (place) => `${titleOf(place.stage)}${place.step ? `, step ${place.step}` : ""}`;

function onePlace(browser, place, current) {
  const { samples, view } = browser;
  const there = samples.groupOf(place.group);
  const right = there.samples.filter((s) => s.right).length;
  const open = () => browser.go(place.stage, place.step, samples.prompts[there.prompt][0]);
  return el(
    "section",
    { class: "place" },
    el(
      "h4",
      {},
      el("button", { type: "button", class: "link", onclick: open }, nameOf(place)),
      el("span", { class: "score" }, ` ${right} of ${there.samples.length} right`, current ? ", shown now" : ""),
    ),
    there.samples.slice(0, FEW).map((s) => sampleCard(samples, s, view)),
    there.samples.length > FEW ? el("p", { class: "hint" }, `and ${there.samples.length - FEW} more`) : null,
  );
}

// For a prompt that was seen once: the prompts most like it.
function alike(browser, group, host) {
  const { samples } = browser;
  const near = samples.similar(group.prompt);
  if (!near.length)
    return fill(host, {}, [el("p", { class: "empty" }, "This prompt was seen only here, and no other is like it.")]);
  const rows = near.map(([index, share]) => {
    const place = samples.seen.get(samples.prompts[index][0])[0];
    const open = () => browser.go(place.stage, place.step, samples.prompts[index][0]);
    return el(
      "li",
      {},
      el("button", { type: "button", class: "link", onclick: open }, visible(samples.question(index)).slice(0, 200)),
      ` ${nameOf(place)}; ${percent(share)} alike`,
    );
  });
  return fill(host, {}, [
    el("p", { class: "hint" }, "This prompt was seen only here. The prompts most like it:"),
    el("ul", { class: "near" }, rows),
  ]);
}
