// What the file holds, as heads: {query, key, value, length, width}, and with rotary positions `before`, the query and
// key that were turned to them.
const holding = (data) => {
  "use strict";
  const { width } = data;
  const length = data.tokens.length;
  const group = data.heads / data.kvHeads;
  const angles = data.rotary === null ? null : arithmetic.decode(data.rotary.angles);
  const kept = new Map();

  function once(name, make) {
    if (!kept.has(name)) kept.set(name, make());
    return kept.get(name);
  }

  function stored(layer) {
    const one = data.layers.find(({ number }) => number === layer);
    return once(`${layer}`, () => ["query", "key", "value"].map((name) => arithmetic.decode(one[name])));
  }

  /** Query head `number` of a layer, its pairs turned as `pairing` says; without rotary positions nothing is. */
  function headOf(layer, number, pairing) {
    const one = length * width;
    const part = (all, i) => all.subarray(i * one, (i + 1) * one);
    const shared = Math.floor(number / group); // some heads of queries read one of keys and values
    const [query, key, value] = stored(layer);
    const own = { query: part(query, number), key: part(key, shared), value: part(value, shared), length, width };
    if (angles === null) return own;
    const turned = once(`${layer} ${pairing}`, () => [query, key].map((x) => arithmetic.turn(x, angles, width, pairing)));
    return { ...own, query: part(turned[0], number), key: part(turned[1], shared), before: { query: own.query, key: own.key } };
  }

  return Object.freeze({ headOf, layers: data.layers.map(({ number }) => number) });
};
