// The samples as the page holds them: see whet/report/samples.py for how they are packed.

const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const VALUE = new Map([...DIGITS].map((c, i) => [c, i]));
const STATUSES = ["scored", "wrong", "unparsed", "timeout", "error"];
const FINISHES = ["stop", "length", "error"];

function numbers(text) {
  const found = [];
  let value = 0;
  let place = 1;
  for (const c of text) {
    const digit = VALUE.get(c);
    value += (digit & 31) * place;
    place *= 32;
    if (digit < 32) {
      found.push(value);
      value = 0;
      place = 1;
    }
  }
  return found;
}

const logpOf = (n) => (n === 0 ? null : -(n - 1) / 100);

class Samples {
  constructor(packed) {
    Object.assign(this, packed);
    this.stages = packed.stages.filter((s) => s.steps.length);
    this.seen = new Map(); // prompt's id -> [{stage, step, group}]
    for (const stage of this.stages) {
      for (const [step, groups] of stage.steps) {
        for (const group of groups) {
          const id = this.prompts[group[0]][0];
          if (!this.seen.has(id)) this.seen.set(id, []);
          this.seen.get(id).push({ stage: stage.name, step, group });
        }
      }
    }
    this.similarTo = new Map();
  }

  stage(name) {
    return this.stages.find((s) => s.name === name);
  }

  prompt(index) {
    const [id, answer, pieces, ...messages] = this.prompts[index];
    const said = messages.map((m) => {
      const cut = m.indexOf("\n");
      return { role: m.slice(0, cut), content: m.slice(cut + 1) };
    });
    return { id, answer, messages: said, pieces };
  }

  // What a list shows of a prompt: the last thing that was asked.
  question(index) {
    const { id, messages } = this.prompt(index);
    return messages.length ? messages[messages.length - 1].content : id;
  }

  sample(row) {
    const [tokens, logp, reward, status, finish, right, mode, advantage, version, parts, mask, text] = row;
    return {
      tokens,
      logp,
      reward,
      advantage,
      version,
      status: STATUSES[status] ?? "unknown",
      finish: FINISHES[finish] ?? "unknown",
      right: right === 1,
      mode: mode < 0 ? null : this.modes[mode],
      parts: (parts || []).map(([name, value]) => [this.parts[name], value]),
      mask: mask || null,
      text: text || "",
    };
  }

  groupOf(packed) {
    const samples = packed[1].map((row) => this.sample(row));
    const rewards = samples.filter((s) => !failed(s) && s.reward !== null).map((s) => s.reward);
    return {
      prompt: packed[0],
      samples,
      reward: rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : null,
    };
  }

  pieces(text) {
    return numbers(text).map((n) => this.tokens[n]);
  }

  // The prompts that share most pairs of characters with this one: [[prompt, share]], best first.
  similar(index, most = 5) {
    if (this.similarTo.has(index)) return this.similarTo.get(index);
    const own = pairsOf(this.question(index));
    const id = this.prompts[index][0];
    const found = new Map();
    this.prompts.forEach((row, other) => {
      if (row[0] === id || found.has(row[0])) return;
      const share = overlap(own, pairsOf(this.question(other)));
      if (share >= 0.3) found.set(row[0], [other, share]);
    });
    const best = [...found.values()].sort((a, b) => b[1] - a[1]).slice(0, most);
    this.similarTo.set(index, best);
    return best;
  }
}

const failed = (s) => s.status === "timeout" || s.status === "error";

const FILTERS = [
  ["all", "all", () => true],
  ["right", "right", (s) => s.right],
  ["wrong", "wrong", (s) => !s.right && !failed(s)],
  ["unparsed", "unparsed", (s) => s.status === "unparsed"],
  ["cut", "cut off", (s) => s.finish === "length"],
  ["failed", "verifier failed", failed],
];

function pairsOf(text) {
  const pairs = new Set();
  for (let i = 0; i + 1 < Math.min(text.length, 400); i += 1) pairs.add(text.slice(i, i + 2));
  return pairs;
}

function overlap(one, other) {
  let common = 0;
  for (const pair of one) common += other.has(pair) ? 1 : 0;
  return common / Math.max(1, one.size + other.size - common);
}
