"use strict";
// Search and order of the table of kernels. Each kernel is a tbody: its row, and perhaps the row with its text.
const table = document.getElementById("table");
const search = document.getElementById("search");
const count = document.getElementById("count");
const bodies = Array.from(table.tBodies);
// the words of a row are those that are seen in it, not those of the kernel's text
const words = new Map(bodies.map((body) => [body, body.rows[0].textContent.toLowerCase()]));

function filter() {
  const wanted = search.value.toLowerCase().split(/\s+/);
  for (const body of bodies) {
    body.hidden = !wanted.every((word) => words.get(body).includes(word));
  }
  count.textContent = `${bodies.filter((body) => !body.hidden).length} of ${bodies.length} launches`;
}

function sort(button) {
  const head = button.parentElement;
  const column = head.cellIndex;
  const numeric = button.dataset.kind === "n";
  const before = head.getAttribute("aria-sort");
  // numbers begin with the largest, but for those of the launches
  const descending = before === null ? numeric && column > 0 : before === "ascending";
  const key = (body) => {
    const cell = body.rows[0].cells[column];
    return numeric ? Number(cell.dataset.v) : cell.textContent;
  };
  const compare = (a, b) => (numeric ? key(a) - key(b) : key(a).localeCompare(key(b)));
  const ordered = [...bodies].sort((a, b) => (descending ? -compare(a, b) : compare(a, b)));
  for (const other of table.tHead.rows[0].cells) {
    other.removeAttribute("aria-sort");
  }
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  table.append(...ordered);
}

// a link from a picture leads to a row that a search may hide
function reveal() {
  const body = document.getElementById(location.hash.slice(1));
  if (body !== null && body.hidden) {
    search.value = "";
    filter();
    body.scrollIntoView();
  }
}

for (const button of table.tHead.querySelectorAll("button")) {
  button.addEventListener("click", () => sort(button));
}
search.addEventListener("input", filter);
window.addEventListener("hashchange", reveal);
document.getElementById("tools").hidden = false;
filter();
