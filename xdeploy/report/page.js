"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, parent, text) => {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    parent.append(element);
    return element;
  };

  // Sorting: a button in each heading; numbers by data-v, without one (a dash) last, names as people order them.
  const key = (row, at) => row.cells[at].dataset.v;
  const compare = (a, b, at, numeric, sign) => {
    const [x, y] = [key(a, at), key(b, at)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true }));
  };
  for (const table of all("table.sortable")) {
    const body = table.tBodies[0];
    const order = new Map([...body.rows].map((row, at) => [row, at]));
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, at) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const numeric = head.classList.contains("r");
        const first = numeric ? "descending" : "ascending";
        const second = numeric ? "ascending" : "descending";
        const now = head.getAttribute("aria-sort");
        const next = now === "none" ? first : now === first ? second : "none";
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", next);
        const rows = [...order.keys()];
        const sign = next === "ascending" ? 1 : -1;
        if (next !== "none") rows.sort((a, b) => compare(a, b, at, numeric, sign) || order.get(a) - order.get(b));
        body.append(...rows);
      });
    });
  }

  // Filtering: rows that hold every word, in any cell that is shown.
  const filters = all("div.tools[data-filter]").map((tools) => {
    const table = document.getElementById(tools.dataset.filter);
    const label = make("label", tools, "filter");
    const input = make("input", label);
    input.type = "search";
    input.placeholder = "conv2d int4";
    const count = make("span", tools);
    count.setAttribute("aria-live", "polite");
    const apply = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const rows = [...table.tBodies[0].rows];
      for (const row of rows) {
        const cells = [...row.cells].filter((cell) => !cell.hidden);
        const text = cells.map((cell) => cell.textContent).join(" ").toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
      const shown = rows.filter((row) => !row.hidden).length;
      count.textContent = `${shown} of ${rows.length} rows`;
    };
    input.addEventListener("input", apply);
    return apply;
  });

  // One target at a time: whatever belongs to another is hidden. Without this script all are shown.
  const names = all("[data-name]").map((element) => element.dataset.name);
  const pickers = [];
  const choose = (which) => {
    for (const element of all("[data-t]")) element.hidden = Number(element.dataset.t) !== which;
    for (const picker of pickers) picker.selectedIndex = which;
    for (const apply of filters) apply();
  };
  if (names.length > 1) {
    for (const tools of all("div.tools[data-pick]")) {
      const label = document.createElement("label");
      label.append("target");
      const picker = make("select", label);
      for (const name of names) make("option", picker, name);
      tools.prepend(label);
      picker.addEventListener("change", () => choose(picker.selectedIndex));
      pickers.push(picker);
    }
  }
  choose(0);

  // On paper everything that is folded is unfolded.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all("details:not([open])");
    for (const element of folded) element.open = true;
  });
  addEventListener("afterprint", () => {
    for (const element of folded) element.open = false;
  });
})();
