// Lanes on a canvas: a row a request, a rectangle a run or, where there is room, a cell a batch.
const GUTTER = 62;
const RIGHT = 14;
const CELL_PX = 5;
const LABEL_PX = 11;
const MOST_ROW_PX = 34;
const STRIP_ROW = 11;

function prepared(canvas, height) {
  const width = canvas.parentElement.clientWidth;
  const density = devicePixelRatio || 1;
  canvas.width = Math.round(width * density);
  canvas.height = Math.round(height * density);
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.setTransform(density, 0, 0, density, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui, sans-serif";
  return { pen, width, height };
}

class Lanes {
  constructor(canvas, height) {
    this.canvas = canvas;
    this.height = height;
  }

  draw(schedule, requests, rows, view) {
    const { pen, width, height } = prepared(this.canvas, this.height);
    this.width = width;
    this.rows = rows;
    this.place = new Int32Array(requests.id.length).fill(-1);
    rows.forEach((i, row) => (this.place[i] = row));
    this.rowPx = Math.min(MOST_ROW_PX, height / Math.max(rows.length, 1));
    const scale = (width - GUTTER - RIGHT) / (view.toNs - view.fromNs);
    this.x = (ns) => GUTTER + (ns - view.fromNs) * scale;
    this.pen = pen;
    this.#names(requests, width);
    pen.save();
    pen.beginPath();
    pen.rect(GUTTER, 0, width - GUTTER - RIGHT, height);
    pen.clip();
    this.#waits(schedule, requests, view);
    this.#stays(schedule, view);
    this.#runs(schedule, view, "decode", (k) => schedule.run.decodes[k]);
    this.#runs(schedule, view, "prefill", (k) => !schedule.run.decodes[k] && !schedule.refills[k]);
    this.#runs(schedule, view, "refill", (k) => schedule.refills[k]);
    this.#evictions(schedule, view);
    pen.restore();
    pen.strokeStyle = colour("line");
    pen.strokeRect(GUTTER + 0.5, 0.5, width - GUTTER - RIGHT - 1, height - 1);
  }

  requestAt(y) {
    return this.rows[Math.floor(y / this.rowPx)] ?? -1;
  }

  #names(requests, width) {
    const { pen, rows, rowPx } = this;
    pen.fillStyle = colour("muted");
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    if (rowPx < LABEL_PX) {
      pen.fillText(`${whole.format(rows.length)}`, GUTTER - 6, 10);
      pen.fillText("requests", GUTTER - 6, 24);
      return;
    }
    rows.forEach((i, row) => {
      let name = requests.id[i];
      while (name.length > 1 && pen.measureText(name).width > GUTTER - 10) name = `${name.slice(0, -2)}…`;
      pen.fillText(name, GUTTER - 6, (row + 0.5) * rowPx);
      pen.globalAlpha = 0.35;
      pen.fillRect(GUTTER, Math.round((row + 1) * rowPx), width - GUTTER - RIGHT, 0.5);
      pen.globalAlpha = 1;
    });
  }

  // A thin line from the arrival to the last token: what the request waits.
  #waits(schedule, requests, view) {
    const { pen, rowPx } = this;
    pen.fillStyle = colour("wait");
    pen.globalAlpha = rowPx < 3 ? 0.6 : 1;
    this.rows.forEach((i, row) => {
      const last = Math.min(schedule.lastNs[i], view.toNs);
      const thick = Math.min(2, Math.max(0.5, rowPx / 4));
      this.#bar(requests.arrivalNs[i], last, row * rowPx + (rowPx - thick) / 2, thick);
    });
    pen.globalAlpha = 1;
  }

  #stays(schedule, view) {
    const { rowPx } = this;
    this.pen.fillStyle = colour("resident");
    for (const [i, first, end] of schedule.stays) {
      const row = this.place[i];
      const from = schedule.startNs[first];
      const to = schedule.endNs[end - 1];
      if (row < 0 || end <= first || to < view.fromNs || from > view.toNs) continue;
      this.#bar(from, to, row * rowPx + this.#gap(), rowPx - 2 * this.#gap());
    }
  }

  #gap() {
    return this.rowPx > 8 ? 1.5 : 0;
  }

  #runs(schedule, view, name, isWanted) {
    const { request, first, length } = schedule.run;
    const { startNs, endNs } = schedule;
    this.pen.fillStyle = colour(name);
    for (let k = 0; k < request.length; k++) {
      const row = this.place[request[k]];
      if (row < 0 || !isWanted(k)) continue;
      const from = startNs[first[k]];
      const to = endNs[first[k] + length[k] - 1];
      if (to < view.fromNs || from > view.toNs) continue;
      if (name === "decode") this.pen.globalAlpha = 1;
      else this.pen.globalAlpha = 0.7 + 0.3 * (schedule.run.tokens[k] / schedule.mostTokens);
      const y = row * this.rowPx + this.#gap();
      const high = this.rowPx - 2 * this.#gap();
      if ((this.x(to) - this.x(from)) / length[k] < CELL_PX) this.#bar(from, to, y, high);
      else this.#cells(schedule, k, view, y, high);
    }
    this.pen.globalAlpha = 1;
  }

  #cells(schedule, k, view, y, high) {
    const { pen } = this;
    const { first, length, tokens } = schedule.run;
    const begin = Math.max(first[k], numUpTo(schedule.endNs, view.fromNs));
    const end = Math.min(first[k] + length[k], numUpTo(schedule.startNs, view.toNs));
    const text = whole.format(tokens[k]);
    const textPx = pen.measureText(text).width + 4;
    for (let j = begin; j < end; j++) {
      const left = this.x(schedule.startNs[j]);
      const wide = this.x(schedule.endNs[j]) - left;
      pen.fillRect(left + 0.5, y, Math.max(wide - 1, 0.5), high);
      if (wide < textPx || high < LABEL_PX) continue;
      const fill = pen.fillStyle;
      const alpha = pen.globalAlpha;
      pen.globalAlpha = 1;
      pen.fillStyle = colour("on-cell");
      pen.textAlign = "center";
      pen.fillText(text, left + wide / 2, y + high / 2 + 0.5);
      pen.fillStyle = fill;
      pen.globalAlpha = alpha;
    }
  }

  // At least a pixel wide, so that nothing that is there vanishes; thin rows share whole pixels.
  #bar(fromNs, toNs, y, high) {
    const left = Math.max(this.x(fromNs), GUTTER - 1);
    const right = Math.min(this.x(toNs), this.width);
    if (right < GUTTER) return;
    if (this.rowPx < 2) this.pen.fillRect(left, Math.floor(y), Math.max(right - left, 1), Math.max(Math.round(high), 1));
    else this.pen.fillRect(left, y, Math.max(right - left, 1), high);
  }

  #evictions(schedule, view) {
    const { pen } = this;
    pen.strokeStyle = colour("evicted");
    pen.lineWidth = 2;
    const size = Math.min(5, Math.max(2.5, this.rowPx / 3));
    pen.beginPath();
    schedule.events.batch.forEach((batch, k) => {
      const at = schedule.startNs[batch];
      const row = this.place[schedule.events.request[k]];
      if (row < 0 || at < view.fromNs || at > view.toNs) return;
      const x = this.x(at);
      const y = (row + 0.5) * this.rowPx;
      pen.moveTo(x - size, y - size);
      pen.lineTo(x + size, y + size);
      // A cross where the KV cache is lost, an arrowhead down where it goes to host memory.
      if (schedule.events.toHost[k]) pen.lineTo(x + size, y - size);
      else {
        pen.moveTo(x - size, y + size);
        pen.lineTo(x + size, y - size);
      }
    });
    pen.stroke();
    pen.lineWidth = 1;
  }
}

// A row for each limit: how dark a pixel is, is the share of its time in which the limit binds.
function drawStrip(canvas, schedule, view) {
  const { pen, width } = prepared(canvas, STRIP_ROW * LIMITS.length + 2);
  const wide = width - GUTTER - RIGHT;
  const nsPerPx = (view.toNs - view.fromNs) / wide;
  pen.font = "10px system-ui, sans-serif";
  pen.textAlign = "right";
  pen.textBaseline = "middle";
  LIMITS.forEach((name, row) => {
    const y = row * STRIP_ROW + 1;
    pen.globalAlpha = 1;
    pen.fillStyle = colour("muted");
    pen.fillText(name, GUTTER - 6, y + STRIP_ROW / 2);
    pen.fillStyle = colour("resident");
    pen.globalAlpha = 0.35;
    pen.fillRect(GUTTER, y, wide, STRIP_ROW - 2);
    pen.fillStyle = colour(`limit-${name}`);
    for (let px = 0; px < wide; px++) {
      const from = view.fromNs + px * nsPerPx;
      const share = schedule.shareBound(name, from, from + nsPerPx);
      if (share < 1e-6) continue;
      pen.globalAlpha = 0.25 + 0.75 * Math.min(share, 1);
      pen.fillRect(GUTTER + px, y, 1, STRIP_ROW - 2);
    }
  });
  pen.globalAlpha = 1;
}
