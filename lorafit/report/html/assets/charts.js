// Draws the curves of a report with uPlot, from the JSON that stands in the page.
"use strict";

const lorafit = (() => {
  const data = JSON.parse(document.getElementById("lorafit-data").textContent);
  const several = data.runs.length > 1;
  const GIB = 1024 ** 3;

  const number = (value) => {
    const size = Math.abs(value);
    if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e");
    return size >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));
  };
  const bytes = (value) => {
    for (const [unit, scale] of [["TiB", 1024 * GIB], ["GiB", GIB], ["MiB", 1024 ** 2], ["KiB", 1024]]) {
      if (value >= scale) return `${+(value / scale).toPrecision(3)} ${unit}`;
    }
    return `${Math.round(value)} B`;
  };

  // One entry a chart: which columns it shows, and how.
  const SPECS = {
    loss: {
      height: 300, log: true, format: number,
      curves: [
        { key: "loss", label: "training", smooth: true },
        { key: "validation_loss", label: "validation", points: true },
      ],
    },
    learning_rate: { height: 190, format: number, curves: [{ key: "learning_rate", label: "learning rate" }] },
    grad_norm: { height: 190, log: true, format: number, curves: [{ key: "grad_norm", label: "before clipping", smooth: true }] },
    tokens_per_second: { height: 190, fromZero: true, format: (v) => number(v), curves: [{ key: "tokens_per_second", label: "tokens/s", smooth: true }] },
    memory: {
      height: 190, fromZero: true, format: bytes, binary: true,
      curves: [{ key: "memory_reserved_bytes", label: "peak of the step" }],
      reference: data.predicted_memory_bytes && { label: "predicted peak", value: data.predicted_memory_bytes },
    },
    reward: {
      height: 240, format: number,
      curves: [{ key: "reward", label: "reward", smooth: true }, { key: "reward_margin", label: "margin", smooth: true }],
    },
    completion_length: { height: 190, fromZero: true, format: number, curves: [{ key: "completion_length", label: "mean", smooth: true }] },
    kl: { height: 190, format: number, curves: [{ key: "kl", label: "KL divergence", smooth: true }] },
  };

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const runColour = (index) => colour(`--run-${index % 8}`);

  // The mean of a window around each step: centred, so that it neither lags nor rises early.
  function smoothed(values) {
    const reach = Math.max(1, Math.round(values.length / 100));
    return values.map((value, at) => {
      if (value === null) return null;
      let sum = 0, count = 0;
      const near = Math.min(reach, at, values.length - 1 - at);
      for (let i = at - near; i <= at + near; i += 1) {
        if (values[i] !== null) { sum += values[i]; count += 1; }
      }
      return sum / count;
    });
  }

  // Every curve of a chart, in the order in which uPlot gets them.
  function curvesOf(spec) {
    return data.runs.flatMap((run, index) => spec.curves.flatMap((curve) => {
      const values = (run.columns && run.columns[curve.key]) || [];
      if (!values.some((value) => value !== null)) return [];
      const stroke = () => !several && curve.points ? colour("--validation") : runColour(index);
      const label = several ? `${run.name}${spec.curves.length > 1 ? `, ${curve.label}` : ""}` : curve.label;
      const base = { steps: run.columns.step, stroke, label, points: curve.points, run: index };
      const long = values.filter((value) => value !== null).length > 30;
      if (!curve.smooth || !long) return [{ ...base, values, isRead: true }];
      const average = { ...base, values: smoothed(values), label: several ? label : "smoothed", isRead: true };
      return [{ ...base, values, isFaint: true, isRead: !several }, average];
    }));
  }

  function table(curves) {
    if (!curves.length) return [[]];
    if (data.runs.length === 1) return [curves[0].steps, ...curves.map((curve) => curve.values)];
    return uPlot.join(curves.map((curve) => [curve.steps, curve.values]));
  }

  function withAlpha(stroke, alpha) {
    const value = parseInt(stroke.slice(1), 16);
    return `rgba(${value >> 16}, ${(value >> 8) & 255}, ${value & 255}, ${alpha})`;
  }

  function seriesOf(curve) {
    const faint = curve.isFaint ? 0.32 : 1;
    const isDashed = several && curve.points;
    return {
      label: curve.label,
      stroke: () => withAlpha(curve.stroke(), faint),
      width: curve.isFaint ? 1 : 1.75,
      dash: isDashed ? [5, 4] : undefined,
      spanGaps: true,
      points: { show: Boolean(curve.points), size: 6, fill: () => colour("--card") },
    };
  }

  function axes(spec) {
    const shared = {
      stroke: () => colour("--quiet"),
      grid: { stroke: () => colour("--grid"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
    };
    const powers = Array.from({ length: 44 }, (_, exponent) => 2 ** exponent);
    return [
      { ...shared, grid: { show: false }, size: 26, gap: 4, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6, 1e7], values: (_, ticks) => ticks.map(number) },
      { ...shared, size: (_, labels) => 12 + 6.4 * Math.max(2, ...(labels || []).map((label) => label.length)), gap: 6, space: 36, ...(spec.binary ? { incrs: powers } : {}), values: (_, ticks) => ticks.map((tick) => tick === null ? "" : spec.format(tick)) },
    ];
  }

  function rangeOf(spec, chart) {
    return (_, low, high) => {
      if (low === null || low === undefined || !Number.isFinite(low)) return [0, 1];
      const top = Math.max(high, (spec.reference && spec.reference.value) || high);
      if (chart.isLog) return uPlot.rangeLog(low, top, 10, false);
      if (spec.fromZero) return [0, top * 1.08 || 1];
      return uPlot.rangeNum(Math.min(low, low > 0 && low < top / 3 ? 0 : low), top, { min: { pad: 0.05, soft: 0, mode: 3 }, max: { pad: 0.08, soft: 0, mode: 3 } });
    };
  }

  function drawReference(spec) {
    return (plot) => {
      if (!spec.reference) return;
      const y = Math.round(plot.valToPos(spec.reference.value, "y", true)) + 0.5;
      const context = plot.ctx;
      context.save();
      context.strokeStyle = colour("--reference");
      context.lineWidth = devicePixelRatio;
      context.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
      context.beginPath();
      context.moveTo(plot.bbox.left, y);
      context.lineTo(plot.bbox.left + plot.bbox.width, y);
      context.stroke();
      context.restore();
    };
  }

  function swatch(paint, isDot) {
    const box = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    box.setAttribute("viewBox", "0 0 10 10");
    box.setAttribute("aria-hidden", "true");
    const shape = document.createElementNS(box.namespaceURI, isDot ? "circle" : "rect");
    const size = isDot ? { cx: 5, cy: 5, r: 4 } : { y: 3.5, width: 10, height: 3 };
    Object.entries(size).forEach(([name, value]) => shape.setAttribute(name, value));
    shape.setAttribute("fill", paint);
    box.append(shape);
    return box;
  }

  function entry(label, value, paint, isDot) {
    const item = document.createElement("li");
    const strong = document.createElement("b");
    strong.textContent = value;
    if (paint) item.append(swatch(paint, isDot));
    item.append(`${label} `, strong);
    return item;
  }

  // At the cursor, or at the end where there is none; a curve without a value there shows its last.
  function readout(chart) {
    const { spec, plot, curves } = chart;
    const steps = plot.data[0];
    const at = plot.cursor.idx ?? steps.length - 1;
    const items = steps.length ? [entry("step", number(steps[at] ?? 0))] : [];
    curves.forEach((curve, index) => {
      if (!curve.isRead) return;
      const values = plot.data[index + 1];
      let row = at;
      while (row >= 0 && (values[row] === null || values[row] === undefined)) row -= 1;
      const paint = withAlpha(curve.stroke(), curve.isFaint ? 0.4 : 1);
      items.push(entry(curve.label, row < 0 ? "–" : spec.format(values[row]), paint, curve.points));
    });
    if (spec.reference) items.push(entry(spec.reference.label, spec.format(spec.reference.value), colour("--reference")));
    chart.legend.replaceChildren(...items);
    const isAtEnd = plot.cursor.idx === null || plot.cursor.idx === undefined;
    if (isAtEnd) chart.host.setAttribute("aria-label", `${chart.title} by step. At the end: ${items.map((item) => item.textContent).join(", ")}`);
  }

  function build(chart) {
    if (chart.plot) chart.plot.destroy();
    chart.curves = curvesOf(chart.spec);
    const options = {
      width: chart.host.clientWidth,
      height: chart.spec.height,
      legend: { show: false },
      padding: [8, 16, 0, 0],
      cursor: {
        y: false,
        sync: { key: "lorafit", setSeries: false },
        points: { size: 7, width: 1.5, fill: () => colour("--card") },
      },
      scales: {
        x: { time: false },
        y: { distr: chart.isLog ? 3 : 1, range: rangeOf(chart.spec, chart) },
      },
      axes: axes(chart.spec),
      series: [{}, ...chart.curves.map(seriesOf)],
      hooks: { setCursor: [() => chart.plot && readout(chart)], draw: [drawReference(chart.spec)] },
    };
    chart.plot = new uPlot(options, table(chart.curves), chart.host);
    readout(chart);
  }

  // New values on the same curves keep zoom and cursor; a curve that appears needs a new plot.
  function refresh(chart) {
    const curves = curvesOf(chart.spec);
    if (curves.length !== chart.curves.length) return build(chart);
    chart.curves = curves;
    const { min, max } = chart.plot.scales.x;
    const steps = chart.plot.data[0];
    const isZoomed = steps.length > 0 && (min > steps[0] || max < steps[steps.length - 1]);
    chart.plot.setData(table(curves), !isZoomed);
    if (isZoomed) chart.plot.redraw();
    return readout(chart);
  }

  function steer(chart, event) {
    const steps = chart.plot.data[0];
    const at = chart.plot.cursor.idx ?? steps.length - 1;
    const stride = event.shiftKey ? Math.max(1, Math.round(steps.length / 20)) : 1;
    const target = { ArrowLeft: at - stride, ArrowRight: at + stride, Home: 0, End: steps.length - 1 }[event.key];
    if (target === undefined || !steps.length) return;
    event.preventDefault();
    const index = Math.min(Math.max(target, 0), steps.length - 1);
    chart.plot.setCursor({ left: chart.plot.valToPos(steps[index], "x"), top: 10 });
  }

  const charts = [...document.querySelectorAll("[data-chart]")].map((figure) => {
    const spec = SPECS[figure.dataset.chart];
    const chart = { spec, title: figure.querySelector("h3").textContent, host: figure.querySelector(".plot"), legend: figure.querySelector(".legend"), isLog: false };
    const button = figure.querySelector(".scale");
    button.hidden = !spec.log;
    button.addEventListener("click", () => {
      chart.isLog = !chart.isLog;
      button.setAttribute("aria-pressed", String(chart.isLog));
      build(chart);
    });
    chart.host.addEventListener("keydown", (event) => steer(chart, event));
    build(chart);
    new ResizeObserver(() => {
      const width = chart.host.clientWidth;
      if (width && width !== chart.plot.width) chart.plot.setSize({ width, height: spec.height });
    }).observe(chart.host);
    return chart;
  });

  // What is drawn on a canvas does not follow the style sheet by itself.
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach(build));

  return { data, charts, refresh: () => charts.forEach(refresh) };
})();
