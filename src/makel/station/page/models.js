// Models: what judges, what could, and what its thresholds mean.

import { ask, get, post } from "./api.js";
import { Candidates } from "./candidates.js";
import { scoreHistogram } from "./charts.js";
import { enable, h, put, say, shape } from "./dom.js";
import { heatSlider, Viewer } from "./part.js";
import { station } from "./station.js";
import { Teach } from "./teach.js";
import { counted, figure, percent, time } from "./words.js";

const teach = new Teach(); // what is chosen, sent or learnt there goes on while another view is looked at

export class ModelsView {
  title = "Models";
  #name = null;
  #version = null;
  #candidates = null;
  #subscriptions = new AbortController();

  constructor() {
    this.list = h("ul", { class: "models" });
    this.take = h("input", { type: "file", id: "model-zip", class: "visually-hidden", accept: ".zip", tabindex: -1, "aria-label": "A zip of a model folder" });
    this.take.addEventListener("change", () => this.#takeIn(this.take.files[0]));
    this.panel = h("div", { class: "panel" });
    this.element = h(
      "div",
      { class: "models-view" },
      h("h1", { class: "visually-hidden" }, "Models"),
      h(
        "aside",
        { class: "side", "aria-label": "All models" },
        h("section", { class: "card" }, h("h2", null, "Models"), this.list, (this.add = h("button", { type: "button", class: "quiet", onclick: () => this.take.click() }, "Add a fitted model (zip)…")), this.take),
        teach.element,
      ),
      this.panel,
    );
  }

  open(name, version) {
    const { signal } = this.#subscriptions;
    station.addEventListener("models", () => this.#draw(), { signal });
    teach.addEventListener("ended", (event) => this.#learnt(event.detail), { signal });
    teach.open();
    this.go(name, version);
    station.refreshModels().catch((problem) => say(problem.message, "problem"));
  }

  go(name, version) {
    this.#name = name || null;
    this.#version = version || null;
    this.shown = null;
    this.#draw();
  }

  close() {
    this.#subscriptions.abort();
    teach.close();
    this.#candidates?.close();
  }

  // What is being read stays: the job itself leads to the new version.
  async #learnt(job) {
    if (job.state !== "done") return;
    say(`${job.name}, version ${job.version}, is learnt.`);
    await station.refreshModels();
  }

  #draw() {
    const { models } = station;
    teach.known(models.map((model) => model.name));
    enable(this.add, station.isEngineer);
    this.#name ??= models[0]?.name ?? null;
    const name = this.#name;
    put(
      this.list,
      models.map((model) =>
        h(
          "li",
          null,
          h(
            "a",
            { href: `#models/${model.name}`, class: "model-row", "aria-current": model.name === name ? "true" : undefined },
            h("b", null, model.name),
            h("span", { class: "muted" }, model.problem ? "does not serve" : `version ${model.active} judges, ${percent(model.promised_false_reject)} promised`),
          ),
        ),
      ),
      models.length ? null : h("li", { class: "muted" }, "None yet: teach one below."),
    );
    const model = station.model(name);
    if (!model) {
      this.shown = null;
      put(this.panel, h("p", { class: "muted invitation" }, this.#name ? `There is no model ${this.#name}.` : "Give the station good images of a product. It learns what good looks like, and judges from then on."));
      return;
    }
    // The version that was being read when another began to judge is still the one that is read.
    this.#version ??= model.active;
    const version = Number(this.#version);
    const key = `${model.name}/${this.#version}`;
    if (key !== this.shown) {
      this.shown = key;
      this.#candidates?.close();
      this.#candidates = new Candidates(model.name);
      this.#candidates.addEventListener("activated", () => station.refreshModels());
      this.budget = null;
      this.versions = h("section", { class: "card" });
      this.drawn = null;
      const known = model.versions.some((each) => each.version === version);
      const rest = known ? [this.#thresholds(model, version), this.#trial(model, version), this.#report(model, version)] : h("p", { class: "problem" }, `${model.name} has no version ${this.#version}.`);
      put(this.panel, this.versions, this.#candidates.element, rest);
    }
    const drawn = JSON.stringify([model, station.isEngineer], (name, value) => (name === "depth" ? undefined : value));
    if (drawn !== this.drawn) put(this.versions, this.#versions(model, version));
    this.drawn = drawn;
    this.#offerBudget(model, version);
  }

  // Other versions do not judge: what a budget is compared with is the one that does.
  #offerBudget(model, version) {
    if (this.budget) this.budget.hidden = version !== model.active;
  }

  #versions(model, chosen) {
    const act = (words, path, body, kind = "") =>
      h("button", { type: "button", class: kind, disabled: !station.isEngineer, onclick: () => this.#change(model.name, path, body) }, words);
    const rows = model.versions.map((version) =>
      h(
        "tr",
        { class: version.version === chosen ? "chosen" : undefined },
        h("th", { scope: "row" }, h("a", { href: `#models/${model.name}/${version.version}`, "aria-current": version.version === chosen ? "true" : undefined }, `Version ${version.version}`)),
        h("td", null, version.created ? time(version.created) : "–"),
        h("td", null, h("code", null, version.model_id.slice(0, 8))),
        h("td", null, version.problem ? h("span", { class: "problem" }, version.problem) : version.active ? h("strong", { class: "judges" }, shape("pass"), "judges now") : act("Activate", "activate", { version: version.version }, version.version === chosen ? "primary" : "")),
      ),
    );
    const facts = [model.method, model.size_px ? `${model.size_px.join(" x ")} px` : "", model.n_calibrate ? `${model.n_calibrate} images held out` : ""].filter(Boolean).join(", ");
    return [
      h("header", { class: "spread" }, h("h2", null, model.name), h("p", { class: "muted" }, facts), h("span", { class: "spring" }), model.before ? act(`Back to version ${model.before}`, "rollback") : null),
      model.problem ? h("p", { class: "problem" }, model.problem) : null,
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Versions" }, h("table", null, h("thead", null, h("tr", null, ["Version", "Fitted", "Id", "State"].map((word) => h("th", { scope: "col" }, word)))), h("tbody", null, rows.reverse()))),
      station.isEngineer ? null : h("p", { class: "muted" }, "An engineer can activate a version."),
    ];
  }

  async #change(name, path, body) {
    try {
      const version = await post(`/models/${name}/${path}`, body);
      say(`Version ${version.version} of ${name} was activated.`);
      await station.refreshModels();
    } catch (problem) {
      say(problem.message, "problem");
    }
  }

  #thresholds(model, version) {
    const body = h("div", null, h("p", { class: "muted" }, "Reading the scores…"));
    this.#readThresholds(model.name, version, body).catch((problem) => put(body, h("p", { class: "problem" }, problem.message)));
    return h("section", { class: "card" }, h("h2", null, `Threshold of version ${version}`), body);
  }

  async #readThresholds(name, version, body) {
    const path = `/models/${name}/thresholds`;
    const told = await get(path, { version });
    const own = told.levels.findIndex((level) => Math.abs(level.false_reject - told.promised_false_reject) < 1e-9);
    const chart = h("div");
    const words = h("p", { class: "means", role: "status" });
    const explanation = h("p", { class: "muted" }, told.explanation);
    // To the right the threshold is higher and fewer good parts are rejected.
    const slider = h("input", { id: "threshold", type: "range", min: 0, max: told.levels.length - 1, step: 1, value: told.levels.length - 1 - Math.max(0, own) });
    let asked = 0;
    const move = (isMoved) => {
      const index = told.levels.length - 1 - Number(slider.value);
      const { threshold, false_reject: rate } = told.levels[index];
      put(chart, scoreHistogram(told.scores, told.recent, threshold, told.image_threshold));
      const above = told.recent.filter((score) => score > threshold).length;
      const recent = told.recent.length ? ` Of the ${counted(told.recent.length, "latest part")} it would reject ${above}.` : "";
      const verb = told.scheme === "cross" ? "is meant to reject" : "rejects";
      const own_ = index === own ? " This is the model's own." : "";
      put(words, "A threshold of ", h("b", null, figure(threshold)), ` ${verb} at most `, h("b", null, percent(rate)), ` of good parts.${own_}${recent}`);
      slider.setAttribute("aria-valuetext", `${figure(threshold)}, ${percent(rate)} of good parts`);
      clearTimeout(asked);
      if (isMoved) asked = setTimeout(async () => put(explanation, (await get(path, { version, false_reject: rate })).explanation), 250);
    };
    slider.addEventListener("input", () => move(true));
    const candidates = this.#candidates;
    const take = h("button", { type: "button", disabled: !station.isEngineer, onclick: () => candidates.begin("budget", told.levels[told.levels.length - 1 - Number(slider.value)].false_reject) }, "Make a candidate of it");
    put(
      body,
      chart,
      h("p", { class: "legend" }, h("span", { class: "key held" }), "held-out good images, upwards", h("span", { class: "key seen" }), "latest parts, downwards", h("span", { class: "key own" }), "the model's own threshold"),
      h("div", { class: "slider wide" }, h("label", { for: "threshold" }, "Threshold"), slider),
      words,
      explanation,
      h("div", { class: "tools" }, take),
    );
    if (this.shown === `${name}/${version}`) this.budget = take;
    this.#offerBudget(station.model(name), version);
    move(false);
  }

  #trial(model, version) {
    const results = h("ol", { class: "tried" });
    const input = h("input", { type: "file", id: "try-file", class: "visually-hidden", multiple: true, accept: "image/*,.tif,.tiff", tabindex: -1, "aria-label": "Images to try" });
    const run = async (files) => {
      for (const file of files) {
        try {
          const options = { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } };
          const said = await (await ask(`/models/${model.name}/try?version=${version}`, options)).json();
          results.prepend(this.#tried(file.name, said));
        } catch (problem) {
          say(`${file.name}: ${problem.message}`, "problem");
        }
      }
      input.value = "";
    };
    input.addEventListener("change", () => run([...input.files]));
    const section = h(
      "section",
      { class: "card" },
      h("header", { class: "spread" }, h("h2", null, `Try version ${version}`), h("p", { class: "muted" }, "Nothing is recorded."), h("span", { class: "spring" }), heatSlider("try-heat"), h("button", { type: "button", onclick: () => input.click() }, "Try images…"), input),
      results,
    );
    section.addEventListener("dragover", (event) => event.preventDefault());
    section.addEventListener("drop", (event) => {
      event.preventDefault();
      run([...event.dataTransfer.files]);
    });
    return section;
  }

  #tried(name, said) {
    const viewer = new Viewer(name);
    const [width, height] = said.size_px;
    viewer.draw({ url: `data:image/jpeg;base64,${said.view_jpg}`, heatUrl: `data:image/png;base64,${said.heat_png}`, width, height, regions: said.regions, words: said.verdict });
    return h("li", { class: said.verdict }, viewer.element, h("p", null, shape(said.verdict), " ", h("b", null, said.verdict), ` ${name}`), h("p", { class: "muted" }, `score ${figure(said.score, 3)} of ${figure(said.threshold, 3)}, p ${figure(said.p_value, 3)}`));
  }

  #report(model, version) {
    const frame = h("iframe", { title: `Report of ${model.name}, version ${version}`, src: `/models/${model.name}/report?version=${version}`, sandbox: "allow-scripts", loading: "lazy" });
    return h("section", { class: "card report" }, h("h2", null, `Report of version ${version}`), frame);
  }

  async #takeIn(file) {
    this.take.value = "";
    const name = file.name.replace(/\.zip$/i, "").replace(/[^A-Za-z0-9_-]+/g, "_");
    try {
      const options = { method: "POST", body: file, headers: { "Content-Type": "application/zip" } };
      await ask(`/models?name=${encodeURIComponent(name)}`, options);
      await station.refreshModels();
      location.hash = `#models/${name}`;
    } catch (problem) {
      say(problem.message, "problem");
    }
  }
}
