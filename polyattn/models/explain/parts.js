// Parts of a page that know nothing of attention: elements, numbers as words, bars, tables, choices.
const parts = (() => {
  "use strict";
  const byId = (id) => document.getElementById(id);

  function make(tag, attributes = {}, text = null) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== null) made.textContent = text;
    return made;
  }

  function say(x) {
    if (x === -Infinity) return "\u2212\u221e";
    const size = Math.abs(x);
    const text = size !== 0 && (size < 1e-4 || size >= 1e6) ? x.toExponential(3) : x.toFixed(size < 10 ? 4 : 2);
    return text.replace("-", "\u2212");
  }
  const percent = (x) => (x >= 0.005 ? String(Math.round(100 * x)) : "");
  const isolated = (text) => `\u2068${text}\u2069`; // no token turns the sentence around it

  function announce(text, bad = false) {
    const said = byId("said");
    said.classList.toggle("bad", bad);
    if (said.textContent !== text) said.textContent = text;
  }

  function bars(place, values, largest) {
    while (place.children.length < values.length) place.append(make("i"));
    values.forEach((x, d) => {
      const { style } = place.children[d];
      style.setProperty("--size", largest === 0 ? 0 : Math.min(Math.abs(x) / largest, 1));
      style.setProperty("--sign", x < 0 ? -1 : 1);
    });
  }

  function fill(cells, texts) {
    texts.forEach((text, i) => { cells[i].textContent = text; });
  }

  /** A table with these columns and a row for each name; gives the cells of each row. */
  function table(place, columns, names) {
    const head = make("tr");
    columns.forEach((name) => head.append(make("th", { scope: "col" }, name)));
    const body = make("tbody");
    const rows = names.map((name) => {
      const line = make("tr");
      line.append(make("th", { scope: "row" }, name));
      const cells = columns.slice(1).map(() => make("td"));
      line.append(...cells);
      body.append(line);
      return cells;
    });
    const thead = make("thead");
    thead.append(head);
    place.replaceChildren(thead, body);
    return rows;
  }

  /** A radio button for each label, with a picture over it; `change` is told its number. */
  function radios(place, name, labels, change, picture = () => null) {
    return labels.map((text, i) => {
      const label = make("label");
      const input = make("input", { type: "radio", name, value: i });
      const span = make("span", {}, text);
      const drawn = picture(i);
      if (drawn) span.prepend(drawn);
      input.addEventListener("change", () => change(i));
      label.append(input, span);
      place.append(label);
      return { label, input, span, drawn };
    });
  }

  return Object.freeze({ byId, make, say, percent, isolated, announce, bars, fill, table, radios });
})();
