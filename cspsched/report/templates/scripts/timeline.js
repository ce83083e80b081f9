// Two schedules on one time axis: zoom and pan by wheel, drag, buttons and keys.
const STEP = 1.6;
const SHIFT = 0.25;
const MOST_NAMED = 8;
// From this share of the capacity on the memory is drawn up to all of it.
const FULL = 0.5;

class Timeline {
  constructor(element, data) {
    this.element = element;
    this.data = data;
    this.requests = {
      ...data.requests,
      arrivalNs: summed(data.requests.arrival_ns),
    };
    this.byArrival = [...this.requests.id.keys()];
    this.byArrival.sort((a, b) => this.requests.arrivalNs[a] - this.requests.arrivalNs[b] || a - b);
    this.schedules = data.schedules.map((one) => new Schedule(one, this.requests));
    this.endNs = data.end_ns;
    this.capacity = data.limits.kv_blocks * data.limits.block_tokens;
    this.mostOccupied = Math.max(...this.schedules.map((one) => one.mostBlocks)) * data.limits.block_tokens;
    this.isWhole = this.mostOccupied > FULL * this.capacity;
    this.isStarted = false;
    this.leastSpanNs = Math.max(10, this.endNs / 1e7);
    this.view = { fromNs: 0, toNs: this.endNs };
    this.cursorNs = null;
    this.surface = element.querySelector("[data-surface]");
    this.said = element.querySelector("[data-said]");
    this.#makePanels();
    this.#listen();
    this.redraw();
    redraws.push(() => this.redraw());
    new ResizeObserver(() => this.redraw()).observe(this.surface);
  }

  topTokens() {
    return 1.06 * (this.isWhole ? this.capacity : this.mostOccupied) || 1;
  }

  #makePanels() {
    const best = Math.max(0, this.schedules.findIndex((one) => one.isBest));
    const other = this.schedules.findIndex((_, k) => k !== best);
    const height = Math.min(250, Math.max(90, 22 * this.requests.id.length));
    this.panels = [best, other].filter((k) => k >= 0).map((chosen, k) => {
      const box = this.surface.querySelector(`[data-panel="${k}"]`);
      box.hidden = false;
      const select = box.querySelector("select");
      this.schedules.forEach((one, index) => {
        select.add(new Option(one.label, index, index === chosen, index === chosen));
      });
      const panel = {
        chosen, box, select,
        lanes: new Lanes(box.querySelector("canvas.lanes"), height),
        strip: box.querySelector("canvas.strip"),
        shares: box.querySelector("[data-shares]"),
        most: box.querySelector("[data-most]"),
        mark: box.querySelector("[data-mark]"),
      };
      panel.memory = new Chart(box.querySelector("[data-memory]"), memoryOptions(this), this.#memoryOf(chosen));
      select.addEventListener("change", () => {
        panel.chosen = Number(select.value);
        panel.memory.data = this.#memoryOf(panel.chosen);
        panel.memory.make();
        this.redraw();
      });
      return panel;
    });
  }

  #memoryOf(k) {
    return memoryData(this.schedules[k], this.data.limits.block_tokens);
  }

  // First batch whose entries differ between the two that are shown; null if there is none.
  difference() {
    if (this.panels.length < 2) return null;
    const pair = this.panels.map((panel) => panel.chosen).sort((a, b) => a - b);
    return this.data.differs.find(([a, b]) => a === pair[0] && b === pair[1])?.[2] ?? null;
  }

  set(fromNs, toNs) {
    const span = Math.min(Math.max(toNs - fromNs, this.leastSpanNs), this.endNs);
    const middle = (fromNs + toNs) / 2;
    const from = Math.min(Math.max(middle - span / 2, 0), this.endNs - span);
    this.view = { fromNs: from, toNs: from + span };
    this.schedule();
  }

  zoom(factor, aroundNs = (this.view.fromNs + this.view.toNs) / 2) {
    const { fromNs, toNs } = this.view;
    const span = Math.min(Math.max((toNs - fromNs) / factor, this.leastSpanNs), this.endNs);
    const from = aroundNs - (span * (aroundNs - fromNs)) / (toNs - fromNs);
    this.set(from, from + span);
  }

  pan(share) {
    const by = share * (this.view.toNs - this.view.fromNs);
    this.set(this.view.fromNs + by, this.view.toNs + by);
  }

  reset() {
    this.set(0, this.endNs);
  }

  goToDifference() {
    const batch = this.difference();
    if (batch === null) return;
    const places = this.panels.map(({ chosen }) => this.schedules[chosen]).filter((one) => batch < one.startNs.length);
    if (!places.length) return;
    const starts = places.map((one) => one.startNs[batch]);
    const around = 12 * Math.max(...places.map((one) => one.lengthNs[batch]));
    this.set(Math.min(...starts) - around, Math.max(...starts) + around);
  }

  // Many events, one picture.
  schedule() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.redraw();
    });
  }

  redraw() {
    const { view, requests } = this;
    const shown = this.panels.map((panel) => this.schedules[panel.chosen]);
    const rows = this.byArrival.filter((i) =>
      requests.arrivalNs[i] <= view.toNs && shown.some((one) => one.lastNs[i] >= view.fromNs &&
        (!this.isStarted || one.firstNs(i) <= view.toNs)));
    for (const panel of this.panels) {
      const schedule = this.schedules[panel.chosen];
      panel.most.textContent = percentText(schedule.mostBlocks / this.data.limits.kv_blocks);
      panel.lanes.draw(schedule, requests, rows, view);
      drawStrip(panel.strip, schedule, view);
      panel.memory.plot.setScale("x", { min: view.fromNs / 1e9, max: view.toNs / 1e9 });
      panel.shares.textContent = LIMITS.map((name) =>
        `${name} ${percentText(schedule.shareBound(name, view.fromNs, view.toNs))}`).join(" · ");
    }
    this.element.dataset.fromNs = view.fromNs;
    this.element.dataset.toNs = view.toNs;
    const step = (view.toNs - view.fromNs) / 1000;
    this.element.querySelector("[data-range]").textContent =
      `${timeText(view.fromNs, this.endNs, step)} to ${timeText(view.toNs, this.endNs, step)} of ${timeText(this.endNs, this.endNs, this.endNs / 1000)}`;
    this.#markDifference();
    this.#moveCursor();
  }

  #x(ns) {
    const wide = this.surface.clientWidth - GUTTER - RIGHT;
    return GUTTER + ((ns - this.view.fromNs) / (this.view.toNs - this.view.fromNs)) * wide;
  }

  #ns(x) {
    const wide = this.surface.clientWidth - GUTTER - RIGHT;
    return this.view.fromNs + ((x - GUTTER) / wide) * (this.view.toNs - this.view.fromNs);
  }

  #markDifference() {
    const batch = this.difference();
    for (const panel of this.panels) {
      const at = batch === null ? undefined : this.schedules[panel.chosen].startNs[batch];
      panel.mark.hidden = at === undefined || at < this.view.fromNs || at > this.view.toNs;
      if (!panel.mark.hidden) panel.mark.style.left = `${this.#x(at)}px`;
      panel.mark.classList.toggle("left", !panel.mark.hidden && this.#x(at) > this.surface.clientWidth - 140);
    }
    const text = this.element.querySelector("[data-difference]");
    if (this.panels.length < 2) text.textContent = "";
    else if (batch === null) text.textContent = "The two schedules have the same entries in every batch.";
    else text.textContent = this.#differenceText(batch);
  }

  #differenceText(batch) {
    const shown = this.panels.map((panel) => this.schedules[panel.chosen]);
    const [one, other] = shown.map((schedule) => schedule.entriesOf(batch));
    const differs = [...new Set([...one.keys(), ...other.keys()])].filter((i) => one.get(i) !== other.get(i));
    const named = differs.slice(0, MOST_NAMED).map((i) =>
      `${this.requests.id[i]} ${whole.format(one.get(i) ?? 0)} against ${whole.format(other.get(i) ?? 0)}`);
    const rest = differs.length > MOST_NAMED ? ` and ${whole.format(differs.length - MOST_NAMED)} more` : "";
    const found = named.length ? `: tokens of ${named.join(", ")}${rest}` : ", which is cut off here";
    return `First difference between ${shown[0].label} and ${shown[1].label} in batch ${whole.format(batch)}${found}.`;
  }

  #moveCursor() {
    const line = this.surface.querySelector("[data-cursor]");
    const at = this.cursorNs;
    line.hidden = at === null || at < this.view.fromNs || at > this.view.toNs;
    if (!line.hidden) line.style.left = `${this.#x(at)}px`;
  }

  // What is under the pointer: the time, the batch of each schedule, and the request of a row.
  tell(request = -1, live = "off") {
    this.said.setAttribute("aria-live", live);
    this.#moveCursor();
    const at = this.cursorNs;
    if (at === null) return;
    const step = (this.view.toNs - this.view.fromNs) / 1000;
    const lines = [timeText(at, this.endNs, step) + (request < 0 ? "" : `, request ${this.requests.id[request]}`)];
    for (const panel of this.panels) lines.push(this.#batchText(this.schedules[panel.chosen], at, request));
    this.said.replaceChildren(...lines.map((line) => create("span", "", line)));
  }

  #batchText(schedule, at, request) {
    const j = schedule.batchAt(at);
    if (j < 0) return `${schedule.label}: no batch`;
    const { limits } = this.data;
    const told = [
      `${schedule.label}: batch ${whole.format(j)}`,
      `${whole.format(schedule.tokens[j])} of ${whole.format(limits.max_batch_tokens)} tokens`,
      `${whole.format(schedule.numRequests[j])} of ${whole.format(limits.max_batch_requests)} requests`,
      `${whole.format(schedule.occupiedBlocks[j])} of ${whole.format(limits.kv_blocks)} KV blocks`,
    ];
    if (request >= 0) {
      const entry = schedule.entry(request, j);
      told.push(entry ? `${entry.phase} c ${whole.format(entry.tokens)} m ${whole.format(entry.kv)}` : "not in the batch");
    }
    return told.join(" · ");
  }

  // The cursor goes to the next or last batch of the lower schedule.
  stepCursor(by) {
    const { startNs, endNs } = this.schedules[this.panels.at(-1).chosen];
    const now = numUpTo(startNs, this.cursorNs ?? this.view.fromNs) - 1;
    const j = Math.min(Math.max(now + by, 0), startNs.length - 1);
    this.cursorNs = (startNs[j] + endNs[j]) / 2;
    if (this.cursorNs < this.view.fromNs || this.cursorNs > this.view.toNs) {
      const half = (this.view.toNs - this.view.fromNs) / 2;
      this.set(this.cursorNs - half, this.cursorNs + half);
    }
    this.tell(-1, "polite");
  }

  #listen() {
    const actions = {
      in: () => this.zoom(STEP),
      out: () => this.zoom(1 / STEP),
      left: () => this.pan(-SHIFT),
      right: () => this.pan(SHIFT),
      reset: () => this.reset(),
      difference: () => this.goToDifference(),
    };
    for (const button of this.element.querySelectorAll("[data-do]")) {
      button.addEventListener("click", actions[button.dataset.do]);
    }
    const keys = {
      "+": actions.in, "=": actions.in, "-": actions.out, "ArrowLeft": actions.left,
      "ArrowRight": actions.right, "0": actions.reset, "Escape": actions.reset, "d": actions.difference,
      "Home": () => this.pan(-1e9), "End": () => this.pan(1e9),
      "[": () => this.stepCursor(-1), "]": () => this.stepCursor(1),
    };
    this.surface.addEventListener("keydown", (event) => {
      if (event.target !== this.surface || event.ctrlKey || event.metaKey || event.altKey) return;
      if (!keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });
    for (const toggle of this.element.querySelectorAll("[data-toggle]")) {
      const name = toggle.dataset.toggle;
      toggle.setAttribute("aria-pressed", String(this[name]));
      toggle.addEventListener("click", () => {
        this[name] = !this[name];
        toggle.setAttribute("aria-pressed", String(this[name]));
        this.redraw();
      });
    }
    this.#listenToPointer();
  }

  #listenToPointer() {
    const { surface } = this;
    const selection = surface.querySelector("[data-selection]");
    const place = (event) => event.clientX - surface.getBoundingClientRect().left;
    let drag = null;
    // The wheel scrolls the page until the reader is at work here, or holds Ctrl.
    surface.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey && !surface.contains(document.activeElement)) return;
      event.preventDefault();
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) this.pan(event.deltaX / 1000);
      else this.zoom(Math.exp(-Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) / 250), this.#ns(place(event)));
    }, { passive: false });
    surface.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || event.target.closest("select, button") || !event.target.closest("[data-plot]")) return;
      surface.focus({ preventScroll: true });
      const isPan = event.pointerType === "touch" || event.shiftKey;
      drag = { x: place(event), view: this.view, isPan };
      surface.setPointerCapture(event.pointerId);
    });
    surface.addEventListener("pointermove", (event) => {
      const x = place(event);
      if (drag?.isPan) {
        const by = (drag.x - x) * (drag.view.toNs - drag.view.fromNs) / (surface.clientWidth - GUTTER - RIGHT);
        this.set(drag.view.fromNs + by, drag.view.toNs + by);
        return;
      }
      if (drag) {
        selection.hidden = Math.abs(x - drag.x) < 4;
        selection.style.left = `${Math.max(Math.min(x, drag.x), GUTTER)}px`;
        selection.style.width = `${Math.abs(x - drag.x)}px`;
      }
      if (!event.target.closest("[data-plot]") && !drag) return;
      this.cursorNs = Math.min(Math.max(this.#ns(x), this.view.fromNs), this.view.toNs);
      const panel = this.panels.find((one) => one.lanes.canvas === event.target);
      this.tell(panel ? panel.lanes.requestAt(event.offsetY) : -1);
    });
    const drop = (event) => {
      const from = drag;
      drag = null;
      selection.hidden = true;
      if (!from || from.isPan || Math.abs(place(event) - from.x) < 4) return;
      const ends = [from.x, place(event)].map((x) => this.#ns(x)).sort((a, b) => a - b);
      this.set(...ends);
    };
    surface.addEventListener("pointerup", drop);
    surface.addEventListener("pointercancel", () => {
      drag = null;
      selection.hidden = true;
    });
    surface.addEventListener("pointerleave", () => {
      if (drag || document.activeElement === surface) return;
      this.cursorNs = null;
      this.#moveCursor();
    });
    surface.addEventListener("dblclick", (event) => {
      // A captured pointer names the surface itself.
      if (event.target === surface || event.target.closest("[data-plot]")) this.reset();
    });
  }
}
