// The page as a state makes it. `built` is what stands on it, `held` the numbers of the file.
const drawing = (data, held, built) => {
  "use strict";
  const { tokens, width } = data;
  const length = tokens.length;
  const { byId, say, percent, isolated, announce, bars, fill, table } = parts;
  const word = (i) => `\u201c${isolated(tokens[i].trim() || "space")}\u201d`;

  const rules = (state, retyped = state.retyped) => (
    { causal: state.mask === "causal", window: state.window, scale: state.scale, cap: state.cap, sink: state.sink, retyped }
  );
  const shown = (state) => held.headOf(state.layer, state.head, state.pairing);

  /** Shades the tokens by where row i looks; null: the chosen one. */
  function look(state, i) {
    const row = i === null ? state.query : i;
    const { weights } = arithmetic.row(shown(state), rules(state), row);
    built.words.forEach(({ label, span }, j) => {
      span.style.setProperty("--weight", weights[j]);
      label.classList.toggle("looks", j === row);
    });
    built.rows.forEach((line, j) => line.classList.toggle("looks", j === row));
  }

  function heads(state) {
    const ink = getComputedStyle(document.documentElement).getPropertyValue("--tile").trim();
    built.heads.forEach(({ input, drawn }, number) => {
      input.checked = number === state.head;
      const context = drawn.getContext("2d");
      context.clearRect(0, 0, length, length);
      context.fillStyle = ink;
      const own = rules(state, number === state.head ? state.retyped : new Map());
      arithmetic.weights(held.headOf(state.layer, number, state.pairing), own).forEach((row, i) => row.forEach((weight, j) => {
        context.globalAlpha = weight;
        context.fillRect(j, i, 1, 1);
      }));
    });
  }

  function grid(state) {
    arithmetic.weights(shown(state), rules(state)).forEach((row, i) => row.forEach((weight, j) => {
      const cell = built.cells[i][j];
      const open = arithmetic.allowed(rules(state), i, j);
      const chosen = i === state.query && j === state.key;
      cell.textContent = open ? percent(weight) : "";
      cell.setAttribute("aria-label", open ? `${(100 * weight).toFixed(1)} percent` : "hidden");
      cell.setAttribute("aria-selected", chosen);
      cell.classList.toggle("hidden", !open);
      cell.tabIndex = chosen ? 0 : -1;
      cell.style.setProperty("--weight", weight);
    }));
  }

  const PAIRS = {
    interleaved: "each pair of entries, 2i and 2i + 1, is turned by an angle of its own",
    half: `each pair of entries, i and i + ${width / 2}, is turned by an angle of its own`,
    none: "the switch above says that nothing is turned",
  };

  function cell(state, head, row) {
    const { query: i, key: j } = state;
    const { product, scaled, capped, given, masked } = row.scores[j];
    const weight = row.weights[j];
    byId("cell-title").textContent = `One weight: ${word(i)} looks at ${word(j)}`;
    const vector = (x, n) => [...x.subarray(n * width, (n + 1) * width)];
    const [q, k, v] = [vector(head.query, i), vector(head.key, j), vector(head.value, j)];
    const products = q.map((x, d) => x * k[d]);
    bars(byId("products"), products, Math.max(...products.map(Math.abs)));
    const columns = [q, k];
    const first = [];
    if (head.before) {
      const [before, beside] = [vector(head.before.query, i), vector(head.before.key, j)];
      columns.splice(0, 2, before, q, beside, k);
      const most = Math.max(...columns.flat().map(Math.abs));
      ["q-before", "q-after", "k-before", "k-after"].forEach((name, n) => bars(byId(name), columns[n], most));
      first.push(`rotary positions: q stands at ${i}, k at ${j}; ${PAIRS[state.pairing]}`);
    }
    const rest = [products, v, v.map((x) => weight * x), row.out];
    built.vectors.forEach((line, d) => fill(line, [...columns, ...rest].map((x) => say(x[d]))));
    const hidden = masked === -Infinity;
    fill(built.steps, [
      ...first,
      `q . k = ${say(product)}, the sum of ${width} products`,
      `times the scale ${say(state.scale)}: ${say(scaled)}`,
      state.cap === null ? "no soft cap" : `bent by the cap, ${say(state.cap)} tanh(s / ${say(state.cap)}): ${say(capped)}`,
      (given === capped ? "" : `retyped as ${say(given)}; `) + (hidden ? `hidden by the mask: ${say(masked)}` : `seen: the score is ${say(masked)}`),
      `softmax: exp(s \u2212 ${say(row.maximum)}) = ${say(row.terms[j])}, over the sum ${say(row.sum)}${state.sink === null ? "" : ", the sink in it"}: weight ${say(weight)}`,
      `sum over values: this token brings ${say(weight)} v to the output, ${length} such terms make it; the numbers are below`,
    ]);
  }

  function line(state, row) {
    byId("row-title").textContent = `What if: the row of ${word(state.query)}`;
    built.scores.forEach((input, j) => {
      const own = built.row[j];
      const hidden = row.scores[j].masked === -Infinity;
      const retyped = state.retyped.has(`${state.query},${j}`);
      input.disabled = hidden;
      input.setAttribute("aria-label", `score of ${tokens[j]}${hidden ? ", hidden" : ""}`);
      if (document.activeElement !== input) {
        input.value = retyped ? row.scores[j].given : row.scores[j].given.toFixed(4);
        input.removeAttribute("aria-invalid");
      }
      own[1].textContent = say(row.terms[j]);
      own[2].textContent = say(row.weights[j]);
      own[3].firstChild.style.setProperty("--weight", row.weights[j]);
      const tr = input.closest("tr");
      tr.classList.toggle("chosen", j === state.key);
      tr.classList.toggle("retyped", retyped);
    });
  }

  function online(state, head, row) {
    const all = arithmetic.online(head, rules(state), state.query, state.size);
    const last = all.length - 1;
    const step = Math.min(state.step, last);
    const slider = byId("step");
    slider.max = last;
    slider.value = step;
    const now = all[step];
    const off = Math.max(...row.out.map((x, d) => Math.abs(x - now.average[d])));
    const names = all.map((_, n) => (n === 0 ? "before" : `tile ${n}`));
    const columns = ["after", "keys", "its largest", "maximum", "factor", "sum"];
    table(byId("online"), columns, names.slice(0, step + 1)).forEach((cells, n) => {
      const { from, to, top, maximum, factor, sum } = all[n];
      fill(cells, n === 0 ? ["none", "", say(maximum), "", say(sum)] : [`${from} to ${to - 1}`, ...[top, maximum, factor, sum].map(say)]);
    });
    const text = `Average after ${step} of ${last} tiles: ${step === last ? "the output; no number differs by more than" : "its largest difference to the output is"} ${say(off)}`;
    byId("average-title").textContent = text;
    slider.setAttribute("aria-valuetext", text);
    bars(byId("average"), now.average, Math.max(...row.out.map(Math.abs), ...now.average.map(Math.abs)));
  }

  function draw(state, preview) {
    const head = shown(state);
    const row = arithmetic.row(head, rules(state), state.query);
    for (const name of ["layer", "mask", "size", ...(data.rotary === null ? [] : ["pairing"])]) byId(name).value = state[name];
    for (const name of ["window", "scale", "cap", "sink"]) {
      if (document.activeElement === byId(name)) continue;
      byId(name).value = state[name] === null ? "" : state[name];
      byId(name).removeAttribute("aria-invalid");
    }
    built.words[state.query].input.checked = true;
    heads(state);
    grid(state);
    cell(state, head, row);
    line(state, row);
    online(state, head, row);
    look(state, preview);
    const weight = row.weights[state.key];
    announce(`Layer ${state.layer}, head ${state.head}: ${word(state.query)} gives ${word(state.key)} ${(100 * weight).toFixed(1)} percent.`);
  }

  return Object.freeze({ draw, heads, look, rules, shown });
};
