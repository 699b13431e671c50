// The case browser: a list that is searched, filtered and sorted, a page of it at a time.
const PER_PAGE = 50;
const KIND_NAMES = { efficacy: "Efficacy", paraphrase: "Paraphrase", neighborhood: "Specificity" };
const unpacked = new Map();
const parsed = new Promise((resolve) => {
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", resolve);
  else resolve();
});

/** One case in full; its sheet is unpacked when the first of its cases is asked for. */
async function readCase(index, place) {
  const number = Math.floor(place / index.perSheet);
  await parsed; // the sheets stand behind this script
  const sheets = document.querySelectorAll("script.sheet");
  if (!unpacked.has(number)) unpacked.set(number, unpack(sheets[number]));
  return (await unpacked.get(number))[place % index.perSheet];
}

class CaseList {
  constructor(index) {
    this.index = index;
    this.controls = Object.fromEntries(
      ["search", "setting", "editor", "relation", "judge", "outcome"].map((name) => [
        name,
        document.getElementById(`case-${name}`),
      ]),
    );
    this.body = document.querySelector("#case-list tbody");
    this.status = document.getElementById("case-status");
    this.sorting = { column: 0, direction: 0 };
    this.page = 0;
    const { id, subject, relation, prompt, target, old } = index.cases;
    this.haystack = id.map((name, i) =>
      [name, subject[i], index.relations[relation[i]], prompt[i], target[i], old[i]]
        .join("\n")
        .toLowerCase(),
    );
    fill(this.controls.setting, index.settings.map((setting, i) => [i, setting.label]));
    this.controls.setting.closest("label").hidden = index.settings.length < 2;
    this.chooseSetting();
    this.listen();
  }

  get setting() {
    return this.index.settings[this.controls.setting.value];
  }

  get trial() {
    return this.setting.trials[this.controls.editor.value];
  }

  get judge() {
    return this.setting.judges[this.controls.judge.value];
  }

  listen() {
    const { search, setting } = this.controls;
    const form = search.form;
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(() => this.refresh()));
    search.addEventListener("input", () => this.refresh());
    form.addEventListener("change", (event) => {
      if (event.target === setting) this.chooseSetting();
      this.refresh();
    });
    document.getElementById("case-previous").addEventListener("click", () => this.turn(-1));
    document.getElementById("case-next").addEventListener("click", () => this.turn(1));
    makeSortable([...document.querySelectorAll("#case-list thead th")], (column, direction) => {
      this.sorting = { column, direction };
      this.refresh();
    });
  }

  /** Offer the editors, relations and judges that the chosen setting has. */
  chooseSetting() {
    const { setting } = this;
    const { editor, relation, judge } = this.controls;
    fill(editor, setting.trials.map((trial, i) => [i, trial.name]));
    editor.value = setting.trials.length - 1; // in the paper's order MEMIT is the last
    for (const option of editor.options) option.defaultSelected = option.selected;
    const numbers = new Set(setting.cases.map((place) => this.index.cases.relation[place]));
    const names = [...numbers].map((number) => [number, this.index.relations[number] || "none"]);
    names.sort((a, b) => collator.compare(a[1], b[1]));
    fill(relation, [["", "any"], ...names]);
    relation.closest("label").hidden = names.length < 2;
    fill(judge, setting.judges.map((each, i) => [i, each.label]));
    judge.closest("label").hidden = setting.judges.length < 2;
    this.controls.outcome.closest("label").hidden = setting.judges.length === 0;
  }

  /** How a case came out, in percent of its probes; null where that is not known. */
  outcome(row, kind) {
    const values = this.judge && this.trial.values[this.judge.metrics[kind]];
    return values ? values[row] : null;
  }

  /** Whether a case came out as the filter asks. */
  passes(row) {
    const [what, wanted] = this.controls.outcome.value.split(" ");
    if (!wanted) return true;
    const kinds = what === "every" ? [0, 1, 2] : [this.index.kinds.indexOf(what)];
    const known = kinds.map((kind) => this.outcome(row, kind)).filter((value) => value != null);
    const all = known.every((value) => value === 100);
    return known.length > 0 && all === (wanted === "held");
  }

  refresh() {
    const { search, relation } = this.controls;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = relation.value === "" ? null : Number(relation.value);
    this.rows = [];
    for (const [row, place] of this.setting.cases.entries()) {
      if (wanted !== null && this.index.cases.relation[place] !== wanted) continue;
      if (words.length && !words.every((word) => this.haystack[place].includes(word))) continue;
      if (this.passes(row)) this.rows.push(row);
    }
    const { column, direction } = this.sorting;
    if (direction) {
      const keys = new Map(this.rows.map((row) => [row, this.values(row)[column]]));
      this.rows.sort((a, b) => compare(keys.get(a), keys.get(b), direction));
    }
    this.page = 0;
    this.show();
  }

  /** What the columns of the list hold. */
  values(row) {
    const place = this.setting.cases[row];
    const { id, subject, relation, target, old } = this.index.cases;
    return [
      id[place],
      subject[place],
      this.index.relations[relation[place]],
      target[place],
      old[place],
      ...this.index.kinds.map((_, kind) => this.outcome(row, kind)),
    ];
  }

  turn(step) {
    this.page += step;
    this.show();
    document.getElementById("case-list").scrollIntoView({ block: "nearest" });
  }

  show() {
    const start = this.page * PER_PAGE;
    const shown = this.rows.slice(start, start + PER_PAGE);
    this.body.replaceChildren(...shown.map((row) => this.showRow(row)));
    const [count, all] = [this.rows.length, this.setting.cases.length];
    const found = count === all ? `${all.toLocaleString()} cases` :
      `${count.toLocaleString()} of ${all.toLocaleString()} cases`;
    const range = count > PER_PAGE ? `, ${start + 1} to ${start + shown.length} shown` : "";
    this.status.textContent = `${found}${range}`;
    document.getElementById("case-previous").disabled = this.page === 0;
    document.getElementById("case-next").disabled = start + PER_PAGE >= count;
    document.getElementById("case-pages").hidden = count <= PER_PAGE;
  }

  showRow(row) {
    const [id, subject, relation, target, old, ...outcomes] = this.values(row);
    const link = element("a", { href: this.address(row) }, subject);
    return element(
      "tr",
      {},
      element("td", { class: "wide" }, id),
      element("th", { scope: "row" }, link),
      element("td", { class: "wide" }, relation),
      element("td", {}, target),
      element("td", { class: "wide" }, old),
      outcomes.map((value) => element("td", { class: "outcome" }, showOutcome(value))),
    );
  }

  address(row) {
    const id = this.index.cases.id[this.setting.cases[row]];
    return `#case/${this.controls.setting.value}/${row}/${encodeURIComponent(id)}`;
  }
}

function fill(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value }, text)));
}

function showOutcome(value) {
  if (value == null) return element("span", { class: "unknown" }, "–", aloud(" not known"));
  if (value === 100) return element("span", { class: "held" }, "✓", aloud(" held"));
  const text = value === 0 ? "✗" : `${Number(value.toFixed(1))} %`;
  return element("span", { class: "failed" }, text, aloud(value === 0 ? " failed" : " held"));
}
