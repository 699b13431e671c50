// Opens cases: the address says which, so that one can be linked to, and Back closes it.
const caseDialog = document.getElementById("case");

class CaseBrowser {
  constructor(index) {
    this.index = index;
    this.list = new CaseList(index);
    this.list.refresh();
    addEventListener("hashchange", () => this.follow());
    caseDialog.addEventListener("close", () => {
      if (location.hash.startsWith("#case/")) history.replaceState(null, "", "#cases");
    });
    document.getElementById("case-close").addEventListener("click", () => caseDialog.close());
    document.getElementById("case-before").addEventListener("click", () => this.step(-1));
    document.getElementById("case-after").addEventListener("click", () => this.step(1));
    this.follow();
  }

  async follow() {
    const [, setting, row] = /^#case\/(\d+)\/(\d+)\//.exec(location.hash) ?? [];
    const place = this.index.settings[setting]?.cases[row];
    if (place === undefined) {
      if (caseDialog.open) caseDialog.close();
      return;
    }
    const { list } = this;
    if (list.controls.setting.value !== setting) {
      list.controls.setting.value = setting;
      list.chooseSetting();
      list.refresh();
    }
    this.row = Number(row);
    const details = await readCase(this.index, place);
    const content = showCase(this.index, list.setting, this.row, details);
    document.getElementById("case-title").textContent = this.index.cases.subject[place];
    document.getElementById("case-content").replaceChildren(...content.filter(Boolean));
    const at = list.rows.indexOf(this.row);
    document.getElementById("case-before").disabled = at <= 0;
    document.getElementById("case-after").disabled = at < 0 || at + 1 >= list.rows.length;
    if (!caseDialog.open) caseDialog.showModal();
    caseDialog.scrollTop = 0;
  }

  /** Go to the next case of the list as it is filtered and sorted. */
  step(by) {
    const next = this.list.rows[this.list.rows.indexOf(this.row) + by];
    if (next === undefined) return;
    history.replaceState(null, "", this.list.address(next));
    this.follow();
  }
}

const indexScript = document.getElementById("case-index");
if (indexScript) {
  const status = document.getElementById("case-status");
  if (typeof DecompressionStream === "undefined") {
    status.textContent = "This browser is too old to unpack the cases; the rest of the page is whole.";
  } else {
    new CaseBrowser(await unpack(indexScript));
    document.getElementById("cases").dataset.ready = "";
  }
}
