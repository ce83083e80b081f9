// One schedule: columns of batches, runs of entries by request, and what follows from them.
const LIMITS = ["memory", "tokens", "requests", "nothing"];

class Schedule {
  constructor(data, requests) {
    this.name = data.name;
    this.label = data.is_best && data.is_policy ? `${data.name} (best known)` : data.name;
    this.isBest = data.is_best;
    this.lengthNs = summed(data.length_ns);
    this.occupiedBlocks = summed(data.occupied_blocks);
    this.mostBlocks = this.occupiedBlocks.reduce((most, blocks) => Math.max(most, blocks), 0);
    this.run = {
      request: summed(data.run_request),
      first: summed(data.run_first),
      length: data.run_length,
      tokens: data.run_tokens,
      decodes: data.run_decodes,
    };
    this.events = {
      batch: data.evicted_batch, request: data.evicted_request, toHost: data.evicted_to_host,
    };
    this.#follow(data.idle_ns);
    this.#place(requests, data);
    this.binding = Object.fromEntries(
      LIMITS.map((name) => [name, this.#timeBound(data.binding[name])])
    );
  }

  // Start and end of every batch, its tokens and its requests.
  #follow(idleNs) {
    const count = idleNs.length;
    this.startNs = new Float64Array(count);
    this.endNs = new Float64Array(count);
    let now = 0;
    for (let j = 0; j < count; j++) {
      this.startNs[j] = now + idleNs[j];
      this.endNs[j] = now = this.startNs[j] + this.lengthNs[j];
    }
    const tokens = new Float64Array(count + 1);
    const entries = new Float64Array(count + 1);
    const { first, length, tokens: each } = this.run;
    for (let k = 0; k < first.length; k++) {
      tokens[first[k]] += each[k];
      tokens[first[k] + length[k]] -= each[k];
      entries[first[k]] += 1;
      entries[first[k] + length[k]] -= 1;
    }
    this.tokens = summed(tokens);
    this.numRequests = summed(entries);
    this.mostTokens = this.tokens.reduce((most, value) => Math.max(most, value), 1);
  }

  // Where the runs of each request begin, which of them refill, and where it holds its KV cache.
  #place(requests, data) {
    const runs = this.run;
    const count = requests.id.length;
    this.firstRun = new Int32Array(count + 1).fill(runs.request.length);
    for (let k = runs.request.length - 1; k >= 0; k--) this.firstRun[runs.request[k]] = k;
    for (let i = count - 1; i >= 0; i--) {
      this.firstRun[i] = Math.min(this.firstRun[i], this.firstRun[i + 1]);
    }
    const leaves = new Map();
    data.evicted_batch.forEach((batch, k) => {
      const request = data.evicted_request[k];
      if (!leaves.has(request)) leaves.set(request, []);
      leaves.get(request).push([batch, data.evicted_to_host[k]]);
    });
    const restored = new Map();
    data.restored_batch.forEach((batch, k) => {
      const request = data.restored_request[k];
      if (!restored.has(request)) restored.set(request, []);
      restored.get(request).push(batch);
    });
    this.refills = new Uint8Array(runs.request.length);
    this.lastNs = new Float64Array(count).fill(Infinity);
    // Stays on the device: request, first batch, batch after the last.
    this.stays = [];
    for (let i = 0; i < count; i++) this.#followRequest(i, leaves.get(i) ?? [], restored.get(i) ?? [], requests);
  }

  #followRequest(i, leaves, restored, requests) {
    const { first, length, tokens, decodes } = this.run;
    leaves.sort((a, b) => a[0] - b[0]);
    const events = leaves.map(([batch]) => batch);
    let begin = -1;
    let refilling = false;
    let kv = 0;
    let generated = 0;
    let next = 0;
    for (let k = this.firstRun[i]; k < this.firstRun[i + 1]; k++) {
      while (next < events.length && events[next] <= first[k]) {
        if (begin >= 0) this.stays.push([i, begin, events[next]]);
        begin = -1;
        if (!leaves[next][1]) {
          refilling = true;
          kv = 0;
        }
        const back = restored.find((batch) => batch >= events[next] && batch <= first[k]);
        if (back !== undefined) begin = back;
        next++;
      }
      if (begin < 0) begin = first[k];
      this.refills[k] = refilling && !decodes[k] ? 1 : 0;
      kv += tokens[k] * length[k];
      if (decodes[k]) generated += length[k];
      else if (kv === requests.prompt_tokens[i] + generated) {
        generated++;
        refilling = false;
      }
      const isDone = generated === requests.output_tokens[i];
      if (isDone) this.lastNs[i] = this.endNs[first[k] + length[k] - 1];
      if (isDone) this.stays.push([i, begin, first[k] + length[k]]);
      if (isDone) begin = -1;
    }
    if (begin >= 0) this.stays.push([i, begin, next < events.length ? events[next] : this.startNs.length]);
  }

  // Time in which a limit has bound before each batch, from the batches where it begins and ends to bind.
  #timeBound(changes) {
    const total = new Float64Array(this.startNs.length + 1);
    let binds = false;
    let next = 0;
    for (let j = 0; j < this.startNs.length; j++) {
      if (changes[next] === j) {
        binds = !binds;
        next++;
      }
      total[j + 1] = total[j] + (binds ? this.lengthNs[j] : 0);
    }
    return total;
  }

  // Share of a span of time in which a limit binds.
  shareBound(name, fromNs, toNs) {
    const total = this.binding[name];
    return (this.#until(total, toNs) - this.#until(total, fromNs)) / (toNs - fromNs);
  }

  #until(total, ns) {
    const j = numUpTo(this.startNs, ns) - 1;
    if (j < 0) return 0;
    const part = this.lengthNs[j] ? Math.min(1, (ns - this.startNs[j]) / this.lengthNs[j]) : 1;
    return total[j] + part * (total[j + 1] - total[j]);
  }

  // When a request is processed for the first time.
  firstNs(i) {
    const k = this.firstRun[i];
    return k < this.firstRun[i + 1] ? this.startNs[this.run.first[k]] : Infinity;
  }

  // The batch that runs at a time; -1 where none does.
  batchAt(ns) {
    const j = numUpTo(this.startNs, ns) - 1;
    return j >= 0 && ns < this.endNs[j] ? j : -1;
  }

  // The entry of a request in a batch: its phase, c and m; null if it has none.
  entry(i, batch) {
    const { first, length, tokens, decodes } = this.run;
    const left = this.events.batch.filter((b, k) => this.events.request[k] === i && b <= batch && !this.events.toHost[k]);
    const since = Math.max(-1, ...left);
    let kv = 0;
    for (let k = this.firstRun[i]; k < this.firstRun[i + 1] && first[k] <= batch; k++) {
      const isHere = batch < first[k] + length[k];
      if (first[k] >= since) kv += tokens[k] * (isHere ? batch - first[k] + 1 : length[k]);
      if (isHere) {
        const phase = decodes[k] ? "decode" : this.refills[k] ? "refill" : "prefill";
        return { phase, tokens: tokens[k], kv };
      }
    }
    return null;
  }

  // Tokens of every request of a batch.
  entriesOf(batch) {
    const { request, first, length, tokens } = this.run;
    const found = new Map();
    for (let k = 0; k < first.length; k++) {
      if (first[k] <= batch && batch < first[k] + length[k]) found.set(request[k], tokens[k]);
    }
    return found;
  }
}
