"use strict";
// Filters the rows and opens them. The page is whole without it: a row's link then opens the row by CSS alone.
(() => {
  const $ = (id) => document.getElementById(id);
  const form = document.querySelector("form.filter");
  const rows = [...document.querySelectorAll("#table tr.row")].map((line) => {
    const detail = line.nextElementSibling;
    return { line, detail, link: line.querySelector("a"), text: null };
  });
  const byName = new Map(rows.map((row) => [row.detail.id, row]));

  function open(row, isOpen) {
    row.detail.classList.toggle("open", isOpen);
    row.link.setAttribute("aria-expanded", String(isOpen));
  }

  function filter() {
    const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const show = $("show").value;
    let found = 0;
    for (const row of rows) {
      if (words.length && row.text === null) {
        row.text = (row.line.textContent + "\n" + row.detail.textContent).toLowerCase();
      }
      const fits = (!show || row.line.dataset.mark === show) && words.every((word) => row.text.includes(word));
      row.line.hidden = row.detail.hidden = !fits;
      found += fits;
    }
    $("found").textContent = found === rows.length ? `${found} rows` : `${found} of ${rows.length} rows`;
  }

  // An address may end in #row-17, or in #filter=…&show=wrong&row=17.
  function follow() {
    const fragment = location.hash.slice(1);
    if (fragment.includes("=")) {
      const wanted = new URLSearchParams(fragment);
      $("filter").value = wanted.get("filter") || "";
      $("show").value = wanted.get("show") || "";
      if ($("show").selectedIndex < 0) $("show").selectedIndex = 0;
      filter();
      reveal(byName.get("row-" + wanted.get("row")));
    } else {
      reveal(byName.get(fragment));
    }
  }

  function reveal(row) {
    if (!row) return;
    row.line.hidden = row.detail.hidden = false;
    open(row, true);
    row.line.scrollIntoView({ block: "start" });
  }

  function remember() {
    const wanted = new URLSearchParams();
    if ($("filter").value) wanted.set("filter", $("filter").value);
    if ($("show").value) wanted.set("show", $("show").value);
    history.replaceState(null, "", "#" + (wanted.toString() || "rows"));
  }

  for (const row of rows) {
    row.link.setAttribute("aria-expanded", "false");
    row.link.setAttribute("aria-controls", row.detail.id);
    row.line.addEventListener("click", (event) => {
      if (event.target.closest("a") === null && String(getSelection())) return; // somebody selects text
      event.preventDefault();
      const isOpen = !row.detail.classList.contains("open");
      open(row, isOpen);
      if (isOpen) history.replaceState(null, "", "#" + row.detail.id);
    });
  }
  form.addEventListener("input", () => { filter(); remember(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", follow);
  document.documentElement.classList.add("js");
  form.hidden = false;
  filter();
  follow();
})();
