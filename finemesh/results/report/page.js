// Tips on marks and lines, and a table that sorts. The page says everything without either.
const tip = document.getElementById("tip");
const table = document.querySelector("table.trials");
const rows = Object.fromEntries([...(table?.tBodies[0].rows ?? [])].map(row => [row.dataset.number, row]));
function show(event) {
  const row = rows[event.target.closest("[data-trial]")?.dataset.trial];
  tip.hidden = !row;
  if (!row) return;
  const [number, state, method, settings, loss] = [...row.cells].map(cell => cell.textContent.trim());
  tip.textContent = `trial ${number}, ${state}: ${method}, ${settings}${loss && `; loss ${loss}`}`;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(8, Math.min(event.clientX + 12, innerWidth - box.width - 8)) + "px";
  tip.style.top = (event.clientY + box.height + 24 < innerHeight ? event.clientY + 16 : event.clientY - box.height - 12) + "px";
}
document.addEventListener("pointerover", show);
document.addEventListener("pointerdown", show);
addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

const heads = [...(table?.querySelectorAll("th") ?? [])];
heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
  const down = head.getAttribute("aria-sort") === "ascending";
  heads.forEach(other => other.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = row => row.cells[column].dataset.value;
  const sorted = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");  // what is unknown comes last, either way
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return down ? -order : order;
  });
  table.tBodies[0].append(...sorted);
}));
