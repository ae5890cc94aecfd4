// Numbers and moments as people read them.

/** 0.066 %, 0.66 %, 1.0 %, 9.1 %: never a small rate rounded to nothing. */
export function percent(rate) {
  if (rate === null || rate === undefined) return "–";
  const value = 100 * rate;
  return `${value >= 0.95 || value === 0 ? value.toFixed(1) : Number(value.toPrecision(2))}\u00a0%`;
}

export function figure(value, digits = 4) {
  return value === null || value === undefined ? "–" : String(Number(value.toPrecision(digits)));
}

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = count < 1000 ? 0 : Math.min(4, Math.floor(Math.log10(count) / 3));
  const value = count / 1000 ** power;
  return `${power && value < 100 ? value.toPrecision(2) : Math.round(value)}\u00a0${units[power]}`;
}

export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const date = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });
const zone = new Intl.DateTimeFormat("en-GB", { hour: "numeric", timeZoneName: "short" });

/** The time zone that every time on the page is in: that of whoever looks at it. */
export function zoneOf(at) {
  return zone.formatToParts(new Date(at)).find(({ type }) => type === "timeZoneName").value;
}

/** A moment, as short as it can be told. */
export function time(at) {
  const [when, now] = [new Date(at), new Date()];
  if (when.toDateString() === now.toDateString()) return clock.format(when);
  return `${(when.getFullYear() === now.getFullYear() ? day : date).format(when)}, ${clock.format(when)}`;
}

/** A moment in full. */
export function moment(at) {
  const when = new Date(at);
  return `${date.format(when)}, ${clock.format(when)} ${zoneOf(at)}`;
}

/** A text of the station's with the moments in it as they are told here. */
export function local(text) {
  return text.replace(/\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)/g, moment);
}

export function counted(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/** The interval that a rate of `count` of `of` leaves open, 95 % (Wilson 1927). */
export function interval(count, of) {
  if (!of) return [0, 1];
  const z = 1.959964;
  const rate = count / of;
  const centre = (rate + (z * z) / (2 * of)) / (1 + (z * z) / of);
  const half = (z / (1 + (z * z) / of)) * Math.sqrt((rate * (1 - rate)) / of + (z * z) / (4 * of * of));
  return [count === 0 ? 0 : Math.max(0, centre - half), count === of ? 1 : Math.min(1, centre + half)];
}
