// What follows from a fact: questions by kind, the answers that count, and what was said.
const PORTABILITY_KINDS = {
  reasoning: ["reasoning", "what else is so, because of the fact"],
  aliasing: ["aliasing", "the fact under another name of its subject"],
  reversal: ["reversal", "the fact in the other direction"],
  multi_hop: ["multi-hop", "the fact and others together"],
};
const MASKED =
  "not asked: another edit of the batch changes what it follows from, or is needed and not in it";
const UNKNOWN = "does not count: the unedited model fails a condition";

function showPortability(details, trials) {
  const asked = [...details.follows.entries()];
  const told = trials.filter(({ trial }) => trial in details.followed);
  const sections = Object.entries(PORTABILITY_KINDS).map(([kind, [name, meaning]]) => {
    const probes = asked.filter(([, probe]) => probe.kind === kind);
    if (probes.length === 0) return null;
    const title = `Portability: ${name}`;
    const heading = element("h3", {}, title, " ", element("small", {}, meaning));
    const bodies = probes.flatMap(([number, probe]) =>
      showConsequence(probe, told.map(({ trial }) => details.followed[trial][number])),
    );
    return element("section", {}, heading, besideEachOther(title, told, bodies, "follows"));
  });
  return sections.some(Boolean) ? [...sections, element("p", { class: "quiet" }, PORTABILITY)] : [];
}

const PORTABILITY =
  "✓ at an answer: every token of it is the likeliest in its place. ✓ at own words: they have an " +
  "accepted answer in them. Conditions are put to the unedited model alone.";

/** One probe: its queries and conditions, and whether each trial passed it. */
function showConsequence(probe, outcomes) {
  const n = probe.queries.length;
  const rule = probe.needsAll ? `all ${n} must be answered` : `one of ${n} is enough`;
  const queries = probe.queries.map((query, i) =>
    showQuery(query, n > 1 && rule, outcomes.map(({ queries }) => queries[i])),
  );
  const conditions = probe.conditions.map((query, i) => showCondition(query, i, outcomes));
  const verdicts = element(
    "tbody",
    { class: "verdict" },
    ["accuracy", "generation"].map((scorer) => showVerdict(scorer, outcomes)),
  );
  return [...queries, ...conditions, verdicts];
}

function showQuery([prompt, answers], rule, said) {
  const rows = said.some(([answer, , , text]) => answer != null || text != null);
  return element(
    "tbody",
    {},
    showAsked(prompt, answers, rule, said.length),
    rows && row("likeliest answer", said.map((each) => showLikeliest(each, "td"))),
    rows && row("own words", said.map((each) => showOwnWords(each, "td"))),
  );
}

/** A condition is put to the unedited model, so that all trials tell the same. */
function showCondition([prompt, answers], number, outcomes) {
  const said = outcomes.map(({ conditions }) => conditions[number]).find(([answer]) => answer != null);
  const whole = { class: "said", colspan: outcomes.length };
  return element(
    "tbody",
    { class: "condition" },
    showAsked(prompt, answers, "a condition, put to the unedited model", outcomes.length),
    said && row("likeliest answer", element("td", whole, showLikeliest(said, "span"))),
    said && row("own words", element("td", whole, showOwnWords(said, "span"))),
  );
}

function showAsked(prompt, answers, note, nColumns) {
  const spanning = { scope: "rowgroup", colspan: nColumns + 1, class: "asked" };
  const accepted = element("small", {}, `accepted: ${answers.join(" / ")}`);
  const noted = note && element("small", {}, note);
  return element("tr", {}, element("th", spanning, prompt, " ", accepted, noted && " ", noted));
}

function row(heading, ...cells) {
  return element("tr", {}, element("th", { scope: "row" }, heading), ...cells);
}

function showLikeliest([answer, logProb, isLikeliest], tag) {
  if (answer == null) return element(tag, {}, "–");
  const probability = Math.exp(logProb);
  return element(
    tag,
    { style: `--share: ${probability.toFixed(3)}`, class: isLikeliest ? "held" : "failed" },
    isLikeliest ? "✓ " : "✗ ",
    aloud(isLikeliest ? "the likeliest of all: " : "something else is likelier: "),
    `${answer} ${formatProbability(probability)}`,
  );
}

function showOwnWords([, , , text, isWritten], tag) {
  if (text == null) return element(tag, { class: "said" }, "–");
  const mark = element("span", { class: isWritten ? "held" : "failed" }, isWritten ? "✓" : "✗");
  const heard = aloud(isWritten ? " an accepted answer: " : " no accepted answer: ");
  return element(tag, { class: "said" }, mark, heard, " ", text.trim() || "–");
}

function showVerdict(scorer, outcomes) {
  if (outcomes.every((outcome) => outcome[scorer] == null)) {
    const why = outcomes.some(({ isMasked }) => isMasked) ? MASKED : UNKNOWN;
    return row(`by ${scorer}`, element("td", { class: "said", colspan: outcomes.length }, why));
  }
  const cells = outcomes.map((outcome) => {
    const passed = outcome[scorer];
    if (passed == null) {
      return element("td", { class: "said" }, outcome.isMasked ? MASKED : UNKNOWN);
    }
    const text = passed ? "✓ passed" : "✗ failed";
    return element("td", { class: passed ? "held" : "failed" }, text);
  });
  return row(`by ${scorer}`, cells);
}
