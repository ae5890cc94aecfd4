// What the page knows of the station: who asks, the models, the latest decisions, and whether the stream is alive.

import { ask, get } from "./api.js";

const REMEMBERED = 500;
const LOOK_EVERY_MS = 10000;

class Station extends EventTarget {
  session = { name: null, role: null, token_needed: false };
  models = [];
  recent = []; // newest last
  loaded = false; // whether models and decisions were ever read
  connection = "connecting";
  heardAt = 0;
  troubles = { obstacles: [], warnings: [] };
  #source = null;
  #retryMs = 1000;

  get isEngineer() {
    return this.session.role === "engineer";
  }

  model(name) {
    return this.models.find((model) => model.name === name);
  }

  async start() {
    this.session = await get("/session");
    this.#tell("session");
    if (this.session.role === null) return;
    this.#listen();
    setInterval(() => this.#watch(), LOOK_EVERY_MS);
  }

  async refreshModels() {
    this.models = (await get("/models")).models;
    this.#tell("models");
  }

  /** The latest decisions of a model, oldest first; of all where none is named. */
  latest(name, count) {
    const mine = name ? this.recent.filter((decision) => decision.model === name) : this.recent;
    return mine.slice(-count);
  }

  /**
   * Those of the latest decisions that say how the line runs now: parts of the line, no tries by hand, since the version
   * that judges began to. Another one's threshold says nothing about this one's rate.
   */
  running(name, count) {
    const line = this.latest(name, REMEMBERED).filter((decision) => decision.source !== "manual");
    const begun = new Map();
    line.forEach(({ model, model_id: id }, index) => {
      const judges = this.model(model)?.model_id;
      if (id && judges && id !== judges) begun.set(model, index);
    });
    return line.filter(({ model }, index) => index > (begun.get(model) ?? -1)).slice(-count);
  }

  /** A decision that was answered, here or somewhere else. */
  update(decision) {
    const index = this.recent.findIndex((each) => each.number === decision.number);
    if (index >= 0) this.recent[index] = decision;
    this.dispatchEvent(new CustomEvent("answer", { detail: decision }));
  }

  #listen() {
    this.#source?.close();
    const source = new EventSource("/events");
    this.#source = source;
    source.onopen = async () => {
      this.#retryMs = 1000;
      try {
        await this.#catchUp();
        this.#connected("live");
        this.#watch();
      } catch {
        this.#lost(source);
      }
    };
    source.addEventListener("decision", (event) => {
      this.heardAt = Date.now();
      this.#take(JSON.parse(event.data));
    });
    // What others do, or the same person in another tab.
    source.addEventListener("models", () => this.refreshModels().catch(() => this.#lost(source)));
    source.addEventListener("answer", (event) => this.update(JSON.parse(event.data)));
    source.addEventListener("candidates", (event) => this.dispatchEvent(new CustomEvent("candidates", { detail: JSON.parse(event.data).model })));
    source.onerror = () => this.#lost(source);
  }

  // The stream brings only what comes from now on, so what came before is read from the record.
  async #catchUp() {
    const [page] = await Promise.all([get("/history", { limit: 200 }), this.refreshModels()]);
    const known = new Map(page.decisions.map((decision) => [decision.number, decision.hash]));
    // A station that came back with another record has other parts of the same numbers.
    const isSame = this.recent.some((decision) => known.get(decision.number) === decision.hash);
    const later = this.recent.filter((decision) => isSame && !known.has(decision.number));
    this.recent = [...later, ...page.decisions].sort((a, b) => a.number - b.number).slice(-REMEMBERED);
    this.heardAt = Date.now();
    this.loaded = true;
    this.#tell("recent");
  }

  #take(decision) {
    if (this.recent.some((each) => each.number === decision.number && decision.number)) return;
    this.recent.push(decision);
    if (this.recent.length > REMEMBERED) this.recent.shift();
    this.dispatchEvent(new CustomEvent("decision", { detail: decision }));
  }

  #lost(source) {
    if (source !== this.#source) return;
    source.close();
    this.#source = null;
    this.#connected("lost");
    setTimeout(() => this.#listen(), this.#retryMs);
    this.#retryMs = Math.min(this.#retryMs * 2, 8000);
  }

  // A cable that is pulled out ends no connection, so the station is asked now and then; and what it lacks is told.
  async #watch() {
    if (this.connection !== "live") return;
    try {
      const response = await ask("/overview", { signal: AbortSignal.timeout(LOOK_EVERY_MS / 2) });
      const { obstacles, warnings } = await response.json();
      this.heardAt = Date.now();
      this.troubles = { obstacles, warnings };
      this.#tell("connection");
    } catch {
      if (this.#source) this.#lost(this.#source);
    }
  }

  #connected(state) {
    this.connection = state;
    this.#tell("connection");
  }

  #tell(what) {
    this.dispatchEvent(new Event(what));
  }
}

export const station = new Station();
