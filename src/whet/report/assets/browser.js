// The browser of samples: controls for stage, step, filter and colour; a list of groups beside the chosen one.

const ROWS = 300; // groups that the list shows at most

class Browser {
  constructor(samples, host) {
    this.samples = samples;
    this.host = host;
    const first = samples.stages.find((s) => s.steps.length > 1) || samples.stages[0];
    this.view = {
      stage: first.name,
      at: first.steps.length - 1,
      filter: "all",
      mode: "",
      search: "",
      colour: "logp",
      largest: 0,
      tab: "here",
      id: null,
    };
    this.keep = (s) =>
      FILTERS.find(([name]) => name === this.view.filter)[2](s) && (!this.view.mode || s.mode === this.view.mode);
    this.build();
    this.restore();
    this.load();
  }

  build() {
    const select = (id, options, change) =>
      el(
        "select",
        { id, onchange: (e) => change(e.target.value) },
        options.map(([value, text]) => el("option", { value }, text)),
      );
    const field = (text, control, more) => el("label", { class: "field" }, el("span", {}, text, " ", more), control);
    const { samples } = this;
    this.stageSelect = select(
      "stage",
      samples.stages.map((s) => [s.name, titleOf(s.name)]),
      (name) => this.set({ stage: name, at: samples.stage(name).steps.length - 1, id: null }),
    );
    this.slider = el("input", {
      id: "step",
      type: "range",
      min: 0,
      step: 1,
      oninput: (e) => this.set({ at: Number(e.target.value) }),
    });
    this.stepSays = el("output", { for: "step", id: "step-says" });
    this.stepField = field("Step", this.slider, this.stepSays);
    this.modeSelect = select("mode", [["", "any"], ...samples.modes.map((m) => [m, m])], (mode) => this.set({ mode }));
    this.searchBox = el("input", {
      id: "search",
      type: "search",
      placeholder: "text of a prompt",
      autocomplete: "off",
      oninput: (e) => this.set({ search: e.target.value }),
    });
    this.filters = el("div", { class: "choice", id: "filter", role: "group", "aria-label": "Show" });
    this.colours = el("div", { class: "choice", id: "colour", role: "group", "aria-label": "Colour tokens by" });
    this.list = el("div", {
      id: "groups",
      role: "group",
      "aria-label": "Groups. Arrow keys walk along the list.",
      onkeydown: (e) => this.walk(e),
    });
    this.tally = el("p", { class: "hint", id: "tally", role: "status" });
    this.elsewhere = el("p", { class: "hint", id: "elsewhere" });
    this.pane = el("div", { id: "detail" });
    fill(this.host, {}, [
      el(
        "div",
        { class: "controls" },
        field("Stage", this.stageSelect),
        this.stepField,
        samples.modes.length ? field("Mode", this.modeSelect) : null,
        field("Prompt", this.searchBox),
        el("div", { class: "field" }, el("span", {}, "Show"), this.filters),
        el("div", { class: "field" }, el("span", {}, "Colour tokens by"), this.colours),
      ),
      this.note(),
      el("div", { class: "panes" }, el("div", { class: "left" }, this.tally, this.list, this.elsewhere), this.pane),
      tip,
    ]);
  }

  // Says which of the run's samples are not on this page.
  note() {
    const lines = this.samples.stages.flatMap((s) => {
      const name = titleOf(s.name);
      const steps =
        s.steps.length < s.written
          ? [`${name}: ${s.steps.length} of ${s.written} steps are here, the first, the last and every ${s.every}th.`]
          : [];
      return s.whole ? steps : [...steps, `${name}: of each step only the first groups are on this page.`];
    });
    return lines.length
      ? el(
          "p",
          { class: "hint", id: "subset" },
          `To keep the page small, not all samples are on it; the run directory has them. ${lines.join(" ")}`,
        )
      : null;
  }

  set(change) {
    Object.assign(this.view, change);
    this.load();
    this.save();
  }

  tab(name) {
    this.view.tab = name;
    this.show();
    document.getElementById(`tab-${name}`).focus();
  }

  go(stage, step, id) {
    const at = this.samples.stage(stage).steps.findIndex(([n]) => n === step);
    this.set({ stage, at, id, search: "", filter: "all", mode: "", tab: "here" });
    this.searchBox.value = "";
    this.list.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest" });
  }

  // Shows the step of the page that is nearest to `step`; a click on a curve calls it.
  open(stage, step) {
    const shown = this.samples.stage(stage) || this.samples.stage(`${stage}-test`);
    if (!shown) return;
    this.set({ stage: shown.name, at: nearest(shown.steps.map(([n]) => n), step), id: null });
    document.getElementById("samples").scrollIntoView();
  }

  load() {
    const { view, samples } = this;
    const stage = samples.stage(view.stage);
    const [step, groups] = stage.steps[view.at];
    this.step = step;
    this.groups = groups;
    const all = this.groups.flatMap((g) => g.samples);
    view.largest = Math.max(0, ...all.map((s) => Math.abs(s.advantage ?? 0)));
    this.stageSelect.value = view.stage;
    this.modeSelect.value = view.mode;
    this.slider.max = stage.steps.length - 1;
    this.slider.value = view.at;
    this.slider.setAttribute("aria-valuetext", `step ${step}`);
    this.stepField.hidden = stage.steps.length < 2;
    this.stepSays.textContent = `${step} of ${stage.steps[stage.steps.length - 1][0]}`;
    this.choices(all);
    this.rows();
    this.show();
  }

  choices(all) {
    const { view } = this;
    const button = (value, text, on, click) =>
      el("button", { type: "button", "data-value": value, "aria-pressed": String(on), onclick: click }, text);
    const inMode = all.filter((s) => !view.mode || s.mode === view.mode);
    const focused = document.activeElement?.dataset?.value;
    const shown = FILTERS.map(([name, text, test]) => [name, text, inMode.filter(test).length]).filter(
      ([name, , n]) => n || name === view.filter || ["all", "right", "wrong"].includes(name),
    );
    this.filters.replaceChildren(
      ...shown.map(([name, text, n]) =>
        button(name, [text, el("small", {}, ` ${n}`)], name === view.filter, () => this.set({ filter: name })),
      ),
    );
    const colours = [
      ["logp", "probability"],
      ["advantage", "advantage"],
    ];
    this.colours.replaceChildren(
      ...colours.map(([name, text]) => button(name, text, name === view.colour, () => this.set({ colour: name }))),
    );
    if (focused) this.host.querySelector(`.choice [data-value="${focused}"]`)?.focus();
  }

  rows() {
    const { view } = this;
    const wanted = view.search.toLowerCase();
    const holds = (prompt) =>
      !wanted || question(prompt).toLowerCase().includes(wanted) || prompt.id.toLowerCase().includes(wanted);
    this.listed = this.groups.filter((g) => holds(g.prompt) && g.samples.some(this.keep));
    const current = this.listed.find((g) => g.prompt.id === view.id) || this.listed[0] || null;
    this.current = current;
    view.id = current ? current.prompt.id : view.id;
    this.tally.textContent = `${this.listed.length} of ${this.groups.length} groups`;
    const rows = this.listed.slice(0, ROWS).map((g) => this.row(g, g === current));
    this.list.replaceChildren(...rows);
    if (this.listed.length > ROWS)
      this.list.append(el("p", { class: "hint" }, `The first ${ROWS} are listed; search to find the others.`));
    if (!this.listed.length) this.list.append(el("p", { class: "empty" }, "No sample of this step passes the filter."));
    this.elsewhere.replaceChildren(...(wanted ? this.others(holds) : []));
  }

  row(g, current) {
    return el(
      "button",
      {
        type: "button",
        class: "row",
        "aria-current": current ? "true" : null,
        tabindex: current ? 0 : -1,
        onclick: () => this.choose(g),
      },
      el("span", { class: "ask" }, visible(question(g.prompt)).slice(0, 300)),
      el("span", { class: "strip" }, g.samples.slice(0, 32).map(mark)),
      el("span", { class: "score" }, `${countRight(g)} of ${g.samples.length} right · reward ${plain(rewardOf(g))}`),
    );
  }

  // Links to the other steps at which the search finds a prompt.
  others(holds) {
    const hits = [];
    for (const stage of this.samples.stages) {
      for (const [step, groups] of stage.steps) {
        if (stage.name === this.view.stage && step === this.step) continue;
        const group = groups.find((g) => holds(g.prompt));
        if (group) hits.push([stage.name, step, group.prompt.id]);
      }
    }
    if (!hits.length) return ["Found at no other step."];
    const links = hits
      .slice(0, 12)
      .flatMap(([stage, step, id]) => [
        el(
          "button",
          { type: "button", class: "link", onclick: () => this.go(stage, step, id) },
          `${titleOf(stage)}${step ? ` ${step}` : ""}`,
        ),
        " ",
      ]);
    return ["Found also at: ", ...links, hits.length > 12 ? `and ${hits.length - 12} more steps` : ""];
  }

  choose(group) {
    this.view.id = group.prompt.id;
    this.current = group;
    this.listed.forEach((g, i) => {
      const row = this.list.children[i];
      if (!row || i >= ROWS) return;
      row.tabIndex = g === group ? 0 : -1;
      if (g === group) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    });
    this.show();
    this.save();
    if (matchMedia("(max-width: 860px)").matches) this.pane.scrollIntoView({ block: "start" });
  }

  walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const next = this.listed[this.listed.indexOf(this.current) + step];
    if (!next || this.listed.indexOf(next) >= ROWS) return;
    this.choose(next);
    this.list.querySelector("[aria-current]").focus();
  }

  show() {
    hideTip();
    this.pane.replaceChildren(...(this.current ? detail(this, this.current) : []));
  }

  // Writes the group into the page's address, so that a link to it can be passed on.
  save() {
    clearTimeout(this.saving);
    const address = `#${new URLSearchParams({ stage: this.view.stage, step: this.step, prompt: this.view.id ?? "" })}`;
    this.saving = setTimeout(() => history.replaceState(null, "", address), 300);
  }

  restore() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const stage = this.samples.stage(asked.get("stage") || "");
    const at = stage ? stage.steps.findIndex(([n]) => String(n) === asked.get("step")) : -1;
    if (at >= 0) Object.assign(this.view, { stage: stage.name, at, id: asked.get("prompt") });
  }
}

const DATA = JSON.parse(document.getElementById("data").textContent);
const HOST = document.getElementById("samples");
let browser = null;
drawCurves(DATA.curves, (stage, step) => browser?.open(stage, step));
unpack(DATA.samples).then(
  (unpacked) => {
    const samples = new Samples(unpacked);
    if (samples.stages.some((s) => s.steps.some(([, groups]) => groups.length))) browser = new Browser(samples, HOST);
    else HOST.append(el("p", { class: "empty" }, "This run has kept no samples."));
  },
  () => HOST.append(el("p", { class: "empty" }, "This browser cannot unpack the samples; one of 2023 or later can.")),
);
