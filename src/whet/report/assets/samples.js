// The samples of the page: unpacks what whet/report/samples.py packed, and finds prompts again.

// Text in base64 of JSON in gzip -> the value.
async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

class Samples {
  // stages: [{name, every, written, whole, steps: [[step, [group, …]], …]}]
  // group: {prompt: {id, answer, messages: [[role, content], …], tokens}, samples: [sample, …]}
  // tokens: of the whole page, [[id, piece], …]; a sequence of tokens is a list of places in it.
  constructor({ tokens, stages }) {
    this.tokens = tokens;
    this.stages = stages.filter((s) => s.steps.length);
    this.places = new Map(); // prompt's id -> [{stage, step, group}]
    const modes = new Set();
    for (const { name, steps } of this.stages) {
      for (const [step, groups] of steps) {
        for (const group of groups) {
          const { id } = group.prompt;
          for (const { mode } of group.samples) modes.add(mode);
          if (!this.places.has(id)) this.places.set(id, []);
          this.places.get(id).push({ stage: name, step, group });
        }
      }
    }
    this.modes = [...modes].filter((mode) => mode !== null);
    this.similarTo = new Map();
  }

  stage(name) {
    return this.stages.find((s) => s.name === name);
  }

  // Places in the table of tokens -> [[id, piece], …]
  pieces(tokens) {
    return tokens.map((place) => this.tokens[place]);
  }

  // The prompts that share most pairs of characters with this one: [[prompt, share], …], best first.
  similar(prompt, most = 5) {
    if (this.similarTo.has(prompt.id)) return this.similarTo.get(prompt.id);
    const pairs = pairsOf(question(prompt));
    const alike = [];
    for (const [id, [{ group }]] of this.places) {
      const share = id === prompt.id ? 0 : overlap(pairs, pairsOf(question(group.prompt)));
      if (share >= 0.3) alike.push([group.prompt, share]);
    }
    const best = alike.sort((a, b) => b[1] - a[1]).slice(0, most);
    this.similarTo.set(prompt.id, best);
    return best;
  }
}

// The line that a list shows of a prompt: the last message.
const question = ({ id, messages }) => (messages.length ? messages[messages.length - 1][1] : id);

// The mean reward of a group's samples, those that the verifier failed on left out.
function rewardOf(group) {
  const rewards = group.samples.filter((s) => !failed(s) && s.reward !== null).map((s) => s.reward);
  return rewards.length ? rewards.reduce((a, b) => a + b, 0) / rewards.length : null;
}

const countRight = (group) => group.samples.filter((s) => s.right).length;

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
