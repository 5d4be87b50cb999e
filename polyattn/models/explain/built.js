// What stands on the page all the time, with the pictures of heads, the words, the cells and the tables in it. What is
// done to it is handed on: choose(query, key), look(query or null), retype(key, input), set(changes).
const building = (data, layers, changing) => {
  "use strict";
  const { choose, look, retype, set } = changing;
  const { tokens, width } = data;
  const length = tokens.length;
  const { byId, make, table, radios } = parts;
  const numbers = [...Array(length).keys()];

  byId("layer").append(...layers.map((i) => make("option", { value: i }, `layer ${i}`)));
  const sizes = new Set([1, 2, 4, 8, 16, 32].filter((n) => n === 1 || n < length));
  sizes.add(length).add(Math.min(4, length));
  byId("size").append(...[...sizes].sort((a, b) => a - b).map((n) => make("option", { value: n }, String(n))));

  const heads = radios(
    byId("heads"), "head", [...Array(data.heads).keys()].map((i) => `head ${i}`), (head) => set({ head }),
    () => make("canvas", { width: length, height: length, "aria-hidden": "true" }),
  );
  const words = radios(byId("words"), "word", tokens, (query) => set({ query }));
  words.forEach(({ label }, i) => watch(label, i));

  /** Shows where token i looks while the pointer is here. */
  function watch(element, i) {
    element.addEventListener("pointerenter", () => look(i));
    element.addEventListener("pointerleave", () => look(null));
  }

  const grid = byId("grid");
  const head = make("tr");
  head.append(make("th", { scope: "col", "aria-label": "token that looks" }));
  head.append(...tokens.map((token) => make("th", { scope: "col" }, token)));
  const thead = make("thead");
  thead.append(head);
  const rows = numbers.map((i) => {
    const line = make("tr");
    line.append(make("th", { scope: "row" }, tokens[i]));
    watch(line, i);
    return line;
  });
  const cells = rows.map((line, i) => {
    const some = numbers.map((j) => make("td", { role: "gridcell", tabindex: "-1", "data-at": `${i},${j}` }));
    line.append(...some);
    return some;
  });
  const body = make("tbody");
  body.append(...rows);
  grid.append(thead, body);
  const at = (cell) => cell.dataset.at.split(",").map(Number);
  const cellOf = (event) => event.target.closest("[data-at]");

  grid.addEventListener("click", (event) => {
    const cell = cellOf(event);
    if (cell) choose(...at(cell));
  });
  grid.addEventListener("focusin", (event) => {
    const cell = cellOf(event);
    if (cell) look(at(cell)[0]);
  });
  grid.addEventListener("focusout", () => look(null));
  grid.addEventListener("keydown", (event) => {
    const cell = cellOf(event);
    if (!cell || event.altKey || event.metaKey) return;
    const [i, j] = at(cell);
    const last = length - 1;
    const moves = {
      ArrowUp: [i - 1, j], ArrowDown: [i + 1, j], ArrowLeft: [i, j - 1], ArrowRight: [i, j + 1],
      Home: [event.ctrlKey ? 0 : i, 0], End: [event.ctrlKey ? last : i, last],
    };
    if (event.key === "Enter" || event.key === " ") choose(i, j);
    else if (event.key in moves) {
      const [row, column] = moves[event.key].map((n) => Math.min(Math.max(n, 0), last));
      cell.tabIndex = -1;
      cells[row][column].tabIndex = 0;
      cells[row][column].focus();
    } else return;
    event.preventDefault();
  });

  const turned = data.rotary !== null;
  const steps = [...Array(turned ? 7 : 6)].map(() => make("li"));
  byId("steps").append(...steps);
  const columns = turned ? ["d", "q", "q turned", "k", "k turned"] : ["d", "q", "k"];
  const vectors = table(byId("vectors"), [...columns, "q k", "v", "w v", "out"], [...Array(width).keys()].map(String));
  const row = table(byId("row"), ["it looks at", "score", "exp(s \u2212 max)", "weight", "bar"], tokens);
  const scores = row.map((line, j) => {
    const input = make("input", { type: "number", step: "any" });
    input.addEventListener("input", () => retype(j, input));
    line[0].append(input);
    line[3].className = "meter";
    line[3].append(make("i"));
    return input;
  });

  return Object.freeze({ heads, words, rows, cells, steps, vectors, row, scores });
};
