"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (id) => document.getElementById(id);
  const root = document.documentElement;
  const CONFIG = { responsive: true, displayModeBar: false, displaylogo: false };
  const FRAMES_PER_SECOND = 8;
  const TRAIL = 12; // frames
  const DIM = 0.22; // opacity of agents that are not the chosen one

  // -- dark and light -------------------------------------------------------------------------------------------
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const remembered = () => { try { return localStorage.getItem("offmarl-theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("offmarl-theme", theme); } catch { /* a private window */ } };
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const isDark = () => root.dataset.theme === "dark";

  function setTheme(theme) {
    root.dataset.theme = theme;
    find("theme").textContent = theme === "dark" ? "Light" : "Dark";
    find("theme").setAttribute("aria-pressed", String(theme === "dark"));
    find("theme").setAttribute("aria-label", theme === "dark" ? "Change to light" : "Change to dark");
  }

  /** A colour of the palette, lighter in the dark where it would sink into the page. */
  const LIGHTER = { "#0072B2": "#3D9BE3" };
  const readable = (tone) => (isDark() && LIGHTER[tone]) || tone;
  const recoloured = (trace) => {
    const line = trace.line && { line: { ...trace.line, color: readable(trace.line.color) } };
    const marker = trace.marker && { marker: { ...trace.marker, color: readable(trace.marker.color) } };
    return { ...trace, ...line, ...marker };
  };

  const heat = () => isDark()
    ? [[0, "#1c242d"], [0.5, "#2b6ca3"], [1, "#9bd1ff"]]
    : [[0, "#f3f6f9"], [0.5, "#6aaed6"], [1, "#08519c"]];

  /** A layout with the page's own colours in every part that Plotly would paint white and black. */
  function themed(layout) {
    const axis = { gridcolor: colour("grid"), zerolinecolor: colour("line"), linecolor: colour("line"), tickcolor: colour("line") };
    const ink = colour("ink");
    const whole = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, family: "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", size: 12 },
      hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: ink } },
      margin: { l: 56, r: 12, t: 10, b: 44 }, dragmode: false, ...layout,
    };
    for (const name of ["xaxis", "yaxis"]) whole[name] = { ...axis, ...(layout[name] || {}) };
    return whole;
  }

  // -- charts, drawn when they come near -------------------------------------------------------------------------
  const drawn = new Map(); // element -> chart
  function draw(element, chart) {
    drawn.set(element, chart);
    element.style.height = `${chart.height}px`;
    const traces = chart.data.map((trace) => (chart.heat ? { ...trace, colorscale: heat() } : recoloured(trace)));
    return Plotly.react(element, traces, themed(chart.layout), CONFIG);
  }
  const chartOf = (id) => (id === "curves" ? data.curves[find("metric").value] : data.charts[id]);
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      if (entry.target.id === "viewer") viewer.start(); else draw(entry.target, chartOf(entry.target.id));
    }
  }, { rootMargin: "300px" });

  // -- the episode viewer ------------------------------------------------------------------------------------------
  const viewer = (() => {
    const box = find("viewer");
    if (!box) return null;
    const world = find("world"), bars = find("bars"), stack = find("stack"), slider = find("slider");
    let episode, frame = 0, chosen = null, playing = false, started = false, last = 0;

    const tint = (k) => readable(data.colours[k % data.colours.length]);
    const pattern = (k) => data.patterns[Math.floor(k / data.colours.length) % data.patterns.length];
    const steps = () => episode.team.length;
    const agents = () => episode.agents.map((_, k) => k);
    const listed = () => episode.listed; // those with a bar: all, unless there are very many
    const many = () => episode.listed.length < episode.agents.length;
    const faded = (k) => (chosen === null || chosen === k ? 1 : DIM);
    /** Bodies other than agents, in the order they are drawn: those below the agents, those above. */
    function others() {
      const { order } = episode.world, count = episode.agents.length;
      const agent = order.findIndex((k) => k < count);
      return [order.slice(0, agent), order.slice(agent).filter((k) => k >= count)];
    }
    const agentsTrace = () => episode.listed.length + 1; // after the trails and what lies below
    const scale = () => {
      const [left, right] = episode.world.limits;
      return world.clientWidth / (right - left); // pixels a unit: the world fills its square
    };
    const size = (k) => Math.max(many() ? 5 : 7, 2 * episode.world.bodies[k].radius * scale());

    /** What a body other than an agent looks like: shape and fill tell its kind, without any colour. */
    function look(body) {
      const quiet = colour("quiet"), ink = colour("ink"), none = "rgba(0,0,0,0)";
      const owned = body.owner === null ? null : tint(body.owner);
      const looks = {
        landmark: { symbol: "x-thin", fill: quiet, line: owned || ink, width: 3 },
        obstacle: { symbol: "circle", fill: isDark() ? "#4a5561" : "#b6bec7", line: quiet, width: 1 },
        forest: { symbol: "circle", fill: "rgba(0,158,115,0.22)", line: "#009E73", width: 1 },
        food: { symbol: "diamond", fill: "#009E73", line: ink, width: 1 },
        prey: { symbol: "star", fill: ink, line: colour("page"), width: 1 },
        enemy: { symbol: "square", fill: ink, line: colour("page"), width: 1 },
      };
      return looks[body.kind === "target" ? "landmark" : body.kind] || { symbol: "circle", fill: none, line: owned || quiet, width: 2 };
    }
    const least = { landmark: 16, target: 16, prey: 15, food: 11, enemy: 11 }; // pixels, so that shapes can be told

    const at = (k, f) => [episode.world.x[k][f], episode.world.y[k][f]];

    /** Coordinates of every trace of the world: trails of agents, bodies below, agents, bodies above. */
    function places() {
      const from = Math.max(0, frame - TRAIL), [below, above] = others();
      const of = (along) => [
        ...listed().map((k) => along[k].slice(from, frame + 1)),
        ...[below, agents(), above].map((list) => list.map((k) => along[k][frame])),
      ];
      return { x: of(episode.world.x), y: of(episode.world.y) };
    }

    function drawWorld() {
      if (!episode.world) {
        Plotly.purge(world);
        world.classList.add("absent");
        world.textContent = "This data does not say where the agents are.";
        return;
      }
      if (world.classList.contains("absent")) { world.classList.remove("absent"); world.textContent = ""; }
      const trails = listed().map((k) => ({
        mode: "lines", hoverinfo: "skip", opacity: 0.55 * faded(k), line: { color: tint(k), width: 2 },
      }));
      const [below, above] = others().map((list) => {
        const looks = list.map((k) => look(episode.world.bodies[k]));
        return {
          mode: "markers", text: list.map((k) => episode.world.bodies[k].name), hovertemplate: "%{text}<extra></extra>",
          marker: {
            symbol: looks.map((one) => one.symbol), color: looks.map((one) => one.fill), opacity: 1,
            size: list.map((k) => Math.max((!many() && least[episode.world.bodies[k].kind]) || 0, size(k))),
            line: { color: looks.map((one) => one.line), width: looks.map((one) => one.width) },
          },
        };
      });
      const team = {
        mode: "markers+text", text: agents().map((k) => (many() ? "" : `${k + 1}`)), textfont: { color: "#000000", size: 12, weight: 700 },
        customdata: episode.labels, hovertemplate: "%{customdata}<extra></extra>",
        marker: {
          size: agents().map((k) => Math.max(many() ? 0 : 18, size(k))), color: agents().map(tint), opacity: agents().map((k) => 0.92 * faded(k)),
          line: { color: agents().map((k) => (chosen === k ? colour("ink") : colour("page"))), width: agents().map((k) => (chosen === k ? 3 : 1)) },
        },
      };
      const { x, y } = places();
      const traces = [...trails, below, team, above].map((trace, k) => ({ type: "scatter", x: x[k], y: y[k], ...trace }));
      const [left, right, bottom, top] = episode.world.limits;
      const axis = { showgrid: false, zeroline: false, showticklabels: false, fixedrange: true };
      const layout = themed({
        margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false, hovermode: "closest",
        xaxis: { ...axis, range: [left, right] }, yaxis: { ...axis, range: [bottom, top] },
      });
      Plotly.react(world, traces, layout, CONFIG);
    }

    const shown = (values) => listed().map((k) => (frame === 0 ? 0 : values[k][frame - 1]));

    function drawBars() {
      const error = episode.std && { type: "data", array: shown(episode.std), thickness: 1.5, width: 4, color: colour("ink") };
      const y = listed().map((k) => `${k + 1} ${episode.labels[k]}`);
      const traces = [{
        type: "bar", orientation: "h", x: shown(episode.reward), y, name: episode.rewards, hovertemplate: "%{y}: %{x}<extra></extra>",
        marker: { color: listed().map(tint), opacity: listed().map(faded), pattern: { shape: listed().map(pattern), fillmode: "overlay" }, line: { width: 1, color: colour("ink") } },
        ...(error ? { error_x: error } : {}),
      }];
      if (episode.truth) {
        traces.push({
          type: "scatter", mode: "markers", x: shown(episode.truth), y, name: "true", hovertemplate: "true: %{x}<extra></extra>",
          marker: { symbol: "diamond-tall-open", size: 13, color: colour("ink"), line: { width: 2 } },
        });
      }
      const every = [...episode.reward, ...(episode.truth || [])].flat().filter(Number.isFinite);
      const low = Math.min(0, ...every), high = Math.max(0, ...every), pad = 0.06 * (high - low || 1);
      const rows = listed().length;
      bars.style.height = `${60 + Math.max(22 * rows, 70)}px`;
      Plotly.react(bars, traces, themed({
        margin: { l: 10, r: 10, t: 6, b: 40 }, showlegend: false, bargap: 0.3,
        xaxis: { range: [low - pad, high + pad], fixedrange: true, title: { text: episode.truth ? `reward in this step: ${episode.rewards}, ◊ true` : `reward in this step: ${episode.rewards}` }, zeroline: true },
        yaxis: { autorange: "reversed", fixedrange: true, automargin: true, type: "category" },
      }), CONFIG);
    }

    const cursor = () => ({ type: "line", xref: "x", yref: "paper", x0: frame, x1: frame, y0: 0, y1: 1, line: { color: colour("ink"), width: 2 } });

    function drawStack() {
      const time = episode.team.map((_, t) => t + 1);
      const traces = listed().map((k) => ({
        type: "bar", x: time, y: episode.reward[k], name: `${k + 1} ${episode.labels[k]}`, opacity: faded(k),
        marker: { color: tint(k), line: { width: 0 }, pattern: { shape: pattern(k), fillmode: "overlay" } },
        hovertemplate: "step %{x}: %{y}<extra>%{fullData.name}</extra>",
      }));
      if (many()) {
        const rest = agents().filter((k) => !listed().includes(k));
        traces.push({
          type: "bar", x: time, y: time.map((_, t) => rest.reduce((sum, k) => sum + episode.reward[k][t], 0)), name: `${rest.length} others`,
          opacity: chosen === null ? 1 : DIM, marker: { color: colour("quiet"), line: { width: 0 } }, hovertemplate: "step %{x}: %{y}<extra>%{fullData.name}</extra>",
        });
      }
      traces.push({
        type: "scatter", mode: "lines", x: time, y: episode.team, name: "team", line: { color: colour("ink"), width: 2, shape: "hvh" },
        hovertemplate: "step %{x}: %{y}<extra>team</extra>",
      });
      const narrow = stack.clientWidth < 500;
      stack.style.height = `${narrow ? 250 : 260}px`;
      Plotly.react(stack, traces, themed({
        barmode: "relative", bargap: 0, shapes: [cursor()], showlegend: false, hovermode: "closest", margin: { l: 48, r: 8, t: 12, b: 40 },
        xaxis: { title: { text: "step" }, range: [-0.5, steps() + 0.6], fixedrange: true },
        yaxis: { title: { text: "reward, stacked" }, fixedrange: true, automargin: true },
      }), CONFIG);
    }

    /** Show another instant: only what moves is redrawn. */
    function show(to) {
      frame = Math.max(0, Math.min(steps(), to));
      slider.value = String(frame);
      const said = `step ${frame} of ${steps()}`;
      find("step").textContent = said;
      slider.setAttribute("aria-valuetext", said);
      if (!started) return;
      if (episode.world) {
        const { x, y } = places();
        Plotly.restyle(world, { x, y }, x.map((_, k) => k));
      }
      const now = { x: [shown(episode.reward)] };
      if (episode.std) now["error_x.array"] = [shown(episode.std)];
      Plotly.restyle(bars, now, [0]);
      if (episode.truth) Plotly.restyle(bars, { x: [shown(episode.truth)] }, [1]);
      Plotly.relayout(stack, { "shapes[0].x0": frame, "shapes[0].x1": frame });
    }

    function play(on) {
      playing = on;
      find("play").textContent = on ? "⏸" : "▶";
      find("play").setAttribute("aria-label", on ? "Pause" : "Play");
      if (!on) return;
      if (frame >= steps()) show(0);
      last = 0;
      requestAnimationFrame(tick);
    }

    function tick(now) {
      if (!playing) return;
      const wait = 1000 / (FRAMES_PER_SECOND * Number(find("speed").value));
      if (!last) last = now;
      if (now - last >= wait) {
        const by = Math.min(3, Math.floor((now - last) / wait)); // a slow machine skips frames, and keeps time
        last = now;
        show(frame + by);
        if (frame >= steps()) { play(false); return; }
      }
      requestAnimationFrame(tick);
    }

    function element(tag, text, attributes = {}) {
      const made = document.createElement(tag);
      if (text) made.textContent = text;
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      return made;
    }

    function tellCauses() {
      const box = find("causes");
      box.replaceChildren();
      const credit = episode.credit === null ? null : data.credits[episode.credit];
      if (chosen === null) {
        box.append(element("p", credit ? "Choose an agent to see which dimensions its reward depends on." : "Choose an agent to see it alone.", { class: "note" }));
        return;
      }
      box.append(element("h4", `${chosen + 1} ${episode.agents[chosen]}`));
      if (!credit || !credit[chosen]) {
        box.append(element("p", "Nobody has asked yet what its reward depends on: offmarl decompose finds out.", { class: "note" }));
        return;
      }
      const list = element("ul", "", { "aria-label": "Its reward depends on" });
      for (const edge of credit[chosen].edges) {
        const row = element("li", "");
        const said = `probability ${edge.probability.toFixed(2)}`;
        row.append(
          element("span", edge.variable),
          element("meter", "", { min: 0, max: 1, value: edge.probability, "aria-label": said }),
          element("span", edge.probability.toFixed(2)),
          element("span", edge.kept ? "● kept" : edge.shared ? "◐ shared" : "left out"),
        );
        list.append(row);
      }
      if (credit[chosen].edges.length) {
        box.append(element("p", "Its reward depends on (probability of the edge):", { class: "note" }), list);
      }
      box.append(element("p", credit[chosen].sentence, { class: "note" }));
    }

    function choose(agent) {
      chosen = agent === null || agent === chosen || agent >= episode.agents.length ? null : agent;
      for (const [k, chip] of [...find("agents").children].entries()) chip.setAttribute("aria-pressed", String(listed()[k] === chosen));
      tellCauses();
      if (started) { drawWorld(); drawBars(); drawStack(); }
      if (episode.credit !== null) single(find(`recovered-${episode.credit}`));
    }

    /** In the scatter plot too, only the chosen agent. */
    function single(scatter) {
      if (!scatter || !drawn.has(scatter)) return;
      const k = agents().slice(0, drawn.get(scatter).data.length - 1);
      Plotly.restyle(scatter, { opacity: k.map((agent) => (chosen === null || chosen === agent ? 1 : 0.08)) }, k.map((agent) => agent + 1));
    }

    function drawChips() {
      find("agents").replaceChildren(...listed().map((k) => {
        const chip = element("button", "", { type: "button", "aria-pressed": "false" });
        const dot = element("i");
        dot.style.background = tint(k);
        chip.append(dot, `${k + 1} ${episode.agents[k]}`);
        chip.addEventListener("click", () => choose(k));
        return chip;
      }));
    }

    function tellLegend() {
      const signs = { landmark: "✕ landmark", target: "✕ target", obstacle: "● obstacle", forest: "◍ forest", food: "◆ food", prey: "★ prey", enemy: "■ enemy", other: "○ other" };
      const kinds = episode.world ? [...new Set(others().flat().map((k) => episode.world.bodies[k].kind))] : [];
      const mine = episode.world && others().flat().some((k) => episode.world.bodies[k].owner !== null);
      find("legend").textContent = kinds.map((kind) => signs[kind] || signs.other).join(" · ") + (mine ? ", each in the colour of the agent whose it is" : "");
      const means = { true: "the true rewards", mean: "the team's reward in equal shares" };
      find("told").textContent = [
        `Rewards: ${means[episode.rewards] || `what ${episode.rewards} says that each agent earned`}`,
        "line: the team's reward", episode.std ? "whiskers: spread of the refits" : "",
        many() ? `bars: the ${listed().length} of ${episode.agents.length} agents that were paid most` : "", episode.note,
      ].filter(Boolean).join("; ");
    }

    function load(index) {
      play(false);
      episode = data.episodes[index];
      slider.max = String(steps());
      frame = 0;
      chosen = null;
      drawChips();
      tellLegend();
      tellCauses();
      if (started) drawAll();
      show(0);
    }

    function drawAll() { drawWorld(); drawBars(); drawStack(); }

    function start() {
      started = true;
      drawAll();
      world.on("plotly_click", (event) => {
        const point = event.points.find((one) => one.curveNumber === agentsTrace());
        if (point) choose(point.pointNumber);
      });
      bars.on("plotly_click", (event) => choose(listed()[event.points[0].pointNumber]));
      stack.on("plotly_click", (event) => { play(false); show(Math.round(event.points[0].x)); });
      // Bodies keep their true size when the square changes.
      new ResizeObserver(() => { if (episode.world) drawWorld(); }).observe(world);
    }

    function visible() {
      const { top, bottom } = box.getBoundingClientRect();
      return bottom > 0 && top < window.innerHeight;
    }

    document.addEventListener("keydown", (event) => {
      const inside = box.contains(event.target);
      if (event.ctrlKey || event.metaKey || event.altKey || !(inside || visible())) return;
      const on = event.target.tagName;
      if (on === "SELECT" || (on === "BUTTON" && [" ", "Enter"].includes(event.key)) || (!inside && on === "A")) return;
      const keys = {
        " ": () => play(!playing), ArrowLeft: () => { play(false); show(frame - 1); }, ArrowRight: () => { play(false); show(frame + 1); },
        Home: () => show(0), End: () => show(steps()), Escape: () => choose(null),
      };
      const digit = /^[1-9]$/.test(event.key) ? Number(event.key) - 1 : null;
      const action = keys[event.key] || (digit !== null && digit < episode.agents.length ? () => choose(digit) : null);
      if (!action) return;
      event.preventDefault();
      action();
    });
    slider.addEventListener("input", () => { play(false); show(Number(slider.value)); });
    find("play").addEventListener("click", () => play(!playing));
    find("back").addEventListener("click", () => { play(false); show(frame - 1); });
    find("forward").addEventListener("click", () => { play(false); show(frame + 1); });
    find("episode").addEventListener("change", (event) => load(Number(event.target.value)));
    return { box, load, start, redraw: () => { if (started) drawAll(); } };
  })();

  setTheme(remembered() || (system.matches ? "dark" : "light"));
  function repaint() {
    for (const [element, chart] of drawn) draw(element, chart);
    if (viewer) viewer.redraw();
  }
  find("theme").addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    remember(theme);
    setTheme(theme);
    repaint();
  });
  system.addEventListener("change", () => { if (!remembered()) { setTheme(system.matches ? "dark" : "light"); repaint(); } });
  if (find("metric")) find("metric").addEventListener("change", () => draw(find("curves"), chartOf("curves")));
  for (const id of [...Object.keys(data.charts), ...(find("curves") ? ["curves"] : [])]) near.observe(find(id));
  if (viewer) { viewer.load(0); near.observe(viewer.box); }
})();
