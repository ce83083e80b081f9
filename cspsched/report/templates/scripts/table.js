// Tables that sort by a click or Enter on a heading: numbers as numbers, what is missing last.
function keyOf(cell) {
  if (cell.dataset.key === undefined) return cell.textContent.trim();
  return cell.dataset.key === "" ? null : Number(cell.dataset.key);
}

function compareKeys(a, b) {
  if (a === null || b === null) return (a === null) - (b === null);
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}

function sortTable(table, column, heading) {
  const rising = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of heading.parentElement.cells) {
    if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  }
  heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [keyOf(row.cells[column]), row]);
  const missing = rows.filter(([key]) => key === null);
  const known = rows.filter(([key]) => key !== null);
  known.sort(([a], [b]) => (rising ? compareKeys(a, b) : compareKeys(b, a)));
  body.append(...[...known, ...missing].map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => sortTable(table, column, heading));
  });
}
