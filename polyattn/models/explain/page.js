// The page: one state, one function that draws it, and what changes it. Texts go in as text, never as markup.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const { tokens, width } = data;
  const length = tokens.length;
  const group = data.heads / data.kvHeads;
  const { byId, make, say, percent, isolated, announce, bars, fill, table, radios } = parts;
  const numbers = [...Array(length).keys()];

  /** What is computed as the page opens: what the model computes. */
  const opening = () => ({
    mask: data.causal ? "causal" : "none", window: null, scale: data.scale, cap: null, sink: null, retyped: new Map(),
    size: Math.min(4, length), step: 1,
  });
  let state = { ...opening(), layer: data.layer, head: data.head, query: length - 1, key: 0 };
  let preview = null; // the row that is pointed at

  // --- what is computed ---

  const decoded = new Map();
  function arrays(layer) {
    if (!decoded.has(layer)) {
      const stored = data.layers.find((one) => one.number === layer);
      decoded.set(layer, ["query", "key", "value"].map((name) => arithmetic.decode(stored[name])));
    }
    return decoded.get(layer);
  }

  function headOf(layer, number) {
    const one = length * width;
    const part = (all, i) => all.subarray(i * one, (i + 1) * one);
    const [query, key, value] = arrays(layer);
    const shared = Math.floor(number / group); // some heads of queries read one of keys and values
    return { query: part(query, number), key: part(key, shared), value: part(value, shared), length, width };
  }

  const rules = (retyped = state.retyped) => (
    { causal: state.mask === "causal", window: state.window, scale: state.scale, cap: state.cap, sink: state.sink, retyped }
  );
  const shown = () => headOf(state.layer, state.head);

  const word = (i) => `\u201c${isolated(tokens[i].trim() || "space")}\u201d`;

  // --- what stands on the page all the time ---

  const layers = data.layers.map((one) => one.number);
  byId("layer").append(...layers.map((i) => make("option", { value: i }, `layer ${i}`)));
  const sizes = [1, 2, 4, 8, 16, 32].filter((n) => n === 1 || n < length);
  if (!sizes.includes(length)) sizes.push(length);
  if (!sizes.includes(state.size)) sizes.push(state.size);
  byId("size").append(...sizes.sort((a, b) => a - b).map((n) => make("option", { value: n }, String(n))));

  const heads = radios(
    byId("heads"), "head", [...Array(data.heads).keys()].map((i) => `head ${i}`), (head) => set({ head }),
    () => make("canvas", { width: length, height: length, "aria-hidden": "true" }),
  );
  const words = radios(byId("words"), "word", tokens, (query) => set({ query }));
  words.forEach(({ label }, i) => {
    label.addEventListener("pointerenter", () => look(i));
    label.addEventListener("pointerleave", () => look(null));
  });

  const grid = byId("grid");
  const gridRows = [];
  const cells = (() => {
    const head = make("tr");
    head.append(make("th", { scope: "col", "aria-label": "token that looks" }));
    head.append(...tokens.map((token) => make("th", { scope: "col" }, token)));
    const thead = make("thead");
    thead.append(head);
    const body = make("tbody");
    const all = numbers.map((i) => {
      const line = make("tr");
      line.append(make("th", { scope: "row" }, tokens[i]));
      const some = numbers.map((j) => make("td", { role: "gridcell", tabindex: "-1", "data-at": `${i},${j}` }));
      line.append(...some);
      line.addEventListener("pointerenter", () => look(i));
      line.addEventListener("pointerleave", () => look(null));
      body.append(line);
      gridRows.push(line);
      return some;
    });
    grid.append(thead, body);
    return all;
  })();
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

  const steps = [...Array(6)].map(() => make("li"));
  byId("steps").append(...steps);
  const vectorRows = table(byId("vectors"), ["d", "q", "k", "q k", "v", "w v", "out"], [...Array(width).keys()].map(String));
  const rowCells = table(byId("row"), ["it looks at", "score", "exp(s \u2212 max)", "weight", ""], tokens);
  const scoreInputs = rowCells.map((line, j) => {
    const input = make("input", { type: "number", step: "any" });
    input.addEventListener("input", () => retype(j, input));
    line[0].append(input);
    line[3].className = "meter";
    line[3].append(make("i"));
    return input;
  });

  // --- drawing ---

  /** Shades the tokens by where a row looks; null: the chosen one. */
  function look(i) {
    preview = i;
    const row = preview === null ? state.query : preview;
    const { weights } = arithmetic.row(shown(), rules(), row);
    words.forEach(({ label, span }, j) => {
      span.style.setProperty("--weight", weights[j]);
      label.classList.toggle("looks", j === row);
    });
    gridRows.forEach((line, j) => line.classList.toggle("looks", j === row));
  }

  function drawHeads() {
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--tile").trim();
    heads.forEach(({ input, drawn }, number) => {
      input.checked = number === state.head;
      const context = drawn.getContext("2d");
      context.clearRect(0, 0, length, length);
      context.fillStyle = ink;
      const all = arithmetic.weights(headOf(state.layer, number), rules(number === state.head ? state.retyped : new Map()));
      all.forEach((row, i) => row.forEach((weight, j) => {
        context.globalAlpha = weight;
        context.fillRect(j, i, 1, 1);
      }));
    });
  }

  function drawGrid() {
    arithmetic.weights(shown(), rules()).forEach((row, i) => row.forEach((weight, j) => {
      const cell = cells[i][j];
      const open = arithmetic.allowed(rules(), i, j);
      const chosen = i === state.query && j === state.key;
      cell.textContent = open ? percent(weight) : "";
      cell.setAttribute("aria-label", open ? `${(100 * weight).toFixed(1)} percent` : "hidden");
      cell.setAttribute("aria-selected", chosen);
      cell.classList.toggle("hidden", !open);
      cell.tabIndex = chosen ? 0 : -1;
      cell.style.setProperty("--weight", weight);
    }));
  }

  function drawCell(head, row) {
    const { query: i, key: j } = state;
    const { product, scaled, capped, given, masked } = row.scores[j];
    const weight = row.weights[j];
    byId("cell-title").textContent = `One weight: ${word(i)} looks at ${word(j)}`;
    const [q, k, v] = [[head.query, i], [head.key, j], [head.value, j]].map(([x, n]) => [...x.subarray(n * width, (n + 1) * width)]);
    const products = q.map((x, d) => x * k[d]);
    bars(byId("products"), products, Math.max(...products.map(Math.abs)));
    vectorRows.forEach((line, d) => fill(line, [q[d], k[d], products[d], v[d], weight * v[d], row.out[d]].map(say)));
    const hidden = masked === -Infinity;
    fill(steps, [
      `q . k = ${say(product)}, the sum of the ${width} products above`,
      `times the scale ${say(state.scale)}: ${say(scaled)}`,
      state.cap === null ? "no soft cap" : `bent by the cap, ${say(state.cap)} tanh(s / ${say(state.cap)}): ${say(capped)}`,
      (given === capped ? "" : `retyped as ${say(given)}; `) + (hidden ? `hidden by the mask: ${say(masked)}` : `seen: the score is ${say(masked)}`),
      `softmax: exp(s \u2212 ${say(row.maximum)}) = ${say(row.terms[j])}, over the sum ${say(row.sum)}${state.sink === null ? "" : ", the sink in it"}: weight ${say(weight)}`,
      `sum over values: this token brings ${say(weight)} v to the output, ${length} such terms make it; the numbers are below`,
    ]);
  }

  function drawRow(row) {
    byId("row-title").textContent = `What if: the row of ${word(state.query)}`;
    scoreInputs.forEach((input, j) => {
      const line = rowCells[j];
      const hidden = row.scores[j].masked === -Infinity;
      const retyped = state.retyped.has(`${state.query},${j}`);
      input.disabled = hidden;
      input.setAttribute("aria-label", `score of ${tokens[j]}${hidden ? ", hidden" : ""}`);
      if (document.activeElement !== input) {
        input.value = retyped ? row.scores[j].given : row.scores[j].given.toFixed(4);
        input.removeAttribute("aria-invalid");
      }
      line[1].textContent = say(row.terms[j]);
      line[2].textContent = say(row.weights[j]);
      line[3].firstChild.style.setProperty("--weight", row.weights[j]);
      const tr = input.closest("tr");
      tr.classList.toggle("chosen", j === state.key);
      tr.classList.toggle("retyped", retyped);
    });
  }

  function drawOnline(head, row) {
    const all = arithmetic.online(head, rules(), state.query, state.size);
    const slider = byId("step");
    slider.max = all.length - 1;
    state.step = Math.min(state.step, all.length - 1);
    slider.value = state.step;
    const now = all[state.step];
    const off = Math.max(...row.out.map((x, d) => Math.abs(x - now.average[d])));
    const names = all.map((_, n) => (n === 0 ? "before" : `tile ${n}`));
    const columns = ["", "keys", "its largest score", "maximum", "factor", "sum"];
    table(byId("online"), columns, names.slice(0, state.step + 1)).forEach((line, n) => {
      const { from, to, top, maximum, factor, sum } = all[n];
      fill(line, n === 0 ? ["none", "", say(maximum), "", say(sum)] : [`${from} to ${to - 1}`, ...[top, maximum, factor, sum].map(say)]);
    });
    const done = state.step === all.length - 1;
    const text = `Average after ${state.step} of ${all.length - 1} tiles: ${done ? "the output; no number differs by more than" : "its largest difference to the output is"} ${say(off)}`;
    byId("average-title").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    bars(byId("average"), now.average, Math.max(...row.out.map(Math.abs), ...now.average.map(Math.abs)));
  }

  function draw() {
    const head = shown();
    const row = arithmetic.row(head, rules(), state.query);
    for (const name of ["layer", "mask", "size"]) byId(name).value = state[name];
    for (const name of ["window", "scale", "cap", "sink"]) {
      if (document.activeElement === byId(name)) continue;
      byId(name).value = state[name] === null ? "" : state[name];
      byId(name).removeAttribute("aria-invalid");
    }
    words[state.query].input.checked = true;
    drawHeads();
    drawGrid();
    drawCell(head, row);
    drawRow(row);
    drawOnline(head, row);
    look(preview);
    const weight = row.weights[state.key];
    announce(`Layer ${state.layer}, head ${state.head}: ${word(state.query)} gives ${word(state.key)} ${(100 * weight).toFixed(1)} percent.`);
  }

  // --- changing ---

  const whole = (low, high) => (x) => Number.isInteger(x) && low <= x && x < high;
  const places = new Set(numbers.flatMap((i) => numbers.map((j) => `${i},${j}`)));
  const orNull = (fits) => (x) => x === null || fits(x);
  /** What each entry of the state may be, and how a refusal says so. */
  const entries = {
    layer: [(x) => layers.includes(x), `one of ${layers.join(", ")}`],
    head: [whole(0, data.heads), `a whole number from 0 to ${data.heads - 1}`],
    mask: [(x) => x === "none" || x === "causal", "none or causal"],
    window: [orNull(whole(0, Infinity)), "a whole number from 0, or nothing"],
    scale: [Number.isFinite, "a number"],
    cap: [orNull((x) => Number.isFinite(x) && x > 0), "a number above 0, or nothing"],
    sink: [orNull(Number.isFinite), "a number, or nothing"],
    retyped: [
      (x) => x instanceof Map && [...x].every(([at, score]) => places.has(at) && Number.isFinite(score)),
      'a Map from "query,key" to a number',
    ],
    query: [whole(0, length), `a whole number from 0 to ${length - 1}`],
    key: [whole(0, length), `a whole number from 0 to ${length - 1}`],
    size: [whole(1, length + 1), `a whole number from 1 to ${length}`],
    step: [whole(0, length + 1), `a whole number from 0 to ${length}`],
  };

  /** Changes entries of the state and draws; a RangeError for one that it cannot have. Another head has no scores retyped. */
  function set(changes) {
    for (const [name, value] of Object.entries(changes)) {
      if (!(name in entries)) throw new RangeError(`polyattn.set: expected ${Object.keys(entries).join(", ")}, got ${name}`);
      const [fits, words] = entries[name];
      if (!fits(value)) throw new RangeError(`${name}: expected ${words}, got ${value}`);
    }
    const moved = ["layer", "head"].some((name) => name in changes && changes[name] !== state[name]);
    state = { ...state, ...(moved ? { retyped: new Map() } : {}), ...changes };
    draw();
  }

  function choose(query, key) {
    const focused = document.activeElement.closest("#grid") !== null;
    set({ query, key });
    if (focused) cells[query][key].focus();
  }

  function reset() {
    state = { ...state, ...opening() };
    draw();
  }

  /** Takes what is typed, or marks it and says what is expected. */
  function typed(input, take) {
    try {
      take(input.validity.badInput ? NaN : input.value === "" ? null : input.valueAsNumber);
      input.removeAttribute("aria-invalid");
    } catch (refusal) {
      if (!(refusal instanceof RangeError)) throw refusal;
      input.setAttribute("aria-invalid", "true");
      announce(refusal.message, true);
    }
  }

  function retype(j, input) {
    typed(input, (x) => {
      const retyped = new Map(state.retyped);
      if (x === null) retyped.delete(`${state.query},${j}`);
      else if (!Number.isFinite(x)) throw new RangeError("score: expected a number, or nothing");
      else retyped.set(`${state.query},${j}`, x);
      set({ retyped, key: j });
    });
  }

  for (const name of ["layer", "size"]) byId(name).addEventListener("change", (event) => set({ [name]: Number(event.target.value) }));
  byId("mask").addEventListener("change", (event) => set({ mask: event.target.value }));
  for (const name of ["window", "cap", "sink"]) byId(name).addEventListener("input", (event) => typed(event.target, (x) => set({ [name]: x })));
  byId("scale").addEventListener("input", (event) => typed(event.target, (x) => set({ scale: x === null ? data.scale : x })));
  for (const input of document.querySelectorAll('input[type="number"]')) input.addEventListener("blur", () => setTimeout(draw));
  byId("step").addEventListener("input", (event) => set({ step: Number(event.target.value) }));
  byId("reset").addEventListener("click", reset);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawHeads);

  /** For programs, and for tests: what is shown, as plain numbers, and ways to change it. */
  window.polyattn = Object.freeze({
    state: () => ({ ...state, retyped: [...state.retyped] }),
    set,
    reset,
    weights: () => arithmetic.weights(shown(), rules()),
    scores: () => numbers.map((i) => arithmetic.row(shown(), rules(), i).scores.map((s) => s.masked)),
    output: () => numbers.map((i) => arithmetic.row(shown(), rules(), i).out),
    online: () => arithmetic.online(shown(), rules(), state.query, state.size),
  });

  /** At first the largest weight that one word of the text gives to another is chosen. */
  const own = numbers.slice(data.first, data.last);
  const all = arithmetic.weights(shown(), rules());
  const pairs = own.flatMap((i) => own.filter((j) => j !== i).map((j) => [i, j]));
  const [query, key] = pairs.reduce((a, b) => (all[b[0]][b[1]] > all[a[0]][a[1]] ? b : a), pairs[0] || [length - 1, 0]);
  set({ query, key });
})();
