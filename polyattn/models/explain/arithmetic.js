// Attention of one head, computed in float64 from the float32 numbers of the file. Nothing here knows of the page.
//
// head:  {query, key, value, length, width}, the first three of length x width numbers
// rules: {causal, window, scale, cap, sink, retyped}; window, cap and sink are null where there is none, retyped is a
//        Map from "query,key" to a score in the place of the computed one
const arithmetic = (() => {
  "use strict";

  /** The float32 numbers, little endian, that a text in base64 holds. */
  function decode(text) {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Float64Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
  }

  /**
   * Pairs of entries (a, b) of vectors as (a cos t - b sin t, a sin t + b cos t): x holds heads of as many vectors as there
   * are tokens, angles a t for each pair of each token. pairing: entries 2i and 2i + 1 are a pair ("interleaved"), or i and
   * i + width / 2 ("half"), or nothing is turned ("none").
   */
  function turn(x, angles, width, pairing) {
    if (pairing === "none") return x;
    const half = width / 2;
    const turned = new Float64Array(x.length);
    for (let from = 0; from < x.length; from += width) {
      const own = (from / 2) % angles.length; // of the token of this vector
      for (let i = 0; i < half; i++) {
        const [first, second] = pairing === "half" ? [from + i, from + i + half] : [from + 2 * i, from + 2 * i + 1];
        const [cos, sin] = [Math.cos(angles[own + i]), Math.sin(angles[own + i])];
        turned[first] = x[first] * cos - x[second] * sin;
        turned[second] = x[first] * sin + x[second] * cos;
      }
    }
    return turned;
  }

  /** May query i look at key j? A window reaches that many tokens to either side. */
  function allowed(rules, i, j) {
    return !(rules.causal && j > i) && (rules.window === null || Math.abs(i - j) <= rules.window);
  }

  /** One score on its way: q . k, times the scale, bent by the cap, retyped, masked. */
  function score(head, rules, i, j) {
    let product = 0;
    for (let d = 0; d < head.width; d++) {
      product += head.query[i * head.width + d] * head.key[j * head.width + d];
    }
    const scaled = product * rules.scale;
    const capped = rules.cap === null ? scaled : rules.cap * Math.tanh(scaled / rules.cap);
    const retyped = rules.retyped.get(`${i},${j}`);
    const given = retyped === undefined ? capped : retyped;
    return { product, scaled, capped, given, masked: allowed(rules, i, j) ? given : -Infinity };
  }

  /** exp(s - maximum) / sum of these; a sink is in the maximum and in the sum. A row that sees nothing has weights 0. */
  function softmax(scores, sink) {
    const maximum = Math.max(...scores, sink === null ? -Infinity : sink);
    const terms = scores.map((s) => (s === -Infinity ? 0 : Math.exp(s - maximum)));
    let sum = sink === null ? 0 : Math.exp(sink - maximum);
    for (const term of terms) sum += term;
    return { maximum, terms, sum, weights: terms.map((term) => (sum === 0 ? 0 : term / sum)) };
  }

  /** sum over j of factors[j] value[j], a list of `width` numbers. */
  function average(head, factors) {
    const total = new Array(head.width).fill(0);
    factors.forEach((factor, j) => {
      for (let d = 0; d < head.width; d++) total[d] += factor * head.value[j * head.width + d];
    });
    return total;
  }

  /** Everything about query i. */
  function row(head, rules, i) {
    const scores = Array.from({ length: head.length }, (_, j) => score(head, rules, i, j));
    const found = softmax(scores.map((s) => s.masked), rules.sink);
    return { scores, ...found, out: average(head, found.weights) };
  }

  /** The weights of all queries, a list for each. */
  function weights(head, rules) {
    return Array.from({ length: head.length }, (_, i) => row(head, rules, i).weights);
  }

  /**
   * The same row tile by tile, as a kernel does that never has it whole: maximum, sum and average of the keys met so
   * far; what was summed is multiplied by `factor` where a tile raises the maximum. The first entry is before all tiles.
   */
  function online(head, rules, i, size) {
    const scores = Array.from({ length: head.length }, (_, j) => score(head, rules, i, j).masked);
    let maximum = rules.sink === null ? -Infinity : rules.sink;
    let sum = rules.sink === null ? 0 : 1;
    let total = new Array(head.width).fill(0);
    const steps = [{ from: 0, to: 0, top: -Infinity, maximum, factor: 1, sum, average: total }];
    for (let from = 0; from < head.length; from += size) {
      const to = Math.min(from + size, head.length);
      const top = Math.max(...scores.slice(from, to));
      const raised = Math.max(maximum, top);
      const factor = raised === maximum ? 1 : Math.exp(maximum - raised);
      const terms = scores.map((s, j) => (from <= j && j < to && s !== -Infinity ? Math.exp(s - raised) : 0));
      const added = average(head, terms);
      sum = sum * factor + terms.reduce((a, b) => a + b, 0);
      total = total.map((x, d) => x * factor + added[d]);
      maximum = raised;
      const divisor = sum;
      steps.push({ from, to, top, maximum, factor, sum, average: total.map((x) => (divisor === 0 ? 0 : x / divisor)) });
    }
    return steps;
  }

  return Object.freeze({ decode, turn, allowed, score, softmax, row, weights, online });
})();
