// The frame around the views: which one is open, who is there, whether the station is heard, light or dark.

import { post } from "./api.js";
import { h, isTyping, put, say, shape } from "./dom.js";
import { HealthView } from "./health.js";
import { HistoryView } from "./history.js";
import { LineView } from "./line.js";
import { ModelsView } from "./models.js";
import { station } from "./station.js";
import { local, time } from "./words.js";

const VIEWS = { line: LineView, history: HistoryView, models: ModelsView, health: HealthView };
const THEMES = ["auto", "light", "dark"];

const main = document.getElementById("view");
const tabs = document.getElementById("tabs");
let open = { name: null, view: null };

/** The view that the address names, and what of it; the first view where it names none. */
function place() {
  try {
    const [name, ...rest] = location.hash.slice(1).split("/").map(decodeURIComponent);
    if (Object.hasOwn(VIEWS, name)) return [name, ...rest];
  } catch {
    // no address at all, such as "#%"
  }
  if (location.hash) say(`There is nothing at ${location.hash.slice(0, 60)} here.`, "problem");
  history.replaceState(null, "", "#line");
  return ["line"];
}

function route() {
  const [known, ...rest] = place();
  if (open.name === known) {
    open.view.go?.(...rest);
    return;
  }
  open.view?.close();
  const view = new VIEWS[known]();
  open = { name: known, view };
  put(main, view.element);
  main.className = `view-${known}`;
  document.title = `${view.title} – makel`;
  for (const tab of tabs.children) {
    if (tab.dataset.view === known) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  view.open(...rest);
}

function drawTabs() {
  put(
    tabs,
    Object.keys(VIEWS).map((name, index) => {
      const tab = h("a", { href: `#${name}`, "aria-keyshortcuts": String(index + 1) }, name[0].toUpperCase() + name.slice(1));
      tab.dataset.view = name;
      return tab;
    }),
  );
}

function drawConnection() {
  const words = { connecting: "connecting", live: "live", lost: "connection lost" }[station.connection];
  const element = document.getElementById("connection");
  put(element, shape({ live: "pass", lost: "reject", connecting: "none" }[station.connection]), words);
  element.className = `connection ${station.connection}`;
  document.documentElement.dataset.connection = station.connection;
  const lost = station.connection === "lost";
  const since = station.heardAt ? ` What you see is from ${time(station.heardAt)} or before.` : "";
  const { obstacles, warnings } = station.troubles;
  const noModel = station.models.length ? obstacles : []; // a new station says so in its own words
  put(
    document.getElementById("notices"),
    lost ? h("p", { class: "notice" }, shape("reject"), h("strong", null, "Connection lost."), `${since} Trying again…`) : null,
    lost ? null : noModel.map((text) => h("p", { class: "notice" }, shape("reject"), h("strong", null, "No part is judged."), local(text))),
    lost ? null : warnings.map((text) => h("p", { class: "notice mild" }, shape("none"), local(text))),
  );
}

function drawWho() {
  const { name, role, token_needed: isGuarded } = station.session;
  const leave = async () => {
    await fetch("/session", { method: "DELETE" });
    location.reload();
  };
  put(document.getElementById("who"), role ? `${name}, ${role}` : "", isGuarded && role ? h("button", { type: "button", class: "quiet", onclick: leave }, "Leave") : []);
  if (isGuarded && !role) signIn();
}

function signIn() {
  const dialog = document.getElementById("sign-in");
  if (!dialog.open) dialog.showModal();
}

document.getElementById("sign-in-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await post("/session", { token: document.getElementById("sign-in-token").value.trim() });
    location.reload();
  } catch (problem) {
    put(document.getElementById("sign-in-problem"), problem.message);
  }
});
document.getElementById("sign-in").addEventListener("cancel", (event) => event.preventDefault());

function drawTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const button = document.getElementById("theme");
  put(button, h("span", { class: "visually-hidden" }, "Colours: "), theme);
  button.title = "Colours: light, dark, or as the system has them";
}

let theme = THEMES.includes(localStorage.getItem("makel-theme")) ? localStorage.getItem("makel-theme") : "auto";
drawTheme(theme);
document.getElementById("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  localStorage.setItem("makel-theme", theme);
  drawTheme(theme);
});

document.addEventListener("keydown", (event) => {
  const name = Object.keys(VIEWS)[Number(event.key) - 1];
  if (name && !isTyping(event)) location.hash = `#${name}`;
});
window.addEventListener("hashchange", () => {
  const before = open.name;
  route();
  if (open.name !== before) main.focus();
});
// The address names a view, so the way to the content must not be one.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
// What fails must not look as if all were well.
for (const kind of ["error", "unhandledrejection"]) window.addEventListener(kind, (event) => say(`The page has failed: ${event.message ?? event.reason?.message}. Load it again.`, "problem"));
// A file that misses its place must not replace the page.
for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
window.addEventListener("unknown-caller", signIn);
station.addEventListener("connection", drawConnection);
station.addEventListener("session", drawWho);

drawTabs();
drawConnection();
async function start() {
  try {
    await station.start();
    if (station.session.role) route();
  } catch {
    station.connection = "lost";
    drawConnection();
    setTimeout(start, 3000);
  }
}
start();
