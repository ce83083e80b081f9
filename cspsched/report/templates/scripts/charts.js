// Charts by uPlot: memory against capacity, distributions, and bands over time.
const SERIES = 8;
const DASHES = [[], [7, 3], [2, 3], [9, 3, 2, 3]];
// Steps of many batches in one pixel are drawn as lines, of which the library keeps the extremes.
const MOST_STEPS = 3000;
const stepped = uPlot.paths.stepped({ align: 1 });
const thinned = uPlot.paths.linear();

function axis(extra) {
  return {
    stroke: () => colour("muted"),
    grid: { stroke: () => colour("grid"), width: 1 },
    ticks: { stroke: () => colour("grid"), width: 1, size: 5 },
    font: "11px system-ui, sans-serif",
    ...extra,
  };
}

function seriesStyle(k) {
  return { stroke: () => colour(`series-${k % SERIES}`), width: 2, dash: DASHES[Math.floor(k / SERIES) % 4] };
}

// Charts are made again where the theme or the width changes: the library keeps colours and sizes.
class Chart {
  constructor(element, options, data) {
    this.element = element;
    this.options = options;
    this.data = data;
    this.hidden = new Set();
    this.make();
    redraws.push(() => this.make());
    let width = element.clientWidth;
    new ResizeObserver(() => {
      if (element.clientWidth === width) return;
      width = element.clientWidth;
      this.make();
    }).observe(element);
  }

  make() {
    this.plot?.destroy();
    const width = Math.max(this.element.clientWidth, 120);
    const series = this.options.series.map((one, k) => ({ ...one, show: !this.hidden.has(k) }));
    this.plot = new uPlot({ ...this.options, series, width }, this.data, this.element);
  }

  show(k, isShown) {
    if (isShown) this.hidden.delete(k);
    else this.hidden.add(k);
    this.plot.setSeries(k, { show: isShown });
  }
}

// Buttons that show and hide a name in several charts at once.
function legend(element, names, charts, seriesOf) {
  names.forEach((name, k) => {
    const button = create("button", "key");
    button.type = "button";
    button.setAttribute("aria-pressed", "true");
    const mark = create("span", "dot");
    mark.style.background = `var(--series-${k % SERIES})`;
    button.append(mark, name);
    button.addEventListener("click", () => {
      const isShown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(isShown));
      for (const chart of charts) for (const index of seriesOf(k)) chart.show(index, isShown);
    });
    element.append(button);
  });
}

const secondsText = (value, step) => timeText(value * 1e9, Math.max(value, 1e-9) * 1e9, step * 1e9);

// Labels at 1, 2 and 5 of a decade, or at 1 where there are many decades.
function roundTimes(plot, splits) {
  const { min, max } = plot.scales.x;
  const lead = max / min < 30 ? ["1", "2", "5"] : max / min < 1000 ? ["1", "3"] : ["1"];
  return splits.map((value) => (lead.includes(value.toExponential(0)[0]) ? value : null));
}

// One logarithmic axis of times, from nothing to all.
function drawCurves(element, curves, names) {
  const charts = curves.map((curve) => {
    const figure = create("figure", "chart");
    figure.append(create("figcaption", "", `${curve.label}: share of ${curve.label === "ITL" ? "gaps" : "requests"} up to a time`));
    const place = create("div");
    const values = create("p", "values", " ");
    figure.append(place, values);
    element.append(figure);
    const shown = names.map((_, k) => curve.shares[k] ?? curve.x_s.map(() => null));
    const tell = (plot) => {
      const at = plot.cursor.idx;
      values.textContent = at === null || at === undefined ? " " : `up to ${secondsText(curve.x_s[at], curve.x_s[at] / 1000)}: ` +
        names.filter((_, k) => curve.shares[k]).map((name, k) => `${name} ${percentText(shown[k][at])}`).join(" · ");
    };
    const isWide = curve.x_s[0] > 0 && curve.x_s.at(-1) > 3 * curve.x_s[0];
    const options = {
      height: 220,
      legend: { show: false },
      padding: [8, 14, 0, 0],
      cursor: { y: false, points: { size: 6 } },
      hooks: { setCursor: [tell] },
      scales: { x: { time: false, distr: isWide ? 3 : 1, range: (_, least, most) => [least, most] }, y: { range: [0, 1] } },
      axes: [
        axis({ size: 34, ...(isWide ? { filter: roundTimes } : {}), values: (_, splits) => splits.map((value) => (value === null ? "" : secondsText(value, value || 1))) }),
        axis({ size: 44, values: (_, splits) => splits.map((value) => `${Math.round(100 * value)} %`) }),
      ],
      series: [{}, ...names.map((name, k) => ({ label: name, ...seriesStyle(k), paths: stepped, points: { show: false } }))],
    };
    return new Chart(place, options, [curve.x_s, ...shown]);
  });
  return charts;
}

// At least and at most over time, with the space between them filled.
function drawBands(element, chart) {
  const columns = chart.bands.flatMap((band) => [band.most, band.least]);
  const options = {
    height: 240,
    legend: { show: false },
    padding: [8, 14, 0, 0],
    scales: { x: { time: false } },
    cursor: { y: false },
    axes: [axis({ size: 46, label: chart.x_label, labelSize: 16, labelFont: "11px system-ui, sans-serif" }),
      axis({ size: 56, label: chart.y_label, labelSize: 16, labelFont: "11px system-ui, sans-serif" })],
    series: [{}, ...chart.bands.flatMap((band, k) => [
      { label: `${band.label}, at most`, ...seriesStyle(k), width: 1, dash: [4, 3] },
      { label: `${band.label}, at least`, ...seriesStyle(k) },
    ])],
    bands: chart.bands.map((_, k) => ({ series: [2 * k + 1, 2 * k + 2], fill: () => colour(`fill-${k % SERIES}`) })),
  };
  const place = create("div");
  const keys = create("div", "keys");
  element.append(keys, place);
  const made = new Chart(place, options, [chart.x, ...columns]);
  legend(keys, chart.bands.map((band) => band.label), [made], (k) => [2 * k + 1, 2 * k + 2]);
}

// Occupied KV blocks as steps; a gap where no batch runs.
function memoryData(schedule, blockTokens) {
  const x = [];
  const y = [];
  const { startNs, endNs, occupiedBlocks } = schedule;
  for (let j = 0; j < startNs.length; j++) {
    x.push(startNs[j] / 1e9);
    y.push(occupiedBlocks[j] * blockTokens);
    if (j + 1 === startNs.length || startNs[j + 1] > endNs[j]) {
      x.push(endNs[j] / 1e9);
      y.push(null);
    }
  }
  return [x, y];
}

function memoryOptions(timeline) {
  const capacity = timeline.capacity;
  const drawCapacity = (plot) => {
    if (capacity > plot.scales.y.max) return;
    const y = Math.round(plot.valToPos(capacity, "y", true));
    const pen = plot.ctx;
    pen.save();
    pen.strokeStyle = colour("evicted");
    pen.setLineDash([6, 4]);
    pen.lineWidth = devicePixelRatio || 1;
    pen.beginPath();
    pen.moveTo(plot.bbox.left, y);
    pen.lineTo(plot.bbox.left + plot.bbox.width, y);
    pen.stroke();
    pen.restore();
  };
  return {
    height: 118,
    legend: { show: false },
    cursor: { show: false },
    padding: [8, RIGHT, 0, 0],
    scales: {
      x: { time: false, range: () => [timeline.view.fromNs / 1e9, timeline.view.toNs / 1e9] },
      y: { range: () => [0, timeline.topTokens()] },
    },
    hooks: { draw: [drawCapacity] },
    axes: [
      axis({ size: 32, space: 70, values: (_, splits, _axis, _space, step) =>
        splits.map((value) => timeText(value * 1e9, timeline.endNs, step * 1e9)) }),
      axis({ size: GUTTER, space: 28, values: (_, splits) => splits.map((value) => whole.format(value)) }),
    ],
    series: [{}, {
      label: "occupied",
      stroke: () => colour("memory"),
      fill: () => colour("memory-fill"),
      width: 1,
      paths: (plot, k, first, last) => (last - first > MOST_STEPS ? thinned : stepped)(plot, k, first, last),
      points: { show: false },
    }],
  };
}
