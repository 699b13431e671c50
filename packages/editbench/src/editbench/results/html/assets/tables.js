// Tables of results: a click on a heading sorts the rows, a third one puts them back.
for (const table of document.querySelectorAll("table.results")) {
  const bodies = [...table.tBodies];
  const original = bodies.map((body) => [...body.rows]);
  const headings = [...table.tHead.rows].at(-1).cells;
  makeSortable([...headings], (column, direction) => {
    if (direction === 0) {
      for (const [index, body] of bodies.entries()) body.append(...original[index]);
      return;
    }
    const value = (row) => {
      const text = row.cells[column].dataset.value;
      const number = Number(text.replaceAll(",", "").replace("−", "-"));
      return text === "–" ? null : text !== "" && !Number.isNaN(number) ? number : text;
    };
    const sorted = original.flat().sort((a, b) => compare(value(a), value(b), direction));
    bodies[0].append(...sorted);
  });
}
