/** Make an element. Strings become text, never markup; missing children are left out. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child || child === 0));
  return made;
}

/** Text that is read aloud and not seen. */
function aloud(text) {
  return element("span", { class: "aloud" }, text);
}

const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

/** Compare numbers or texts; what is missing comes last, whichever way is up. */
function compare(one, other, direction) {
  if (one == null || other == null) return (one == null) - (other == null);
  const order = typeof one === "number" ? one - other : collator.compare(one, other);
  return direction * order;
}

/** Turn headings into buttons that call `sort(column, direction)`; none is sorted by at first. */
function makeSortable(headings, sort) {
  for (const [column, heading] of headings.entries()) {
    const button = element("button", { type: "button", class: "sort" });
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const order = { descending: "ascending", ascending: null }[heading.ariaSort] ?? "descending";
      const next = heading.ariaSort === "ascending" ? null : order;
      for (const other of headings) other.removeAttribute("aria-sort");
      if (next) heading.setAttribute("aria-sort", next);
      sort(column, next === "ascending" ? 1 : next === "descending" ? -1 : 0);
    });
  }
}
