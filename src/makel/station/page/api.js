// The station's HTTP interface.

/** A problem document, or a station that does not answer. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

/** Ask the station for something. Gives the response; throws a Problem. */
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { cache: "no-cache", ...options });
  } catch {
    throw new Problem(0, "The station does not answer.");
  }
  if (response.ok) return response;
  let detail = `${response.status} ${response.statusText}`;
  try {
    detail = (await response.json()).detail ?? detail;
  } catch {
    // not a problem document: the status says it
  }
  if (response.status === 401) window.dispatchEvent(new Event("unknown-caller"));
  throw new Problem(response.status, detail);
}

export async function get(path, parameters = {}) {
  const given = Object.entries(parameters).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const query = new URLSearchParams(given).toString();
  return (await ask(query ? `${path}?${query}` : path)).json();
}

export async function post(path, body) {
  const options = { method: "POST" };
  if (body !== undefined) Object.assign(options, { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } });
  return (await ask(path, options)).json();
}

export async function remove(path) {
  return (await ask(path, { method: "DELETE" })).json();
}

/** An image, and the size in pixels that regions refer to. */
export async function picture(path, signal) {
  const response = await ask(path, { cache: "default", signal });
  const [width, height] = (response.headers.get("Makel-Image-Size") ?? "0x0").split("x").map(Number);
  return { url: URL.createObjectURL(await response.blob()), width, height };
}

/** Send a large file; `progress` hears the share that is sent. */
export function upload(path, body, type, progress) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.setRequestHeader("Content-Type", type);
    request.upload.onprogress = (event) => event.lengthComputable && progress(event.loaded / event.total);
    request.onerror = () => reject(new Problem(0, "The station does not answer."));
    request.onload = () => {
      let answer = {};
      try {
        answer = JSON.parse(request.responseText);
      } catch {
        // the status says it
      }
      if (request.status < 300) resolve(answer);
      else reject(new Problem(request.status, answer.detail ?? `${request.status} ${request.statusText}`));
    };
    request.send(body);
  });
}
