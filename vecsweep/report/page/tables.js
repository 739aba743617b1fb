// Tables that can be sorted and downloaded.

const valueOf = (cell) => cell.dataset.value ?? cell.textContent;

function sortBy(table, column) {
  const head = table.tHead.rows[0].cells[column];
  const isAscending = head.getAttribute("aria-sort") !== "ascending";
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row) => [row, valueOf(row.cells[column])]);
  const sign = isAscending ? 1 : -1;
  rows.sort(([, a], [, b]) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // what is missing comes last, either way
    const [x, y] = [Number(a), Number(b)];
    return sign * (Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y);
  });
  table.tBodies[0].append(...rows.map(([row]) => row));
}

const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);

function csvOf(table) {
  const head = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].map(valueOf));
  return [head, ...rows].map((row) => row.map(quoted).join(",")).join("\r\n") + "\r\n";
}

for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((cell, i) => {
    cell.querySelector("button").addEventListener("click", () => sortBy(table, i));
  });
  const button = table.closest("section").querySelector(".csv");
  button.addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob([csvOf(table)], { type: "text/csv" }));
    make("a", { href: address, download: button.dataset.file }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  });
}
