// Elements in one expression. Text is always text: nothing that comes from outside is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [key, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null) continue;
    if (key.startsWith("aria-")) element.setAttribute(key, value); // "false" is a value there
    else if (value === false) continue;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "value" || key === "checked" || key === "disabled" || key === "hidden") element[key] = value;
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An HTML element: h("p", {class: "note"}, "text", otherElement). */
export function h(name, properties, ...children) {
  return fill(document.createElement(name), properties, children);
}

/** An SVG element. */
export function s(name, properties, ...children) {
  return fill(document.createElementNS(SVG, name), properties, children);
}

const FOCUSABLE = "a[href], button:not(:disabled), input:not(:disabled), select:not(:disabled), summary, [tabindex='0']";

/** What an element that is drawn anew has in common with the one before. */
function likeness(element) {
  return `${element.tagName} ${element.id || element.getAttribute("href") || element.getAttribute("aria-label") || element.textContent}`;
}

/** Put other children into an element. What had the focus in it keeps it, or what is drawn in its place does. */
export function put(element, ...children) {
  const focused = document.activeElement;
  const isInside = focused !== element && element.contains(focused);
  const like = isInside ? likeness(focused) : null;
  element.replaceChildren(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  if (isInside) {
    const again = element.contains(focused) ? focused : [...element.querySelectorAll(FOCUSABLE)].find((each) => likeness(each) === like);
    if (again) again.focus({ preventScroll: true });
    else focusAround(element);
  }
  return element;
}

/** Give the focus to the section that an element is in: it never falls back to the top of the page. */
export function focusAround(element) {
  const section = element.closest("section, article, aside, main");
  if (!section) return;
  if (!section.hasAttribute("tabindex")) section.setAttribute("tabindex", "-1");
  section.focus({ preventScroll: true });
}

/** Let a button be pressed or not; one that no longer can hands the focus on. */
export function enable(button, isEnabled) {
  const isFocused = document.activeElement === button;
  button.disabled = !isEnabled;
  if (isFocused && !isEnabled) focusAround(button);
}

/** The shape that goes with a word, so that neither needs colour. */
export function shape(kind) {
  const drawn = {
    pass: [s("circle", { cx: 12, cy: 12, r: 11 }), s("path", { d: "M6.5 12.5l3.8 3.8 7.2-8" })],
    reject: [s("path", { d: "M7.4 1h9.2L23 7.4v9.2L16.6 23H7.4L1 16.6V7.4z" }), s("path", { d: "M8 8l8 8M16 8l-8 8" })],
    none: [s("circle", { cx: 12, cy: 12, r: 11 }), s("path", { d: "M7 12h10" })],
  }[kind];
  drawn[0].setAttribute("class", "shape-body");
  drawn[1].setAttribute("class", "shape-mark");
  return s("svg", { class: `shape ${kind}`, viewBox: "0 0 24 24", "aria-hidden": "true" }, drawn);
}

let toasts;

/** Say something for a few seconds. */
export function say(text, kind = "note") {
  toasts ??= document.getElementById("toasts");
  const toast = h("p", { class: `toast ${kind}` }, text);
  toasts.append(toast);
  setTimeout(() => toast.remove(), kind === "problem" ? 12000 : 5000);
}

/** Whether somebody is typing, so that a letter is no command. */
export function isTyping(event) {
  return event.target.matches("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey;
}
