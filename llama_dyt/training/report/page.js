"use strict";
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const many = runs.length > 1, NS = "http://www.w3.org/2000/svg";
  const WORDS = {
    loss: "Loss (nats a token)", lr: "Learning rate", grad_norm: "Norm of the gradient", tokens_per_second: "Tokens a second",
    tflops_per_device: "TFLOPS a device", hardware_tflops_per_device: "TFLOPS a device, recomputation counted", mfu: "MFU",
    max_memory_mb: "Peak memory (MB)", data_wait_fraction: "Share of time waiting for data", loss_scale: "Loss scale (fp16)",
    skipped_steps: "Steps skipped", bad_lines: "Unusable lines", tokens_seen: "Tokens seen", alpha: "Alpha", saturation: "Saturation",
    sources: "Shares of the data (tokens)", validation_perplexity: "Perplexity, validation", validation_loss: "Loss, validation",
    validation_seconds: "Seconds a validation", validation_tokens: "Tokens a validation",
    expert_load: "Load of experts, as multiples of an even share", expert_load_range: "Load of the most and the least chosen expert",
    router_entropy: "Entropy of the routers (nats)",
    router_entropy_by_layer: "Entropy of each layer's router (nats)", router_balance_loss: "Balancing loss of the routers", router_z: "Routers' logsumexp², mean",
    router_dropped: "Choices dropped, beyond an expert's capacity", router_dropped_share: "Share of choices dropped" };
  const HOMES = { validation_loss: "loss", expert_load_most: "expert_load_range", expert_load_least: "expert_load_range" }; // one picture of several kinds
  const OWN = { expert_load_most: "most", expert_load_least: "least" };
  const RANGES = { expert_load: [0, 2] }; // of a map's colours; what is beyond has the last one
  const SECTIONS = [
    ["Learning", ["loss", "validation_loss", "validation_perplexity", "lr", "grad_norm", "samples_right"]],
    ["Norms", ["alpha", "saturation"]],
    ["Experts", ["expert_load", "expert_load_range", "router_entropy", "router_entropy_by_layer", "router_balance_loss", "router_z", "router_dropped_share", "router_dropped"]],
    ["Speed and memory", ["tokens_per_second", "mfu", "tflops_per_device", "hardware_tflops_per_device", "max_memory_mb", "data_wait_fraction"]],
    ["Data", ["sources", "tokens_seen", "bad_lines"]],
    ["Other figures", []]];
  const BAD = /fail|fault|skip|spike|slow|stop|nonfinite|error|rolled/i;
  const state = { smoothing: 0.6, log: false, logSteps: false, from: 0 };
  const drawn = [];

  const make = (tag, attributes, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    node.append(...children.filter((one) => one !== null && one !== undefined));
    return node;
  };
  const shape = (tag, attributes, text) => {
    const node = document.createElementNS(NS, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const show = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (Number.isInteger(value) && size < 1e15) return value.toLocaleString("en");
    if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(3);
    return value.toLocaleString("en", { maximumSignificantDigits: 5 });
  };
  const short = (value) => {
    const size = Math.abs(value);
    if (size >= 1e12) return +(value / 1e12).toPrecision(3) + "T";
    if (size >= 1e9) return +(value / 1e9).toPrecision(3) + "G";
    if (size >= 1e6) return +(value / 1e6).toPrecision(3) + "M";
    if (size >= 1e4) return +(value / 1e3).toPrecision(3) + "k";
    if (size !== 0 && size < 1e-3) return value.toExponential(1).replace("e-", "e−");
    return String(+value.toPrecision(4));
  };
  const colour = (number) => `var(--c${number % 8})`;

  // ---- what becomes a picture ------------------------------------------------------------------------------------
  const pictures = new Map(); // kind → [{label, steps, values, colour, dashed, points}]
  const constant = [];
  runs.forEach((run, place) => {
    const counts = {};
    for (const [name, [steps, values]] of Object.entries(run.lines)) {
      const cut = name.indexOf("/"), kind = cut < 0 ? name : name.slice(0, cut), own = cut < 0 ? OWN[name] || "" : name.slice(cut + 1);
      const same = values.every((value) => value === values[0]);
      if (same && !kind.endsWith("loss") && !HOMES[kind] && steps.length > 1 && !(many && Object.keys(WORDS).indexOf(kind) < 7) && kind !== "alpha" && kind !== "saturation" && kind !== "sources") {
        constant.push([many ? `${run.name}: ${name}` : name, show(values[0])]);
        continue;
      }
      const home = HOMES[kind] || kind;
      counts[home] = counts[home] || 0;
      const validation = kind.startsWith("validation");
      const label = [many ? run.name : "", validation ? `validation ${own}` : own || (home === "loss" ? "training" : "")].filter(Boolean).join(" · ");
      const shade = many ? place : counts[home]++;
      if (!pictures.has(home)) pictures.set(home, []);
      const seconds = many ? Object.keys(run.lines).filter((one) => one.startsWith(kind + "/")).indexOf(name) : 0;
      pictures.get(home).push({ label, steps, values, colour: colour(many ? place : shade), dashed: validation || seconds > 0 || own === "least", points: validation, last: steps[steps.length - 1] });
    }
  });

  // ---- a picture of lines ----------------------------------------------------------------------------------------
  const H = 280, L = 56, R = 14, T = 10, B = 26;
  const ticksOf = (low, high, log, count) => {
    if (log) {
      const from = Math.floor(Math.log10(low)), to = Math.ceil(Math.log10(high)), ticks = [];
      for (let power = from; power <= to; power++) for (const part of to - from < 2 ? [1, 2, 3, 5, 7] : to - from < 4 ? [1, 2, 5] : [1]) {
        const tick = part * 10 ** power;
        if (tick >= low * 0.9999 && tick <= high * 1.0001) ticks.push(tick);
      }
      if (ticks.length >= 2) return ticks.length > 10 ? ticks.filter((_, i) => i % Math.ceil(ticks.length / 8) === 0) : ticks;
    }
    const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough || 1));
    const width = [1, 2, 2.5, 5, 10].map((one) => one * power).find((one) => one >= rough) || power;
    const ticks = [];
    for (let tick = Math.ceil(low / width) * width; tick <= high + width * 1e-9; tick += width) ticks.push(Math.abs(tick) < width * 1e-9 ? 0 : tick);
    return ticks;
  };
  const smooth = (values, steps, factor) => {
    if (!factor) return values;
    let mean = 0, weight = 0;
    return values.map((value) => { mean = factor * mean + (1 - factor) * value; weight = factor * weight + 1 - factor; return mean / weight; });
  };
  const linesFigure = (kind, lines) => {
    const alone = lines.length === 1 && lines[0].label && !many ? ` · ${lines[0].label}` : "";
    const title = (WORDS[kind] || kind.replaceAll("_", " ")) + alone;
    const svg = shape("svg", { role: "img", tabindex: "0" });
    let W = 640;
    const says = make("p", { class: "says", "aria-live": "polite" });
    const legend = make("ul", { class: "legend" });
    if (lines.length > 1) lines.forEach((line) => legend.append(make("li", {}, make("i", { style: `border-color:${line.colour}`, class: line.dashed ? "dashed" : "" }), line.label)));
    const table = make("div", { class: "scrolls" });
    const details = make("details", {}, make("summary", {}, "Values as a table"), table);
    details.addEventListener("toggle", () => { if (details.open && !table.firstChild) table.append(tableOf(title, lines)); });
    const figure = make("figure", kind === "loss" ? { class: "wide" } : {}, make("h3", {}, title), lines.length > 1 ? legend : null, svg, says, details);
    const last = lines.map((line) => `${line.label ? line.label + " " : ""}${show(line.values[line.values.length - 1])}`).slice(0, 6).join(", ");
    svg.setAttribute("aria-label", `${title} over steps; at the end ${last}`);
    let place = null;
    const draw = () => {
      const shownLines = lines.map((line) => {
        const from = line.steps.findIndex((step) => step >= state.from);
        return from <= 0 ? { ...line, from: from < 0 ? -1 : 0 } : { ...line, steps: line.steps.slice(from), values: line.values.slice(from), from };
      }).filter((line) => line.from >= 0);
      W = Math.max(260, svg.parentNode.clientWidth - 26); // as wide as it stands there, so that letters keep their size
      svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
      svg.replaceChildren();
      place = null;
      const all = shownLines.flatMap((line) => line.values);
      if (!all.length) { says.textContent = "nothing from this step on"; return; }
      let high = all.reduce((a, b) => Math.max(a, b)), low = all.reduce((a, b) => Math.min(a, b));
      const log = state.log && low > 0, first = Math.min(...shownLines.map((line) => line.steps[0])), end = Math.max(...shownLines.map((line) => line.last));
      if (!log) {
        if (low > 0 && (kind === "tokens_per_second" || kind === "max_memory_mb" || kind === "mfu")) low = 0;
        const room = (high - low || Math.abs(high) || 1) * 0.04;
        high += room; if (low !== 0) low -= room;
      } else if (high === low) { high *= 1.1; low /= 1.1; }
      const logSteps = state.logSteps && first > 0;
      const f = (value, on) => (on ? Math.log(value) : value);
      const x = (step) => L + (W - L - R) * (f(step, logSteps) - f(first, logSteps)) / ((f(end, logSteps) - f(first, logSteps)) || 1);
      const y = (value) => H - B - (H - T - B) * (f(value, log) - f(low, log)) / ((f(high, log) - f(low, log)) || 1);
      for (const tick of ticksOf(low, high, log, 5)) {
        svg.append(shape("line", { x1: L, x2: W - R, y1: y(tick), y2: y(tick), stroke: "var(--grid)" }));
        svg.append(shape("text", { x: L - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
      }
      for (const tick of ticksOf(first, end, logSteps, Math.max(3, Math.min(10, W / 110))).filter(Number.isInteger)) {
        svg.append(shape("line", { x1: x(tick), x2: x(tick), y1: T, y2: H - B, stroke: "var(--grid)" }));
        svg.append(shape("text", { x: x(tick), y: H - 8, "text-anchor": "middle" }, short(tick)));
      }
      if (!many) for (const event of runs[0].events) {
        if (event.kind === "saved" || event.step < first || event.step > end) continue;
        const bad = BAD.test(event.kind);
        const mark = shape("line", { x1: x(event.step), x2: x(event.step), y1: T, y2: H - B, stroke: bad ? "var(--bad)" : "var(--faint)", "stroke-dasharray": "2 4" });
        mark.append(shape("title", {}, `${event.kind} at step ${event.step}: ${event.text}`));
        svg.append(mark);
      }
      for (const line of shownLines) {
        const path = (values) => values.map((value, i) => `${i ? "L" : "M"}${x(line.steps[i]).toFixed(1)} ${y(value).toFixed(1)}`).join("");
        const factor = line.points || line.steps.length < 20 ? 0 : state.smoothing;
        line.smoothed = smooth(line.values, line.steps, factor);
        if (factor) svg.append(shape("path", { d: path(line.values), fill: "none", stroke: line.colour, "stroke-width": 1, opacity: 0.25 }));
        svg.append(shape("path", { d: path(line.smoothed), fill: "none", stroke: line.colour, "stroke-width": 1.8, "stroke-linejoin": "round", ...(line.dashed ? { "stroke-dasharray": "6 4" } : {}) }));
        if (line.points || line.steps.length < 30) line.values.forEach((value, i) => svg.append(shape("circle", { cx: x(line.steps[i]), cy: y(value), r: 2.6, fill: line.colour })));
      }
      const cursor = shape("line", { y1: T, y2: H - B, stroke: "var(--ink)", visibility: "hidden" });
      svg.append(cursor);
      const steps = [...new Set(shownLines.flatMap((line) => line.steps))].sort((a, b) => a - b);
      place = { at: steps.length - 1, steps, tell: (step) => {
        cursor.setAttribute("x1", x(step)); cursor.setAttribute("x2", x(step)); cursor.setAttribute("visibility", "visible");
        const near = (line) => line.steps.reduce((best, one, i) => (Math.abs(one - step) < Math.abs(line.steps[best] - step) ? i : best), 0);
        says.textContent = `step ${show(step)}: ` + shownLines.map((line) => {
          const i = near(line), value = show(line.values[i]), mean = line.smoothed[i] !== line.values[i] ? ` (smoothed ${show(line.smoothed[i])})` : "";
          return `${line.label ? line.label + " " : ""}${value}${mean}${line.points && line.steps[i] !== step ? ` at ${show(line.steps[i])}` : ""}`;
        }).join(" · ");
      }, x, hide: () => { cursor.setAttribute("visibility", "hidden"); rest(); } };
      const rest = () => { says.textContent = "newest: " + shownLines.map((line) => `${line.label ? line.label + " " : ""}${show(line.values[line.values.length - 1])}`).slice(0, 8).join(" · "); };
      rest();
    };
    const pointed = (event) => {
      if (!place) return;
      const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) * W / box.width;
      place.at = place.steps.reduce((best, step, i) => (Math.abs(place.x(step) - at) < Math.abs(place.x(place.steps[best]) - at) ? i : best), 0);
      place.tell(place.steps[place.at]);
    };
    svg.addEventListener("pointermove", pointed);
    svg.addEventListener("pointerdown", pointed);
    svg.addEventListener("pointerleave", () => place && place.hide());
    svg.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 }[event.key];
      if (!move || !place) return;
      event.preventDefault();
      place.at = Math.max(0, Math.min(place.steps.length - 1, place.at + move));
      place.tell(place.steps[place.at]);
    });
    drawn.push(draw);
    return figure;
  };
  const tableOf = (title, lines) => {
    const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
    const every = Math.max(1, Math.ceil(steps.length / 40));
    const chosen = steps.filter((_, i) => i % every === 0 || i === steps.length - 1);
    const head = make("tr", {}, ...["step", ...lines.map((line) => line.label || title)].map((word) => make("th", { scope: "col" }, word)));
    const found = lines.map((line) => new Map(line.steps.map((step, i) => [step, line.values[i]])));
    const rows = chosen.map((step) => make("tr", {}, make("th", { scope: "row" }, show(step)), ...found.map((of) => make("td", {}, of.has(step) ? show(of.get(step)) : ""))));
    return make("table", {}, make("caption", {}, `${title}: ${chosen.length} of ${steps.length} steps`), make("thead", {}, head), make("tbody", {}, ...rows));
  };

  // ---- a map: coloured cells, which say what they are when pointed at -------------------------------------------------
  const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
  const ramp = (part) => {
    const at = Math.max(0, Math.min(1, part)) * (STOPS.length - 1), i = Math.min(STOPS.length - 2, Math.floor(at));
    return STOPS[i].map((from, k) => Math.round(from + (STOPS[i + 1][k] - from) * (at - i)));
  };
  const cellsFigure = ({ kind, title, values, says: word, what, above, below, tabled, height }) => {
    const rows = values.length, columns = values[0].length;
    const found = values.flat().filter((value) => value !== null);
    const least = found.reduce((a, b) => Math.min(a, b), Infinity), most = found.reduce((a, b) => Math.max(a, b), -Infinity);
    const [low, high] = RANGES[kind] || [least, most];
    const canvas = make("canvas", { width: columns, height: rows, role: "img", tabindex: "0", style: `height:${height}px` });
    const picture = canvas.getContext("2d"), image = picture.createImageData(columns, rows);
    values.forEach((row, r) => row.forEach((value, c) => {
      if (value !== null) image.data.set([...ramp((value - low) / (high - low || 1)), 255], 4 * (r * columns + c));
    }));
    picture.putImageData(image, 0, 0);
    canvas.setAttribute("aria-label", `${title}: ${what}, from ${show(least)} to ${show(most)}`);
    const says = make("p", { class: "says", "aria-live": "polite" }, `from ${show(least)} to ${show(most)}`);
    const table = make("div", { class: "scrolls" });
    const details = make("details", {}, make("summary", {}, "Values as a table"), table);
    details.addEventListener("toggle", () => { if (details.open && !table.firstChild) table.append(tabled()); });
    const cell = { c: columns - 1, r: 0 };
    const tell = () => { says.textContent = `${word(cell.r, cell.c)}: ${show(values[cell.r][cell.c])}`; };
    const within = (place, count) => Math.max(0, Math.min(count - 1, place));
    const pointed = (event) => {
      const box = canvas.getBoundingClientRect();
      cell.c = within(Math.floor((event.clientX - box.left) / box.width * columns), columns);
      cell.r = within(Math.floor((event.clientY - box.top) / box.height * rows), rows);
      tell();
    };
    canvas.addEventListener("pointermove", pointed);
    canvas.addEventListener("pointerdown", pointed);
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      cell.c = within(cell.c + move[0], columns); cell.r = within(cell.r + move[1], rows);
      tell();
    });
    const stops = STOPS.map((stop) => `rgb(${stop.join(",")})`).join(",");
    const ends = (...words) => make("div", { class: "ends" }, ...words.map((one) => make("span", {}, one)));
    return make("figure", {}, make("h3", {}, title), ends(above), canvas, ends(...below),
      make("div", { class: "scale", style: `background:linear-gradient(90deg,${stops})` }),
      ends(show(low), ...(RANGES[kind] ? [show((low + high) / 2)] : []), high < most ? `${show(high)} and more` : show(high)), says, details);
  };
  const titleOf = (map, run, what) => [WORDS[map.kind] || map.kind.replaceAll("_", " "), what, many ? run.name : ""].filter(Boolean).join(" · ");
  const mapFigure = (map, run) => { // a row a name, a column a stretch of steps
    const title = titleOf(map, run, map.newest ? "" : map.group), steps = map.steps, names = map.names;
    const lines = names.map((name, i) => ({ label: name, steps, values: map.values[i] }));
    return cellsFigure({ kind: map.kind, title, values: map.values, height: Math.max(90, Math.min(260, names.length * 8)),
      what: `${names.length} rows over ${steps.length} times`, says: (r, c) => `step ${show(steps[c])}, ${names[r]}`, above: map.newest ? `a row an expert of a layer, the first ${names[0]}` : `first row ${names[0]}`,
      below: [`step ${show(steps[0])}`, `step ${show(steps[steps.length - 1])}`], tabled: () => tableOf(title, lines) });
  };
  const newestFigure = (map, run) => { // of names of two numbers, a row for the first and a column for the second
    const [step, newest] = map.newest, cells = map.names.map((name, i) => [...name.match(/\d+/g), newest[i]]);
    const [first, second] = [0, 1].map((place) => [...new Set(cells.map((cell) => cell[place]))]);
    const values = first.map((row) => second.map((column) => { const found = cells.find(([r, c]) => r === row && c === column); return found ? found[2] : null; }));
    const [row, column] = { expert_load: ["layer", "expert"] }[map.kind] || ["row", "column"];
    const title = titleOf(map, run, `at step ${show(step)}`);
    const tabled = () => make("table", {}, make("thead", {}, make("tr", {}, ...[row, ...second.map((one) => `${column} ${one}`)].map((word) => make("th", { scope: "col" }, word)))),
      make("tbody", {}, ...first.map((one, r) => make("tr", {}, make("th", { scope: "row" }, one), ...values[r].map((value) => make("td", {}, show(value)))))));
    return cellsFigure({ kind: map.kind, title, values, height: Math.max(90, Math.min(320, first.length * 18)), what: `${first.length} rows of ${second.length}`,
      says: (r, c) => `${row} ${first[r]}, ${column} ${second[c]}`, above: `first row ${row} ${first[0]}, last ${first[first.length - 1]}`,
      below: [`${column} ${second[0]}`, `${column} ${second[second.length - 1]}`], tabled });
  };

  // ---- the page ----------------------------------------------------------------------------------------------------
  const sections = document.getElementById("sections");
  const pairs = (caption, rows) => make("div", { class: "scrolls" }, make("table", {}, make("caption", {}, caption), make("tbody", {},
    ...rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", { class: "words" }, value))))));
  const words = (value) => (Array.isArray(value) ? value.map(words).join(", ") : typeof value === "object" && value !== null ? JSON.stringify(value) : String(value));
  const named = new Set(SECTIONS.flatMap(([, kinds]) => kinds));
  for (const [title, kinds] of SECTIONS) {
    const chosen = kinds.length ? kinds : [...new Set([...pictures.keys(), ...runs.flatMap((run) => run.maps.map((map) => map.kind))])].filter((kind) => !named.has(kind));
    const figures = [];
    for (const kind of chosen) {
      if (pictures.has(kind)) figures.push(linesFigure(kind, pictures.get(kind)));
      for (const run of runs) for (const map of run.maps) if (map.kind === kind) figures.push(...(map.newest ? [newestFigure(map, run)] : []), mapFigure(map, run));
    }
    if (figures.length) sections.append(make("h2", {}, title), make("div", { class: "grid" }, ...figures));
  }
  if (constant.length) sections.append(make("details", {}, make("summary", {}, `${constant.length} figures that never changed`), pairs("Figures that never changed", constant)));
  for (const run of runs) {
    const of = many ? ` of ${run.name}` : "";
    if (run.events.length) {
      const rows = [...run.events].reverse().map((event) => make("tr", {}, make("td", {}, show(event.step)),
        make("td", { class: "words" }, make("span", { class: BAD.test(event.kind) ? "kind bad" : "kind" }, event.kind)), make("td", { class: "words" }, event.text), make("td", { class: "words" }, event.time.replace("T", " "))));
      const head = make("tr", {}, ...[["step", ""], ["what", "words"], ["", "words"], ["when", "words"]].map(([word, kind]) => make("th", { scope: "col", class: kind }, word)));
      const counts = run.events.reduce((sum, event) => ({ ...sum, [event.kind]: (sum[event.kind] || 0) + 1 }), {});
      sections.append(make("h2", {}, `Events${of}`), make("p", {}, Object.entries(counts).map(([kind, count]) => `${kind} ${count}`).join(" · ")),
        make("details", run.events.length <= 30 ? { open: "" } : {}, make("summary", {}, "All, the newest first"), make("div", { class: "scrolls" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)))));
    }
    if (run.samples.length) sections.append(make("h2", {}, `Samples${of} at step ${show(run.samples[0])}`),
      pairs("prompt and what the model made of it", run.samples[1].map((one) => [one.prompt, `${one.text}${one.expected ? `\n(expected: ${one.expected})` : ""}`])));
    sections.append(make("h2", {}, `Configuration${of}`), make("details", many ? {} : { open: "" }, make("summary", {}, `${Object.keys(run.config).length} settings`),
      pairs("settings", Object.entries(run.config).map(([name, value]) => [name, words(value)]))));
    sections.append(make("h2", {}, `Environment${of}`), pairs("where and what", Object.entries(run.about).map(([name, value]) => [name, words(value)])));
  }
  if (many) {
    const keys = [...new Set(runs.flatMap((run) => Object.keys(run.config)))].filter((key) => new Set(runs.map((run) => words(run.config[key] ?? "–"))).size > 1);
    const head = make("tr", {}, ...["setting", ...runs.map((run) => run.name)].map((word) => make("th", { scope: "col", class: "words" }, word)));
    const rows = keys.map((key) => make("tr", {}, make("th", { scope: "row" }, key), ...runs.map((run) => make("td", { class: "words" }, words(run.config[key] ?? "–")))));
    sections.prepend(make("h2", {}, "What differs"), make("div", { class: "scrolls" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows))));
  }
  const about = runs[0].about;
  document.getElementById("what").textContent = many ? `${runs.length} runs beside each other` : [about.title, about.state, about.written && `written ${about.written}`].filter(Boolean).join(" · ");
  const listen = (id, event, change) => document.getElementById(id).addEventListener(event, (seen) => { change(seen.target); drawn.forEach((draw) => draw()); });
  listen("smoothing", "input", (input) => { state.smoothing = +input.value; document.getElementById("smoothed").textContent = state.smoothing.toFixed(2); });
  listen("log", "change", (input) => { state.log = input.checked; });
  listen("log-steps", "change", (input) => { state.logSteps = input.checked; });
  listen("from", "input", (input) => { state.from = +input.value || 0; });
  let width = 0;
  const redraw = () => { if (width !== document.body.clientWidth) { width = document.body.clientWidth; drawn.forEach((draw) => draw()); } };
  redraw();
  window.addEventListener("resize", redraw);
  document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
})();
