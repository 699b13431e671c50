// One case in full: what was asked, how likely the answers were, and what was written.
const KIND_MEANINGS = {
  efficacy: "the prompt that was edited",
  paraphrase: "the same fact in other words",
  neighborhood: "other facts, which must stay",
};

const PROBABILITY =
  "Probabilities are geometric means over an answer's tokens, so two answers may have more than " +
  "100 % together. ✓: the expected answer is the likelier one.";

function showCase(index, setting, row, details) {
  const place = setting.cases[row];
  const fact = Object.fromEntries(Object.entries(index.cases).map(([k, v]) => [k, v[place]]));
  const trials = setting.trials.filter(({ trial }) => trial in details.logProbs);
  return [
    showFact(fact, index.relations[fact.relation]),
    ...index.kinds.map((kind) => showProbes(kind, details, trials)),
    element("p", { class: "quiet" }, PROBABILITY),
    ...showPortability(details, trials),
    showNumbers(setting, trials, row),
    ...showTexts(details, trials, fact),
  ];
}

function showFact(fact, relation) {
  return element(
    "div",
    { class: "fact" },
    element(
      "p",
      { class: "prompt" },
      `${fact.prompt} `,
      element("mark", { class: "new" }, fact.target),
      fact.old && [" instead of ", element("mark", { class: "old" }, fact.old)],
    ),
    element("p", { class: "quiet" }, `Case ${fact.id}${relation ? `, relation ${relation}` : ""}`),
  );
}

/** Probabilities of both answers to every prompt of a kind, before and after. */
function showProbes(kind, details, trials) {
  const asked = [...details.probes.entries()].filter(([, probe]) => probe[0] === kind);
  if (asked.length === 0) return null;
  const heading = element("h3", {}, KIND_NAMES[kind], " ", element("small", {}, KIND_MEANINGS[kind]));
  const bodies = asked.map(([number, [, prompt, expected, alternative]]) => {
    const pairs = trials.map(({ trial }) => details.logProbs[trial][number] ?? [null, null]);
    const answer = (side, text) =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, text, side === 0 && [" ", element("small", {}, "expected")]),
        pairs.map((pair) => showProbability(pair, side)),
      );
    const said = trials.map(({ trial }) => details.said[trial]?.[number] ?? null);
    const words = () =>
      element(
        "tr",
        {},
        element("th", { scope: "row" }, "own words"),
        said.map((text) => element("td", { class: "said" }, text?.trim() || "–")),
      );
    const spanning = { scope: "rowgroup", colspan: trials.length + 1, class: "asked" };
    return element(
      "tbody",
      {},
      element("tr", {}, element("th", spanning, prompt)),
      answer(0, expected),
      alternative != null && answer(1, alternative),
      said.some((text) => text != null) && words(),
    );
  });
  return element("section", {}, heading, besideEachOther(KIND_NAMES[kind], trials, bodies));
}

/** A table with a column for each trial. */
function besideEachOther(name, trials, bodies, look = "") {
  const head = element(
    "thead",
    {},
    element(
      "tr",
      {},
      element("th", { scope: "col" }, "Answer"),
      trials.map((trial) => element("th", { scope: "col" }, trial.name)),
    ),
  );
  const label = `${name}: probabilities of the answers`;
  const attributes = {
    class: `probes ${look}`,
    "aria-label": label,
    style: `--columns: ${trials.length}`,
  };
  return scrolling(element("table", attributes, head, bodies), label);
}

function showProbability([expected, alternative], side) {
  const value = side === 0 ? expected : alternative;
  if (value == null) return element("td", {}, "–");
  const probability = Math.exp(value);
  const judged = side === 0 && alternative != null;
  const held = expected > alternative;
  return element(
    "td",
    { style: `--share: ${probability.toFixed(3)}`, class: judged ? (held ? "held" : "failed") : null },
    judged && (held ? "✓ " : "✗ "),
    judged && aloud(held ? "likelier than its rival: " : "less likely than its rival: "),
    formatProbability(probability),
  );
}

function formatProbability(probability) {
  const percent = 100 * probability;
  if (percent >= 1) return `${percent.toFixed(1)} %`;
  return percent >= 0.001 ? `${Number(percent.toPrecision(2))} %` : "< 0.001 %";
}

function showNumbers(setting, trials, row) {
  const value = (trial, name) => trial.values[name]?.[row] ?? null;
  const metrics = setting.metrics.filter(({ name }) => trials.some((t) => value(t, name) != null));
  const isTold = trials.some(({ statuses }) => statuses[row]);
  if (metrics.length === 0 && !isTold) return null;
  const label = "Numbers of this case";
  const table = element(
    "table",
    { class: "numbers", "aria-label": label },
    element(
      "thead",
      {},
      element(
        "tr",
        {},
        element("th", { scope: "col" }, "Metric"),
        trials.map(({ name }) => element("th", { scope: "col" }, name)),
      ),
    ),
    element(
      "tbody",
      {},
      isTold &&
        element(
          "tr",
          {},
          element("th", { scope: "row" }, "The fact was"),
          trials.map(({ statuses }) => element("td", {}, statuses[row] ?? "–")),
        ),
      metrics.map(({ name, heading }) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, heading),
          trials.map((trial) => element("td", {}, value(trial, name)?.toFixed(1) ?? "–")),
        ),
      ),
    ),
  );
  const explanation = element("p", { class: "quiet" }, setting.explanation);
  return element("section", {}, element("h3", {}, label), scrolling(table, label), explanation);
}

/** Every generated text beside those of the other trials, with both targets marked. */
function showTexts(details, trials, fact) {
  const prompts = new Set();
  for (const { trial } of trials) {
    for (const [prompt] of details.texts[trial] ?? []) prompts.add(prompt);
  }
  if (prompts.size === 0) return [];
  const groups = [...prompts].map((prompt) =>
    element(
      "section",
      { class: "texts" },
      element("h4", {}, prompt),
      element(
        "div",
        { class: "beside" },
        trials.map(({ trial, name }) => {
          const found = (details.texts[trial] ?? []).find(([other]) => other === prompt);
          return element(
            "article",
            {},
            element("h5", {}, name),
            found ? element("p", {}, markTargets(prompt, found[1], fact)) : element("p", {}, "–"),
          );
        }),
      ),
    ),
  );
  const key = element(
    "p",
    { class: "quiet" },
    "Marked: ",
    element("mark", { class: "new" }, fact.target),
    ", the new target",
    fact.old && ["; ", element("mark", { class: "old" }, fact.old), ", the old one"],
    ".",
  );
  return [element("h3", {}, "Generated texts"), key, ...groups];
}

/** A text with its prompt set apart, and whole-word mentions of the targets marked. */
function markTargets(prompt, text, fact) {
  const written = text.startsWith(prompt) ? text.slice(prompt.length) : text;
  const parts = text.startsWith(prompt) ? [element("span", { class: "given" }, prompt)] : [];
  const targets = [fact.target, fact.old].map((target) => target.trim()).filter(Boolean);
  if (targets.length === 0) return [...parts, written];
  const escaped = targets
    .toSorted((a, b) => b.length - a.length)
    .map((target) => target.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const mention = new RegExp(`(?<![\\p{L}\\p{N}])(${escaped.join("|")})(?![\\p{L}\\p{N}])`, "giu");
  for (const [number, part] of written.split(mention).entries()) {
    const isNew = part.toLowerCase() === fact.target.trim().toLowerCase();
    parts.push(number % 2 ? element("mark", { class: isNew ? "new" : "old" }, part) : part);
  }
  return parts;
}

function scrolling(content, label) {
  return element("div", { class: "scroll", role: "region", "aria-label": label, tabindex: 0 }, content);
}
