"use strict";
// Tables with buttons as headers are sorted by the values that cells carry; rows without a value stay at the end.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => row.cells[column].dataset.value;
  const compare = (a, b, numeric) => (numeric ? Number(a) - Number(b) : a.localeCompare(b));
  const sort = (column, ascending) => {
    const numeric = heads[column].dataset.kind === "number";
    const rows = [...body.rows];
    rows.sort((one, other) => {
      const a = value(one, column), b = value(other, column);
      if (a === "" || b === "") return (a === "") - (b === "");
      return ascending ? compare(a, b, numeric) : compare(b, a, numeric);
    });
    body.append(...rows);
    heads.forEach((head, number) => {
      head.setAttribute("aria-sort", number !== column ? "none" : ascending ? "ascending" : "descending");
    });
  };
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      sort(column, now === "none" ? head.dataset.first !== "descending" : now === "descending");
    });
  });
}
