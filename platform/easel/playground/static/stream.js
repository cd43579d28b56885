// One call to the API: sends a body, yields the events of its answer. Knows HTTP and server-sent events, no page.

export class ApiFailure extends Error {
  // What the API said, as it said it. Fields that it did not give are empty.
  constructor(message, { status = 0, code = "", type = "", param = "", requestId = "" } = {}) {
    super(message);
    Object.assign(this, { status, code, type, param, requestId });
  }
}

function headers(key) {
  return key ? { authorization: `Bearer ${key}` } : {};
}

async function failure(response) {
  const known = { status: response.status, requestId: response.headers.get("x-request-id") ?? "" };
  const text = await response.text();
  try {
    return told(JSON.parse(text).error, known);
  } catch {
    return new ApiFailure(text.trim().slice(0, 500) || response.statusText || "No reason was given.", known);
  }
}

function told(error, known) {
  if (typeof error?.message !== "string") throw new TypeError("not an error of the API");
  const { message, code, type, param } = error;
  return new ApiFailure(message, { ...known, code: code ?? "", type: type ?? "", param: param ?? "" });
}

async function reached(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiFailure("The service cannot be reached. Is it still running?");
  }
}

export async function getJson(path, key) {
  const response = await reached(path, { headers: headers(key), cache: "no-store" });
  if (!response.ok) throw await failure(response);
  return response.json();
}

// Yields each event's JSON. Ends after [DONE]; throws ApiFailure for anything else that ends a stream.
export async function* stream(path, body, key, signal) {
  const response = await reached(path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers(key) },
    body: JSON.stringify(body),
    signal,
    cache: "no-store",
  });
  if (!response.ok) throw await failure(response);
  const known = { status: response.status, requestId: response.headers.get("x-request-id") ?? "" };
  for await (const data of blocks(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw told(event.error, known);
    yield event;
  }
  throw new ApiFailure("The stream was cut before it ended.", known);
}

// The data of each block, of bytes that arrive cut anywhere.
async function* blocks(bytes) {
  const reader = bytes.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      rest += done ? decoder.decode() : decoder.decode(value, { stream: true });
      const parts = rest.split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split(/\r?\n/).filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      }
      if (done) return;
    }
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiFailure) throw error;
    throw new ApiFailure("The connection broke while the answer was being streamed.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
