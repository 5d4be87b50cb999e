// The page: one state, one function that draws it, and what changes it. Texts go in as text, never as markup.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const length = data.tokens.length;
  const { byId, announce } = parts;
  const numbers = [...Array(length).keys()];

  /** What is computed as the page opens: what the model computes. */
  const opening = () => ({
    mask: data.causal ? "causal" : "none", window: null, scale: data.scale, cap: null, sink: null, retyped: new Map(),
    size: Math.min(4, length), step: 1, ...(data.rotary === null ? {} : { pairing: data.rotary.pairing }),
  });
  let state = { ...opening(), layer: data.layer, head: data.head, query: length - 1, key: 0 };
  let preview = null; // the row that is pointed at

  const held = holding(data);
  const built = building(data, held.layers, { choose, look, retype, set });
  const drawn = drawing(data, held, built);
  const rules = () => drawn.rules(state);
  const shown = () => drawn.shown(state);

  function draw() {
    drawn.draw(state, preview);
  }

  function look(i) {
    preview = i;
    drawn.look(state, i);
  }

  const whole = (low, high) => (x) => Number.isInteger(x) && low <= x && x < high;
  const places = new Set(numbers.flatMap((i) => numbers.map((j) => `${i},${j}`)));
  const orNull = (fits) => (x) => x === null || fits(x);
  const among = (...all) => (x) => all.includes(x);
  /** What each entry of the state may be, and how a refusal says so. */
  const entries = {
    layer: [among(...held.layers), `one of ${held.layers.join(", ")}`],
    head: [whole(0, data.heads), `a whole number from 0 to ${data.heads - 1}`],
    mask: [among("none", "causal"), "none or causal"],
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
  if (data.rotary !== null) entries.pairing = [among("interleaved", "half", "none"), "interleaved, half or none"];

  /** Changes entries of the state and draws; a RangeError for one that it cannot have. Another head has no scores retyped. */
  function set(changes) {
    for (const [name, value] of Object.entries(changes)) {
      if (!Object.hasOwn(entries, name)) throw new RangeError(`polyattn.set: expected ${Object.keys(entries).join(", ")}, got ${name}`);
      const [fits, words] = entries[name];
      if (!fits(value)) throw new RangeError(`${name}: expected ${words}, got ${value}`);
    }
    const moved = ["layer", "head"].some((name) => name in changes && changes[name] !== state[name]);
    state = { ...state, ...(moved ? { retyped: new Map() } : {}), ...changes };
    state.step = Math.min(state.step, Math.ceil(length / state.size));
    draw();
  }

  function choose(query, key) {
    const focused = document.activeElement.closest("#grid") !== null;
    set({ query, key });
    if (focused) built.cells[query][key].focus();
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
  for (const name of data.rotary === null ? ["mask"] : ["mask", "pairing"]) byId(name).addEventListener("change", (event) => set({ [name]: event.target.value }));
  for (const name of ["window", "cap", "sink"]) byId(name).addEventListener("input", (event) => typed(event.target, (x) => set({ [name]: x })));
  byId("scale").addEventListener("input", (event) => typed(event.target, (x) => set({ scale: x === null ? data.scale : x })));
  for (const input of document.querySelectorAll('input[type="number"]')) input.addEventListener("blur", () => setTimeout(draw));
  byId("step").addEventListener("input", (event) => set({ step: Number(event.target.value) }));
  byId("reset").addEventListener("click", reset);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.heads(state));

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
